/* P1, P8: branches and the line: what counts after forks of forks, what is suspect, and that a
 * branch exists when its file is durable and not before. */
#include "tests/unit/store_fixture.h"

static struct line load(struct fixture *fx)
{
	struct line line;

	PASS(line_load(fx->fd, &line, &fx->err));
	return line;
}

static uint32_t fork_at(struct fixture *fx, struct line *line, uint64_t step, bool suspect)
{
	struct line_branch branch = {.fork_step = step, .suspect = suspect};

	snprintf(branch.why, sizeof(branch.why), "test at %llu", (unsigned long long)step);
	branch.fork_root = digest_of(&step, sizeof(step));
	PASS(line_fork(fx->fd, line, &branch, &fx->err));
	return branch.branch;
}

/* The line as it is in memory and as it is read again must say the same. */
static void expect(
	struct fixture *fx, const struct line *line, uint32_t branch, uint64_t step, bool contained)
{
	struct line again = load(fx);

	assert_int_equal(line_contains(line, branch, step), contained);
	assert_int_equal(line_contains(&again, branch, step), contained);
	assert_int_equal(again.current, line->current);
	line_fini(&again);
}

static void first_branch_needs_no_file(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx);

	assert_int_equal(line.current, 1);
	assert_int_equal(line.count, 1);
	assert_true(line_contains(&line, 1, UINT64_MAX));
	assert_false(line_contains(&line, 2, 0));
	assert_null(line_find(&line, 2));
	line_fini(&line);
}

static void p1_grandparents_count_to_the_lowest_fork(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx);

	assert_int_equal(fork_at(fx, &line, 100, false), 2); /* 1 up to 100 */
	expect(fx, &line, 1, 100, true);
	expect(fx, &line, 1, 101, false);
	expect(fx, &line, 2, 101, true);
	assert_int_equal(fork_at(fx, &line, 150, false), 3); /* 2 up to 150, 1 up to 100 */
	assert_int_equal(line_find(&line, 3)->parent, 2);
	expect(fx, &line, 2, 150, true);
	expect(fx, &line, 2, 151, false);
	expect(fx, &line, 1, 100, true);
	expect(fx, &line, 1, 120, false);
	/* Before the fork of 2: the state is branch 1's, and all of 2 and 3 is left behind. */
	assert_int_equal(fork_at(fx, &line, 50, false), 4);
	assert_int_equal(line_find(&line, 4)->parent, 1);
	expect(fx, &line, 1, 50, true);
	expect(fx, &line, 1, 51, false);
	expect(fx, &line, 2, 101, false);
	expect(fx, &line, 3, 151, false);
	expect(fx, &line, 4, 51, true);
	/* Trusting branch 2 again: a fork from it, though it is off the line. */
	struct line_branch again = {.parent = 2, .fork_step = 140};

	PASS(line_fork(fx->fd, &line, &again, &fx->err));
	assert_int_equal(again.branch, 5);
	expect(fx, &line, 2, 140, true);
	expect(fx, &line, 2, 141, false);
	expect(fx, &line, 1, 100, true);
	expect(fx, &line, 4, 51, false);
	line_fini(&line);
}

/* What it forked from was rotten, and it went on from an older one: its own states lie below its
 * fork. A fork from one of them is a fork from that one. */
static void p1_a_fork_from_below_a_branchs_own_fork_keeps_what_it_names(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx);
	struct line_branch below = {.parent = 2, .fork_step = 60};

	assert_int_equal(fork_at(fx, &line, 100, false), 2);
	PASS(line_fork(fx->fd, &line, &below, &fx->err));
	assert_int_equal(below.branch, 3);
	assert_int_equal(below.parent, 2);
	expect(fx, &line, 2, 60, true);
	expect(fx, &line, 2, 61, false);
	expect(fx, &line, 1, 60, true);
	expect(fx, &line, 1, 61, false);
	line_fini(&line);
}

static void only_what_the_ladder_left_is_suspect(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx);

	fork_at(fx, &line, 100, false); /* by a person */
	assert_false(line_is_suspect(&line, 1, 120));
	fork_at(fx, &line, 150, true); /* by the ladder */
	assert_true(line_is_suspect(&line, 2, 160));
	assert_false(line_is_suspect(&line, 2, 150));
	assert_false(line_is_suspect(&line, 1, 120)); /* was off the line before */
	fork_at(fx, &line, 60, true);
	assert_true(line_is_suspect(&line, 1, 80));
	assert_true(line_is_suspect(&line, 2, 120));
	assert_true(line_is_suspect(&line, 3, 200));
	assert_false(line_is_suspect(&line, 1, 60));
	/* Trusted again: on the line, so not suspect. */
	struct line_branch again = {.parent = 1, .fork_step = 80};

	PASS(line_fork(fx->fd, &line, &again, &fx->err));
	assert_false(line_is_suspect(&line, 1, 80));
	line_fini(&line);
}

/* 1 - 2 at 100 - 3 at 150; 4 at 0 - 5 at 10; 6 from 3 once more. */
static void p1_a_way_begins_at_the_last_step_0(void **state)
{
	static const uint32_t beginnings[] = {0, 1, 1, 1, 4, 4, 1};
	struct fixture *fx = *state;
	struct line line = load(fx);

	fork_at(fx, &line, 100, false);
	fork_at(fx, &line, 150, true);
	assert_int_equal(line_beginning(&line, line.current), 1);
	assert_int_equal(fork_at(fx, &line, 0, false), 4);
	for (uint32_t branch = 1; branch <= 3; branch++)
		expect(fx, &line, branch, 1, false);
	expect(fx, &line, 4, 1, true);
	fork_at(fx, &line, 10, true);
	assert_null(line_before(&line, line_find(&line, 4)));
	assert_int_equal(line_before(&line, line_find(&line, 5))->branch, 4);
	struct line_branch back = {.parent = 3, .fork_step = 160, .why = "back"};

	PASS(line_fork(fx->fd, &line, &back, &fx->err));
	for (uint32_t branch = 0; branch <= 6; branch++)
		assert_int_equal(line_beginning(&line, branch), beginnings[branch]);
	line_fini(&line);
}

static void all_of_a_branch_is_kept(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx), again;
	struct line_branch branch = {.fork_step = 7,
		.suspect = true,
		.why = "the newest checkpoint \"died\" twice; \xc3\xa4",
		.intervention_count = 2,
		.interventions = {{.step = 9, .kind = INTERVENTION_SKIP_WINDOW, .value = "64"},
			{.step = 10, .kind = INTERVENTION_ENGINE, .value = "openblas"}}};

	branch.fork_root = digest_of("root", 4);
	PASS(line_fork(fx->fd, &line, &branch, &fx->err));
	again = load(fx);
	assert_memory_equal(line_find(&again, 2), &branch, sizeof(branch));
	assert_true(branch.created[0] != '\0' && branch.parent == 1);
	line_fini(&again);
	line_fini(&line);
}

static void p8_broken_branch_file_is_named(void **state)
{
	struct fixture *fx = *state;
	struct line line = load(fx);
	char *text;
	size_t size;

	fork_at(fx, &line, 100, false);
	fork_at(fx, &line, 150, false);
	line_fini(&line);
	assert_int_equal(file_read_all(fx->fd, "branch-0003.json", 100000, &text, &size), 0);
	for (size_t n = 0; n < size; n += n < 8 ? 1 : 23) {
		fixture_write(fx->fd, "branch-0003.json", text, n);
		assert_int_equal(line_load(fx->fd, &line, &fx->err), -EBADMSG);
		assert_non_null(strstr(fx->err.text, "branch-0003.json"));
	}
	for (size_t n = 0; n < size; n++) {
		bool space = text[n] == ' ' || text[n] == '\n';

		fixture_write(fx->fd, "branch-0003.json", text, size);
		fixture_flip(fx->fd, "branch-0003.json", n);
		if (line_load(fx->fd, &line, &fx->err) == 0) {
			if (!space)
				fail_msg("a flip at byte %zu is believed", n);
			line_fini(&line);
		}
	}
	/* Another branch's file under this name, and a parent that is gone. */
	free(text);
	assert_int_equal(file_read_all(fx->fd, "branch-0002.json", 100000, &text, &size), 0);
	fixture_write(fx->fd, "branch-0003.json", text, size);
	assert_int_equal(line_load(fx->fd, &line, &fx->err), -EBADMSG);
	free(text);
	line = (struct line){0};
	assert_int_equal(unlinkat(fx->fd, "branch-0003.json", 0), 0);
	line = load(fx);
	fork_at(fx, &line, 150, false);
	line_fini(&line);
	assert_int_equal(unlinkat(fx->fd, "branch-0002.json", 0), 0);
	assert_int_equal(line_load(fx->fd, &line, &fx->err), -EBADMSG);
	assert_non_null(strstr(fx->err.text, "branch 2"));
}

/* A number that a checkpoint's name has used is never given to a new branch. */
static void lost_branch_number_is_not_given_again(void **state)
{
	struct fixture *fx = *state;
	struct line line;

	fixture_write(fx->fd, "step-000000005-b0004.safetensors", "", 0);
	line = load(fx);
	assert_int_equal(line.current, 1);
	assert_int_equal(fork_at(fx, &line, 3, false), 5);
	line_fini(&line);
}

static void p7_failed_fork_is_no_fork(void **state)
{
	static const char *const plans[] = {
		"open:1:EACCES", "pwrite:1:ENOSPC", "fsync:1:EIO", "rename:1:EIO"};
	struct fixture *fx = *state;
	struct line line = load(fx);

	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		struct line_branch branch = {.fork_step = 5};

		assert_int_equal(sys_fault_plan(plans[i]), 0);
		assert_true(line_fork(fx->fd, &line, &branch, &fx->err) < 0);
		sys_fault_plan(NULL);
		assert_int_equal(line.current, 1);
		expect(fx, &line, 1, 6, true);
	}
	assert_int_equal(fork_at(fx, &line, 5, false), 2);
	line_fini(&line);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(first_branch_needs_no_file),
		TEST(p1_grandparents_count_to_the_lowest_fork),
		TEST(p1_a_fork_from_below_a_branchs_own_fork_keeps_what_it_names),
		TEST(only_what_the_ladder_left_is_suspect),
		TEST(p1_a_way_begins_at_the_last_step_0),
		TEST(all_of_a_branch_is_kept),
		TEST(p8_broken_branch_file_is_named),
		TEST(lost_branch_number_is_not_given_again),
		TEST(p7_failed_fork_is_no_fork),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
