/* See base/landlock.h. The only user of these system calls; glibc has no functions for them, and
 * headers may be older than the kernel. */
#include "base/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ABI_REFER 2
#define ABI_TRUNCATE 3
#define ABI_TCP 4
#define ABI_IOCTL 5
#define ABI_SCOPES 6

#define FS_ABI_1 ((UINT64_C(1) << 13) - 1)
#define FS_REFER (UINT64_C(1) << 13)
#define FS_TRUNCATE (UINT64_C(1) << 14)
#define FS_IOCTL (UINT64_C(1) << 15)
#define TCP_BIND_AND_CONNECT UINT64_C(3)
#define SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS UINT64_C(3)

#define READ_FILES LANDLOCK_ACCESS_FS_READ_FILE
#define WRITE_FILES (LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE)
#define READ_FOLDERS (READ_FILES | LANDLOCK_ACCESS_FS_READ_DIR)
#define WRITE_FOLDERS                                                                              \
	(READ_FOLDERS | WRITE_FILES | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REMOVE_FILE)

#define THREAD_WAIT_NS 1000000
#define THREAD_WAITS 500

/* The form of ABI 6; an older kernel takes it as long as what it does not know is zero. */
struct ruleset {
	uint64_t fs, tcp, scopes;
};

/* A thread that was joined may still be listed for a moment. */
static bool is_alone(void)
{
	const struct timespec wait = {.tv_nsec = THREAD_WAIT_NS};
	struct stat tasks;

	for (int i = 0; i < THREAD_WAITS; i++) {
		if (stat("/proc/self/task", &tasks) < 0)
			return false;
		if (tasks.st_nlink == 3) /* ".", its name, and one thread */
			return true;
		nanosleep(&wait, NULL);
	}
	return false;
}

static struct ruleset ruleset_of(long abi)
{
	struct ruleset ret = {.fs = FS_ABI_1};

	if (abi >= ABI_REFER)
		ret.fs |= FS_REFER;
	if (abi >= ABI_TRUNCATE)
		ret.fs |= FS_TRUNCATE;
	if (abi >= ABI_TCP)
		ret.tcp = TCP_BIND_AND_CONNECT;
	if (abi >= ABI_IOCTL)
		ret.fs |= FS_IOCTL;
	if (abi >= ABI_SCOPES)
		ret.scopes = SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS;
	return ret;
}

static int allow(int ruleset, uint64_t handled, const struct landlock_folder *folder)
{
	int fd = open(folder->path, O_PATH | O_CLOEXEC), r = 0;
	struct landlock_path_beneath_attr rule = {.parent_fd = fd,
		.allowed_access = folder->access == LANDLOCK_WRITE ? WRITE_FOLDERS : READ_FOLDERS};
	struct stat stat;

	if (fd < 0)
		return 0;
	rule.allowed_access &= handled;
	if (fstat(fd, &stat) == 0 && !S_ISDIR(stat.st_mode))
		rule.allowed_access &= READ_FILES | WRITE_FILES;
	if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		r = -errno;
	close(fd);
	return r;
}

int landlock_enter(const struct landlock_folder *folders, size_t count)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	struct ruleset ruleset;
	int fd, r = 0;

	if (abi < 0)
		return -errno;
	if (!is_alone())
		return -EBUSY;
	ruleset = ruleset_of(abi);
	fd = (int)syscall(SYS_landlock_create_ruleset, &ruleset, sizeof(ruleset), 0);
	if (fd < 0)
		return -errno;
	for (size_t i = 0; r == 0 && i < count; i++)
		r = allow(fd, ruleset.fs, &folders[i]);
#ifdef __SANITIZE_ADDRESS__
	/* The leak check looks for its threads there. */
	if (r == 0)
		r = allow(fd, ruleset.fs, &(struct landlock_folder){"/proc", LANDLOCK_READ});
#endif
	if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		r = -errno;
	if (r == 0 && syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		r = -errno;
	close(fd);
	return r;
}
