/* ckptd@NAME under systemd: ready, watchdog, fd store, restarts and upgrades, stops, its socket.
 * P3: neither the supervisor's death nor its restart loses a step. */
#include "base/clock.h"
#include "proto/frame.h"
#include "tests/systemd/machine.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define ENDLESS "steps_total=100000000 "
#define CLIENTS 8
#define CALL_NS (60 * NSEC_PER_SEC)

/* The memory was taken over since this event, at this step or a later one. */
static void expect_memory_kept(struct rig *rig, int64_t after, int64_t step)
{
	char text[256];
	long long kept = -1;

	rig_wait(rig, "training again", is_training, 0);
	if (rig_event(rig, "memory-kept", "state memory taken over", after, text) == 0)
		fail_msg("the state memory was not taken over");
	assert_int_equal(sscanf(text, "state memory taken over at step %lld", &kept), 1);
	assert_true(kept >= step);
	assert_true(rig_step(rig) >= kept);
	rig_wait(rig, "further steps", is_step, kept + 3);
}

static bool is_gone(pid_t pid)
{
	return kill(pid, 0) < 0;
}

/* -- ready, and what systemd is told -- */

static void test_start_returns_when_it_is_ready(void **state)
{
	static const char *const properties[][2] = {{"Type", "notify"}, {"NotifyAccess", "main"},
		{"KillMode", "mixed"}, {"OOMPolicy", "continue"}, {"OOMScoreAdjust", "-500"},
		{"LimitCORE", "0"}, {"FileDescriptorStoreMax", "4"}, {"NFileDescriptorStore", "2"},
		{"WatchdogUSec", "30s"}, {"StartLimitIntervalUSec", "0"},
		{"RequiresMountsFor", "/var/lib/ckptd/ready /var/tmp"}, {"Result", "success"}};
	struct machine *machine = machine_of(state);
	struct rig rig;

	instance_init(machine, &rig, "ready", ENDLESS);
	RUN_OK(machine, "systemctl", "enable", "--now", "ckptd@ready");
	/* Not a moment later. */
	assert_string_equal(unit_property(machine, "ckptd@ready", "ActiveState"), "active");
	{
		AUTO_JSON status = rig_status(&rig);
		const char *now = json_get_text(status, "state", "");

		if (strcmp(now, "training") != 0 && strcmp(now, "starting") != 0)
			fail_msg("it is %s", now);
	}
	rig_wait(&rig, "steps", is_step, 5);
	for (size_t i = 0; i < sizeof(properties) / sizeof(*properties); i++) {
		const char *value = unit_property(machine, "ckptd@ready", properties[i][0]);

		if (strcmp(properties[i][0], "RequiresMountsFor") == 0)
			assert_non_null(strstr(value, "/var/lib/ckptd/ready"));
		else
			assert_string_equal(value, properties[i][1]);
	}
	unit_wait(machine, "ckptd@ready.socket", "ActiveState", "active");
	assert_int_equal(RUN(machine, "systemctl", "is-enabled", "ckptd@ready"), 0);
	/* For systemctl status: one line that moves. */
	nsec_t deadline = clock_monotonic_ns() + CALL_NS;

	while (!strstr(unit_property(machine, "ckptd@ready", "StatusText"), "step"))
		assert_true(clock_monotonic_ns() < deadline);
	RUN_OK(machine, "ckptctl", "--instance", "ready", "status");
	RUN_OK(machine, "systemctl", "disable", "--now", "ckptd@ready");
}

/* -- deaths of the supervisor -- */

static void p3_a_supervisor_that_hangs_is_replaced(void **state)
{
	struct machine *machine = machine_of(state);
	struct rig rig;

	instance_drop_in(machine, "hang", "WatchdogSec=2");
	instance_start(machine, &rig, "hang", ENDLESS);
	int64_t seen = rig_last_event(&rig), step = rig_step(&rig);
	pid_t pid = instance_pid(machine, "hang");

	assert_true(pid > 0);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	instance_wait_pid(machine, "hang", pid);
	assert_true(is_gone(pid));
	RUN_OK(machine, "journalctl", "--no-pager", "-q", "-u", "ckptd@hang");
	assert_non_null(strstr(machine->output, "Watchdog timeout"));
	assert_non_null(strstr(machine->output, "status=6/ABRT"));
	unit_wait(machine, "ckptd@hang", "NRestarts", "1");
	expect_memory_kept(&rig, seen, step);
	RUN_OK(machine, "systemctl", "stop", "ckptd@hang");
}

static void p3_a_killed_supervisor_loses_no_step(void **state)
{
	struct machine *machine = machine_of(state);
	struct rig rig;

	instance_drop_in(machine, "killed", "RestartSec=100ms");
	instance_start(machine, &rig, "killed", ENDLESS);
	for (int round = 0; round < 3; round++) {
		int64_t seen = rig_last_event(&rig), step = rig_step(&rig);
		pid_t pid = rig.supervisor = instance_pid(machine, "killed");
		pid_t trainer = rig_worker(&rig, "train");

		rig.supervisor = 0;
		assert_true(pid > 0 && trainer > 0);
		assert_int_equal(kill(pid, round == 1 ? SIGSEGV : SIGKILL), 0);
		instance_wait_pid(machine, "killed", pid);
		/* Its trainer did not outlive it. */
		assert_true(is_gone(trainer));
		expect_memory_kept(&rig, seen, step);
	}
	unit_wait(machine, "ckptd@killed", "NRestarts", "3");
	RUN_OK(machine, "systemctl", "stop", "ckptd@killed");
}

/* -- its socket -- */

static void ask_status(int fd)
{
	AUTO_JSON call = json_pack("{s:s}", "method", "io.ckptd.Training.Status");

	assert_int_equal(frame_send(fd, call, clock_monotonic_ns() + CALL_NS), 0);
}

/* The step in the reply, or the error. */
static int64_t take_status(int fd)
{
	struct frame_reader reader;
	struct error err;
	json_t *reply = NULL;
	int64_t step;

	frame_reader_init(&reader, FRAME_REPLY_MAX);
	int r = frame_receive(fd, &reader, clock_monotonic_ns() + CALL_NS, &reply, &err);

	frame_reader_fini(&reader);
	step = json_get_int(
		json_object_get(json_object_get(reply, "parameters"), "status"), "step", -1);
	json_decref(reply);
	return r < 0 ? r : step;
}

static void test_clients_wait_while_there_is_nobody(void **state)
{
	struct machine *machine = machine_of(state);
	int clients[CLIENTS];
	struct rig rig;

	instance_drop_in(machine, "queue", "RestartSec=2");
	instance_start(machine, &rig, "queue", ENDLESS);
	int64_t step = rig_step(&rig);
	pid_t pid = instance_pid(machine, "queue");

	assert_int_equal(kill(pid, SIGKILL), 0);
	unit_wait(machine, "ckptd@queue", "SubState", "auto-restart");
	for (int i = 0; i < CLIENTS; i++) {
		clients[i] = rig_connect(&rig);
		assert_true(clients[i] >= 0);
		ask_status(clients[i]);
	}
	assert_string_equal(unit_property(machine, "ckptd@queue", "SubState"), "auto-restart");
	for (int i = 0; i < CLIENTS; i++) {
		int64_t answered = take_status(clients[i]);

		assert_true(answered >= step);
		step = answered;
		close(clients[i]);
	}
	RUN_OK(machine, "systemctl", "stop", "ckptd@queue");
}

/* Asks for the status again and again until told to end by the end of a pipe: 0 when every
 * connection was taken and the step never went back. */
static int keep_asking(const struct rig *rig, int until)
{
	int64_t step = 0;
	char none;

	fcntl(until, F_SETFL, O_NONBLOCK);
	while (read(until, &none, 1) < 0) {
		int fd = rig_connect(rig);

		if (fd < 0)
			return 1;
		ask_status(fd);
		int64_t answered = take_status(fd);

		close(fd);
		/* A supervisor that ends may hang up. */
		if (answered >= 0 && answered < step)
			return 2;
		step = answered > step ? answered : step;
	}
	return step > 0 ? 0 : 3;
}

/* A program in another place, then renamed over the old one, as packages do it. */
static void replace_program(struct machine *machine, const char *name)
{
	char path[192], fresh[200], *bytes;
	struct stat before, after;

	snprintf(path, sizeof(path), "%s/%s", machine->local, name);
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	assert_int_equal(stat(path, &before), 0);
	bytes = malloc((size_t)before.st_size);
	assert_non_null(bytes);
	int from = open(path, O_RDONLY | O_CLOEXEC);
	int to = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);

	assert_int_equal(read(from, bytes, (size_t)before.st_size), before.st_size);
	assert_int_equal(write(to, bytes, (size_t)before.st_size), before.st_size);
	close(from);
	close(to);
	free(bytes);
	assert_int_equal(rename(fresh, path), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_int_not_equal(before.st_ino, after.st_ino);
}

static void expect_program(struct machine *machine, pid_t pid, const char *name)
{
	char path[192], proc[64];
	struct stat installed, running;

	snprintf(path, sizeof(path), "%s/%s", machine->local, name);
	snprintf(proc, sizeof(proc), "/proc/%d/exe", (int)pid);
	assert_int_equal(stat(path, &installed), 0);
	assert_int_equal(stat(proc, &running), 0);
	assert_int_equal(installed.st_ino, running.st_ino);
}

static void p3_an_upgrade_loses_no_step_and_no_client(void **state)
{
	struct machine *machine = machine_of(state);
	int until[2], status;
	struct rig rig;

	instance_start(machine, &rig, "upgrade", ENDLESS);
	assert_int_equal(pipe2(until, O_CLOEXEC), 0);
	pid_t client = fork();

	assert_true(client >= 0);
	if (client == 0) {
		close(until[1]);
		_exit(keep_asking(&rig, until[0]));
	}
	close(until[0]);
	for (int round = 0; round < 2; round++) {
		int64_t seen = rig_last_event(&rig), step = rig_step(&rig);
		pid_t pid = instance_pid(machine, "upgrade");

		replace_program(machine, "sbin/ckptd");
		replace_program(machine, "libexec/ckptd/ckptd-worker");
		RUN_OK(machine, "systemctl", "restart", "ckptd@upgrade");
		pid = instance_wait_pid(machine, "upgrade", pid);
		expect_program(machine, pid, "sbin/ckptd");
		expect_memory_kept(&rig, seen, step);
		rig.supervisor = pid;
		expect_program(machine, rig_worker(&rig, "train"), "libexec/ckptd/ckptd-worker");
		rig.supervisor = 0;
	}
	close(until[1]);
	assert_int_equal(waitpid(client, &status, 0), client);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	RUN_OK(machine, "systemctl", "stop", "ckptd@upgrade");
}

/* -- stops -- */

static void expect_stopped(struct machine *machine, const struct rig *rig, const char *name)
{
	char unit[64], socket[64];

	snprintf(unit, sizeof(unit), "ckptd@%s.service", name);
	snprintf(socket, sizeof(socket), "ckptd@%s.socket", name);
	unit_wait(machine, unit, "ActiveState", "inactive");
	unit_wait(machine, socket, "ActiveState", "inactive");
	assert_true(rig_connect(rig) < 0);
	assert_int_equal(RUN(machine, "ckptctl", "--instance", name, "status"), 3);
	assert_string_equal(unit_property(machine, unit, "ActiveState"), "inactive");
	assert_string_equal(unit_property(machine, socket, "ActiveState"), "inactive");
	assert_string_equal(unit_property(machine, unit, "Result"), "success");
}

/* SIGTERM goes to the supervisor alone: it saves the last step. */
static void p3_a_stop_saves_the_last_step(void **state)
{
	struct machine *machine = machine_of(state);
	char text[256];
	struct rig rig;

	instance_start(machine, &rig, "stop", ENDLESS);
	int64_t step = rig_step(&rig);

	RUN_OK(machine, "systemctl", "stop", "ckptd@stop");
	expect_stopped(machine, &rig, "stop");
	RUN_OK(machine, "systemctl", "start", "ckptd@stop");
	rig_wait(&rig, "training", is_saved, step);
	AUTO_JSON status = rig_status(&rig);
	int64_t saved = json_get_int(json_object_get(status, "newest_verified"), "step", -1);

	if (rig_event(&rig, "training", "from checkpoint", 0, text) == 0)
		fail_msg("the memory is gone, but no checkpoint was gone on from");
	rig_wait(&rig, "further steps", is_step, saved + 1);
	/* Through ckptctl it is the same. */
	RUN_OK(machine, "ckptctl", "--instance", "stop", "stop", "--exit");
	expect_stopped(machine, &rig, "stop");
}

/* Comes to the socket again and again, whether there is one or not. */
static void keep_coming(const struct rig *rig, int until)
{
	char none;

	fcntl(until, F_SETFL, O_NONBLOCK);
	while (read(until, &none, 1) < 0) {
		int fd = rig_connect(rig);

		if (fd >= 0)
			close(fd);
		usleep(100);
	}
}

static int count_of(const char *text, const char *part)
{
	int count = 0;

	for (const char *at = text; (at = strstr(at, part)); at++)
		count++;
	return count;
}

static void test_a_stopped_run_stays_stopped_whoever_asks(void **state)
{
	struct machine *machine = machine_of(state);
	int until[2];
	struct rig rig;

	instance_start(machine, &rig, "asked", ENDLESS);
	assert_int_equal(pipe2(until, O_CLOEXEC), 0);
	pid_t client = fork();

	assert_true(client >= 0);
	if (client == 0) {
		close(until[1]);
		keep_coming(&rig, until[0]);
		_exit(0);
	}
	close(until[0]);
	for (int i = 0; i < 5; i++) {
		RUN_OK(machine, "systemctl", "stop", "ckptd@asked");
		expect_stopped(machine, &rig, "asked");
		RUN_OK(machine, "systemctl", "start", "ckptd@asked");
	}
	RUN_OK(machine, "systemctl", "stop", "ckptd@asked");
	expect_stopped(machine, &rig, "asked");
	close(until[1]);
	assert_int_equal(waitpid(client, NULL, 0), client);
	/* Once for each start that was asked for. */
	RUN_OK(machine, "journalctl", "--no-pager", "-q", "-u", "ckptd@asked");
	assert_int_equal(count_of(machine->output, "Starting ckptd@asked.service"), 6);
}

/* A save that takes longer than TimeoutStopSec is waited for while it goes on. */
static void test_a_stop_waits_for_its_save(void **state)
{
	struct machine *machine = machine_of(state);
	struct rig rig;

	instance_drop_in(
		machine, "slow", "TimeoutStopSec=2\nEnvironment=CKPTD_FAULT=save.begin:1:stop");
	instance_start(machine, &rig, "slow", ENDLESS);
	int64_t step = rig_step(&rig);
	pid_t saver = 0;

	rig.supervisor = instance_pid(machine, "slow");
	RUN_OK(machine, "systemctl", "stop", "--no-block", "ckptd@slow");
	nsec_t begun = clock_monotonic_ns();

	while ((saver = rig_worker(&rig, "save")) == 0)
		assert_true(clock_monotonic_ns() - begun < CALL_NS);
	while (clock_monotonic_ns() - begun < 4 * NSEC_PER_SEC)
		assert_string_equal(
			unit_property(machine, "ckptd@slow", "ActiveState"), "deactivating");
	rig.supervisor = 0;
	assert_int_equal(kill(saver, SIGCONT), 0);
	expect_stopped(machine, &rig, "slow");
	RUN_OK(machine, "ckptctl", "fsck", "/var/lib/ckptd/slow");
	instance_drop_in(machine, "slow", "");
	RUN_OK(machine, "systemctl", "start", "ckptd@slow");
	rig_wait(&rig, "what it saved", is_saved, step);
	RUN_OK(machine, "systemctl", "stop", "ckptd@slow");
}

/* P9: nothing that a restart could mend. */
static void p9_a_configuration_that_was_never_good_is_not_started_again(void **state)
{
	struct machine *machine = machine_of(state);
	struct rig rig;

	instance_init(machine, &rig, "wrong", ENDLESS);
	RUN_OK(machine, "rm", "/var/lib/ckptd/wrong/last-good.conf");
	machine_write(machine, "/etc/ckptd/wrong.conf", "[train]\nbatch_size = many\n", 0644);
	RUN(machine, "systemctl", "start", "ckptd@wrong");
	unit_wait(machine, "ckptd@wrong", "ActiveState", "failed");
	assert_string_equal(unit_property(machine, "ckptd@wrong", "ExecMainStatus"), "78");
	unit_wait(machine, "ckptd@wrong.socket", "ActiveState", "inactive");
	assert_string_equal(unit_property(machine, "ckptd@wrong", "NRestarts"), "0");
	RUN_OK(machine, "journalctl", "--no-pager", "-q", "-u", "ckptd@wrong");
	assert_non_null(strstr(machine->output, "wrong.conf:2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_start_returns_when_it_is_ready),
		cmocka_unit_test(p3_a_supervisor_that_hangs_is_replaced),
		cmocka_unit_test(p3_a_killed_supervisor_loses_no_step),
		cmocka_unit_test(test_clients_wait_while_there_is_nobody),
		cmocka_unit_test(p3_an_upgrade_loses_no_step_and_no_client),
		cmocka_unit_test(p3_a_stop_saves_the_last_step),
		cmocka_unit_test(test_a_stopped_run_stays_stopped_whoever_asks),
		cmocka_unit_test(test_a_stop_waits_for_its_save),
		cmocka_unit_test(p9_a_configuration_that_was_never_good_is_not_started_again),
	};

	return cmocka_run_group_tests_name(
		"systemd_service", tests, machine_setup, machine_teardown);
}
