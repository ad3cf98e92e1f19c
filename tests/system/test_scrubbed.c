/* P1, P11, the whole system: a bit that flips in a kept checkpoint is found while the daemon runs,
 * marked, told, and replaced when it was the newest; files are verified without a daemon. */
#include "tests/system/rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SAVES 3
#define PATH_SIZE (2 * RIG_PATH_MAX)

static void flip(const struct rig *rig, const char *id, off_t at)
{
	char path[PATH_SIZE];

	rig_checkpoint_path(rig, id, path);
	rig_flip(path, at);
}

/* ckptctl with these words (c may be NULL); fails unless it ends with this code and says this. */
static void expect_words(
	struct rig *rig, const char *a, const char *b, const char *c, int code, const char *says)
{
	const char *arguments[] = {"--socket", rig->socket, a, b, c, NULL};
	int got = rig_run(rig, "ctl/ckptctl", arguments);
	char *output = rig_output(rig);

	if (got != code || strstr(output, says) == NULL)
		fail_msg("ckptctl %s %s: exit %d, wanted %d with '%s': %s", a, b, got, code, says,
			output);
	free(output);
}

static void expect_ctl(struct rig *rig, const char *a, const char *b, int code, const char *says)
{
	expect_words(rig, a, b, NULL, code, says);
}

/* The exit codes of fsck(8); the newest checkpoint does not match, and its row does not know. */
static void expect_fsck(struct rig *rig, const char *newest)
{
	char found[128], note[128];

	snprintf(found, sizeof(found), "found: %s.safetensors: corrupt, and the catalog", newest);
	snprintf(note, sizeof(note), "note: %s.safetensors: corrupt, as the catalog says", newest);
	expect_ctl(rig, "fsck", rig->run_dir, 4, found);
	expect_words(rig, "fsck", "--repair", rig->run_dir, 1, "1 found, 0 left");
	expect_ctl(rig, "fsck", rig->run_dir, 0, note);
	expect_ctl(rig, "fsck", rig->dir, 8, "no run's folder");
}

static void expect_marked(struct rig *rig, const char *id, int64_t corrupt)
{
	AUTO_JSON status = rig_status(rig);
	char state[32], text[256];

	rig_checkpoint_state(rig, id, state);
	assert_string_equal(state, "corrupt");
	assert_true(rig_event(rig, "corrupt", id, 0, text) > 0);
	assert_int_equal(json_get_int(json_object_get(status, "scrub"), "corrupt", -1), corrupt);
	assert_int_equal(json_get_int(status, "restarts", -1), 0);
}

static bool is_waiting_for_its_turn(const json_t *status, int64_t value)
{
	const json_t *scrub = json_object_get(status, "scrub");

	return json_get_bool(scrub, "running", false) && json_get_int(scrub, "bytes_done", 0) > 0;
}

/* At a pace of days it is done with the first file and waits; the end of the daemon does not. */
static void expect_stopped(struct rig *rig)
{
	expect_ctl(rig, "scrub", "--json", 0, "\"running\": true");
	rig_wait(rig, "a scrub under way", is_waiting_for_its_turn, 0);
	assert_int_equal(rig_stop(rig), 0);
}

static void p1_a_flipped_bit_is_found_under_a_running_daemon(void **unused)
{
	char ids[SAVES][64], path[PATH_SIZE], text[256], newest[64], from[96];
	int64_t steps[SAVES], newest_step, whole_step;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 interval=0");
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	for (int i = 0; i < SAVES; i++) {
		rig_wait(&rig, "some steps", is_step, i == 0 ? 5 : steps[i - 1] + 5);
		rig_save(&rig, ids[i], &steps[i]);
	}
	expect_ctl(&rig, "scrub", "--wait", 0, "3 checkpoints");

	/* One that is kept, in its data. */
	flip(&rig, ids[1], -3000000);
	expect_ctl(&rig, "scrub", "--wait", 1, "1 corrupt");
	expect_marked(&rig, ids[1], 1);
	expect_ctl(&rig, "verify", ids[1], 1, "does not match its digest");
	expect_ctl(&rig, "verify", ids[0], 0, "  ok  every byte matches");
	/* The newest, in its header: another is saved, though no interval asks for it. */
	flip(&rig, ids[2], 300);
	expect_ctl(&rig, "scrub", "--wait", 1, "2 corrupt");
	rig_wait(&rig, "a new save", is_saved, steps[2] + 1);
	expect_marked(&rig, ids[2], 2);
	assert_true(rig_event(&rig, "newest-lost", ids[2], 0, text) > 0);

	/* Without a daemon, by the file; the start then takes the newest that is whole. */
	{
		AUTO_JSON status = rig_status(&rig);

		whole_step = json_get_int(json_object_get(status, "newest_verified"), "step", 0);
	}
	rig_wait(&rig, "some steps", is_step, whole_step + 5);
	rig_save(&rig, newest, &newest_step);
	rig_kill_supervisor(&rig);
	rig_checkpoint_path(&rig, newest, path);
	expect_ctl(&rig, "verify", path, 0, "  ok  ");
	flip(&rig, newest, -3000000);
	expect_ctl(&rig, "verify", path, 1, "  BAD  ");
	expect_ctl(&rig, "verify", "./no/such.safetensors", 1, "no/such.safetensors  BAD");
	expect_fsck(&rig, newest);
	rig_set(&rig, "scrub_rate", "0.001");
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	expect_ctl(&rig, "fsck", rig.run_dir, 8, "end it first");
	snprintf(from, sizeof(from), "goes on from checkpoint at step %lld on branch 1",
		(long long)whole_step);
	assert_true(rig_event(&rig, "training", from, 0, text) > 0);
	expect_stopped(&rig);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_a_flipped_bit_is_found_under_a_running_daemon),
	};

	return cmocka_run_group_tests_name("scrubbed", tests, NULL, NULL);
}
