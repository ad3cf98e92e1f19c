/* P3 and P5, the whole system: deaths and loops of the trainer. */
#include "base/clock.h"
#include "tests/system/rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define AHEAD 10  /* nice values of the supervisor before a trainer */
#define BEHIND 10 /* and of a saver that nobody waits for, behind it */

/* The step at which the newest trainer went on, from memory. */
static int64_t resumed_step(struct rig *rig, int64_t after)
{
	char text[256];
	const char *at;

	if (!rig_event(rig, "training", "from memory at step ", after, text))
		fail_msg("the trainer did not go on from memory");
	at = strstr(text, "at step ");
	return strtoll(at + strlen("at step "), NULL, 10);
}

static int64_t death_step(struct rig *rig)
{
	AUTO_JSON status = rig_status(rig);

	return json_get_int(json_object_get(status, "last_death"), "step", -1);
}

/* Each step up to `step` has its row; the database is written behind. */
static void expect_metrics_without_gap(struct rig *rig, int64_t step)
{
	nsec_t deadline = clock_monotonic_ns() + 30 * NSEC_PER_SEC;
	int64_t last = 0;

	while (last < step && clock_monotonic_ns() < deadline) {
		AUTO_JSON metrics = rig_call(rig, "Metrics",
			json_pack("{s:i,s:s}", "limit", 10000, "kind", "train"), NULL);
		const json_t *rows = json_object_get(metrics, "metrics");

		last = 0;
		for (size_t i = 0; i < json_array_size(rows); i++) {
			int64_t row = json_get_int(json_array_get(rows, i), "step", 0);

			assert_int_equal(row, last + 1);
			last = row;
		}
		usleep(20000);
	}
	assert_true(last >= step);
}

static void p3_after_sigkill_the_very_next_step_follows(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	for (int i = 1; i <= 5; i++) {
		int64_t before, after = rig_last_event(&rig), resumed;

		rig_wait(&rig, "some steps", is_step, rig_step(&rig) + 10);
		before = rig_step(&rig);
		kill(rig_worker(&rig, "train"), SIGKILL);
		rig_wait(&rig, "a restart", has_restarted, i);
		resumed = resumed_step(&rig, after);
		/* Nothing finished was lost, and nothing was done that was not finished. */
		assert_true(resumed >= before);
		assert_int_equal(resumed, death_step(&rig));
	}
	{
		AUTO_JSON status = rig_status(&rig);
		const json_t *death = json_object_get(status, "last_death");

		assert_int_equal(json_get_int(status, "rung", -1), 0);
		assert_non_null(strstr(json_get_text(death, "cause", ""), "SIGKILL"));
	}
	expect_metrics_without_gap(&rig, rig_step(&rig));
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

static bool is_on_openblas(const json_t *status, int64_t value)
{
	const json_t *engine = json_object_get(status, "engine");

	return strcmp(json_get_text(engine, "name", ""), "openblas") == 0 &&
		strcmp(json_get_text(engine, "reason", ""), "as configured") == 0;
}

static void p11_the_status_names_the_engine_also_after_a_reload(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	{
		AUTO_JSON status = rig_status(&rig);
		const json_t *engine = json_object_get(status, "engine");

		assert_int_equal(strncmp(json_get_text(engine, "reason", ""), "auto: ", 6), 0);
	}
	rig_set(&rig, "engine", "openblas");
	json_decref(rig_call(&rig, "Reload", NULL, NULL));
	rig_wait(&rig, "the engine to change", is_on_openblas, 0);
	assert_true(rig_event(&rig, "intervention", "engine: auto -> openblas", 0, (char[256]){0}));
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* What the trainer cannot do is not what the next one is started with. */
static void p9_a_reload_that_the_trainer_refuses_changes_nothing(void **unused)
{
	struct rig rig;
	char text[256];

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	rig_set(&rig, "engine", "amx");
	json_decref(rig_call(&rig, "Reload", NULL, NULL));
	assert_true(rig_event(&rig, "reload", "reload refused, all stays as it was", 0, text) > 0);
	{
		AUTO_JSON config = rig_call(&rig, "Config", NULL, NULL);

		assert_string_equal(
			json_get_text(json_object_get(config, "config"), "engine", ""), "auto");
	}
	kill(rig_worker(&rig, "train"), SIGKILL);
	rig_wait(&rig, "a restart", has_restarted, 1);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* Every trainer dies at step 30, whatever it starts from. */
static void p5_a_restart_loop_climbs_slows_down_and_never_ends(void **unused)
{
	nsec_t begun;
	struct rig rig;

	rig_open(&rig, "steps_total=200 interval_steps=10");
	rig_start(&rig, "train.step@30:*:EIO");
	rig_wait(&rig, "a first death", has_died, 1);
	begun = clock_monotonic_ns();
	rig_wait(&rig, "more deaths", has_died, 7);
	/* 100 ms doubling: 0.1 + 0.2 + 0.4 + 0.8 s at the least, before jitter. */
	if (clock_monotonic_ns() - begun < NSEC_PER_SEC)
		fail_msg("six more deaths in less than a second");
	{
		AUTO_JSON status = rig_status(&rig);

		const json_t *engine = json_object_get(status, "engine");

		assert_true(json_get_int(status, "rung", 0) >= 4);
		assert_string_equal(json_get_text(engine, "name", ""), "openblas");
		assert_int_equal(json_get_int(engine, "threads", 0), 1);
		assert_non_null(strstr(json_get_text(engine, "reason", ""), "the safe engine"));
		assert_string_equal(json_get_text(status, "wanted", ""), "run");
		assert_true(json_get_int(json_object_get(status, "last_death"), "step", -1) <= 30);
	}
	/* The cause goes away: it goes on by itself, to the end. */
	rig_kill_supervisor(&rig);
	rig_start(&rig, NULL);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	assert_int_equal(rig_step(&rig), 200);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* A trainer that ends as asked leaves its last rows in the ring, after the last tick. */
static void p11_the_last_numbers_are_kept_and_shown(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=50");
	rig_start(&rig, NULL);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	AUTO_JSON status = rig_status(&rig);
	assert_int_equal(rig_stop(&rig), 0);
	rig_start(&rig, NULL);
	expect_metrics_without_gap(&rig, 50);
	AUTO_JSON metrics = rig_call(
		&rig, "Metrics", json_pack("{s:i,s:s}", "limit", 10000, "kind", "train"), NULL);
	const json_t *rows = json_object_get(metrics, "metrics");
	const json_t *last = json_array_get(rows, json_array_size(rows) - 1);
	assert_true(
		(float)json_get_real(last, "loss", -1) == (float)json_get_real(status, "loss", -2));
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* The caller's nice value after it has tried to go ahead. */
static int nice_ahead(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		(void)setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - AHEAD);
		_exit(getpriority(PRIO_PROCESS, 0) + 20);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status) - 20;
}

/* Of the session that pid leads, where the kernel has such; else what is expected. */
static int session_nice(pid_t pid, int expected)
{
	char path[64];
	int nice;

	snprintf(path, sizeof(path), "/proc/%d/autogroup", (int)pid);
	FILE *file = fopen(path, "re");

	if (!file)
		return expected;
	assert_int_equal(getsid(pid), pid);
	assert_int_equal(fscanf(file, "/autogroup-%*d nice %d", &nice), 1);
	fclose(file);
	return nice;
}

static bool has_normal_priority(const json_t *status, int64_t usual)
{
	pid_t saver = (pid_t)json_get_int(json_object_get(status, "saver"), "pid", 0);

	return saver > 0 && getpriority(PRIO_PROCESS, (id_t)saver) == usual &&
		session_nice(saver, (int)usual) == usual;
}

static void supervisor_goes_ahead_of_its_workers(void **unused)
{
	int usual = getpriority(PRIO_PROCESS, 0), ahead = nice_ahead();
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 interval_steps=5");
	rig_start(&rig, "save.begin@1:1:stop");
	rig_wait(&rig, "a trainer", is_training, 0);
	assert_int_equal(getpriority(PRIO_PROCESS, (id_t)rig.supervisor), ahead);
	assert_int_equal(session_nice(rig.supervisor, ahead), ahead);
	pid_t trainer = rig_worker(&rig, "train"), saver = rig_halted(&rig, "save");

	assert_int_equal(getpriority(PRIO_PROCESS, (id_t)trainer), usual);
	assert_int_equal(session_nice(trainer, usual), usual);
	assert_int_equal(getpriority(PRIO_PROCESS, (id_t)saver), usual + BEHIND);
	assert_int_equal(session_nice(saver, usual + BEHIND), usual + BEHIND);
	/* The trainer waits for it now. */
	rig_send(&rig, "Pause");
	rig_wait(&rig, "a saver of normal priority", has_normal_priority, usual);
	kill(saver, SIGCONT);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p3_after_sigkill_the_very_next_step_follows),
		cmocka_unit_test(p9_a_reload_that_the_trainer_refuses_changes_nothing),
		cmocka_unit_test(p5_a_restart_loop_climbs_slows_down_and_never_ends),
		cmocka_unit_test(supervisor_goes_ahead_of_its_workers),
		cmocka_unit_test(p11_the_last_numbers_are_kept_and_shown),
		cmocka_unit_test(p11_the_status_names_the_engine_also_after_a_reload),
	};

	return cmocka_run_group_tests_name("deaths", tests, NULL, NULL);
}
