/* P1, P10: beginning again at step 0. Only a person does it, the choice is durable, and nothing of
 * before is taken up again or deleted for it. */
#include "tests/sim/rig.h"

#include "store/run.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int64_t restart(const struct fixture *fx)
{
	json_t *reply = sim_call(fx, "Restart", json_pack("{s:b}", "from_scratch", 1));
	json_t *answer = json_object_get(reply, "parameters");

	if (json_object_get(reply, "error"))
		fail_msg("Restart: %s", json_dumps(reply, 0));
	assert_int_equal(sim_number(answer, "step"), 0);
	int64_t branch = sim_number(answer, "branch");

	json_decref(reply);
	return branch;
}

/* The trainer has begun at step 0 of the branch, and trains. */
static void expect_scratch(const struct fixture *fx, int64_t branch)
{
	char words[80];

	snprintf(words, sizeof(words), "goes on from scratch at step 0 on branch %lld",
		(long long)branch);
	assert_true(sim_log_says(fx, words));
	json_t *now = sim_await(fx, "training", 1, 0);

	assert_int_equal(sim_number(now, "branch"), branch);
	assert_string_equal(json_get_text(now, "wanted", ""), "run");
	json_decref(now);
}

/* The state of a checkpoint; "" when it is gone. */
static void state_of(const struct fixture *fx, const char *id, char state[32])
{
	json_t *reply = sim_call(fx, "Checkpoints", NULL), *row;
	size_t i;

	state[0] = '\0';
	json_array_foreach(json_object_get(json_object_get(reply, "parameters"), "checkpoints"), i,
		row) if (strcmp(json_get_text(row, "id", ""), id) == 0)
		snprintf(state, 32, "%s", json_get_text(row, "state", ""));
	json_decref(reply);
}

static void expect_state(const struct fixture *fx, const char *id, const char *state)
{
	char is[32];

	state_of(fx, id, is);
	assert_string_equal(is, state);
}

static void kill_supervisor(struct fixture *fx)
{
	kill(fx->ckptd, SIGKILL);
	assert_int_equal(sim_wait_for_end(fx), 256 + SIGKILL);
}

/* Two checkpoints, some steps apart. */
static void save_twice(struct fixture *fx, char ids[2][64])
{
	for (int i = 0; i < 2; i++) {
		sim_await_only(fx, "training", 20 * (i + 1), 0);
		sim_save(fx, ids[i]);
	}
}

static void p1_the_old_line_is_left_and_stays(void **state)
{
	struct fixture *fx = *state;
	char old[2][64], new[64];

	sim_set(fx, "interval=0");
	sim_start(fx);
	save_twice(fx, old);
	sim_behave(fx, "step_us 20000\n");
	assert_int_equal(restart(fx), 2);
	expect_scratch(fx, 2);
	assert_true(sim_told(fx, "from-scratch"));
	json_t *now = sim_status(fx);

	assert_true(json_is_null(json_object_get(now, "newest_verified")));
	assert_true(sim_number(now, "step") < 20);
	json_decref(now);
	expect_state(fx, old[0], "abandoned");
	expect_state(fx, old[1], "abandoned");
	/* Before the new line has a checkpoint it begins at step 0 once more, not at the old one.
	 */
	kill_supervisor(fx);
	sim_start(fx);
	now = sim_await(fx, "training", 1, 0);
	assert_int_equal(sim_number(now, "branch"), 2);
	assert_true(json_is_null(json_object_get(now, "newest_verified")));
	assert_true(sim_number(now, "step") < 20);
	json_decref(now);
	/* And then at its own, though it is of an earlier step than the old ones. */
	sim_save(fx, new);
	assert_non_null(strstr(new, "-b0002"));
	kill_supervisor(fx);
	sim_start(fx);
	now = sim_await(fx, "training", 1, 0);
	assert_int_equal(sim_number(now, "branch"), 2);
	assert_string_equal(json_get_text(json_object_get(now, "newest_verified"), "id", ""), new);
	json_decref(now);
	expect_state(fx, old[0], "abandoned");
	expect_state(fx, old[1], "abandoned");
	/* Who changes his mind comes back. */
	sim_call_good(fx, "Rollback", json_pack("{s:s}", "id", old[1]));
	sim_await_only(fx, "training", 40, 0);
	expect_state(fx, old[1], "verified");
	expect_state(fx, new, "abandoned");
}

static void p1_a_kept_one_outlives_the_new_line(void **state)
{
	struct fixture *fx = *state;
	char old[2][64], id[64];

	sim_set(fx, "interval=0");
	sim_set(fx, "keep_last=2");
	sim_start(fx);
	save_twice(fx, old);
	sim_call_good(fx, "Keep", json_pack("{s:s, s:b}", "id", old[0], "keep", 1));
	for (int64_t branch = 2; branch <= 4; branch++) {
		assert_int_equal(restart(fx), branch);
		expect_scratch(fx, branch);
		sim_save(fx, id);
	}
	expect_state(fx, old[0], "abandoned");
	sim_call_good(fx, "Rollback", json_pack("{s:s}", "id", old[0]));
	sim_await_only(fx, "training", 20, 0);
}

static void a_finished_run_begins_again_with_the_configuration_of_now(void **state)
{
	struct fixture *fx = *state;

	sim_configure(fx, "[train]\nsteps_total = 20\n");
	sim_start(fx);
	sim_await_only(fx, "finished", 20, 0);
	sim_configure(fx, "[train]\nsteps_total = 15\n");
	sim_call_good(fx, "Reload", NULL);
	assert_int_equal(restart(fx), 2);
	json_t *now = sim_await(fx, "finished", 15, 0);

	assert_int_equal(sim_number(now, "step"), 15);
	assert_string_equal(json_get_text(json_object_get(now, "newest_verified"), "id", ""),
		"step-000000015-b0002");
	json_decref(now);
}

static void a_stopped_or_paused_run_is_wanted_again(void **state)
{
	static const char *const calls[] = {"Stop", "Pause", "PowerFail"};
	static const char *const words[] = {"stopped", "paused", "paused"};
	struct fixture *fx = *state;

	sim_start(fx);
	for (int i = 0; i < 3; i++) {
		sim_await_only(fx, "training", 5, 0);
		sim_call_good(fx, calls[i], NULL);
		sim_await_only(fx, words[i], 5, 0);
		assert_int_equal(restart(fx), i + 2);
		expect_scratch(fx, i + 2);
	}
	/* Also one that this daemon has not prepared, and durably. */
	sim_call_good(fx, "Stop", json_pack("{s:b}", "exit", 1));
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_start(fx);
	sim_await_only(fx, "stopped", 0, 0);
	assert_int_equal(restart(fx), 5);
	expect_scratch(fx, 5);
	kill_supervisor(fx);
	sim_start(fx);
	sim_await_only(fx, "training", 1, 0);
}

/* The ladder waits longer and longer; the new line owes it nothing. */
static void p5_what_the_ladder_holds_begins_again(void **state)
{
	struct fixture *fx = *state;
	char old[2][64];

	sim_set(fx, "interval=0");
	sim_start(fx);
	save_twice(fx, old);
	sim_behave(fx, "babble 1\n"); /* each trainer, whatever it begins with */
	json_t *now = sim_status(fx);

	kill(sim_worker_pid(now), SIGKILL);
	json_decref(now);
	nsec_t deadline = clock_monotonic_ns() + PATIENCE;

	while (sim_number_of(fx, "rung") < 2) {
		assert_true(clock_monotonic_ns() < deadline);
		usleep(5000);
	}
	sim_behave(fx, "");
	json_t *reply = NULL;

	/* A branch of the ladder may be under way just now. */
	do {
		json_decref(reply);
		reply = sim_call(fx, "Restart", json_pack("{s:b}", "from_scratch", 1));
	} while (strcmp(json_get_text(reply, "error", ""), "io.ckptd.Training.Busy") == 0 &&
		clock_monotonic_ns() < deadline);
	json_t *answer = json_object_get(reply, "parameters");
	int64_t branch = sim_number(answer, "branch");

	assert_int_equal(sim_number(answer, "step"), 0);
	json_decref(reply);
	expect_scratch(fx, branch);
	assert_int_equal(sim_number_of(fx, "rung"), 0);
}

/* Without a checkpoint of its own the new line begins at step 0 for the ladder, too: suspects of
 * the old one are no way out. */
static void p5_the_ladder_stays_on_the_new_line(void **state)
{
	struct fixture *fx = *state;
	char old[2][64], text[64];

	sim_set(fx, "interval=0");
	sim_start(fx);
	save_twice(fx, old);
	sim_call_good(fx, "Pause", NULL);
	int64_t poison = sim_number_of(fx, "step");

	/* The ladder leaves the newest behind: it is a suspect. */
	snprintf(text, sizeof(text), "poison %lld\n", (long long)poison);
	sim_behave(fx, text);
	sim_call_good(fx, "Resume", NULL);
	sim_await_only(fx, "training", poison + 1, 3);
	assert_int_equal(sim_number_of(fx, "branch"), 2);
	/* And now nothing helps. */
	sim_behave(fx, "babble 1\n");
	assert_int_equal(restart(fx), 3);
	json_t *now = sim_await(fx, "restarting", 0, 3 + 6);

	assert_int_equal(sim_number(now, "rung"), 5);
	json_decref(now);
	sim_behave(fx, "step_us 50000\n");
	now = sim_await(fx, "training", 1, 0);
	assert_true(sim_number(now, "branch") >= 3);
	assert_true(sim_number(now, "step") < 20);
	assert_true(json_is_null(json_object_get(now, "newest_verified")));
	json_decref(now);
}

/* Until run.json says so, which follows the answer. */
static void await_verified(const struct fixture *fx, uint32_t branch)
{
	nsec_t deadline = clock_monotonic_ns() + PATIENCE;
	uint32_t verified = 0;
	struct error error;
	struct run run;

	int fd = run_open_dir(fx->dir, false, &error);

	while (verified != branch) {
		assert_true(clock_monotonic_ns() < deadline);
		assert_int_equal(run_load(fd, &run, &error), 0);
		verified = run.verified_branch;
		run_fini(&run);
	}
	close(fd);
}

static void delete_checkpoints(const struct fixture *fx)
{
	char command[200];

	snprintf(command, sizeof(command), "rm -f %s/checkpoints/step-*", fx->dir);
	assert_int_equal(system(command), 0);
}

/* Everything on the disk is gone: that alone begins nothing, on the first line or on another. */
static void p1_a_line_that_lost_its_checkpoints_waits_for_a_person(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	sim_set(fx, "interval=0");
	for (int64_t branch = 1; branch <= 2; branch++) {
		if (fx->ckptd == 0)
			sim_start(fx);
		sim_await_only(fx, "training", 3, 0);
		sim_save(fx, id);
		await_verified(fx, (uint32_t)branch);
		kill_supervisor(fx);
		delete_checkpoints(fx);
		sim_start(fx);
		sim_await_only(fx, "restarting", 0, 1);
		assert_int_equal(sim_number_of(fx, "branch"), branch);
		assert_int_equal(restart(fx), branch + 1);
		expect_scratch(fx, branch + 1);
	}
}

static void p10_it_must_be_said_and_be_permitted(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	const char *const wrong[] = {"{}", "{\"from_scratch\":false}", "{\"from_scratch\":1}"};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		json_t *reply = sim_call(fx, "Restart", json_loads(wrong[i], 0, NULL));

		assert_string_equal(
			json_get_text(reply, "error", ""), "org.varlink.service.InvalidParameter");
		json_decref(reply);
	}
	assert_int_equal(sim_number_of(fx, "branch"), 1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(p1_the_old_line_is_left_and_stays),
		SIM_TEST(p1_a_kept_one_outlives_the_new_line),
		SIM_TEST(a_finished_run_begins_again_with_the_configuration_of_now),
		SIM_TEST(a_stopped_or_paused_run_is_wanted_again),
		SIM_TEST(p5_what_the_ladder_holds_begins_again),
		SIM_TEST(p5_the_ladder_stays_on_the_new_line),
		SIM_TEST(p1_a_line_that_lost_its_checkpoints_waits_for_a_person),
		SIM_TEST(p10_it_must_be_said_and_be_permitted),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
