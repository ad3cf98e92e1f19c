/* What a start does with RUN/checkpoints: scan, adopt, mark, and pick the newest verified on the
 * line. Under the run lock. Idempotent: run twice it changes nothing. */
#pragma once

#include "base/error.h"
#include "store/catalog.h"
#include "store/checkpoint.h"
#include "store/line.h"
#include "store/run.h"

#include <stdatomic.h>
#include <stdint.h>

/* Each finding is told to the caller: one line for the log and the events. */
typedef void recovery_report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text);

struct recovery_summary {
	char catalog[16];       /* ok | created | rebuilt */
	uint32_t branch;        /* current */
	uint32_t on_line_count; /* candidates on the line */
	bool has_newest;
	struct catalog_row newest; /* newest candidate on the line, verified or found */
};

/* Removes leftover partials, opens or rebuilds the catalog, adopts files without a row (found),
 * marks rows without a file (missing), sets keep marks, completes unlinks of deleted rows. On a
 * full disk the catalog stays as it is, which is told and no error. */
int recovery_prepare(const char *run_dir, int run_fd, const struct run *run,
	recovery_report *report, void *context, struct recovery_summary *ret, struct error *err);

/* For a save before its first byte: makes a catalog that was lost or damaged under a running daemon
 * anew, as a start would; nobody else may be saving. 0 also when nothing is to be done. */
int recovery_repair_catalog(const char *run_dir, int run_fd, const struct run *run,
	recovery_report *report, void *context, struct error *err);

/* Newest first on the line: reads, hashes, marks what fails, until one verifies. Fills block (one
 * whole block) and sums. -ENOENT: none on the line at all; -EAGAIN: none verifies and some are only
 * unreadable or refused now (wait and try again: never start from scratch); -EBADMSG: all are
 * corrupt; others: this process lacks something (memory, descriptors). */
int recovery_load(const char *run_dir, int run_fd, const struct run *run,
	const struct tensor_table *table, void *block, uint64_t *sums, uint32_t threads,
	_Atomic uint64_t *moves, recovery_report *report, void *context,
	struct checkpoint_info *ret, struct error *err);

/* The newest verified one on the line without reading data, for sample and export; id NULL or ""
 * for the newest, else that one, on the line or not. Opens it too. -ENOENT, -EINVAL (no id). */
int recovery_pick(const char *run_dir, int run_fd, const char *id, struct checkpoint_info *ret,
	int *ret_fd, struct error *err);

struct recovery_outcome {
	bool catalogued;     /* false: the row could not be written, the checkpoint stands */
	uint64_t over_bytes; /* beyond keep_bytes, and nothing more may go */
};
/* Steps 7 to 9 of a commit: the row, then retention (row deleted, unlink, fsync folder). Fault
 * points: save.catalogued, save.retained. */
int recovery_catalog_saved(const char *run_dir, int run_fd, const struct checkpoint_saved *saved,
	const struct checkpoint_source *source, const struct config *config,
	struct recovery_outcome *ret, recovery_report *report, void *context, struct error *err);
/* Makes (or takes away) the keep mark, durably; the row follows. text: one line for whoever asked.
 * -EINVAL (no id), -ENOENT, -EBADMSG and others: its header does not say what to keep. */
int recovery_keep(const char *run_dir, int run_fd, const char *id, bool keep, char *text,
	size_t size, struct error *err);
/* Before step 1, and again on ENOSPC: deletes until bytes are free or only two verified stay: then
 * -ENOSPC. With enough room it does nothing and needs no catalog. refused: the disk took no such
 * file though it had room (a quota), so as many bytes are given up whatever it says. */
int recovery_make_room(const char *run_dir, int run_fd, uint64_t bytes, bool refused,
	recovery_report *report, void *context, struct error *err);
