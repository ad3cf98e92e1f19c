/* P6, the whole system: what hangs is found, and what is only slow is left alone. */
#include "base/clock.h"
#include "tests/system/rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LEARNED 260 /* steps */
#define BURNERS 8
#define BURN_STEPS 60

static bool is_out_of_preview(const json_t *status, int64_t value)
{
	const char *phase = json_get_text(status, "phase", "");

	return is_step(status, value) &&
		(strcmp(phase, "forward") == 0 || strcmp(phase, "backward") == 0);
}

/* The deadline was the learned one: the prior of these tests is a minute. */
static void expect_found_soon(struct rig *rig, int64_t after)
{
	char text[256];
	unsigned quiet;

	assert_true(rig_event(rig, "hang", "has not moved for", after, text) > 0);
	const char *at = strstr(text, "not moved for ");

	assert_non_null(at);
	if (sscanf(at, "not moved for %u ms", &quiet) != 1)
		assert_int_equal(sscanf(at, "not moved for %u s", &quiet), 1);
	else
		quiet = 1;
	assert_in_range(quiet, 1, 20);
}

static void expect_no_hang(struct rig *rig)
{
	AUTO_JSON status = rig_status(rig);

	assert_int_equal(json_get_int(status, "restarts", -1), 0);
}

static void p6_a_trainer_that_is_stopped_is_found(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 hang_timeout=60");
	rig_start(&rig, NULL);
	rig_wait(&rig, "it to learn", is_out_of_preview, LEARNED);
	int64_t after = rig_last_event(&rig);

	kill(rig_worker(&rig, "train"), SIGSTOP);
	rig_wait(&rig, "a restart", has_restarted, 1);
	expect_found_soon(&rig, after);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* In an endless loop, and in a read that nobody answers; each trainer after so many steps. */
static void hang_by(const char *fault)
{
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 hang_timeout=60");
	rig_start(&rig, fault);
	rig_wait(&rig, "a restart", has_restarted, 1);
	expect_found_soon(&rig, 0);
	rig_wait(&rig, "training to go on", is_step, LEARNED + 20);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

static void p6_an_endless_loop_is_found(void **unused)
{
	hang_by("train.step:260:spin");
}

static void p6_a_read_that_never_returns_is_found(void **unused)
{
	hang_by("train.step:260:block");
}

/* Its save alone is late. */
static void p6_a_saver_that_never_ends_is_found(void **unused)
{
	struct rig rig;
	char text[256];

	rig_open(&rig, "steps_total=1000000 hang_timeout=5");
	rig_start(&rig, "save.begin@1:1:block");
	rig_wait(&rig, "some steps", is_step, 5);
	rig_send(&rig, "Save");
	assert_true(rig_event(&rig, "save-failed", "saver died: hang", 0, text) > 0);
	rig_wait(&rig, "the next attempt", is_saved, 5);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* 300 ms are less than half of any deadline. */
static void stop_for_a_moment(struct rig *rig)
{
	for (int i = 0; i < 10; i++) {
		pid_t pid = rig_worker(rig, "train");

		kill(pid, SIGSTOP);
		usleep(300000);
		kill(pid, SIGCONT);
		rig_wait(rig, "another step", is_step, rig_step(rig) + 1);
	}
	expect_no_hang(rig);
}

/* Much longer than the deadline. */
static void put_machine_to_sleep(struct rig *rig)
{
	pid_t trainer = rig_worker(rig, "train");

	kill(rig->supervisor, SIGSTOP);
	kill(trainer, SIGSTOP);
	usleep(4000000);
	kill(trainer, SIGCONT);
	kill(rig->supervisor, SIGCONT);
	rig_wait(rig, "more steps", is_step, rig_step(rig) + 20);
	expect_no_hang(rig);
}

static void load_machine(struct rig *rig)
{
	pid_t burners[BURNERS];

	for (int i = 0; i < BURNERS; i++) {
		burners[i] = fork();
		if (burners[i] == 0)
			for (volatile unsigned turns = 0;; turns = turns + 1)
				;
		assert_true(burners[i] > 0);
	}
	rig_wait(rig, "steps under load", is_step, rig_step(rig) + BURN_STEPS);
	for (int i = 0; i < BURNERS; i++) {
		kill(burners[i], SIGKILL);
		waitpid(burners[i], NULL, 0);
	}
	expect_no_hang(rig);
}

static void p6_what_is_only_slow_is_left_alone(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 hang_timeout=60");
	rig_start(&rig, NULL);
	rig_wait(&rig, "it to learn", is_step, LEARNED);
	stop_for_a_moment(&rig);
	put_machine_to_sleep(&rig);
	load_machine(&rig);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p6_a_trainer_that_is_stopped_is_found),
		cmocka_unit_test(p6_an_endless_loop_is_found),
		cmocka_unit_test(p6_a_read_that_never_returns_is_found),
		cmocka_unit_test(p6_a_saver_that_never_ends_is_found),
		cmocka_unit_test(p6_what_is_only_slow_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
