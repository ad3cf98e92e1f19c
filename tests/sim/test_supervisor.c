/* The whole supervisor around a fake worker (fake_worker.h): processes, deaths, saves, clients.
 * Each test has its own run folder and its own ckptd, forked from the test. */
#include "tests/sim/fake_worker.h"

#include "base/file.h"
#include "base/log.h"
#include "base/panic.h"
#include "proto/frame.h"
#include "proto/link.h"
#include "store/run.h"
#include "supervisor/control.h"
#include "supervisor/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PATIENCE (60 * NSEC_PER_SEC) /* never waited for when all is well */

struct fixture {
	char dir[128];
	pid_t ckptd; /* 0: not running */
	const char *sets[8];
	uint32_t set_count;
};

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *place)
{
	return remove(path);
}

static int setup(void **state)
{
	struct fixture *fx = calloc(1, sizeof(*fx));
	struct config config;
	struct error error;
	struct run run;

	assert_non_null(fx);
	snprintf(fx->dir, sizeof(fx->dir), "/tmp/ckptd-supervisor-XXXXXX");
	assert_non_null(mkdtemp(fx->dir));
	config_defaults(&config);
	int fd = run_open_dir(fx->dir, true, &error);

	assert_true(fd >= 0);
	assert_int_equal(run_create(fd, &config, &run, &error), 0);
	run_fini(&run);
	close(fd);
	*state = fx;
	return 0;
}

static int wait_for_end(struct fixture *fx)
{
	int status;

	assert_true(fx->ckptd > 0);
	assert_int_equal(waitpid(fx->ckptd, &status, 0), fx->ckptd);
	fx->ckptd = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static int teardown(void **state)
{
	struct fixture *fx = *state;

	if (fx->ckptd > 0) {
		kill(fx->ckptd, SIGKILL);
		waitpid(fx->ckptd, NULL, 0);
	}
	nftw(fx->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(fx);
	return 0;
}

/* -- the daemon -- */

_Noreturn static void run_ckptd(const struct fixture *fx)
{
	static struct supervisor sup;
	struct options options = {.source.state_dir = fx->dir};
	struct error error;
	char log[160];

	snprintf(log, sizeof(log), "%s/log", fx->dir);
	int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);

	dup2(fd, STDERR_FILENO);
	log_open("ckptd", LOG_LEVEL_INFO);
	memcpy(options.source.sets, fx->sets, sizeof(fx->sets));
	options.source.set_count = fx->set_count;
	if (readlink("/proc/self/exe", options.worker_path, sizeof(options.worker_path) - 1) < 0 ||
		supervisor_init(&sup, &options, &error) < 0)
		exit(99);
	int code = supervisor_run(&sup);

	supervisor_fini(&sup);
	exit(code);
}

static void start(struct fixture *fx)
{
	assert_int_equal(fx->ckptd, 0);
	fflush(NULL);
	fx->ckptd = fork();
	assert_true(fx->ckptd >= 0);
	if (fx->ckptd == 0)
		run_ckptd(fx);
}

static void behave(struct fixture *fx, const char *text)
{
	int fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	assert_int_equal(file_replace(fd, "behave", text, strlen(text), 0600), 0);
	close(fd);
}

static void set(struct fixture *fx, const char *text)
{
	fx->sets[fx->set_count++] = text;
}

/* -- a client -- */

/* -1 when there is nobody yet. */
static int try_connect(const struct fixture *fx)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/ckptd.sock", fx->dir);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int connect_now(const struct fixture *fx)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int fd;

	while ((fd = try_connect(fx)) < 0 && clock_monotonic_ns() < until)
		usleep(5000);
	assert_true(fd >= 0);
	return fd;
}

static json_t *ask(int fd, json_t *call)
{
	struct frame_reader reader;
	struct error error;
	json_t *reply = NULL;

	frame_reader_init(&reader, FRAME_REPLY_MAX);
	assert_int_equal(frame_send(fd, call, clock_monotonic_ns() + PATIENCE), 0);
	json_decref(call);
	if (frame_receive(fd, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error) < 0)
		fail_msg("no reply: %s", error.text);
	frame_reader_fini(&reader);
	return reply;
}

/* One call on a connection of its own; takes parameters. The whole reply. */
static json_t *call(const struct fixture *fx, const char *method, json_t *parameters)
{
	char name[96];
	int fd = connect_now(fx);

	snprintf(name, sizeof(name), "io.ckptd.Training.%s", method);
	json_t *reply = ask(fd,
		json_pack("{s:s, s:o}", "method", name, "parameters",
			parameters ? parameters : json_object()));

	close(fd);
	return reply;
}

static void call_good(const struct fixture *fx, const char *method, json_t *parameters)
{
	json_t *reply = call(fx, method, parameters);

	if (json_object_get(reply, "error"))
		fail_msg("%s: %s", method, json_dumps(reply, 0));
	json_decref(reply);
}

static json_t *status(const struct fixture *fx)
{
	json_t *reply = call(fx, "Status", NULL);
	json_t *body = json_incref(json_object_get(json_object_get(reply, "parameters"), "status"));

	assert_non_null(body);
	json_decref(reply);
	return body;
}

static int64_t number(const json_t *status, const char *key)
{
	return json_get_int(status, key, -1);
}

static int64_t number_of(const struct fixture *fx, const char *key)
{
	json_t *now = status(fx);
	int64_t value = number(now, key);

	json_decref(now);
	return value;
}

/* Until state is the word and step at least step; the status then. */
static json_t *await(const struct fixture *fx, const char *word, int64_t step, int64_t restarts)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	json_t *now = NULL;

	for (;;) {
		json_decref(now);
		now = status(fx);
		if (strcmp(json_get_text(now, "state", ""), word) == 0 &&
			number(now, "step") >= step && number(now, "restarts") >= restarts)
			return now;
		if (clock_monotonic_ns() > until)
			fail_msg("not %s at step %lld: %s", word, (long long)step,
				json_dumps(now, JSON_INDENT(1)));
		usleep(10000);
	}
}

static void await_only(const struct fixture *fx, const char *word, int64_t step, int64_t restarts)
{
	json_decref(await(fx, word, step, restarts));
}

static pid_t worker_pid(const json_t *status)
{
	return (pid_t)number(json_object_get(status, "worker"), "pid");
}

static int64_t newest_step(const json_t *status)
{
	return json_get_int(json_object_get(status, "newest_verified"), "step", -1);
}

static bool told(const struct fixture *fx, const char *kind)
{
	json_t *reply = call(fx, "Events", json_pack("{s:i}", "limit", 1000));
	json_t *list = json_object_get(json_object_get(reply, "parameters"), "events"), *event;
	bool found = false;
	size_t i;

	json_array_foreach(list, i, event)
		found = found || strcmp(json_get_text(event, "kind", ""), kind) == 0;
	json_decref(reply);
	return found;
}

/* -- life -- */

static void a_run_trains_saves_and_ends(void **state)
{
	struct fixture *fx = *state;

	set(fx, "steps_total=40");
	start(fx);
	json_t *now = await(fx, "finished", 40, 0);

	assert_int_equal(newest_step(now), 40);
	assert_int_equal(number(json_object_get(now, "slots"), "count"), 0);
	assert_int_equal(number(now, "restarts"), 0);
	json_decref(now);
	/* A larger end goes on from there. */
	call_good(fx, "Stop", json_pack("{s:b}", "exit", 1));
	assert_int_equal(wait_for_end(fx), 0);
	fx->set_count = 0;
	set(fx, "steps_total=60");
	start(fx);
	await_only(fx, "stopped", 40, 0); /* a stopped run stays stopped */
	call_good(fx, "Resume", NULL);
	now = await(fx, "finished", 60, 0);
	assert_int_equal(newest_step(now), 60);
	json_decref(now);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(wait_for_end(fx), 0);
}

static void p3_a_killed_trainer_goes_on_at_the_very_next_step(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	start(fx);
	for (int i = 1; i <= 10; i++) {
		json_t *now = await(fx, "training", i * 5, i - 1);
		pid_t pid = worker_pid(now);

		kill(pid, SIGKILL);
		json_decref(now);
		now = await(fx, "training", 0, i);
		json_t *death = json_object_get(now, "last_death");
		int64_t dead_step = number(death, "step");

		assert_string_equal(json_get_text(death, "cause", ""), "killed by SIGKILL");
		assert_true(dead_step >= i * 5);
		assert_true(number(now, "step") >= dead_step);
		assert_int_equal(number(now, "rung"), 0);
		json_decref(now);
	}
	/* No step was done twice: each metric of the ring came once, so the images are the steps'.
	 */
	call_good(fx, "Pause", NULL);
	json_t *now = status(fx);

	assert_int_equal(number(now, "images_seen"), 16 * number(now, "step"));
	json_decref(now);
	call_good(fx, "Stop", json_pack("{s:b}", "exit", 1));
	assert_int_equal(wait_for_end(fx), 0);
}

static void a_pause_saves_and_a_resume_goes_on_from_memory(void **state)
{
	struct fixture *fx = *state;

	start(fx);
	await_only(fx, "training", 10, 0);
	call_good(fx, "Pause", NULL);
	json_t *now = status(fx);
	int64_t step = number(now, "step");

	assert_string_equal(json_get_text(now, "state", ""), "paused");
	assert_string_equal(json_get_text(now, "wanted", ""), "paused");
	assert_int_equal(newest_step(now), step);
	assert_int_equal(worker_pid(now), 0);
	json_decref(now);
	call_good(fx, "Resume", NULL);
	await_only(fx, "training", step + 5, 0);
	/* wanted is durable: the next daemon comes up paused. */
	call_good(fx, "Pause", NULL);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(wait_for_end(fx), 0);
	start(fx);
	await_only(fx, "paused", step, 0);
}

static void sigterm_saves_and_the_next_start_goes_on(void **state)
{
	struct fixture *fx = *state;

	start(fx);
	await_only(fx, "training", 20, 0);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(wait_for_end(fx), 0);
	start(fx);
	json_t *now = await(fx, "training", 21, 0);

	assert_true(newest_step(now) >= 20);
	json_decref(now);
}

/* -- deaths -- */

static void p5_a_poisoned_newest_checkpoint_is_left_behind(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	start(fx);
	await_only(fx, "training", 10, 0);
	call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	await_only(fx, "training", number_of(fx, "step") + 3, 0);
	call_good(fx, "Pause", NULL);
	json_t *now = status(fx);
	int64_t step = number(now, "step");
	char text[64];

	json_decref(now);
	snprintf(text, sizeof(text), "poison %lld\n", (long long)step);
	behave(fx, text);
	call_good(fx, "Resume", NULL);
	now = await(fx, "training", step + 1, 3);
	assert_int_equal(number(now, "branch"), 2);
	assert_int_equal(number(now, "restarts"), 3);
	json_decref(now);
	json_t *reply = call(fx, "Checkpoints", NULL);
	json_t *list = json_object_get(json_object_get(reply, "parameters"), "checkpoints"), *row;
	size_t i;
	bool seen = false;

	json_array_foreach(list, i, row)
	{
		if (number(row, "step") != step || number(row, "branch") != 1)
			continue;
		assert_string_equal(json_get_text(row, "state", ""), "suspect");
		seen = true;
	}
	assert_true(seen);
	json_decref(reply);
}

static void p6_a_hang_is_found(void **state)
{
	struct fixture *fx = *state;

	set(fx, "hang_timeout=1");
	behave(fx, "hang_step 30\n");
	start(fx);
	json_t *now = await(fx, "training", 30, 0);

	json_decref(now);
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (number_of(fx, "restarts") == 0 && clock_monotonic_ns() < until)
		usleep(20000);
	behave(fx, "");
	now = await(fx, "training", 31, 1);
	assert_string_equal(json_get_text(json_object_get(now, "last_death"), "cause", ""), "hang");
	assert_true(told(fx, "hang"));
	json_decref(now);
}

static void a_trainer_that_babbles_is_killed_and_restarted(void **state)
{
	struct fixture *fx = *state;

	behave(fx, "babble 1\n");
	start(fx);
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (number_of(fx, "restarts") == 0 && clock_monotonic_ns() < until)
		usleep(10000);
	behave(fx, "");
	json_t *now = await(fx, "training", 5, 1);

	assert_string_equal(
		json_get_text(json_object_get(now, "last_death"), "cause", ""), "spoke nonsense");
	json_decref(now);
}

static void p9_bad_data_waits_for_a_person_and_a_reload_goes_on(void **state)
{
	struct fixture *fx = *state;

	behave(fx, "prepare_exit 78\n");
	start(fx);
	json_t *now = await(fx, "failed", 0, 0);

	assert_string_equal(json_get_text(now, "state_text", ""), "told to fail");
	json_decref(now);
	behave(fx, "");
	call_good(fx, "Reload", NULL);
	await_only(fx, "training", 3, 0);
}

static void p7_a_failing_disk_costs_checkpoints_only(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=1");
	behave(fx, "save_exit 74\n");
	start(fx);
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	json_t *now = NULL, *storage;
	int64_t step;

	do {
		usleep(20000);
		json_decref(now);
		now = status(fx);
		storage = json_object_get(now, "storage");
	} while (json_get_bool(storage, "ok", true) && clock_monotonic_ns() < until);
	assert_false(json_get_bool(storage, "ok", true));
	assert_string_equal(json_get_text(storage, "text", ""), "told to fail");
	step = number(now, "step");
	json_decref(now);
	await_only(fx, "training", step + 20, 0);
	behave(fx, "");
	do {
		usleep(20000);
		now = status(fx);
		storage = json_object_get(now, "storage");
		bool good = json_get_bool(storage, "ok", false);

		json_decref(now);
		if (good)
			break;
	} while (clock_monotonic_ns() < until);
	assert_true(told(fx, "storage-ok"));
	assert_true(told(fx, "saved"));
}

static void a_killed_saver_is_tried_again(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	behave(fx, "save_kill 1\n");
	start(fx);
	await_only(fx, "training", 5, 0);
	json_t *reply = call(fx, "Save", json_pack("{s:b}", "wait", 1));

	assert_non_null(json_object_get(reply, "error"));
	json_decref(reply);
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int64_t saved;

	do {
		json_t *now = status(fx);

		saved = newest_step(now);
		json_decref(now);
		usleep(20000);
	} while (saved < 0 && clock_monotonic_ns() < until);
	assert_true(saved >= 5);
}

/* A save outlives the trainer it was made for. */
static void p4_a_save_in_flight_outlives_the_trainer(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	behave(fx, "save_wait_ms 500\n");
	start(fx);
	json_t *now = await(fx, "training", 5, 0);
	int fd = connect_now(fx);
	json_t *ask_save = json_pack(
		"{s:s, s:{s:b}}", "method", "io.ckptd.Training.Save", "parameters", "wait", 1);

	assert_int_equal(frame_send(fd, ask_save, 0), 0);
	json_decref(ask_save);
	while (!json_get_bool(json_object_get(now, "save"), "in_flight", false)) {
		json_decref(now);
		now = status(fx);
	}
	kill(worker_pid(now), SIGKILL);
	json_decref(now);
	struct frame_reader reader;
	struct error error;
	json_t *reply;

	frame_reader_init(&reader, FRAME_REPLY_MAX);
	assert_int_equal(
		frame_receive(fd, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error), 0);
	assert_null(json_object_get(reply, "error"));
	json_decref(reply);
	frame_reader_fini(&reader);
	close(fd);
	await_only(fx, "training", 6, 1);
}

/* -- the supervisor's own death -- */

static void p1_after_sigkill_of_the_supervisor_the_newest_checkpoint_is_resumed(void **state)
{
	struct fixture *fx = *state;

	start(fx);
	await_only(fx, "training", 10, 0);
	call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *now = status(fx);
	int64_t saved = newest_step(now);

	json_decref(now);
	kill(fx->ckptd, SIGKILL);
	assert_int_equal(wait_for_end(fx), 256 + SIGKILL);
	start(fx); /* waits for the lock that the old trainer inherited, if it still lives */
	now = await(fx, "training", saved, 0);
	assert_int_equal(newest_step(now), saved);
	json_decref(now);
}

static void two_daemons_cannot_have_one_run(void **state)
{
	struct fixture *fx = *state;

	start(fx);
	await_only(fx, "training", 3, 0);
	int run_fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), lock_fd;
	struct error error;
	pid_t owner;

	assert_int_equal(run_lock(run_fd, &lock_fd, &owner, &error), -EWOULDBLOCK);
	close(run_fd);
}

static void without_a_run_it_waits_and_says_so(void **state)
{
	struct fixture *fx = *state;
	char path[160];

	snprintf(path, sizeof(path), "%s/run.json", fx->dir);
	assert_int_equal(unlink(path), 0);
	start(fx);
	json_t *now = await(fx, "waiting", 0, 0);

	assert_non_null(strstr(json_get_text(now, "state_text", ""), "ckptctl init"));
	json_decref(now);
	json_t *reply = call(fx, "Pause", NULL);

	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.NoRun");
	json_decref(reply);
	struct config config;
	struct error error;
	struct run run;
	int fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	config_defaults(&config);
	assert_int_equal(run_create(fd, &config, &run, &error), 0);
	run_fini(&run);
	close(fd);
	await_only(fx, "training", 3, 0);
}

static void p9_an_identity_key_that_differs_is_refused_for_the_last_good(void **state)
{
	struct fixture *fx = *state;

	start(fx);
	await_only(fx, "training", 3, 0);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(wait_for_end(fx), 0);
	set(fx, "seed=99");
	start(fx);
	json_t *now = await(fx, "training", 4, 0);
	json_t *config = json_object_get(now, "config");

	assert_string_equal(json_get_text(config, "source", ""), "last-good");
	assert_non_null(strstr(json_get_text(config, "text", ""), "seed"));
	assert_int_equal(json_array_size(json_object_get(now, "warnings")), 1);
	json_decref(now);
}

/* -- rollback -- */

static void p1_a_rollback_begins_a_branch_before_it_is_answered(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	start(fx);
	await_only(fx, "training", 10, 0);
	call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *now = status(fx);
	int64_t first = newest_step(now);

	json_decref(now);
	await_only(fx, "training", first + 5, 0);
	call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *reply = call(fx, "Rollback", json_pack("{s:s}", "id", ""));
	json_t *answer = json_object_get(reply, "parameters");

	assert_int_equal(number(answer, "branch"), 2);
	assert_int_equal(number(answer, "step"), first);
	char path[192];

	snprintf(path, sizeof(path), "%s/checkpoints/branch-0002.json", fx->dir);
	assert_int_equal(access(path, F_OK), 0);
	json_decref(reply);
	now = await(fx, "training", first, 0);
	assert_int_equal(number(now, "branch"), 2);
	json_decref(now);
	reply = call(fx, "Rollback", json_pack("{s:s}", "id", "step-000099999-b0001"));
	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.NotFound");
	json_decref(reply);
	await_only(fx, "training", first + 3, 0);
}

/* -- clients -- */

static void a_bad_client_costs_nobody_else_anything(void **state)
{
	static const char *const bad[] = {"not json", "[1]", "{\"method\": 7}", "{\"a\":1,\"a\":2}",
		"{\"method\": \"x.y\", \"upgrade\": true}"};
	struct fixture *fx = *state;
	char byte;

	start(fx);
	await_only(fx, "training", 3, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = connect_now(fx);

		assert_true(write(fd, bad[i], strlen(bad[i]) + 1) > 0);
		assert_int_equal(read(fd, &byte, 1), 0); /* dropped */
		close(fd);
	}
	/* A frame without an end. */
	int fd = connect_now(fx);
	char room[4096];
	ssize_t sent = 0;

	memset(room, ' ', sizeof(room));
	for (int i = 0; i < 64 && sent >= 0; i++)
		sent = send(fd, room, sizeof(room), MSG_NOSIGNAL);
	assert_true(read(fd, &byte, 1) <= 0);
	close(fd);
	/* Half a frame, and then nothing: it may wait, but nobody for it. */
	fd = connect_now(fx);
	assert_int_equal(write(fd, "{\"meth", 6), 6);
	await_only(fx, "training", number_of(fx, "step") + 3, 0);
	close(fd);
}

static void a_reader_that_sleeps_is_dropped(void **state)
{
	static const char question[] =
		"{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		"\"parameters\":{\"interface\":\"io.ckptd.Training\"}}";
	struct fixture *fx = *state;
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	ssize_t sent = 0;

	start(fx);
	await_only(fx, "training", 3, 0);
	int fd = connect_now(fx);

	/* Asks for ever and never reads: its answers pile up on our side until it is dropped. */
	while (clock_monotonic_ns() < until) {
		sent = send(fd, question, sizeof(question), MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno != EAGAIN)
			break;
		if (sent < 0)
			usleep(1000);
	}
	assert_true(sent < 0 && errno != EAGAIN);
	close(fd);
	await_only(fx, "training", number_of(fx, "step") + 3, 0);
}

/* True when there was room; *ret is the connection then. */
static bool try_client(const struct fixture *fx, int *ret)
{
	struct frame_reader reader;
	struct error error;
	json_t *reply = NULL, *frame = json_pack("{s:s}", "method", "org.varlink.service.GetInfo");

	*ret = connect_now(fx);
	frame_reader_init(&reader, FRAME_REPLY_MAX);
	bool good = frame_send(*ret, frame, 0) == 0 &&
		frame_receive(*ret, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error) == 0;

	json_decref(frame);
	json_decref(reply);
	frame_reader_fini(&reader);
	if (!good)
		close(*ret);
	return good;
}

static void more_clients_than_there_is_room_for_are_refused(void **state)
{
	struct fixture *fx = *state;
	int fds[CONTROL_CLIENTS_MAX], count = 0;
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	start(fx);
	await_only(fx, "training", 3, 0);
	/* Those that have just gone away may still take up room. */
	while (count < CONTROL_CLIENTS_MAX && clock_monotonic_ns() < until)
		count += try_client(fx, &fds[count]);
	assert_int_equal(count, CONTROL_CLIENTS_MAX);
	int fd;

	assert_false(try_client(fx, &fd));
	json_decref(ask(fds[7], json_pack("{s:s}", "method", "io.ckptd.Training.Status")));
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++)
		close(fds[i]);
	while (!try_client(fx, &fd))
		assert_true(clock_monotonic_ns() < until);
	close(fd);
	await_only(fx, "training", 4, 0);
}

static void pipelined_calls_are_answered_in_order(void **state)
{
	static const char *const names[] = {"org.varlink.service.GetInfo",
		"io.ckptd.Training.Checkpoints", "io.ckptd.Training.Nothing",
		"io.ckptd.Training.Config", "org.example.X.Y"};
	static const char *const members[] = {
		"vendor", "checkpoints", "method", "config", "interface"};
	struct fixture *fx = *state;
	struct frame_reader reader;
	struct error error;

	start(fx);
	await_only(fx, "training", 3, 0);
	int fd = connect_now(fx);

	for (int i = 0; i < 5; i++) {
		json_t *frame = json_pack("{s:s, s:n}", "method", names[i], "parameters");

		assert_int_equal(frame_send(fd, frame, 0), 0);
		json_decref(frame);
	}
	frame_reader_init(&reader, FRAME_REPLY_MAX);
	for (int i = 0; i < 5; i++) {
		json_t *reply;

		assert_int_equal(
			frame_receive(fd, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error),
			0);
		assert_non_null(json_object_get(json_object_get(reply, "parameters"), members[i]));
		json_decref(reply);
	}
	frame_reader_fini(&reader);
	close(fd);
}

static void a_stream_follows_the_run(void **state)
{
	struct fixture *fx = *state;
	struct frame_reader reader;
	struct error error;
	int64_t step = -1;

	start(fx);
	await_only(fx, "training", 3, 0);
	int fd = connect_now(fx);
	json_t *frame = json_pack("{s:s, s:{s:i}, s:b}", "method", "io.ckptd.Training.Status",
		"parameters", "interval_ms", 100, "more", 1);

	assert_int_equal(frame_send(fd, frame, 0), 0);
	json_decref(frame);
	frame_reader_init(&reader, FRAME_REPLY_MAX);
	for (int i = 0; i < 5; i++) {
		json_t *reply;

		assert_int_equal(
			frame_receive(fd, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error),
			0);
		int64_t now = number(
			json_object_get(json_object_get(reply, "parameters"), "status"), "step");

		assert_true(json_is_true(json_object_get(reply, "continues")));
		assert_true(now >= step);
		step = now;
		json_decref(reply);
	}
	assert_true(step > 3);
	frame_reader_fini(&reader);
	close(fd);
}

static void bad_parameters_are_named(void **state)
{
	struct fixture *fx = *state;
	static const struct {
		const char *method, *parameters, *name;
	} table[] = {{"Events", "{\"limit\": 0}", "limit"},
		{"Events", "{\"limit\": \"x\"}", "limit"}, {"Metrics", "{\"kind\": 1}", "kind"},
		{"Save", "{\"wait\": 1}", "wait"},
		{"Sample", "{\"sampler\": \"magic\"}", "sampler"},
		{"Status", "{\"interval_ms\": 1}", "interval_ms"}};

	start(fx);
	await_only(fx, "training", 3, 0);
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		json_t *reply = call(fx, table[i].method, json_loads(table[i].parameters, 0, NULL));

		assert_string_equal(
			json_get_text(reply, "error", ""), "org.varlink.service.InvalidParameter");
		assert_string_equal(
			json_get_text(json_object_get(reply, "parameters"), "parameter", ""),
			table[i].name);
		json_decref(reply);
	}
}

/* Asks as another user; the exit code says what came back. */
static int ask_as_nobody(const struct fixture *fx, const char *method)
{
	int fd = connect_now(fx);

	/* The kernel notes who connects: a new connection after the change of user. */
	close(fd);
	if (setgid(65534) < 0 || setuid(65534) < 0)
		return 10;
	fd = try_connect(fx);
	if (fd < 0)
		return 11;
	json_t *reply = ask(fd, json_pack("{s:s}", "method", method));
	const char *error = json_get_text(reply, "error", "");

	if (strcmp(error, "org.varlink.service.PermissionDenied") == 0)
		return 1;
	return *error ? 12 : 0;
}

static void p10_others_may_look_and_not_touch(void **state)
{
	static const struct {
		const char *method;
		int expected;
	} table[] = {{"Status", 0}, {"Checkpoints", 0}, {"Events", 0}, {"Metrics", 0},
		{"Config", 0}, {"Save", 1}, {"Pause", 1}, {"Resume", 1}, {"Stop", 1},
		{"Rollback", 1}, {"Verify", 1}, {"Sample", 1}, {"Reload", 1}, {"PowerFail", 1},
		{"PowerOk", 1}};
	struct fixture *fx = *state;
	char path[160], name[96];

	if (geteuid() != 0)
		skip(); /* only root can be somebody else */
	start(fx);
	await_only(fx, "training", 3, 0);
	snprintf(path, sizeof(path), "%s/ckptd.sock", fx->dir);
	assert_int_equal(chmod(fx->dir, 0755), 0);
	assert_int_equal(chmod(path, 0666), 0);
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		int code;
		pid_t pid = fork();

		snprintf(name, sizeof(name), "io.ckptd.Training.%s", table[i].method);
		if (pid == 0)
			_exit(ask_as_nobody(fx, name));
		assert_int_equal(waitpid(pid, &code, 0), pid);
		assert_int_equal(WEXITSTATUS(code), table[i].expected);
	}
	await_only(fx, "training", 4, 0);
}

static void power_fail_saves_and_power_ok_goes_on(void **state)
{
	struct fixture *fx = *state;

	set(fx, "interval=0");
	start(fx);
	await_only(fx, "training", 5, 0);
	call_good(fx, "PowerFail", NULL);
	json_t *now = await(fx, "paused", 5, 0);

	assert_int_equal(newest_step(now), number(now, "step"));
	json_decref(now);
	call_good(fx, "PowerOk", NULL);
	await_only(fx, "training", 6, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(a_run_trains_saves_and_ends),
		TEST(p3_a_killed_trainer_goes_on_at_the_very_next_step),
		TEST(a_pause_saves_and_a_resume_goes_on_from_memory),
		TEST(sigterm_saves_and_the_next_start_goes_on),
		TEST(p5_a_poisoned_newest_checkpoint_is_left_behind),
		TEST(p6_a_hang_is_found),
		TEST(a_trainer_that_babbles_is_killed_and_restarted),
		TEST(p9_bad_data_waits_for_a_person_and_a_reload_goes_on),
		TEST(p7_a_failing_disk_costs_checkpoints_only),
		TEST(a_killed_saver_is_tried_again),
		TEST(p4_a_save_in_flight_outlives_the_trainer),
		TEST(p1_after_sigkill_of_the_supervisor_the_newest_checkpoint_is_resumed),
		TEST(two_daemons_cannot_have_one_run),
		TEST(without_a_run_it_waits_and_says_so),
		TEST(p9_an_identity_key_that_differs_is_refused_for_the_last_good),
		TEST(p1_a_rollback_begins_a_branch_before_it_is_answered),
		TEST(a_bad_client_costs_nobody_else_anything),
		TEST(a_reader_that_sleeps_is_dropped),
		TEST(more_clients_than_there_is_room_for_are_refused),
		TEST(pipelined_calls_are_answered_in_order),
		TEST(a_stream_follows_the_run),
		TEST(bad_parameters_are_named),
		TEST(p10_others_may_look_and_not_touch),
		TEST(power_fail_saves_and_power_ok_goes_on),
	};
	int code;

	if (fake_worker(argc, argv, &code))
		return code;
	if (argc == 2)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
