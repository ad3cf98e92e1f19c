/* P6: hangs are found, and only hangs. */
#include "supervisor/watchdog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define TICK (100 * NSEC_PER_MSEC)
#define PRIOR (60 * NSEC_PER_SEC)

static struct watchdog fresh(void)
{
	struct watchdog watchdog;

	watchdog_init(&watchdog, TICK, PRIOR);
	watchdog_begin(&watchdog, 0, 0);
	return watchdog;
}

/* Steps of so many ticks, each with a move in every tick. */
static void train(struct watchdog *watchdog, uint64_t steps, uint64_t *moves, uint64_t *step)
{
	for (uint64_t i = 0; i < steps; i++) {
		++*moves;
		++*step;
		assert_false(watchdog_tick(watchdog, TICK, *moves, *step, WATCHDOG_STEP));
	}
}

/* Ticks without a move until it says so; -1 when it never does. */
static int ticks_to_verdict(
	struct watchdog *watchdog, nsec_t elapsed_ns, uint64_t moves, uint64_t step, int limit)
{
	for (int i = 1; i <= limit; i++)
		if (watchdog_tick(watchdog, elapsed_ns, moves, step, WATCHDOG_STEP))
			return i;
	return -1;
}

static void p6_the_prior_holds_at_first(void **unused)
{
	struct watchdog watchdog = fresh();

	assert_int_equal(ticks_to_verdict(&watchdog, TICK, 0, 0, 1000), PRIOR / TICK + 1);
}

static void p6_the_deadline_is_learned(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, WATCHDOG_LEARN_STEPS, &moves, &step);
	assert_true(watchdog_deadline_ns(&watchdog) == WATCHDOG_FLOOR_NS);
	assert_int_equal(
		ticks_to_verdict(&watchdog, TICK, moves, step, 1000), WATCHDOG_FLOOR_NS / TICK + 1);
}

static void p6_a_slow_run_gets_a_long_deadline(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	for (int i = 0; i < 400; i++) {
		for (int j = 0; j < 99; j++)
			assert_false(watchdog_tick(&watchdog, TICK, moves, step, WATCHDOG_STEP));
		moves++;
		step++;
		assert_false(watchdog_tick(&watchdog, TICK, moves, step, WATCHDOG_STEP));
	}
	/* Gaps of ten seconds. */
	assert_in_range(watchdog_deadline_ns(&watchdog), 35 * NSEC_PER_SEC, 40 * NSEC_PER_SEC);
}

/* A restart loads a checkpoint first: the learned deadline waits for a first step. */
static void p6_a_new_trainer_gets_the_prior_until_it_steps(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, 300, &moves, &step);
	watchdog_begin(&watchdog, moves, step);
	assert_true(watchdog_deadline_ns(&watchdog) == PRIOR);
	train(&watchdog, 1, &moves, &step);
	assert_true(watchdog_deadline_ns(&watchdog) == WATCHDOG_FLOOR_NS);
}

static void p6_a_suspend_is_no_hang(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, 300, &moves, &step);
	assert_false(watchdog_tick(&watchdog, 8 * 3600 * NSEC_PER_SEC, moves, step, WATCHDOG_STEP));
	assert_true(watchdog.quiet_ns == 0);
	/* What comes after counts from zero. */
	assert_int_equal(
		ticks_to_verdict(&watchdog, TICK, moves, step, 1000), WATCHDOG_FLOOR_NS / TICK + 1);
}

/* Always late is a busy machine: a hang is still found, by the number of ticks. */
static void p6_a_machine_that_is_always_late_still_finds_it(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, 300, &moves, &step);
	assert_int_equal(ticks_to_verdict(&watchdog, 10 * TICK, moves, step, 1000),
		WATCHDOG_FLOOR_NS / TICK + 2);
}

static void p6_waiting_for_a_save_is_no_hang(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, 300, &moves, &step);
	for (int i = 0; i < 10000; i++)
		assert_false(watchdog_tick(&watchdog, TICK, moves, step, WATCHDOG_EXCUSED));
}

/* A preview waits for a disk, however fast the steps are. */
static void p6_outside_of_a_step_the_prior_holds(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;
	int ticks = 0;

	train(&watchdog, 300, &moves, &step);
	while (!watchdog_tick(&watchdog, TICK, moves, step, WATCHDOG_OTHER))
		ticks++;
	assert_int_equal(ticks, PRIOR / TICK);
	/* And that gap taught nothing about steps. */
	train(&watchdog, 1, &moves, &step);
	assert_true(watchdog_deadline_ns(&watchdog) == WATCHDOG_FLOOR_NS);
}

/* Once in an hour is no 99.9th percentile. */
static void p6_a_rare_long_gap_is_remembered(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;

	train(&watchdog, 3000, &moves, &step);
	assert_int_equal(ticks_to_verdict(&watchdog, TICK, moves, step, 8), -1);
	train(&watchdog, 3000, &moves, &step);
	assert_true(watchdog_deadline_ns(&watchdog) == 9 * TICK * 3 / 2);
}

/* A machine that became slow is not killed again and again. */
static void p6_hangs_in_a_row_double_the_deadline(void **unused)
{
	struct watchdog watchdog = fresh();
	uint64_t moves = 0, step = 0;
	nsec_t deadline_ns = WATCHDOG_FLOOR_NS;

	train(&watchdog, 300, &moves, &step);
	for (int i = 0; i < 12; i++) {
		assert_true(ticks_to_verdict(&watchdog, TICK, moves, step, 1000) > 0);
		watchdog_hung(&watchdog);
		watchdog_begin(&watchdog, moves, step);
		train(&watchdog, 5, &moves, &step);
		deadline_ns = 2 * deadline_ns < PRIOR ? 2 * deadline_ns : PRIOR;
		assert_true(watchdog_deadline_ns(&watchdog) == deadline_ns);
	}
	train(&watchdog, WATCHDOG_LEARN_STEPS, &moves, &step);
	assert_true(watchdog_deadline_ns(&watchdog) == WATCHDOG_FLOOR_NS);
}

static void a_move_takes_the_verdict_back(void **unused)
{
	struct watchdog watchdog = fresh();

	assert_true(ticks_to_verdict(&watchdog, TICK, 0, 0, 1000) > 0);
	assert_false(watchdog_tick(&watchdog, TICK, 1, 0, WATCHDOG_STEP));
	assert_false(watchdog_tick(&watchdog, TICK, 1, 0, WATCHDOG_STEP));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p6_the_prior_holds_at_first),
		cmocka_unit_test(p6_the_deadline_is_learned),
		cmocka_unit_test(p6_a_slow_run_gets_a_long_deadline),
		cmocka_unit_test(p6_a_new_trainer_gets_the_prior_until_it_steps),
		cmocka_unit_test(p6_a_suspend_is_no_hang),
		cmocka_unit_test(p6_a_machine_that_is_always_late_still_finds_it),
		cmocka_unit_test(p6_waiting_for_a_save_is_no_hang),
		cmocka_unit_test(p6_outside_of_a_step_the_prior_holds),
		cmocka_unit_test(p6_a_rare_long_gap_is_remembered),
		cmocka_unit_test(p6_hangs_in_a_row_double_the_deadline),
		cmocka_unit_test(a_move_takes_the_verdict_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
