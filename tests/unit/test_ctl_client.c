/* ckptctl against a daemon of canned answers: what it asks, what it prints, how it ends. P9: one
 * clear line and the right exit code for everything that can go wrong; P11: what it shows is what
 * it was told. */
#include "ctl/client.h"
#include "ctl/instance.h"
#include "tests/unit/fake_daemon.h"

#include <fcntl.h>

#include <sys/stat.h>

#define REPLY(parameters) "{\"parameters\":" parameters "}"
#define REFUSAL(name, text) "{\"error\":\"" name "\",\"parameters\":{\"text\":\"" text "\"}}"
#define END                                                                                        \
	{                                                                                          \
		NULL                                                                               \
	}

static const char status_reply[] = REPLY(
	"{\"status\":{\"state\":\"training\",\"state_text\":\"all is well\",\"wanted\":\"run\","
	"\"run\":\"0123456789abcdef\",\"run_dir\":\"/var/lib/ckptd\",\"branch\":2,\"step\":1234,"
	"\"steps_total\":6000,\"images_seen\":19744,\"loss\":0.0512,\"holdout_loss\":0.0498,"
	"\"images_per_second\":41.25,\"eta_seconds\":1860.5,\"phase\":\"backward\",\"moves\":5,"
	"\"worker\":{\"pid\":77,\"uptime_seconds\":60.0,\"rss_bytes\":104857600},"
	"\"supervisor\":{\"pid\":76,\"uptime_seconds\":3600.0,\"rss_bytes\":5242880,\"version\":"
	"\"1\"},"
	"\"restarts\":3,\"rung\":1,\"skipped_updates\":4,"
	"\"last_death\":{\"sentence\":\"killed by SIGSEGV in backward\\u001b[2J at step 1,200\"},"
	"\"newest_verified\":{\"id\":\"step-000001200-b0002\",\"step\":1200,\"root\":\"ab\","
	"\"path\":\"/p/q\",\"age_seconds\":12.5},"
	"\"save\":{\"in_flight\":false,\"last_ms\":200.0,\"last_error\":\"No space left\","
	"\"next_seconds\":30.0,\"stall_max_ms\":0.25},"
	"\"scrub\":{\"running\":true,\"checkpoint\":\"step-000001100-b0002\",\"bytes_done\":"
	"1048576,\"bytes_total\":4194304,\"finished_at\":\"\",\"corrupt\":1,\"next_due\":\"\"},"
	"\"slots\":{\"count\":3,\"bytes\":140509184,\"text\":\"no step is lost\"},"
	"\"engine\":{\"name\":\"openblas\",\"reason\":\"auto\",\"threads\":2,\"plan_bytes\":"
	"1048576},"
	"\"sandbox\":\"seccomp: no Landlock: this kernel has none\","
	"\"storage\":{\"ok\":false,\"text\":\"disk full\",\"free_bytes\":4096},"
	"\"warnings\":[\"the disk is full\"]}}");

static struct ran with_daemon(const struct fake_answer *answers, struct fake_daemon *daemon,
	const char *a, const char *b, const char *c)
{
	fake_start(daemon, answers);
	struct ran ran = ckptctl("--socket", daemon->path, a, b, c, NULL);
	fake_stop(daemon);
	return ran;
}

static void test_p11_status_says_what_the_daemon_said(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, status_reply}, END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "status", NULL, NULL);

	assert_int_equal(ran.code, CTL_OK);
	assert_string_equal(daemon.calls, "Status{}\n");
	ASSERT_HAS(ran.out, "training, step 1,234 of 6,000 (20.6 %)");
	ASSERT_HAS(ran.out, "0.0512, held-out 0.0498, 4 non-finite updates skipped");
	ASSERT_HAS(ran.out, "41.2 images/s, 31 min");
	ASSERT_HAS(ran.out, "step-000001200-b0002 verified 12 s ago");
	ASSERT_HAS(ran.out, "last save failed: No space left");
	ASSERT_HAS(ran.out, "3, on rung 1 of the ladder, last: killed by SIGSEGV");
	ASSERT_HAS(ran.out, "3, 134 MiB: no step is lost");
	ASSERT_HAS(ran.out, "sandbox     seccomp: no Landlock: this kernel has none");
	ASSERT_HAS(ran.out, "1 kept corrupt; reading step-000001100-b0002, 1.0 MiB of 4.0 MiB");
	ASSERT_HAS(ran.out, "WARNING");
	/* A terminal obeys nothing that came from a worker. */
	assert_null(strchr(ran.out, '\033'));
	ran_fini(&ran);
}

static void test_status_json_is_the_raw_status(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, status_reply}, END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "status", "--json", NULL);
	AUTO_JSON printed = json_loads(ran.out, 0, NULL);
	AUTO_JSON sent = json_loads(status_reply, 0, NULL);

	assert_int_equal(ran.code, CTL_OK);
	assert_true(json_equal(
		printed, json_object_get(json_object_get(sent, "parameters"), "status")));
	ran_fini(&ran);
}

static void test_p9_a_status_of_wrong_types_is_unknown_not_a_crash(void **unused)
{
	const struct fake_answer answers[] = {
		{"Status", FAKE_ANSWER,
			REPLY("{\"status\":{\"state\":7,\"step\":\"x\","
			      "\"worker\":[],\"warnings\":{},\"loss\":null,"
			      "\"steps_total\":-5,\"last_death\":3}}")},
		END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "status", NULL, NULL);

	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "step 0 of 0 (0.0 %)");
	ASSERT_HAS(ran.out, "none verified yet");
	ran_fini(&ran);
}

static void test_checkpoints_and_events_are_tables(void **unused)
{
	const struct fake_answer answers[] = {
		{"Checkpoints", FAKE_ANSWER,
			REPLY("{\"checkpoints\":[{\"id\":\"step-000001200-b0002\",\"step\":1200,"
			      "\"state\":\"verified\",\"bytes\":46231552,\"loss\":0.05,\"keep\":"
			      "true,"
			      "\"on_line\":true,\"created\":\"2026-11-23\",\"text\":\"\"},"
			      "{\"id\":\"step-000001100-b0001\",\"step\":1100,\"state\":"
			      "\"corrupt\","
			      "\"bytes\":1,\"loss\":null,\"on_line\":false,"
			      "\"text\":\"chunk 3 of 11\"}]}")},
		{"Events", FAKE_ANSWER,
			REPLY("{\"events\":[{\"id\":2,\"time\":\"B\",\"kind\":\"death\",\"level\":"
			      "\"warning\",\"step\":10,\"text\":\"second\"},{\"id\":1,\"time\":"
			      "\"A\","
			      "\"kind\":\"start\",\"level\":\"info\",\"step\":0,\"text\":\"first\"}"
			      "]}")},
		END};
	struct fake_daemon daemon;

	fake_start(&daemon, answers);
	struct ran ran = ckptctl("checkpoints", "--all", "--socket", daemon.path, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "step-000001200-b0002  1,200  verified  0.05  44.1 MiB  2026-11-23");
	ASSERT_HAS(ran.out, "kept");
	ASSERT_HAS(ran.out, "off the line  chunk 3 of 11");
	ran_fini(&ran);
	ran = ckptctl("--socket", daemon.path, "events", "-n", "2", NULL);
	assert_int_equal(ran.code, CTL_OK);
	assert_true(strstr(ran.out, "first") < strstr(ran.out, "second")); /* the newest last */
	ran_fini(&ran);
	fake_stop(&daemon);
	assert_string_equal(daemon.calls, "Checkpoints{\"all\":true}\nEvents{\"limit\":2}\n");
}

/* Each changing verb: what it asks, and the words about what came of it. */
static void test_verbs_ask_what_they_mean(void **unused)
{
	static const struct {
		const char *verb, *argument, *argument2, *method, *reply, *call, *says;
	} rows[] = {
		{"save", "--wait", NULL, "Save",
			REPLY("{\"id\":\"step-000000009-b0001\",\"step\":9,\"root\":\"r\","
			      "\"path\":\"/x\",\"already\":false}"),
			"Save{\"wait\":true}", "step-000000009-b0001 saved and verified: /x"},
		{"save", NULL, NULL, "Save", REPLY("{\"id\":\"\",\"step\":9}"),
			"Save{\"wait\":false}", "saving step 9"},
		{"pause", NULL, NULL, "Pause", REPLY("{}"), "Pause{}", "pausing"},
		{"resume", NULL, NULL, "Resume", REPLY("{}"), "Resume{}", "going on"},
		{"stop", "--exit", NULL, "Stop", REPLY("{}"), "Stop{\"exit\":true,\"now\":false}",
			"saving, then stopping"},
		{"stop", "--now", "--exit", "Stop", REPLY("{}"), "Stop{\"exit\":true,\"now\":true}",
			"without saving"},
		{"rollback", "step-000000009-b0001", NULL, "Rollback",
			REPLY("{\"branch\":2,\"step\":9}"),
			"Rollback{\"id\":\"step-000000009-b0001\"}",
			"branch 2 goes on from step 9"},
		{"rollback", NULL, NULL, "Rollback", REPLY("{\"branch\":2,\"step\":9}"),
			"Rollback{\"id\":\"\"}", "branch 2"},
		{"restart", "--from-scratch", "--yes", "Restart",
			REPLY("{\"branch\":3,\"step\":0}"), "Restart{\"from_scratch\":true}",
			"branch 3 begins at step 0"},
		{"keep", "a", NULL, "Keep", REPLY("{\"text\":\"a is kept\"}"),
			"Keep{\"id\":\"a\",\"keep\":true}", "a is kept"},
		{"keep", "a", "--off", "Keep", REPLY("{\"text\":\"a is no longer kept\"}"),
			"Keep{\"id\":\"a\",\"keep\":false}", "a is no longer kept"},
		{"verify", NULL, NULL, "Verify",
			REPLY("{\"results\":[{\"id\":\"a\",\"ok\":true,\"text\":\"\"}]}"),
			"Verify{}", "a  ok"},
		{"scrub", NULL, NULL, "Scrub", REPLY("{\"running\":true,\"bad\":0}"),
			"Scrub{\"wait\":false}", "reading what is kept"},
		{"scrub", "--wait", NULL, "Scrub",
			REPLY("{\"running\":false,\"checked\":5,\"corrupt\":0,\"bad\":0,"
			      "\"bytes\":1048576}"),
			"Scrub{\"wait\":true}", "5 checkpoints, 1.0 MiB: every byte matches"},
		{"reload", NULL, NULL, "Reload", REPLY("{\"text\":\"one key changed\"}"),
			"Reload{}", "one key changed"},
		{"power-fail", NULL, NULL, "PowerFail", REPLY("{}"), "PowerFail{}", "pausing"},
		{"power-ok", NULL, NULL, "PowerOk", REPLY("{}"), "PowerOk{}", "going on"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct fake_answer answers[] = {
			{rows[i].method, FAKE_ANSWER, rows[i].reply}, END};
		struct fake_daemon daemon;
		struct ran ran = with_daemon(
			answers, &daemon, rows[i].verb, rows[i].argument, rows[i].argument2);

		assert_int_equal(ran.code, CTL_OK);
		assert_memory_equal(daemon.calls, rows[i].call, strlen(rows[i].call));
		ASSERT_HAS(ran.out, rows[i].says);
		ran_fini(&ran);
	}
}

/* stdin, as long as a test needs another one. */
static void with_stdin(int fd, struct ran *ran, struct fake_daemon *daemon)
{
	const struct fake_answer answers[] = {{"Status", FAKE_ANSWER, status_reply},
		{"Restart", FAKE_ANSWER, REPLY("{\"branch\":3,\"step\":0}")}, END};
	int saved = dup(STDIN_FILENO);

	assert_true(saved >= 0 && fd >= 0);
	assert_int_equal(dup2(fd, STDIN_FILENO), STDIN_FILENO);
	clearerr(stdin);
	*ran = with_daemon(answers, daemon, "restart", "--from-scratch", NULL);
	dup2(saved, STDIN_FILENO);
	close(saved);
}

static void test_p10_a_restart_from_scratch_is_typed_or_said(void **unused)
{
	struct fake_daemon daemon;
	struct ran ran;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	with_stdin(null, &ran, &daemon);
	assert_int_equal(ran.code, CTL_USAGE);
	ASSERT_HAS(ran.err, "say --yes where nobody can be asked");
	assert_string_equal(daemon.calls, "");
	ran_fini(&ran);
	assert_true(terminal >= 0);
	assert_int_equal(grantpt(terminal), 0);
	assert_int_equal(unlockpt(terminal), 0);
	int keys = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);

	assert_int_equal(write(terminal, "y\n", 2), 2);
	with_stdin(keys, &ran, &daemon);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.out, "is at step 1234 of 6000; its newest checkpoint: step-000001200-b0002");
	ASSERT_HAS(ran.out, "nothing was changed");
	assert_string_equal(daemon.calls, "Status{}\n");
	ran_fini(&ran);
	assert_int_equal(write(terminal, "yes\n", 4), 4);
	with_stdin(keys, &ran, &daemon);
	assert_int_equal(ran.code, CTL_OK);
	assert_string_equal(daemon.calls, "Status{}\nRestart{\"from_scratch\":true}\n");
	ran_fini(&ran);
	close(keys);
	close(terminal);
	close(null);
}

static void test_p11_a_bad_checkpoint_makes_verify_fail(void **unused)
{
	const struct fake_answer answers[] = {
		{"Verify", FAKE_ANSWER,
			REPLY("{\"results\":[{\"id\":\"a\",\"ok\":true,\"text\":\"\"},"
			      "{\"id\":\"b\",\"ok\":false,\"text\":\"chunk 1\"}]}")},
		END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "verify", NULL, NULL);

	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.out, "b  BAD  chunk 1");
	ran_fini(&ran);
}

static void test_p11_a_bad_checkpoint_makes_scrub_fail(void **unused)
{
	const struct fake_answer answers[] = {
		{"Scrub", FAKE_ANSWER,
			REPLY("{\"running\":false,\"checked\":5,\"corrupt\":1,\"bad\":3}")},
		END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "scrub", "--wait", NULL);

	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.out, "1 corrupt, 2 missing, unreadable or refused");
	ran_fini(&ran);
}

static void test_sample_copies_the_picture(void **unused)
{
	char reply[600], picture[400], out[400], seen[16] = "";
	struct fake_daemon daemon;
	struct stat st;

	fake_start(&daemon, (const struct fake_answer[]){END});
	snprintf(picture, sizeof(picture), "%s/made.png", daemon.dir);
	snprintf(out, sizeof(out), "%s/mine.png", daemon.dir);
	snprintf(reply, sizeof(reply), REPLY("{\"path\":\"%s\",\"id\":\"step-1\",\"step\":1}"),
		picture);
	daemon.answers[0] = (struct fake_answer){"Sample", FAKE_ANSWER, reply};
	FILE *file = fopen(picture, "w");
	fputs("PNG bytes", file);
	fclose(file);
	struct ran ran = ckptctl("sample", "--socket", daemon.path, "--count", "4", "--class", "2",
		"--guidance=1.5", "--seed", "7", "--out", out, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(daemon.calls, "\"count\":4");
	ASSERT_HAS(daemon.calls, "\"label\":2");
	ASSERT_HAS(daemon.calls, "\"guidance\":1.5");
	ASSERT_HAS(daemon.calls, "\"seed\":7");
	file = fopen(out, "r");
	assert_non_null(file);
	assert_non_null(fgets(seen, sizeof(seen), file));
	fclose(file);
	assert_string_equal(seen, "PNG bytes");
	assert_int_equal(stat(out, &st), 0);
	ran_fini(&ran);
	fake_stop(&daemon);
}

/* -- what can go wrong -- */

static void assert_line(const struct ran *ran, int code, const char *part)
{
	assert_int_equal(ran->code, code);
	ASSERT_HAS(ran->err, part);
	/* One line. */
	assert_ptr_equal(strchr(ran->err, '\n'), ran->err + strlen(ran->err) - 1);
}

static void test_p9_no_daemon_is_one_line_and_code_3(void **unused)
{
	char dir[256], path[300];

	fake_dir(dir, sizeof(dir));
	struct ran ran = ckptctl("status", "--state", dir, NULL);
	assert_line(&ran, CTL_NOT_RUNNING, "ckptd is not running: there is no socket at");
	ran_fini(&ran);
	/* A socket that a dead daemon left behind. */
	snprintf(path, sizeof(path), "%s/ckptd.sock", dir);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	ran = ckptctl("save", "--state", dir, NULL);
	assert_line(&ran, CTL_NOT_RUNNING, "nobody answers at");
	ran_fini(&ran);
	fake_remove_dir(dir);
}

/* An instance of the service in the folder dir: a socket as a running one has. */
static void make_instance(const char *dir, const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	assert_int_equal(mkdir(path, 0755), 0);
	strcat(path, "/ckptd.sock");
	memcpy(address.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
}

static void test_the_only_instance_is_found(void **unused)
{
	char dir[256], path[300], expected[300];
	struct error err;

	fake_dir(dir, sizeof(dir));
	assert_int_equal(instance_socket(dir, NULL, path, sizeof(path), &err), -ENOTCONN);
	ASSERT_HAS(err.text, "systemctl start ckptd@NAME");
	make_instance(dir, "cars");
	/* A folder without a socket is none that runs. */
	snprintf(path, sizeof(path), "%s/idle", dir);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(instance_socket(dir, NULL, path, sizeof(path), &err), 0);
	snprintf(expected, sizeof(expected), "%s/cars/ckptd.sock", dir);
	assert_string_equal(path, expected);

	make_instance(dir, "birds");
	assert_int_equal(instance_socket(dir, NULL, path, sizeof(path), &err), -ENOTUNIQ);
	ASSERT_HAS(err.text, "2 instances of ckptd run here, say --instance NAME: ");
	ASSERT_HAS(err.text, "cars");
	ASSERT_HAS(err.text, "birds");
	assert_int_equal(instance_socket(dir, "birds", path, sizeof(path), &err), 0);
	snprintf(expected, sizeof(expected), "%s/birds/ckptd.sock", dir);
	assert_string_equal(path, expected);
	fake_remove_dir(dir);
}

static void test_p9_a_name_of_an_instance_is_no_path(void **unused)
{
	static const char *const wrong[] = {"", ".", "..", "../x", "a/b", "a b", "a%b"};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		struct ran ran = ckptctl("--instance", wrong[i], "status", NULL);

		assert_line(&ran, CTL_FAILED, "is no instance: ckptd@NAME");
		ran_fini(&ran);
		ran = ckptctl("init", "--instance", wrong[i], NULL);
		assert_line(&ran, CTL_FAILED, "is no instance: ckptd@NAME");
		ran_fini(&ran);
	}
}

static void test_p9_refusals_have_their_codes(void **unused)
{
	static const struct {
		const char *reply;
		int code;
		const char *says;
	} rows[] = {
		{REFUSAL("io.ckptd.Training.Failed", "the disk is full"), CTL_FAILED,
			"ckptctl: the disk is full"},
		{REFUSAL("io.ckptd.Training.NoRun", "no run here"), CTL_FAILED, "no run here"},
		{REFUSAL("io.ckptd.Training.Busy", "busy\\nwith\\u001b[31m"), CTL_FAILED,
			"busy with"},
		{REFUSAL("io.ckptd.Training.NotFound", ""), CTL_FAILED, "NotFound"},
		{"{\"error\":\"org.varlink.service.PermissionDenied\"}", CTL_DENIED,
			"only root and the user of ckptd"},
		{"{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":"
		 "\"x\"}}",
			CTL_FAILED, "another version"},
		{"no JSON", CTL_FAILED, "frame"},
		{"{\"parameters\":{}} x", CTL_FAILED, "frame"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct fake_answer answers[] = {{"Save", FAKE_RAW, rows[i].reply}, END};
		struct fake_daemon daemon;
		struct ran ran = with_daemon(answers, &daemon, "save", NULL, NULL);

		assert_line(&ran, rows[i].code, rows[i].says);
		assert_null(strchr(ran.err, '\033'));
		ran_fini(&ran);
	}
}

static void test_p9_no_answer_in_time_is_code_5(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_SILENCE, NULL}, END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "--timeout", "0.05", "status");

	assert_line(&ran, CTL_TIMEOUT, "did not answer in time");
	ran_fini(&ran);
}

static void test_p9_a_daemon_that_dies_in_a_call(void **unused)
{
	const struct fake_answer answers[] = {{"Status", FAKE_CLOSE_ALL, NULL}, END};
	struct fake_daemon daemon;
	struct ran ran = with_daemon(answers, &daemon, "status", NULL, NULL);

	assert_line(&ran, CTL_FAILED, "closed the connection");
	ran_fini(&ran);
}

static void test_p9_wrong_usage_is_code_2(void **unused)
{
	static const char *const rows[][4] = {
		{NULL},
		{"nonsense"},
		{"status", "--nonsense"},
		{"status", "extra"},
		{"inspect"},
		{"export"},
		{"rollback", "a", "b"},
		{"restart"},
		{"restart", "--yes"},
		{"events", "-n"},
		{"events", "-n", "0"},
		{"events", "-n", "12x"},
		{"sample", "--count", "-1"},
		{"sample", "--guidance", "nan"},
		{"sample", "--sampler", "euler"},
		{"save", "--wait=yes"},
		{"--timeout", "0", "status"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ran ran = ckptctl(rows[i][0], rows[i][1], rows[i][2], rows[i][3], NULL);

		if (ran.code != CTL_USAGE)
			fail_msg("row %zu: code %d: %s", i, ran.code, ran.err);
		ASSERT_HAS(ran.err, "--help");
		ran_fini(&ran);
	}
}

/* -- finding it -- */

static void test_where_the_daemon_is_looked_for(void **unused)
{
	const struct fake_answer answers[] = {{"Pause", FAKE_ANSWER, REPLY("{}")},
		{"Pause", FAKE_ANSWER, REPLY("{}")}, {"Pause", FAKE_ANSWER, REPLY("{}")},
		{"Pause", FAKE_ANSWER, REPLY("{}")}, END};
	struct fake_daemon daemon;
	char here[4096], state[300];

	assert_non_null(getcwd(here, sizeof(here)));
	fake_start(&daemon, answers);
	struct ran ran = ckptctl("pause", "--state", daemon.dir, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ran_fini(&ran);
	setenv("CKPTD_SOCKET", daemon.path, 1);
	ran = ckptctl("pause", NULL);
	assert_int_equal(ran.code, CTL_OK);
	ran_fini(&ran);
	/* What is said goes before what stands in the environment. */
	ran = ckptctl("pause", "--socket", "/nonexistent/x", NULL);
	assert_int_equal(ran.code, CTL_NOT_RUNNING);
	ran_fini(&ran);
	unsetenv("CKPTD_SOCKET");
	/* ./ckptd-state, when it exists. */
	snprintf(state, sizeof(state), "%s/ckptd-state", daemon.dir);
	assert_int_equal(symlink(".", state), 0);
	assert_int_equal(chdir(daemon.dir), 0);
	ran = ckptctl("pause", NULL);
	assert_int_equal(ran.code, CTL_OK);
	ran_fini(&ran);
	assert_int_equal(chdir(here), 0);
	fake_stop(&daemon);
}

static void test_a_path_longer_than_a_socket_address(void **unused)
{
	const struct fake_answer answers[] = {{"Pause", FAKE_ANSWER, REPLY("{}")}, END};
	struct fake_daemon daemon;
	char deep[512], link[600], name[121];

	fake_start(&daemon, answers);
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	snprintf(deep, sizeof(deep), "%s/%s", daemon.dir, name);
	assert_int_equal(mkdir(deep, 0700), 0);
	snprintf(link, sizeof(link), "%s/ckptd.sock", deep);
	assert_int_equal(symlink("../ckptd.sock", link), 0);
	assert_true(strlen(link) > 107);
	struct ran ran = ckptctl("pause", "--socket", link, NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ran_fini(&ran);
	fake_stop(&daemon);
}

/* -- help -- */

static void test_help_completion_and_version(void **unused)
{
	struct ran ran = ckptctl("--help", NULL);

	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 ckptd is not running");
	for (const char *line = ran.out; *line != '\0'; line += strcspn(line, "\n") + 1)
		assert_true(strcspn(line, "\n") <= 90);
	ran_fini(&ran);
	ran = ckptctl("sample", "--help", NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "--sampler ddim|ddpm");
	ran_fini(&ran);
	ran = ckptctl("--complete", NULL);
	ASSERT_HAS(ran.out, "checkpoints\n");
	ran_fini(&ran);
	ran = ckptctl("--complete", "events", NULL);
	ASSERT_HAS(ran.out, "--limit\n");
	assert_null(strstr(ran.out, "--complete"));
	ran_fini(&ran);
	ran = ckptctl("--version", NULL);
	ASSERT_HAS(ran.out, "ckptctl ");
	ran_fini(&ran);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p11_status_says_what_the_daemon_said),
		cmocka_unit_test(test_status_json_is_the_raw_status),
		cmocka_unit_test(test_p9_a_status_of_wrong_types_is_unknown_not_a_crash),
		cmocka_unit_test(test_checkpoints_and_events_are_tables),
		cmocka_unit_test(test_verbs_ask_what_they_mean),
		cmocka_unit_test(test_p10_a_restart_from_scratch_is_typed_or_said),
		cmocka_unit_test(test_p11_a_bad_checkpoint_makes_verify_fail),
		cmocka_unit_test(test_p11_a_bad_checkpoint_makes_scrub_fail),
		cmocka_unit_test(test_sample_copies_the_picture),
		cmocka_unit_test(test_p9_no_daemon_is_one_line_and_code_3),
		cmocka_unit_test(test_the_only_instance_is_found),
		cmocka_unit_test(test_p9_a_name_of_an_instance_is_no_path),
		cmocka_unit_test(test_p9_refusals_have_their_codes),
		cmocka_unit_test(test_p9_no_answer_in_time_is_code_5),
		cmocka_unit_test(test_p9_a_daemon_that_dies_in_a_call),
		cmocka_unit_test(test_p9_wrong_usage_is_code_2),
		cmocka_unit_test(test_where_the_daemon_is_looked_for),
		cmocka_unit_test(test_a_path_longer_than_a_socket_address),
		cmocka_unit_test(test_help_completion_and_version),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
