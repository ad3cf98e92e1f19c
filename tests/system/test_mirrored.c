/* P1, P7, P8, the whole system with a second disk: what is saved comes there, training never waits
 * for it, and what is lost here comes back. */
#include "store/mirror.h"
#include "tests/system/rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

struct mirrored {
	struct rig rig;
	char place[128];
};

static void open_mirrored(struct mirrored *m)
{
	struct error err;

	rig_open(&m->rig, "steps_total=1000000 interval=0");
	snprintf(m->place, sizeof(m->place), "%s/second-disk", m->rig.dir);
	assert_int_equal(mkdir(m->place, 0750), 0);
	assert_int_equal(mirror_init(m->place, &err), 0);
	rig_set(&m->rig, "mirror", m->place);
}

static char newest_id[64];

static bool is_mirrored(const json_t *status, int64_t unused)
{
	const json_t *mirror = json_object_get(status, "mirror");

	return strcmp(json_get_text(mirror, "state", ""), "ok") == 0 &&
		strcmp(json_get_text(mirror, "newest", ""), newest_id) == 0;
}

static bool is_failing(const json_t *status, int64_t unused)
{
	return strcmp(json_get_text(json_object_get(status, "mirror"), "state", ""), "failing") ==
		0;
}

/* Saves some steps later, and waits until the mirror has it too. */
static int64_t save_mirrored(struct mirrored *m)
{
	int64_t step;

	rig_wait(&m->rig, "some steps", is_step, rig_step(&m->rig) + 3);
	rig_save(&m->rig, newest_id, &step);
	rig_wait(&m->rig, "the copy", is_mirrored, 0);
	return step;
}

static void expect_resumed(struct mirrored *m, int64_t step)
{
	char part[64], text[256];

	snprintf(part, sizeof(part), "from checkpoint at step %lld on", (long long)step);
	if (rig_event(&m->rig, "training", part, 0, text) == 0)
		fail_msg("it did not go on from step %lld", (long long)step);
}

static void p1_what_is_lost_or_rotten_comes_back_from_the_mirror(void **unused)
{
	struct mirrored m;
	char path[2 * RIG_PATH_MAX], text[256];
	int64_t step;

	open_mirrored(&m);
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "a trainer at work", is_training, 0);
	save_mirrored(&m);
	step = save_mirrored(&m);
	rig_kill_supervisor(&m.rig);
	rig_checkpoint_path(&m.rig, newest_id, path);
	rig_flip(path, 100000);
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "the rotten one again", is_training, 0);
	expect_resumed(&m, step);
	assert_true(rig_event(&m.rig, "mirror", "came back from the mirror", 0, text) > 0);

	step = save_mirrored(&m);
	rig_kill_supervisor(&m.rig);
	rig_checkpoint_path(&m.rig, newest_id, path);
	assert_int_equal(unlink(path), 0);
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "the lost one again", is_training, 0);
	expect_resumed(&m, step);
	assert_int_equal(rig_stop(&m.rig), 0);
	rig_close(&m.rig);
}

static void p7_a_mirror_that_went_away_catches_up(void **unused)
{
	struct mirrored m;
	char away[160], text[256];
	int64_t step;

	open_mirrored(&m);
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "a trainer at work", is_training, 0);
	save_mirrored(&m);
	snprintf(away, sizeof(away), "%s-away", m.place);
	assert_int_equal(rename(m.place, away), 0);
	rig_save(&m.rig, newest_id, &step);
	rig_wait(&m.rig, "the loss seen", is_failing, 0);
	assert_true(rig_event(&m.rig, "mirror-failed", "mirror away", 0, text) > 0);
	rig_wait(&m.rig, "training beside it", is_step, rig_step(&m.rig) + 5);
	assert_int_equal(access(m.place, F_OK), -1);
	assert_int_equal(rename(away, m.place), 0);
	rig_wait(&m.rig, "the copy", is_mirrored, 0);
	assert_true(rig_event(&m.rig, "mirror-ok", "", 0, text) > 0);
	assert_int_equal(rig_stop(&m.rig), 0);
	rig_close(&m.rig);
}

/* The worker and the start's probe stand still in the mirror's open. */
static void p7_a_mirror_that_hangs_holds_up_nothing(void **unused)
{
	struct mirrored m;
	char id[64];
	int64_t step;

	open_mirrored(&m);
	rig_start(&m.rig, "mirror.open:*:stop");
	rig_wait(&m.rig, "a trainer at work", is_training, 0);
	rig_wait(&m.rig, "some steps", is_step, 5);
	rig_save(&m.rig, id, &step);
	assert_int_equal(rig_stop(&m.rig), 0);
	rig_close(&m.rig);
}

static void p8_a_lost_state_folder_comes_back(void **unused)
{
	struct mirrored m;
	char gone[256];
	int64_t step;

	open_mirrored(&m);
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "a trainer at work", is_training, 0);
	step = save_mirrored(&m);
	rig_kill_supervisor(&m.rig);
	snprintf(gone, sizeof(gone), "%s-gone", m.rig.run_dir);
	assert_int_equal(rename(m.rig.run_dir, gone), 0);
	const char *const arguments[] = {"--state", m.rig.run_dir, "init", "--config", m.rig.conf,
		"--from-mirror", m.place, NULL};

	if (rig_run(&m.rig, "ctl/ckptctl", arguments) != 0)
		fail_msg("%s", rig_output(&m.rig));
	rig_start(&m.rig, NULL);
	rig_wait(&m.rig, "the run again", is_training, 0);
	expect_resumed(&m, step);
	assert_int_equal(rig_stop(&m.rig), 0);
	rig_close(&m.rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_what_is_lost_or_rotten_comes_back_from_the_mirror),
		cmocka_unit_test(p7_a_mirror_that_went_away_catches_up),
		cmocka_unit_test(p7_a_mirror_that_hangs_holds_up_nothing),
		cmocka_unit_test(p8_a_lost_state_folder_comes_back),
	};

	return cmocka_run_group_tests_name("mirrored", tests, NULL, NULL);
}
