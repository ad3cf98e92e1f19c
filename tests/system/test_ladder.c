/* P5, the whole system: each rung of the ladder is reached for its cause, and no rung above it. A
 * run with three verified checkpoints meets a death that only that rung cures; then it ends. */
#include "proto/state.h"
#include "tests/system/rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/descriptors.h"

#define STEPS 200
#define BATCH 4
#define BEFORE 8 /* steps from the newest checkpoint to the fatal one */
/* Longer than the replay: the climb is not forgotten on the way. */
#define SETTINGS "steps_total=200 interval_steps=60 batch_size=4 engine=openblas"

static bool is_paused(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "paused") == 0 && is_saved(status, value);
}

/* Three checkpoints some steps apart, and nothing runs. Returns the step of the newest. */
static int64_t open_with_checkpoints(struct rig *rig, const char *settings)
{
	int64_t step = 0;

	rig_open(rig, settings);
	rig_start(rig, NULL);
	for (int i = 0; i < 3; i++) {
		rig_wait(rig, "steps", is_step, step + 2);
		json_decref(rig_call(rig, "Pause", NULL, NULL));
		rig_wait(rig, "a pause", is_paused, step + 2);
		step = rig_step(rig);
		json_decref(rig_call(rig, "Resume", NULL, NULL));
	}
	rig_kill_supervisor(rig);
	return step;
}

/* "0125": the rungs that the restarts since event `after` named, in their order. */
static void rungs_taken(struct rig *rig, int64_t after, char ret[32])
{
	AUTO_JSON reply = rig_call(rig, "Events",
		json_pack("{s:i,s:I}", "limit", 10000, "after", (json_int_t)after), NULL);
	const json_t *events = json_object_get(reply, "events");
	size_t count = 0;

	for (size_t i = 0; i < json_array_size(events); i++) {
		const json_t *event = json_array_get(events, i);
		unsigned rung;

		if (strcmp(json_get_text(event, "kind", ""), "restart") != 0 ||
			sscanf(json_get_text(event, "text", ""), "rung %u: restart", &rung) != 1)
			continue;
		assert_true(rung <= 9 && count < 31);
		ret[count++] = (char)('0' + rung);
	}
	ret[count] = '\0';
}

/* Runs to the end under this fault; the restarts must be these, in this order. branch: 0: any. */
static void expect_rungs(struct rig *rig, const char *fault, const char *rungs, int64_t branch)
{
	char taken[32];

	rig_start(rig, fault);
	rig_wait(rig, "the end of the run", is_finished, 0);
	rungs_taken(rig, 0, taken);
	assert_string_equal(taken, rungs);
	AUTO_JSON status = rig_status(rig);
	if (branch > 0)
		assert_int_equal(json_get_int(status, "branch", 0), branch);
	assert_int_equal(json_get_int(status, "rung", -1), 0);
	assert_int_equal(rig_step(rig), STEPS);
}

static void finish(struct rig *rig)
{
	assert_int_equal(rig_stop(rig), 0);
	rig_close(rig);
}

static void p5_rung_0_for_a_crash_that_does_not_come_back(void **unused)
{
	struct rig rig;
	char taken[32];

	open_with_checkpoints(&rig, SETTINGS);
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	kill(rig_worker(&rig, "train"), SIGSEGV);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	rungs_taken(&rig, 0, taken);
	assert_string_equal(taken, "0");
	finish(&rig);
}

/* Flips a bit of the first weight in each slot of the state memory. */
static void flip_state_memory(const struct rig *rig)
{
	struct state state;
	struct error err;
	int fd = open_state_memory(rig->supervisor);

	assert_int_equal(state_map(&state, fd, true, &err), 0);
	for (uint32_t slot = 0; slot < state.header.slot_count; slot++)
		((uint8_t *)state_section(&state, slot, 0))[1] ^= 4;
	state_unmap(&state);
	close(fd);
}

static void p5_rung_1_for_a_memory_that_lies(void **unused)
{
	struct rig rig;
	char taken[32];

	open_with_checkpoints(&rig, SETTINGS);
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	kill(rig_worker(&rig, "train"), SIGSTOP);
	flip_state_memory(&rig);
	kill(rig_worker(&rig, "train"), SIGCONT);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	rungs_taken(&rig, 0, taken);
	assert_string_equal(taken, "1");
	assert_true(rig_event(&rig, "death", "memory corrupt", 0, (char[256]){0}) > 0);
	finish(&rig);
}

/* Whatever starts from the newest checkpoint dies. */
static void p5_rung_2_for_a_newest_checkpoint_that_kills(void **unused)
{
	struct rig rig;
	char fault[96];
	int64_t step = open_with_checkpoints(&rig, SETTINGS);

	snprintf(fault, sizeof(fault), "train.step@%lld/branch1:*:EIO", (long long)step + BEFORE);
	expect_rungs(&rig, fault, "012", 2);
	finish(&rig);
}

/* One batch of the data kills, whichever state meets it. */
static void p5_rung_3_for_data_that_kill(void **unused)
{
	struct rig rig;
	char fault[96];
	int64_t step = open_with_checkpoints(&rig, SETTINGS);

	snprintf(
		fault, sizeof(fault), "train.batch@%lld:*:EIO", (long long)(step + BEFORE) * BATCH);
	expect_rungs(&rig, fault, "0123", 3);
	assert_true(rig_event(&rig, "intervention", "skipping 4 images", 0, (char[256]){0}) > 0);
	finish(&rig);
}

/* Two batches in a row: the data of one step are not enough. */
static void p5_bad_data_side_by_side_are_left_out_in_the_end(void **unused)
{
	struct rig rig;
	char fault[200] = "";
	/* What rung 4 would change: it does not apply. */
	int64_t step = open_with_checkpoints(&rig, SETTINGS " engine=openblas");

	for (int i = 0; i < 2; i++)
		snprintf(fault + strlen(fault), sizeof(fault) - strlen(fault),
			"%strain.batch@%lld:*:EIO", i > 0 ? "," : "",
			(long long)(step + BEFORE + i) * BATCH);
	expect_rungs(&rig, fault, "012355", 0);
	finish(&rig);
}

/* The computation itself kills: with one thread of the plain engine it does not. */
static void p5_rung_4_for_an_engine_that_kills(void **unused)
{
	struct rig rig;
	char fault[96];
	int64_t step = open_with_checkpoints(&rig, SETTINGS " threads=2");

	snprintf(fault, sizeof(fault), "train.step@%lld/threads2:*:EIO", (long long)step + BEFORE);
	expect_rungs(&rig, fault, "01234", 4);
	finish(&rig);
}

/* Nothing below helps: older and older checkpoints, each once more than the one before. */
static void p5_rung_5_when_all_else_failed(void **unused)
{
	struct rig rig;
	char fault[400] = "";
	int64_t step = open_with_checkpoints(&rig, SETTINGS " threads=2");

	for (int branch = 1; branch <= 4; branch++)
		snprintf(fault + strlen(fault), sizeof(fault) - strlen(fault),
			"%strain.step@%lld/branch%d:*:EIO", branch > 1 ? "," : "",
			(long long)step + BEFORE, branch);
	expect_rungs(&rig, fault, "012345", 5);
	finish(&rig);
}

/* No checkpoint yet, and the first save is under way when the ladder would begin a branch from step
 * 0, to which it would not belong. Trainers that begin at step 0 stop at step 20, so that the save
 * has begun before the first of them dies, however quick it is. */
static void p5_a_branch_from_step_0_waits_for_the_first_checkpoint(void **unused)
{
	char text[256];
	struct rig rig;
	pid_t saver;

	rig_open(&rig, "steps_total=200 interval_steps=10 batch_size=4");
	rig_start(&rig,
		"train.step@20/branch1:1:stop,train.step@60/branch1:*:EIO,save.begin@1:*:stop");
	saver = rig_halted(&rig, "save");
	kill(rig_halted(&rig, "train"), SIGCONT);
	rig_wait(&rig, "the death of one from memory", has_died, 2);
	kill(rig_halted(&rig, "train"), SIGCONT);
	rig_wait(&rig, "the death of one from step 0", has_died, 3);
	assert_true(
		rig_event(&rig, "restart", "restart from step 0, on a new branch", 0, text) > 0);
	{
		AUTO_JSON status = rig_status(&rig);

		assert_int_equal(json_get_int(status, "branch", 0), 1);
		assert_string_equal(json_get_text(status, "state", ""), "restarting");
	}
	kill(saver, SIGCONT);
	assert_true(rig_event(&rig, "branch", "branch 2 begins at step-", 0, text) > 0);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	assert_int_equal(rig_step(&rig), STEPS);
	finish(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p5_rung_0_for_a_crash_that_does_not_come_back),
		cmocka_unit_test(p5_rung_1_for_a_memory_that_lies),
		cmocka_unit_test(p5_rung_2_for_a_newest_checkpoint_that_kills),
		cmocka_unit_test(p5_rung_3_for_data_that_kill),
		cmocka_unit_test(p5_bad_data_side_by_side_are_left_out_in_the_end),
		cmocka_unit_test(p5_rung_4_for_an_engine_that_kills),
		cmocka_unit_test(p5_rung_5_when_all_else_failed),
		cmocka_unit_test(p5_a_branch_from_step_0_waits_for_the_first_checkpoint),
	};

	return cmocka_run_group_tests_name("ladder", tests, NULL, NULL);
}
