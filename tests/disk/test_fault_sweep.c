/* P1, P7, P11: every call of every operation of the store fails once, in every way that calls of
 * its kind can fail (a full run; an ordinary one takes the first calls of each kind and some of the
 * rest). After each: success or an error with one line that says what it is; no descriptor lost;
 * every checkpoint that was verified is there, bit for bit, unless retention said so first; what is
 * published is whole. A start without faults then puts everything in order, the newest one loads,
 * and the same operation succeeds.
 *
 * A fault that fails prints its plan, which repeats it: CKPTD_SWEEP="save pread:3:EIO". */
#include "tests/unit/store_fixture.h"

#include "store/scrub.h"

#include <signal.h>
#include <sys/mman.h>

#include "tests/disk/damage.h"
#include "tests/disk/image.h"
#include "tests/disk/mirrored.h"

#define CALLS_MAX 2000 /* of one kind in one operation; more is a loop that never ends */

/* Calls that are not made again when a signal ends them: a second sync may say yes to what was
 * lost, a second rename find what the first one did. No local file system ever ends them so. */
static const char *const interruptible[] = {
	"fsync", "fdatasync", "db.fsync", "mkdir", "unlink", "db.unlink", "rename", "link"};

static const char *const points[] = {"open", "close", "pread", "pwrite", "fsync", "fdatasync",
	"fallocate", "ftruncate", "fstat", "fstatat", "statvfs", "mkdir", "unlink", "rename",
	"link", "flock", "readdir", "db.open", "db.close", "db.pread", "db.pwrite", "db.ftruncate",
	"db.fsync", "db.unlink"};

struct sweep;

struct operation {
	const char *name;
	void (*make)(struct fixture *fx); /* the folder it begins with */
	int (*run)(struct fixture *fx);
	void (*check)(struct fixture *fx); /* of more than the run's folder; or NULL */
	uint64_t newest;                   /* step, once it has succeeded */
	uint64_t gone;                     /* step that it may delete; 0: none */
	uint64_t renewed;                  /* step whose file it may write anew */
	int expected;                      /* of run without a fault */
	bool seldom; /* its calls are others' too: an ordinary run takes some of them */
};

struct sweep {
	struct fixture *fx;
	const struct operation *operation;
	struct image image;
	uint32_t runs;
	bool failed; /* the run under the fault */
	bool interruptible;
};

static char current[160]; /* operation and plan */

#define sweep_fail(...)                                                                            \
	do {                                                                                       \
		print_error("CKPTD_SWEEP=\"%s\"\n", current);                                      \
		fail_msg(__VA_ARGS__);                                                             \
	} while (0)

static void on_abort(int signal_number)
{
	ssize_t written = write(STDERR_FILENO, current, strlen(current));

	(void)written;
	_exit(134);
}

/* -- operations -- */

static void make_three(struct fixture *fx)
{
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fx->config.keep_last = 3;
	for (uint64_t step = 10; step <= 30; step += 10)
		fixture_save(fx, 1, step);
	fixture_prepare(fx); /* the reserve is held */
}

static int run_save(struct fixture *fx)
{
	struct checkpoint_source source;
	struct checkpoint_saved saved;
	int rc = fixture_try_save(fx, 1, 40, &saved);

	if (rc < 0)
		return rc;
	source = fixture_source(fx);
	return recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
		&fx->outcome, fixture_report, fx, &fx->err);
}

static int run_save_again(struct fixture *fx)
{
	struct checkpoint_saved saved;

	return fixture_try_save(fx, 1, 30, &saved);
}

static int run_make_room(struct fixture *fx)
{
	return recovery_make_room(
		fx->dir, fx->run_fd, UINT64_C(1) << 60, false, fixture_report, fx, &fx->err);
}

static int run_keep(struct fixture *fx)
{
	char text[ERROR_TEXT_MAX];

	return recovery_keep(
		fx->dir, fx->run_fd, "step-000000020-b0001", true, text, sizeof(text), &fx->err);
}

/* Something of each kind to put in order: a file without a row, a row without a file, a deletion
 * that was not finished, leftovers. */
static void make_disorder(struct fixture *fx)
{
	struct checkpoint_saved saved;
	struct catalog *catalog;

	make_three(fx);
	fx->config.keep_last = 9;
	fixture_save(fx, 1, 5);
	assert_int_equal(unlinkat(fx->fd, "step-000000005-b0001.safetensors", 0), 0);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_set_state(
		catalog, "step-000000010-b0001", CHECKPOINT_DELETED, "by retention", &fx->err));
	catalog_close(catalog);
	PASS(fixture_try_save(fx, 1, 40, &saved));
	fixture_write(fx->fd, ".step-000000050-b0001.partial-2", "x", 1);
	fixture_write(fx->fd, ".branch-0002.json.tmp-7", "x", 1);
}

static void make_broken_catalog(struct fixture *fx)
{
	make_three(fx);
	fixture_write(fx->run_fd, "catalog.sqlite", "nothing of the kind", 19);
}

static void make_no_catalog(struct fixture *fx)
{
	make_three(fx);
	assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
}

static int run_prepare(struct fixture *fx)
{
	struct recovery_summary summary;

	return recovery_prepare(
		fx->dir, fx->run_fd, &fx->run, fixture_report, fx, &summary, &fx->err);
}

static int run_load_newest(struct fixture *fx)
{
	struct checkpoint_info info;
	int rc = fixture_try_load(fx, &info);

	if (rc < 0)
		return rc;
	fixture_state(fx, 1, info.record.step);
	if (memcmp(fx->loaded, fx->block, fx->block_bytes) != 0)
		sweep_fail("%s was loaded, and not its bytes", info.id);
	checkpoint_info_fini(&info);
	return 0;
}

static int on_scrubbed(void *context, const struct scrub_result *result)
{
	return 0;
}

/* One is enough: for each of the others the same calls follow. */
static void make_one(struct fixture *fx)
{
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fixture_save(fx, 1, 30);
	fixture_prepare(fx);
}

static int run_scrub(struct fixture *fx)
{
	const struct scrub_options options = {
		.threads = 1, .result = on_scrubbed, .report = fixture_report, .context = fx};

	return scrub_run(fx->dir, fx->run_fd, fx->run.id, &options, &fx->err);
}

static void make_mirror(struct fixture *fx)
{
	make_one(fx);
	mirrored_begin(fx);
}

static void make_lost(struct fixture *fx)
{
	make_mirror(fx);
	fixture_save(fx, 1, 20);
	PASS(mirrored_update(fx));
	assert_int_equal(unlinkat(fx->fd, "step-000000030-b0001.safetensors", 0), 0);
}

static int run_fork(struct fixture *fx)
{
	struct line_branch branch = {.fork_step = 30, .why = "sweep"};
	struct line line;
	int rc = line_load(fx->fd, &line, &fx->err);

	if (rc < 0)
		return rc;
	rc = line_fork(fx->fd, &line, &branch, &fx->err);
	line_fini(&line);
	return rc;
}

static int run_store_wanted(struct fixture *fx)
{
	struct run run;
	int rc = run_load(fx->run_fd, &run, &fx->err);

	if (rc < 0)
		return rc;
	run.wanted = WANTED_PAUSED;
	rc = run_store(fx->run_fd, &run, &fx->err);
	run_fini(&run);
	return rc;
}

static const struct operation operations[] = {
	{.name = "save", .make = make_three, .run = run_save, .newest = 40, .gone = 10},
	{.name = "save_again",
		.make = make_three,
		.run = run_save_again,
		.newest = 30,
		.renewed = 30},
	{.name = "make_room",
		.make = make_three,
		.run = run_make_room,
		.newest = 30,
		.gone = 10,
		.expected = -ENOSPC},
	{.name = "prepare", .make = make_disorder, .run = run_prepare, .newest = 40, .gone = 10},
	{.name = "rebuild", .make = make_broken_catalog, .run = run_prepare, .newest = 30},
	{.name = "create", .make = make_no_catalog, .run = run_prepare, .newest = 30},
	{.name = "load", .make = make_three, .run = run_load_newest, .newest = 30},
	{.name = "scrub", .make = make_one, .run = run_scrub, .newest = 30, .seldom = true},
	{.name = "mirror",
		.make = make_mirror,
		.run = mirrored_update,
		.check = mirrored_check,
		.newest = 30,
		.seldom = true},
	{.name = "fetch", .make = make_lost, .run = mirrored_fetch, .newest = 30, .seldom = true},
	{.name = "keep", .make = make_three, .run = run_keep, .newest = 30},
	{.name = "fork", .make = make_three, .run = run_fork, .newest = 30},
	{.name = "store_run", .make = make_three, .run = run_store_wanted, .newest = 30},
};

/* -- what must hold -- */

static uint32_t open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t count = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		count++;
	closedir(dir);
	return count;
}

static uint64_t step_of(const char *name)
{
	unsigned long long step = 0;

	sscanf(name, "checkpoints/step-%llu-", &step);
	return step;
}

/* A name that is published stands for the whole state. */
static void expect_whole(struct sweep *sweep, uint64_t step)
{
	struct fixture *fx = sweep->fx;
	struct checkpoint_info info;
	char name[64];
	int fd;

	fixture_name(1, step, name);
	if (!fixture_exists(fx->fd, name))
		return;
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	if (fd < 0 || checkpoint_read(fd, &info, fx->loaded, NULL, 1, NULL, &fx->err) < 0)
		sweep_fail("%s is published and not whole: %s", name, fx->err.text);
	fixture_state(fx, 1, step);
	if (memcmp(fx->loaded, fx->block, fx->block_bytes) != 0)
		sweep_fail("%s is published and not what was saved", name);
	close(fd);
	checkpoint_info_fini(&info);
}

/* What was verified before is still there; only what retention may take is excused. */
static void expect_files(struct sweep *sweep)
{
	for (uint32_t i = 0; i < sweep->image.count; i++) {
		const struct image_file *file = &sweep->image.files[i];
		uint64_t step = step_of(file->name);
		bool may_go = step == sweep->operation->gone &&
			!fixture_exists(sweep->fx->run_fd, file->name);

		/* A first file that was read wrongly makes way for a second, which is compared. */
		if (step == sweep->operation->renewed &&
			fixture_exists(sweep->fx->run_fd, file->name)) {
			expect_whole(sweep, step);
			continue;
		}

		if (step != 0 && !may_go && !image_is_same(sweep->fx, file))
			sweep_fail("%s is gone or changed", file->name);
	}
}

/* `corrupt` is a verdict about bytes: no failing call may lead to it. */
static void expect_no_verdict(struct sweep *sweep)
{
	for (uint64_t step = 10; step <= 40; step += 10)
		if (fixture_row_state(sweep->fx, 1, step) == CHECKPOINT_CORRUPT)
			sweep_fail("step %" PRIu64 " is called corrupt", step);
}

static bool lies(const char *action)
{
	return strcmp(action, "flip") == 0 || strcmp(action, "eof") == 0 ||
		strcmp(action, "rot") == 0;
}

static int code_of(const char *action)
{
	return strcmp(action, "ENOSPC") == 0    ? -ENOSPC
		: strcmp(action, "EDQUOT") == 0 ? -EDQUOT
		: strcmp(action, "EIO") == 0    ? -EIO
						: 0;
}

static void expect_answer(struct sweep *sweep, int rc, const char *action)
{
	const struct operation *operation = sweep->operation;
	const char *text = sweep->fx->err.text;
	int code = code_of(action);

	sweep->failed = rc != operation->expected;
	if (!sweep->failed)
		return;
	if (rc > 0 || text[0] == '\0' || strchr(text, '\n') != NULL)
		sweep_fail("the answer is %d with '%s'", rc, text);
	/* SQLite calls a database corrupt that it cannot read: an index, so it is made anew. */
	if (code != 0 && rc != code && rc != -EIO && rc != -EAGAIN && rc != -ENOSPC &&
		!(rc == -EBADMSG && strstr(current, " db.") != NULL))
		sweep_fail("%s became %d: %s", action, rc, text);
	if (strcmp(action, "short") == 0 || (strcmp(action, "EINTR") == 0 && !sweep->interruptible))
		sweep_fail("%s was seen: %d: %s", action, rc, text);
}

static bool has_leftover(struct fixture *fx)
{
	DIR *dir = fdopendir(openat(fx->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *entry;
	bool found = false;

	assert_non_null(dir);
	while ((entry = readdir(dir)) != NULL)
		found = found || strncmp(entry->d_name, ".step-", 6) == 0 ||
			strncmp(entry->d_name, ".branch-", 8) == 0;
	closedir(dir);
	return found || fixture_exists(fx->run_fd, "catalog.new");
}

/* A start puts everything in order, and the operation succeeds then. */
static void expect_recovery(struct sweep *sweep)
{
	const struct operation *operation = sweep->operation;
	struct fixture *fx = sweep->fx;
	int rc = run_prepare(fx);

	if (rc < 0)
		sweep_fail("the start after it fails: %s", fx->err.text);
	if (has_leftover(fx))
		sweep_fail("the start after it leaves something behind");
	rc = operation->run(fx);
	/* What was to be forked or deleted may be so already. */
	if (rc != operation->expected && rc != 0)
		sweep_fail("it does not succeed afterwards: %d: %s", rc, fx->err.text);
	expect_files(sweep);
	fixture_expect_load(fx, 1, operation->newest);
	expect_no_verdict(sweep);
}

/* -- one fault -- */

/* False when it did not fire: there is no such call. */
static bool try_fault(struct sweep *sweep, const char *point, uint32_t n, const char *action)
{
	struct fixture *fx = sweep->fx;
	uint32_t descriptors;
	uint64_t fired;
	char plan[64];
	int rc;

	snprintf(plan, sizeof(plan), "%s:%u:%s", point, n, action);
	snprintf(current, sizeof(current), "%s %s", sweep->operation->name, plan);
	image_put_back(fx, &sweep->image);
	descriptors = open_descriptors();
	fx->err.text[0] = fx->log[0] = '\0';
	assert_int_equal(sys_fault_plan(plan), 0);
	rc = sweep->operation->run(fx);
	fired = sys_fault_fired();
	sys_fault_plan(NULL);
	sweep->runs++;
	if (fired == 0)
		return false;
	if (open_descriptors() != descriptors)
		sweep_fail("%u descriptors, before %u", open_descriptors(), descriptors);
	expect_answer(sweep, rc, action);
	expect_files(sweep);
	expect_whole(sweep, 40);
	if (sweep->operation->check)
		sweep->operation->check(fx);
	if (!lies(action) && strcmp(sweep->operation->name, "rebuild") != 0 &&
		strcmp(sweep->operation->name, "create") != 0)
		expect_no_verdict(sweep);
	expect_recovery(sweep);
	return true;
}

static bool is_read(const char *point)
{
	return strstr(point, "pread") != NULL;
}

static bool is_write(const char *point)
{
	return strstr(point, "pwrite") != NULL;
}

/* Everything in a full run; else the first calls with EIO, and some of the rest. */
static bool is_chosen(const struct sweep *sweep, const char *action, uint32_t n, uint64_t *random)
{
	if (damage_is_full())
		return true;
	if (sweep->operation->seldom && damage_next(random) % 4 != 0)
		return false;
	if (n == 1)
		return true;
	if (strcmp(action, "EIO") == 0)
		return n == 2 || damage_next(random) % 4 == 0;
	return damage_next(random) % 16 == 0;
}

/* Calls of this kind in a run without faults, counted by one that does nothing. */
static uint32_t count_calls(struct sweep *sweep, const char *point)
{
	char plan[64];
	uint64_t count;

	snprintf(plan, sizeof(plan), "%s:*:%s", point, is_read(point) ? "rot" : "flip");
	snprintf(current, sizeof(current), "%s %s", sweep->operation->name, plan);
	image_put_back(sweep->fx, &sweep->image);
	assert_int_equal(sys_fault_plan(plan), 0);
	assert_int_equal(sweep->operation->run(sweep->fx), sweep->operation->expected);
	count = sys_fault_fired();
	sys_fault_plan(NULL);
	assert_in_range(count, 0, CALLS_MAX);
	return (uint32_t)count;
}

static void sweep_point(struct sweep *sweep, const char *point, uint64_t *random)
{
	static const char *const all[] = {"EIO", "ENOSPC", "EDQUOT", "EINTR"};
	static const char *const reading[] = {"short", "flip", "eof"};
	static const char *const writing[] = {"short", "rot"};
	uint32_t calls = count_calls(sweep, point);

	sweep->interruptible = false;
	for (size_t i = 0; i < sizeof(interruptible) / sizeof(*interruptible); i++)
		if (strcmp(point, interruptible[i]) == 0)
			sweep->interruptible = true;
	for (uint32_t n = 1; n <= calls; n++) {
		for (size_t a = 0; a < sizeof(all) / sizeof(*all); a++)
			if (is_chosen(sweep, all[a], n, random))
				assert_true(try_fault(sweep, point, n, all[a]));
		for (size_t a = 0; is_read(point) && a < sizeof(reading) / sizeof(*reading); a++)
			if (is_chosen(sweep, reading[a], n, random))
				assert_true(try_fault(sweep, point, n, reading[a]));
		for (size_t a = 0; is_write(point) && a < sizeof(writing) / sizeof(*writing); a++)
			if (is_chosen(sweep, writing[a], n, random))
				assert_true(try_fault(sweep, point, n, writing[a]));
	}
	/* There are no more. */
	assert_false(try_fault(sweep, point, calls + 1, "EIO"));
}

static void sweep_operation(void **state, const char *name)
{
	const char *only = getenv("CKPTD_SWEEP");
	struct sweep sweep = {.fx = *state};
	uint64_t random = damage_seed();
	size_t length = strlen(name);

	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (strcmp(operations[i].name, name) == 0)
			sweep.operation = &operations[i];
	assert_non_null(sweep.operation);
	if (only != NULL && (strncmp(only, name, length) != 0 || only[length] != ' '))
		skip();
	sweep.operation->make(sweep.fx);
	image_take(sweep.fx, &sweep.image);
	signal(SIGABRT, on_abort);
	if (only != NULL) {
		char point[32], action[32];
		unsigned n;

		assert_int_equal(sscanf(only + length, " %31[^:]:%u:%31s", point, &n, action), 3);
		assert_true(try_fault(&sweep, point, n, action));
	} else {
		for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++)
			sweep_point(&sweep, points[i], &random);
		assert_true(sweep.runs > sizeof(points) / sizeof(*points));
	}
	print_message("# %s: %u runs\n", name, sweep.runs);
	image_fini(&sweep.image);
}

/* -- the disk that says yes -- */

static uint32_t write_calls(struct fixture *fx)
{
	struct checkpoint_saved saved;
	uint32_t n = 0;
	char plan[32];

	do {
		snprintf(plan, sizeof(plan), "pwrite:%u:short", ++n);
		assert_int_equal(sys_fault_plan(plan), 0);
		PASS(fixture_try_save(fx, 1, 40, &saved));
		unlinkat(fx->fd, "step-000000040-b0001.safetensors", 0);
	} while (sys_fault_fired() > 0);
	return n - 1;
}

static void save_and_die(struct fixture *fx)
{
	struct checkpoint_saved saved;

	fixture_try_save(fx, 1, 40, &saved);
}

/* One bit of what reaches the disk differs and every call says yes: whichever write it is, the save
 * fails, and nothing else than the read-back can have noticed. */
static void p11_a_write_that_rots_is_never_published(void **state)
{
	struct fixture *fx = *state;
	uint32_t calls = write_calls(fx);

	assert_true(calls >= 2); /* the data and the header */
	for (uint32_t n = 1; n <= calls; n++) {
		struct checkpoint_saved saved;
		struct checkpoint_info info;
		char plan[64];
		int rc;

		snprintf(plan, sizeof(plan), "pwrite:%u:rot", n);
		assert_int_equal(sys_fault_plan(plan), 0);
		assert_int_equal(fixture_try_save(fx, 1, 40, &saved), -EIO);
		assert_non_null(strstr(fx->err.text, "other bytes"));
		assert_false(fixture_exists(fx->fd, "step-000000040-b0001.safetensors"));
		/* What it would have published: dead before the read-back, it is not whole. */
		strcat(plan, ",save.synced:1:kill");
		assert_true(fixture_dies(fx, plan, save_and_die));
		sys_fault_plan(NULL);
		assert_int_equal(renameat(fx->fd, ".step-000000040-b0001.partial-1", fx->fd,
					 "step-000000040-b0001.safetensors"),
			0);
		rc = checkpoint_open(fx->fd, "step-000000040-b0001.safetensors", &info, &fx->err);
		if (rc >= 0) {
			assert_int_equal(checkpoint_read(rc, &info, NULL, NULL, 1, NULL, &fx->err),
				-EBADMSG);
			close(rc);
			checkpoint_info_fini(&info);
		}
		assert_int_equal(unlinkat(fx->fd, "step-000000040-b0001.safetensors", 0), 0);
	}
}

#define SWEEP(name)                                                                                \
	static void p7_every_call_of_##name##_may_fail(void **state)                               \
	{                                                                                          \
		sweep_operation(state, #name);                                                     \
	}

SWEEP(save)
SWEEP(save_again)
SWEEP(make_room)
SWEEP(prepare)
SWEEP(rebuild)
SWEEP(create)
SWEEP(load)
SWEEP(scrub)
SWEEP(mirror)
SWEEP(fetch)
SWEEP(keep)
SWEEP(fork)
SWEEP(store_run)

#define TEST(name)                                                                                 \
	cmocka_unit_test_setup_teardown(                                                           \
		p7_every_call_of_##name##_may_fail, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(save),
		TEST(save_again),
		TEST(make_room),
		TEST(prepare),
		TEST(rebuild),
		TEST(create),
		TEST(load),
		TEST(scrub),
		TEST(mirror),
		TEST(fetch),
		TEST(keep),
		TEST(fork),
		TEST(store_run),
		cmocka_unit_test_setup_teardown(p11_a_write_that_rots_is_never_published,
			fixture_setup_small, fixture_teardown),
	};

	/* Thousands of folders: where there is memory for them, no disk need suffer. */
	if (access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
