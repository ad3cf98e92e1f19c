/* The keep mark: a file named after the root, which is the truth; the row only follows. While the
 * mark is made the checkpoint is held open, so retention either sees the mark or has been first:
 * it never takes one of which somebody was told that it is kept. */
#include "store/recovery_folder.h"

#include "base/file.h"
#include "base/sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MARK_MODE 0640

static int make_mark(int folder_fd, const struct digest *root, struct error *err)
{
	char mark[SCAN_NAME_MAX];
	int rc;

	scan_keep_name(root, mark);
	rc = file_create(folder_fd, mark, "", 0, MARK_MODE);
	if (rc == -EEXIST)
		rc = file_sync_dir(folder_fd); /* whoever made it may not have */
	return rc == 0 ? 0 : error_set(err, rc, "cannot write the keep mark: %s", strerror(-rc));
}

static int remove_mark(int folder_fd, const struct digest *root, struct error *err)
{
	char mark[SCAN_NAME_MAX];
	int rc;

	scan_keep_name(root, mark);
	rc = sys_unlinkat(folder_fd, mark);
	if (rc == 0 || rc == -ENOENT)
		rc = file_sync_dir(folder_fd);
	return rc == 0 ? 0 : error_set(err, rc, "cannot remove the keep mark: %s", strerror(-rc));
}

/* Its root by its header, held open: the descriptor. */
static int open_root(int folder_fd, const char *id, struct digest *ret, struct error *err)
{
	char name[SCAN_NAME_MAX];
	struct checkpoint_info info;
	int fd;

	snprintf(name, sizeof(name), "%s%s", id, CHECKPOINT_SUFFIX);
	fd = checkpoint_open(folder_fd, name, &info, err);
	if (fd < 0)
		return fd;
	*ret = info.root;
	checkpoint_info_fini(&info);
	return fd;
}

static int explain(int rc, const char *id, struct error *err)
{
	struct error why = *err;

	if (rc == -ENOENT)
		return error_set(err, rc, "there is no checkpoint %s", id);
	return error_set(
		err, rc, "%s cannot be kept (%.300s); copy the file if it matters", id, why.text);
}

static int keep_on(int folder_fd, const char *id, struct digest *ret_root, struct error *err)
{
	int fd = open_root(folder_fd, id, ret_root, err), rc;

	if (fd < 0)
		return explain(fd, id, err);
	rc = make_mark(folder_fd, ret_root, err);
	sys_close(fd);
	return rc;
}

/* The file may be gone or broken: then the row knows the root. */
static int keep_off(int folder_fd, const char *id, const struct catalog_row *row,
	struct digest *ret_root, struct error *err)
{
	int fd = open_root(folder_fd, id, ret_root, err);

	if (fd >= 0)
		sys_close(fd);
	else if (row != NULL)
		*ret_root = row->root;
	else
		return explain(fd, id, err);
	return remove_mark(folder_fd, ret_root, err);
}

/* false: the row will follow at the next start. */
static bool update_row(struct catalog *catalog, const char *id, const struct digest *root,
	bool keep, struct error *err)
{
	struct catalog_row row;
	int rc = catalog_begin(catalog, err);

	if (rc < 0)
		return false;
	rc = catalog_get(catalog, id, &row, err);
	if (rc == 0 && digest_equal(&row.root, root)) {
		row.keep = keep;
		/* It was to be deleted, and could not be. */
		if (keep && row.state == CHECKPOINT_DELETED) {
			row.state = CHECKPOINT_FOUND;
			memset(row.text, 0, sizeof(row.text));
		}
		rc = catalog_put(catalog, &row, err);
	}
	return catalog_end(catalog, rc, err) == 0;
}

static void describe(const char *id, const struct catalog_row *row, bool keep, bool written,
	char *text, size_t size)
{
	const char *state = "";

	if (keep && row != NULL && row->state == CHECKPOINT_CORRUPT)
		state = "; it is corrupt, and only kept to be looked at";
	else if (keep && row != NULL && row->state == CHECKPOINT_FOUND)
		state = "; it was not read yet ('ckptctl verify')";
	snprintf(text, size, "%s is %s%s%s", id, keep ? "kept" : "no longer kept", state,
		written ? "" : "; the catalog will say so after the next start");
}

int recovery_keep(const char *run_dir, int run_fd, const char *id, bool keep, char *text,
	size_t size, struct error *err)
{
	struct catalog *catalog = NULL;
	struct catalog_row row;
	struct digest root;
	struct error ignored;
	bool known = false, written = false;
	uint64_t step;
	uint32_t branch;
	int rc, fd;

	if (checkpoint_id_parse(id, &step, &branch) < 0)
		return error_set(err, -EINVAL,
			"'%.40s' is no checkpoint id; they look like step-000012000-b0001", id);
	fd = file_open_dir(run_fd, "checkpoints", 0750);
	if (fd < 0)
		return error_set(err, fd, "cannot open the checkpoints folder: %s", strerror(-fd));
	if (catalog_open(run_dir, CATALOG_WRITE, &catalog, &ignored) == 0)
		known = catalog_get(catalog, id, &row, &ignored) == 0;
	rc = keep ? keep_on(fd, id, &root, err) : keep_off(fd, id, known ? &row : NULL, &root, err);
	if (rc == 0 && known)
		written = update_row(catalog, id, &root, keep, &ignored);
	if (rc == 0)
		describe(id, known ? &row : NULL, keep, written, text, size);
	catalog_close(catalog);
	sys_close(fd);
	return rc;
}
