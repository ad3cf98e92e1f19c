/* P7: a real daemon and a real trainer on a real file system that fills up. Training goes on, the
 * status says what is wrong, nothing that was verified is gone or changed, and when there is space
 * again saving resumes by itself. Skips where this process may not mount; in CI that is a failure.
 */
#include "store/checkpoint.h"
#include "tests/system/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/disk/small_fs.h"

static bool is_storage(const json_t *status, int64_t ok)
{
	return json_get_bool(json_object_get(status, "storage"), "ok", !ok) == (ok != 0);
}

static void verify(const struct rig *rig, const char *id)
{
	char path[2 * RIG_PATH_MAX], name[96];
	struct checkpoint_info info;
	struct error err;
	int dir, fd;

	snprintf(path, sizeof(path), "%s/checkpoints", rig->run_dir);
	snprintf(name, sizeof(name), "%s" CHECKPOINT_SUFFIX, id);
	dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = checkpoint_open(dir, name, &info, &err);
	if (fd < 0 || checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &err) < 0)
		fail_msg("%s", err.text);
	checkpoint_info_fini(&info);
	close(fd);
	close(dir);
}

static void expect_degraded(struct rig *rig, int64_t saved_step)
{
	AUTO_JSON status = NULL;
	const char *text;

	rig_wait(rig, "the status to say it", is_storage, 0);
	rig_wait(rig, "training to go on", is_step, rig_step(rig) + 20);
	status = rig_status(rig);
	assert_string_equal(json_get_text(status, "state", ""), "training");
	assert_int_equal(json_get_int(status, "restarts", -1), 0);
	text = json_get_text(json_object_get(status, "storage"), "text", "");
	if (!strstr(text, "disk full"))
		fail_msg("the status says '%s'", text);
	assert_int_equal(
		json_get_int(json_object_get(status, "newest_verified"), "step", -1), saved_step);
}

static void expect_verified(struct rig *rig, char ids[2][64])
{
	for (int i = 0; i < 2; i++) {
		char state[32];

		rig_checkpoint_state(rig, ids[i], state);
		assert_string_equal(state, "verified");
		verify(rig, ids[i]);
	}
}

/* The reserve is gone when a save was killed that had given it up: SQLite cannot even open then. */
static void take_reserve(const struct rig *rig, const char *filler)
{
	char reserve[2 * RIG_PATH_MAX];

	snprintf(reserve, sizeof(reserve), "%s/reserve", rig->run_dir);
	unlink(reserve);
	small_fs_fill(filler);
}

/* On the file system that is mounted at the run's folder now. */
static void fill_and_free(struct rig *rig)
{
	char ids[2][64], filler[2 * RIG_PATH_MAX], second[2 * RIG_PATH_MAX], error[64], state[32];
	int64_t step = 0;

	rig_start(rig, NULL);
	for (int i = 0; i < 2; i++) {
		rig_wait(rig, "some steps", is_step, step + 5);
		rig_save(rig, ids[i], &step);
	}
	snprintf(filler, sizeof(filler), "%s/filler", rig->run_dir);
	small_fs_fill(filler);
	rig_wait(rig, "more steps", is_step, step + 5);
	assert_null(rig_call(rig, "Save", json_pack("{s:b}", "wait", 1), error));
	expect_degraded(rig, step);
	expect_verified(rig, ids);
	/* Killed there, it starts on the full disk too, from memory or what is verified. */
	rig_kill_supervisor(rig);
	rig_start(rig, NULL);
	rig_wait(rig, "training on a full disk", is_step, step + 5);
	expect_verified(rig, ids);
	rig_kill_supervisor(rig);
	snprintf(second, sizeof(second), "%s/filler-2", rig->run_dir);
	take_reserve(rig, second);
	rig_start(rig, NULL);
	rig_wait(rig, "training without the reserve", is_step, step + 5);
	expect_verified(rig, ids);
	assert_int_equal(unlink(second), 0);
	assert_int_equal(unlink(filler), 0);
	rig_send(rig, "Save");
	rig_wait(rig, "saving to resume", is_saved, step + 5);
	rig_wait(rig, "the status to say so", is_storage, 1);
	rig_checkpoint_state(rig, ids[1], state);
	assert_string_equal(state, "verified");
	verify(rig, ids[1]);
	assert_int_equal(rig_stop(rig), 0);
	assert_int_equal(umount2(rig->run_dir, MNT_DETACH), 0);
}

/* The folder moves to what mount_small puts over it. */
static void run_on(void (*mount_small)(const struct rig *rig))
{
	struct rig rig, on_disk;

	rig_open(&on_disk, "steps_total=1000000");
	rig_copy(&rig, &on_disk);
	mount_small(&rig);
	rig_copy_run(&rig, &on_disk);
	rig_close(&on_disk);
	fill_and_free(&rig);
	rig_close(&rig);
}

static void mount_tmpfs(const struct rig *rig)
{
	small_fs_mount_tmpfs(rig->run_dir, 32);
}

static void mount_ext4(const struct rig *rig)
{
	char image[2 * RIG_PATH_MAX];

	snprintf(image, sizeof(image), "%s/image", rig->dir);
	small_fs_mount_ext4(image, rig->run_dir, 64);
}

static void p7_a_full_tmpfs_costs_no_step_and_no_checkpoint(void **unused)
{
	small_fs_begin();
	run_on(mount_tmpfs);
}

static void p7_a_full_ext4_costs_no_step_and_no_checkpoint(void **unused)
{
	small_fs_begin();
	run_on(mount_ext4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p7_a_full_tmpfs_costs_no_step_and_no_checkpoint),
		cmocka_unit_test(p7_a_full_ext4_costs_no_step_and_no_checkpoint),
	};

	return cmocka_run_group_tests_name("full_disk", tests, NULL, NULL);
}
