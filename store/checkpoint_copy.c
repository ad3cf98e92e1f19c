/* See store/checkpoint_copy.h. Must never: publish bytes that were not read back and compared, or
 * touch what holds the name before the copy is whole. */
#include "store/checkpoint_copy.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/chunk_flow.h"
#include "store/partial.h"
#include "store/scan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASIDE_MAX 99

struct copying {
	const struct checkpoint_copy *copy;
	struct checkpoint_info info; /* of the original */
	int from;                    /* -1 */
	struct partial to;
	bool held; /* something has the name */
	char partial[SCAN_NAME_MAX];
	const char *made;    /* must go on error */
	_Atomic int failure; /* of a thread that writes */
	struct error *err;
};

int checkpoint_move_aside(int checkpoints_fd, const char *name, struct error *err)
{
	char aside[SCAN_NAME_MAX];
	int rc = -EEXIST;

	for (int n = 1; rc == -EEXIST && n <= ASIDE_MAX; n++) {
		snprintf(aside, sizeof(aside), "%.64s%s%d", name, SCAN_ASIDE_INFIX, n);
		rc = sys_renameat_noreplace(checkpoints_fd, name, aside);
	}
	if (rc < 0)
		return error_set(
			err, rc, "cannot move the corrupt %s aside: %s", name, strerror(-rc));
	return 0;
}

static bool of_run(const struct copying *copying, const struct checkpoint_info *info)
{
	return memcmp(info->record.run_id, copying->copy->run_id, sizeof(info->record.run_id)) == 0;
}

static int failed(struct copying *copying, int rc, const char *doing)
{
	return error_set(copying->err, rc, "cannot %s the copy of %s: %s", doing,
		copying->copy->name, strerror(-rc));
}

/* -- both ends -- */

static int open_original(struct copying *copying)
{
	const struct checkpoint_copy *copy = copying->copy;

	copying->from = checkpoint_open(copy->from_fd, copy->name, &copying->info, copying->err);
	if (copying->from < 0)
		return copying->from;
	if (!of_run(copying, &copying->info))
		return error_set(copying->err, -EPROTONOSUPPORT, "%s: it belongs to another run",
			copy->name);
	if (copy->root != NULL && !digest_equal(copy->root, &copying->info.root))
		return error_set(copying->err, -ENOENT,
			"%s: it has another root than the one that is meant", copy->name);
	return 0;
}

/* 1 when it stands there already, 0 when it is to be made. */
static int look_at_target(struct copying *copying)
{
	const struct checkpoint_copy *copy = copying->copy;
	struct checkpoint_info info;
	struct error ignored;
	bool ours;
	int fd = checkpoint_open(copy->to_fd, copy->name, &info, copying->err), rc;

	if (fd == -ENOENT)
		return 0;
	if (fd == -EPROTONOSUPPORT)
		return error_set(
			copying->err, -EEXIST, "%s is there and not ours to replace", copy->name);
	copying->held = true;
	if (fd < 0)
		return 0;
	ours = of_run(copying, &info);
	rc = !ours ? error_set(copying->err, -EEXIST, "%s is there and belongs to another run",
			     copy->name)
		: copy->aside || digest_equal(&info.root, &copying->info.root)
		? checkpoint_read(fd, &info, NULL, NULL, copy->threads, copy->moves, &ignored)
		: -ESTALE;
	sys_close(fd);
	checkpoint_info_fini(&info);
	return !ours ? rc : rc == 0;
}

/* -- the copy -- */

static int create_partial(struct copying *copying)
{
	int rc;

	snprintf(copying->partial, sizeof(copying->partial), ".%s.copy", copying->info.id);
	rc = partial_create(copying->copy->to_fd, copying->partial, true, &copying->to);
	if (rc < 0)
		return failed(copying, rc, "create");
	copying->made = copying->partial;
	rc = sys_fallocate(copying->to.fd, (off_t)copying->info.file_bytes);
	if (rc < 0 && rc != -EOPNOTSUPP)
		return failed(copying, rc, "reserve room for");
	return sys_fault("copy.reserved");
}

static bool may_go_on(const struct copying *copying)
{
	return copying->copy->go_on == NULL || copying->copy->go_on(copying->copy->context);
}

/* A checkpoint_take. */
static int write_chunk(void *context, uint32_t chunk, const uint8_t *data, const uint64_t *sums)
{
	struct copying *copying = context;
	off_t offset = (off_t)(copying->info.data_offset + chunk * CHECKPOINT_CHUNK_BYTES);
	int rc = may_go_on(copying) ? partial_write(&copying->to, data, offset) : -ECANCELED;

	(void)sums;
	if (rc < 0)
		atomic_store(&copying->failure, rc);
	return rc;
}

/* The header as it lies there; the copy's own root is asked for before it is published. */
static int write_header(struct copying *copying, bool *ret_from_failed)
{
	size_t size = copying->info.data_offset;
	uint8_t *bytes = malloc(size);
	int rc = bytes != NULL ? 0 : -ENOMEM;

	if (rc == 0) {
		rc = file_read_exact(copying->from, bytes, size, 0);
		*ret_from_failed = rc < 0;
	}
	if (rc == 0)
		rc = file_write_exact(copying->to.fd, bytes, size, 0);
	free(bytes);
	return rc < 0 ? failed(copying, rc, "write the header of") : 0;
}

static int write_data(struct copying *copying, bool *ret_from_failed)
{
	const struct checkpoint_copy *copy = copying->copy;
	int rc = checkpoint_read_each(copying->from, &copying->info, write_chunk, copying,
		copy->threads, copy->moves, copying->err);
	int failure = atomic_load(&copying->failure);

	if (failure < 0)
		return failed(copying, failure, "write");
	*ret_from_failed = rc < 0;
	if (rc == 0)
		rc = write_header(copying, ret_from_failed);
	return rc < 0 ? rc : sys_fault("copy.written");
}

static int sync_copy(struct copying *copying)
{
	int rc = sys_fsync(copying->to.fd);

	return rc < 0 ? failed(copying, rc, "sync") : sys_fault("copy.synced");
}

/* Its header has the root of the original, so its digests are the original's too. */
static int read_back(struct copying *copying)
{
	const struct checkpoint_copy *copy = copying->copy;
	struct checkpoint_info info;
	int rc = sys_close(copying->to.fd), fd;

	copying->to.fd = -1;
	if (rc < 0)
		return failed(copying, rc, "close");
	fd = checkpoint_open(copy->to_fd, copying->partial, &info, copying->err);
	rc = fd;
	if (fd >= 0) {
		rc = digest_equal(&info.root, &copying->info.root)
			? checkpoint_read(
				  fd, &info, NULL, NULL, copy->threads, copy->moves, copying->err)
			: -EBADMSG;
		sys_close(fd);
		checkpoint_info_fini(&info);
	}
	if (rc == -EBADMSG)
		return error_set(copying->err, -EIO,
			"the device gave back other bytes than were written to the copy of %s",
			copy->name);
	return rc < 0 ? rc : sys_fault("copy.readback");
}

static int take_name(struct copying *copying)
{
	const struct checkpoint_copy *copy = copying->copy;
	int rc;

	if (!copying->held)
		return sys_renameat_noreplace(copy->to_fd, copying->partial, copy->name);
	if (!copy->aside)
		return sys_renameat(copy->to_fd, copying->partial, copy->name);
	rc = checkpoint_move_aside(copy->to_fd, copy->name, copying->err);
	return rc < 0 ? rc : sys_renameat_noreplace(copy->to_fd, copying->partial, copy->name);
}

static int publish(struct copying *copying)
{
	int rc = may_go_on(copying) ? 0 : -ECANCELED;

	if (rc == 0)
		rc = take_name(copying);
	if (rc < 0)
		return failed(copying, rc, "publish");
	copying->made = copying->copy->name;
	rc = sys_fault("copy.renamed");
	if (rc == 0)
		rc = file_sync_dir(copying->copy->to_fd);
	if (rc < 0)
		return failed(copying, rc, "sync the folder of");
	return sys_fault("copy.published");
}

static int make_copy(struct copying *copying, bool *ret_from_failed)
{
	int rc = create_partial(copying);

	if (rc == 0)
		rc = write_data(copying, ret_from_failed);
	if (rc == 0)
		rc = sync_copy(copying);
	if (rc == 0)
		rc = read_back(copying);
	if (rc == 0)
		rc = publish(copying);
	if (rc == 0)
		copying->made = NULL;
	return rc;
}

static void copying_fini(struct copying *copying)
{
	partial_close(&copying->to);
	if (copying->made != NULL)
		sys_unlinkat(copying->copy->to_fd, copying->made);
	if (copying->from >= 0) {
		sys_close(copying->from);
		checkpoint_info_fini(&copying->info);
	}
}

int checkpoint_copy(
	const struct checkpoint_copy *copy, struct checkpoint_copied *ret, struct error *err)
{
	struct error own;
	struct copying copying = {
		.copy = copy, .from = -1, .to = {-1, -1}, .err = err != NULL ? err : &own};
	int rc;

	*ret = (struct checkpoint_copied){0};
	copying.err->text[0] = '\0';
	rc = open_original(&copying);
	ret->from_failed = rc < 0;
	if (rc == 0)
		rc = look_at_target(&copying);
	ret->already = rc > 0;
	copying.err->text[0] = rc < 0 ? copying.err->text[0] : '\0';
	if (rc == 0)
		rc = make_copy(&copying, &ret->from_failed);
	copying_fini(&copying);
	/* A named fault point gives a bare code. */
	if (rc < 0 && copying.err->text[0] == '\0')
		failed(&copying, rc, "make");
	return rc < 0 ? rc : 0;
}
