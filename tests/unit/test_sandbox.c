/* What a confined process may no longer do, and what it still can. */
#include "base/landlock.h"
#include "base/sandbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void *nothing(void *context)
{
	return context;
}

/* The exit status: the number of the first thing that was not as it must be. */
static int confined(void)
{
	char *const args[] = {(char *)"true", NULL};
	pthread_t thread;
	int status;
	pid_t pid;

	if (sandbox_enter() < 0)
		return 1;
	if (execv("/bin/true", args) != -1 || errno != EPERM)
		return 2;
	if (socket(AF_UNIX, SOCK_STREAM, 0) != -1 || errno != EPERM)
		return 3;
	if (setuid(getuid()) != -1 || errno != EPERM)
		return 4;
	if (unshare(CLONE_NEWUSER) != -1 || errno != EPERM)
		return 5;
	if (syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL) != -1 ||
		errno != EPERM)
		return 5;
#ifndef __SANITIZE_ADDRESS__
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != -1 || errno != EPERM)
		return 6;
#endif
	/* A child is confined too. */
	pid = fork();
	if (pid == 0)
		_exit(execv("/bin/true", args) == -1 && errno == EPERM ? 0 : 1);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		return 9;
	if (pthread_create(&thread, NULL, nothing, NULL) != 0 || pthread_join(thread, NULL) != 0)
		return 7;
	if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 2)
		return 8;
	return 0;
}

static void a_confined_process_has_threads_and_no_programs(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(confined());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* -- files -- */

struct folders {
	char base[64], pictures[80], cache[80], other[80];
	int other_fd;
};

static int can_open(const char *folder, const char *name, int flags)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

/* The exit status, as above. */
static int closed(const struct folders *folders)
{
	const struct landlock_folder open_ones[] = {{folders->pictures, LANDLOCK_READ},
		{folders->cache, LANDLOCK_WRITE}, {"/nonexistent/folder", LANDLOCK_READ}};
	char from[128], to[128], byte;
	pthread_t thread;
	int status;
	pid_t pid;

	if (landlock_enter(open_ones, 3) < 0)
		return 1;
	if (can_open(folders->pictures, "a", O_RDONLY) != 0 ||
		can_open(folders->pictures, "a", O_WRONLY) != -EACCES ||
		can_open(folders->pictures, "a", O_RDONLY | O_TRUNC) != -EACCES ||
		can_open(folders->pictures, "b", O_WRONLY | O_CREAT) != -EACCES)
		return 2;
	snprintf(from, sizeof(from), "%s/b", folders->cache);
	snprintf(to, sizeof(to), "%s/c", folders->cache);
	if (can_open(folders->cache, "b", O_RDWR | O_CREAT) != 0 || rename(from, to) != 0 ||
		can_open(folders->cache, "c", O_WRONLY | O_TRUNC) != 0 || unlink(to) != 0)
		return 3;
	if (can_open(folders->other, "a", O_RDONLY) != -EACCES ||
		can_open("/etc", "passwd", O_RDONLY) != -EACCES ||
		can_open("/proc", "1/environ", O_RDONLY) != -EACCES)
		return 4;
#ifndef __SANITIZE_ADDRESS__
	if (can_open("/proc/self", "status", O_RDONLY) != -EACCES)
		return 4;
#endif
	/* Neither by a folder that is open, nor by a link. */
	if (openat(folders->other_fd, "a", O_RDONLY) != -1 || errno != EACCES)
		return 5;
	snprintf(from, sizeof(from), "%s/a", folders->other);
	if (link(from, to) != -1 || symlink(from, to) != -1 || mkdir(to, 0700) != -1)
		return 6;
	if (read(folders->other_fd, &byte, 0) != -1 || errno != EISDIR)
		return 7;
	pid = fork();
	if (pid == 0)
		_exit(can_open(folders->other, "a", O_RDONLY) == -EACCES ? 0 : 1);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		return 8;
	return pthread_create(&thread, NULL, nothing, NULL) != 0 ? 9 : 0;
}

static void *wait_for_pipe(void *context)
{
	char byte;

	return read(*(int *)context, &byte, 1) == 1 ? context : NULL;
}

/* One that lives would not be confined. */
static int closed_beside_a_thread(const struct folders *folders)
{
	const struct landlock_folder one = {folders->cache, LANDLOCK_WRITE};
	pthread_t thread;
	int ends[2];

	if (pipe(ends) < 0 || pthread_create(&thread, NULL, wait_for_pipe, &ends[0]) != 0)
		return 1;
	if (landlock_enter(&one, 1) != -EBUSY)
		return 2;
	if (can_open(folders->other, "a", O_RDONLY) != 0)
		return 3;
	if (write(ends[1], "x", 1) != 1 || pthread_join(thread, NULL) != 0)
		return 4;
	if (landlock_enter(&one, 1) != 0)
		return 5;
	return can_open(folders->other, "a", O_RDONLY) == -EACCES ? 0 : 6;
}

static void put_file(const char *folder)
{
	assert_int_equal(mkdir(folder, 0700), 0);
	assert_int_equal(can_open(folder, "a", O_WRONLY | O_CREAT), 0);
}

static void in_a_child(int (*test)(const struct folders *folders))
{
	struct folders folders = {.base = "/tmp/ckptd-sandbox-XXXXXX"};
	char command[128];
	int status;
	pid_t pid;

	assert_non_null(mkdtemp(folders.base));
	snprintf(folders.pictures, sizeof(folders.pictures), "%s/pictures", folders.base);
	snprintf(folders.cache, sizeof(folders.cache), "%s/cache", folders.base);
	snprintf(folders.other, sizeof(folders.other), "%s/other", folders.base);
	put_file(folders.pictures);
	put_file(folders.cache);
	put_file(folders.other);
	folders.other_fd = open(folders.other, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(folders.other_fd >= 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(test(&folders));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(folders.other_fd);
	snprintf(command, sizeof(command), "rm -r %s", folders.base);
	assert_int_equal(system(command), 0);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static bool has_landlock(void)
{
	return syscall(SYS_landlock_create_ruleset, NULL, 0, 1) > 0;
}

static void p10_only_the_named_folders_stay_open(void **state)
{
	if (!has_landlock())
		skip();
	in_a_child(closed);
}

static void p10_beside_a_thread_it_refuses(void **state)
{
	if (!has_landlock())
		skip();
	in_a_child(closed_beside_a_thread);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_confined_process_has_threads_and_no_programs),
		cmocka_unit_test(p10_only_the_named_folders_stay_open),
		cmocka_unit_test(p10_beside_a_thread_it_refuses),
	};

	return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
