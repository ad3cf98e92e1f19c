/* P1, P2, P3 on a whole machine: Debian 12 with systemd in QEMU, the service installed from this
 * tree, a checkpoint every few steps. The power is cut at random; the disk loses what it had not
 * been told to flush; the service is restarted and killed. CKPTD_TEST_SEED repeats the choices. */
#include "tests/vm/replay.h"
#include "tests/vm/vm.h"

#include "base/clock.h"
#include "tests/crash/loop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lacks.h"

#define CUTS 3
#define CUTS_FULL 50
#define STATES 40
#define STATES_FULL 1000
#define DARK_MS 4000    /* at most, from the first word of the guest to a cut */
#define TRAINED_MS 3000 /* at most, from the resume to a cut */
#define MUTANT_STEPS 8  /* are promised when its power goes */
#define LOG_MIB 2048

static struct digest undisturbed; /* of the run's end */
static bool undisturbed_known;
static const char *lack;

static void need_machine(void)
{
	if (lack != NULL)
		test_lacks(lack);
}

static bool full(void)
{
	return getenv("CKPTD_FULL") != NULL;
}

static int64_t verified_step(const json_t *status)
{
	return json_get_int(json_object_get(status, "newest_verified"), "step", 0);
}

static double seconds_since(nsec_t begun)
{
	return (double)(clock_monotonic_ns() - begun) / (double)NSEC_PER_SEC;
}

/* -- lost flushes -- */

static struct vm logged_machine(const char *name, char disk[VM_PATH_MAX], char log[VM_PATH_MAX])
{
	char file[32];

	snprintf(file, sizeof(file), "%s.log", name);
	vm_path(name, disk);
	vm_path(file, log);
	vm_make_disk(disk);
	assert_true(loop_make_file(log, LOG_MIB));
	return (struct vm){.disk = disk, .log = log};
}

/* Says on the disk itself what was reported, until enough is verified. */
static void mark_until(struct vm *vm, int64_t step)
{
	int64_t marked = 0;

	while (marked < step) {
		AUTO_JSON status = vm_status(vm);
		int64_t verified = verified_step(status);
		char command[48];

		if (verified <= marked)
			continue;
		snprintf(command, sizeof(command), "mark %lld", (long long)verified);
		vm_run(vm, command);
		marked = verified;
	}
}

static void replay(struct vm *vm, uint32_t states, struct replay *ret)
{
	char base[VM_PATH_MAX];
	nsec_t begun = clock_monotonic_ns();

	vm_path("base", base);
	vm_make_disk(base);
	replay_run(vm->log, base, states, vm->no_sync, ret);
	assert_int_equal(unlink(base), 0);
	assert_int_equal(unlink(vm->log), 0);
	print_message("# replay%s: %u flushes, %u states in %.1f s, %u violations, step %lld was "
		      "verified\n",
		vm->no_sync ? " without syncs" : "", ret->flushes, ret->states,
		seconds_since(begun), ret->violations, (long long)ret->promised);
	if (ret->violations > 0)
		print_message("# %s\n", ret->first);
}

/* The run that nobody touches, for its last digest as well. */
static void p1_nothing_verified_is_lost_with_the_cache_of_the_disk(void **state)
{
	char disk[VM_PATH_MAX], log[VM_PATH_MAX];
	struct replay replayed;
	struct vm_found found;

	need_machine();
	nsec_t begun = clock_monotonic_ns();
	struct vm vm = logged_machine("undisturbed", disk, log);

	vm_boot(&vm);
	mark_until(&vm, VM_STEPS);
	vm_cut(&vm);
	print_message("# undisturbed: %d steps in %.1f s, boot included\n", VM_STEPS,
		seconds_since(begun));
	vm_look(disk, &found);
	assert_true(found.whole);
	assert_int_equal(found.step, VM_STEPS);
	undisturbed = found.digest;
	undisturbed_known = true;
	replay(&vm, full() ? STATES_FULL : STATES, &replayed);
	assert_int_equal(replayed.promised, VM_STEPS);
	assert_int_equal(replayed.violations, 0);
	assert_int_equal(unlink(disk), 0);
}

static void without_syncs_the_loss_is_seen(void **state)
{
	char disk[VM_PATH_MAX], log[VM_PATH_MAX];
	struct replay replayed;

	need_machine();
	struct vm vm = logged_machine("mutant", disk, log);

	vm.no_sync = true;
	vm_boot(&vm);
	mark_until(&vm, MUTANT_STEPS);
	vm_cut(&vm);
	replay(&vm, STATES, &replayed);
	assert_true(replayed.violations > 0);
	assert_int_equal(unlink(disk), 0);
}

/* -- cuts -- */

/* After a cut the disk has `step`; a boot must go on there. Returns the newest verified one that
 * was reported before the power went again. */
static int64_t train_and_cut(struct vm *vm, int64_t step, bool *ret_finished)
{
	nsec_t wait = (nsec_t)(rand() % DARK_MS) * NSEC_PER_MSEC, begun;
	int64_t event, verified = 0;
	char from[16] = "";

	vm_boot(vm);
	begun = clock_monotonic_ns();
	/* One of four in the dark: while the service starts, or soon after. */
	if (rand() % 4 == 0) {
		usleep((useconds_t)(wait / 1000));
		vm_cut(vm);
		return step;
	}
	int64_t resumed = vm_resumed(vm, 0, &event, from);

	if (resumed != step || (step > 0 && strcmp(from, "checkpoint") != 0))
		fail_msg("from %s at step %lld, and step %lld is there", from, (long long)resumed,
			(long long)step);
	begun = clock_monotonic_ns();
	wait = (nsec_t)(rand() % TRAINED_MS) * NSEC_PER_MSEC;
	while (clock_monotonic_ns() < begun + wait && !*ret_finished) {
		AUTO_JSON status = vm_status(vm);

		if (status == NULL)
			continue;
		verified = verified_step(status);
		*ret_finished = strcmp(json_get_text(status, "state", ""), "finished") == 0;
	}
	vm_cut(vm);
	return verified > step ? verified : step;
}

/* A run through cuts until `left` are made, then to its end undisturbed. */
static uint32_t disturbed_run(uint32_t left, struct vm *vm)
{
	struct vm_found found = {0};
	bool finished = false;
	uint32_t cuts = 0;

	vm_make_disk(vm->disk);
	while (!finished && cuts < left) {
		int64_t verified = train_and_cut(vm, found.step, &finished);

		vm_look(vm->disk, &found);
		cuts++;
		if (!found.whole || found.step < verified)
			fail_msg("cut %u: step %lld was verified, step %lld is found %s", cuts,
				(long long)verified, (long long)found.step, found.text);
	}
	vm_boot(vm);
	vm_wait_finished(vm);
	vm_cut(vm);
	vm_look(vm->disk, &found);
	assert_true(found.whole);
	assert_int_equal(found.step, VM_STEPS);
	assert_true(undisturbed_known);
	assert_memory_equal(&found.digest, &undisturbed, sizeof(undisturbed));
	assert_int_equal(unlink(vm->disk), 0);
	return cuts;
}

static void p1_p2_after_each_cut_the_service_goes_on_to_the_same_bits(void **state)
{
	uint32_t wanted = full() ? CUTS_FULL : CUTS, cuts = 0, runs = 0;
	char disk[VM_PATH_MAX];

	need_machine();
	vm_path("disturbed", disk);
	nsec_t begun = clock_monotonic_ns();
	struct vm vm = {.disk = disk};

	for (; cuts < wanted; runs++)
		cuts += disturbed_run(wanted - cuts, &vm);
	print_message("# %u cuts in %u runs, %u boots (%u of them again): %.1f s a cut\n", cuts,
		runs, vm.boots, vm.retries, seconds_since(begun) / cuts);
}

/* -- the service alone -- */

static void p3_restart_and_kill_of_the_supervisor_lose_no_step(void **state)
{
	static const char *const ends[] = {"systemctl restart ckptd@vm",
		"systemctl kill --kill-whom=main --signal=KILL ckptd@vm"};
	char disk[VM_PATH_MAX], from[16];
	int64_t event;

	need_machine();
	vm_path("restarted", disk);
	vm_make_disk(disk);
	struct vm vm = {.disk = disk};

	vm_boot(&vm);
	vm_resumed(&vm, 0, &event, from);
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		int64_t before = 0;

		while (before < 2 * (int64_t)(i + 1)) {
			AUTO_JSON status = vm_status(&vm);

			before = json_get_int(status, "step", 0);
		}
		vm_run(&vm, ends[i]);
		int64_t resumed = vm_resumed(&vm, event, &event, from);

		print_message("# %s: from %s at step %lld, step %lld was seen before\n", ends[i],
			from, (long long)resumed, (long long)before);
		assert_string_equal(from, "memory");
		assert_true(resumed >= before);
	}
	vm_cut(&vm);
	assert_int_equal(unlink(disk), 0);
}

static int open_machine(void **state)
{
	const char *seed = getenv("CKPTD_TEST_SEED");
	unsigned number = seed != NULL ? (unsigned)strtoul(seed, NULL, 10) : (unsigned)time(NULL);

	lack = vm_lacks();
	if (lack != NULL)
		return 0;
	print_message("# CKPTD_TEST_SEED=%u\n", number);
	srand(number);
	lack = vm_prepare();
	return 0;
}

static int close_machine(void **state)
{
	vm_finish();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_nothing_verified_is_lost_with_the_cache_of_the_disk),
		cmocka_unit_test(without_syncs_the_loss_is_seen),
		cmocka_unit_test(p1_p2_after_each_cut_the_service_goes_on_to_the_same_bits),
		cmocka_unit_test(p3_restart_and_kill_of_the_supervisor_lose_no_step),
	};

	return cmocka_run_group_tests_name("vm", tests, open_machine, close_machine);
}
