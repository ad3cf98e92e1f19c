/* P1 on disks with a volatile cache, without a virtual machine: checkpoints are saved on a file
 * system whose disk is a file that QEMU's storage daemon exports (FUSE) and logs, and every state
 * that a lost power can leave of it is looked at (replay.h). Then again with one of the syncs of a
 * save left out: which of them a file system needs is found out, not believed. */
#include "tests/vm/disk.h"
#include "tests/vm/replay.h"

#include "base/clock.h"
#include "tests/crash/loop.h"
#include "tests/unit/store_fixture.h"

#include "tests/lacks.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>

#define STATES 24
#define STATES_FULL 400
#define DISK_MIB 192
#define FS_MIB "191M" /* the test marks the end of the disk, behind the file system */
#define LOG_MIB 2048
#define SAVES 3 /* that are logged, after one that is not */
#define SECTOR 512
#define EXPORT_TRIES 600
#define EXPORT_US 20000
#define SYNCS_MAX 16

/* The first sync of a save is that of its file, the second that of its folder. */
#define FILE_SYNC (1u << 1)
#define FOLDER_SYNC (1u << 2)

static const struct disk_fs file_systems[] = {
	{.name = "ext4", .type = "ext4", .options = "", .make = {"mkfs.ext4", "-q", "-F", NULL}},
	/* Each inode in a block of its own: else the sync of one writes others as well. */
	{.name = "ext4 without a journal",
		.type = "ext4",
		.options = "",
		.make = {"mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-b", "4096", "-I", "4096",
			"-N", "256", NULL},
		.check = true,
		.needs = FILE_SYNC | FOLDER_SYNC},
	{.name = "btrfs",
		.type = "btrfs",
		.options = "",
		.make = {"mkfs.btrfs", "-q", "-f", NULL},
		.needs = FILE_SYNC},
};
#define FS_COUNT (sizeof(file_systems) / sizeof(file_systems[0]))

static const char *lack;
static char prepared[FS_COUNT][DISK_PATH_MAX]; /* disks with a run that has one checkpoint */

static bool full(void)
{
	return getenv("CKPTD_FULL") != NULL;
}

/* -- a logged disk -- */

struct logged {
	pid_t daemon;
	char disk[DISK_PATH_MAX], log[DISK_PATH_MAX], exported[DISK_PATH_MAX],
		folder[DISK_PATH_MAX];
};

static _Noreturn void become_daemon(const struct logged *logged)
{
	char data[DISK_PATH_MAX + 64], log[DISK_PATH_MAX + 64], export[DISK_PATH_MAX + 96];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(data, sizeof(data), "driver=file,filename=%s,node-name=data", logged->disk);
	snprintf(log, sizeof(log), "driver=file,filename=%s,node-name=log", logged->log);
	snprintf(export, sizeof(export), "type=fuse,id=run,node-name=run,mountpoint=%s,writable=on",
		logged->exported);
	execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", data, "--blockdev", log,
		"--blockdev",
		"driver=blklogwrites,node-name=run,file=data,log=log,log-sector-size=512,"
		"log-super-update-interval=1",
		"--export", export, (char *)NULL);
	_exit(127);
}

static void logged_open(struct logged *logged, const struct disk_fs *fs)
{
	struct stat empty, stat_now;

	disk_path("logged", logged->disk);
	disk_path("log", logged->log);
	disk_path("exported", logged->exported);
	disk_path("inner", logged->folder);
	assert_true(loop_clone(prepared[fs - file_systems], logged->disk));
	assert_true(loop_make_file(logged->log, LOG_MIB));
	assert_true(loop_make_file(logged->exported, 0));
	assert_int_equal(stat(logged->exported, &empty), 0);
	logged->daemon = fork();
	assert_true(logged->daemon >= 0);
	if (logged->daemon == 0)
		become_daemon(logged);
	for (int i = 0; i < EXPORT_TRIES; i++) {
		assert_int_equal(stat(logged->exported, &stat_now), 0);
		if (stat_now.st_dev != empty.st_dev)
			break;
		usleep(EXPORT_US);
	}
	assert_true(stat_now.st_dev != empty.st_dev);
	assert_true(loop_mount(logged->exported, logged->folder, fs->type, fs->options));
}

/* Says on the disk itself what was promised. */
static void logged_mark(const struct logged *logged, uint64_t step)
{
	static _Alignas(4096) char sector[SECTOR];
	int fd = open(logged->exported, O_WRONLY | O_CLOEXEC);
	off_t end = lseek(fd, 0, SEEK_END);

	memset(sector, 0, sizeof(sector));
	snprintf(sector, sizeof(sector), "%llu\n", (unsigned long long)step);
	assert_int_equal(pwrite(fd, sector, SECTOR, end - SECTOR), SECTOR);
	assert_int_equal(close(fd), 0);
}

static void logged_close(struct logged *logged)
{
	pid_t ended = 0;

	assert_true(loop_unmount(logged->folder));
	/* A signal between the daemon's look for one and its wait does not wake it. */
	for (int i = 0; ended == 0 && i < EXPORT_TRIES; i++) {
		kill(logged->daemon, SIGTERM);
		usleep(EXPORT_US);
		ended = waitpid(logged->daemon, NULL, WNOHANG);
	}
	assert_int_equal(ended, logged->daemon);
	assert_int_equal(unlink(logged->exported), 0);
	assert_int_equal(unlink(logged->disk), 0);
}

/* -- what is saved there -- */

/* The fixture's run is the one in folder. */
static void enter(struct fixture *fx, const char *folder, bool create)
{
	snprintf(fx->dir, sizeof(fx->dir), "%s/vm", folder);
	fx->run_fd = run_open_dir(fx->dir, create, &fx->err);
	assert_true(fx->run_fd >= 0);
	fx->fd = openat(fx->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fx->fd >= 0);
}

static void leave(struct fixture *fx)
{
	assert_int_equal(close(fx->fd), 0);
	assert_int_equal(close(fx->run_fd), 0);
}

/* In a process of its own, as the service does; how often the fault fired. */
static uint64_t save_apart(struct fixture *fx, uint64_t step, const char *fault)
{
	uint64_t *fired = mmap(
		NULL, sizeof(*fired), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid = fork();
	int status;

	assert_true(fired != MAP_FAILED && pid >= 0);
	if (pid == 0) {
		if (sys_fault_plan(fault) < 0)
			_exit(2);
		fixture_save(fx, 1, step);
		*fired = sys_fault_fired();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	uint64_t count = *fired;

	munmap(fired, sizeof(*fired));
	return count;
}

/* False when the fault never fired. */
static bool saves_logged(
	struct fixture *fx, const struct disk_fs *fs, const char *fault, char log[DISK_PATH_MAX])
{
	struct logged logged;
	uint64_t fired = 0;

	logged_open(&logged, fs);
	enter(fx, logged.folder, false);
	for (uint64_t i = 1; i <= SAVES; i++) {
		fired += save_apart(fx, 10 + 10 * i, fault);
		logged_mark(&logged, 10 + 10 * i);
	}
	leave(fx);
	logged_close(&logged);
	strcpy(log, logged.log);
	return fired > 0;
}

static void replay(
	const struct disk_fs *fs, const char *log, bool mutant, uint32_t states, struct replay *ret)
{
	char base[DISK_PATH_MAX];

	disk_path("base", base);
	assert_true(loop_clone(prepared[fs - file_systems], base));
	replay_run(log, base, fs, states, mutant, ret);
	assert_int_equal(unlink(base), 0);
	assert_int_equal(unlink(log), 0);
}

static void need_disks(void)
{
	if (lack != NULL)
		test_lacks(lack);
}

static void p1_nothing_verified_is_lost_on_any_file_system(void **state)
{
	char log[DISK_PATH_MAX];
	struct replay found;

	need_disks();
	for (const struct disk_fs *fs = file_systems; fs < file_systems + FS_COUNT; fs++) {
		saves_logged(*state, fs, NULL, log);
		replay(fs, log, false, full() ? STATES_FULL : STATES, &found);
		print_message("# %s: %u flushes, %u states, %u violations %s\n", fs->name,
			found.flushes, found.states, found.violations, found.first);
		assert_int_equal(found.promised, 10 + 10 * SAVES);
		assert_int_equal(found.violations, 0);
	}
}

/* A run in which each save leaves its sync `number` out. False when there is no such sync. */
static bool find_missing(
	struct fixture *fx, const struct disk_fs *fs, int number, struct replay *ret)
{
	char fault[32], log[DISK_PATH_MAX];
	bool fired;

	snprintf(fault, sizeof(fault), "fsync:%d:skip", number);
	fired = saves_logged(fx, fs, fault, log);
	replay(fs, log, true, STATES_FULL, ret);
	print_message("# %s, CKPTD_FAULT=%s: %s %u states %s\n", fs->name, fault,
		ret->violations > 0 ? "seen after" : "not seen in", ret->states, ret->first);
	return fired;
}

/* Each sync of a save that fs needs. On a journal none is: the data are on the disk since they were
 * read back from there, and any later sync commits all names before it; btrfs writes the new name
 * of a synced file with the next sync of any. tests/crash leaves each out in the weakest reading of
 * POSIX. */
static void expect_missed(struct fixture *fx, const struct disk_fs *fs)
{
	for (int number = 1; number < SYNCS_MAX; number++) {
		struct replay found;

		if ((fs->needs & 1u << number) == 0)
			continue;
		assert_true(find_missing(fx, fs, number, &found));
		assert_true(found.violations > 0);
	}
}

static void p1_each_sync_that_is_needed_is_missed(void **state)
{
	need_disks();
	for (const struct disk_fs *fs = file_systems; fs < file_systems + FS_COUNT; fs++)
		expect_missed(*state, fs);
}

/* -- the nest -- */

static void prepare(struct fixture *fx, const struct disk_fs *fs)
{
	const char *arguments[DISK_MAKE_MAX + 3];
	char folder[DISK_PATH_MAX], name[16];
	char *disk = prepared[fs - file_systems];
	uint32_t count = 0;

	snprintf(name, sizeof(name), "prepared-%d", (int)(fs - file_systems));
	disk_path(name, disk);
	disk_path("inner", folder);
	assert_true(loop_make_file(disk, DISK_MIB));
	for (; fs->make[count] != NULL; count++)
		arguments[count] = fs->make[count];
	if (strcmp(fs->type, "btrfs") == 0) {
		arguments[count++] = "-b";
		arguments[count++] = FS_MIB;
	}
	arguments[count++] = disk;
	if (strcmp(fs->type, "ext4") == 0)
		arguments[count++] = FS_MIB;
	arguments[count] = NULL;
	assert_true(loop_run(arguments));
	assert_true(loop_mount(disk, folder, fs->type, fs->options));
	enter(fx, folder, true);
	PASS(run_store(fx->run_fd, &fx->run, &fx->err));
	fixture_prepare(fx);
	fixture_save(fx, 1, 10);
	leave(fx);
	assert_true(loop_unmount(folder));
}

static const char *lacks(void)
{
	static const char *const programs[] = {"mkfs.xfs", "mkfs.ext4", "mkfs.btrfs", NULL};
	const char *const daemon[] = {"qemu-storage-daemon", "--version", NULL};
	const char *missing = loop_lacks(programs);

	if (missing != NULL)
		return missing;
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return "FUSE";
	return loop_run(daemon) ? NULL : daemon[0];
}

static int open_disks(void **state)
{
	const char *seed = getenv("CKPTD_TEST_SEED");
	unsigned number = seed != NULL ? (unsigned)strtoul(seed, NULL, 10) : (unsigned)time(NULL);
	struct fixture *fx;
	char path[DISK_PATH_MAX];

	fixture_setup_small(state);
	fx = *state;
	lack = lacks();
	if (lack != NULL)
		return 0;
	print_message("# CKPTD_TEST_SEED=%u\n", number);
	srand(number);
	disk_nest();
	disk_path("inner", path);
	assert_int_equal(mkdir(path, 0700), 0);
	fx->config.keep_last = 2;
	leave(fx);
	for (const struct disk_fs *fs = file_systems; fs < file_systems + FS_COUNT; fs++)
		prepare(fx, fs);
	return 0;
}

static int close_disks(void **state)
{
	disk_finish();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_nothing_verified_is_lost_on_any_file_system),
		cmocka_unit_test(p1_each_sync_that_is_needed_is_missed),
	};

	return cmocka_run_group_tests_name("replay", tests, open_disks, close_disks);
}
