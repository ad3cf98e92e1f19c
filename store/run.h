/* The run's folder: run.json says whose it is, lock says who works in it, last-good.conf what was
 * last accepted.
 *
 *     RUN/run.json            run id, seed, identity, wanted, created
 *     RUN/lock                flock: one owner
 *     RUN/last-good.conf
 *     RUN/catalog.sqlite      store/catalog.h
 *     RUN/history.sqlite      store/history.h
 *     RUN/reserve             blocks for the catalog on a full disk
 *     RUN/checkpoints/        step-….safetensors, branch-….json, ….keep
 *     RUN/previews/           step-….png, sample-….png
 *     RUN/cache/              packed images of folder: data */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "proto/json.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RUN_ID_SIZE 16
#define RUN_ID_HEX_SIZE 33

enum wanted { WANTED_RUN, WANTED_PAUSED, WANTED_STOPPED };
const char *wanted_name(enum wanted wanted);

struct run {
	uint8_t id[RUN_ID_SIZE];
	char id_hex[RUN_ID_HEX_SIZE];
	enum wanted wanted;
	bool power_paused; /* the pause was asked by power-fail */
	/* The last branch that had a verified checkpoint, 0: none yet. A line that began before it
	 * begins at step 0 no more. */
	uint32_t verified_branch;
	char created[32]; /* UTC */
	json_t *identity; /* {key: canonical text} of the identity keys; owned */
};
void run_fini(struct run *run);

/* Opens (and with create makes) the folder and its sub-folders, 0750. Returns the descriptor. */
int run_open_dir(const char *path, bool create, struct error *err);
/* flock, without waiting: 0 and *ret_fd, or -EWOULDBLOCK with the owner's pid in err. */
int run_lock(int run_fd, int *ret_fd, pid_t *ret_owner, struct error *err);

/* -ENOENT "no run here"; -EBADMSG when run.json does not parse. */
int run_load(int run_fd, struct run *ret, struct error *err);
/* A new run with a random id, durable. -EEXIST when there is one. */
int run_create(int run_fd, const struct config *config, struct run *ret, struct error *err);
/* Writes wanted, power_paused, verified_branch durably. */
int run_store(int run_fd, const struct run *run, struct error *err);
/* Remakes a lost run.json from the verified checkpoint files, if all of them agree on the run;
 * -ENOENT when there is no checkpoint, -EBADMSG when they disagree. */
int run_remake(int run_fd, struct run *ret, struct error *err);
/* -ESTALE and one line naming the first differing identity key, both values, and what to do. */
int run_check_identity(const struct run *run, const struct config *config, struct error *err);

int run_write_last_good(int run_fd, const struct config *config, struct error *err);
