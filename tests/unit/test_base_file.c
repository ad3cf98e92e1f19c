/* Durable replacement of whole files: at every fault and every death the old or the new content
 * stands, whole (P1, P7). */
#include "base/file.h"
#include "base/sys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/ckptd-test-file-XXXXXX";
static int dir_fd = -1;

/* Files in the folder; removes them when told. */
static int count_files(bool removing)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	int count = 0;

	assert_non_null(dir);
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
			count++;
			if (removing && unlinkat(dir_fd, entry->d_name, 0) < 0)
				unlinkat(dir_fd, entry->d_name, AT_REMOVEDIR);
		}
	closedir(dir);
	return count;
}

static int setup(void **unused)
{
	if (!mkdtemp(folder))
		return -1;
	dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir_fd < 0 ? -1 : 0;
}

static int teardown(void **unused)
{
	close(dir_fd);
	return rmdir(folder);
}

static int clean(void **unused)
{
	sys_fault_plan(NULL);
	count_files(true);
	return 0;
}

static void assert_content(const char *name, const char *expected)
{
	char *data;
	size_t size;

	assert_int_equal(file_read_all(dir_fd, name, 100, &data, &size), 0);
	assert_int_equal(size, strlen(expected));
	assert_string_equal(data, expected);
	free(data);
}

static void test_replace_and_create(void **unused)
{
	struct stat st;

	assert_int_equal(file_create(dir_fd, "f", "one", 3, 0640), 0);
	assert_content("f", "one");
	assert_int_equal(file_create(dir_fd, "f", "two", 3, 0640), -EEXIST);
	assert_content("f", "one");
	assert_int_equal(file_replace(dir_fd, "f", "three", 5, 0600), 0);
	assert_content("f", "three");
	assert_int_equal(fstatat(dir_fd, "f", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(file_replace(dir_fd, "empty", "", 0, 0600), 0);
	assert_content("empty", "");
	assert_int_equal(count_files(false), 2);
}

static void test_p7_a_fault_leaves_the_old_file(void **unused)
{
	static const char *const plans[] = {"open:1:ENOSPC", "pwrite:1:EIO", "pwrite:1:ENOSPC",
		"fsync:1:EIO", "close:1:EIO", "rename:1:EIO"};
	static const int codes[] = {-ENOSPC, -EIO, -ENOSPC, -EIO, -EIO, -EIO};

	assert_int_equal(file_replace(dir_fd, "f", "old", 3, 0600), 0);
	for (size_t i = 0; i < sizeof(plans) / sizeof(*plans); i++) {
		sys_fault_plan(plans[i]);
		assert_int_equal(file_replace(dir_fd, "f", "new", 3, 0600), codes[i]);
		sys_fault_plan(NULL);
		assert_content("f", "old");
		assert_int_equal(count_files(false), 1); /* the temporary is gone */
	}
	/* Only the last fsync: the new file stands, but the caller hears of it. */
	sys_fault_plan("fsync:2:EIO");
	assert_int_equal(file_replace(dir_fd, "f", "new", 3, 0600), -EIO);
	sys_fault_plan(NULL);
	assert_content("f", "new");
}

static void test_p1_a_death_leaves_one_whole_file(void **unused)
{
	static const char *const plans[] = {"open:1:kill", "pwrite:1:kill",
		"pwrite:1:short,pwrite:2:kill", "fsync:1:kill", "close:1:kill", "rename:1:kill",
		"fsync:2:kill"};
	size_t plan_count = sizeof(plans) / sizeof(*plans);

	for (size_t i = 0; i < plan_count; i++) {
		int status;

		assert_int_equal(file_replace(dir_fd, "f", "old", 3, 0600), 0);
		pid_t child = fork();
		assert_true(child >= 0);
		if (child == 0) {
			sys_fault_plan(plans[i]);
			file_replace(dir_fd, "f", "newer", 5, 0600);
			_exit(0);
		}
		assert_true(waitpid(child, &status, 0) == child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		assert_content("f", i == plan_count - 1 ? "newer" : "old");
		count_files(true);
	}
}

static void test_a_leftover_temporary_is_no_obstacle(void **unused)
{
	char name[64];

	snprintf(name, sizeof(name), ".f.tmp-%d", (int)getpid());
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "torn, and longer", 16), 16);
	close(fd);
	assert_int_equal(file_replace(dir_fd, "f", "new", 3, 0600), 0);
	assert_content("f", "new");
	assert_int_equal(count_files(false), 1);
}

static void test_p9_what_is_no_plain_file_is_refused(void **unused)
{
	char *data;
	size_t size;

	assert_int_equal(file_read_all(dir_fd, "missing", 10, &data, &size), -ENOENT);
	assert_int_equal(file_replace(dir_fd, "f", "0123456789", 10, 0600), 0);
	assert_int_equal(file_read_all(dir_fd, "f", 9, &data, &size), -EFBIG);
	assert_int_equal(symlinkat("f", dir_fd, "link"), 0);
	assert_int_equal(file_read_all(dir_fd, "link", 10, &data, &size), -ELOOP);
	assert_int_equal(mkfifoat(dir_fd, "fifo", 0600), 0);
	assert_int_equal(file_read_all(dir_fd, "fifo", 10, &data, &size), -EINVAL);
	assert_int_equal(mkdirat(dir_fd, "dir", 0700), 0);
	assert_int_equal(file_read_all(dir_fd, "dir", 10, &data, &size), -EINVAL);
	sys_fault_plan("pread:1:eof");
	assert_int_equal(file_read_all(dir_fd, "f", 10, &data, &size), -ENODATA);
}

static void test_nothing_is_replaced_where_rename_knows_no_flags(void **unused)
{
	char *data;
	size_t size;

	assert_int_equal(sys_fault_plan("rename:*:EINVAL"), 0);
	assert_int_equal(file_create(dir_fd, "f", "one", 3, 0640), 0);
	assert_int_equal(file_create(dir_fd, "f", "two", 3, 0640), -EEXIST);
	assert_int_equal(sys_fault_plan(NULL), 0);
	assert_int_equal(file_read_all(dir_fd, "f", 9, &data, &size), 0);
	assert_string_equal(data, "one");
	free(data);
	assert_int_equal(count_files(false), 1);
}

static void test_folders_are_made_once(void **unused)
{
	struct stat st;
	int fd = file_open_dir(dir_fd, "made", 0750);

	assert_true(fd >= 0);
	assert_int_equal(file_sync_dir(fd), 0);
	close(fd);
	assert_int_equal(fstatat(dir_fd, "made", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, 0750);
	fd = file_open_dir(dir_fd, "made", 0700);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(file_open_dir(dir_fd, "no/such", 0700), -ENOENT);
	assert_int_equal(file_replace(dir_fd, "f", "x", 1, 0600), 0);
	assert_int_equal(file_open_dir(dir_fd, "f", 0700), -ENOTDIR);
	sys_fault_plan("fsync:1:EIO");
	assert_int_equal(file_open_dir(dir_fd, "other", 0700), -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_replace_and_create, clean),
		cmocka_unit_test_teardown(test_p7_a_fault_leaves_the_old_file, clean),
		cmocka_unit_test_teardown(test_p1_a_death_leaves_one_whole_file, clean),
		cmocka_unit_test_teardown(test_a_leftover_temporary_is_no_obstacle, clean),
		cmocka_unit_test_teardown(test_p9_what_is_no_plain_file_is_refused, clean),
		cmocka_unit_test_teardown(
			test_nothing_is_replaced_where_rename_knows_no_flags, clean),
		cmocka_unit_test_teardown(test_folders_are_made_once, clean),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
