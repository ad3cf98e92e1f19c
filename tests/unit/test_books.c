/* What the thread of the books does with a real folder: where a new branch begins. */
#include "supervisor/books.h"
#include "supervisor/books_room.h"
#include "tests/unit/store_fixture.h"

/* Begins a branch at what `which` and step mean: "BRANCH:STEP" of the checkpoint it begins at. */
static void fork_from(struct fixture *fx, int which, uint64_t step, bool suspect, char begun[64])
{
	struct books room = {.run_fd = fx->run_fd, .checkpoints_fd = fx->fd};
	struct fork_job fork = {.which = which, .step = step, .suspect = suspect};

	snprintf(room.run_dir, sizeof(room.run_dir), "%s", fx->dir);
	books_fork_work(&fork.head.job, &room);
	if (fork.head.job.result < 0)
		fail_msg("%s", fork.head.job.error.text);
	snprintf(begun, 64, "%u:%llu", fork.branch.parent,
		(unsigned long long)fork.branch.fork_step);
	line_fini(&fork.survey.line);
}

static void p5_what_was_left_behind_is_returned_to_from_new_to_old(void **state)
{
	struct fixture *fx = *state;
	char begun[64];

	fixture_prepare(fx);
	fixture_save(fx, 1, 10);
	fixture_save(fx, 1, 20);
	fixture_save(fx, 1, 30);
	fork_from(fx, FORK_STEP, 10, true, begun);
	assert_string_equal(begun, "1:10");
	fixture_save(fx, 2, 15);
	fixture_save(fx, 2, 25);
	fork_from(fx, FORK_STEP, 15, true, begun);
	assert_string_equal(begun, "2:15");
	fork_from(fx, FORK_LEFT_BEHIND, 0, false, begun);
	assert_string_equal(begun, "1:30");
	fork_from(fx, FORK_LEFT_BEHIND, 30, false, begun);
	assert_string_equal(begun, "2:25");
	fork_from(fx, FORK_LEFT_BEHIND, 25, false, begun);
	assert_string_equal(begun, "1:20");
	/* None is older: the newest again. */
	fork_from(fx, FORK_LEFT_BEHIND, 20, false, begun);
	assert_string_equal(begun, "1:30");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			p5_what_was_left_behind_is_returned_to_from_new_to_old, fixture_setup_small,
			fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
