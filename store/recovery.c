/* recovery_prepare: makes the catalog say what the folder holds. Files are the truth; the catalog
 * adds only what a file cannot know of itself: that its data were once read and equal, or once read
 * and not. So a row survives while its file has the same root, and else is made anew from the
 * header. Run twice it changes nothing. */
#include "store/recovery_folder.h"

#include "base/file.h"
#include "base/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct preparation {
	const char *run_dir;
	int run_fd;
	const struct run *run;
	recovery_report *report;
	void *context;
	struct error *err;
	struct recovery_folder folder;
	struct catalog *catalog; /* NULL: to be built anew */
	char reason[ERROR_TEXT_MAX];
	bool migrated; /* the rows are those of a catalog of version 1 */
	bool no_space; /* the catalog stays as it is, and may be a little behind the files */
	/* What the catalog said, and what it is to say: one for each old row and each file. */
	struct catalog_row *old, *rows;
	uint32_t old_count, row_count;
	bool *changed;
	uint32_t *unlinks; /* indices of rows marked deleted whose file is still there */
	uint32_t unlink_count;
};

/* -- leftovers -- */

/* Under the run lock no save runs: what a killed one left has no owner. */
static void remove_leftovers(struct preparation *p)
{
	const struct scan *scan = &p->folder.scan;

	for (uint32_t i = 0; i < scan->leftover_count; i++) {
		const char *name = scan->leftovers[i].name;
		int rc = sys_unlinkat(p->folder.fd, name);

		if (rc == 0)
			recovery_tell(p->report, p->context, "leftover", "info", 0,
				"removed %s, which an interrupted save left behind", name);
		else
			recovery_tell(p->report, p->context, "leftover", "warning", 0,
				"cannot remove %s: %s", name, strerror(-rc));
	}
}

/* -- the catalog as it was -- */

static bool is_full(int error)
{
	return error == -ENOSPC || error == -EDQUOT;
}

/* Files are the truth: a run can begin from them, and is told of a full disk by its saves. */
static void tell_no_space(struct preparation *p, const char *why)
{
	p->no_space = true;
	recovery_tell(p->report, p->context, "catalog", "warning", 0,
		"the catalog stays as it is until there is room on the disk: %s", why);
}

static void read_without_writing(struct preparation *p)
{
	struct catalog *catalog = NULL;
	uint32_t bad;

	if (catalog_open(p->run_dir, CATALOG_READ, &catalog, NULL) == 0)
		catalog_list(catalog, &p->old, &p->old_count, &bad, NULL);
	catalog_close(catalog);
}

static bool is_broken(int error)
{
	return error == -ENOENT || error == -EBADMSG || error == -EPROTONOSUPPORT || error == -EIO;
}

/* A broken catalog is no error here: p->catalog stays NULL and p->reason says why. Rows that can
 * still be believed are kept. */
static int read_catalog(struct preparation *p)
{
	struct error err = {{0}}, ignored;
	uint32_t bad = 0;
	int rc = catalog_open(p->run_dir, CATALOG_WRITE, &p->catalog, &err);

	/* A full disk looks the same from inside SQLite. */
	if (rc == -EIO || rc == -ENOSPC || rc == -EDQUOT) {
		recovery_reserve_release(p->run_fd);
		rc = catalog_open(p->run_dir, CATALOG_WRITE, &p->catalog, &err);
	}
	if (rc == 0)
		rc = catalog_list(p->catalog, &p->old, &p->old_count, &bad, &err);
	else if (rc == -ESTALE) {
		rc = catalog_list_version_1(p->run_dir, &p->old, &p->old_count, &bad, &err);
		p->migrated = rc == 0 && bad == 0;
	}
	if (rc == 0 && bad > 0)
		rc = error_set(&err, -EBADMSG, "catalog: %u rows do not match their digest", bad);
	if (rc == 0)
		return 0;
	catalog_close(p->catalog);
	p->catalog = NULL;
	if (is_full(rc)) {
		tell_no_space(p, err.text);
		read_without_writing(p);
		return 0;
	}
	if (!is_broken(rc))
		return error_set(p->err, rc, "%s", err.text);
	if (rc == -ENOENT &&
		catalog_list_unplaced(p->run_dir, &p->old, &p->old_count, &bad, &ignored) == 0)
		error_set(&err, rc, "its replacement had been cut short");
	else if (rc == -ENOENT)
		error_set(&err, rc, "there was no catalog");
	snprintf(p->reason, sizeof(p->reason), "%s", err.text);
	return 0;
}

/* -- one file -- */

static bool knows_data(const struct catalog_row *old)
{
	return old->state == CHECKPOINT_FOUND || old->state == CHECKPOINT_VERIFIED ||
		old->state == CHECKPOINT_CORRUPT || old->state == CHECKPOINT_DELETED;
}

/* The one that was to be deleted, could not be, and was kept since, is found again. */
static void row_of_open_file(struct preparation *p, const struct checkpoint_info *info,
	const struct catalog_row *old, struct catalog_row *ret)
{
	bool keep = scan_keeps(&p->folder.scan, &info->root);
	char run[2 * STATE_RUN_ID_SIZE + 1];

	if (memcmp(info->record.run_id, p->run->id, RUN_ID_SIZE) != 0) {
		recovery_row_of_info(&p->folder, info, CHECKPOINT_REFUSED, ret);
		bytes_to_hex(info->record.run_id, STATE_RUN_ID_SIZE, run);
		snprintf(ret->text, sizeof(ret->text), "it belongs to another run (%s)", run);
	} else if (old != NULL && knows_data(old) && digest_equal(&old->root, &info->root) &&
		!(keep && old->state == CHECKPOINT_DELETED)) {
		*ret = *old;
		ret->keep = keep;
	} else {
		recovery_row_of_info(&p->folder, info, CHECKPOINT_FOUND, ret);
		recovery_row_carry(old, ret);
	}
}

/* 0 and a row, 1 when the file has gone meanwhile. */
static int survey_file(struct preparation *p, const struct scan_file *file,
	const struct catalog_row *old, struct catalog_row *ret)
{
	struct checkpoint_info info;
	struct error err = {{0}};
	int fd = checkpoint_open(p->folder.fd, file->name, &info, &err);

	if (fd == -ENOENT)
		return 1;
	if (fd < 0 && recovery_is_ours(fd))
		return error_set(p->err, fd, "%s", err.text);
	if (fd < 0) {
		recovery_row_of_name(&p->folder, file, old, recovery_state_of(fd), err.text, ret);
		return 0;
	}
	row_of_open_file(p, &info, old, ret);
	sys_close(fd);
	checkpoint_info_fini(&info);
	return 0;
}

static void tell_change(
	struct preparation *p, const struct catalog_row *old, const struct catalog_row *row)
{
	const char *state = checkpoint_state_name(row->state);

	if (old != NULL && old->state == row->state)
		return;
	switch (row->state) {
	case CHECKPOINT_FOUND:
		if (p->catalog != NULL || p->migrated)
			recovery_tell(p->report, p->context, "adopted", "info", row->step,
				"%s was not in the catalog: adopted, to be verified when it is "
				"read",
				row->id);
		break;
	case CHECKPOINT_MISSING:
		recovery_tell(p->report, p->context, state, "warning", row->step,
			"%s is in the catalog but its file is gone", row->id);
		break;
	case CHECKPOINT_CORRUPT:
		recovery_tell(p->report, p->context, state, "error", row->step, "%s is corrupt: %s",
			row->id, row->text);
		break;
	case CHECKPOINT_UNREADABLE:
	case CHECKPOINT_REFUSED:
		recovery_tell(p->report, p->context, state, "warning", row->step, "%s is %s: %s",
			row->id, state, row->text);
		break;
	case CHECKPOINT_VERIFIED:
	case CHECKPOINT_DELETED:
		break;
	}
}

static void add_row(
	struct preparation *p, const struct catalog_row *old, const struct catalog_row *row)
{
	tell_change(p, old, row);
	p->changed[p->row_count] = old == NULL || memcmp(old, row, sizeof(*row)) != 0;
	p->rows[p->row_count++] = *row;
}

/* -- all of them -- */

static int survey_files(struct preparation *p)
{
	for (uint32_t i = 0; i < p->folder.scan.file_count; i++) {
		const struct scan_file *file = &p->folder.scan.files[i];
		const struct catalog_row *old = recovery_find_row(
			p->old, p->old_count, file->step, file->branch);
		struct catalog_row row;
		int rc = survey_file(p, file, old, &row);

		if (rc < 0)
			return rc;
		if (rc > 0)
			continue;
		/* The row was committed, the unlink was not. A file of another root under this
		 * name is a later one: row_of_open_file has made it `found`. */
		if (row.state == CHECKPOINT_DELETED)
			p->unlinks[p->unlink_count++] = i;
		add_row(p, old, &row);
	}
	return 0;
}

static void survey_rows(struct preparation *p)
{
	uint32_t with_file = p->row_count;

	for (uint32_t i = 0; i < p->old_count; i++) {
		struct catalog_row row = p->old[i];

		if (recovery_find_row(p->rows, with_file, row.step, row.branch) != NULL)
			continue;
		if (row.state != CHECKPOINT_DELETED && row.state != CHECKPOINT_MISSING) {
			row.state = CHECKPOINT_MISSING;
			memset(row.text, 0, sizeof(row.text));
			snprintf(row.text, sizeof(row.text), "the file is gone");
		}
		add_row(p, &p->old[i], &row);
	}
}

static int survey(struct preparation *p)
{
	size_t room = (size_t)p->folder.scan.file_count + p->old_count + 1;
	int rc;

	p->rows = calloc(room, sizeof(*p->rows));
	p->changed = calloc(room, sizeof(*p->changed));
	p->unlinks = calloc(room, sizeof(*p->unlinks));
	if (p->rows == NULL || p->changed == NULL || p->unlinks == NULL)
		return error_set(p->err, -ENOMEM, "no memory for the list of checkpoints");
	rc = survey_files(p);
	if (rc == 0)
		survey_rows(p);
	return rc;
}

/* -- writing it down -- */

static int put_rows(
	struct catalog *catalog, const struct preparation *p, bool all, struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < p->row_count; i++)
		if (all || p->changed[i])
			rc = catalog_put(catalog, &p->rows[i], err);
	return rc;
}

static int fill_all(struct catalog *catalog, void *context, struct error *err)
{
	return put_rows(catalog, context, true, err);
}

static int rebuild(struct preparation *p, struct recovery_summary *ret)
{
	bool created = p->row_count == 0 && p->folder.scan.file_count == 0;
	int rc = catalog_replace(p->run_dir, p->run_fd, fill_all, p, p->err);

	if (rc < 0)
		return rc;
	snprintf(ret->catalog, sizeof(ret->catalog), "%s",
		p->migrated       ? "migrated"
			: created ? "created"
				  : "rebuilt");
	if (p->migrated)
		recovery_tell(p->report, p->context, "catalog", "info", 0,
			"the catalog was brought from version 1 to version %d: %u rows, none lost",
			CATALOG_VERSION, p->old_count);
	else if (!created)
		recovery_tell(p->report, p->context, "catalog", "warning", 0,
			"the catalog was rebuilt from %u checkpoint files (%s)",
			p->folder.scan.file_count, p->reason);
	return 0;
}

static int update(struct preparation *p, struct recovery_summary *ret)
{
	bool any = false;
	int rc;

	catalog_forget_unplaced(p->run_fd);
	for (uint32_t i = 0; i < p->row_count; i++)
		any = any || p->changed[i];
	if (!any)
		return 0;
	rc = catalog_begin(p->catalog, p->err);
	if (rc < 0)
		return rc;
	return catalog_end(p->catalog, put_rows(p->catalog, p, false, p->err), p->err);
}

/* After the rows: they say that these files may go. */
static int complete_unlinks(struct preparation *p)
{
	for (uint32_t i = 0; i < p->unlink_count; i++) {
		const char *name = p->folder.scan.files[p->unlinks[i]].name;
		int rc = sys_unlinkat(p->folder.fd, name);

		if (rc < 0 && rc != -ENOENT)
			return error_set(p->err, rc, "cannot remove %s: %s", name, strerror(-rc));
	}
	if (recovery_prune_asides(&p->folder, RECOVERY_CORRUPT_LAST) + p->unlink_count +
			p->folder.scan.leftover_count >
		0) {
		int rc = file_sync_dir(p->folder.fd);

		if (rc < 0)
			return error_set(p->err, rc, "cannot sync the checkpoints folder: %s",
				strerror(-rc));
	}
	return 0;
}

static void tell_lost_branches(struct preparation *p)
{
	const struct line *line = &p->folder.line;

	if (line->highest > line->current)
		recovery_tell(p->report, p->context, "branch", "error", 0,
			"there are checkpoints of branch %u, but no branch-%04u.json: they do not "
			"count; if the file exists in a backup, put it back",
			line->highest, line->highest);
}

static void summarize(const struct preparation *p, struct recovery_summary *ret)
{
	ret->branch = p->folder.line.current;
	for (uint32_t i = 0; i < p->row_count; i++) {
		const struct catalog_row *row = &p->rows[i];

		if ((row->state != CHECKPOINT_VERIFIED && row->state != CHECKPOINT_FOUND) ||
			!line_contains(&p->folder.line, row->branch, row->step))
			continue;
		ret->on_line_count++;
		/* Files come newest first. */
		if (!ret->has_newest)
			ret->newest = *row;
		ret->has_newest = true;
	}
}

static int prepare(struct preparation *p, struct recovery_summary *ret)
{
	int rc;

	remove_leftovers(p);
	tell_lost_branches(p);
	rc = read_catalog(p);
	if (rc == 0)
		rc = survey(p);
	if (rc == 0 && !p->no_space)
		rc = p->catalog != NULL ? update(p, ret) : rebuild(p, ret);
	if (is_full(rc)) {
		tell_no_space(p, p->err->text);
		rc = 0;
	}
	if (rc == 0)
		rc = complete_unlinks(p);
	if (rc < 0)
		return rc;
	recovery_reserve_hold(p->run_fd);
	summarize(p, ret);
	return 0;
}

int recovery_prepare(const char *run_dir, int run_fd, const struct run *run,
	recovery_report *report, void *context, struct recovery_summary *ret, struct error *err)
{
	struct preparation p = {.run_dir = run_dir,
		.run_fd = run_fd,
		.run = run,
		.report = report,
		.context = context,
		.err = err};
	int rc;

	memset(ret, 0, sizeof(*ret));
	snprintf(ret->catalog, sizeof(ret->catalog), "ok");
	rc = recovery_folder_open(run_fd, &p.folder, err);
	if (rc < 0)
		return rc;
	rc = prepare(&p, ret);
	catalog_close(p.catalog);
	recovery_folder_close(&p.folder);
	free(p.old);
	free(p.rows);
	free(p.changed);
	free(p.unlinks);
	return rc;
}

int recovery_repair_catalog(const char *run_dir, int run_fd, const struct run *run,
	recovery_report *report, void *context, struct error *err)
{
	struct recovery_summary summary;
	struct catalog *catalog = NULL;
	int rc = catalog_open(run_dir, CATALOG_WRITE, &catalog, err);

	catalog_close(catalog);
	if (rc != -ENOENT && rc != -EBADMSG)
		return 0;
	return recovery_prepare(run_dir, run_fd, run, report, context, &summary, err);
}
