/* The line: which branches and steps count. A rollback begins a new branch, committed by one file,
 * checkpoints/branch-0002.json. A checkpoint (branch, step) is on the line if its branch is the
 * current one, or is an ancestor's and its step is not beyond the fork. Branch 1 has no file. The
 * current branch is the one with the greatest number. */
#pragma once

#include "base/digest.h"
#include "base/error.h"
#include "proto/state.h"

#include <stdbool.h>
#include <stdint.h>

#define LINE_BRANCHES_MAX 9999
#define LINE_INTERVENTIONS_MAX 8

struct line_branch {
	uint32_t branch; /* 1.. */
	uint32_t parent; /* 0 for branch 1 */
	uint64_t fork_step;
	struct digest fork_root;
	bool suspect; /* made by the ladder: what it left behind on the parent is suspect */
	char why[160];
	char created[32];
	/* Of the ladder: skipped windows, applied when the branch reaches their step, and that the
	 * safe engine was chosen; what really computed stands in the record. */
	uint32_t intervention_count;
	struct intervention interventions[LINE_INTERVENTIONS_MAX];
};

struct line {
	uint32_t count;
	struct line_branch *branches; /* by number; owned */
	uint32_t current;
	uint32_t highest; /* number in any file's name, also of checkpoints: never given again */
};

/* Reads every branch file under the checkpoints folder. A broken one is -EBADMSG with its name. */
int line_load(int checkpoints_fd, struct line *ret, struct error *err);
void line_fini(struct line *line);
bool line_contains(const struct line *line, uint32_t branch, uint64_t step);
/* True when (branch, step) was left behind by a ladder fork. */
bool line_is_suspect(const struct line *line, uint32_t branch, uint64_t step);
const struct line_branch *line_find(const struct line *line, uint32_t branch);
/* The branch whose states this one goes on from; NULL when it begins at step 0. */
const struct line_branch *line_before(const struct line *line, const struct line_branch *branch);
/* The branch at whose step 0 the way to this one begins: 1, unless somebody went back to step 0.
 * 0 when there is no such branch. */
uint32_t line_beginning(const struct line *line, uint32_t branch);
/* Commits a new branch durably and adds it to the line; fills in branch->branch, parent, created.
 * parent 0: the branch of the current line that owns fork_step; else the fork is from that branch,
 * on the line or not (to trust an abandoned checkpoint again). */
int line_fork(int checkpoints_fd, struct line *line, struct line_branch *branch, struct error *err);
