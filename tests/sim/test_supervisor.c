/* The supervisor around a fake worker: life, deaths, saves, rollbacks. */
#include "tests/sim/rig.h"

#include "proto/frame.h"
#include "tests/descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* -- life -- */

static void a_run_trains_saves_and_ends(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "steps_total=40");
	sim_start(fx);
	json_t *now = sim_await(fx, "finished", 40, 0);

	assert_int_equal(sim_newest_step(now), 40);
	assert_string_equal(json_get_text(now, "sandbox", ""), "none: a fake");
	assert_int_equal(sim_number(json_object_get(now, "slots"), "count"), 0);
	assert_int_equal(sim_number(now, "restarts"), 0);
	json_decref(now);
	/* A larger end goes on from there. */
	sim_call_good(fx, "Stop", json_pack("{s:b}", "exit", 1));
	assert_int_equal(sim_wait_for_end(fx), 0);
	fx->set_count = 0;
	sim_set(fx, "steps_total=60");
	sim_start(fx);
	sim_await_only(fx, "stopped", 40, 0); /* a stopped run stays stopped */
	sim_call_good(fx, "Resume", NULL);
	now = sim_await(fx, "finished", 60, 0);
	assert_int_equal(sim_newest_step(now), 60);
	json_decref(now);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
}

/* Its state memory is gone, and a new daemon never had it: the last checkpoint says them. */
static void p11_a_finished_run_still_tells_its_counts(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "steps_total=20");
	sim_behave(fx, "skip_step 7\n");
	sim_start(fx);
	for (int life = 0; life < 2; life++) {
		json_t *now = sim_await(fx, "finished", 20, 0);

		assert_int_equal(sim_number(json_object_get(now, "slots"), "count"), 0);
		assert_int_equal(sim_number(now, "skipped_updates"), 1);
		assert_int_equal(sim_number(now, "images_seen"), 16 * 20);
		json_decref(now);
		kill(fx->ckptd, SIGTERM);
		assert_int_equal(sim_wait_for_end(fx), 0);
		if (life == 0)
			sim_start(fx);
	}
}

static void p3_a_killed_trainer_goes_on_at_the_very_next_step(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	for (int i = 1; i <= 10; i++) {
		json_t *now = sim_await(fx, "training", i * 5, i - 1);
		pid_t pid = sim_worker_pid(now);

		kill(pid, SIGKILL);
		json_decref(now);
		now = sim_await(fx, "training", 0, i);
		json_t *death = json_object_get(now, "last_death");
		int64_t dead_step = sim_number(death, "step");

		assert_string_equal(json_get_text(death, "cause", ""), "killed by SIGKILL");
		assert_true(dead_step >= i * 5);
		assert_true(sim_number(now, "step") >= dead_step);
		assert_int_equal(sim_number(now, "rung"), 0);
		json_decref(now);
	}
	/* No step was done twice: each metric of the ring came once, so the images are the steps'.
	 */
	sim_call_good(fx, "Pause", NULL);
	json_t *now = sim_status(fx);

	assert_int_equal(sim_number(now, "images_seen"), 16 * sim_number(now, "step"));
	json_decref(now);
	sim_call_good(fx, "Stop", json_pack("{s:b}", "exit", 1));
	assert_int_equal(sim_wait_for_end(fx), 0);
}

static void a_pause_saves_and_a_resume_goes_on_from_memory(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Pause", NULL);
	json_t *now = sim_status(fx);
	int64_t step = sim_number(now, "step");

	assert_string_equal(json_get_text(now, "state", ""), "paused");
	assert_string_equal(json_get_text(now, "wanted", ""), "paused");
	assert_int_equal(sim_newest_step(now), step);
	assert_int_equal(sim_worker_pid(now), 0);
	json_decref(now);
	sim_call_good(fx, "Resume", NULL);
	sim_await_only(fx, "training", step + 5, 0);
	/* wanted is durable: the next daemon comes up paused. */
	sim_call_good(fx, "Pause", NULL);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_start(fx);
	sim_await_only(fx, "paused", step, 0);
}

static void sigterm_saves_and_the_next_start_goes_on(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 20, 0);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 21, 0);

	assert_true(sim_newest_step(now) >= 20);
	json_decref(now);
}

static void a_reload_takes_what_may_change_and_refuses_the_rest(void **state)
{
	struct fixture *fx = *state;

	sim_configure(fx, "[train]\nsteps_total = 20\n");
	sim_start(fx);
	sim_await_only(fx, "finished", 20, 0);
	sim_configure(fx, "[train]\nsteps_total = 20\n[run]\nseed = 5\n");
	json_t *reply = sim_call(fx, "Reload", NULL);

	assert_non_null(
		strstr(json_get_text(json_object_get(reply, "parameters"), "text", ""), "seed"));
	json_decref(reply);
	sim_configure(fx, "[train]\nsteps_totl = 40\n");
	reply = sim_call(fx, "Reload", NULL);
	assert_non_null(strstr(
		json_get_text(json_object_get(reply, "parameters"), "text", ""), "ckptd.conf:2"));
	json_decref(reply);
	/* A larger end goes on from there. */
	sim_configure(fx, "[train]\nsteps_total = 40\n");
	kill(fx->ckptd, SIGHUP);
	json_t *now = sim_await(fx, "finished", 40, 0);

	assert_int_equal(sim_newest_step(now), 40);
	assert_int_equal(sim_number(now, "restarts"), 0);
	json_decref(now);
}

/* -- deaths -- */

static void p5_a_poisoned_newest_checkpoint_is_left_behind(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 3, 0);
	sim_call_good(fx, "Pause", NULL);
	json_t *now = sim_status(fx);
	int64_t step = sim_number(now, "step");
	char text[64];

	json_decref(now);
	snprintf(text, sizeof(text), "poison %lld\n", (long long)step);
	sim_behave(fx, text);
	sim_call_good(fx, "Resume", NULL);
	now = sim_await(fx, "training", step + 1, 3);
	assert_int_equal(sim_number(now, "branch"), 2);
	assert_int_equal(sim_number(now, "restarts"), 3);
	json_decref(now);
	json_t *reply = sim_call(fx, "Checkpoints", NULL);
	json_t *list = json_object_get(json_object_get(reply, "parameters"), "checkpoints"), *row;
	size_t i;
	bool seen = false;

	json_array_foreach(list, i, row)
	{
		if (sim_number(row, "step") != step || sim_number(row, "branch") != 1)
			continue;
		assert_string_equal(json_get_text(row, "state", ""), "suspect");
		seen = true;
	}
	assert_true(seen);
	json_decref(reply);
}

/* Two checkpoints, then a step that always kills: the ladder goes up to the branch that skips it.
 */
static void p5_a_step_that_always_kills_is_skipped(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "die_step 60\n");
	sim_start(fx);
	for (int64_t step = 10; step <= 20; step += 10) {
		sim_await_only(fx, "training", step, 0);
		sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	}
	json_t *now = sim_await(fx, "training", 61, 4);

	assert_int_equal(sim_number(now, "restarts"), 4);
	assert_int_equal(sim_number(now, "branch"), 3);
	json_decref(now);
	assert_true(sim_told(fx, "suspicion-withdrawn"));
}

/* Before the first checkpoint there is step 0 to go back to. */
static void p5_bad_data_before_the_first_checkpoint_is_skipped(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "exit_step 12\nexit_code 1\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 13, 3);

	assert_int_equal(sim_number(now, "branch"), 2);
	json_decref(now);
}

/* Five non-finite updates in a row (the worker's word): straight to the branch without them. */
static void p5_nonfinite_updates_are_skipped_at_once(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "exit_step 40\nexit_code 77\n");
	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Pause", NULL); /* a checkpoint before step 40, however slow it is */
	sim_await_only(fx, "paused", 10, 0);
	sim_call_good(fx, "Resume", NULL);
	json_t *now = sim_await(fx, "training", 41, 1);

	assert_int_equal(sim_number(now, "restarts"), 1);
	assert_int_equal(sim_number(now, "branch"), 2);
	json_decref(now);
}

/* Who says too early that all is done has died, and is not begun again at once for ever. */
static void p5_an_end_before_the_end_is_a_death(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_behave(fx, "finish_step 12\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "restarting", 0, 3);

	assert_string_equal(json_get_text(json_object_get(now, "last_death"), "cause", ""),
		"ended without being asked");
	json_decref(now);
}

/* A seal that does not match: nothing of the memory is used, the disk is next. */
static void p1_corrupt_memory_goes_to_the_disk(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	sim_behave(fx, "save_exit 76\n");
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 5, 0);
	json_t *reply = sim_call(fx, "Save", json_pack("{s:b}", "wait", 1));

	assert_non_null(json_object_get(reply, "error"));
	json_decref(reply);
	sim_behave(fx, "");
	json_t *now = sim_await(fx, "training", 10, 1);

	assert_string_equal(
		json_get_text(json_object_get(now, "last_death"), "cause", ""), "memory corrupt");
	assert_int_equal(sim_number(now, "rung"), 1);
	json_decref(now);
}

static void flip_state_header(const struct fixture *fx)
{
	int fd = open_state_memory(fx->ckptd);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, 12), 1); /* of slot_count */
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, 12), 1);
	close(fd);
}

/* Whoever maps it next would refuse it: the next trainer, and the saver. */
static void p3_a_flipped_header_of_the_memory_costs_nothing(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0"); /* nothing on the disk: the memory is all there is */
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 10, 0);

	flip_state_header(fx);
	kill(sim_worker_pid(now), SIGKILL);
	json_decref(now);
	now = sim_await(fx, "training", 0, 1);
	assert_true(
		sim_number(now, "step") >= sim_number(json_object_get(now, "last_death"), "step"));
	assert_int_equal(sim_number(now, "restarts"), 1);
	json_decref(now);
	assert_true(sim_log_says(fx, "had changed by itself"));
	flip_state_header(fx);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	assert_int_equal(sim_number_of(fx, "restarts"), 1);
}

static void p6_a_hang_is_found(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "hang_timeout=1");
	sim_behave(fx, "hang_step 30\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 30, 0);

	json_decref(now);
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (sim_number_of(fx, "restarts") == 0 && clock_monotonic_ns() < until)
		usleep(20000);
	sim_behave(fx, "");
	now = sim_await(fx, "training", 31, 1);
	assert_string_equal(json_get_text(json_object_get(now, "last_death"), "cause", ""), "hang");
	assert_true(sim_told(fx, "hang"));
	json_decref(now);
}

static void a_trainer_that_babbles_is_killed_and_restarted(void **state)
{
	struct fixture *fx = *state;

	sim_behave(fx, "babble 1\n");
	sim_start(fx);
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (sim_number_of(fx, "restarts") == 0 && clock_monotonic_ns() < until)
		usleep(10000);
	sim_behave(fx, "");
	json_t *now = sim_await(fx, "training", 5, 1);

	assert_string_equal(
		json_get_text(json_object_get(now, "last_death"), "cause", ""), "spoke nonsense");
	json_decref(now);
}

static void p9_bad_data_waits_for_a_person_and_a_reload_goes_on(void **state)
{
	struct fixture *fx = *state;

	sim_behave(fx, "prepare_exit 78\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "failed", 0, 0);

	assert_string_equal(json_get_text(now, "state_text", ""), "told to fail");
	json_decref(now);
	sim_behave(fx, "");
	sim_call_good(fx, "Reload", NULL);
	sim_await_only(fx, "training", 3, 0);
}

static void what_failed_before_it_was_prepared_can_be_paused_and_resumed(void **state)
{
	struct fixture *fx = *state;

	sim_behave(fx, "prepare_exit 78\n");
	sim_start(fx);
	sim_await_only(fx, "failed", 0, 0);
	sim_call_good(fx, "Pause", NULL);
	sim_await_only(fx, "paused", 0, 0);
	sim_behave(fx, "");
	sim_call_good(fx, "Resume", NULL);
	sim_await_only(fx, "training", 3, 0);
}

/* -- rollback -- */

static void p1_a_rollback_begins_a_branch_before_it_is_answered(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *now = sim_status(fx);
	int64_t first = sim_newest_step(now);

	json_decref(now);
	sim_await_only(fx, "training", first + 5, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *reply = sim_call(fx, "Rollback", json_pack("{s:s}", "id", ""));
	json_t *answer = json_object_get(reply, "parameters");

	assert_int_equal(sim_number(answer, "branch"), 2);
	assert_int_equal(sim_number(answer, "step"), first);
	char path[192];

	snprintf(path, sizeof(path), "%s/checkpoints/branch-0002.json", fx->dir);
	assert_int_equal(access(path, F_OK), 0);
	json_decref(reply);
	now = sim_await(fx, "training", first, 0);
	assert_int_equal(sim_number(now, "branch"), 2);
	int64_t pid = sim_number(json_object_get(now, "worker"), "pid");

	json_decref(now);
	/* What is not there costs the trainer nothing. */
	reply = sim_call(fx, "Rollback", json_pack("{s:s}", "id", "step-000099999-b0001"));
	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.NotFound");
	json_decref(reply);
	now = sim_await(fx, "training", first + 3, 0);
	assert_int_equal(sim_number(json_object_get(now, "worker"), "pid"), pid);
	json_decref(now);
}

/* -- what is kept, and what is said of it -- */

static bool is_kept(const struct fixture *fx, const char *id)
{
	json_t *reply = sim_call(fx, "Checkpoints", NULL);
	json_t *rows = json_object_get(json_object_get(reply, "parameters"), "checkpoints"), *row;
	bool kept = false;
	size_t i;

	json_array_foreach(rows, i, row) if (strcmp(json_get_text(row, "id", ""), id) == 0)
		kept = json_get_bool(row, "keep", false);
	json_decref(reply);
	return kept;
}

static void p1_what_is_kept_outlives_retention_and_the_daemon(void **state)
{
	struct fixture *fx = *state;
	char first[64], id[64];

	sim_set(fx, "keep_last=2");
	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	sim_save(fx, first);
	sim_call_good(fx, "Keep", json_pack("{s:s, s:b}", "id", first, "keep", 1));
	kill(fx->ckptd, SIGKILL);
	sim_wait_for_end(fx);
	sim_start(fx);
	for (int i = 0; i < 4; i++) {
		sim_await_only(fx, "training", sim_number_of(fx, "step") + 1, 0);
		sim_save(fx, id);
	}
	assert_true(is_kept(fx, first));
	assert_false(is_kept(fx, id));
	sim_call_good(fx, "Keep", json_pack("{s:s, s:b}", "id", first, "keep", 0));
	assert_false(is_kept(fx, first));
	json_t *reply = sim_call(
		fx, "Keep", json_pack("{s:s, s:b}", "id", "step-000099999-b0001", "keep", 1));

	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.NotFound");
	json_decref(reply);
	assert_true(sim_told(fx, "keep"));
}

/* A look into a catalog that cannot be read takes nothing back. */
static void p11_the_newest_stays_while_the_catalog_cannot_be_read(void **state)
{
	struct fixture *fx = *state;
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	char path[192], away[192], first[64], second[64];

	snprintf(path, sizeof(path), "%s/catalog.sqlite", fx->dir);
	snprintf(away, sizeof(away), "%s/catalog.away", fx->dir);
	sim_set(fx, "interval=0");
	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	sim_save(fx, first);
	assert_int_equal(rename(path, away), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 1, 0);
	sim_save(fx, second);
	assert_string_not_equal(first, second);
	json_decref(sim_call(fx, "Scrub", json_pack("{s:b}", "wait", 1)));
	while (!sim_told(fx, "catalog") && clock_monotonic_ns() < until)
		usleep(20000);
	assert_true(sim_told(fx, "catalog"));
	json_t *now = sim_status(fx);

	assert_string_equal(
		json_get_text(json_object_get(now, "newest_verified"), "id", ""), second);
	json_decref(now);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(rename(away, path), 0);
}

static void power_fail_saves_and_power_ok_goes_on(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	kill(fx->ckptd, SIGPWR);
	json_t *now = sim_await(fx, "paused", 5, 0);

	assert_int_equal(sim_newest_step(now), sim_number(now, "step"));
	json_decref(now);
	sim_call_good(fx, "PowerOk", NULL);
	sim_await_only(fx, "training", 6, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(a_run_trains_saves_and_ends),
		SIM_TEST(p11_a_finished_run_still_tells_its_counts),
		SIM_TEST(p3_a_killed_trainer_goes_on_at_the_very_next_step),
		SIM_TEST(a_pause_saves_and_a_resume_goes_on_from_memory),
		SIM_TEST(sigterm_saves_and_the_next_start_goes_on),
		SIM_TEST(a_reload_takes_what_may_change_and_refuses_the_rest),
		SIM_TEST(p5_a_poisoned_newest_checkpoint_is_left_behind),
		SIM_TEST(p5_a_step_that_always_kills_is_skipped),
		SIM_TEST(p5_bad_data_before_the_first_checkpoint_is_skipped),
		SIM_TEST(p5_nonfinite_updates_are_skipped_at_once),
		SIM_TEST(p5_an_end_before_the_end_is_a_death),
		SIM_TEST(p1_corrupt_memory_goes_to_the_disk),
		SIM_TEST(p3_a_flipped_header_of_the_memory_costs_nothing),
		SIM_TEST(p6_a_hang_is_found),
		SIM_TEST(a_trainer_that_babbles_is_killed_and_restarted),
		SIM_TEST(p9_bad_data_waits_for_a_person_and_a_reload_goes_on),
		SIM_TEST(what_failed_before_it_was_prepared_can_be_paused_and_resumed),
		SIM_TEST(p1_a_rollback_begins_a_branch_before_it_is_answered),
		SIM_TEST(p1_what_is_kept_outlives_retention_and_the_daemon),
		SIM_TEST(p11_the_newest_stays_while_the_catalog_cannot_be_read),
		SIM_TEST(power_fail_saves_and_power_ok_goes_on),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
