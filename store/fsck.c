/* See store/fsck.h. The folder is gone over once, reading everything; a repair is followed by a
 * second time, which reads no data and believes the verdicts: what is found then is what is left.
 * Verdicts that are not about bytes (a second name, an I/O error) do not outlive the repair: they
 * are asked for anew in its middle, so that the next look finds what this one has told. */
#include "store/fsck.h"

#include "base/sys.h"
#include "store/recovery_folder.h"
#include "store/scrub.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BROKEN_MAX 99

/* What reading a file gave. */
struct verdict {
	char name[SCAN_NAME_MAX];
	int rc;
	bool read;     /* its header at least */
	bool has_root; /* the last time */
	struct digest root;
	char text[ERROR_TEXT_MAX];
};

struct fsck {
	const char *run_dir;
	int run_fd;
	const struct fsck_options *options;
	struct fsck_summary *summary;
	bool again; /* the second time */
	struct run run;
	int run_error; /* of run.json */
	struct recovery_folder folder;
	bool has_line;
	int catalog_error;
	struct catalog_row *rows;
	uint32_t row_count;
	struct verdict *verdicts; /* of the first time */
	uint32_t verdict_count;
};

static void tell(struct fsck *fsck, enum fsck_kind kind, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void tell(struct fsck *fsck, enum fsck_kind kind, const char *format, ...)
{
	char text[2 * ERROR_TEXT_MAX];
	va_list arguments;

	if (kind == FSCK_FOUND && fsck->again)
		kind = FSCK_LEFT;
	fsck->summary->found += kind == FSCK_FOUND;
	fsck->summary->left += kind == FSCK_LEFT;
	if (kind == FSCK_NOTE && fsck->again)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	fsck->options->report(fsck->options->context, kind, text);
}

/* -- run.json and the line -- */

static void check_run(struct fsck *fsck)
{
	struct error err = {{0}};

	fsck->run_error = run_load(fsck->run_fd, &fsck->run, &err);
	if (fsck->run_error == -ENOENT)
		tell(fsck, FSCK_FOUND, "run.json is missing");
	else if (fsck->run_error < 0)
		tell(fsck, FSCK_FOUND, "%s", err.text);
}

/* A fork names the checkpoint it begins at; another one under that name is another line. */
static void check_fork(struct fsck *fsck, const struct line_branch *branch)
{
	const struct scan *scan = &fsck->folder.scan;

	for (uint32_t i = 0; i < scan->file_count; i++) {
		const struct scan_file *file = &scan->files[i];
		struct checkpoint_info info;
		bool same;
		int fd;

		if (file->step != branch->fork_step || file->branch != branch->parent)
			continue;
		fd = checkpoint_open(fsck->folder.fd, file->name, &info, NULL);
		if (fd < 0)
			return;
		same = digest_equal(&info.root, &branch->fork_root);
		sys_close(fd);
		checkpoint_info_fini(&info);
		if (!same)
			tell(fsck, FSCK_FOUND,
				"branch-%04u.json: it begins at another %s than the one that is "
				"there",
				branch->branch, file->name);
	}
}

static void check_line(struct fsck *fsck)
{
	struct line *line = &fsck->folder.line;
	struct error err = {{0}};

	fsck->has_line = line_load(fsck->folder.fd, line, &err) == 0;
	if (!fsck->has_line) {
		tell(fsck, FSCK_FOUND, "%s", err.text);
		return;
	}
	if (line->highest > line->current)
		tell(fsck, FSCK_FOUND,
			"there are checkpoints of branch %u and no branch-%04u.json: if a backup "
			"has it, put it back",
			line->highest, line->highest);
	for (uint32_t i = 0; i < line->count; i++)
		if (line->branches[i].parent > 0 && line->branches[i].fork_step > 0)
			check_fork(fsck, &line->branches[i]);
}

/* -- the catalog -- */

static void check_catalog(struct fsck *fsck)
{
	struct catalog *catalog = NULL;
	struct error err = {{0}};
	struct stat stat;
	uint32_t bad = 0;
	int rc = catalog_open(fsck->run_dir, CATALOG_READ, &catalog, &err);

	if (rc == 0)
		rc = catalog_list(catalog, &fsck->rows, &fsck->row_count, &bad, &err);
	catalog_close(catalog);
	fsck->catalog_error = rc;
	if (rc == -ENOENT)
		tell(fsck, FSCK_FOUND, "catalog.sqlite is missing");
	else if (rc < 0)
		tell(fsck, FSCK_FOUND, "%s", err.text);
	else if (bad > 0)
		tell(fsck, FSCK_FOUND, "catalog.sqlite: %u rows do not match their digest", bad);
	if (sys_fstatat(fsck->run_fd, "catalog.new", &stat) == 0)
		tell(fsck, FSCK_FOUND, "catalog.new: left by a replacement that was cut short");
}

/* -- one file -- */

static struct verdict *find_verdict(struct fsck *fsck, const char *name)
{
	for (uint32_t i = 0; i < fsck->verdict_count; i++)
		if (strcmp(fsck->verdicts[i].name, name) == 0)
			return &fsck->verdicts[i];
	return NULL;
}

static void read_file(struct fsck *fsck, struct verdict *verdict)
{
	struct checkpoint_info info;
	struct error err = {{0}};
	int fd;

	verdict->rc = scrub_check_file(fsck->folder.fd, verdict->name,
		fsck->run_error == 0 ? fsck->run.id : NULL, fsck->options->threads, NULL, &info,
		&fd, &err);
	memcpy(verdict->text, err.text, sizeof(verdict->text));
	verdict->has_root = fd >= 0;
	if (fd < 0)
		return;
	verdict->root = info.root;
	sys_close(fd);
	checkpoint_info_fini(&info);
	verdict->read = true;
}

static void check_good(
	struct fsck *fsck, const struct verdict *verdict, const struct catalog_row *row)
{
	const char *name = verdict->name;
	bool keep = scan_keeps(&fsck->folder.scan, &verdict->root);

	if (row == NULL)
		tell(fsck, FSCK_FOUND, "%s: it has no row in the catalog", name);
	else if (!digest_equal(&row->root, &verdict->root))
		tell(fsck, FSCK_FOUND, "%s: its row speaks of another file", name);
	else if (row->state == CHECKPOINT_DELETED)
		tell(fsck, FSCK_FOUND, "%s: its deletion was cut short", name);
	else if (row->state == CHECKPOINT_REFUSED)
		tell(fsck, FSCK_NOTE, "%s: it is whole, and was refused: %s", name, row->text);
	else if (row->state != CHECKPOINT_VERIFIED && row->state != CHECKPOINT_FOUND)
		tell(fsck, FSCK_FOUND, "%s: it is whole, and the catalog calls it %s", name,
			checkpoint_state_name(row->state));
	else if (row->keep != keep)
		tell(fsck, FSCK_FOUND, "%s: the catalog says that it is %s", name,
			keep ? "not kept, and it has a keep mark"
			     : "kept, and it has no keep mark");
}

/* The reason begins with the name. */
static void check_bad(
	struct fsck *fsck, const struct verdict *verdict, const struct catalog_row *row)
{
	enum checkpoint_state state = recovery_state_of(verdict->rc);
	const char *word = checkpoint_state_name(state);

	if (row != NULL && row->state == CHECKPOINT_DELETED)
		tell(fsck, FSCK_FOUND, "%s: its deletion was cut short", verdict->name);
	else if (state == CHECKPOINT_UNREADABLE)
		tell(fsck, FSCK_FOUND, "%s: unreadable: %s", verdict->name, verdict->text);
	else if (row != NULL && row->state == state)
		tell(fsck, FSCK_NOTE, "%s: %s, as the catalog says: %s", verdict->name, word,
			verdict->text);
	else
		tell(fsck, FSCK_FOUND, "%s: %s, and the catalog %s%s: %s", verdict->name, word,
			row != NULL ? "calls it " : "has no row of it",
			row != NULL ? checkpoint_state_name(row->state) : "", verdict->text);
}

static void check_files(struct fsck *fsck)
{
	const struct scan *scan = &fsck->folder.scan;

	for (uint32_t i = 0; i < scan->file_count; i++) {
		const struct scan_file *file = &scan->files[i];
		const struct catalog_row *row = recovery_find_row(
			fsck->rows, fsck->row_count, file->step, file->branch);
		struct verdict *verdict = find_verdict(fsck, file->name);

		if (verdict == NULL) {
			verdict = &fsck->verdicts[fsck->verdict_count++];
			memset(verdict, 0, sizeof(*verdict));
			memcpy(verdict->name, file->name, sizeof(verdict->name));
			read_file(fsck, verdict);
		}
		/* Without a catalog all would be told of each file once more. */
		if (fsck->catalog_error < 0 && verdict->rc == 0)
			continue;
		if (verdict->rc == 0)
			check_good(fsck, verdict, row);
		else
			check_bad(fsck, verdict, row);
	}
}

/* -- what else lies there, or should -- */

static bool has_file(const struct scan *scan, const struct catalog_row *row)
{
	for (uint32_t i = 0; i < scan->file_count; i++)
		if (scan->files[i].step == row->step && scan->files[i].branch == row->branch)
			return true;
	return false;
}

static bool has_root(const struct fsck *fsck, const struct digest *root)
{
	for (uint32_t i = 0; i < fsck->verdict_count; i++)
		if (fsck->verdicts[i].has_root && digest_equal(&fsck->verdicts[i].root, root))
			return true;
	for (uint32_t i = 0; i < fsck->row_count; i++)
		if (digest_equal(&fsck->rows[i].root, root))
			return true;
	return false;
}

static void check_rest(struct fsck *fsck)
{
	const struct scan *scan = &fsck->folder.scan;
	char mark[SCAN_NAME_MAX];

	for (uint32_t i = 0; i < fsck->row_count; i++) {
		const struct catalog_row *row = &fsck->rows[i];

		if (row->state != CHECKPOINT_DELETED && row->state != CHECKPOINT_MISSING &&
			!has_file(scan, row))
			tell(fsck, FSCK_FOUND, "%s: the catalog calls it %s, and its file is gone",
				row->id, checkpoint_state_name(row->state));
	}
	for (uint32_t i = 0; i < scan->leftover_count; i++)
		tell(fsck, FSCK_FOUND, "%s: left by something that was interrupted",
			scan->leftovers[i].name);
	for (uint32_t i = 0; i < scan->keep_count; i++) {
		scan_keep_name(&scan->keeps[i], mark);
		if (!has_root(fsck, &scan->keeps[i]))
			tell(fsck, FSCK_NOTE, "%s: the checkpoint that it keeps is not here", mark);
	}
}

/* -- once over everything -- */

static int go_over(struct fsck *fsck, struct error *err)
{
	struct verdict *verdicts;
	int rc;

	fsck->folder.fd = sys_openat(
		fsck->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fsck->folder.fd < 0)
		return error_set(err, fsck->folder.fd, "cannot open the checkpoints folder: %s",
			strerror(-fsck->folder.fd));
	rc = scan_checkpoints(fsck->folder.fd, &fsck->folder.scan, err);
	if (rc < 0)
		return rc;
	/* Room for files that came since. */
	verdicts = realloc(fsck->verdicts,
		((size_t)fsck->verdict_count + fsck->folder.scan.file_count + 1) *
			sizeof(*verdicts));
	if (verdicts == NULL)
		return error_set(err, -ENOMEM, "no memory for the list of checkpoints");
	fsck->verdicts = verdicts;
	check_run(fsck);
	check_line(fsck);
	check_catalog(fsck);
	check_files(fsck);
	check_rest(fsck);
	return 0;
}

static void forget(struct fsck *fsck)
{
	recovery_folder_close(&fsck->folder);
	run_fini(&fsck->run);
	free(fsck->rows);
	fsck->rows = NULL;
	fsck->row_count = 0;
}

/* -- repair -- */

/* A broken one is set aside, and comes back when the checkpoints cannot say what stood there. */
static int remake_run(struct fsck *fsck)
{
	char aside[32] = "";
	int rc = -EEXIST;

	for (int n = 1; fsck->run_error != -ENOENT && rc == -EEXIST && n <= BROKEN_MAX; n++) {
		snprintf(aside, sizeof(aside), "run.json.broken-%d", n);
		rc = sys_renameat_noreplace(fsck->run_fd, "run.json", aside);
	}
	if (fsck->run_error != -ENOENT && rc < 0)
		return rc;
	rc = run_remake(fsck->run_fd, &fsck->run, NULL);
	if (rc < 0 && aside[0] != '\0')
		sys_renameat_noreplace(fsck->run_fd, aside, "run.json");
	return rc;
}

static void ask_again(struct fsck *fsck)
{
	for (uint32_t i = 0; i < fsck->verdict_count; i++)
		if (fsck->verdicts[i].rc != 0 && fsck->verdicts[i].rc != -EBADMSG)
			read_file(fsck, &fsck->verdicts[i]);
}

/* After recovery_prepare every file has a row, and what it could see in a header is there. */
static int write_down(struct fsck *fsck, struct error *err)
{
	struct catalog *catalog = NULL;
	int rc = catalog_open(fsck->run_dir, CATALOG_WRITE, &catalog, err);

	for (uint32_t i = 0; rc == 0 && i < fsck->verdict_count; i++) {
		const struct verdict *verdict = &fsck->verdicts[i];
		struct catalog_row row;
		char id[CHECKPOINT_ID_SIZE];

		snprintf(id, sizeof(id), "%.*s",
			(int)(strlen(verdict->name) - strlen(CHECKPOINT_SUFFIX)), verdict->name);
		if (!verdict->has_root || recovery_is_ours(verdict->rc) ||
			catalog_get(catalog, id, &row, NULL) < 0 ||
			row.state == CHECKPOINT_DELETED || !digest_equal(&row.root, &verdict->root))
			continue;
		rc = catalog_set_state(catalog, id,
			verdict->rc == 0 ? CHECKPOINT_VERIFIED : recovery_state_of(verdict->rc),
			verdict->rc == 0 ? "" : verdict->text, err);
	}
	catalog_close(catalog);
	return rc;
}

static int start_once(struct fsck *fsck, struct error *err)
{
	struct recovery_summary summary;

	return recovery_prepare(fsck->run_dir, fsck->run_fd, &fsck->run, NULL, NULL, &summary, err);
}

/* Twice a start's work: what the first removes (a partial or an old log that is a second name of a
 * checkpoint, files on a full disk) may have been in the way of its own rows. What cannot be done
 * is found again. */
static void repair(struct fsck *fsck)
{
	struct error err;

	if (fsck->run_error == -ENOENT || fsck->run_error == -EBADMSG)
		fsck->run_error = remake_run(fsck);
	if (fsck->run_error < 0)
		return;
	start_once(fsck, &err);
	ask_again(fsck);
	if (start_once(fsck, &err) == 0)
		write_down(fsck, &err);
}

int fsck_run(const char *run_dir, int run_fd, const struct fsck_options *options,
	struct fsck_summary *ret, struct error *err)
{
	struct fsck fsck = {.run_dir = run_dir,
		.run_fd = run_fd,
		.options = options,
		.summary = ret,
		.folder.fd = -1};
	int rc;

	*ret = (struct fsck_summary){0};
	rc = go_over(&fsck, err);
	if (rc == 0 && options->repair && ret->found > 0) {
		repair(&fsck);
		forget(&fsck);
		fsck.again = true;
		rc = go_over(&fsck, err);
	} else {
		ret->left = ret->found;
	}
	forget(&fsck);
	for (uint32_t i = 0; i < fsck.verdict_count; i++)
		ret->read_count += fsck.verdicts[i].read;
	free(fsck.verdicts);
	return rc;
}
