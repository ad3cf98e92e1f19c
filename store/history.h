/* history.sqlite: attempts, events, metrics, the supervisor's lives, outages. Written only by the
 * supervisor's database thread; its loss costs history, never training. WAL, synchronous=NORMAL.
 * The door of SQLite for it. */
#pragma once

#include "base/clock.h"
#include "base/error.h"
#include "proto/json.h"
#include "proto/progress.h"

#include <stdbool.h>
#include <stdint.h>

struct history; /* one connection; used by one thread */

/* Opens; creates or migrates (only under the run lock). A database that is not one is moved aside
 * (history.sqlite.broken-N) and a new one made: *ret_was_lost. */
int history_open(const char *run_dir, int run_fd, struct history **ret, bool *ret_was_lost,
	struct error *err);
void history_close(struct history *history);
/* Under a running daemon: an answer was none, or the file is gone or another one. Then it is to be
 * closed and opened again. */
bool history_is_broken(const struct history *history);
bool history_is_gone(const struct history *history, int run_fd);

struct history_attempt {
	int64_t id; /* filled in by begin */
	char role[16];
	int64_t pid;
	nsec_t begun_wall_ns, ended_wall_ns;
	uint32_t rung;
	uint64_t step_begun, step_ended;
	char from[16];  /* memory | checkpoint | scratch */
	char cause[64]; /* "killed by SIGKILL", "hang", "stopped", ... */
	char phase[24];
	char sentence[256]; /* the obituary */
	char stderr_tail[2048];
	bool planned;
};
int history_attempt_begin(
	struct history *history, struct history_attempt *attempt, struct error *err);
int history_attempt_end(
	struct history *history, const struct history_attempt *attempt, struct error *err);

int history_event(struct history *history, nsec_t wall_ns, const char *kind, const char *level,
	uint64_t step, const char *text, struct error *err);
/* One transaction; key (branch, step, kind), replays replace; older than 100,000 steps thinned
 * 1:100 now and then. */
int history_metrics(
	struct history *history, const struct metric *metrics, uint32_t count, struct error *err);

struct history_metrics_query {
	uint64_t after_step;
	const char *kind; /* "train", "holdout", or NULL: all */
	uint32_t limit;
	/* Where the run is: what older branches did beyond this step is left out. branch 0: nothing
	 * is. */
	uint32_t branch;
	uint64_t step;
};

/* Answers for the methods: arrays of objects as in the varlink interface, oldest first; new
 * references. Events: the newest `limit` of those after this id. Metrics: when there are more than
 * `limit`, every n-th, always with the newest; of one step the newest branch. The last
 * event of a kind and the last death are null when there was none. */
int history_events_json(
	struct history *history, int64_t after, uint32_t limit, json_t **ret, struct error *err);
int history_metrics_json(struct history *history, const struct history_metrics_query *query,
	json_t **ret, struct error *err);
int history_last_event_json(
	struct history *history, const char *kind, json_t **ret, struct error *err);
int history_last_death_json(struct history *history, json_t **ret, struct error *err);

#define HISTORY_BOOT_ID_SIZE 40

/* One life of the supervisor. What the last one left says how it ended: by a power cut when the
 * boot is another one and it did not say that it ends. */
struct history_life {
	char boot_id[HISTORY_BOOT_ID_SIZE]; /* of the kernel */
	nsec_t begun_wall_ns, seen_wall_ns;
	uint64_t step; /* the furthest finished one, when last seen */
	bool ended;    /* as asked */
};
/* Begins one. *ret_last: the one before; begun_wall_ns is 0 when there was none. */
int history_life_begin(struct history *history, const struct history_life *life,
	struct history_life *ret_last, struct error *err);
/* seen_wall_ns, step and ended of the newest one. */
int history_life_seen(struct history *history, const struct history_life *life, struct error *err);

/* A time without new steps: from the last finished one to the beginning of the next that was never
 * finished before. */
struct history_outage {
	int64_t id; /* 0: not written yet */
	nsec_t begun_wall_ns;
	nsec_t resumed_wall_ns; /* a trainer computes again; 0: not yet */
	nsec_t ended_wall_ns;   /* 0: not yet */
	char cause[64], detected[64], sentence[256];
	bool planned;     /* somebody wanted it */
	bool memory_lost; /* the disk had to be read */
	uint64_t step;    /* the furthest finished one */
	uint64_t steps_redone;
	uint32_t restarts; /* of the trainer */
};
/* Writes a new one (id is filled in) or what has become of an older one. */
int history_outage_put(struct history *history, struct history_outage *outage, struct error *err);
/* The newest one that has not ended; -ENOENT. */
int history_outage_open(struct history *history, struct history_outage *ret, struct error *err);
/* How many outages that nobody planned lost the memory, and since when they are counted (0: no life
 * was noted yet). */
int history_memory_losses(
	struct history *history, uint32_t *ret_count, nsec_t *ret_since_wall_ns, struct error *err);
/* {outages, totals} as the interface says it: the newest `limit`, oldest first. */
int history_outages_json(struct history *history, uint32_t limit, nsec_t now_wall_ns, json_t **ret,
	struct error *err);
