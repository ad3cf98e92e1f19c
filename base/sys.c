/* System calls behind the seam for faults. Without a plan a call costs one atomic load more. */
#include "base/sys.h"

#include "base/panic.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define FAULTS_MAX 16

enum fault_action { FAULT_ERRNO, FAULT_SHORT, FAULT_KILL, FAULT_STOP, FAULT_FLIP, FAULT_EOF };

struct fault {
	char point[48];
	uint64_t number; /* 0: every hit */
	enum fault_action action;
	int code; /* errno */
	_Atomic uint64_t hits;
};

static struct fault faults[FAULTS_MAX];
static _Atomic int fault_count; /* -1 until the environment was read */
static pthread_once_t plan_once = PTHREAD_ONCE_INIT;

static const struct {
	const char *name;
	int code;
} errno_names[] = {
	{"EIO", EIO},
	{"ENOSPC", ENOSPC},
	{"EDQUOT", EDQUOT},
	{"EINTR", EINTR},
	{"ENOMEM", ENOMEM},
	{"EACCES", EACCES},
	{"EROFS", EROFS},
	{"EINVAL", EINVAL},
	{"EMFILE", EMFILE},
	{"ENOENT", ENOENT},
	{"EOPNOTSUPP", EOPNOTSUPP},
	{"EPERM", EPERM},
	{"EEXIST", EEXIST},
	{"EFBIG", EFBIG},
	{"EXDEV", EXDEV},
	{"ESTALE", ESTALE},
};

static int parse_action(const char *text, struct fault *fault)
{
	static const struct {
		const char *name;
		enum fault_action action;
	} actions[] = {{"short", FAULT_SHORT}, {"kill", FAULT_KILL}, {"stop", FAULT_STOP},
		{"flip", FAULT_FLIP}, {"eof", FAULT_EOF}};

	for (size_t i = 0; i < sizeof(actions) / sizeof(*actions); i++)
		if (strcmp(text, actions[i].name) == 0) {
			fault->action = actions[i].action;
			return 0;
		}
	for (size_t i = 0; i < sizeof(errno_names) / sizeof(*errno_names); i++)
		if (strcmp(text, errno_names[i].name) == 0) {
			fault->action = FAULT_ERRNO;
			fault->code = errno_names[i].code;
			return 0;
		}
	return -EINVAL;
}

/* POINT:N:ACTION */
static int parse_fault(const char *text, size_t length, struct fault *fault)
{
	char copy[128];
	char *number, *action, *end;

	if (length >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, text, length);
	copy[length] = 0;
	number = strchr(copy, ':');
	if (!number || number == copy || number - copy >= (ptrdiff_t)sizeof(fault->point))
		return -EINVAL;
	*number++ = 0;
	action = strchr(number, ':');
	if (!action)
		return -EINVAL;
	*action++ = 0;
	memcpy(fault->point, copy, strlen(copy) + 1);
	atomic_store(&fault->hits, 0);
	fault->number = 0;
	if (strcmp(number, "*") != 0) {
		fault->number = strtoull(number, &end, 10);
		if (*number < '0' || *number > '9' || *end || fault->number == 0)
			return -EINVAL;
	}
	return parse_action(action, fault);
}

static int load_plan(const char *plan)
{
	int count = 0;

	atomic_store(&fault_count, 0);
	while (plan && *plan) {
		size_t length = strcspn(plan, ",");

		if (count == FAULTS_MAX || parse_fault(plan, length, &faults[count]) < 0)
			return -EINVAL;
		count++;
		plan += length + (plan[length] == ',');
	}
	atomic_store(&fault_count, count);
	return 0;
}

/* A plan that does not parse must not run as if there were none. */
static void load_environment(void)
{
	if (load_plan(getenv("CKPTD_FAULT")) < 0)
		PANIC("CKPTD_FAULT does not parse");
}

int sys_fault_plan(const char *plan)
{
	pthread_once(&plan_once, load_environment);
	return load_plan(plan);
}

/* The action that fires at this hit of point, or NULL. */
static const struct fault *fault_at(const char *point)
{
	pthread_once(&plan_once, load_environment);
	int count = atomic_load_explicit(&fault_count, memory_order_acquire);
	const struct fault *fired = NULL;

	for (int i = 0; i < count; i++) {
		if (strcmp(faults[i].point, point) != 0)
			continue;
		uint64_t hit = atomic_fetch_add(&faults[i].hits, 1) + 1;
		if (!fired && (faults[i].number == 0 || faults[i].number == hit))
			fired = &faults[i];
	}
	if (fired && fired->action == FAULT_KILL)
		kill(getpid(), SIGKILL);
	if (fired && fired->action == FAULT_STOP)
		kill(getpid(), SIGSTOP);
	return fired;
}

int sys_fault(const char *point)
{
	const struct fault *fault = fault_at(point);

	return fault && fault->action == FAULT_ERRNO ? -fault->code : 0;
}

int sys_openat(int dir_fd, const char *path, int flags, mode_t mode)
{
	int fd, code = sys_fault("open");

	if (code < 0 && code != -EINTR)
		return code;
	do
		fd = openat(dir_fd, path, flags | O_CLOEXEC, mode);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

/* Linux closes the descriptor even when close reports EINTR: never again. */
int sys_close(int fd)
{
	int code = sys_fault("close");

	if (close(fd) < 0 && errno != EINTR)
		return -errno;
	return code;
}

ssize_t sys_pread(int fd, void *data, size_t size, off_t offset)
{
	const struct fault *fault = fault_at("pread");
	ssize_t got;

	if (fault && fault->action == FAULT_ERRNO && fault->code != EINTR)
		return -fault->code;
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

ssize_t sys_pwrite(int fd, const void *data, size_t size, off_t offset)
{
	const struct fault *fault = fault_at("pwrite");
	ssize_t put;

	if (fault && fault->action == FAULT_ERRNO && fault->code != EINTR)
		return -fault->code;
	if (fault && fault->action == FAULT_SHORT && size > 1)
		size /= 2;
	do
		put = pwrite(fd, data, size, offset);
	while (put < 0 && errno == EINTR);
	return put < 0 ? -errno : put;
}

/* Never again after an error: the kernel may have dropped the dirty pages and say yes. */
int sys_fsync(int fd)
{
	int code = sys_fault("fsync");

	if (code < 0)
		return code;
	return fsync(fd) < 0 ? -errno : 0;
}

int sys_fdatasync(int fd)
{
	int code = sys_fault("fdatasync");

	if (code < 0)
		return code;
	return fdatasync(fd) < 0 ? -errno : 0;
}

int sys_fallocate(int fd, off_t size)
{
	int done, code = sys_fault("fallocate");

	if (code < 0 && code != -EINTR)
		return code;
	do
		done = fallocate(fd, 0, 0, size);
	while (done < 0 && errno == EINTR);
	return done < 0 ? -errno : 0;
}

int sys_ftruncate(int fd, off_t size)
{
	int code = sys_fault("ftruncate");

	if (code < 0)
		return code;
	return ftruncate(fd, size) < 0 ? -errno : 0;
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
	int code = sys_fault("fstat");

	if (code < 0)
		return code;
	return fstat(fd, ret) < 0 ? -errno : 0;
}

int sys_fstatat(int dir_fd, const char *path, struct stat *ret)
{
	int code = sys_fault("fstatat");

	if (code < 0)
		return code;
	return fstatat(dir_fd, path, ret, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

int sys_mkdirat(int dir_fd, const char *path, mode_t mode)
{
	int code = sys_fault("mkdir");

	if (code < 0)
		return code;
	return mkdirat(dir_fd, path, mode) < 0 ? -errno : 0;
}

int sys_unlinkat(int dir_fd, const char *path)
{
	int code = sys_fault("unlink");

	if (code < 0)
		return code;
	return unlinkat(dir_fd, path, 0) < 0 ? -errno : 0;
}

int sys_renameat(int dir_fd, const char *from, const char *to)
{
	int code = sys_fault("rename");

	if (code < 0)
		return code;
	return renameat(dir_fd, from, dir_fd, to) < 0 ? -errno : 0;
}

/* Where the file system knows no flags (network ones): a link never replaces either. A death
 * between the two calls leaves both names; the temporary one goes at the next start. */
static int link_noreplace(int dir_fd, const char *from, const char *to)
{
	if (linkat(dir_fd, from, dir_fd, to, 0) < 0)
		return -errno;
	if (unlinkat(dir_fd, from, 0) == 0)
		return 0;
	int code = -errno;

	unlinkat(dir_fd, to, 0);
	return code;
}

int sys_renameat_noreplace(int dir_fd, const char *from, const char *to)
{
	int code = sys_fault("rename");

	if (code == 0)
		code = renameat2(dir_fd, from, dir_fd, to, RENAME_NOREPLACE) < 0 ? -errno : 0;
	if (code == -EINVAL || code == -ENOSYS)
		return link_noreplace(dir_fd, from, to);
	return code;
}
