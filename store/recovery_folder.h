/* What the parts of recovery share: the checkpoints folder as it is now, and rows made from what
 * lies in it. Private to store/. */
#pragma once

#include "store/recovery.h"
#include "store/retention.h"
#include "store/scan.h"

#define RECOVERY_ABANDONED_LAST 2 /* abandoned ones that retention leaves for a while */
#define RECOVERY_CORRUPT_LAST 2   /* corrupt ones kept for inspection */
#define RECOVERY_ROWS_GONE 1000   /* rows of files that are gone */

struct recovery_folder {
	int fd; /* RUN/checkpoints */
	struct scan scan;
	struct line line;
};

int recovery_folder_open(int run_fd, struct recovery_folder *ret, struct error *err);
void recovery_folder_close(struct recovery_folder *folder);

/* What an error of checkpoint_open or checkpoint_read means for the file. */
enum checkpoint_state recovery_state_of(int error);
/* Reads until there is a verdict about the bytes or nothing there, three times at most: anything
 * else may pass. */
int recovery_try(int (*once)(void *context, struct error *err), void *context, struct error *err);
/* Errors of this process, not of the file: nothing may be concluded from them. */
bool recovery_is_ours(int error);

void recovery_row_of_info(const struct recovery_folder *folder, const struct checkpoint_info *info,
	enum checkpoint_state state, struct catalog_row *ret);
/* What no header says, from what was known of the same root; old may be NULL. */
void recovery_row_carry(const struct catalog_row *old, struct catalog_row *ret);
/* Of a file whose header cannot be used; old (may be NULL) gives what was known of it. */
void recovery_row_of_name(const struct recovery_folder *folder, const struct scan_file *file,
	const struct catalog_row *old, enum checkpoint_state state, const char *text,
	struct catalog_row *ret);

const struct catalog_row *recovery_find_row(
	const struct catalog_row *rows, uint32_t count, uint64_t step, uint32_t branch);

/* The keys of [checkpoint]. */
struct retention_policy recovery_policy_of(const struct config *config);

/* RUN/reserve holds blocks for the catalog's log: on a full disk SQLite cannot even open, and then
 * no row could say `deleted` and nothing would ever go. Given back while room is being made. */
void recovery_reserve_hold(int run_fd);
void recovery_reserve_release(int run_fd);

/* Unlinks moved-aside corrupt files but the newest `keep`; the number of them. */
uint32_t recovery_prune_asides(struct recovery_folder *folder, uint32_t keep);

void recovery_tell(recovery_report *report, void *context, const char *kind, const char *level,
	uint64_t step, const char *format, ...) __attribute__((format(printf, 6, 7)));
