/* Clients of all kinds: what one does costs no other anything, and only who may changes anything.
 */
#include "tests/sim/rig.h"

#include "proto/frame.h"
#include "supervisor/control.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lacks.h"

/* -- clients -- */

static void a_bad_client_costs_nobody_else_anything(void **state)
{
	static const char *const bad[] = {"not json", "[1]", "{\"method\": 7}", "{\"a\":1,\"a\":2}",
		"{\"method\": \"x.y\", \"upgrade\": true}"};
	struct fixture *fx = *state;
	char byte;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = sim_connect_now(fx);

		assert_true(write(fd, bad[i], strlen(bad[i]) + 1) > 0);
		assert_int_equal(read(fd, &byte, 1), 0); /* dropped */
		close(fd);
	}
	/* A frame without an end. */
	int fd = sim_connect_now(fx);
	char room[4096];
	ssize_t sent = 0;

	memset(room, ' ', sizeof(room));
	for (int i = 0; i < 64 && sent >= 0; i++)
		sent = send(fd, room, sizeof(room), MSG_NOSIGNAL);
	assert_true(read(fd, &byte, 1) <= 0);
	close(fd);
	/* Half a frame, and then nothing: it may wait, but nobody for it. */
	fd = sim_connect_now(fx);
	assert_int_equal(write(fd, "{\"meth", 6), 6);
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 3, 0);
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

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int fd = sim_connect_now(fx);

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
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 3, 0);
}

static json_t *question(const char *method)
{
	return json_pack("{s:s}", "method", method);
}

/* True when the server has closed this connection. */
static bool is_dropped(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

static int connect_and_ask(const struct fixture *fx)
{
	int fd = sim_connect_now(fx);

	json_decref(sim_ask(fd, question("org.varlink.service.GetInfo")));
	return fd;
}

/* All places are taken by clients that are silent: whoever comes is served, and the one that was
 * silent longest goes. */
static void a_newcomer_gets_the_place_of_a_silent_one(void **state)
{
	struct fixture *fx = *state;
	int fds[CONTROL_CLIENTS_MAX];

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++)
		fds[i] = connect_and_ask(fx);
	json_decref(sim_ask(fds[0], question("org.varlink.service.GetInfo")));
	for (int i = 0; i < 10; i++)
		sim_await_only(fx, "training", 3, 0);
	assert_false(is_dropped(fds[0]));
	assert_true(is_dropped(fds[1]));
	json_decref(sim_ask(fds[CONTROL_CLIENTS_MAX - 1], question("io.ckptd.Training.Status")));
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++)
		close(fds[i]);
}

/* The server may hear of a newcomer before it hears who has gone. */
static void await_room(const struct fixture *fx)
{
	static const char call[] = "{\"method\":\"org.varlink.service.GetInfo\"}";
	nsec_t until = clock_monotonic_ns() + PATIENCE;
	bool served = false;
	char byte;

	while (!served) {
		int fd = sim_connect_now(fx);

		served = send(fd, call, sizeof(call), MSG_NOSIGNAL) == (ssize_t)sizeof(call) &&
			read(fd, &byte, 1) == 1;
		close(fd);
		assert_true(served || clock_monotonic_ns() < until);
	}
}

/* A crowd of one's own user that connects and says nothing does not cost a connection that asks now
 * and then. */
static void a_silent_crowd_leaves_those_that_ask(void **state)
{
	struct fixture *fx = *state;
	int fds[2 * CONTROL_CLIENTS_MAX];

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int kept = connect_and_ask(fx);

	for (int i = 0; i < 2 * CONTROL_CLIENTS_MAX; i++)
		fds[i] = sim_connect_now(fx);
	await_room(fx);
	assert_true(is_dropped(fds[0]));
	json_decref(sim_ask(kept, question("io.ckptd.Training.Status")));
	close(kept);
	for (int i = 0; i < 2 * CONTROL_CLIENTS_MAX; i++)
		close(fds[i]);
}

/* All places are taken by open streams of the same user: nobody has to go. */
static void a_newcomer_does_not_end_an_open_call(void **state)
{
	struct fixture *fx = *state;
	int fds[CONTROL_CLIENTS_MAX];
	char byte;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		fds[i] = connect_and_ask(fx);
		sim_send(fds[i],
			json_pack("{s:s, s:b, s:{s:i}}", "method", "io.ckptd.Training.Status",
				"more", 1, "parameters", "interval_ms", 3600000));
		json_decref(sim_take(fds[i]));
	}
	int fd = sim_connect_now(fx);

	assert_true(read(fd, &byte, 1) <= 0);
	close(fd);
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		assert_false(is_dropped(fds[i]));
		close(fds[i]);
	}
	await_room(fx);
	sim_await_only(fx, "training", 4, 0);
}

/* A connection that asks without end gets its answers slowly, and all of them. */
static void many_calls_on_one_connection_are_answered_slowly(void **state)
{
	struct fixture *fx = *state;
	int count = CONTROL_BURST + CONTROL_CALLS_PER_SECOND / 2;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int fd = sim_connect_now(fx);
	nsec_t begun_ns = clock_monotonic_ns();

	for (int i = 0; i < count; i++)
		json_decref(sim_ask(fd, question("org.varlink.service.GetInfo")));
	/* Never faster than the limit, however fast the machine. */
	assert_true(clock_monotonic_ns() - begun_ns >= NSEC_PER_SEC * 4 / 10);
	close(fd);
}

static void varlink_describes_itself(void **state)
{
	static const char *const interfaces[] = {"org.varlink.service", "io.ckptd.Training"};
	struct fixture *fx = *state;
	char expected[64];

	sim_start(fx);
	int fd = sim_connect_now(fx);

	for (size_t i = 0; i < 2; i++) {
		json_t *reply = sim_ask(fd,
			json_pack("{s:s, s:{s:s}}", "method",
				"org.varlink.service.GetInterfaceDescription", "parameters",
				"interface", interfaces[i]));

		snprintf(expected, sizeof(expected), "interface %s\n", interfaces[i]);
		assert_non_null(strstr(
			json_get_text(json_object_get(reply, "parameters"), "description", ""),
			expected));
		json_decref(reply);
	}
	close(fd);
	sim_await_only(fx, "training", 3, 0);
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

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int fd = sim_connect_now(fx);

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

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int fd = sim_connect_now(fx);
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
		int64_t now = sim_number(
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
		{"Save", "{\"wait\": 1}", "wait"}, {"Keep", "{\"id\": \"x\"}", "keep"},
		{"Keep", "{\"id\": 7, \"keep\": true}", "id"},
		{"Sample", "{\"sampler\": \"magic\"}", "sampler"},
		{"Status", "{\"interval_ms\": 1}", "interval_ms"}};

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		json_t *reply = sim_call(
			fx, table[i].method, json_loads(table[i].parameters, 0, NULL));

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
	int fd = sim_connect_now(fx);

	/* The kernel notes who connects: a new connection after the change of user. */
	close(fd);
	if (setgid(65534) < 0 || setuid(65534) < 0)
		return 10;
	fd = sim_try_connect(fx);
	if (fd < 0)
		return 11;
	json_t *reply = sim_ask(fd, json_pack("{s:s}", "method", method));
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
		{"Rollback", 1}, {"Restart", 1}, {"Keep", 1}, {"Verify", 1}, {"Scrub", 1},
		{"Sample", 1}, {"Reload", 1}, {"PowerFail", 1}, {"PowerOk", 1}};
	struct fixture *fx = *state;
	char path[160], name[96];

	if (geteuid() != 0)
		test_lacks("root, to be somebody else");
	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
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
	sim_await_only(fx, "training", 4, 0);
	assert_true(sim_told(fx, "refused"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(a_bad_client_costs_nobody_else_anything),
		SIM_TEST(a_reader_that_sleeps_is_dropped),
		SIM_TEST(a_newcomer_gets_the_place_of_a_silent_one),
		SIM_TEST(a_silent_crowd_leaves_those_that_ask),
		SIM_TEST(a_newcomer_does_not_end_an_open_call),
		SIM_TEST(many_calls_on_one_connection_are_answered_slowly),
		SIM_TEST(varlink_describes_itself),
		SIM_TEST(pipelined_calls_are_answered_in_order),
		SIM_TEST(a_stream_follows_the_run),
		SIM_TEST(bad_parameters_are_named),
		SIM_TEST(p10_others_may_look_and_not_touch),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
