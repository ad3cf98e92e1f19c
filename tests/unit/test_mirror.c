/* P7, P8, P11: the mirror holds only whole checkpoints of its run, loses none for want of the
 * primary, and gives back what the primary lost. */
#include "store/mirror.h"
#include "store/trust.h"
#include "tests/unit/store_fixture.h"

#define KEEP_LAST 2

struct place {
	char path[200]; /* the mirror */
	char run[400];  /* the run in it */
	int fd;         /* its checkpoints, -1 before the first pass */
};

static struct place place;

static int setup(void **state)
{
	struct fixture *fx;
	int rc = fixture_setup_small(state);

	fx = *state;
	fixture_prepare(fx);
	snprintf(place.path, sizeof(place.path), "%.150s/second-disk", fx->dir);
	snprintf(place.run, sizeof(place.run), "%s/%s", place.path, fx->run.id_hex);
	place.fd = -1;
	PASS(mkdir(place.path, 0750));
	PASS(mirror_init(place.path, &fx->err));
	snprintf(fx->config.mirror, sizeof(fx->config.mirror), "%s", place.path);
	fx->config.mirror_keep_last = KEEP_LAST;
	return rc;
}

static int teardown(void **state)
{
	if (place.fd >= 0)
		close(place.fd);
	return fixture_teardown(state);
}

static struct mirror_pass pass_of(struct fixture *fx)
{
	return (struct mirror_pass){.run_dir = fx->dir,
		.run_fd = fx->run_fd,
		.run = &fx->run,
		.config = &fx->config,
		.threads = 1,
		.report = fixture_report,
		.context = fx};
}

static int try_update(struct fixture *fx, struct mirror_outcome *outcome)
{
	const struct mirror_pass pass = pass_of(fx);
	char path[500];
	int rc = mirror_update(&pass, outcome, &fx->err);

	snprintf(path, sizeof(path), "%s/checkpoints", place.run);
	if (place.fd < 0)
		place.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return rc;
}

static int fetch(struct fixture *fx, const int64_t *have)
{
	const struct mirror_pass pass = pass_of(fx);

	return mirror_fetch_newest(&pass, have, &fx->err);
}

static void expect_there(struct fixture *fx, uint64_t step, bool there)
{
	struct checkpoint_info info;
	char name[64];
	int fd;

	fixture_name(1, step, name);
	fd = checkpoint_open(place.fd, name, &info, &fx->err);
	assert_int_equal(fd >= 0, there);
	if (fd < 0)
		return;
	PASS(checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &fx->err));
	close(fd);
	checkpoint_info_fini(&info);
}

static void what_is_saved_comes_newest_first_and_old_ones_go(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;

	for (uint64_t step = 10; step <= 40; step += 10)
		fixture_save(fx, 1, step);
	PASS(try_update(fx, &outcome));
	assert_int_equal(outcome.copied, KEEP_LAST);
	assert_int_equal(outcome.behind, 0);
	assert_string_equal(outcome.newest, "step-000000040-b0001");
	expect_there(fx, 40, true);
	expect_there(fx, 30, true);
	expect_there(fx, 20, false);
	fixture_save(fx, 1, 50);
	PASS(try_update(fx, &outcome));
	assert_int_equal(outcome.copied, 1);
	assert_int_equal(outcome.removed, 1);
	expect_there(fx, 50, true);
	expect_there(fx, 30, false);
	PASS(try_update(fx, &outcome));
	assert_int_equal(outcome.copied + outcome.removed, 0);
}

/* An empty mount point, a folder nobody marked: nothing is written into it. */
static void p7_a_mirror_that_is_away_is_never_made(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;
	char mark[400];

	fixture_save(fx, 1, 10);
	snprintf(mark, sizeof(mark), "%s/" MIRROR_MARK, place.path);
	PASS(unlink(mark));
	assert_int_equal(try_update(fx, &outcome), -ENXIO);
	assert_non_null(strstr(fx->err.text, "mirror away"));
	assert_int_equal(outcome.behind, 1);
	PASS(rmdir(place.path)); /* it is empty */
	assert_int_equal(try_update(fx, &outcome), -ENXIO);
	assert_int_equal(access(place.path, F_OK), -1);
}

/* A copy that the disk gives back otherwise is not published, and the next pass makes it. */
static void p11_a_copy_that_does_not_match_is_not_published(void **state)
{
	static const char *const plans[] = {"copy.readback:1:EIO", "pwrite:1:rot", "fsync:*:EIO",
		"pwrite:*:ENOSPC", "copy.renamed:1:EIO"};
	struct fixture *fx = *state;
	struct mirror_outcome outcome;

	fixture_save(fx, 1, 10);
	PASS(try_update(fx, &outcome));
	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		uint64_t step = 20 + 10 * i;
		int rc;

		fixture_save(fx, 1, step);
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		rc = try_update(fx, &outcome);
		assert_true(sys_fault_fired() > 0);
		sys_fault_plan(NULL);
		if (rc == 0)
			fail_msg("under %s all went well", plans[i]);
		expect_there(fx, step, false);
		expect_there(fx, step - 10, true);
		PASS(try_update(fx, &outcome));
		expect_there(fx, step, true);
	}
}

static void p8_what_is_lost_or_rotten_here_comes_back(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;
	struct checkpoint_info info;
	int64_t have = 20;

	fixture_save(fx, 1, 10);
	fixture_save(fx, 1, 20);
	PASS(try_update(fx, &outcome));
	assert_int_equal(fetch(fx, NULL), 0); /* nothing is missing */
	/* Gone. */
	PASS(unlinkat(fx->fd, "step-000000020-b0001.safetensors", 0));
	assert_int_equal(fetch(fx, NULL), 1);
	fixture_expect_load(fx, 1, 20);
	/* Rotten: a load finds it, and the mirror is newer than what that load got. */
	fixture_flip(fx->fd, "step-000000020-b0001.safetensors", 100000);
	PASS(fixture_try_load(fx, &info));
	assert_int_equal(info.record.step, 10);
	checkpoint_info_fini(&info);
	have = 10;
	assert_int_equal(fetch(fx, &have), 1);
	fixture_expect_load(fx, 1, 20);
	assert_true(fixture_exists(fx->fd, "step-000000020-b0001.safetensors.corrupt-1"));
	have = 20;
	assert_int_equal(fetch(fx, &have), 0);
}

/* What a rollback left behind must not come back. */
static void p8_only_the_line_comes_back(void **state)
{
	struct fixture *fx = *state;
	struct line_branch branch = {.fork_step = 10, .why = "test"};
	struct mirror_outcome outcome;
	struct line line;

	fixture_save(fx, 1, 10);
	fixture_save(fx, 1, 20);
	PASS(try_update(fx, &outcome));
	PASS(line_load(fx->fd, &line, &fx->err));
	PASS(line_fork(fx->fd, &line, &branch, &fx->err));
	line_fini(&line);
	assert_int_equal(fetch(fx, NULL), 0);
	PASS(unlinkat(fx->fd, "step-000000020-b0001.safetensors", 0));
	assert_int_equal(fetch(fx, NULL), 0);
	assert_false(fixture_exists(fx->fd, "step-000000020-b0001.safetensors"));
}

static void p11_another_run_under_this_name_is_refused(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;
	struct run other = {0};

	fixture_save(fx, 1, 10);
	PASS(try_update(fx, &outcome));
	other = fx->run;
	other.id[0] ^= 1;
	bytes_to_hex(other.id, RUN_ID_SIZE, other.id_hex);
	int fd = open(place.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	PASS(fd);
	PASS(run_store(fd, &other, &fx->err));
	close(fd);
	assert_int_equal(try_update(fx, &outcome), -EEXIST);
	assert_non_null(strstr(fx->err.text, "another run"));
}

/* A mount that hangs: the probe stops itself, and the start goes on without it. */
static void p7_a_mirror_that_hangs_costs_seconds(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;

	fixture_save(fx, 1, 10);
	PASS(try_update(fx, &outcome));
	PASS(unlinkat(fx->fd, "step-000000010-b0001.safetensors", 0));
	assert_int_equal(sys_fault_plan("mirror.open:1:stop"), 0);
	assert_int_equal(fetch(fx, NULL), -ENXIO);
	assert_non_null(strstr(fx->err.text, "does not answer"));
	sys_fault_plan(NULL);
	assert_int_equal(fetch(fx, NULL), 1);
}

static void p8_a_whole_run_comes_back(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;
	struct mirror_pass pass;
	struct run run;
	char path[300];
	uint32_t count;

	fixture_save(fx, 1, 10);
	fixture_save(fx, 1, 20);
	PASS(try_update(fx, &outcome));
	snprintf(path, sizeof(path), "%.250s/again", fx->dir);
	int fd = run_open_dir(path, true, &fx->err);

	PASS(fd);
	PASS(mirror_load_run(place.path, fx->run.id_hex, &run, &fx->err));
	pass = pass_of(fx);
	pass.run_dir = path;
	pass.run_fd = fd;
	pass.run = &run;
	PASS(mirror_restore_run(&pass, &count, &fx->err));
	assert_int_equal(count, 2);
	run_fini(&run);
	PASS(run_load(fd, &run, &fx->err));
	assert_memory_equal(run.id, fx->run.id, RUN_ID_SIZE);
	run_fini(&run);
	close(fd);
}

/* The row says when, and forgets it when the copy goes. */
static void rows_say_what_is_mirrored(void **state)
{
	struct fixture *fx = *state;
	struct mirror_outcome outcome;
	struct catalog_row row;

	for (uint64_t step = 10; step <= 30; step += 10)
		fixture_save(fx, 1, step);
	PASS(try_update(fx, &outcome));
	fixture_save(fx, 1, 40);
	PASS(try_update(fx, &outcome));
	assert_true(fixture_row(fx, "step-000000040-b0001", &row));
	assert_true(row.mirrored_at[0] != '\0');
	assert_true(fixture_row(fx, "step-000000020-b0001", &row));
	assert_true(row.mirrored_at[0] == '\0');
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_is_saved_comes_newest_first_and_old_ones_go),
		TEST(p7_a_mirror_that_is_away_is_never_made),
		TEST(p11_a_copy_that_does_not_match_is_not_published),
		TEST(p8_what_is_lost_or_rotten_here_comes_back),
		TEST(p8_only_the_line_comes_back),
		TEST(p11_another_run_under_this_name_is_refused),
		TEST(p7_a_mirror_that_hangs_costs_seconds),
		TEST(p8_a_whole_run_comes_back),
		TEST(rows_say_what_is_mirrored),
	};

	return cmocka_run_group_tests_name("mirror", tests, NULL, NULL);
}
