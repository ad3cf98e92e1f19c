/* Several instances side by side, and what reaches all of them: SIGPWR, a UPS's programs, the timer
 * that scrubs. */
#include "tests/systemd/machine.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define POWER "/usr/local/libexec/ckptd/ckptd-power"
#define ENDLESS "steps_total=100000000 "

static struct rig one, two;

/* The first test that gets the machine starts them. */
static struct machine *with_two(void **state)
{
	struct machine *machine = machine_of(state);

	if (*one.conf == '\0') {
		instance_start(machine, &one, "one", ENDLESS);
		instance_start(machine, &two, "two-1", ENDLESS "seed=2");
	}
	return machine;
}

static bool is_paused(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "paused") == 0;
}

static void expect_training(void)
{
	rig_wait(&one, "training", is_training, 0);
	rig_wait(&two, "training", is_training, 0);
	rig_wait(&one, "steps", is_step, rig_step(&one) + 3);
	rig_wait(&two, "steps", is_step, rig_step(&two) + 3);
}

/* Both, with their newest step saved. */
static void expect_power_pause(void)
{
	struct rig *const rigs[] = {&one, &two};

	for (int i = 0; i < 2; i++) {
		rig_wait(rigs[i], "a pause", is_paused, 0);
		AUTO_JSON status = rig_status(rigs[i]);

		assert_non_null(strstr(json_get_text(status, "state_text", ""), "power"));
		assert_int_equal(
			json_get_int(json_object_get(status, "newest_verified"), "step", -1),
			json_get_int(status, "step", -2));
	}
}

static void test_instances_run_side_by_side(void **state)
{
	struct machine *machine = with_two(state);
	char first[64];

	expect_training();
	/* ckptctl does not guess. */
	assert_int_equal(RUN(machine, "ckptctl", "status"), 1);
	assert_non_null(strstr(machine->output, "2 instances of ckptd run here"));
	assert_non_null(strstr(machine->output, "one"));
	assert_non_null(strstr(machine->output, "two-1"));
	RUN_OK(machine, "ckptctl", "--instance", "two-1", "status");
	assert_non_null(strstr(machine->output, "/var/lib/ckptd/two-1"));
	{
		AUTO_JSON status = rig_status(&one);

		snprintf(first, sizeof(first), "%s", json_get_text(status, "run", ""));
	}
	{
		AUTO_JSON status = rig_status(&two);

		assert_string_not_equal(first, json_get_text(status, "run", ""));
	}
	/* The death of one is nothing to the other. */
	pid_t pid_one = instance_pid(machine, "one"), pid_two = instance_pid(machine, "two-1");

	assert_int_equal(kill(pid_one, SIGKILL), 0);
	instance_wait_pid(machine, "one", pid_one);
	expect_training();
	assert_int_equal(instance_pid(machine, "two-1"), pid_two);
	RUN_OK(machine, "systemctl", "stop", "ckptd@one");
	rig_wait(&two, "steps", is_step, rig_step(&two) + 3);
	/* Now there is only one to ask. */
	RUN_OK(machine, "ckptctl", "status");
	assert_non_null(strstr(machine->output, "/var/lib/ckptd/two-1"));
	RUN_OK(machine, "systemctl", "start", "ckptd@one");
}

/* As the kernel, a hypervisor or powerd tells process 1. */
static void test_sigpwr_reaches_every_instance(void **state)
{
	struct machine *machine = with_two(state);

	for (int round = 0; round < 2; round++) {
		expect_training();
		assert_int_equal(kill(machine->leader, SIGPWR), 0);
		expect_power_pause();
		RUN_OK(machine, POWER, "ok");
		expect_training();
	}
}

static void test_a_ups_reaches_every_instance(void **state)
{
	static const char *const on_battery[][5] = {{POWER, "fail"},
		{"env", "NOTIFYTYPE=ONBATT", "UPSNAME=ups@localhost", POWER,
			"UPS ups@localhost on battery"},
		{"env", "NOTIFYTYPE=COMMOK", POWER, "fail"}, /* upssched's timer */
		{"/etc/apcupsd/onbattery", "ups", "1", "0"},
		{"/etc/apcupsd/doshutdown", "ups", "1", "0"}};
	static const char *const on_line[][5] = {{POWER, "ok"},
		{"env", "NOTIFYTYPE=ONLINE", "UPSNAME=ups@localhost", POWER,
			"UPS ups@localhost on line power"},
		{"env", "NOTIFYTYPE=ONBATT", POWER, "ok"},
		{"/etc/apcupsd/offbattery", "ups", "1", "0"}, {"/etc/apcupsd/mainsback", "ups"}};
	static const char *const names[] = {"onbattery", "offbattery", "doshutdown", "mainsback"};
	struct machine *machine = with_two(state);
	char path[64];

	RUN_OK(machine, "mkdir", "/etc/apcupsd");
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		snprintf(path, sizeof(path), "/etc/apcupsd/%s", names[i]);
		RUN_OK(machine, "ln", "-s", POWER, path);
	}
	for (size_t i = 0; i < sizeof(on_line) / sizeof(*on_line); i++) {
		const char *words[6] = {0};

		expect_training();
		memcpy(words, on_battery[i], sizeof(on_battery[i]));
		machine_expect(machine, words);
		expect_power_pause();
		/* What is no matter of power changes nothing. */
		RUN_OK(machine, "env", "NOTIFYTYPE=REPLBATT", POWER, "replace the battery");
		expect_power_pause();
		memcpy(words, on_line[i], sizeof(on_line[i]));
		machine_expect(machine, words);
	}
	expect_training();
	/* Who may not is told so, and tells the UPS's program. */
	assert_int_equal(RUN(machine, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
				 POWER, "fail"),
		1);
	assert_non_null(strstr(machine->output, "not permitted"));
	assert_int_equal(RUN(machine, POWER), 2);
	expect_training();
}

static void test_a_scrub_starts_no_run(void **state)
{
	struct machine *machine = with_two(state);

	expect_training();
	RUN_OK(machine, "ckptctl", "--instance", "one", "save", "--wait");
	RUN_OK(machine, "systemctl", "start", "ckptd-scrub@one.service");
	assert_string_equal(unit_property(machine, "ckptd-scrub@one", "Result"), "success");
	{
		AUTO_JSON status = rig_status(&one);

		assert_string_not_equal(
			json_get_text(json_object_get(status, "scrub"), "finished_at", ""), "");
	}
	RUN_OK(machine, "systemctl", "enable", "--now", "ckptd-scrub@one.timer");
	assert_string_equal(
		unit_property(machine, "ckptd-scrub@one.timer", "ActiveState"), "active");
	RUN_OK(machine, "systemctl", "stop", "ckptd@one");
	assert_int_not_equal(RUN(machine, "systemctl", "start", "ckptd-scrub@one.service"), 0);
	assert_string_equal(unit_property(machine, "ckptd@one", "ActiveState"), "inactive");
	assert_string_equal(unit_property(machine, "ckptd@one.socket", "ActiveState"), "inactive");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_instances_run_side_by_side),
		cmocka_unit_test(test_sigpwr_reaches_every_instance),
		cmocka_unit_test(test_a_ups_reaches_every_instance),
		cmocka_unit_test(test_a_scrub_starts_no_run),
	};

	return cmocka_run_group_tests_name("systemd_power", tests, machine_setup, machine_teardown);
}
