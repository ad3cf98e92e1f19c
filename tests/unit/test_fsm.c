/* The life of the service as a table. P5: no state is a dead end; there is never more than one
 * trainer, whatever is asked for and in whatever order. */
#include "supervisor/fsm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static enum fsm_state feed(enum fsm_state state, const enum fsm_event *events, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct fsm_step step = fsm_next(state, events[i]);

		if (!step.taken)
			fail_msg("%s does not take %s", fsm_state_name(state),
				fsm_event_name(events[i]));
		state = step.next;
	}
	return state;
}

#define FEED(state, ...)                                                                           \
	feed((state), (const enum fsm_event[]){__VA_ARGS__},                                       \
		sizeof((enum fsm_event[]){__VA_ARGS__}) / sizeof(enum fsm_event))

static void every_name_is_there(void **unused)
{
	for (int i = 0; i < FSM_STATE_COUNT; i++) {
		assert_non_null(fsm_state_name(i));
		assert_non_null(fsm_public_name(i));
		for (int j = 0; j < i; j++)
			assert_string_not_equal(fsm_state_name(i), fsm_state_name(j));
	}
	for (int i = 0; i < FSM_EVENT_COUNT; i++)
		for (int j = 0; j < i; j++)
			assert_string_not_equal(fsm_event_name(i), fsm_event_name(j));
}

static void public_names_are_those_of_the_interface(void **unused)
{
	static const char words[] = " starting waiting training saving pausing paused stopping "
				    "stopped restarting finished failed ";

	for (int i = 0; i < FSM_STATE_COUNT; i++) {
		char word[32];

		snprintf(word, sizeof(word), " %s ", fsm_public_name(i));
		assert_non_null(strstr(words, word));
	}
}

static void an_event_that_means_nothing_changes_nothing(void **unused)
{
	for (int i = 0; i < FSM_STATE_COUNT; i++) {
		for (int j = 0; j < FSM_EVENT_COUNT; j++) {
			struct fsm_step step = fsm_next(i, j);

			if (!step.taken) {
				assert_int_equal(step.next, i);
				assert_int_equal(step.actions, 0);
			}
		}
	}
}

static void the_usual_life(void **unused)
{
	enum fsm_state state = FEED(FSM_STARTING, FSM_RUN_FOUND, FSM_PREPARED_RUN, FSM_START);

	assert_int_equal(state, FSM_TRAINING);
	assert_int_equal(FEED(state, FSM_DIED, FSM_START), FSM_TRAINING);
	assert_int_equal(FEED(state, FSM_FINISHED_STEPS, FSM_SAVE_OVER), FSM_FINISHED);
	assert_int_equal(FEED(state, FSM_PAUSE, FSM_GONE, FSM_SAVE_OVER), FSM_PAUSED);
	assert_int_equal(FEED(FSM_PAUSED, FSM_RESUME, FSM_START), FSM_TRAINING);
	assert_int_equal(FEED(state, FSM_STOP, FSM_GONE, FSM_SAVE_OVER), FSM_STOPPED);
	assert_int_equal(FEED(state, FSM_EXIT, FSM_GONE, FSM_SAVE_OVER), FSM_ENDED);
	assert_int_equal(FEED(state, FSM_ROLLBACK, FSM_GONE, FSM_FORKED, FSM_START), FSM_TRAINING);
	assert_int_equal(FEED(FSM_FINISHED, FSM_RETRY, FSM_PREPARED_RUN, FSM_START), FSM_TRAINING);
}

/* What a person asks for last wins, at any moment of the way. */
static void a_later_wish_wins(void **unused)
{
	assert_int_equal(
		FEED(FSM_TRAINING, FSM_PAUSE, FSM_STOP, FSM_GONE, FSM_SAVE_OVER), FSM_STOPPED);
	assert_int_equal(
		FEED(FSM_TRAINING, FSM_PAUSE, FSM_GONE, FSM_EXIT, FSM_SAVE_OVER), FSM_ENDED);
	assert_int_equal(
		FEED(FSM_TRAINING, FSM_ROLLBACK, FSM_STOP, FSM_GONE, FSM_SAVE_OVER), FSM_STOPPED);
	assert_int_equal(
		FEED(FSM_TRAINING, FSM_FINISHED_STEPS, FSM_EXIT, FSM_SAVE_OVER), FSM_ENDED);
}

static void p5_no_state_is_a_dead_end(void **unused)
{
	for (int from = 0; from < FSM_ENDED; from++) {
		bool reached[FSM_STATE_COUNT] = {[0] = false};
		bool grew = true;

		reached[from] = true;
		while (grew) {
			grew = false;
			for (int i = 0; i < FSM_STATE_COUNT; i++) {
				for (int j = 0; reached[i] && j < FSM_EVENT_COUNT; j++) {
					enum fsm_state next = fsm_next(i, j).next;

					grew = grew || !reached[next];
					reached[next] = true;
				}
			}
		}
		/* The end of the daemon is the one way without return. */
		if (from != FSM_EXITING)
			assert_true(reached[FSM_TRAINING]);
		assert_true(reached[FSM_ENDED]);
	}
}

/* The end of the daemon can be asked for in every state, and comes. */
static void exit_is_taken_everywhere(void **unused)
{
	for (int i = 0; i < FSM_ENDED; i++)
		if (i != FSM_EXITING)
			assert_true(fsm_next(i, FSM_EXIT).taken);
}

/* A trainer is spawned only where none can be: from RESTARTING into TRAINING. */
static void there_is_never_a_second_trainer(void **unused)
{
	for (int i = 0; i < FSM_STATE_COUNT; i++) {
		for (int j = 0; j < FSM_EVENT_COUNT; j++) {
			struct fsm_step step = fsm_next(i, j);

			if (step.actions & FSM_DO_SPAWN) {
				assert_int_equal(i, FSM_RESTARTING);
				assert_int_equal(step.next, FSM_TRAINING);
			}
			if (step.next == FSM_TRAINING && i != FSM_TRAINING)
				assert_true(step.actions & FSM_DO_SPAWN);
			if (step.actions & FSM_DO_RELEASE)
				assert_int_equal(step.next, FSM_FINISHED);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_name_is_there),
		cmocka_unit_test(public_names_are_those_of_the_interface),
		cmocka_unit_test(an_event_that_means_nothing_changes_nothing),
		cmocka_unit_test(the_usual_life),
		cmocka_unit_test(a_later_wish_wins),
		cmocka_unit_test(p5_no_state_is_a_dead_end),
		cmocka_unit_test(exit_is_taken_everywhere),
		cmocka_unit_test(there_is_never_a_second_trainer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
