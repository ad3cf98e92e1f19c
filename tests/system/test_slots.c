/* P2, P3 and P11, the whole system with less memory: what two slots and one slot promise when the
 * trainer dies inside an update. */
#include "tests/system/rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define STEPS 900
#define DEATH "train.update:400:kill" /* in each trainer's 400th update, half done */

static struct digest undisturbed;

static bool is_saving(const json_t *status, int64_t value)
{
	return json_get_int(json_object_get(status, "saver"), "pid", 0) > 0;
}

static bool has_slots(const json_t *status, int64_t value)
{
	return json_get_int(json_object_get(status, "slots"), "count", 0) == value;
}

/* Where the trainer after event `after` went on; from: "memory" or a checkpoint. */
static int64_t resumed_step(struct rig *rig, const char *from, int64_t after)
{
	char text[256];

	if (!rig_event(rig, "training", from, after, text))
		fail_msg("the trainer did not go on from %s", from);
	return strtoll(strstr(text, "at step ") + strlen("at step "), NULL, 10);
}

static void expect_promises(struct rig *rig, int64_t count, bool kept)
{
	rig_wait(rig, "the state memory", has_slots, count);
	AUTO_JSON status = rig_status(rig);
	const json_t *slots = json_object_get(status, "slots");

	assert_int_equal(json_get_bool(slots, "no_step_lost", !kept), kept);
	assert_int_equal(json_get_bool(slots, "no_stall", !kept), kept);
}

/* Savers that stopped themselves go on. */
static bool is_finished_without_stops(const json_t *status, int64_t value)
{
	pid_t pid = (pid_t)json_get_int(json_object_get(status, "saver"), "pid", 0);

	if (pid > 0)
		kill(pid, SIGCONT);
	return is_finished(status, value);
}

static void expect_same_end(struct rig *rig)
{
	struct digest digest;

	rig_wait(rig, "the end of the run", is_finished_without_stops, 0);
	digest = rig_digest(rig, STEPS);
	assert_true(digest_equal(&digest, &undisturbed));
	assert_int_equal(rig_stop(rig), 0);
	rig_close(rig);
}

static int run_undisturbed(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=900 slots=3");
	rig_start(&rig, NULL);
	expect_promises(&rig, 3, true);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	undisturbed = rig_digest(&rig, STEPS);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
	return 0;
}

static void p3_two_slots_repeat_the_steps_since_the_pin(void **unused)
{
	int64_t pinned, after;
	struct rig rig;

	rig_open(&rig, "steps_total=900 slots=2");
	rig_start(&rig, "save.reserved:1:stop," DEATH);
	expect_promises(&rig, 2, false);
	rig_wait(&rig, "a step", is_step, 1);
	after = rig_last_event(&rig);
	rig_send(&rig, "Save");
	rig_wait(&rig, "a save", is_saving, 0);
	{
		AUTO_JSON status = rig_status(&rig);

		pinned = json_get_int(json_object_get(status, "saver"), "step", -1);
	}
	rig_wait(&rig, "a restart", has_restarted, 1);
	assert_int_equal(resumed_step(&rig, "from memory", after), pinned);
	expect_same_end(&rig);
}

/* The saver stands still with its copy, and the loop goes on. */
static void p4_one_slot_is_held_for_a_copy_only(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=900 slots=1");
	rig_start(&rig, "save.reserved:1:stop");
	expect_promises(&rig, 1, false);
	rig_wait(&rig, "steps", is_step, 10);
	rig_send(&rig, "Save");
	rig_wait(&rig, "a save", is_saving, 0);
	rig_wait(&rig, "training beside it", is_step, rig_step(&rig) + 20);
	assert_true(rig_worker(&rig, "save") > 0);
	expect_same_end(&rig);
}

/* As many as fit: the daemon starts with what there is, and says what it promises. */
static void auto_takes_the_slots_that_fit(void **unused)
{
	static const char *const faults[] = {
		NULL, "ckptd-state:1:ENOMEM", "ckptd-state:1:ENOMEM,ckptd-state:2:ENOMEM"};

	for (int missing = 0; missing < 3; missing++) {
		struct rig rig;

		rig_open(&rig, "steps_total=20 slots=auto");
		rig_start(&rig, faults[missing]);
		expect_promises(&rig, 3 - missing, missing == 0);
		rig_wait(&rig, "the end of the run", is_finished, 0);
		assert_int_equal(rig_stop(&rig), 0);
		rig_close(&rig);
	}
}

/* Where there is no memory for a copy training waits for the disk. */
static void one_slot_without_a_copy_stalls_until_it_is_saved(void **unused)
{
	struct rig rig;
	int64_t step, saved;
	char id[64];

	rig_open(&rig, "steps_total=900 slots=1");
	rig_start(&rig, "ckptd-copy:*:ENOMEM");
	rig_wait(&rig, "steps", is_step, 10);
	rig_save(&rig, id, &saved);
	step = rig_step(&rig);
	rig_wait(&rig, "training after it", is_step, step + 20);
	{
		AUTO_JSON status = rig_status(&rig);

		assert_true(json_get_int(json_object_get(status, "save"), "stalls", 0) > 0);
	}
	expect_same_end(&rig);
}

static void p3_one_slot_goes_back_to_the_disk(void **unused)
{
	int64_t saved, after;
	char id[64];
	struct rig rig;

	rig_open(&rig, "steps_total=900 slots=1 interval_steps=200");
	rig_start(&rig, DEATH);
	expect_promises(&rig, 1, false);
	rig_wait(&rig, "steps", is_step, 210);
	rig_save(&rig, id, &saved);
	after = rig_last_event(&rig);
	rig_wait(&rig, "a restart", has_restarted, 1);
	assert_true(resumed_step(&rig, "from ", after) >= saved);
	expect_same_end(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p3_two_slots_repeat_the_steps_since_the_pin),
		cmocka_unit_test(p4_one_slot_is_held_for_a_copy_only),
		cmocka_unit_test(p3_one_slot_goes_back_to_the_disk),
		cmocka_unit_test(one_slot_without_a_copy_stalls_until_it_is_saved),
		cmocka_unit_test(auto_takes_the_slots_that_fit),
	};

	return cmocka_run_group_tests_name("slots", tests, run_undisturbed, NULL);
}
