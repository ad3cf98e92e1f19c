/* P1, P7, P8 on real file systems: a run saves, rolls back and keeps on ext4, xfs and btrfs, and
 * at random moments the disk under it is copied, with what the kernel had submitted and nothing of
 * its cache: a power cut. Each copy is mounted, and a start must find what had been promised.
 *
 * The disk is a file on an xfs that shares blocks, so a copy takes milliseconds. That the test sees
 * something is shown by leaving the syncs out. */
#include "tests/crash/loop.h"
#include "tests/unit/store_fixture.h"

#include "tests/lacks.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#define CUTS 12
#define CUTS_FULL 400
#define MUTANT_CUTS 60
#define OPERATIONS_MAX 100000
#define ROUND 12 /* operations: see kind_of */
#define STACK_MAX 8
#define NEST_MIB 6144
#define DISK_MIB 512
#define PAUSE_US 30000 /* at most, between two cuts */

static const char *const programs[] = {"mkfs.xfs", "mkfs.ext4", "mkfs.btrfs", NULL};

struct filesystem {
	const char *name;
	const char *const make[6]; /* the image follows */
	const char *options;       /* of a copy's mount */
};
static const struct filesystem filesystems[] = {
	{"ext4", {"mkfs.ext4", "-q", "-F", NULL}, ""},
	{"xfs", {"mkfs.xfs", "-q", "-f", NULL}, "nouuid"},
	{"btrfs", {"mkfs.btrfs", "-q", "-f", NULL}, ""},
};

/* -- syncs, ours and SQLite's own -- */

static bool sync_nothing;

__attribute__((visibility("default"))) int fsync(int fd)
{
	return sync_nothing ? 0 : (int)syscall(SYS_fsync, fd);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
	return sync_nothing ? 0 : (int)syscall(SYS_fdatasync, fd);
}

/* -- what is done, and what is promised by it -- */

struct point {
	uint32_t branch;
	uint64_t step;
};

/* After so many operations: the newest ones on the line (the last is the newest), and what is
 * kept. */
struct model {
	struct point line[STACK_MAX];
	uint32_t count, branch;
	struct point kept, kept_before; /* step 0: none */
	uint64_t saved;                 /* the greatest step */
};

enum kind { SAVE, KEEP, UNKEEP, ROLL_BACK };

static enum kind kind_of(uint32_t operation)
{
	switch (operation % ROUND) {
	case 5:
		return KEEP;
	case 6:
		return UNKEEP;
	case 9:
		return ROLL_BACK;
	default:
		return SAVE;
	}
}

static void model_save(struct model *model)
{
	if (model->count == STACK_MAX)
		memmove(model->line, model->line + 1, --model->count * sizeof(*model->line));
	model->saved += 10;
	model->line[model->count++] = (struct point){model->branch, model->saved};
}

static struct model model_after(uint32_t operations)
{
	struct model model = {.branch = 1};

	for (uint32_t i = 0; i < operations; i++)
		switch (kind_of(i)) {
		case SAVE:
			model_save(&model);
			break;
		case KEEP:
			model.kept_before = model.kept;
			model.kept = model.line[model.count - 1];
			break;
		case UNKEEP:
			model.kept_before = (struct point){0};
			break;
		case ROLL_BACK:
			model.count--;
			model.branch++;
			break;
		}
	return model;
}

static bool same(const struct point *a, const struct point *b)
{
	return a->branch == b->branch && a->step == b->step;
}

/* -- the run -- */

struct shared {
	_Atomic uint32_t done; /* operations that were answered */
};

static int set_keep(struct fixture *fx, const struct point *state, bool keep)
{
	char id[CHECKPOINT_ID_SIZE], text[ERROR_TEXT_MAX];

	if (state->step == 0)
		return 0;
	checkpoint_id_format(state->step, state->branch, id);
	return recovery_keep(fx->dir, fx->run_fd, id, keep, text, sizeof(text), &fx->err);
}

static int save(struct fixture *fx, const struct point *state)
{
	struct checkpoint_source source;
	struct checkpoint_saved saved;
	int rc = fixture_try_save(fx, state->branch, state->step, &saved);

	source = fixture_source(fx);
	if (rc == 0)
		rc = recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
			&fx->outcome, fixture_report, fx, &fx->err);
	return rc;
}

static int roll_back(struct fixture *fx, const struct point *to)
{
	struct line_branch branch = {.fork_step = to->step, .why = "cuts"};
	struct line line;
	int rc = line_load(fx->fd, &line, &fx->err);

	if (rc < 0)
		return rc;
	rc = line_fork(fx->fd, &line, &branch, &fx->err);
	line_fini(&line);
	return rc;
}

static int operate(struct fixture *fx, uint32_t operation)
{
	struct model before = model_after(operation), after = model_after(operation + 1);

	fx->log[0] = '\0';
	switch (kind_of(operation)) {
	case SAVE:
		return save(fx, &after.line[after.count - 1]);
	case KEEP:
		return set_keep(fx, &after.kept, true);
	case UNKEEP:
		return set_keep(fx, &before.kept_before, false);
	case ROLL_BACK:
		return roll_back(fx, &after.line[after.count - 1]);
	}
	return -EINVAL;
}

static _Noreturn void work(struct fixture *fx, struct shared *shared)
{
	for (uint32_t i = 0; i < OPERATIONS_MAX; i++) {
		if (operate(fx, i) < 0) {
			fprintf(stderr, "# operation %u: %s\n", i, fx->err.text);
			_exit(1);
		}
		atomic_store(&shared->done, i + 1);
	}
	_exit(0);
}

/* -- what a start finds -- */

/* Whole, with the bytes of its step. */
static bool stands(struct fixture *fx, const struct point *state)
{
	struct checkpoint_info info;
	char name[64];

	fixture_name(state->branch, state->step, name);
	int fd = checkpoint_open(fx->fd, name, &info, &fx->err);

	if (fd < 0)
		return false;
	bool whole = checkpoint_read(fd, &info, fx->loaded, NULL, 1, NULL, &fx->err) == 0;

	fixture_state(fx, state->branch, state->step);
	whole = whole && memcmp(fx->loaded, fx->block, fx->block_bytes) == 0;
	close(fd);
	checkpoint_info_fini(&info);
	return whole;
}

static uint64_t rows_hash(struct fixture *fx)
{
	struct catalog_row *rows;
	struct catalog *catalog;
	uint32_t count, bad;
	uint64_t hash = 0;

	if (catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err) < 0)
		return 0;
	if (catalog_list(catalog, &rows, &count, &bad, &fx->err) == 0) {
		struct digest digest = digest_of(rows, count * sizeof(*rows));

		memcpy(&hash, digest.bytes, sizeof(hash));
		free(rows);
	}
	catalog_close(catalog);
	return hash;
}

static int prepare(struct fixture *fx)
{
	struct recovery_summary summary;

	fx->log[0] = '\0';
	return recovery_prepare(
		fx->dir, fx->run_fd, &fx->run, fixture_report, fx, &summary, &fx->err);
}

/* NULL, or what had been promised and does not hold. The operation after the last answered one may
 * have happened or not. */
static const char *judge(struct fixture *fx, uint32_t done)
{
	struct model now = model_after(done), next = model_after(done + 1);
	struct checkpoint_info info;
	struct point loaded;

	if (prepare(fx) < 0)
		return "the start fails";
	uint64_t rows = rows_hash(fx);

	if (prepare(fx) < 0 || rows_hash(fx) != rows)
		return "a second start changes the rows";
	int rc = fixture_try_load(fx, &info);

	if (now.count == 0)
		return rc == 0 || rc == -ENOENT ? NULL : "nothing was saved, and a load fails";
	if (rc < 0)
		return "nothing can be loaded";
	loaded = (struct point){info.record.branch, info.record.step};
	checkpoint_info_fini(&info);
	fixture_state(fx, loaded.branch, loaded.step);
	if (memcmp(fx->loaded, fx->block, fx->block_bytes) != 0)
		return "other bytes were loaded";
	if (!same(&loaded, &now.line[now.count - 1]) && !same(&loaded, &next.line[next.count - 1]))
		return "the newest one is lost";
	if (now.count > 1 && !stands(fx, &now.line[now.count - 2]))
		return "the one before the newest is lost";
	if (now.kept.step != 0 && !stands(fx, &now.kept))
		return "the kept one is lost";
	return NULL;
}

/* In a process of its own, on the mounted copy. */
static bool holds(struct fixture *fx, const char *folder, uint32_t done)
{
	pid_t pid = fork();
	int status = 1;

	if (pid == 0) {
		const char *violation;

		snprintf(fx->dir, sizeof(fx->dir), "%s/run", folder);
		fx->run_fd = run_open_dir(fx->dir, false, &fx->err);
		fx->fd = fx->run_fd < 0
			? -1
			: openat(fx->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		violation = fx->fd < 0 ? "the run's folder is lost" : judge(fx, done);
		if (violation != NULL)
			fprintf(stderr, "# after %u operations: %s (%s)\n", done, violation,
				fx->err.text);
		_exit(violation != NULL);
	}
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	return status == 0;
}

/* -- cuts -- */

struct bench {
	struct fixture *fx;
	char nest[64], disk[96], copy[96], inner[96], cut[96];
};

static void bench_open(struct bench *bench, const struct filesystem *fs)
{
	const char *arguments[8];
	uint32_t count = 0;

	for (; fs->make[count] != NULL; count++)
		arguments[count] = fs->make[count];
	arguments[count++] = bench->disk;
	arguments[count] = NULL;
	assert_true(loop_make_file(bench->disk, DISK_MIB));
	assert_true(loop_run(arguments));
	assert_true(loop_mount(bench->disk, bench->inner, fs->name, ""));
}

/* The fixture's folder, moved onto the disk. */
static void bench_run(struct bench *bench)
{
	struct fixture *fx = bench->fx;

	snprintf(fx->dir, sizeof(fx->dir), "%s/run", bench->inner);
	fx->run_fd = run_open_dir(fx->dir, true, &fx->err);
	assert_true(fx->run_fd >= 0);
	fx->fd = openat(fx->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	PASS(run_store(fx->run_fd, &fx->run, &fx->err));
	fixture_prepare(fx);
	int parent = open(bench->inner, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	assert_int_equal(file_sync_dir(parent), 0);
	close(parent);
}

static void bench_close(struct bench *bench)
{
	close(bench->fx->fd);
	close(bench->fx->run_fd);
	assert_true(loop_unmount(bench->inner));
	assert_int_equal(unlink(bench->disk), 0);
}

/* True when all that was promised is there. */
static bool cut_once(struct bench *bench, const struct filesystem *fs, struct shared *shared)
{
	uint32_t done = atomic_load(&shared->done);
	bool good;

	assert_true(loop_clone(bench->disk, bench->copy));
	assert_true(loop_mount(bench->copy, bench->cut, fs->name, fs->options));
	good = holds(bench->fx, bench->cut, done);
	assert_true(loop_unmount(bench->cut));
	assert_int_equal(unlink(bench->copy), 0);
	return good;
}

/* The number of cuts after which something was lost. A mutant syncs nothing; one loss is enough. */
static uint32_t cut(struct bench *bench, const struct filesystem *fs, uint32_t cuts, bool mutant)
{
	struct shared *shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint32_t violations = 0, made = 0;
	pid_t worker;
	int status;

	assert_true(shared != MAP_FAILED);
	bench_open(bench, fs);
	bench_run(bench);
	worker = fork();
	assert_true(worker >= 0);
	if (worker == 0) {
		sync_nothing = mutant;
		work(bench->fx, shared);
	}
	while (made < cuts && !(mutant && violations > 0)) {
		usleep((useconds_t)(rand() % PAUSE_US));
		violations += !cut_once(bench, fs, shared);
		made++;
	}
	kill(worker, SIGKILL);
	assert_true(waitpid(worker, &status, 0) == worker && WIFSIGNALED(status));
	print_message("# %s%s: %u cuts in %u operations, %u with a loss\n", fs->name,
		mutant ? " without syncs" : "", made, atomic_load(&shared->done), violations);
	bench_close(bench);
	munmap(shared, sizeof(*shared));
	return violations;
}

/* -- the nest -- */

static struct bench bench;

static int open_nest(void **state)
{
	static const char *const folders[] = {"inner", "cut"};
	const char *seed = getenv("CKPTD_TEST_SEED");
	unsigned number = seed != NULL ? (unsigned)strtoul(seed, NULL, 10) : (unsigned)time(NULL);
	char image[96];

	if (loop_lacks(programs) != NULL)
		return 0;
	print_message("# CKPTD_TEST_SEED=%u\n", number);
	srand(number);
	assert_true(loop_isolate());
	snprintf(bench.nest, sizeof(bench.nest), "/tmp/ckptd-cuts-XXXXXX");
	assert_non_null(mkdtemp(bench.nest));
	snprintf(image, sizeof(image), "%s.img", bench.nest);
	const char *const make[] = {"mkfs.xfs", "-q", "-m", "reflink=1", image, NULL};

	assert_true(loop_make_file(image, NEST_MIB) && loop_run(make));
	assert_true(loop_mount(image, bench.nest, "xfs", ""));
	assert_int_equal(unlink(image), 0);
	snprintf(bench.disk, sizeof(bench.disk), "%s/disk.img", bench.nest);
	snprintf(bench.copy, sizeof(bench.copy), "%s/copy.img", bench.nest);
	for (int i = 0; i < 2; i++) {
		char *path = i == 0 ? bench.inner : bench.cut;

		snprintf(path, sizeof(bench.inner), "%s/%s", bench.nest, folders[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	return 0;
}

/* However this process ends, mounts, devices and images go with it. */
static int close_nest(void **state)
{
	if (bench.nest[0] != '\0' && loop_unmount(bench.nest))
		rmdir(bench.nest);
	return 0;
}

static int setup(void **state)
{
	if (loop_lacks(programs) != NULL)
		return 0;
	assert_int_equal(fixture_setup_small(state), 0);
	bench.fx = *state;
	bench.fx->config.keep_last = 3;
	/* It goes onto each disk in turn. */
	close(bench.fx->fd);
	close(bench.fx->run_fd);
	nftw(bench.fx->dir, fixture_unlink, 16, FTW_DEPTH | FTW_PHYS);
	return 0;
}

static void cut_filesystem(const struct filesystem *fs)
{
	const char *lack = loop_lacks(programs);
	const char *full = getenv("CKPTD_FULL");

	if (lack != NULL)
		test_lacks(lack);
	assert_int_equal(cut(&bench, fs, full != NULL ? CUTS_FULL : CUTS, false), 0);
}

static void p1_p7_nothing_promised_is_lost_on_ext4(void **state)
{
	cut_filesystem(&filesystems[0]);
}

static void p1_p7_nothing_promised_is_lost_on_xfs(void **state)
{
	cut_filesystem(&filesystems[1]);
}

static void p1_p7_nothing_promised_is_lost_on_btrfs(void **state)
{
	cut_filesystem(&filesystems[2]);
}

static void without_syncs_the_loss_is_seen(void **state)
{
	const char *lack = loop_lacks(programs);

	if (lack != NULL)
		test_lacks(lack);
	assert_true(cut(&bench, &filesystems[0], MUTANT_CUTS, true) > 0);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p1_p7_nothing_promised_is_lost_on_ext4),
		TEST(p1_p7_nothing_promised_is_lost_on_xfs),
		TEST(p1_p7_nothing_promised_is_lost_on_btrfs),
		TEST(without_syncs_the_loss_is_seen),
	};

	return cmocka_run_group_tests_name("cuts", tests, open_nest, close_nest);
}
