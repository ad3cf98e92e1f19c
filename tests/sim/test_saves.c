/* The supervisor around a fake worker: saves that fail, wait, take long, and what is said of them.
 */
#include "tests/sim/rig.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void p7_a_failing_disk_costs_checkpoints_only(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=1");
	sim_behave(fx, "save_exit 74\n");
	sim_start(fx);
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	json_t *now = NULL, *storage;
	int64_t step;

	do {
		usleep(20000);
		json_decref(now);
		now = sim_status(fx);
		storage = json_object_get(now, "storage");
	} while (json_get_bool(storage, "ok", true) && clock_monotonic_ns() < until);
	assert_false(json_get_bool(storage, "ok", true));
	assert_string_equal(json_get_text(storage, "text", ""), "told to fail");
	step = sim_number(now, "step");
	json_decref(now);
	sim_await_only(fx, "training", step + 20, 0);
	sim_behave(fx, "");
	do {
		usleep(20000);
		now = sim_status(fx);
		storage = json_object_get(now, "storage");
		bool good = json_get_bool(storage, "ok", false);

		json_decref(now);
		if (good)
			break;
	} while (clock_monotonic_ns() < until);
	assert_true(sim_told(fx, "storage-ok"));
	assert_true(sim_told(fx, "saved"));
}

static void a_killed_saver_is_tried_again(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "save_kill 1\n");
	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	json_t *reply = sim_call(fx, "Save", json_pack("{s:b}", "wait", 1));

	assert_non_null(json_object_get(reply, "error"));
	json_decref(reply);
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int64_t saved;

	do {
		json_t *now = sim_status(fx);

		saved = sim_newest_step(now);
		json_decref(now);
		usleep(20000);
	} while (saved < 0 && clock_monotonic_ns() < until);
	assert_true(saved >= 5);
}

static json_t *save_call(void)
{
	return json_pack(
		"{s:s, s:{s:b}}", "method", "io.ckptd.Training.Save", "parameters", "wait", 1);
}

/* With one slot there is no whole state most of the time here; each save waits for one. */
static void p4_a_save_waits_for_the_only_slot(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_set(fx, "slots=1");
	sim_behave(fx, "step_us 20000\nupdate_us 60000\n");
	sim_start(fx);
	sim_await_only(fx, "training", 2, 0);
	for (int i = 0; i < 5; i++)
		sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	sim_call_good(fx, "Stop", NULL);
	assert_true(sim_number_of(fx, "restarts") == 0);
}

/* Stopped inside the update: the state that was waited for never comes, and the caller hears it. */
static void a_save_that_waits_is_answered_by_a_stop(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_set(fx, "slots=1");
	sim_behave(fx, "update_us 1000000000\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 0, 0);
	int fd = sim_connect_now(fx);

	while (strcmp(json_get_text(now, "phase", ""), "update") != 0) {
		json_decref(now);
		now = sim_status(fx);
	}
	json_decref(now);
	sim_send(fd, save_call());
	sim_call_good(fx, "Stop", json_pack("{s:b}", "now", 1));
	json_t *reply = sim_take(fd);

	assert_non_null(json_object_get(reply, "error"));
	json_decref(reply);
	close(fd);
}

static int saver_priority(const json_t *status)
{
	pid_t pid = (pid_t)sim_number(json_object_get(status, "saver"), "pid");

	return pid > 0 ? getpriority(PRIO_PROCESS, (id_t)pid) : -1;
}

static void await_saver_priority(const struct fixture *fx, int priority)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int seen;

	do {
		json_t *now = sim_status(fx);

		seen = saver_priority(now);
		json_decref(now);
		usleep(5000);
	} while (seen != priority && clock_monotonic_ns() < until);
	assert_int_equal(seen, priority);
}

/* Below the trainer at first; not for ever, or it would never be over on a busy machine. */
static void a_save_that_takes_long_gets_normal_priority(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=2");
	sim_behave(fx, "save_wait_ms 60000\n");
	sim_start(fx);
	await_saver_priority(fx, 10);
	if (geteuid() != 0)
		skip(); /* RLIMIT_NICE */
	await_saver_priority(fx, 0);
}

/* A save outlives the trainer it was made for. */
static void p4_a_save_in_flight_outlives_the_trainer(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "save_wait_ms 500\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 5, 0);
	int fd = sim_connect_now(fx);

	sim_send(fd, save_call());
	while (!json_get_bool(json_object_get(now, "save"), "in_flight", false)) {
		json_decref(now);
		now = sim_status(fx);
	}
	kill(sim_worker_pid(now), SIGKILL);
	json_decref(now);
	json_t *reply = sim_take(fd);

	assert_null(json_object_get(reply, "error"));
	json_decref(reply);
	close(fd);
	sim_await_only(fx, "training", 6, 1);
}

static bool status_warns(const struct fixture *fx, const char *words)
{
	json_t *now = sim_status(fx), *warnings = json_object_get(now, "warnings"), *warning;
	bool warns = false;
	size_t i;

	json_array_foreach(warnings, i, warning)
		warns = warns || strstr(json_string_value(warning), words) != NULL;
	json_decref(now);
	return warns;
}

static void p11_stale_weights_are_told_until_they_move(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	sim_set(fx, "interval=0");
	sim_behave(fx, "save_stale 1\n");
	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	sim_save(fx, id);
	assert_true(status_warns(fx, "stale weights"));
	assert_true(sim_told(fx, "stale-weights"));
	sim_behave(fx, "save_stale 0\n");
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 1, 0);
	sim_save(fx, id);
	assert_false(status_warns(fx, "stale weights"));
}

static void a_budget_that_cannot_be_met_is_told(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	sim_set(fx, "interval=0");
	sim_set(fx, "keep_bytes=0.000001");
	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	sim_save(fx, id);
	assert_true(status_warns(fx, "more than keep_bytes allows"));
	assert_true(sim_told(fx, "keep-bytes"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(p7_a_failing_disk_costs_checkpoints_only),
		SIM_TEST(a_killed_saver_is_tried_again),
		SIM_TEST(p4_a_save_waits_for_the_only_slot),
		SIM_TEST(a_save_that_waits_is_answered_by_a_stop),
		SIM_TEST(a_save_that_takes_long_gets_normal_priority),
		SIM_TEST(p4_a_save_in_flight_outlives_the_trainer),
		SIM_TEST(p11_stale_weights_are_told_until_they_move),
		SIM_TEST(a_budget_that_cannot_be_met_is_told),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
