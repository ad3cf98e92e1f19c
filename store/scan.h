/* One pass over RUN/checkpoints: what lies there, by name only; nothing is opened. Private to
 * store/. Names that are nobody's are left alone. */
#pragma once

#include "base/digest.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define SCAN_NAME_MAX 96
#define SCAN_ENTRIES_MAX 1000000
#define SCAN_ASIDE_INFIX ".corrupt-" /* step-….safetensors.corrupt-1: made way for a new save */

struct scan_file {
	uint64_t step;
	uint32_t branch;
	char name[SCAN_NAME_MAX];
};

struct scan_name {
	char name[SCAN_NAME_MAX];
};

struct scan {
	uint32_t file_count, aside_count, leftover_count, branch_count, keep_count;
	struct scan_file *files;     /* step-….safetensors, newest first */
	struct scan_file *asides;    /* newest first */
	struct scan_name *leftovers; /* partials of saves, temporaries of small files */
	uint32_t *branches;          /* ascending */
	struct digest *keeps;        /* ….keep, by root */
};

int scan_checkpoints(int checkpoints_fd, struct scan *ret, struct error *err);
void scan_fini(struct scan *scan);
/* "<root>.keep" */
void scan_keep_name(const struct digest *root, char name[SCAN_NAME_MAX]);
bool scan_keeps(const struct scan *scan, const struct digest *root);
