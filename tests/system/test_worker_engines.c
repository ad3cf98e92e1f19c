/* Which engine the worker computes with: recorded, kept, replaced, forced, changed; and P2 on each
 * of them. A test is the supervisor, as in test_worker_roles. */
#include "base/config.h"
#include "tests/system/play.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The engine of the record's last entry that names one, with who chose it: "amx (auto)". */
static const char *recorded_engine(const struct state_record *record, uint64_t *ret_step)
{
	const char *value = "";

	for (uint32_t i = 0; i < record->intervention_count; i++)
		if (record->interventions[i].kind == INTERVENTION_ENGINE) {
			value = record->interventions[i].value;
			*ret_step = record->interventions[i].step;
		}
	return value;
}

/* A new run of the tiny net, three steps in. */
static struct child begin(struct play *play)
{
	struct config config = play_tiny_config();
	struct child child;

	config.steps_total = 100000;
	play_begin(play, &config, 3);
	child = play_trainer(play, "disk", "scratch", NULL);
	play_wait_step(play, 3);
	return child;
}

/* A trainer goes on from memory and is killed at once: what it said, and the record it left. */
static json_t *resumed(struct play *play, json_t *extra, struct state_record *ret)
{
	struct child child = play_start(play, "train", "memory", extra);
	json_t *ready = child_frame(&child, "ready");

	if (!ready)
		fail_msg("%s", child.failed);
	play_kill(play, &child);
	assert_int_equal(state_newest_record(&play->state, ret), 0);
	return ready;
}

/* As if auto had chosen this one for the run. */
static void rewrite_engine(struct play *play, const char *value)
{
	struct state_record record;

	assert_int_equal(state_newest_record(&play->state, &record), 0);
	for (uint32_t i = 0; i < record.intervention_count; i++)
		if (record.interventions[i].kind == INTERVENTION_ENGINE)
			snprintf(record.interventions[i].value,
				sizeof(record.interventions[i].value), "%s", value);
	state_commit_record(&play->state, &record);
}

static void p2_the_engine_of_auto_is_recorded_and_kept(void **unused)
{
	struct state_record record;
	struct child child;
	struct play play;
	char chosen[48];
	uint64_t at = 99;
	uint32_t count;

	child = begin(&play);
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	snprintf(chosen, sizeof(chosen), "%s", recorded_engine(&record, &at));
	assert_int_equal(at, 0);
	assert_non_null(strstr(chosen, " (auto)"));
	count = record.intervention_count;
	{
		AUTO_JSON ready = resumed(&play, NULL, &record);
		const char *name = json_get_text(ready, "engine", "?");

		assert_int_equal(strncmp(chosen, name, strlen(name)), 0);
		assert_int_equal(record.intervention_count, count);
	}
	rewrite_engine(&play, "openblas (auto)");
	{
		AUTO_JSON ready = resumed(&play, NULL, &record);

		assert_string_equal(json_get_text(ready, "engine", ""), "openblas");
		assert_int_equal(record.intervention_count, count);
	}
	/* Its net is too narrow for amx. */
	rewrite_engine(&play, "amx (auto)");
	child = play_start(&play, "train", "memory", NULL);
	{
		AUTO_JSON event = child_frame(&child, "event");
		AUTO_JSON ready = child_frame(&child, "ready");

		assert_string_equal(json_get_text(event, "kind", ""), "engine");
		assert_non_null(strstr(
			json_get_text(event, "text", ""), "amx of the run cannot run here: "));
		assert_non_null(strstr(
			json_get_text(ready, "engine_reason", ""), "divisible by 32, not 16"));
	}
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	assert_string_equal(recorded_engine(&record, &at), chosen);
	assert_true(at >= 3);
	play_close(&play);
}

static void p5_the_safe_engine_is_recorded_and_given_back(void **unused)
{
	struct state_record record;
	struct child child;
	struct play play;
	char chosen[48];
	uint64_t at = 0;

	child = begin(&play);
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	snprintf(chosen, sizeof(chosen), "%s", recorded_engine(&record, &at));
	{
		AUTO_JSON ready = resumed(
			&play, json_pack("{s:s,s:i}", "engine", "openblas", "threads", 1), &record);

		assert_string_equal(json_get_text(ready, "engine", ""), "openblas");
		assert_non_null(strstr(json_get_text(ready, "engine_reason", ""), "safe engine"));
		assert_string_equal(recorded_engine(&record, &at), "openblas (ladder)");
		assert_int_equal(at, json_get_int(ready, "step", -1));
	}
	json_decref(resumed(&play, NULL, &record));
	assert_string_equal(recorded_engine(&record, &at), chosen);
	play_close(&play);
}

static void a_reload_changes_the_engine_between_two_steps(void **unused)
{
	struct state_record record;
	struct child child;
	struct play play;
	uint64_t at = 0, bytes;

	child = begin(&play);
	bytes = atomic_load(&play.progress->plan_bytes);
	{
		AUTO_JSON refused = json_pack("{s:{s:{s:s}}}", "reload", "config", "engine", "amx");
		AUTO_JSON taken = json_pack("{s:{s:{s:s,s:s}}}", "reload", "config", "engine",
			"openblas", "recompute", "blocks");
		AUTO_JSON event = NULL;
		AUTO_JSON plan = NULL;

		assert_int_equal(frame_send(child.link, refused, 0), 0);
		event = child_frame(&child, "reload_refused");
		assert_non_null(
			strstr(json_get_text(event, "text", ""), "engine = amx cannot run here"));
		assert_int_equal(frame_send(child.link, taken, 0), 0);
		plan = child_frame(&child, "plan");
		assert_string_equal(json_get_text(plan, "engine", ""), "openblas");
		assert_string_equal(json_get_text(plan, "engine_reason", ""), "as configured");
		assert_int_equal(json_get_int(plan, "plan_bytes", 0),
			atomic_load(&play.progress->plan_bytes));
		assert_true(atomic_load(&play.progress->plan_bytes) != bytes);
	}
	play_wait_step(&play, atomic_load(&play.progress->step) + 4);
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	assert_string_equal(recorded_engine(&record, &at), "openblas (config)");
	assert_true(at >= 3 && at < record.step);
	play_close(&play);
}

/* A net that every engine takes, to its end: undisturbed, or killed twice and with other threads
 * and its insides computed again. False when this machine lacks the engine. */
static bool run_on_engine(const char *engine, bool disturbed, struct digest *ret)
{
	struct config config = play_tiny_config();
	struct child child;
	struct error err;
	struct play play;

	assert_int_equal(config_set(&config, "channels", "32,64", "test", &err), 0);
	assert_int_equal(config_set(&config, "engine", engine, "test", &err), 0);
	config.threads = disturbed ? 3 : 1;
	if (disturbed)
		strcpy(config.recompute, "blocks");
	play_open(&play, &config);
	child = play_start(&play, "prepare", "disk", NULL);
	if (child_end(&child, (char[TAIL_MAX]){0}) != LINK_EXIT_DONE) {
		assert_non_null(strstr(child.failed, "cannot run here"));
		play_close(&play);
		return false;
	}
	play_prepare(&play);
	play_make_memory(&play, 3);
	for (uint64_t kill_count = 0; disturbed && kill_count < 2; kill_count++) {
		child = play_trainer(&play, kill_count ? "memory" : "disk",
			kill_count ? "memory" : "scratch", NULL);
		play_wait_step(&play, 5 + 7 * kill_count);
		play_kill(&play, &child);
		play.config.threads = 2;
	}
	play_to_end(&play, disturbed ? "memory" : "disk", disturbed ? "memory" : "scratch");
	*ret = play_digest(&play);
	play_close(&play);
	return true;
}

static void p2_on_each_engine_kills_threads_and_recomputing_leave_the_same_bits(void **unused)
{
	static const char *const engines[] = {"openblas", "avx512", "amx"};
	struct digest digest[3] = {0}, disturbed;

	for (int i = 0; i < 3; i++) {
		if (!run_on_engine(engines[i], false, &digest[i])) {
			print_message("# %s does not run here\n", engines[i]);
			continue;
		}
		assert_true(run_on_engine(engines[i], true, &disturbed));
		assert_same_bits(&digest[i], &disturbed);
		/* And it is this engine that has computed. */
		for (int j = 0; j < i; j++)
			assert_false(digest_equal(&digest[i], &digest[j]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p2_the_engine_of_auto_is_recorded_and_kept),
		cmocka_unit_test(p5_the_safe_engine_is_recorded_and_given_back),
		cmocka_unit_test(a_reload_changes_the_engine_between_two_steps),
		cmocka_unit_test(
			p2_on_each_engine_kills_threads_and_recomputing_leave_the_same_bits),
	};

	setenv("GOMP_SPINCOUNT", "1000", 1);
	return cmocka_run_group_tests_name("worker engines", tests, NULL, NULL);
}
