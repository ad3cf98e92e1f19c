/* Reading kept checkpoints again, so that one which rots is known while others can still replace
 * it. Everything is read past the cache and checked as a load checks it; what comes of each goes
 * into the catalog before the next is begun, so whoever is killed has lost one reading, and the
 * next goes on with the oldest.
 *
 * It never deletes and never writes a checkpoint. While one is read its shared lock is held, so
 * retention leaves it alone; what retention took before is passed over. */
#pragma once

#include "base/clock.h"
#include "store/recovery.h"

/* -- pure -- */

/* One reading of many in a second: bytes are let through at a rate. Time in which nobody read is
 * not saved up. */
struct scrub_pace {
	uint64_t rate_bytes; /* a second; 0: as fast as it goes */
	nsec_t ready_ns;
};
/* How long to wait from now before these bytes may be read; the caller does wait. */
nsec_t scrub_pace_wait_ns(struct scrub_pace *pace, nsec_t now_ns, uint64_t bytes);

struct scrub_item {
	uint64_t step;
	uint32_t branch;
	bool has_file;
	uint64_t file_bytes;
	char verified_at[CLOCK_TEXT_SIZE]; /* of its row; "": not known */
};
/* Those that were never verified first, then the longest ago; of equal ones the newest step. */
void scrub_order(struct scrub_item *items, uint32_t count);

/* When the kept checkpoints were last matched. Only those that a start would believe count: what is
 * known to be bad is not made better by reading it again. */
struct scrub_age {
	uint32_t count;
	bool unknown;       /* one whose time is not known */
	nsec_t oldest_ns;   /* wall time of the oldest, if any */
	uint32_t bad_count; /* corrupt ones */
};
void scrub_age_add(struct scrub_age *age, const struct catalog_row *row);
/* Wall time at which the next scrub is due: 0 at once, INT64_MAX never. A time that lies in the
 * future is not believed. */
nsec_t scrub_due_ns(const struct scrub_age *age, nsec_t interval_ns, nsec_t now_wall_ns);

/* -- doing it -- */

struct scrub_result {
	const char *id;
	enum checkpoint_state state; /* verified, corrupt, unreadable, refused, missing */
	const char *text;            /* why */
	uint64_t bytes;              /* of the file */
};

struct scrub_options {
	const char *id; /* only this one; NULL or "": all that are kept */
	uint32_t threads;
	/* Before each chunk (checkpoint.h); NULL: no pace. -ECANCELED ends the scrub. */
	const struct checkpoint_gate *gate;
	/* Before each checkpoint: what is done and what there is to do. May be NULL. */
	void (*begin)(void *context, const char *id, uint64_t done_bytes, uint64_t total_bytes);
	/* After each; the row is written. Negative ends the scrub, which gives it. */
	int (*result)(void *context, const struct scrub_result *result);
	recovery_report *report; /* what changed, and rows that could not be written */
	void *context;
};

/* 0 when all were read, whatever came of them; -ENOENT: there is no such id; -ECANCELED; others:
 * nothing could be read. */
int scrub_run(const char *run_dir, int run_fd, const uint8_t *run_id,
	const struct scrub_options *options, struct error *err);

/* One file by its name: 0, or what is wrong, as a load would say it. *ret_fd: -1, or it is open
 * still (so that it cannot go meanwhile) and its header is good: descriptor and info are the
 * caller's then, whatever came of the data. run_id NULL: of any run. threads and gate as above. */
int scrub_check_file(int checkpoints_fd, const char *name, const uint8_t *run_id, uint32_t threads,
	const struct checkpoint_gate *gate, struct checkpoint_info *ret, int *ret_fd,
	struct error *err);
