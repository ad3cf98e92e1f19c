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
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lacks.h"

#define CUTS 3
#define CUTS_FULL 50
#define STATES 40
#define STATES_FULL 1000
/* What the emulation works until a cut: */
#define DARK_MS 16000  /* at most, from the beginning */
#define BOOTED_MS 8000 /* about then the service is started */
#define AFTER_MS 1000  /* at most, from the step that is waited for to the cut */
#define MUTANT_STEPS 2 /* are promised when its power goes */
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

static struct vm logged_machine(const char *name, char disk[DISK_PATH_MAX], char log[DISK_PATH_MAX])
{
	char file[32];

	snprintf(file, sizeof(file), "%s.log", name);
	disk_path(name, disk);
	disk_path(file, log);
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
	char base[DISK_PATH_MAX];
	nsec_t begun = clock_monotonic_ns();

	disk_path("base", base);
	vm_make_disk(base);
	replay_run(vm->log, base, &disk_ext4, states, vm->no_sync, ret);
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
	char disk[DISK_PATH_MAX], log[DISK_PATH_MAX];
	struct replay replayed;
	struct disk_found found;

	need_machine();
	nsec_t begun = clock_monotonic_ns();
	struct vm vm = logged_machine("undisturbed", disk, log);

	vm_boot(&vm);
	mark_until(&vm, VM_STEPS);
	vm_cut(&vm);
	print_message("# undisturbed: %d steps in %.1f s, boot included\n", VM_STEPS,
		seconds_since(begun));
	disk_look(disk, &disk_ext4, &found);
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
	char disk[DISK_PATH_MAX], log[DISK_PATH_MAX];
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

struct cut {
	const char *phase;
	int64_t step;           /* where its boot went on */
	int64_t seen, verified; /* the last that was reported before it */
	int64_t found;          /* on the disk */
};

/* Cuts so far, and the steps that they cost, by what they interrupted. */
static struct tally {
	const char *phase;
	uint32_t cuts;
	int64_t lost, lost_max;
} tallies[8];

static void tally(const struct cut *cut)
{
	struct tally *one = tallies;
	int64_t lost = cut->seen > cut->found ? cut->seen - cut->found : 0;

	while (one->phase != NULL && strcmp(one->phase, cut->phase) != 0)
		assert_true(++one < tallies + sizeof(tallies) / sizeof(tallies[0]));
	one->phase = cut->phase;
	one->cuts++;
	one->lost += lost;
	one->lost_max = lost > one->lost_max ? lost : one->lost_max;
	print_message("# cut while %s: on from step %lld, %lld seen, %lld verified, %lld found: "
		      "%lld lost\n",
		cut->phase, (long long)cut->step, (long long)cut->seen, (long long)cut->verified,
		(long long)cut->found, (long long)lost);
}

/* The boot must go on where the disk of the last cut ends. */
static void expect_resumed(struct vm *vm, int64_t step, int64_t *ret_event)
{
	char from[16] = "";
	int64_t resumed = vm_resumed(vm, 0, ret_event, from);

	if (resumed != step || strcmp(from, step > 0 ? "checkpoint" : "scratch") != 0)
		fail_msg("from %s at step %lld, and step %lld is there", from, (long long)resumed,
			(long long)step);
}

/* The last step that was reported must be in memory, whatever happens to the supervisor. */
static void end_supervisor(struct vm *vm, const char *command, int64_t *event)
{
	int64_t before = 0, verified = 0;
	char from[16];

	/* Not on the disk: a restart from there would be seen. */
	while (before == verified) {
		AUTO_JSON status = vm_status(vm);

		before = json_get_int(status, "step", 0);
		verified = verified_step(status);
	}
	vm_run(vm, command);
	int64_t resumed = vm_resumed(vm, *event, event, from);

	print_message("# %s: from %s at step %lld, step %lld was seen before\n", command, from,
		(long long)resumed, (long long)before);
	assert_string_equal(from, "memory");
	assert_true(resumed >= before);
}

/* From a boot to the next cut. */
static void train_and_cut(struct vm *vm, bool first, struct cut *cut, bool *ret_finished)
{
	int64_t event;

	/* One of four in the dark: while it boots, while the service starts, soon after. */
	if (!first && rand() % 4 == 0) {
		nsec_t used = (nsec_t)(rand() % DARK_MS) * NSEC_PER_MSEC;

		cut->phase = used < BOOTED_MS * NSEC_PER_MSEC ? "booting" : "starting";
		vm_power_on(vm);
		vm_work(vm, used);
		vm_cut(vm);
		return;
	}
	vm_boot(vm);
	expect_resumed(vm, cut->step, &event);
	if (first) {
		end_supervisor(vm, "systemctl restart ckptd@vm", &event);
		end_supervisor(
			vm, "systemctl kill --kill-whom=main --signal=KILL ckptd@vm", &event);
	}
	/* By steps, so that a machine which emulates fast is not always done before the cut. */
	int64_t until = cut->step + rand() % (VM_STEPS + 1 - cut->step);

	do {
		AUTO_JSON status = vm_status(vm);

		cut->seen = json_get_int(status, "step", cut->seen);
		cut->verified = status != NULL ? verified_step(status) : cut->verified;
		*ret_finished = strcmp(json_get_text(status, "state", ""), "finished") == 0;
	} while (cut->seen < until && !*ret_finished);
	vm_work(vm, (nsec_t)(rand() % AFTER_MS) * NSEC_PER_MSEC);
	vm_cut(vm);
	cut->phase = *ret_finished ? "finished" : disk_under_way(vm->disk);
}

/* A run through cuts until `left` are made, then to its end undisturbed. */
static uint32_t disturbed_run(uint32_t left, struct vm *vm)
{
	struct disk_found found = {0};
	bool finished = false;
	uint32_t cuts = 0;
	int64_t event;

	vm_make_disk(vm->disk);
	while (!finished && cuts < left) {
		struct cut cut = {.step = found.step, .seen = found.step, .verified = found.step};

		train_and_cut(vm, cuts == 0, &cut, &finished);
		disk_look(vm->disk, &disk_ext4, &found);
		cut.found = found.step;
		finished |= found.step == VM_STEPS; /* though nobody was told */
		tally(&cut);
		cuts++;
		if (!found.whole || found.step < cut.verified)
			fail_msg("cut %u: step %lld was verified, step %lld is found %s", cuts,
				(long long)cut.verified, (long long)found.step, found.text);
	}
	vm_boot(vm);
	if (!finished)
		expect_resumed(vm, found.step, &event);
	vm_wait_finished(vm);
	vm_cut(vm);
	disk_look(vm->disk, &disk_ext4, &found);
	assert_true(found.whole);
	assert_int_equal(found.step, VM_STEPS);
	assert_true(undisturbed_known);
	assert_memory_equal(&found.digest, &undisturbed, sizeof(undisturbed));
	assert_int_equal(unlink(vm->disk), 0);
	return cuts;
}

static void p1_p2_p3_cuts_and_ends_of_the_supervisor_leave_the_same_bits(void **state)
{
	uint32_t wanted = full() ? CUTS_FULL : CUTS, cuts = 0, runs = 0;
	char disk[DISK_PATH_MAX];

	need_machine();
	disk_path("disturbed", disk);
	nsec_t begun = clock_monotonic_ns();
	struct vm vm = {.disk = disk};

	for (; cuts < wanted; runs++)
		cuts += disturbed_run(wanted - cuts, &vm);
	for (struct tally *one = tallies; one->phase != NULL; one++)
		print_message("# %u cuts while %s: %.1f steps lost on average, %lld at most\n",
			one->cuts, one->phase, (double)one->lost / one->cuts,
			(long long)one->lost_max);
	print_message("# %u cuts in %u runs of %d steps, a save every %d, the same bits at the end "
		      "of each; %u boots (%u of them again): %.1f s a cut\n",
		cuts, runs, VM_STEPS, VM_INTERVAL, vm.boots, vm.retries,
		seconds_since(begun) / cuts);
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
	struct rusage used;

	disk_finish();
	getrusage(RUSAGE_CHILDREN, &used);
	print_message("# all of it: %.1f s of this machine's processors\n",
		(double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
			(double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_nothing_verified_is_lost_with_the_cache_of_the_disk),
		cmocka_unit_test(without_syncs_the_loss_is_seen),
		cmocka_unit_test(p1_p2_p3_cuts_and_ends_of_the_supervisor_leave_the_same_bits),
	};

	return cmocka_run_group_tests_name("vm", tests, open_machine, close_machine);
}
