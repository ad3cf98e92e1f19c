/* Which checkpoint a start takes, and reading it. The folder decides, not the catalog: every file
 * on the line is tried, newest first, also one that was called corrupt before (the fault may have
 * been in the reading). Each one passed over is told in one line that names the next. */
#include "store/recovery_folder.h"

#include "base/sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct loading {
	const char *run_dir;
	const struct run *run;
	struct digest model;
	void *block;
	uint64_t *sums;
	uint32_t threads;
	_Atomic uint64_t *moves;
	recovery_report *report;
	void *context;
	struct recovery_folder folder;
	struct catalog *catalog; /* NULL when it cannot be used: marks are lost, nothing else */
};

/* -- reading one -- */

static int check_identity(
	const struct loading *loading, const struct checkpoint_info *info, struct error *err)
{
	if (memcmp(info->record.run_id, loading->run->id, RUN_ID_SIZE) != 0)
		return error_set(err, -EPROTONOSUPPORT, "%s: it belongs to another run", info->id);
	if (!digest_equal(&info->record.model_digest, &loading->model))
		return error_set(err, -EPROTONOSUPPORT,
			"%s: its tensors are not those of the configured model", info->id);
	return 0;
}

static int read_once(const struct loading *loading, const char *name, struct checkpoint_info *ret,
	struct error *err)
{
	int fd = checkpoint_open(loading->folder.fd, name, ret, err);
	int rc;

	if (fd < 0)
		return fd;
	rc = check_identity(loading, ret, err);
	if (rc == 0)
		rc = checkpoint_read(fd, ret, loading->block, loading->sums, loading->threads,
			loading->moves, err);
	if (rc == 0 && loading->sums != NULL)
		rc = checkpoint_check_sums(ret, loading->sums, err);
	sys_close(fd);
	if (rc < 0)
		checkpoint_info_fini(ret);
	return rc;
}

struct reading {
	const struct loading *loading;
	const char *name;
	struct checkpoint_info *info;
};

static int read_again(void *context, struct error *err)
{
	struct reading *reading = context;

	return read_once(reading->loading, reading->name, reading->info, err);
}

/* -- marks -- */

static void mark(struct loading *loading, const struct catalog_row *row)
{
	struct error err;

	if (loading->catalog == NULL || catalog_put(loading->catalog, row, &err) == 0)
		return;
	recovery_tell(loading->report, loading->context, "catalog", "warning", row->step,
		"cannot write down that %s is %s: %s", row->id, checkpoint_state_name(row->state),
		err.text);
}

/* false when the catalog has nothing to believe about this file. */
static bool old_row(struct loading *loading, const struct scan_file *file, struct catalog_row *ret)
{
	char id[CHECKPOINT_ID_SIZE];

	checkpoint_id_format(file->step, file->branch, id);
	return loading->catalog != NULL && catalog_get(loading->catalog, id, ret, NULL) == 0;
}

static void mark_failed(
	struct loading *loading, const struct scan_file *file, int error, const char *text)
{
	struct catalog_row old, row;
	bool known = old_row(loading, file, &old);

	recovery_row_of_name(
		&loading->folder, file, known ? &old : NULL, recovery_state_of(error), text, &row);
	if (!known || memcmp(&old, &row, sizeof(row)) != 0)
		mark(loading, &row);
}

static void mark_verified(
	struct loading *loading, const struct scan_file *file, const struct checkpoint_info *info)
{
	struct catalog_row old, row;
	bool known = old_row(loading, file, &old);

	recovery_row_of_info(&loading->folder, info, CHECKPOINT_VERIFIED, &row);
	recovery_row_carry(known ? &old : NULL, &row);
	catalog_row_verified_now(&row);
	mark(loading, &row);
}

/* -- the walk -- */

static const struct scan_file *next_on_line(const struct loading *loading, uint32_t *at)
{
	const struct scan *scan = &loading->folder.scan;

	while (*at < scan->file_count) {
		const struct scan_file *file = &scan->files[(*at)++];

		if (line_contains(&loading->folder.line, file->branch, file->step))
			return file;
	}
	return NULL;
}

static void tell_failed(struct loading *loading, const struct scan_file *file,
	const struct scan_file *next, int error, const char *text)
{
	const char *state = checkpoint_state_name(recovery_state_of(error));

	/* The reason begins with the name of the file. */
	recovery_tell(loading->report, loading->context, state, "error", file->step,
		"%s is %s (%s); %s%s", file->name, state, text,
		next != NULL ? "trying the one before it, " : "there is no older one on the line",
		next != NULL ? next->name : "");
}

static int walk(struct loading *loading, struct checkpoint_info *ret, struct error *err)
{
	uint32_t at = 0, tried = 0, waiting = 0;
	const struct scan_file *file = next_on_line(loading, &at), *next;

	for (; file != NULL; file = next) {
		struct error why = {{0}};
		struct reading reading = {loading, file->name, ret};
		int rc = recovery_try(read_again, &reading, &why);

		if (rc == 0) {
			mark_verified(loading, file, ret);
			return 0;
		}
		if (recovery_is_ours(rc))
			return error_set(err, rc, "%s", why.text);
		next = next_on_line(loading, &at);
		if (rc == -ENOENT)
			continue;
		tried++;
		waiting += rc != -EBADMSG;
		mark_failed(loading, file, rc, why.text);
		tell_failed(loading, file, next, rc, why.text);
	}
	if (tried == 0)
		return error_set(err, -ENOENT, "there is no checkpoint on the line");
	if (waiting > 0)
		return error_set(err, -EAGAIN,
			"none of %u checkpoints on the line can be read now (%u unreadable or "
			"refused); trying again later",
			tried, waiting);
	return error_set(err, -EBADMSG, "all %u checkpoints on the line are corrupt", tried);
}

int recovery_load(const char *run_dir, int run_fd, const struct run *run,
	const struct tensor_table *table, void *block, uint64_t *sums, uint32_t threads,
	_Atomic uint64_t *moves, recovery_report *report, void *context,
	struct checkpoint_info *ret, struct error *err)
{
	struct loading loading = {.run_dir = run_dir,
		.run = run,
		.model = tensor_table_digest(table),
		.block = block,
		.sums = sums,
		.threads = threads,
		.moves = moves,
		.report = report,
		.context = context};
	struct error why;
	int rc = recovery_folder_open(run_fd, &loading.folder, err);

	if (rc < 0)
		return rc;
	if (catalog_open(run_dir, CATALOG_WRITE, &loading.catalog, &why) < 0)
		recovery_tell(report, context, "catalog", "warning", 0,
			"the catalog cannot be used now (%s); the files are", why.text);
	rc = walk(&loading, ret, err);
	catalog_close(loading.catalog);
	recovery_folder_close(&loading.folder);
	return rc;
}

/* -- one to look into -- */

static bool is_usable(struct catalog *catalog, const struct scan_file *file)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog_row row;

	checkpoint_id_format(file->step, file->branch, id);
	if (catalog == NULL || catalog_get(catalog, id, &row, NULL) < 0)
		return true; /* whoever reads it verifies what is read */
	return row.state == CHECKPOINT_VERIFIED || row.state == CHECKPOINT_FOUND;
}

static int pick_newest(const struct recovery_folder *folder, struct catalog *catalog,
	struct checkpoint_info *ret, struct error *err)
{
	for (uint32_t i = 0; i < folder->scan.file_count; i++) {
		const struct scan_file *file = &folder->scan.files[i];
		int fd;

		if (!line_contains(&folder->line, file->branch, file->step) ||
			!is_usable(catalog, file))
			continue;
		fd = checkpoint_open(folder->fd, file->name, ret, err);
		if (fd >= 0)
			return fd;
	}
	return error_set(err, -ENOENT, "there is no verified checkpoint yet");
}

static int pick_id(const struct recovery_folder *folder, const char *id,
	struct checkpoint_info *ret, struct error *err)
{
	char name[SCAN_NAME_MAX];
	uint64_t step;
	uint32_t branch;
	int fd;

	if (checkpoint_id_parse(id, &step, &branch) < 0)
		return error_set(err, -EINVAL,
			"'%.40s' is no checkpoint id; they look like step-000012000-b0001", id);
	snprintf(name, sizeof(name), "%s%s", id, CHECKPOINT_SUFFIX);
	fd = checkpoint_open(folder->fd, name, ret, err);
	if (fd == -ENOENT)
		return error_set(err, fd, "there is no checkpoint %s", id);
	return fd;
}

int recovery_pick(const char *run_dir, int run_fd, const char *id, struct checkpoint_info *ret,
	int *ret_fd, struct error *err)
{
	struct recovery_folder folder;
	struct catalog *catalog = NULL;
	int fd, rc = recovery_folder_open(run_fd, &folder, err);

	if (rc < 0)
		return rc;
	if (id != NULL && id[0] != '\0') {
		fd = pick_id(&folder, id, ret, err);
	} else {
		catalog_open(run_dir, CATALOG_READ, &catalog, NULL);
		fd = pick_newest(&folder, catalog, ret, err);
		catalog_close(catalog);
	}
	recovery_folder_close(&folder);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}
