/* The helpers of rig.h. */
#include "tests/sim/rig.h"

#include "tests/sim/fake_worker.h"

#include "base/file.h"
#include "base/log.h"
#include "proto/frame.h"
#include "store/run.h"
#include "supervisor/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *place)
{
	return remove(path);
}

int sim_main(int argc, char **argv, const struct CMUnitTest *tests, size_t count)
{
	int code;

	if (fake_worker(argc, argv, &code))
		return code;
	if (argc == 2)
		cmocka_set_test_filter(argv[1]);
	return _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
}

int sim_setup(void **state)
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

int sim_wait_for_end(struct fixture *fx)
{
	int status;

	assert_true(fx->ckptd > 0);
	assert_int_equal(waitpid(fx->ckptd, &status, 0), fx->ckptd);
	fx->ckptd = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int sim_teardown(void **state)
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

_Noreturn void sim_run_ckptd(const struct fixture *fx)
{
	static struct supervisor sup;
	struct options options = {.source.state_dir = fx->dir};
	struct error error;
	static char path[160];
	char log[160];

	snprintf(log, sizeof(log), "%s/log", fx->dir);
	snprintf(path, sizeof(path), "%s/ckptd.conf", fx->dir);
	if (access(path, F_OK) == 0)
		options.source.path = path;
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

void sim_start(struct fixture *fx)
{
	assert_int_equal(fx->ckptd, 0);
	fflush(NULL);
	fx->ckptd = fork();
	assert_true(fx->ckptd >= 0);
	if (fx->ckptd == 0)
		sim_run_ckptd(fx);
}

static void write_file(struct fixture *fx, const char *name, const char *text)
{
	int fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	assert_int_equal(file_replace(fd, name, text, strlen(text), 0600), 0);
	close(fd);
}

void sim_behave(struct fixture *fx, const char *text)
{
	write_file(fx, "behave", text);
}

void sim_configure(struct fixture *fx, const char *text)
{
	write_file(fx, "ckptd.conf", text);
}

void sim_set(struct fixture *fx, const char *text)
{
	fx->sets[fx->set_count++] = text;
}

/* -- a client -- */

/* -1 when there is nobody yet. */
int sim_try_connect(const struct fixture *fx)
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

int sim_connect_now(const struct fixture *fx)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int fd;

	while ((fd = sim_try_connect(fx)) < 0 && clock_monotonic_ns() < until)
		usleep(5000);
	assert_true(fd >= 0);
	return fd;
}

void sim_send(int fd, json_t *call)
{
	assert_int_equal(frame_send(fd, call, clock_monotonic_ns() + PATIENCE), 0);
	json_decref(call);
}

json_t *sim_take(int fd)
{
	struct frame_reader reader;
	struct error error;
	json_t *reply = NULL;

	frame_reader_init(&reader, FRAME_REPLY_MAX);
	if (frame_receive(fd, &reader, clock_monotonic_ns() + PATIENCE, &reply, &error) < 0)
		fail_msg("no reply: %s", error.text);
	frame_reader_fini(&reader);
	return reply;
}

json_t *sim_ask(int fd, json_t *call)
{
	sim_send(fd, call);
	return sim_take(fd);
}

/* One call on a connection of its own; takes parameters. The whole reply. */
json_t *sim_call(const struct fixture *fx, const char *method, json_t *parameters)
{
	char name[96];
	int fd = sim_connect_now(fx);

	snprintf(name, sizeof(name), "io.ckptd.Training.%s", method);
	json_t *reply = sim_ask(fd,
		json_pack("{s:s, s:o}", "method", name, "parameters",
			parameters ? parameters : json_object()));

	close(fd);
	return reply;
}

void sim_call_good(const struct fixture *fx, const char *method, json_t *parameters)
{
	json_t *reply = sim_call(fx, method, parameters);

	if (json_object_get(reply, "error"))
		fail_msg("%s: %s", method, json_dumps(reply, 0));
	json_decref(reply);
}

void sim_save(const struct fixture *fx, char id[64])
{
	json_t *reply = sim_call(fx, "Save", json_pack("{s:b}", "wait", 1));

	snprintf(id, 64, "%s", json_get_text(json_object_get(reply, "parameters"), "id", ""));
	assert_true(id[0] != '\0');
	json_decref(reply);
}

json_t *sim_status(const struct fixture *fx)
{
	json_t *reply = sim_call(fx, "Status", NULL);
	json_t *body = json_incref(json_object_get(json_object_get(reply, "parameters"), "status"));

	assert_non_null(body);
	json_decref(reply);
	return body;
}

int64_t sim_number(const json_t *status, const char *key)
{
	return json_get_int(status, key, -1);
}

int64_t sim_number_of(const struct fixture *fx, const char *key)
{
	json_t *now = sim_status(fx);
	int64_t value = sim_number(now, key);

	json_decref(now);
	return value;
}

/* Until state is the word and step at least step; the status then. */
json_t *sim_await(const struct fixture *fx, const char *word, int64_t step, int64_t restarts)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	json_t *now = NULL;

	for (;;) {
		json_decref(now);
		now = sim_status(fx);
		if (strcmp(json_get_text(now, "state", ""), word) == 0 &&
			sim_number(now, "step") >= step && sim_number(now, "restarts") >= restarts)
			return now;
		if (clock_monotonic_ns() > until)
			fail_msg("not %s at step %lld: %s", word, (long long)step,
				json_dumps(now, JSON_INDENT(1)));
		usleep(10000);
	}
}

void sim_await_only(const struct fixture *fx, const char *word, int64_t step, int64_t restarts)
{
	json_decref(sim_await(fx, word, step, restarts));
}

pid_t sim_worker_pid(const json_t *status)
{
	return (pid_t)sim_number(json_object_get(status, "worker"), "pid");
}

int64_t sim_newest_step(const json_t *status)
{
	return json_get_int(json_object_get(status, "newest_verified"), "step", -1);
}

bool sim_told(const struct fixture *fx, const char *kind)
{
	json_t *reply = sim_call(fx, "Events", json_pack("{s:i}", "limit", 1000));
	json_t *list = json_object_get(json_object_get(reply, "parameters"), "events"), *event;
	bool found = false;
	size_t i;

	json_array_foreach(list, i, event)
		found = found || strcmp(json_get_text(event, "kind", ""), kind) == 0;
	json_decref(reply);
	return found;
}

bool sim_log_says(const struct fixture *fx, const char *words)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	int fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool found = false;

	while (!found && clock_monotonic_ns() < until) {
		char *text;
		size_t size;

		if (file_read_all(fd, "log", 1 << 20, &text, &size) == 0) {
			found = strstr(text, words) != NULL;
			free(text);
		}
		if (!found)
			usleep(10000);
	}
	close(fd);
	return found;
}
