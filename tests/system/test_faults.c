/* P7, P8 and P9, the whole system: saves that find no room (tests/disk/test_full_disk.c fills real
 * file systems), databases that are lost under a running daemon, and what a person gets wrong. */
#include "tests/system/rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool is_storage_bad(const json_t *status, int64_t value)
{
	return !json_get_bool(json_object_get(status, "storage"), "ok", true);
}

static bool is_storage_good(const json_t *status, int64_t value)
{
	return json_get_bool(json_object_get(status, "storage"), "ok", false);
}

/* With the disk full: training goes on, the status says so, the last checkpoint stays. */
static void expect_degraded(struct rig *rig, int64_t saved_step, const char *says)
{
	AUTO_JSON status = NULL;
	const char *text;

	rig_wait(rig, "the status to say it", is_storage_bad, 0);
	rig_wait(rig, "training to go on", is_step, rig_step(rig) + 20);
	status = rig_status(rig);
	assert_string_equal(json_get_text(status, "state", ""), "training");
	assert_int_equal(json_get_int(status, "restarts", -1), 0);
	text = json_get_text(json_object_get(status, "storage"), "text", "");
	if (!strstr(text, says))
		fail_msg("the status says '%s', not '%s'", text, says);
	assert_int_equal(
		json_get_int(json_object_get(status, "newest_verified"), "step", -1), saved_step);
}

static void p7_saving_resumes_by_itself_after_a_full_disk(void **unused)
{
	struct rig rig;
	char id[64], error[64];
	int64_t step;

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, "save.begin@2:*:ENOSPC");
	rig_wait(&rig, "some steps", is_step, 5);
	rig_save(&rig, id, &step);
	rig_wait(&rig, "more steps", is_step, step + 5);
	assert_null(rig_call(&rig, "Save", json_pack("{s:b}", "wait", 1), error));
	expect_degraded(&rig, step, "No space left");
	/* Nobody asks for it: the failed save is tried again. */
	rig_wait(&rig, "saving to resume", is_saved, step + 5);
	rig_wait(&rig, "the status to say so", is_storage_good, 0);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* Space that was there is taken before it is reserved: once by others, then by a quota, of which
 * the free bytes say nothing. The oldest goes, the save stands, nobody is told of a full disk. */
static void p7_a_quota_costs_the_oldest_checkpoint(void **unused)
{
	struct rig rig;
	char ids[3][64], id[64], state[32];
	int64_t step = 0;

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, NULL);
	for (int i = 0; i < 3; i++) {
		rig_wait(&rig, "steps", is_step, step + 5);
		rig_save(&rig, ids[i], &step);
	}
	rig_kill_supervisor(&rig);
	rig_start(&rig, "fallocate:1:ENOSPC,fallocate:2:EDQUOT");
	rig_wait(&rig, "steps", is_step, step + 5);
	rig_save(&rig, id, &step);
	rig_checkpoint_state(&rig, ids[0], state);
	assert_string_equal(state, "deleted");
	for (int i = 1; i < 3; i++) {
		rig_checkpoint_state(&rig, ids[i], state);
		assert_string_equal(state, "verified");
	}
	{
		AUTO_JSON status = rig_status(&rig);

		assert_true(is_storage_good(status, 0));
	}
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

static void overwrite(const char *path)
{
	static const char garbage[512] = "garbage";
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, garbage, sizeof(garbage), 0), sizeof(garbage));
	close(fd);
}

static void remove_file(const char *path)
{
	assert_int_equal(unlink(path), 0);
}

static void drop_events(const char *path)
{
	sqlite3 *db;

	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	sqlite3_busy_timeout(db, 5000);
	assert_int_equal(sqlite3_exec(db, "DROP TABLE event", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void save_after(struct rig *rig, int64_t *step, char id[64])
{
	rig_wait(rig, "steps", is_step, *step + 5);
	rig_save(rig, id, step);
}

/* By the next save: else nothing would ever be deleted again. */
static void p8_a_catalog_lost_under_a_running_daemon_is_made_anew(void **unused)
{
	void (*const losses[])(const char *path) = {remove_file, overwrite};
	char path[2 * RIG_PATH_MAX], ids[3][64], state[32];
	int64_t step = 0;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 scrub_interval=0");
	rig_start(&rig, NULL);
	snprintf(path, sizeof(path), "%s/catalog.sqlite", rig.run_dir);
	save_after(&rig, &step, ids[0]);
	for (int i = 0; i < 2; i++) {
		losses[i](path);
		save_after(&rig, &step, ids[1 + i]);
		rig_checkpoint_state(&rig, ids[1 + i], state);
		assert_string_equal(state, "verified");
		rig_checkpoint_state(&rig, ids[i], state);
		assert_string_equal(state, "found");
	}
	assert_true(rig_event(&rig, "catalog", "was rebuilt from", 0, (char[256]){0}) > 0);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

static void p8_a_history_lost_under_a_running_daemon_begins_anew(void **unused)
{
	void (*const losses[])(const char *path) = {remove_file, overwrite, drop_events};
	char path[2 * RIG_PATH_MAX], id[64], part[64], text[256];
	int64_t step = 0;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000");
	rig_start(&rig, NULL);
	snprintf(path, sizeof(path), "%s/history.sqlite", rig.run_dir);
	for (int i = 0; i < 3; i++) {
		save_after(&rig, &step, id);
		snprintf(part, sizeof(part), "step %lld of", (long long)step);
		assert_true(rig_event(&rig, "saved", part, 0, text) > 0);
		usleep(1500000); /* one that breaks at once again is left alone for a second */
		losses[i](path);
		/* A question may be the first to meet it. */
		json_decref(rig_call(&rig, "Events", NULL, NULL));
		save_after(&rig, &step, id);
		snprintf(part, sizeof(part), "step %lld of", (long long)step);
		assert_true(rig_event(&rig, "saved", part, 0, text) > 0);
		assert_true(rig_event(&rig, "history-lost", "a new one begins", 0, text) > 0);
	}
	{
		AUTO_JSON outages = rig_call(&rig, "Outages", NULL, NULL);

		assert_true(*json_get_text(json_object_get(outages, "totals"), "since", ""));
	}
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* In the foreground a person is there: one line, exit 78, nothing begun. */
static void expect_refusal(struct rig *rig, const char *a, const char *b)
{
	const char *arguments[] = {"--config", rig->conf, "--strict", NULL};
	char *output;
	int code = rig_run(rig, "supervisor/ckptd", arguments);

	output = rig_output(rig);
	if (code != 78 || !strstr(output, a) || !strstr(output, b))
		fail_msg("exit %d, wanted 78 with '%s' and '%s': %s", code, a, b, output);
	free(output);
}

static void append(const struct rig *rig, const char *line)
{
	FILE *file = fopen(rig->conf, "ae");

	assert_non_null(file);
	fprintf(file, "%s\n", line);
	fclose(file);
}

static void p9_what_a_person_gets_wrong_is_one_line_and_exit_78(void **unused)
{
	struct rig rig;

	rig_open(&rig, "steps_total=100");
	append(&rig, "[train]\nbatch_sise = 4");
	expect_refusal(&rig, "ckptd.conf:", "batch_size");
	rig_set(&rig, "seed", "77");
	expect_refusal(&rig, "seed", "77");
	rig_set(&rig, "seed", "1");
	rig_close(&rig);

	rig_open(&rig, "data=folder:/nonexistent/pictures");
	expect_refusal(&rig, "/nonexistent/pictures", "");
	rig_close(&rig);

	rig_open(&rig, "groups=5");
	expect_refusal(&rig, "groups", "5");
	rig_close(&rig);

	rig_open(&rig, "engine=amx"); /* the net is too narrow for it, everywhere */
	expect_refusal(&rig, "engine = amx cannot run here", "set engine = auto");
	rig_close(&rig);
}

static void p9_ckptctl_without_a_daemon_says_so_and_exits_3(void **unused)
{
	struct rig rig;
	char *output;

	rig_open(&rig, "steps_total=100");
	{
		const char *arguments[] = {"--socket", rig.socket, "status", NULL};

		assert_int_equal(rig_run(&rig, "ctl/ckptctl", arguments), 3);
	}
	output = rig_output(&rig);
	assert_non_null(strstr(output, rig.socket));
	assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
	free(output);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p7_saving_resumes_by_itself_after_a_full_disk),
		cmocka_unit_test(p7_a_quota_costs_the_oldest_checkpoint),
		cmocka_unit_test(p8_a_catalog_lost_under_a_running_daemon_is_made_anew),
		cmocka_unit_test(p8_a_history_lost_under_a_running_daemon_begins_anew),
		cmocka_unit_test(p9_what_a_person_gets_wrong_is_one_line_and_exit_78),
		cmocka_unit_test(p9_ckptctl_without_a_daemon_says_so_and_exits_3),
	};

	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
