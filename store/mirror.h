/* The mirror: checkpoints of one or more runs once more, on another disk. docs/MIRROR.md says what
 * lies there and in which order it comes. Whatever is done here may hang as long as that disk does:
 * only processes that may be killed and left behind call it. */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "store/recovery.h"
#include "store/run.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MIRROR_MARK ".ckptd-mirror"
#define MIRROR_RUNS_MAX 64
#define MIRROR_REACH_SECONDS 10

/* One run's place on a mirror. run_fd has the form of a run's folder. */
struct mirror {
	int dir_fd, run_fd;
	int lock_fd; /* -1: only to look */
};

enum mirror_access { MIRROR_LOOK, MIRROR_CHANGE };

/* Makes an existing folder a mirror by its mark. Nothing else ever makes one: an empty mount point
 * must not be filled. */
int mirror_init(const char *path, struct error *err);
/* -ENXIO: the mirror is away (no folder, or no mark); -ENOENT: nothing of this run is there (only
 * to look: else its place is made); -EWOULDBLOCK: another process works on it. */
int mirror_open(const char *path, const char *run_hex, enum mirror_access access,
	struct mirror *ret, struct error *err);
void mirror_close(struct mirror *mirror);
/* The runs that lie there, by id in hex. */
int mirror_runs(const char *path, char ret_ids[MIRROR_RUNS_MAX][RUN_ID_HEX_SIZE],
	uint32_t *ret_count, struct error *err);

struct mirror_pass {
	const char *run_dir;
	int run_fd;
	const struct run *run;
	const struct config *config;
	uint32_t threads;
	_Atomic uint64_t *moves; /* counts each MiB; may be NULL */
	recovery_report *report;
	void *context;
};
struct mirror_outcome {
	uint32_t copied, removed;
	uint32_t behind;                 /* that should be there and are not */
	char newest[CHECKPOINT_ID_SIZE]; /* on the line, there; "": none, or not known */
};
/* One pass: what is missing there comes, newest first; what its retention gives up goes; the
 * catalog learns of both. Goes on over single failures and gives the first one. ret is set in any
 * case. */
int mirror_update(const struct mirror_pass *pass, struct mirror_outcome *ret, struct error *err);

/* Before a start reads: branch files that are lost here, and the newest checkpoint on the line
 * there that is newer than step *have (-1: none); have NULL: than what is here, by header and
 * catalog. 1 when one came, 0 when none was needed or whole; -ENXIO (away, or no answer in
 * MIRROR_REACH_SECONDS), -ENOENT and others: the mirror cannot help. */
int mirror_fetch_newest(const struct mirror_pass *pass, const int64_t *have, struct error *err);

/* run.json of one run there. */
int mirror_load_run(const char *path, const char *run_hex, struct run *ret, struct error *err);
/* A run's folder made again (under its lock, without a run.json): branch files, marks, every whole
 * checkpoint there, newest first, and pass->run as run.json at last. */
int mirror_restore_run(const struct mirror_pass *pass, uint32_t *ret_count, struct error *err);

/* Small files from one checkpoints folder to another that lacks them. Private to store/. */
int mirror_copy_branches(int from_fd, int to_fd, uint32_t *ret_count, struct error *err);
