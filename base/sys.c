/* System calls behind the seam for faults. Without a plan and a tracer a call costs two atomic
 * loads more. A call that a plan lets fail is not made; one that it skips neither, and no tracer
 * hears of it. */
#include "base/sys.h"

#include "base/panic.h"
#include "base/sys_plan.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* -- traces -- */

static pthread_mutex_t trace_lock = PTHREAD_MUTEX_INITIALIZER;
static sys_tracer *_Atomic trace_fn;
static void *trace_context;

void sys_trace_set(sys_tracer *tracer, void *context)
{
	pthread_mutex_lock(&trace_lock);
	trace_context = context;
	atomic_store(&trace_fn, tracer);
	pthread_mutex_unlock(&trace_lock);
}

/* Held around an operation, so that traces have its order. */
static bool trace_begin(void)
{
	if (!atomic_load_explicit(&trace_fn, memory_order_acquire))
		return false;
	pthread_mutex_lock(&trace_lock);
	return true;
}

static void trace_end(bool traced, bool tell, const struct sys_op *op)
{
	sys_tracer *tracer;

	if (!traced)
		return;
	tracer = atomic_load(&trace_fn);
	if (tell && tracer)
		tracer(trace_context, op);
	pthread_mutex_unlock(&trace_lock);
}

/* -- faults -- */

/* 1: the call is skipped; -errno: it fails; 0: it is made. */
static int verdict(const struct sys_fault *fault)
{
	if (!fault)
		return 0;
	if (fault->action == FAULT_SKIP)
		return 1;
	return fault->action == FAULT_ERRNO ? -fault->code : 0;
}

/* For calls that are made again after a signal: an interruption is never seen. */
static int verdict_retried(const struct sys_fault *fault)
{
	int code = verdict(fault);

	return code == -EINTR ? 0 : code;
}

/* -- open and close -- */

static int open_at(const char *point, int dir_fd, const char *path, int flags, mode_t mode)
{
	int fd, code = verdict_retried(sys_fault_at(point));

	if (code < 0)
		return code;
	bool traced = trace_begin();
	do
		fd = openat(dir_fd, path, flags | O_CLOEXEC, mode);
	while (fd < 0 && errno == EINTR);
	code = fd < 0 ? -errno : fd;
	trace_end(traced, fd >= 0 && (flags & O_ACCMODE) != O_RDONLY,
		&(struct sys_op){.kind = SYS_OP_OPEN,
			.fd = fd,
			.dir_fd = dir_fd,
			.path = path,
			.flags = flags});
	return code;
}

int sys_openat(int dir_fd, const char *path, int flags, mode_t mode)
{
	return open_at("open", dir_fd, path, flags, mode);
}

int sys_db_open(const char *path, int flags, mode_t mode)
{
	return open_at("db.open", AT_FDCWD, path, flags, mode);
}

/* Linux closes the descriptor even when close reports EINTR: never again. */
static int close_fd(const char *point, int fd)
{
	int closed, code = sys_fault(point);
	bool traced = trace_begin();

	closed = close(fd) < 0 && errno != EINTR ? -errno : 0;
	trace_end(traced, true, &(struct sys_op){.kind = SYS_OP_CLOSE, .fd = fd});
	if (code == -EINTR)
		code = 0;
	return closed < 0 ? closed : code;
}

int sys_close(int fd)
{
	return close_fd("close", fd);
}

int sys_db_close(int fd)
{
	return close_fd("db.close", fd);
}

/* -- read and write -- */

static ssize_t read_at(const char *point, int fd, void *data, size_t size, off_t offset)
{
	const struct sys_fault *fault = sys_fault_at(point);
	int code = verdict_retried(fault);
	ssize_t got;

	if (code < 0)
		return code;
	if (fault && fault->action == FAULT_EOF)
		return 0;
	if (fault && fault->action == FAULT_SHORT && size > 1)
		size /= 2;
	do
		got = pread(fd, data, size, offset);
	while (got < 0 && errno == EINTR);
	if (got > 0 && fault && fault->action == FAULT_FLIP)
		((uint8_t *)data)[got / 2] ^= 1;
	return got < 0 ? -errno : got;
}

ssize_t sys_pread(int fd, void *data, size_t size, off_t offset)
{
	return read_at("pread", fd, data, size, offset);
}

ssize_t sys_db_pread(int fd, void *data, size_t size, off_t offset)
{
	return read_at("db.pread", fd, data, size, offset);
}

static ssize_t write_raw(int fd, const void *data, size_t size, off_t offset)
{
	ssize_t put;

	do
		put = pwrite(fd, data, size, offset);
	while (put < 0 && errno == EINTR);
	return put < 0 ? -errno : put;
}

/* A copy with one bit changed; aligned, for direct I/O. */
static ssize_t write_rotten(int fd, const void **data, void **ret_copy, size_t size, off_t offset)
{
	uint8_t *copy = NULL;

	if (size == 0 || posix_memalign((void **)&copy, 4096, size) != 0)
		return -ENOMEM;
	memcpy(copy, *data, size);
	copy[size / 2] ^= 1;
	*data = *ret_copy = copy;
	return write_raw(fd, copy, size, offset);
}

static ssize_t write_at(const char *point, int fd, const void *data, size_t size, off_t offset)
{
	const struct sys_fault *fault = sys_fault_at(point);
	int code = verdict_retried(fault);
	void *copy = NULL;
	ssize_t put;

	if (code < 0)
		return code;
	if (code > 0)
		return (ssize_t)size;
	if (fault && fault->action == FAULT_SHORT && size > 1)
		size /= 2;
	bool traced = trace_begin();
	put = fault && fault->action == FAULT_ROT ? write_rotten(fd, &data, &copy, size, offset)
						  : write_raw(fd, data, size, offset);
	trace_end(traced, put > 0,
		&(struct sys_op){.kind = SYS_OP_WRITE,
			.fd = fd,
			.data = data,
			.size = put > 0 ? (uint64_t)put : 0,
			.offset = (uint64_t)offset});
	free(copy);
	return put;
}

ssize_t sys_pwrite(int fd, const void *data, size_t size, off_t offset)
{
	return write_at("pwrite", fd, data, size, offset);
}

ssize_t sys_db_pwrite(int fd, const void *data, size_t size, off_t offset)
{
	return write_at("db.pwrite", fd, data, size, offset);
}

/* -- sync -- */

/* 1: skipped. Never again after an error: the kernel may have dropped the dirty pages and say yes.
 */
static int sync_fd(const char *point, int fd, int (*call)(int fd))
{
	const struct sys_fault *fault = sys_fault_at(point);
	int code = verdict(fault);

	if (code > 0)
		return 1;
	bool traced = trace_begin();
	if (code == 0)
		code = call(fd) < 0 ? -errno : 0;
	trace_end(traced, true, &(struct sys_op){.kind = SYS_OP_SYNC, .fd = fd, .result = code});
	return code;
}

int sys_fsync(int fd)
{
	int code = sync_fd("fsync", fd, fsync);

	return code > 0 ? 0 : code;
}

int sys_db_fsync(int fd)
{
	return sync_fd("db.fsync", fd, fsync);
}

int sys_fdatasync(int fd)
{
	int code = sync_fd("fdatasync", fd, fdatasync);

	return code > 0 ? 0 : code;
}

/* -- size -- */

int sys_fallocate(int fd, off_t size)
{
	int done, code = verdict_retried(sys_fault_at("fallocate"));

	if (code != 0)
		return code < 0 ? code : 0;
	bool traced = trace_begin();
	do
		done = fallocate(fd, 0, 0, size);
	while (done < 0 && errno == EINTR);
	code = done < 0 ? -errno : 0;
	trace_end(traced, code == 0,
		&(struct sys_op){.kind = SYS_OP_ALLOCATE, .fd = fd, .offset = (uint64_t)size});
	return code;
}

static int truncate_fd(const char *point, int fd, off_t size)
{
	int code = verdict_retried(sys_fault_at(point));

	if (code != 0)
		return code < 0 ? code : 0;
	bool traced = trace_begin();
	code = ftruncate(fd, size) < 0 ? -errno : 0;
	trace_end(traced, code == 0,
		&(struct sys_op){.kind = SYS_OP_TRUNCATE, .fd = fd, .offset = (uint64_t)size});
	return code;
}

int sys_ftruncate(int fd, off_t size)
{
	return truncate_fd("ftruncate", fd, size);
}

int sys_db_ftruncate(int fd, off_t size)
{
	return truncate_fd("db.ftruncate", fd, size);
}

int sys_flock(int fd, int operation)
{
	int code = sys_fault("flock");

	if (code < 0)
		return code;
	return flock(fd, operation) < 0 ? -errno : 0;
}

int sys_fstat(int fd, struct stat *ret)
{
	int code = verdict_retried(sys_fault_at("fstat"));

	if (code < 0)
		return code;
	return fstat(fd, ret) < 0 ? -errno : 0;
}

int sys_fstatat(int dir_fd, const char *path, struct stat *ret)
{
	int code = verdict_retried(sys_fault_at("fstatat"));

	if (code < 0)
		return code;
	return fstatat(dir_fd, path, ret, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

int sys_free_bytes(int fd, uint64_t *ret)
{
	struct statvfs fs;
	int code = verdict_retried(sys_fault_at("statvfs"));

	if (code < 0)
		return code;
	if (fstatvfs(fd, &fs) < 0)
		return -errno;
	*ret = (uint64_t)(geteuid() == 0 ? fs.f_bfree : fs.f_bavail) * fs.f_frsize;
	return 0;
}

/* -- names -- */

enum name_call { CALL_MKDIR, CALL_UNLINK, CALL_RENAME, CALL_RENAME_NOREPLACE, CALL_LINK };

static int call_raw(enum name_call call, int dir_fd, const char *path, const char *to, mode_t mode)
{
	switch (call) {
	case CALL_MKDIR:
		return mkdirat(dir_fd, path, mode);
	case CALL_UNLINK:
		return unlinkat(dir_fd, path, 0);
	case CALL_RENAME:
		return renameat(dir_fd, path, dir_fd, to);
	case CALL_RENAME_NOREPLACE:
		return renameat2(dir_fd, path, dir_fd, to, RENAME_NOREPLACE);
	case CALL_LINK:
		return linkat(dir_fd, path, dir_fd, to, 0);
	}
	PANIC("no such call");
}

static int call_traced(
	enum name_call call, int dir_fd, const char *path, const char *to, mode_t mode)
{
	static const enum sys_op_kind kinds[] = {[CALL_MKDIR] = SYS_OP_MKDIR,
		[CALL_UNLINK] = SYS_OP_UNLINK,
		[CALL_RENAME] = SYS_OP_RENAME,
		[CALL_RENAME_NOREPLACE] = SYS_OP_RENAME,
		[CALL_LINK] = SYS_OP_LINK};
	bool traced = trace_begin();
	int code = call_raw(call, dir_fd, path, to, mode) < 0 ? -errno : 0;

	trace_end(traced, code == 0,
		&(struct sys_op){.kind = kinds[call], .dir_fd = dir_fd, .path = path, .to = to});
	return code;
}

int sys_mkdirat(int dir_fd, const char *path, mode_t mode)
{
	int code = verdict(sys_fault_at("mkdir"));

	if (code != 0)
		return code < 0 ? code : 0;
	return call_traced(CALL_MKDIR, dir_fd, path, NULL, mode);
}

static int unlink_at(const char *point, int dir_fd, const char *path)
{
	int code = verdict(sys_fault_at(point));

	if (code != 0)
		return code < 0 ? code : 0;
	return call_traced(CALL_UNLINK, dir_fd, path, NULL, 0);
}

int sys_unlinkat(int dir_fd, const char *path)
{
	return unlink_at("unlink", dir_fd, path);
}

int sys_db_unlink(const char *path)
{
	return unlink_at("db.unlink", AT_FDCWD, path);
}

int sys_renameat(int dir_fd, const char *from, const char *to)
{
	int code = verdict(sys_fault_at("rename"));

	if (code != 0)
		return code < 0 ? code : 0;
	return call_traced(CALL_RENAME, dir_fd, from, to, 0);
}

/* Where the file system knows no flags (network ones): a link never replaces either. A death
 * between the two calls leaves both names; the temporary one goes at the next start. */
static int link_noreplace(int dir_fd, const char *from, const char *to)
{
	int code = call_traced(CALL_LINK, dir_fd, from, to, 0);

	if (code < 0)
		return code;
	code = call_traced(CALL_UNLINK, dir_fd, from, NULL, 0);
	if (code < 0)
		call_traced(CALL_UNLINK, dir_fd, to, NULL, 0);
	return code;
}

int sys_renameat_noreplace(int dir_fd, const char *from, const char *to)
{
	int code = verdict(sys_fault_at("rename"));

	if (code > 0)
		return 0;
	if (code == 0)
		code = call_traced(CALL_RENAME_NOREPLACE, dir_fd, from, to, 0);
	if (code == -EINVAL || code == -ENOSYS)
		return link_noreplace(dir_fd, from, to);
	return code;
}
