/* After a save: the row, then retention; and making room before one. A file goes only in this
 * order: its lock is taken, which nobody who reads it gives away, and its keep mark looked for once
 * more; its row says `deleted` and is committed, then the unlink, then the fsync of the folder; so
 * no row ever promises a file that a crash may have taken. Without a catalog nothing is deleted:
 * what is verified is not known then. */
#include "store/recovery_folder.h"

#include "base/file.h"
#include "base/sys.h"
#include "store/retention.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* The header, the catalog and its log also want room. */
#define ROOM_MARGIN_BYTES ((uint64_t)16 << 20)

struct cleaning {
	struct recovery_folder folder;
	struct catalog *catalog;
	struct catalog_row *rows;
	struct retention_item *items; /* items[i] speaks of files[i] */
	const struct scan_file **files;
	uint32_t row_count, item_count, removed;
	recovery_report *report;
	void *context;
};

static void cleaning_fini(struct cleaning *cleaning)
{
	catalog_close(cleaning->catalog);
	recovery_folder_close(&cleaning->folder);
	free(cleaning->rows);
	free(cleaning->items);
	free(cleaning->files);
}

/* Only files with a row take part; what is refused is not ours to delete. */
static void add_items(struct cleaning *cleaning)
{
	const struct scan *scan = &cleaning->folder.scan;

	for (uint32_t i = 0; i < scan->file_count; i++) {
		const struct scan_file *file = &scan->files[i];
		const struct catalog_row *row = recovery_find_row(
			cleaning->rows, cleaning->row_count, file->step, file->branch);

		if (row == NULL || row->state == CHECKPOINT_REFUSED)
			continue;
		cleaning->files[cleaning->item_count] = file;
		cleaning->items[cleaning->item_count++] = (struct retention_item){
			.step = row->step,
			.branch = row->branch,
			.file_bytes = row->file_bytes,
			.trained_seconds = row->trained_seconds,
			.loss = row->loss,
			.verified = row->state == CHECKPOINT_VERIFIED,
			.corrupt = row->state == CHECKPOINT_CORRUPT,
			.found = row->state == CHECKPOINT_FOUND ||
				row->state == CHECKPOINT_UNREADABLE ||
				row->state == CHECKPOINT_MISSING,
			.on_line = line_contains(&cleaning->folder.line, row->branch, row->step),
			.keep = scan_keeps(scan, &row->root),
		};
	}
}

static int cleaning_init(struct cleaning *cleaning, const char *run_dir, int run_fd,
	recovery_report *report, void *context, struct error *err)
{
	uint32_t bad = 0;
	int rc;

	memset(cleaning, 0, sizeof(*cleaning));
	cleaning->report = report;
	cleaning->context = context;
	rc = recovery_folder_open(run_fd, &cleaning->folder, err);
	if (rc < 0)
		return rc;
	rc = catalog_open(run_dir, CATALOG_WRITE, &cleaning->catalog, err);
	if (rc == 0)
		rc = catalog_list(
			cleaning->catalog, &cleaning->rows, &cleaning->row_count, &bad, err);
	if (rc == 0) {
		size_t room = (size_t)cleaning->folder.scan.file_count + 1;

		cleaning->items = calloc(room, sizeof(*cleaning->items));
		cleaning->files = calloc(room, sizeof(*cleaning->files));
		if (cleaning->items == NULL || cleaning->files == NULL)
			rc = error_set(err, -ENOMEM, "no memory for the list of checkpoints");
	}
	if (rc < 0) {
		cleaning_fini(cleaning);
		return rc;
	}
	add_items(cleaning);
	return 0;
}

/* -EBUSY: somebody reads it, or has just asked to keep it. Else a descriptor with the lock, or -1
 * when there is no way to one: then the file can only be unlinked as it is. */
static int lock_item(const struct cleaning *cleaning, uint32_t item, int *ret_fd)
{
	const struct scan_file *file = cleaning->files[item];
	const struct catalog_row *row = recovery_find_row(
		cleaning->rows, cleaning->row_count, file->step, file->branch);
	char mark[SCAN_NAME_MAX];
	struct stat stat;

	*ret_fd = sys_openat(
		cleaning->folder.fd, file->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
	if (*ret_fd >= 0 && sys_flock(*ret_fd, LOCK_EX | LOCK_NB) == -EWOULDBLOCK) {
		sys_close(*ret_fd);
		return -EBUSY;
	}
	scan_keep_name(&row->root, mark);
	if (sys_fstatat(cleaning->folder.fd, mark, &stat) == -ENOENT)
		return 0;
	if (*ret_fd >= 0)
		sys_close(*ret_fd);
	return -EBUSY;
}

static int unlink_item(struct cleaning *cleaning, uint32_t item, const char *why, struct error *err)
{
	const struct scan_file *file = cleaning->files[item];
	char id[CHECKPOINT_ID_SIZE];
	int rc;

	checkpoint_id_format(file->step, file->branch, id);
	rc = catalog_set_state(cleaning->catalog, id, CHECKPOINT_DELETED, why, err);
	if (rc < 0)
		return rc;
	rc = sys_unlinkat(cleaning->folder.fd, file->name);
	if (rc < 0 && rc != -ENOENT)
		return error_set(err, rc, "cannot remove %s: %s", file->name, strerror(-rc));
	recovery_tell(cleaning->report, cleaning->context, "deleted", "info", file->step,
		"%s is deleted %s", id, why);
	return 0;
}

/* Marked ones go, and leave the list. One that is being read stays, marked busy: -EBUSY. */
static int remove_item(struct cleaning *cleaning, uint32_t item, const char *why, struct error *err)
{
	int fd, rc = lock_item(cleaning, item, &fd);

	if (rc == -EBUSY) {
		cleaning->items[item].busy = true;
		cleaning->items[item].remove = false;
		recovery_tell(cleaning->report, cleaning->context, "in-use", "info",
			cleaning->files[item]->step,
			"%s is being read, or was just kept: it stays for now",
			cleaning->files[item]->name);
		return rc;
	}
	rc = unlink_item(cleaning, item, why, err);
	if (fd >= 0)
		sys_close(fd);
	if (rc == 0) {
		/* The last one takes its place. */
		cleaning->items[item] = cleaning->items[--cleaning->item_count];
		cleaning->files[item] = cleaning->files[cleaning->item_count];
		cleaning->removed++;
	}
	return rc;
}

static int sync_folder(const struct cleaning *cleaning, struct error *err)
{
	int rc = file_sync_dir(cleaning->folder.fd);

	return rc == 0
		? 0
		: error_set(err, rc, "cannot sync the checkpoints folder: %s", strerror(-rc));
}

/* -- after a save -- */

static void row_of_saved(const struct cleaning *cleaning, const struct checkpoint_saved *saved,
	const struct checkpoint_source *source, struct catalog_row *ret)
{
	const struct state_record *record = source->record;

	memset(ret, 0, sizeof(*ret));
	snprintf(ret->id, sizeof(ret->id), "%s", saved->id);
	ret->step = record->step;
	ret->branch = record->branch;
	ret->state = CHECKPOINT_VERIFIED;
	ret->root = saved->root;
	ret->parent_root = source->parent_root;
	ret->file_bytes = saved->file_bytes;
	ret->loss = isnan(record->loss) ? (double)NAN : (double)record->loss;
	ret->trained_seconds = record->trained_ns / (uint64_t)NSEC_PER_SEC;
	ret->keep = scan_keeps(&cleaning->folder.scan, &saved->root);
	snprintf(ret->created, sizeof(ret->created), "%s", saved->created);
	snprintf(ret->signer, sizeof(ret->signer), "%s", saved->signer);
	catalog_row_verified_now(ret);
	/* A second save of a step answers with the first, and has only read it. */
	if (saved->already)
		recovery_row_carry(recovery_find_row(cleaning->rows, cleaning->row_count,
					   record->step, record->branch),
			ret);
	else
		snprintf(ret->readback, sizeof(ret->readback), "%s",
			saved->direct ? "direct" : "cache");
}

/* Files whose own save could not write their row: found, until somebody reads them. Whatever cannot
 * be taken now is left to the next save or start. */
static void adopt_rowless(struct cleaning *cleaning, const struct checkpoint_source *source)
{
	for (uint32_t i = 0; i < cleaning->folder.scan.file_count; i++) {
		const struct scan_file *file = &cleaning->folder.scan.files[i];
		const struct state_record *record = source->record;
		struct checkpoint_info info;
		struct catalog_row row;
		int fd;

		if ((file->step == record->step && file->branch == record->branch) ||
			recovery_find_row(cleaning->rows, cleaning->row_count, file->step,
				file->branch) != NULL)
			continue;
		fd = checkpoint_open(cleaning->folder.fd, file->name, &info, NULL);
		if (fd < 0)
			continue;
		if (memcmp(info.record.run_id, record->run_id, sizeof(record->run_id)) == 0) {
			recovery_row_of_info(&cleaning->folder, &info, CHECKPOINT_FOUND, &row);
			catalog_put(cleaning->catalog, &row, NULL);
		}
		checkpoint_info_fini(&info);
		sys_close(fd);
	}
}

static int write_row(const char *run_dir, int run_fd, const struct checkpoint_saved *saved,
	const struct checkpoint_source *source, struct error *err)
{
	struct cleaning cleaning;
	struct catalog_row row;
	int rc = cleaning_init(&cleaning, run_dir, run_fd, NULL, NULL, err);

	if (rc < 0)
		return rc;
	row_of_saved(&cleaning, saved, source, &row);
	rc = catalog_put(cleaning.catalog, &row, err);
	if (rc == 0)
		adopt_rowless(&cleaning, source);
	cleaning_fini(&cleaning);
	if (rc == 0 && (rc = sys_fault("save.catalogued")) < 0)
		error_set(err, rc, "catalog: %s", strerror(-rc));
	return rc;
}

static uint64_t aside_bytes(const struct cleaning *cleaning)
{
	const struct scan *scan = &cleaning->folder.scan;
	uint64_t bytes = 0;
	struct stat stat;

	for (uint32_t i = 0; i < scan->aside_count; i++)
		if (sys_fstatat(cleaning->folder.fd, scan->asides[i].name, &stat) == 0)
			bytes += (uint64_t)stat.st_size;
	return bytes;
}

/* The corrupt ones that were moved aside count too, and go first when all is too much. */
static uint64_t decide(struct cleaning *cleaning, const struct retention_policy *policy)
{
	struct retention_policy unbounded = *policy;
	uint64_t bytes;

	unbounded.keep_bytes = 0;
	retention_decide(cleaning->items, cleaning->item_count, &unbounded);
	bytes = retention_bytes(cleaning->items, cleaning->item_count) + aside_bytes(cleaning);
	if (policy->keep_bytes == 0 || bytes <= policy->keep_bytes)
		return 0;
	cleaning->removed += recovery_prune_asides(&cleaning->folder, 0);
	return retention_decide(cleaning->items, cleaning->item_count, policy);
}

/* Each turn but the last finds one more that is being read, and decides without it. */
static int remove_decided(struct cleaning *cleaning, const struct retention_policy *policy,
	uint64_t *ret_over, struct error *err)
{
	bool again = true;
	int rc = 0;

	while (again) {
		*ret_over = decide(cleaning, policy);
		again = false;
		for (uint32_t i = 0; i < cleaning->item_count;) {
			rc = cleaning->items[i].remove
				? remove_item(cleaning, i, "by retention", err)
				: 1;
			if (rc < 0 && rc != -EBUSY)
				return rc;
			again = again || rc == -EBUSY;
			i += rc != 0;
		}
	}
	return 0;
}

static int retain(const char *run_dir, int run_fd, const struct config *config, uint64_t *ret_over,
	recovery_report *report, void *context, struct error *err)
{
	const struct retention_policy policy = recovery_policy_of(config);
	struct cleaning cleaning;
	int rc = cleaning_init(&cleaning, run_dir, run_fd, report, context, err);

	if (rc < 0)
		return rc;
	rc = remove_decided(&cleaning, &policy, ret_over, err);
	cleaning.removed += recovery_prune_asides(&cleaning.folder, RECOVERY_CORRUPT_LAST);
	if (rc == 0 && cleaning.removed > 0)
		rc = sync_folder(&cleaning, err);
	if (rc == 0)
		rc = catalog_prune(cleaning.catalog, RECOVERY_ROWS_GONE, err);
	cleaning_fini(&cleaning);
	if (rc == 0 && (rc = sys_fault("save.retained")) < 0)
		error_set(err, rc, "retention: %s", strerror(-rc));
	return rc;
}

int recovery_catalog_saved(const char *run_dir, int run_fd, const struct checkpoint_saved *saved,
	const struct checkpoint_source *source, const struct config *config,
	struct recovery_outcome *ret, recovery_report *report, void *context, struct error *err)
{
	int rc = write_row(run_dir, run_fd, saved, source, err);

	/* The save may have taken the last free blocks. */
	if (rc == -EIO || rc == -ENOSPC || rc == -EDQUOT) {
		recovery_reserve_release(run_fd);
		rc = write_row(run_dir, run_fd, saved, source, err);
	}
	*ret = (struct recovery_outcome){.catalogued = rc == 0};
	if (rc == 0)
		rc = retain(run_dir, run_fd, config, &ret->over_bytes, report, context, err);
	recovery_reserve_hold(run_fd);
	return rc;
}

/* -- before one -- */

/* Asked anew each time: others use the disk too. */
static int free_bytes(int run_fd, uint64_t *ret, struct error *err)
{
	int rc = sys_free_bytes(run_fd, ret);

	return rc < 0 ? error_set(err, rc, "cannot ask for the free space: %s", strerror(-rc)) : 0;
}

/* -ENOSPC when nothing more may go. */
static int remove_next(struct cleaning *cleaning, uint64_t *given, struct error *err)
{
	uint32_t chosen = 0;
	uint64_t bytes;
	int rc;

	do {
		if (!retention_make_room(cleaning->items, cleaning->item_count))
			return -ENOSPC;
		for (uint32_t i = 0; i < cleaning->item_count; i++)
			if (cleaning->items[i].remove)
				chosen = i;
		bytes = cleaning->items[chosen].file_bytes;
		rc = remove_item(cleaning, chosen, "to make room on a full disk", err);
	} while (rc == -EBUSY);
	if (rc == 0)
		rc = sync_folder(cleaning, err);
	*given += bytes;
	return rc;
}

static int say_full(uint64_t bytes, uint64_t free, bool refused, struct error *err)
{
	if (refused && free >= bytes)
		return error_set(err, -ENOSPC,
			"the disk refuses a checkpoint's %llu MiB though %llu MiB are free (a "
			"quota?), and no checkpoint may be deleted",
			(unsigned long long)(bytes >> 20), (unsigned long long)(free >> 20));
	return error_set(err, -ENOSPC,
		"disk full: a checkpoint needs %llu MiB, %llu MiB are free, and no checkpoint may "
		"be deleted",
		(unsigned long long)(bytes >> 20), (unsigned long long)(free >> 20));
}

static int clean_until_free(
	struct cleaning *cleaning, int run_fd, uint64_t bytes, bool refused, struct error *err)
{
	uint64_t free = 0, given = 0;
	int rc;

	if (recovery_prune_asides(&cleaning->folder, 0) > 0) {
		rc = sync_folder(cleaning, err);
		if (rc < 0)
			return rc;
	}
	for (;;) {
		rc = free_bytes(run_fd, &free, err);
		if (rc < 0)
			return rc;
		if (free >= bytes + ROOM_MARGIN_BYTES && (!refused || given >= bytes))
			return 0;
		rc = remove_next(cleaning, &given, err);
		if (rc == -ENOSPC && free >= bytes && (!refused || given > 0))
			return 0;
		if (rc == -ENOSPC)
			return say_full(bytes, free, refused, err);
		if (rc < 0)
			return rc;
	}
}

static int make_room(const char *run_dir, int run_fd, uint64_t bytes, bool refused,
	recovery_report *report, void *context, struct error *err)
{
	struct cleaning cleaning;
	int rc = cleaning_init(&cleaning, run_dir, run_fd, report, context, err);

	if (rc < 0)
		return rc;
	rc = clean_until_free(&cleaning, run_fd, bytes, refused, err);
	cleaning_fini(&cleaning);
	return rc;
}

int recovery_make_room(const char *run_dir, int run_fd, uint64_t bytes, bool refused,
	recovery_report *report, void *context, struct error *err)
{
	uint64_t free = 0;
	int rc = free_bytes(run_fd, &free, err);

	/* Most often nothing is to be done, and a save needs no catalog. */
	if (rc < 0 || (free >= bytes + ROOM_MARGIN_BYTES && !refused))
		return rc;
	recovery_reserve_release(run_fd);
	rc = make_room(run_dir, run_fd, bytes, refused, report, context, err);
	recovery_reserve_hold(run_fd);
	return rc;
}
