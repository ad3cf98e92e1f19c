/* The ledger of outages: what it was, how it was noticed, what it cost. */
#include "tests/sim/rig.h"

#include "store/history.h"
#include "store/run.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The newest outage, once it has ended, or is open and has cost so many steps; the caller's. */
static json_t *await_outage(const struct fixture *fx, size_t count, bool ended, int64_t redone)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	for (;;) {
		json_t *reply = sim_call(fx, "Outages", NULL);
		json_t *rows = json_object_get(json_object_get(reply, "parameters"), "outages");
		json_t *row = json_array_get(rows, json_array_size(rows) - 1);

		if (json_array_size(rows) == count && !*json_get_text(row, "ended", "") == !ended &&
			sim_number(row, "steps_redone") >= redone) {
			json_incref(row);
			json_decref(reply);
			return row;
		}
		json_decref(reply);
		assert_true(clock_monotonic_ns() < until);
		usleep(20000);
	}
}

static json_t *last_outage(const struct fixture *fx, size_t count)
{
	return await_outage(fx, count, true, 0);
}

static void expect_outage(const json_t *row, const char *cause, bool planned, bool memory_lost)
{
	assert_string_equal(json_get_text(row, "cause", ""), cause);
	assert_int_equal(json_get_bool(row, "planned", !planned), planned);
	assert_int_equal(json_get_bool(row, "memory_lost", !memory_lost), memory_lost);
	assert_true(
		json_get_real(row, "seconds_lost", -1) >= json_get_real(row, "seconds_down", 1e9));
	assert_true(json_get_real(row, "seconds_down", -1) >= 0);
}

static void a_crash_is_an_outage_until_the_next_new_step(void **state)
{
	struct fixture *fx = *state;

	sim_behave(fx, "die_step 20\n");
	sim_start(fx);
	sim_await_only(fx, "training", 15, 0);
	sim_behave(fx, "");
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "killed by SIGABRT", false, false);
	assert_string_equal(json_get_text(row, "detected", ""), "its signal");
	assert_int_equal(sim_number(row, "restarts"), 1);
	assert_int_equal(sim_number(row, "steps_redone"), 0);
	json_decref(row);
}

static void a_pause_is_planned(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	sim_call_good(fx, "Pause", NULL);
	sim_call_good(fx, "Resume", NULL);
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "pause", true, false);
	json_decref(row);
	json_t *reply = sim_call(fx, "Outages", NULL);

	assert_int_equal(sim_number(json_object_get(json_object_get(reply, "parameters"), "totals"),
				 "outages"),
		0);
	json_decref(reply);
}

/* A UPS whose second message never comes does not stop the run for ever. */
static void p5_a_power_pause_ends_by_itself(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "power_pause_max=1");
	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	sim_call_good(fx, "PowerFail", NULL);
	json_t *now = sim_await(fx, "paused", 5, 0);
	int64_t step = sim_number(now, "step");

	assert_int_equal(sim_newest_step(now), step); /* saved before it paused */
	json_decref(now);
	sim_await_only(fx, "training", step + 3, 0);
	assert_true(sim_told(fx, "power-pause-over"));
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "power failure", true, false);
	json_decref(row);
}

/* Saves, then goes on until so many steps would have to be done again. */
static int64_t save_and_go_on(struct fixture *fx, int64_t steps)
{
	sim_await_only(fx, "training", 5, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *now = sim_status(fx);
	int64_t saved = sim_newest_step(now);

	json_decref(now);
	sim_await_only(fx, "training", saved + steps, 0);
	return saved;
}

static void kill_supervisor(struct fixture *fx)
{
	kill(fx->ckptd, SIGKILL);
	assert_int_equal(sim_wait_for_end(fx), 256 + SIGKILL);
}

static void p3_a_killed_supervisor_is_told_with_its_cost(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	save_and_go_on(fx, 1);
	/* Its life is noted every five seconds: what it was known to have done. */
	int64_t known = sim_number_of(fx, "step");

	kill_supervisor(fx);
	sim_start(fx);
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "supervisor died", false, true);
	assert_string_equal(json_get_text(row, "detected", ""), "no clean end, same boot");
	assert_true(sim_number(row, "step") <= known);
	json_decref(row);
	assert_true(sim_told(fx, "supervisor-died"));
}

/* As if the machine had been off: another boot, and nobody said that he ends. */
static void pull_the_plug(struct fixture *fx, uint64_t step)
{
	struct history_life life = {.boot_id = "a boot that is over", .step = step}, last;
	struct history *history;
	struct error error;
	bool lost;
	int run_fd;

	kill_supervisor(fx);
	run_fd = run_open_dir(fx->dir, false, &error);
	assert_true(run_fd >= 0);
	life.begun_wall_ns = life.seen_wall_ns = clock_wall_ns();
	assert_int_equal(history_open(fx->dir, run_fd, &history, &lost, &error), 0);
	assert_int_equal(history_life_begin(history, &life, &last, &error), 0);
	assert_int_equal(history_life_seen(history, &life, &error), 0);
	history_close(history);
	close(run_fd);
}

static void a_power_cut_is_recognised_and_its_cost_told(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	int64_t saved = save_and_go_on(fx, 10);

	pull_the_plug(fx, (uint64_t)saved + 10);
	sim_start(fx);
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "power cut", false, true);
	assert_string_equal(json_get_text(row, "detected", ""), "no clean end, another boot");
	assert_int_equal(sim_number(row, "steps_redone"), 10);
	json_decref(row);
	assert_true(sim_told(fx, "power-cut"));
}

/* The second supervisor has less to do again than the first one, which did not get to the end. */
static void an_open_outage_keeps_what_it_has_cost(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	int64_t saved = save_and_go_on(fx, 10);

	pull_the_plug(fx, (uint64_t)saved + 10);
	sim_behave(fx, "step_us 300000\n");
	sim_start(fx);
	sim_await_only(fx, "training", saved + 2, 0);
	json_decref(await_outage(fx, 1, false, 10));
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_decref(await_outage(fx, 1, false, 10));
	kill_supervisor(fx);
	sim_behave(fx, "");
	sim_start(fx);
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "power cut", false, true);
	assert_int_equal(sim_number(row, "steps_redone"), 10);
	json_decref(row);
}

/* The trainer dies, and right after it the supervisor, whose life was noted before. */
static void an_open_outage_ends_beyond_the_step_it_began_at(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	int64_t saved = save_and_go_on(fx, 10);

	sim_behave(fx, "step_us 60000000\n");
	json_t *now = sim_status(fx);

	kill(sim_worker_pid(now), SIGKILL);
	json_decref(now);
	json_t *row = await_outage(fx, 1, false, 0);
	int64_t step = sim_number(row, "step");

	json_decref(row);
	assert_true(step >= saved + 10);
	kill_supervisor(fx);
	sim_behave(fx, "");
	sim_start(fx);
	row = last_outage(fx, 1);
	expect_outage(row, "killed by SIGKILL", false, true);
	assert_int_equal(sim_number(row, "step"), step);
	assert_int_equal(sim_number(row, "steps_redone"), step - saved);
	json_decref(row);
}

static void a_clean_end_is_no_fault(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_start(fx);
	json_t *row = last_outage(fx, 1);

	expect_outage(row, "end of the daemon", true, true);
	assert_int_equal(sim_number(row, "steps_redone"), 0);
	json_decref(row);
	assert_false(sim_told(fx, "supervisor-died"));
	assert_false(sim_told(fx, "power-cut"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(a_crash_is_an_outage_until_the_next_new_step),
		SIM_TEST(a_pause_is_planned),
		SIM_TEST(p5_a_power_pause_ends_by_itself),
		SIM_TEST(p3_a_killed_supervisor_is_told_with_its_cost),
		SIM_TEST(a_power_cut_is_recognised_and_its_cost_told),
		SIM_TEST(an_open_outage_keeps_what_it_has_cost),
		SIM_TEST(an_open_outage_ends_beyond_the_step_it_began_at),
		SIM_TEST(a_clean_end_is_no_fault),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
