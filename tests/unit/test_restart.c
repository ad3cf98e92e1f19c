/* The ladder. P5: never gives up, never spins. P1: only the ladder chooses an older checkpoint, and
 * only after it was asked for by deaths. */
#include "supervisor/restart.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define INTERVAL 100

static struct ladder fresh(uint64_t step)
{
	struct ladder ladder;

	ladder_init(&ladder);
	ladder_progress(&ladder, step, INTERVAL);
	return ladder;
}

static struct restart_supply supply(void)
{
	return (struct restart_supply){
		.memory = true, .count = 4, .steps = {400, 300, 200, 100}, .random = 0};
}

static struct death own(uint64_t step, uint32_t cause)
{
	return (struct death){.kind = DEATH_OWN, .cause = cause, .step = step};
}

static void a_first_death_costs_nothing(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct death death = own(450, 11);
	struct restart_decision decision = ladder_decide(&ladder, &death, &there);

	assert_int_equal(decision.rung, 0);
	assert_int_equal(decision.from, RESTART_MEMORY);
	assert_int_equal(decision.delay_ns, 0);
	assert_true(decision.counted);
}

/* One step fatal again and again: the rungs in their order, the older ones each time. */
static void p5_the_rungs_come_in_order(void **unused)
{
	static const struct {
		uint32_t rung;
		enum restart_from from;
		uint64_t step;
		uint32_t skip;
		bool safe;
	} expected[] = {
		{0, RESTART_MEMORY, 0, 0, false},
		{1, RESTART_NEWEST, 0, 0, false},
		{2, RESTART_FORK_OLDER, 300, 0, false},
		{3, RESTART_FORK_NEWEST, 300, 1, false},
		{4, RESTART_FORK_NEWEST, 300, 1, true},
		{5, RESTART_FORK_OLDER, 200, 2, true},
		{5, RESTART_FORK_OLDER, 100, 2, true},
		{5, RESTART_FORK_LEFT, 0, 2, true},
		{5, RESTART_NEWEST, 0, 0, true},
		{5, RESTART_NEWEST, 0, 0, true},
		{5, RESTART_NEWEST, 0, 0, true},
		{5, RESTART_FORK_OLDER, 300, 4, true},
	};
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	nsec_t before_ns = 0;

	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		struct death death = own(450, 11);
		struct restart_decision decision = ladder_decide(&ladder, &death, &there);

		assert_int_equal(decision.rung, expected[i].rung);
		assert_int_equal(decision.from, expected[i].from);
		if (expected[i].step > 0)
			assert_int_equal(decision.step, expected[i].step);
		assert_int_equal(decision.skip_window, expected[i].skip);
		assert_int_equal(decision.safe_engine, expected[i].safe);
		assert_true(decision.delay_ns == 0 || decision.delay_ns > before_ns);
		before_ns = decision.delay_ns;
		/* A fork leaves what was newer off the line. */
		if (decision.from == RESTART_FORK_OLDER) {
			while (there.count > 0 && there.steps[0] > decision.step) {
				memmove(there.steps, there.steps + 1,
					(RESTART_STEPS_MAX - 1) * sizeof(there.steps[0]));
				there.count--;
			}
			there.left_behind = true;
			there.memory = false;
		} else if (decision.from == RESTART_FORK_LEFT) {
			there = supply();
		}
	}
}

/* What was made of the oldest one is bad, and nothing was left behind: it is begun at again. */
static void p5_a_round_begins_at_the_newest_whatever_was_taken(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = {.count = 2, .steps = {300, 200}};
	struct restart_decision decision = {0};
	bool again = false;

	for (uint32_t i = 0; i < 12; i++) {
		struct death death = own(450, 11);

		decision = ladder_decide(&ladder, &death, &there);
		again = again || (i > 4 && decision.from == RESTART_FORK_OLDER);
		assert_true(decision.from != RESTART_FORK_OLDER || decision.step == 200);
	}
	assert_true(again);
}

/* Whatever it dies of, and though each branch makes new checkpoints: tried for ever, at the slowest
 * pace, and no more branches. A step further they may begin again. */
static void p5_a_death_that_nothing_cures_makes_no_branches_in_the_end(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};
	uint32_t forks = 0, late_forks = 0;

	there.left_behind = true;
	for (uint32_t i = 0; i < 60000; i++) {
		struct death death = own(450, 11 + i % LADDER_FATAL_MAX);

		decision = ladder_decide(&ladder, &death, &there);
		forks += restart_forks(decision.from);
		late_forks += i >= 30000 && restart_forks(decision.from);
	}
	assert_int_equal(decision.rung, LADDER_RUNG_MAX);
	assert_int_equal(decision.from, RESTART_NEWEST);
	assert_true(decision.delay_ns == LADDER_DELAY_MAX_NS);
	assert_int_equal(late_forks, 0);
	assert_in_range(forks, LADDER_ROUNDS_MAX, LADDER_ROUNDS_MAX * there.count + 3);

	ladder_progress(&ladder, 451, INTERVAL);
	forks = 0;
	for (uint32_t i = 0; i < 6; i++) {
		struct death death = own(451, 11);

		decision = ladder_decide(&ladder, &death, &there);
		forks += restart_forks(decision.from);
	}
	assert_true(forks > 0);
}

static void p5_a_poisoned_newest_is_left_within_three_tries(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};

	for (int i = 0; i < 3; i++) {
		struct death death = own(450 + (uint64_t)i % 2, 11 + (uint32_t)i);

		decision = ladder_decide(&ladder, &death, &there);
	}
	assert_int_equal(decision.from, RESTART_FORK_OLDER);
	assert_int_equal(decision.step, 300);
}

static void without_memory_rung_0_is_not_applicable(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct death death = own(450, 11);

	there.memory = false;
	struct restart_decision decision = ladder_decide(&ladder, &death, &there);

	assert_int_equal(decision.rung, 1);
	assert_int_equal(decision.not_applicable, 1u << 0);
	assert_int_equal(decision.from, RESTART_NEWEST);
}

static void rung_2_without_an_older_one_stays_on_the_newest(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = {.memory = true, .count = 1, .steps = {400}};
	struct restart_decision decision = {0};

	for (uint32_t i = 0; i < 3; i++) {
		struct death death = own(450, i);

		decision = ladder_decide(&ladder, &death, &there);
	}
	assert_int_equal(decision.rung, 2);
	assert_int_equal(decision.from, RESTART_NEWEST);
}

static void progress_makes_the_next_death_a_first_one(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();

	for (int i = 0; i < 3; i++) {
		struct death death = own(450, 11);

		ladder_decide(&ladder, &death, &there);
	}
	ladder_progress(&ladder, 451, INTERVAL);
	struct death death = own(451, 11);
	struct restart_decision decision = ladder_decide(&ladder, &death, &there);

	assert_int_equal(decision.rung, 0);
	assert_int_equal(decision.delay_ns, 0);
	assert_int_equal(ladder.since_reset, 4);
	ladder_progress(&ladder, 450 + INTERVAL, INTERVAL);
	assert_int_equal(ladder.since_reset, 0);
	assert_int_equal(ladder.rung, 0);
}

static void replaying_old_steps_is_no_progress(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct death first = own(450, 11), second = own(430, 6);

	ladder_decide(&ladder, &first, &there);
	ladder_progress(&ladder, 430, INTERVAL);
	struct restart_decision decision = ladder_decide(&ladder, &second, &there);

	assert_int_equal(decision.rung, 1);
	assert_int_equal(ladder.counted, 2);
}

static void deaths_at_differing_steps_stay_below_rung_3(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	nsec_t before_ns = 0;

	for (uint32_t i = 0; i < 40; i++) {
		struct death death = own(410 + i, 11);
		struct restart_decision decision = ladder_decide(&ladder, &death, &there);

		assert_in_range(decision.rung, 0, 2);
		assert_false(decision.skip_window);
		assert_true(decision.delay_ns >= before_ns);
		before_ns = decision.delay_ns;
		if (i > 2 && decision.delay_ns < LADDER_DELAY_MAX_NS)
			assert_int_equal(decision.from, RESTART_NEWEST);
	}
	assert_true(before_ns == LADDER_DELAY_MAX_NS);
}

/* Two faults in turn must not lead in a circle: evidence survives other deaths in between. */
static void evidence_survives_other_deaths(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};

	for (uint32_t i = 0; i < 3; i++) {
		struct death fatal = own(450, 11), other = own(431 + i, 11);

		decision = ladder_decide(&ladder, &fatal, &there);
		if (i < 2)
			ladder_decide(&ladder, &other, &there);
	}
	assert_int_equal(decision.rung, 3);
	assert_true(decision.skip_window);
}

/* What a branch leaves out before bad data makes them come at an earlier step. */
static void p5_bad_data_are_known_again_at_another_step(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};

	for (uint32_t i = 0; i < 4; i++) {
		struct death death = own(450 - i, 11);

		death.images = 7200;
		decision = ladder_decide(&ladder, &death, &there);
		assert_int_equal(decision.skip_window, i < 3 ? 0 : 1);
	}
	assert_int_equal(decision.rung, 3);
	/* Neither step nor data: nothing is known of it. */
	struct death death = own(430, 11);

	death.images = 7000;
	decision = ladder_decide(&ladder, &death, &there);
	assert_int_equal(decision.skip_window, 0);
}

static void a_held_trainer_that_steps_goes_on_from_memory(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};

	for (uint32_t i = 0; i < 5; i++) {
		struct death death = own(410 + i, 11);

		death.stepped = i == 4;
		decision = ladder_decide(&ladder, &death, &there);
	}
	assert_int_equal(decision.rung, 2);
	assert_int_equal(decision.from, RESTART_MEMORY);
	assert_true(decision.delay_ns <= LADDER_DELAY_MOVING_MAX_NS);
}

static void before_the_first_checkpoint_bad_data_is_skipped_from_the_start(void **unused)
{
	struct ladder ladder = fresh(31);
	struct restart_supply there = {.memory = true, .scratch = true};
	struct restart_decision decision = {0};

	for (uint32_t i = 0; i < 3; i++) {
		struct death death = own(31, 11);

		decision = ladder_decide(&ladder, &death, &there);
	}
	assert_int_equal(decision.rung, 3);
	assert_int_equal(decision.not_applicable, 1u << 2);
	assert_int_equal(decision.from, RESTART_FORK_START);
	assert_true(decision.skip_window);
}

static void kills_from_outside_do_not_climb(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();

	for (int i = 0; i < 1000; i++) {
		struct death death = {
			.kind = DEATH_OUTSIDE, .cause = 9, .step = 450, .stepped = true};
		struct restart_decision decision = ladder_decide(&ladder, &death, &there);

		assert_int_equal(decision.rung, 0);
		assert_int_equal(decision.from, RESTART_MEMORY);
		assert_int_equal(decision.delay_ns, 0);
		assert_false(decision.counted);
	}
}

static void three_kills_without_a_step_count_as_one(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	int counted = 0;

	for (int i = 0; i < 9; i++) {
		struct death death = {.kind = DEATH_OUTSIDE, .cause = 9, .step = 450};

		counted += ladder_decide(&ladder, &death, &there).counted;
	}
	assert_int_equal(counted, 3);
	assert_int_equal(ladder.rung, 2);
}

static void corrupt_memory_is_never_resumed(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct death death = {.kind = DEATH_MEMORY_CORRUPT, .cause = 1002, .step = 450};
	struct restart_decision decision = ladder_decide(&ladder, &death, &there);

	assert_int_equal(decision.rung, 1);
	assert_int_equal(decision.from, RESTART_NEWEST);
	there.count = 0;
	decision = ladder_decide(&ladder, &death, &there);
	assert_int_not_equal(decision.from, RESTART_MEMORY);
}

static void nonfinite_updates_go_straight_to_rung_3(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct death death = {.kind = DEATH_NONFINITE, .cause = 333, .step = 450};
	struct restart_decision decision = ladder_decide(&ladder, &death, &there);

	assert_int_equal(decision.rung, 3);
	assert_int_equal(decision.from, RESTART_FORK_OLDER);
	assert_int_equal(decision.step, 300);
	assert_true(decision.skip_window);
}

static void the_suspicion_is_withdrawn_when_the_older_one_dies_there_too(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();
	struct restart_decision decision = {0};

	for (int i = 0; i < 3; i++) {
		struct death death = own(450, 11);

		decision = ladder_decide(&ladder, &death, &there);
		assert_false(decision.withdrawn);
	}
	there.count = 3;
	memmove(there.steps, there.steps + 1, 3 * sizeof(there.steps[0]));
	struct death death = own(450, 11);

	decision = ladder_decide(&ladder, &death, &there);
	assert_true(decision.withdrawn);
	assert_int_equal(decision.rung, 3);
}

static void storage_errors_wait_and_do_not_climb(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply there = supply();

	for (int i = 0; i < 20; i++) {
		struct death death = {.kind = DEATH_STORAGE, .cause = 330, .step = 450};
		struct restart_decision decision = ladder_decide(&ladder, &death, &there);

		assert_int_equal(decision.rung, 0);
		assert_true(decision.delay_ns >= 3 * NSEC_PER_SEC);
	}
}

/* Each death gets a little further: the wait grows, but stays short. */
static void a_run_that_moves_waits_little(void **unused)
{
	struct ladder ladder = fresh(0);
	struct restart_supply there = supply();
	nsec_t longest_ns = 0;

	for (uint32_t i = 0; i < 60; i++) {
		struct death death = own(i + 1, 11);

		ladder_progress(&ladder, i + 1, INTERVAL);
		struct restart_decision decision = ladder_decide(&ladder, &death, &there);

		assert_int_equal(decision.rung, 0);
		if (i < LADDER_QUICK_RESTARTS)
			assert_int_equal(decision.delay_ns, 0);
		if (decision.delay_ns > longest_ns)
			longest_ns = decision.delay_ns;
	}
	assert_true(longest_ns == LADDER_DELAY_MOVING_MAX_NS);
}

/* All on the line are known to be bad. One that may only be unreadable now is waited for. */
static void p5_what_was_left_behind_is_better_than_nothing(void **unused)
{
	struct ladder ladder = fresh(450);
	struct restart_supply left = {.left_behind = true}, unread = {.left_behind = true};
	struct death death = {.kind = DEATH_TRANSIENT, .cause = 75, .step = 450};
	struct restart_decision decision;

	unread.unread = true;
	decision = ladder_decide(&ladder, &death, &unread);
	assert_int_equal(decision.from, RESTART_NEWEST);
	decision = ladder_decide(&ladder, &death, &left);
	assert_int_equal(decision.from, RESTART_FORK_LEFT);
	assert_false(decision.counted);
	assert_true(decision.delay_ns > 0);
	/* Where that is no use, it is not a branch each time. */
	for (int i = 0; i < LADDER_ROUNDS_MAX; i++)
		decision = ladder_decide(&ladder, &death, &left);
	assert_int_equal(decision.from, RESTART_NEWEST);
	assert_true(decision.delay_ns == LADDER_DELAY_MAX_NS);
}

static void the_ladder_keeps_its_seal(void **unused)
{
	struct ladder ladder = fresh(450);

	ladder_seal(&ladder);
	assert_true(ladder_valid(&ladder));
	ladder.rung ^= 1;
	assert_false(ladder_valid(&ladder));
	struct ladder zero = {0};

	assert_false(ladder_valid(&zero));
}

static void backoff_doubles_up_to_its_end(void **unused)
{
	for (uint32_t i = 0; i < 80; i++) {
		nsec_t delay_ns = backoff_ns(100, 5000, i, 0);

		assert_true(delay_ns == (i < 6 ? 100 << i : 5000));
		nsec_t shaken_ns = backoff_ns(100, 5000, i, UINT32_MAX);

		assert_true(shaken_ns >= delay_ns * 3 / 4 && shaken_ns <= delay_ns);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_first_death_costs_nothing),
		cmocka_unit_test(p5_the_rungs_come_in_order),
		cmocka_unit_test(p5_a_round_begins_at_the_newest_whatever_was_taken),
		cmocka_unit_test(p5_a_death_that_nothing_cures_makes_no_branches_in_the_end),
		cmocka_unit_test(p5_a_poisoned_newest_is_left_within_three_tries),
		cmocka_unit_test(without_memory_rung_0_is_not_applicable),
		cmocka_unit_test(rung_2_without_an_older_one_stays_on_the_newest),
		cmocka_unit_test(progress_makes_the_next_death_a_first_one),
		cmocka_unit_test(replaying_old_steps_is_no_progress),
		cmocka_unit_test(deaths_at_differing_steps_stay_below_rung_3),
		cmocka_unit_test(evidence_survives_other_deaths),
		cmocka_unit_test(p5_bad_data_are_known_again_at_another_step),
		cmocka_unit_test(a_held_trainer_that_steps_goes_on_from_memory),
		cmocka_unit_test(before_the_first_checkpoint_bad_data_is_skipped_from_the_start),
		cmocka_unit_test(kills_from_outside_do_not_climb),
		cmocka_unit_test(three_kills_without_a_step_count_as_one),
		cmocka_unit_test(corrupt_memory_is_never_resumed),
		cmocka_unit_test(nonfinite_updates_go_straight_to_rung_3),
		cmocka_unit_test(the_suspicion_is_withdrawn_when_the_older_one_dies_there_too),
		cmocka_unit_test(storage_errors_wait_and_do_not_climb),
		cmocka_unit_test(a_run_that_moves_waits_little),
		cmocka_unit_test(p5_what_was_left_behind_is_better_than_nothing),
		cmocka_unit_test(the_ladder_keeps_its_seal),
		cmocka_unit_test(backoff_doubles_up_to_its_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
