/* A run's folder compared with itself, offline: run.json, branch files, catalog, every checkpoint
 * against its digests and its row, what saves and deletions left behind. To repair is to do what a
 * start would do, and to write down what was read. It never deletes a checkpoint but one whose row
 * says that retention has decided so. Under the run lock, which the caller holds; signers are
 * judged by the process's policy (store/trust.h). */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum fsck_kind {
	FSCK_NOTE,  /* worth knowing, and as it should be: a corrupt file that is marked so */
	FSCK_FOUND, /* not as it should be */
	FSCK_LEFT,  /* the same after the repair */
};

/* One line. */
typedef void fsck_report(void *context, enum fsck_kind kind, const char *text);

struct fsck_options {
	bool repair;
	uint32_t threads; /* 0: all */
	fsck_report *report;
	void *context;
};

struct fsck_summary {
	uint32_t read_count; /* checkpoints that were read */
	uint32_t found, left;
};

/* 0 when all was looked at, whatever came of it. */
int fsck_run(const char *run_dir, int run_fd, const struct fsck_options *options,
	struct fsck_summary *ret, struct error *err);
