/* The foreground command: it makes the run, attaches or starts ckptd, asks it to save and stop on
 * Ctrl-C, and leaves it alone otherwise. The daemon is one of canned answers, or a script that
 * fails. */
#include "tests/unit/fake_daemon.h"

#include "store/run.h"

#include <fcntl.h>
#include <sys/stat.h>

#define STATUS(state, rest)                                                                        \
	"{\"parameters\":{\"status\":{\"state\":\"" state "\",\"state_text\":\"\",\"wanted\":"     \
	"\"run\",\"step\":40,\"steps_total\":40" rest "}},\"continues\":true}"
#define OK "{\"parameters\":{}}"
#define END                                                                                        \
	{                                                                                          \
		NULL                                                                               \
	}

static bool is_run(const char *dir)
{
	char path[400];
	struct stat st;

	snprintf(path, sizeof(path), "%s/run.json", dir);
	return stat(path, &st) == 0;
}

static void test_watch_prints_what_changes(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("starting", "")},
		{"Status", FAKE_CLOSE_ALL,
			STATUS("training",
				",\"last_death\":{\"sentence\":\"killed by SIGKILL\"},"
				"\"warnings\":[\"disk full\"]")},
		END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl(
		"status", "--watch", "--timeout", "0.3", "--socket", daemon.path, NULL);
	assert_int_equal(ran.code, CTL_TIMEOUT); /* the daemon went away, and stays away */
	ASSERT_HAS(ran.out, "killed by SIGKILL");
	ASSERT_HAS(ran.out, "warning: disk full");
	ASSERT_HAS(ran.out, "training");
	ASSERT_HAS(ran.out, "ckptd does not answer; waiting");
	ASSERT_HAS(ran.err, "ckptd has not answered for ");
	ASSERT_HAS(daemon.calls, "Status{\"interval_ms\":1000}");
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_watch_for_programs_is_one_status_a_line(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("starting", "")},
		{"Status", FAKE_CLOSE_ALL, STATUS("training", "")}, END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("status", "--watch", "--json", "--socket", daemon.path, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	char *second = strchr(ran.out, '\n');
	assert_non_null(second);
	*second++ = '\0';
	AUTO_JSON first = json_loads(ran.out, 0, NULL);
	AUTO_JSON last = json_loads(second, 0, NULL);
	assert_string_equal(json_get_text(first, "state", ""), "starting");
	assert_string_equal(json_get_text(last, "state", ""), "training");
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_run_makes_the_run_and_ends_when_it_is_finished(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("finished", "")},
		{"Status", FAKE_ANSWER,
			STATUS("finished", ",\"preview\":{\"step\":40,\"path\":\"/a.png\"}")},
		{"Stop", FAKE_ANSWER, OK}, END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("run", "--state", daemon.dir, "--set", "seed=7", NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "new run in ");
	ASSERT_HAS(ran.out, "finished  step 40 of 40");
	ASSERT_HAS(ran.out, "newest preview: /a.png");
	ASSERT_HAS(ran.out, "for diffusers: ckptctl export --state");
	ASSERT_HAS(ran.err, "--set counts at its next start");
	ASSERT_HAS(daemon.calls, "Stop{\"exit\":true}");
	assert_true(is_run(daemon.dir));
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_run_resumes_what_was_stopped(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER,
						      "{\"parameters\":{\"status\":{\"state\":"
						      "\"stopped\",\"wanted\":\"stopped\"}}}"},
		{"Resume", FAKE_ANSWER, OK}, {"Status", FAKE_ANSWER, STATUS("finished", "")},
		{"Stop", FAKE_ANSWER, OK}, END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("run", "--state", daemon.dir, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(daemon.calls, "Resume{}");
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_p1_ctrl_c_saves_and_stops(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("training", "")},
		{"Status", FAKE_INTERRUPT, STATUS("training", "")}, {"Stop", FAKE_CLOSE_ALL, OK},
		END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("run", "--plain", "--state", daemon.dir, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(daemon.calls, "Stop{\"exit\":true,\"now\":false}");
	ASSERT_HAS(ran.out, "Saving, then stopping.");
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_a_second_ctrl_c_stops_without_saving(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("training", "")},
		{"Status", FAKE_INTERRUPT, STATUS("training", "")}, {"Stop", FAKE_INTERRUPT, OK},
		{"Stop", FAKE_CLOSE_ALL, OK}, END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("run", "--plain", "--state", daemon.dir, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(daemon.calls,
		"Stop{\"exit\":true,\"now\":false}\nStop{\"exit\":true,\"now\":true}");
	ran_fini(&ran);
	fake_stop(&daemon);
}

static void test_p10_a_refused_stop_leaves_it_running(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, STATUS("training", "")},
		{"Status", FAKE_INTERRUPT, STATUS("training", "")},
		{"Stop", FAKE_INTERRUPT,
			"{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}"},
		{"Stop", FAKE_INTERRUPT,
			"{\"error\":\"org.varlink.service.PermissionDenied\",\"parameters\":{}}"},
		END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("run", "--plain", "--state", daemon.dir, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "The run goes on without this view");
	assert_false(atomic_load(&daemon.ended));
	ran_fini(&ran);
	fake_stop(&daemon);
}

/* -- starting ckptd -- */

/* A program named ckptd first in $PATH. */
static void put_script(const char *dir, const char *body)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/ckptd", dir);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	fprintf(file, "#!/bin/sh\n%s\n", body);
	fclose(file);
	assert_int_equal(chmod(path, 0700), 0);
}

static void test_p9_a_wrong_setting_is_one_line_and_leaves_no_run(void **unused)
{
	char dir[256], state[300], *path = strdup(getenv("PATH")), longer[4096];

	fake_dir(dir, sizeof(dir));
	snprintf(state, sizeof(state), "%s/wrong", dir);
	put_script(dir,
		"echo '2026 ckptd info: run' >&2; "
		"echo '2026 ckptd error: data = x: no such folder' >&2; exit 78");
	snprintf(longer, sizeof(longer), "%s:%s", dir, path);
	setenv("PATH", longer, 1);
	struct ran ran = ckptctl("run", "--state", state, NULL);
	assert_int_equal(ran.code, 78);
	assert_string_equal(ran.err, "ckptctl: data = x: no such folder\n");
	assert_false(is_run(state));
	ran_fini(&ran);
	setenv("PATH", path, 1);
	free(path);
}

static void test_p9_a_ckptd_that_ends_early_is_quoted(void **unused)
{
	char dir[256], state[300], *path = strdup(getenv("PATH")), longer[4096];

	fake_dir(dir, sizeof(dir));
	snprintf(state, sizeof(state), "%s/run", dir);
	put_script(dir, "echo \"args: $*\" >&2; echo 'last words' >&2; exit 5");
	snprintf(longer, sizeof(longer), "%s:%s", dir, path);
	setenv("PATH", longer, 1);
	struct ran ran = ckptctl("run", "--state", state, "--set", "seed=3", NULL);
	assert_int_equal(ran.code, 5);
	ASSERT_HAS(ran.err, "ckptd ended with code 5");
	ASSERT_HAS(ran.err, "  last words");
	ASSERT_HAS(ran.err, "args: --foreground --set seed=3 --state /");
	assert_true(is_run(state));
	ran_fini(&ran);
	/* Killed at once, whenever it is started: a bounded number of times. */
	put_script(dir, "kill -KILL $$");
	ran = ckptctl("run", "--state", state, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "killed by signal 9");
	ran_fini(&ran);
	setenv("PATH", path, 1);
	free(path);
	fake_remove_dir(dir);
}

/* -- making runs -- */

static void test_p9_init_makes_one_run(void **unused)
{
	char dir[256], state[300];
	struct error err;
	struct run run;

	fake_dir(dir, sizeof(dir));
	snprintf(state, sizeof(state), "%s/run", dir);
	struct ran ran = ckptctl("init", "--state", state, "--set", "seed=42", NULL);
	assert_int_equal(ran.code, CTL_OK);
	ran_fini(&ran);
	int fd = run_open_dir(state, false, &err);
	assert_int_equal(run_load(fd, &run, &err), 0);
	assert_string_equal(json_get_text(run.identity, "seed", ""), "42");
	run_fini(&run);
	close(fd);
	ran = ckptctl("init", "--state", state, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "there is a run in");
	ran_fini(&ran);
	fake_remove_dir(dir);
}

static void test_p9_a_bad_setting_makes_nothing(void **unused)
{
	static const char *const bad[][2] = {{"--set", "seed"}, {"--set", "=3"},
		{"--set", "no_such_key=3"}, {"--set", "image_size=99999"},
		{"--set", "micro_batch=7"}, {"--config", "/nonexistent/ckptd.conf"}};
	char dir[256], state[300];

	fake_dir(dir, sizeof(dir));
	snprintf(state, sizeof(state), "%s/run", dir);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const char *const verbs[] = {"init", "run"};

		for (int v = 0; v < 2; v++) {
			struct ran ran = ckptctl(
				verbs[v], "--state", state, bad[i][0], bad[i][1], NULL);
			assert_int_equal(ran.code, CTL_FAILED);
			assert_true(strlen(ran.err) > 20);
			assert_int_equal(access(state, F_OK), -1);
			ran_fini(&ran);
		}
	}
	fake_remove_dir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_watch_prints_what_changes),
		cmocka_unit_test(test_watch_for_programs_is_one_status_a_line),
		cmocka_unit_test(test_run_makes_the_run_and_ends_when_it_is_finished),
		cmocka_unit_test(test_run_resumes_what_was_stopped),
		cmocka_unit_test(test_p1_ctrl_c_saves_and_stops),
		cmocka_unit_test(test_a_second_ctrl_c_stops_without_saving),
		cmocka_unit_test(test_p10_a_refused_stop_leaves_it_running),
		cmocka_unit_test(test_p9_a_wrong_setting_is_one_line_and_leaves_no_run),
		cmocka_unit_test(test_p9_a_ckptd_that_ends_early_is_quoted),
		cmocka_unit_test(test_p9_init_makes_one_run),
		cmocka_unit_test(test_p9_a_bad_setting_makes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
