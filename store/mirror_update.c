/* One pass over a run and its mirror. The mirror is a valid line at every instant: branch files and
 * marks come before the checkpoints that need them, a checkpoint by the commit of checkpoint_copy,
 * and what goes, goes last. Files decide; the catalog only spares reading what is known to be
 * broken, and learns what is there. Nothing is removed there because it is gone here: a run that
 * was lost must not take its mirror along. */
#include "store/mirror.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/checkpoint_copy.h"
#include "store/recovery_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define MARK_MODE 0640

/* One (branch, step): here, there, or both. item speaks of the one that will be there. */
struct twin {
	struct retention_item item;
	char id[CHECKPOINT_ID_SIZE], name[SCAN_NAME_MAX];
	struct digest root;
	bool there;   /* something has its name there */
	bool missing; /* and it is not, or not whole, what is here */
};

struct update {
	const struct mirror_pass *pass;
	struct mirror mirror;
	struct recovery_folder here, there;
	struct catalog_row *rows;
	uint32_t row_count;
	struct twin *twins;
	uint32_t count;
	struct mirror_outcome *outcome;
	int failure; /* the first */
	struct error *err;
};

static void note_failure(struct update *update, int rc, const struct error *err)
{
	if (update->failure == 0)
		update->failure = error_set(update->err, rc, "%s", err->text);
}

/* -- the catalog -- */

static const struct catalog_row *row_of(const struct update *update, const struct twin *twin)
{
	const struct catalog_row *row = recovery_find_row(
		update->rows, update->row_count, twin->item.step, twin->item.branch);

	return row != NULL && digest_equal(&row->root, &twin->root) ? row : NULL;
}

static void read_rows(struct update *update)
{
	struct catalog *catalog;
	uint32_t bad;

	if (catalog_open(update->pass->run_dir, CATALOG_READ, &catalog, NULL) < 0)
		return;
	if (catalog_list(catalog, &update->rows, &update->row_count, &bad, NULL) < 0)
		update->row_count = 0;
	catalog_close(catalog);
}

/* What cannot be written now is found out again by the next pass. */
static void write_mirrored(struct update *update, const struct twin *twin, bool there)
{
	struct catalog *catalog;
	struct catalog_row row;
	int rc;

	if (row_of(update, twin) == NULL ||
		catalog_open(update->pass->run_dir, CATALOG_WRITE, &catalog, NULL) < 0)
		return;
	rc = catalog_begin(catalog, NULL);
	if (rc == 0) {
		rc = catalog_get(catalog, twin->id, &row, NULL);
		if (rc == 0 && digest_equal(&row.root, &twin->root)) {
			memset(row.mirrored_at, 0, sizeof(row.mirrored_at));
			if (there)
				clock_format_utc(clock_wall_ns(), row.mirrored_at);
			rc = catalog_put(catalog, &row, NULL);
		}
		catalog_end(catalog, rc, NULL);
	}
	catalog_close(catalog);
}

static void write_corrupt(struct update *update, const struct twin *twin, const char *text)
{
	struct catalog *catalog;

	recovery_tell(update->pass->report, update->pass->context, "corrupt", "error",
		twin->item.step, "%s is corrupt, found while it was copied to the mirror: %s",
		twin->name, text);
	if (row_of(update, twin) == NULL ||
		catalog_open(update->pass->run_dir, CATALOG_WRITE, &catalog, NULL) < 0)
		return;
	catalog_set_state(catalog, twin->id, CHECKPOINT_CORRUPT, text, NULL);
	catalog_close(catalog);
}

/* -- what is where -- */

static struct twin *find_twin(struct update *update, const struct scan_file *file)
{
	for (uint32_t i = 0; i < update->count; i++)
		if (update->twins[i].item.step == file->step &&
			update->twins[i].item.branch == file->branch)
			return &update->twins[i];
	return NULL;
}

static struct twin *add_twin(struct update *update, const struct scan_file *file)
{
	struct twin *twin = &update->twins[update->count++];

	*twin = (struct twin){.item = {.step = file->step, .branch = file->branch}};
	checkpoint_id_format(file->step, file->branch, twin->id);
	snprintf(twin->name, sizeof(twin->name), "%s", file->name);
	return twin;
}

static void describe(
	const struct update *update, const struct checkpoint_info *info, struct twin *twin)
{
	twin->root = info->root;
	twin->item = (struct retention_item){.step = info->record.step,
		.branch = info->record.branch,
		.file_bytes = info->file_bytes,
		.trained_seconds = info->record.trained_ns / (uint64_t)NSEC_PER_SEC,
		.loss = isnan(info->record.loss) ? (double)NAN : (double)info->record.loss,
		.verified = true,
		.on_line = line_contains(
			&update->there.line, info->record.branch, info->record.step),
		.keep = scan_keeps(&update->here.scan, &info->root) ||
			scan_keeps(&update->there.scan, &info->root)};
}

static bool of_run(const struct update *update, const struct checkpoint_info *info)
{
	return memcmp(info->record.run_id, update->pass->run->id, RUN_ID_SIZE) == 0;
}

/* What was published there was whole then. Where no row knows so (a lost catalog, a death before
 * the row) it is read once. */
static int check_there(struct update *update, int fd, const struct checkpoint_info *info,
	struct twin *twin, struct error *err)
{
	const struct catalog_row *row;
	int rc;

	describe(update, info, twin);
	row = row_of(update, twin);
	if (row == NULL || row->mirrored_at[0] != '\0')
		return 0;
	rc = checkpoint_read(fd, info, NULL, NULL, update->pass->threads, update->pass->moves, err);
	if (rc == 0)
		write_mirrored(update, twin, true);
	return rc;
}

static void look_there(struct update *update, const struct scan_file *file)
{
	struct checkpoint_info info;
	struct twin *twin;
	struct error err = {{0}};
	int fd = checkpoint_open(update->there.fd, file->name, &info, &err), rc = fd;
	bool ours = fd < 0 || of_run(update, &info);

	if (fd == -ENOENT || fd == -EPROTONOSUPPORT)
		return;
	if (ours) {
		twin = add_twin(update, file);
		twin->there = true;
		twin->item.loss = (double)NAN;
		if (fd >= 0)
			rc = check_there(update, fd, &info, twin, &err);
		twin->item.verified = rc >= 0;
		twin->item.corrupt = rc == -EBADMSG;
		twin->item.found = rc < 0 && rc != -EBADMSG;
		if (rc < 0 && rc != -EBADMSG)
			note_failure(update, rc, &err);
		if (rc == -EBADMSG)
			recovery_tell(update->pass->report, update->pass->context, "mirror",
				"warning", file->step, "the copy on the mirror is corrupt: %s",
				err.text);
	}
	if (fd >= 0) {
		sys_close(fd);
		checkpoint_info_fini(&info);
	}
}

/* One that may be copied: on the line or kept, and nothing speaks against it. */
static void look_here(struct update *update, const struct scan_file *file)
{
	const struct catalog_row *row = recovery_find_row(
		update->rows, update->row_count, file->step, file->branch);
	struct twin *twin = find_twin(update, file), before;
	struct checkpoint_info info;
	int fd;

	if (row != NULL && row->state != CHECKPOINT_VERIFIED && row->state != CHECKPOINT_FOUND)
		return;
	fd = checkpoint_open(update->here.fd, file->name, &info, NULL);
	if (fd < 0)
		return;
	sys_close(fd);
	if (of_run(update, &info)) {
		if (twin == NULL)
			twin = add_twin(update, file);
		before = *twin;
		describe(update, &info, twin);
		twin->missing = !before.there || !before.item.verified ||
			!digest_equal(&before.root, &twin->root);
		if (twin->missing && !before.there && !twin->item.on_line && !twin->item.keep)
			update->count--; /* it is the last one */
	}
	checkpoint_info_fini(&info);
}

static int newest_first(const void *a, const void *b)
{
	const struct retention_item *x = &((const struct twin *)a)->item;
	const struct retention_item *y = &((const struct twin *)b)->item;

	if (x->step != y->step)
		return x->step > y->step ? -1 : 1;
	return x->branch > y->branch ? -1 : x->branch < y->branch;
}

static int look(struct update *update)
{
	const struct scan *here = &update->here.scan, *there = &update->there.scan;

	update->twins = calloc(
		(size_t)here->file_count + there->file_count + 1, sizeof(*update->twins));
	if (update->twins == NULL)
		return error_set(update->err, -ENOMEM, "no memory for the list of checkpoints");
	for (uint32_t i = 0; i < there->file_count; i++)
		look_there(update, &there->files[i]);
	for (uint32_t i = 0; i < here->file_count; i++)
		look_here(update, &here->files[i]);
	qsort(update->twins, update->count, sizeof(*update->twins), newest_first);
	return 0;
}

/* -- what is to be there -- */

static int decide(struct update *update)
{
	const struct config *config = update->pass->config;
	struct retention_policy policy = recovery_policy_of(config);
	struct retention_item *items = calloc((size_t)update->count + 1, sizeof(*items));

	if (items == NULL)
		return error_set(update->err, -ENOMEM, "no memory for the list of checkpoints");
	if (config->mirror_keep_last > 0)
		policy.keep_last = (uint32_t)config->mirror_keep_last;
	for (uint32_t i = 0; i < update->count; i++)
		items[i] = update->twins[i].item;
	retention_decide(items, update->count, &policy);
	for (uint32_t i = 0; i < update->count; i++)
		update->twins[i].item.remove = items[i].remove;
	free(items);
	return 0;
}

static void count(struct update *update)
{
	struct mirror_outcome *outcome = update->outcome;

	outcome->behind = 0;
	outcome->newest[0] = '\0';
	for (uint32_t i = 0; i < update->count; i++) {
		const struct twin *twin = &update->twins[i];

		outcome->behind += twin->missing && !twin->item.remove;
		if (outcome->newest[0] == '\0' && twin->there && !twin->missing &&
			twin->item.on_line && twin->item.verified)
			snprintf(outcome->newest, sizeof(outcome->newest), "%s", twin->id);
	}
}

/* -- what goes -- */

/* -EBUSY: somebody reads it. */
static int remove_there(struct update *update, struct twin *twin, struct error *err)
{
	int fd = sys_openat(
		update->there.fd, twin->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
	int rc = 0;

	if (fd >= 0 && sys_flock(fd, LOCK_EX | LOCK_NB) == -EWOULDBLOCK)
		rc = -EBUSY;
	if (rc == 0)
		rc = sys_unlinkat(update->there.fd, twin->name);
	if (fd >= 0)
		sys_close(fd);
	if (rc < 0 && rc != -ENOENT)
		return error_set(err, rc, "mirror: cannot remove %s: %s", twin->name,
			rc == -EBUSY ? "it is being read" : strerror(-rc));
	twin->there = false;
	update->outcome->removed++;
	write_mirrored(update, twin, false);
	return 0;
}

/* For a full mirror: one of those there, as on a full disk here. 0, or -ENOSPC: none may go. */
static int make_room(struct update *update, struct error *err)
{
	struct retention_item *items = calloc((size_t)update->count + 1, sizeof(*items));
	struct twin **owners = calloc((size_t)update->count + 1, sizeof(struct twin *));
	uint32_t there = 0;
	int rc = items != NULL && owners != NULL ? -ENOSPC : -ENOMEM;

	for (uint32_t i = 0; rc == -ENOSPC && i < update->count; i++)
		if (update->twins[i].there) {
			owners[there] = &update->twins[i];
			items[there] = update->twins[i].item;
			items[there++].remove = false;
		}
	while (rc == -ENOSPC && retention_make_room(items, there)) {
		uint32_t chosen = 0;

		while (!items[chosen].remove || items[chosen].busy)
			chosen++;
		rc = remove_there(update, owners[chosen], err);
		items[chosen].busy = rc == -EBUSY;
		items[chosen].remove = false;
		rc = rc == -EBUSY ? -ENOSPC : rc;
	}
	free(items);
	free(owners);
	if (rc == 0)
		rc = file_sync_dir(update->there.fd);
	return rc;
}

static void prune(struct update *update)
{
	struct error err = {{0}};
	uint32_t removed = update->outcome->removed;
	int rc;

	for (uint32_t i = 0; i < update->count; i++) {
		struct twin *twin = &update->twins[i];

		rc = twin->there && twin->item.remove ? remove_there(update, twin, &err) : 0;
		if (rc < 0 && rc != -EBUSY)
			note_failure(update, rc, &err);
	}
	rc = removed < update->outcome->removed ? file_sync_dir(update->there.fd) : 0;
	if (rc < 0) {
		error_set(&err, rc, "mirror: cannot sync its folder: %s", strerror(-rc));
		note_failure(update, rc, &err);
	}
}

/* -- what comes -- */

static int copy_one(struct update *update, struct twin *twin, struct error *err)
{
	const struct checkpoint_copy copy = {.from_fd = update->here.fd,
		.to_fd = update->there.fd,
		.name = twin->name,
		.run_id = update->pass->run->id,
		.root = &twin->root,
		.threads = update->pass->threads,
		.moves = update->pass->moves};
	struct checkpoint_copied copied;
	int rc = checkpoint_copy(&copy, &copied, err);

	while ((rc == -ENOSPC || rc == -EDQUOT) && !copied.from_failed &&
		make_room(update, err) == 0)
		rc = checkpoint_copy(&copy, &copied, err);
	if (rc == -EBADMSG && copied.from_failed)
		write_corrupt(update, twin, err->text);
	if (rc < 0)
		return rc == -ENOENT && copied.from_failed ? 0 : rc;
	update->outcome->copied += !copied.already;
	twin->there = true;
	twin->missing = false;
	write_mirrored(update, twin, true);
	return 0;
}

/* Newest first. When the mirror itself does not take one, the others would fare no better. */
static int copy_missing(struct update *update)
{
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < update->count; i++) {
		struct twin *twin = &update->twins[i];
		struct error err = {{0}};

		if (!twin->missing || twin->item.remove)
			continue;
		rc = copy_one(update, twin, &err);
		if (rc < 0)
			note_failure(update, rc, &err);
		if (rc == -EBADMSG || rc == -EEXIST)
			rc = 0;
		count(update);
	}
	return rc;
}

/* -- what comes first -- */

static int copy_run(struct update *update)
{
	struct run there;
	struct error err;
	int rc = run_load(update->mirror.run_fd, &there, &err);

	if (rc == 0) {
		bool same = strcmp(there.id_hex, update->pass->run->id_hex) == 0;

		run_fini(&there);
		return same ? 0
			    : error_set(update->err, -EEXIST,
				      "mirror: another run lies under the name of this one");
	}
	if (rc != -ENOENT && rc != -EBADMSG)
		return error_set(update->err, rc, "mirror: %s", err.text);
	return run_store(update->mirror.run_fd, update->pass->run, update->err);
}

/* What an interrupted pass left behind. */
static void remove_leftovers(struct update *update)
{
	for (uint32_t i = 0; i < update->there.scan.leftover_count; i++)
		sys_unlinkat(update->there.fd, update->there.scan.leftovers[i].name);
}

static int copy_marks(struct update *update)
{
	char name[SCAN_NAME_MAX];
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < update->here.scan.keep_count; i++) {
		if (scan_keeps(&update->there.scan, &update->here.scan.keeps[i]))
			continue;
		scan_keep_name(&update->here.scan.keeps[i], name);
		rc = file_create(update->there.fd, name, "", 0, MARK_MODE);
		rc = rc == -EEXIST ? 0 : rc;
	}
	return rc < 0
		? error_set(update->err, rc, "mirror: cannot copy a keep mark: %s", strerror(-rc))
		: 0;
}

/* A mark is taken away there only where the checkpoint is here and has none. */
static void remove_marks(struct update *update)
{
	for (uint32_t i = 0; i < update->row_count; i++) {
		const struct catalog_row *row = &update->rows[i];
		char mark[SCAN_NAME_MAX], name[SCAN_NAME_MAX];
		struct stat stat;

		snprintf(name, sizeof(name), "%s%s", row->id, CHECKPOINT_SUFFIX);
		if (row->keep || row->state != CHECKPOINT_VERIFIED ||
			scan_keeps(&update->here.scan, &row->root) ||
			!scan_keeps(&update->there.scan, &row->root) ||
			sys_fstatat(update->here.fd, name, &stat) < 0)
			continue;
		scan_keep_name(&row->root, mark);
		sys_unlinkat(update->there.fd, mark);
	}
}

static int open_there(struct update *update)
{
	uint32_t made;
	int rc = copy_run(update), fd;

	if (rc < 0)
		return rc;
	fd = sys_openat(update->mirror.run_fd, "checkpoints",
		O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(
			update->err, fd, "mirror: cannot open its folder: %s", strerror(-fd));
	rc = mirror_copy_branches(update->here.fd, fd, &made, update->err);
	sys_close(fd);
	if (rc == 0)
		rc = recovery_folder_open(update->mirror.run_fd, &update->there, update->err);
	if (rc < 0) {
		update->there.fd = -1;
		return rc;
	}
	remove_leftovers(update);
	remove_marks(update);
	return copy_marks(update);
}

/* -- all of it -- */

/* By the catalog alone: what it does not say is there. */
static void count_away(struct update *update)
{
	const struct config *config = update->pass->config;
	uint32_t last = (uint32_t)(config->mirror_keep_last > 0 ? config->mirror_keep_last
								: config->keep_last);

	for (uint32_t i = 0, on_line = 0; i < update->row_count && on_line < last; i++) {
		const struct catalog_row *row = &update->rows[i];

		if (row->state != CHECKPOINT_VERIFIED ||
			!line_contains(&update->here.line, row->branch, row->step))
			continue;
		on_line++;
		update->outcome->behind += row->mirrored_at[0] == '\0';
		if (update->outcome->newest[0] == '\0' && row->mirrored_at[0] != '\0')
			snprintf(update->outcome->newest, sizeof(update->outcome->newest), "%s",
				row->id);
	}
}

static int work(struct update *update)
{
	int rc = open_there(update);

	if (rc == 0)
		rc = look(update);
	if (rc == 0)
		rc = decide(update);
	if (rc < 0) {
		count_away(update);
		return rc;
	}
	count(update);
	rc = copy_missing(update);
	if (rc == 0)
		prune(update);
	count(update);
	return update->failure;
}

int mirror_update(const struct mirror_pass *pass, struct mirror_outcome *ret, struct error *err)
{
	struct update update = {.pass = pass,
		.mirror = {.dir_fd = -1, .run_fd = -1, .lock_fd = -1},
		.here = {.fd = -1},
		.there = {.fd = -1},
		.outcome = ret,
		.err = err};
	int rc;

	CHECK(err != NULL && pass->config->mirror[0] != '\0');
	memset(ret, 0, sizeof(*ret));
	rc = recovery_folder_open(pass->run_fd, &update.here, err);
	if (rc < 0)
		return rc;
	read_rows(&update);
	rc = mirror_open(
		pass->config->mirror, pass->run->id_hex, MIRROR_CHANGE, &update.mirror, err);
	if (rc < 0)
		count_away(&update);
	else
		rc = work(&update);
	if (update.there.fd >= 0)
		recovery_folder_close(&update.there);
	recovery_folder_close(&update.here);
	mirror_close(&update.mirror);
	free(update.rows);
	free(update.twins);
	return rc;
}
