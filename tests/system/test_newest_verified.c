/* P1 and P8, the whole system: whatever becomes of the newest checkpoint or of the catalog, a start
 * takes the newest state that is whole, on the current line, and says what it found. */
#include "base/clock.h"
#include "tests/system/rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lacks.h"

#define SAVES 3

/* A run at rest with three checkpoints, made once; tests work on copies. */
static struct rig base;
static char ids[SAVES][64];
static int64_t steps[SAVES];

static int make_base(void **unused)
{
	rig_open(&base, "steps_total=1000000");
	rig_start(&base, NULL);
	rig_wait(&base, "a trainer at work", is_training, 0);
	for (int i = 0; i < SAVES; i++) {
		rig_wait(&base, "some steps", is_step, i == 0 ? 5 : steps[i - 1] + 5);
		rig_save(&base, ids[i], &steps[i]);
	}
	rig_kill_supervisor(&base); /* without a last save */
	return 0;
}

static int drop_base(void **unused)
{
	rig_close(&base);
	return 0;
}

/* Starts and expects to go on from this step on this branch; checked against what it says. */
static void start_from(struct rig *rig, int64_t step, int64_t branch)
{
	char part[96], text[256];
	int64_t after = 0;

	rig_start(rig, NULL);
	rig_wait(rig, "a trainer at work", is_training, 0);
	snprintf(part, sizeof(part), "from %s at step %lld on branch %lld",
		step > 0 ? "checkpoint" : "scratch", (long long)step, (long long)branch);
	/* The newest one: a life before may have said the same. */
	if (!rig_event(rig, "training", "goes on from", after, text) || !strstr(text, part)) {
		char *log = rig_log(rig);

		print_message("# %s\n", log);
		free(log);
		fail_msg("no start %s", part);
	}
}

/* -- what may happen to a file -- */

static void truncate_file(const struct rig *rig, const char *path)
{
	struct stat file;

	assert_int_equal(stat(path, &file), 0);
	assert_int_equal(truncate(path, file.st_size - 5000), 0);
}

static void flip_data(const struct rig *rig, const char *path)
{
	rig_flip(path, -3000000);
}

static void flip_header(const struct rig *rig, const char *path)
{
	rig_flip(path, 300);
}

static void empty_file(const struct rig *rig, const char *path)
{
	assert_int_equal(truncate(path, 0), 0);
}

static void delete_file(const struct rig *rig, const char *path)
{
	assert_int_equal(unlink(path), 0);
}

static void replace_by_older(const struct rig *rig, const char *path)
{
	char older[2 * RIG_PATH_MAX];

	rig_checkpoint_path(rig, ids[0], older);
	assert_int_equal(rename(older, path), 0);
}

static void p1_a_damaged_newest_gives_way_to_the_right_older_one(void **unused)
{
	static const struct {
		const char *what;
		void (*damage)(const struct rig *rig, const char *path);
		const char *states; /* that the catalog may show */
	} cases[] = {
		{"truncated", truncate_file, "corrupt"},
		{"a bit of its data flipped", flip_data, "corrupt"},
		{"a bit of its header flipped", flip_header, "corrupt"},
		{"emptied", empty_file, "corrupt"},
		{"deleted", delete_file, "missing"},
		{"replaced by an older one", replace_by_older, "corrupt refused"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char path[2 * RIG_PATH_MAX], state[32], *log;
		struct rig rig;

		print_message("# newest checkpoint: %s\n", cases[i].what);
		rig_copy(&rig, &base);
		rig_checkpoint_path(&rig, ids[SAVES - 1], path);
		cases[i].damage(&rig, path);
		start_from(&rig, steps[SAVES - 2], 1);
		rig_checkpoint_state(&rig, ids[SAVES - 1], state);
		if (!*state || !strstr(cases[i].states, state))
			fail_msg("%s: the catalog says '%s'", cases[i].what, state);
		log = rig_log(&rig);
		if (!strstr(log, ids[SAVES - 1]))
			fail_msg("%s: the log does not name %s", cases[i].what, ids[SAVES - 1]);
		free(log);
		rig_close(&rig);
	}
}

/* -- rollback and the catalog -- */

static void remove_catalog(const struct rig *rig, bool with_wal)
{
	static const char *const names[] = {
		"catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"};
	char path[2 * RIG_PATH_MAX];

	for (int i = 0; i < (with_wal ? 3 : 1); i++) {
		snprintf(path, sizeof(path), "%s/%s", rig->run_dir, names[i]);
		unlink(path);
	}
}

static void p1_a_rollback_stands_after_a_kill_and_without_a_catalog(void **unused)
{
	struct rig rig;
	char state[32];

	rig_copy(&rig, &base);
	start_from(&rig, steps[SAVES - 1], 1);
	{
		AUTO_JSON reply = rig_call(
			&rig, "Rollback", json_pack("{s:s}", "id", ids[0]), NULL);

		assert_int_equal(json_get_int(reply, "branch", 0), 2);
		assert_int_equal(json_get_int(reply, "step", 0), steps[0]);
	}
	rig_kill_supervisor(&rig);
	remove_catalog(&rig, true);
	start_from(&rig, steps[0], 2);
	{
		AUTO_JSON status = rig_status(&rig);

		assert_int_equal(json_get_int(status, "branch", 0), 2);
		assert_string_equal(
			json_get_text(json_object_get(status, "newest_verified"), "id", ""),
			ids[0]);
	}
	/* Off the line it is not read again, so the rebuilt catalog knows no more than that. */
	rig_checkpoint_state(&rig, ids[SAVES - 1], state);
	assert_true(strcmp(state, "found") == 0 || strcmp(state, "abandoned") == 0);
	rig_close(&rig);
}

/* The error that somebody else gets, by its exit code: 0 for PermissionDenied. */
static int restart_as_nobody(struct rig *rig)
{
	char error[64] = "";
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (setgid(65534) < 0 || setuid(65534) < 0)
			_exit(10);
		json_decref(rig_call(rig, "Restart", json_pack("{s:b}", "from_scratch", 1), error));
		_exit(strcmp(error, "org.varlink.service.PermissionDenied") == 0 ? 0 : 11);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 12;
}

static void p10_nobody_else_begins_again(void **unused)
{
	struct rig rig;
	char text[256];

	if (geteuid() != 0)
		test_lacks("root, to be somebody else");
	rig_copy(&rig, &base);
	start_from(&rig, steps[SAVES - 1], 1);
	assert_int_equal(chmod(rig.dir, 0755), 0);
	assert_int_equal(chmod(rig.run_dir, 0755), 0);
	assert_int_equal(chmod(rig.socket, 0666), 0);
	assert_int_equal(restart_as_nobody(&rig), 0);
	assert_true(rig_event(&rig, "refused", "may not call Restart", 0, text) > 0);
	AUTO_JSON status = rig_status(&rig);
	assert_int_equal(json_get_int(status, "branch", 0), 1);
	rig_close(&rig);
}

/* What lies on the disk is far ahead of it, and must not be taken for the newest: neither before
 * the new line has a checkpoint, nor when it has one, nor by who only has the files. */
static void p1_a_restart_from_scratch_stands_after_a_kill_and_without_a_catalog(void **unused)
{
	const char *const words[] = {"--socket", NULL, "restart", "--from-scratch", "--yes", NULL};
	const char *arguments[6];
	struct rig rig;
	char id[64], state[32];
	int64_t step;

	rig_copy(&rig, &base);
	start_from(&rig, steps[SAVES - 1], 1);
	memcpy(arguments, words, sizeof(words));
	arguments[1] = rig.socket;
	assert_int_equal(rig_run(&rig, "ctl/ckptctl", arguments), 0);
	rig_wait(&rig, "a trainer at work", is_training, 0);
	{
		char text[256];

		assert_true(
			rig_event(&rig, "from-scratch", "branch 2 begins at step 0", 0, text) > 0);
		assert_true(rig_event(&rig, "training",
				    "goes on from scratch at step 0 on branch 2", 0, text) > 0);
	}
	for (int i = 0; i < 2; i++) {
		rig_kill_supervisor(&rig);
		remove_catalog(&rig, i == 1);
		start_from(&rig, 0, 2);
		AUTO_JSON status = rig_status(&rig);
		assert_true(json_is_null(json_object_get(status, "newest_verified")));
	}
	rig_wait(&rig, "a step", is_step, 1);
	rig_save(&rig, id, &step);
	assert_non_null(strstr(id, "-b0002"));
	rig_kill_supervisor(&rig);
	start_from(&rig, step, 2);
	{
		AUTO_JSON status = rig_status(&rig);

		assert_string_equal(
			json_get_text(json_object_get(status, "newest_verified"), "id", ""), id);
	}
	rig_checkpoint_state(&rig, ids[SAVES - 1], state);
	assert_true(strcmp(state, "found") == 0 || strcmp(state, "abandoned") == 0);
	rig_close(&rig);
}

static void write_file(const char *path, const char *bytes, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, size), (ssize_t)size);
	close(fd);
}

static void expect_nothing_lost(struct rig *rig, const char *branch_id)
{
	AUTO_JSON reply = rig_call(rig, "Checkpoints", NULL, NULL);
	const json_t *rows = json_object_get(reply, "checkpoints");
	int seen = 0, kept = 0;

	for (size_t i = 0; i < json_array_size(rows); i++) {
		const json_t *row = json_array_get(rows, i);
		const char *id = json_get_text(row, "id", "");

		for (int k = 0; k < SAVES; k++)
			seen += strcmp(id, ids[k]) == 0;
		seen += strcmp(id, branch_id) == 0;
		if (json_get_bool(row, "keep", false)) {
			assert_string_equal(id, ids[0]);
			kept++;
		}
	}
	assert_int_equal(seen, SAVES + 1);
	assert_int_equal(kept, 1);
}

static sqlite3 *hold_open(const char *catalog)
{
	sqlite3 *reader;

	assert_int_equal(sqlite3_open_v2(catalog, &reader, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_exec(reader, "SELECT count(*) FROM checkpoint", NULL, NULL, NULL),
		SQLITE_OK);
	return reader;
}

static void p8_a_lost_or_broken_catalog_loses_no_checkpoint_branch_or_mark(void **unused)
{
	static const char *const cases[] = {
		"deleted", "truncated", "garbage", "beside an old -wal"};
	char branch_id[64], catalog[2 * RIG_PATH_MAX], wal[2 * RIG_PATH_MAX];
	struct rig rolled;
	sqlite3 *reader;
	int64_t branch_step;

	rig_copy(&rolled, &base);
	start_from(&rolled, steps[SAVES - 1], 1);
	json_decref(
		rig_call(&rolled, "Keep", json_pack("{s:s, s:b}", "id", ids[0], "keep", 1), NULL));
	json_decref(rig_call(&rolled, "Rollback", json_pack("{s:s}", "id", ids[1]), NULL));
	rig_wait(&rolled, "a trainer at work", is_training, 0);
	rig_wait(&rolled, "steps on the new branch", is_step, steps[1] + 3);
	snprintf(catalog, sizeof(catalog), "%s/catalog.sqlite", rolled.run_dir);
	reader = hold_open(catalog); /* so that the last to close does not fold the -wal in */
	rig_save(&rolled, branch_id, &branch_step);
	assert_non_null(strstr(branch_id, "-b0002"));
	rig_kill_supervisor(&rolled);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		static char garbage[70000];
		struct rig rig;

		print_message("# catalog: %s\n", cases[i]);
		rig_copy(&rig, &rolled);
		snprintf(catalog, sizeof(catalog), "%s/catalog.sqlite", rig.run_dir);
		snprintf(wal, sizeof(wal), "%s/catalog.sqlite-wal", rig.run_dir);
		for (size_t k = 0; k < sizeof(garbage); k++)
			garbage[k] = (char)(k * 2654435761u >> 24);
		if (i == 0)
			remove_catalog(&rig, true);
		else if (i == 1)
			assert_int_equal(truncate(catalog, 1000), 0);
		else if (i == 2)
			write_file(catalog, garbage, sizeof(garbage));
		else if (access(wal, F_OK) == 0)
			remove_catalog(&rig, false);
		else
			fail_msg("no -wal is left by a killed supervisor");
		start_from(&rig, branch_step, 2);
		expect_nothing_lost(&rig, branch_id);
		rig_close(&rig);
	}
	sqlite3_close(reader);
	rig_close(&rolled);
}

/* -- what is being read -- */

static bool is_locked(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool locked;

	assert_true(fd >= 0);
	locked = flock(fd, LOCK_EX | LOCK_NB) < 0;
	close(fd);
	return locked;
}

/* ckptctl in a process group of its own; it stops itself before each read. */
static pid_t start_export(struct rig *rig, const char *id, const char *folder)
{
	const char *arguments[] = {
		"--state", rig->run_dir, "export", folder, "--checkpoint", id, NULL};
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		setpgid(0, 0);
		setenv("CKPTD_FAULT", "pread:*:stop", 1);
		_exit(rig_run(rig, "ctl/ckptctl", arguments));
	}
	setpgid(pid, pid);
	return pid;
}

static void p7_what_somebody_exports_is_not_deleted_under_him(void **unused)
{
	nsec_t deadline = clock_monotonic_ns() + 60 * NSEC_PER_SEC;
	char path[2 * RIG_PATH_MAX], folder[2 * RIG_PATH_MAX], id[64], state[32];
	struct rig rig;
	int64_t step;
	int status;

	rig_copy(&rig, &base);
	rig_set(&rig, "keep_last", "2");
	start_from(&rig, steps[SAVES - 1], 1);
	rig_checkpoint_path(&rig, ids[0], path);
	snprintf(folder, sizeof(folder), "%s/exported", rig.dir);
	pid_t pid = start_export(&rig, ids[0], folder);

	while (!is_locked(path)) {
		assert_true(clock_monotonic_ns() < deadline);
		kill(-pid, SIGCONT);
		usleep(20000);
	}
	for (int i = 0; i < 3; i++) {
		rig_wait(&rig, "some steps", is_step, rig_step(&rig) + 3);
		rig_save(&rig, id, &step);
	}
	assert_int_equal(access(path, F_OK), 0);
	rig_checkpoint_state(&rig, ids[0], state);
	assert_string_equal(state, "verified");
	rig_checkpoint_state(&rig, ids[1], state);
	assert_string_equal(state, "deleted");
	while (waitpid(pid, &status, WNOHANG) == 0) {
		assert_true(clock_monotonic_ns() < deadline);
		kill(-pid, SIGCONT);
		usleep(20000);
	}
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	rig_wait(&rig, "some steps", is_step, rig_step(&rig) + 3);
	rig_save(&rig, id, &step);
	assert_int_not_equal(access(path, F_OK), 0);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_a_damaged_newest_gives_way_to_the_right_older_one),
		cmocka_unit_test(p1_a_rollback_stands_after_a_kill_and_without_a_catalog),
		cmocka_unit_test(
			p1_a_restart_from_scratch_stands_after_a_kill_and_without_a_catalog),
		cmocka_unit_test(p10_nobody_else_begins_again),
		cmocka_unit_test(p7_what_somebody_exports_is_not_deleted_under_him),
		cmocka_unit_test(p8_a_lost_or_broken_catalog_loses_no_checkpoint_branch_or_mark),
	};

	return cmocka_run_group_tests_name("newest verified", tests, make_base, drop_base);
}
