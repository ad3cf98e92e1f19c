/* P2, the whole system: a run whose trainer, savers and supervisor are killed at random ends with
 * the bits of a run that nobody touched. */
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

#define STEPS 900
#define SETTINGS "steps_total=900 interval_steps=150"
#define SEED_DEFAULT 20261123

struct plan {
	int trainer, saver, supervisor; /* how often each is killed */
};

static void assert_same(const struct digest *a, const struct digest *b)
{
	char hex_a[DIGEST_HEX_SIZE], hex_b[DIGEST_HEX_SIZE];

	digest_to_hex(a, hex_a);
	digest_to_hex(b, hex_b);
	assert_string_equal(hex_a, hex_b);
}

static struct digest undisturbed(const char *settings, const char *fault)
{
	struct digest digest;
	struct rig rig;

	rig_open(&rig, settings);
	rig_start(&rig, fault);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	digest = rig_digest(&rig, STEPS);
	if (fault) {
		char text[256];

		assert_true(
			rig_event(&rig, "nonfinite", "step 301, images 1200 to 1203", 0, text) > 0);
		assert_true(rig_event(&rig, "spike", "step 501, images 2000 to 2003", 0, text) > 0);
	}
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
	return digest;
}

/* A few steps after the last death, somewhere inside a step. */
static void kill_trainer(struct rig *rig, unsigned *seed)
{
	pid_t pid = 0;

	/* The status may not know yet that the trainer is dead: look again. */
	while (!pid) {
		rig_wait(rig, "a trainer at work", is_training, 0);
		rig_wait(rig, "a step or more", is_step, rig_step(rig) + rand_r(seed) % 4);
		usleep((useconds_t)(rand_r(seed) % 3000));
		pid = rig_worker(rig, "train");
	}
	kill(pid, SIGKILL);
}

/* Inside a save that it asked for; false when that was over too soon. */
static bool kill_saver(struct rig *rig, unsigned *seed)
{
	pid_t pid = 0;

	rig_wait(rig, "a trainer at work", is_training, 0);
	rig_send(rig, "Save");
	for (int i = 0; i < 200 && !pid; i++)
		pid = rig_worker(rig, "save");
	if (!pid)
		return false;
	usleep((useconds_t)(rand_r(seed) % 10000));
	return rig_worker(rig, "save") == pid && kill(pid, SIGKILL) == 0;
}

static struct digest disturbed(const char *settings, const char *fault, struct plan left)
{
	const char *given = getenv("CKPTD_TEST_SEED");
	unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : SEED_DEFAULT;
	struct digest digest;
	struct rig rig;

	print_message("# CKPTD_TEST_SEED=%u\n", seed);
	rig_open(&rig, settings);
	rig_start(&rig, fault);
	while (left.trainer + left.saver + left.supervisor > 0) {
		int pick = rand_r(&seed) % (left.trainer + left.saver + left.supervisor);

		if (pick < left.trainer) {
			kill_trainer(&rig, &seed);
			left.trainer--;
		} else if (pick < left.trainer + left.saver) {
			left.saver -= kill_saver(&rig, &seed);
		} else {
			rig_wait(&rig, "a trainer at work", is_training, 0);
			rig_kill_supervisor(&rig);
			rig_start(&rig, fault);
			left.supervisor--;
		}
		if (rig_step(&rig) >= STEPS)
			fail_msg("the run was over before all kills: %d, %d and %d were left",
				left.trainer, left.saver, left.supervisor);
	}
	rig_wait(&rig, "the end of the run", is_finished, 0);
	digest = rig_digest(&rig, STEPS);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
	return digest;
}

static void p2_twenty_kills_of_everything_leave_the_same_bits(void **unused)
{
	struct digest expected = undisturbed(SETTINGS, NULL);
	struct digest digest = disturbed(SETTINGS, NULL, (struct plan){20, 4, 3});

	assert_same(&expected, &digest);
	digest = disturbed(SETTINGS " threads=2 preview_every=400 preview_steps=2", NULL,
		(struct plan){3, 1, 0});
	assert_same(&expected, &digest);
}

static void p2_skipped_updates_in_the_middle_leave_the_same_bits(void **unused)
{
	static const char fault[] = "train.nonfinite@300:*:EIO,train.spike@500:*:EIO";
	struct digest expected = undisturbed(SETTINGS, fault);
	struct digest digest = disturbed(SETTINGS, fault, (struct plan){10, 1, 1});

	assert_same(&expected, &digest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p2_twenty_kills_of_everything_leave_the_same_bits),
		cmocka_unit_test(p2_skipped_updates_in_the_middle_leave_the_same_bits),
	};

	return cmocka_run_group_tests_name("same bits", tests, NULL, NULL);
}
