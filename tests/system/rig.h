/* The whole system under test: a run folder under /tmp, the real ckptd with the real ckptd-worker,
 * and its socket. Waits poll the status with a generous deadline; every helper fails the running
 * cmocka test when something is not as it must be, and then shows the daemon's log. */
#pragma once

#include "base/config.h"
#include "base/digest.h"
#include "proto/json.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RIG_PATH_MAX 160

struct rig {
	char dir[64];
	char run_dir[RIG_PATH_MAX]; /* dir/run */
	char conf[RIG_PATH_MAX], log[RIG_PATH_MAX], socket[RIG_PATH_MAX];
	struct config config;
	pid_t supervisor; /* 0: none */
};

/* A net of a few milliseconds a step; settings: "key=value" words that change it. Creates the run.
 */
void rig_open(struct rig *rig, const char *settings);
/* Writes rig->conf: that net, changed by the settings. */
void rig_settings(struct rig *rig, const char *settings);
/* Ends what still runs and removes the folder. */
void rig_close(struct rig *rig);
/* A second rig with a copy of the run folder, which must be at rest. */
void rig_copy(struct rig *rig, const struct rig *from);
/* Only the files, into the folder that is there. */
void rig_copy_run(const struct rig *rig, const struct rig *from);
/* Changes the configuration file for the next start. */
void rig_set(struct rig *rig, const char *key, const char *value);

/* Starts ckptd as a service; fault: CKPTD_FAULT, or NULL. Returns when it answers. */
void rig_start(struct rig *rig, const char *fault);
/* Runs a program of the build ("supervisor/ckptd", "ctl/ckptctl") to its end with arguments, output
 * to dir/output; the exit code. */
int rig_run(struct rig *rig, const char *program, const char *const *arguments);
/* The text of dir/output, or of the daemon's log; malloc'ed. */
char *rig_output(const struct rig *rig);
char *rig_log(const struct rig *rig);

/* SIGTERM, and the end; the exit code. */
int rig_stop(struct rig *rig);
/* SIGKILL of the supervisor, and waits until its workers are gone as well. */
void rig_kill_supervisor(struct rig *rig);
/* The pid of the worker in this role now, or 0. */
pid_t rig_worker(const struct rig *rig, const char *role);
/* Waits for the worker in this role to be stopped by a fault point or a signal: its pid. */
pid_t rig_halted(struct rig *rig, const char *role);

/* One call; parameters are stolen (NULL: none). The reply's parameters, or NULL with the error's
 * name in error (may be NULL: then an error fails the test). */
json_t *rig_call(struct rig *rig, const char *method, json_t *parameters, char error[64]);
/* A connection to the socket; -1 when nobody listens. */
int rig_connect(const struct rig *rig);
/* Sends a call and does not wait for its reply. */
void rig_send(struct rig *rig, const char *method);
json_t *rig_status(struct rig *rig);
int64_t rig_step(struct rig *rig);

/* Polls the status until is(status, value) holds. what: for the message. */
void rig_wait(struct rig *rig, const char *what, bool (*is)(const json_t *status, int64_t value),
	int64_t value);
bool is_step(const json_t *status, int64_t value);     /* at least this step */
bool is_training(const json_t *status, int64_t value); /* and ready */
bool is_finished(const json_t *status, int64_t value);
bool has_restarted(const json_t *status, int64_t value); /* so often, and trains again */
bool has_died(const json_t *status, int64_t value);      /* so often, whatever came after */
bool is_saved(const json_t *status, int64_t value); /* newest verified is of at least this step */

/* The newest event of this kind whose text contains part, after the event with id after: its id and
 * text; 0 when there is none. Waits up to a few seconds, because the database is written behind. */
int64_t rig_event(
	struct rig *rig, const char *kind, const char *part, int64_t after, char text[256]);
int64_t rig_last_event(struct rig *rig);
/* The state of a checkpoint in the catalog ("verified", ...), "" when it has no row. */
void rig_checkpoint_state(struct rig *rig, const char *id, char state[32]);
/* The file of a checkpoint. */
void rig_checkpoint_path(const struct rig *rig, const char *id, char path[2 * RIG_PATH_MAX]);
/* Flips one bit of a file: at from its beginning, or from its end when negative. */
void rig_flip(const char *path, off_t at);
/* Saves and waits: the id. */
void rig_save(struct rig *rig, char id[64], int64_t *ret_step);

/* Digest of the four sections of the newest verified checkpoint, which must be of this step. */
struct digest rig_digest(struct rig *rig, uint64_t step);
