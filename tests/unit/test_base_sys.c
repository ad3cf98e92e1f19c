/* The seam for faults: a plan makes exactly the named call fail, tear, lie, stop or kill. Without
 * this working, no fault test of the store means anything (P1, P7). */
#include "base/file.h"
#include "base/sys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/ckptd-test-sys-XXXXXX";
static int dir_fd = -1;

static int setup(void **unused)
{
	if (!mkdtemp(folder))
		return -1;
	dir_fd = sys_openat(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY, 0);
	return dir_fd < 0 ? -1 : 0;
}

static int teardown(void **unused)
{
	static const char *const names[] = {"file", "other"};

	sys_fault_plan(NULL);
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		unlinkat(dir_fd, names[i], 0);
	sys_close(dir_fd);
	return rmdir(folder);
}

static int clear_plan(void **unused)
{
	return sys_fault_plan(NULL);
}

static int open_file(void)
{
	int fd = sys_openat(dir_fd, "file", O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void test_plans_that_do_not_parse(void **unused)
{
	static const char *const bad[] = {"fsync", "fsync:1", "fsync:1:", "fsync:1:EWHAT",
		"fsync:0:EIO", "fsync:-1:EIO", "fsync:x:EIO", "fsync: 1:EIO", ":1:EIO",
		"fsync:1:EIO,open", "fsync:1:EIO:2"};
	char many[17 * 12 + 1] = "";

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(sys_fault_plan(bad[i]), -EINVAL);
	for (int i = 0; i < 17; i++)
		strcat(many, "fsync:1:EIO,");
	assert_int_equal(sys_fault_plan(many), -EINVAL);
	assert_int_equal(sys_fault("fsync"), 0); /* a refused plan leaves none */
}

static void test_the_nth_hit_fails(void **unused)
{
	assert_false(sys_fault_planned());
	assert_int_equal(sys_fault_plan("save.synced:3:EIO,fsync:1:ENOSPC,open:*:EMFILE"), 0);
	assert_true(sys_fault_planned());
	assert_int_equal(sys_fault("save.synced"), 0);
	assert_int_equal(sys_fault("save.written"), 0);
	assert_int_equal(sys_fault("save.synced"), 0);
	assert_int_equal(sys_fault("save.synced"), -EIO);
	assert_int_equal(sys_fault("save.synced"), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(sys_openat(dir_fd, "file", O_RDONLY, 0), -EMFILE);
	assert_int_equal(sys_fsync(dir_fd), -ENOSPC);
	assert_int_equal(sys_fsync(dir_fd), 0);
}

static void test_every_operation_has_its_point(void **unused)
{
	struct stat st;
	int fd = open_file();
	char byte = 0;

	assert_int_equal(sys_fault_plan("close:1:EIO,pread:1:EIO,pwrite:1:EIO,fdatasync:1:EIO,"
					"fallocate:1:ENOSPC,ftruncate:1:EIO,fstat:1:EIO,"
					"fstatat:1:EACCES,mkdir:1:EROFS,unlink:1:EIO,"
					"rename:1:EIO,rename:2:EEXIST"),
		0);
	assert_int_equal(sys_pread(fd, &byte, 1, 0), -EIO);
	assert_int_equal(sys_pwrite(fd, &byte, 1, 0), -EIO);
	assert_int_equal(sys_fdatasync(fd), -EIO);
	assert_int_equal(sys_fallocate(fd, 4096), -ENOSPC);
	assert_int_equal(sys_ftruncate(fd, 0), -EIO);
	assert_int_equal(sys_fstat(fd, &st), -EIO);
	assert_int_equal(sys_fstatat(dir_fd, "file", &st), -EACCES);
	assert_int_equal(sys_mkdirat(dir_fd, "made", 0700), -EROFS);
	assert_int_equal(sys_unlinkat(dir_fd, "file"), -EIO);
	assert_int_equal(sys_renameat(dir_fd, "file", "other"), -EIO);
	assert_int_equal(sys_renameat_noreplace(dir_fd, "file", "other"), -EEXIST);
	assert_int_equal(sys_fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 0); /* none of them reached the file */
	assert_int_equal(sys_fstatat(dir_fd, "file", &st), 0);
	assert_int_equal(sys_close(fd), -EIO);
	assert_int_equal(sys_fstat(fd, &st), -EBADF); /* closed all the same, as Linux does */
}

static void test_short_transfers_are_completed(void **unused)
{
	static const char text[] = "0123456789";
	char read[sizeof(text)] = "";
	int fd = open_file();

	assert_int_equal(sys_fault_plan("pwrite:1:short,pread:2:short"), 0);
	assert_int_equal(sys_pwrite(fd, text, 10, 0), 5);
	assert_int_equal(sys_fault_plan("pwrite:1:short,pread:1:short"), 0);
	assert_int_equal(file_write_exact(fd, text, sizeof(text), 0), 0);
	assert_int_equal(file_read_exact(fd, read, sizeof(text), 0), 0);
	assert_string_equal(read, text);
	assert_int_equal(sys_close(fd), 0);
}

static void test_lies_of_the_device(void **unused)
{
	uint8_t zeros[64] = {0}, read[64];
	int fd = open_file(), flipped = 0;

	assert_int_equal(file_write_exact(fd, zeros, sizeof(zeros), 0), 0);
	assert_int_equal(sys_fault_plan("pread:1:flip,pread:2:eof"), 0);
	assert_int_equal(file_read_exact(fd, read, sizeof(read), 0), 0);
	for (size_t i = 0; i < sizeof(read); i++)
		flipped += __builtin_popcount(read[i]);
	assert_int_equal(flipped, 1);
	assert_int_equal(file_read_exact(fd, read, sizeof(read), 0), -ENODATA);
	assert_int_equal(file_read_exact(fd, read, sizeof(read), 0), 0);
	assert_memory_equal(read, zeros, sizeof(read));
	assert_int_equal(sys_close(fd), 0);
}

static void test_interruptions_are_retried(void **unused)
{
	char byte = 7;
	int fd = open_file();

	assert_int_equal(sys_fault_plan("pread:*:EINTR,pwrite:*:EINTR,open:1:EINTR"), 0);
	assert_int_equal(sys_pwrite(fd, &byte, 1, 0), 1);
	assert_int_equal(sys_pread(fd, &byte, 1, 0), 1);
	assert_int_equal(sys_close(fd), 0);
	fd = sys_openat(dir_fd, "file", O_RDONLY, 0);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(sys_close(fd), 0);
}

static void test_rename_that_does_not_replace(void **unused)
{
	int fd = open_file();
	struct stat st;

	assert_int_equal(sys_close(fd), 0);
	assert_int_equal(sys_renameat_noreplace(dir_fd, "file", "other"), 0);
	assert_int_equal(sys_fstatat(dir_fd, "file", &st), -ENOENT);
	fd = open_file();
	assert_int_equal(sys_close(fd), 0);
	assert_int_equal(sys_renameat_noreplace(dir_fd, "file", "other"), -EEXIST);
	assert_int_equal(sys_renameat(dir_fd, "file", "other"), 0);
	assert_int_equal(sys_unlinkat(dir_fd, "other"), 0);
}

/* This program again, with a plan in its environment: CKPTD_FAULT is read on first use. */
static int run_probe(const char *plan)
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		setenv("CKPTD_FAULT", plan, 1);
		close(STDERR_FILENO);
		execl("/proc/self/exe", "probe", "--probe", (char *)NULL);
		_exit(99);
	}
	assert_true(waitpid(child, &status, 0) == child);
	return status;
}

static void test_the_plan_of_the_environment(void **unused)
{
	int status = run_probe("probe:2:EIO");

	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EIO);
	status = run_probe("");
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	status = run_probe("probe:2:kill");
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	/* A test that believes it injects a fault must not run without one. */
	status = run_probe("probe:2:EWHAT");
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void test_stop_stops(void **unused)
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		sys_fault_plan("probe:1:stop");
		_exit(sys_fault("probe") == 0 ? 3 : 4);
	}
	assert_true(waitpid(child, &status, WUNTRACED) == child);
	assert_true(WIFSTOPPED(status));
	kill(child, SIGCONT);
	assert_true(waitpid(child, &status, 0) == child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

/* -- what lies -- */

static void test_rot_reaches_the_disk_in_silence(void **unused)
{
	char got[4];
	int fd = open_file();

	assert_int_equal(sys_fault_plan("pwrite:1:rot"), 0);
	assert_int_equal(sys_pwrite(fd, "abcd", 4, 0), 4);
	assert_int_equal(sys_fault_fired(), 1);
	assert_int_equal(sys_pread(fd, got, 4, 0), 4);
	assert_memory_equal(got, "abbd", 4);
	sys_close(fd);
}

static void test_skipped_calls_say_success(void **unused)
{
	struct stat stat;
	int fd = open_file();

	assert_int_equal(
		sys_fault_plan("pwrite:1:skip,fsync:1:skip,rename:1:skip,unlink:1:skip"), 0);
	assert_int_equal(sys_pwrite(fd, "abcd", 4, 0), 4);
	assert_int_equal(sys_fstat(fd, &stat), 0);
	assert_int_equal(stat.st_size, 0);
	assert_int_equal(sys_fsync(fd), 0);
	assert_int_equal(sys_renameat(dir_fd, "file", "other"), 0);
	assert_int_equal(sys_unlinkat(dir_fd, "file"), 0);
	assert_int_equal(sys_fstatat(dir_fd, "file", &stat), 0);
	assert_int_equal(sys_fault_fired(), 4);
	sys_close(fd);
}

static void test_databases_have_points_of_their_own(void **unused)
{
	int fd = open_file();

	assert_int_equal(sys_fault_plan("db.pwrite:1:EIO,fsync:1:EIO"), 0);
	assert_int_equal(sys_pwrite(fd, "a", 1, 0), 1);
	assert_int_equal(sys_db_pwrite(fd, "a", 1, 0), -EIO);
	assert_int_equal(sys_db_fsync(fd), 0);
	assert_int_equal(sys_fsync(fd), -EIO);
	sys_close(fd);
}

/* -- traces -- */

struct heard {
	int count;
	struct sys_op ops[16];
};

static void hear(void *context, const struct sys_op *op)
{
	struct heard *heard = context;

	assert_true(heard->count < 16);
	heard->ops[heard->count++] = *op;
}

static void test_a_tracer_hears_what_was_done(void **unused)
{
	static const enum sys_op_kind expected[] = {SYS_OP_OPEN, SYS_OP_WRITE, SYS_OP_SYNC,
		SYS_OP_SYNC, SYS_OP_CLOSE, SYS_OP_RENAME, SYS_OP_UNLINK};
	struct heard heard = {0};
	int fd;

	/* The second write is skipped, the third fails: nothing was done. */
	assert_int_equal(sys_fault_plan("pwrite:2:skip,pwrite:3:EIO,fsync:2:EIO"), 0);
	sys_trace_set(hear, &heard);
	fd = open_file();
	sys_pwrite(fd, "abcd", 4, 8);
	sys_pwrite(fd, "abcd", 4, 8);
	sys_pwrite(fd, "abcd", 4, 8);
	sys_fsync(fd);
	sys_fsync(fd);
	sys_close(fd);
	sys_renameat(dir_fd, "file", "other");
	sys_unlinkat(dir_fd, "other");
	sys_trace_set(NULL, NULL);
	assert_int_equal(sys_unlinkat(dir_fd, "other"), -ENOENT);
	assert_int_equal(heard.count, sizeof(expected) / sizeof(*expected));
	for (int i = 0; i < heard.count; i++)
		assert_int_equal(heard.ops[i].kind, expected[i]);
	assert_int_equal(heard.ops[1].offset, 8);
	assert_int_equal(heard.ops[1].size, 4);
	assert_int_equal(heard.ops[2].result, 0);
	assert_int_equal(heard.ops[3].result, -EIO);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_plans_that_do_not_parse, clear_plan),
		cmocka_unit_test_teardown(test_the_nth_hit_fails, clear_plan),
		cmocka_unit_test_teardown(test_every_operation_has_its_point, clear_plan),
		cmocka_unit_test_teardown(test_short_transfers_are_completed, clear_plan),
		cmocka_unit_test_teardown(test_lies_of_the_device, clear_plan),
		cmocka_unit_test_teardown(test_interruptions_are_retried, clear_plan),
		cmocka_unit_test_teardown(test_rename_that_does_not_replace, clear_plan),
		cmocka_unit_test_teardown(test_rot_reaches_the_disk_in_silence, clear_plan),
		cmocka_unit_test_teardown(test_skipped_calls_say_success, clear_plan),
		cmocka_unit_test_teardown(test_databases_have_points_of_their_own, clear_plan),
		cmocka_unit_test_teardown(test_a_tracer_hears_what_was_done, clear_plan),
		cmocka_unit_test(test_the_plan_of_the_environment),
		cmocka_unit_test(test_stop_stops),
	};

	if (argc == 2 && strcmp(argv[1], "--probe") == 0) {
		sys_fault("probe");
		return -sys_fault("probe");
	}
	return cmocka_run_group_tests(tests, setup, teardown);
}
