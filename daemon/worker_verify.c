/* The role `verify`: reads checkpoints whole and compares them with their digests. What it finds
 * goes into the catalog and to whoever asked. */
#include "base/file.h"
#include "base/sys.h"
#include "daemon/worker.h"
#include "store/catalog.h"
#include "store/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_whole(
	const struct worker *worker, int checkpoints_fd, const char *id, struct error *err)
{
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)];
	struct checkpoint_info info;
	int fd, r;

	snprintf(name, sizeof(name), "%s" CHECKPOINT_SUFFIX, id);
	fd = checkpoint_open(checkpoints_fd, name, &info, err);
	if (fd < 0)
		return fd;
	r = checkpoint_read(fd, &info, NULL, NULL, worker->start.threads, NULL, err);
	checkpoint_info_fini(&info);
	sys_close(fd);
	return r;
}

static enum checkpoint_state state_of_result(int r)
{
	switch (-r) {
	case 0:
		return CHECKPOINT_VERIFIED;
	case EBADMSG:
		return CHECKPOINT_CORRUPT;
	case EPROTONOSUPPORT:
		return CHECKPOINT_REFUSED;
	case ENOENT:
		return CHECKPOINT_MISSING;
	default:
		return CHECKPOINT_UNREADABLE;
	}
}

/* 0, or an exit code when the answer could not be given. */
static int verify_one(struct worker *worker, struct catalog *catalog, int checkpoints_fd,
	const struct catalog_row *row)
{
	struct error err = {{0}}, catalog_err;
	int r = read_whole(worker, checkpoints_fd, row->id, &err);
	enum checkpoint_state state = state_of_result(r);

	/* A match is written down each time: the row says when the last one was. */
	if ((state != row->state || state == CHECKPOINT_VERIFIED) &&
		catalog_set_state(catalog, row->id, state, r < 0 ? err.text : "", &catalog_err) < 0)
		worker_event(
			&worker->link, "catalog", "warning", row->step, "%s", catalog_err.text);
	r = worker_link_send(&worker->link,
		json_pack("{s:{s:s,s:b,s:s}}", "verified", "id", row->id, "ok",
			(int)(state == CHECKPOINT_VERIFIED), "text",
			r < 0 ? err.text : "every byte matches its digest"));
	return r < 0 ? LINK_EXIT_FAILED : 0;
}

static bool is_asked(const struct worker *worker, const struct catalog_row *row)
{
	if (*worker->start.id)
		return strcmp(row->id, worker->start.id) == 0;
	return row->state != CHECKPOINT_DELETED && row->state != CHECKPOINT_MISSING;
}

static int verify_rows(struct worker *worker, struct catalog *catalog, int checkpoints_fd)
{
	struct catalog_row *rows = NULL;
	uint32_t count, bad, asked = 0;
	struct error err;
	int r = catalog_list(catalog, &rows, &count, &bad, &err);

	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	for (uint32_t i = 0; i < count && r == 0; i++)
		if (is_asked(worker, &rows[i])) {
			r = verify_one(worker, catalog, checkpoints_fd, &rows[i]);
			asked++;
		}
	free(rows);
	if (r == 0 && asked == 0 && *worker->start.id)
		return worker_fail(
			worker, LINK_EXIT_FAILED, "there is no checkpoint %s", worker->start.id);
	return r;
}

int worker_verify(struct worker *worker)
{
	struct catalog *catalog;
	struct error err;
	int r, dir;

	worker_step_back();
	r = catalog_open(worker->start.run_dir, CATALOG_WRITE, &catalog, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	dir = file_open_dir(worker->run_fd, "checkpoints", 0750);
	if (dir < 0)
		r = worker_fail(worker, LINK_EXIT_FAILED, "cannot open %s/checkpoints: %s",
			worker->start.run_dir, strerror(-dir));
	else
		r = verify_rows(worker, catalog, dir);
	if (dir >= 0)
		sys_close(dir);
	catalog_close(catalog);
	return r;
}
