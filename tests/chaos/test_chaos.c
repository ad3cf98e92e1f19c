/* The whole system under random faults of all kinds, to the end: the bits of a run that nobody
 * touched (P2), no start from anything older than the newest checkpoint that is whole, none of them
 * lost but those that were damaged on purpose (P1), no finished step lost with the trainer alone
 * (P3), no hang that was none (P6), never two trainers, and never a person's hand. The driver lets
 * a new step finish between two faults of the trainer, so that the ladder stays below the rungs
 * that change bits.
 *
 * The plan is a function of the seed: each kind once, in random order, then any. Only faults that
 * took effect count. A short run is made with the other tests; CKPTD_FULL (./do test chaos-full)
 * makes over a thousand faults. CKPTD_TEST_SEED repeats one. */
#include "tests/chaos/chaos.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/disk/small_fs.h"

#define SETTINGS "interval_steps=40 hang_timeout=10 keep_last=6 scrub_rate=0"
#define SEED_DEFAULT 20261127
#define DISK_MIB 128
#define SHORT_STEPS 1600
#define SHORT_NS (60 * NSEC_PER_SEC) /* no new fault after this, once there were enough */
#define FULL_STEPS 45000
#define STEP_NS (20 * NSEC_PER_MSEC) /* a step takes at least about as long, on any machine */
#define PACE_STEPS 200
#define PACE_BATCH 4
#define BATCH_MAX 256
#define FULL_EFFECTIVE 1010
#define PLAN_MAX 10000
#define LOG_TAIL_MAX ((size_t)1 << 20)

static const struct {
	const char *name;
	unsigned weight;
	bool slow; /* left out of the short run */
} faults[FAULT_COUNT] = {
	[KILL_TRAINER] = {"SIGKILL of the trainer", 8, false},
	[SEGV_TRAINER] = {"SIGSEGV of the trainer", 6, false},
	[ABRT_TRAINER] = {"SIGABRT of the trainer", 5, false},
	[PAUSE_TRAINER] = {"SIGSTOP of the trainer for a moment", 4, false},
	[STOP_TRAINER] = {"SIGSTOP of the trainer for good", 1, false},
	[KILL_SAVER] = {"SIGKILL of the saver", 5, false},
	[SEGV_SAVER] = {"SIGSEGV of the saver", 3, false},
	[ABRT_SAVER] = {"SIGABRT of the saver", 3, false},
	[PAUSE_SAVER] = {"SIGSTOP of the saver for a moment", 3, false},
	[STOP_SAVER] = {"SIGSTOP of the saver for good", 1, true},
	[KILL_SUPERVISOR] = {"SIGKILL of the supervisor", 4, false},
	[SEGV_SUPERVISOR] = {"SIGSEGV of the supervisor", 3, false},
	[ABRT_SUPERVISOR] = {"SIGABRT of the supervisor", 3, false},
	[PAUSE_SUPERVISOR] = {"SIGSTOP of the supervisor for a moment", 3, false},
	[STOP_SUPERVISOR] = {"SIGSTOP of the supervisor for good", 2, false},
	[RESTART_SUPERVISOR] = {"restart of the supervisor", 2, false},
	[KILL_STARTING] = {"SIGKILL of the supervisor while it starts", 2, false},
	[KILL_PREPARER] = {"SIGKILL of the preparer", 2, false},
	[FLIP_RUNNING] = {"flipped bit in a checkpoint, running", 3, false},
	[TRUNCATE_RUNNING] = {"cut checkpoint, running", 2, false},
	[DELETE_RUNNING] = {"deleted checkpoint, running", 2, false},
	[FLIP_BETWEEN] = {"flipped bit in a checkpoint, between", 3, false},
	[TRUNCATE_BETWEEN] = {"cut checkpoint, between", 2, false},
	[DELETE_BETWEEN] = {"deleted checkpoint, between", 2, false},
	[DELETE_CATALOG_RUNNING] = {"deleted catalog, running", 2, false},
	[BREAK_CATALOG_RUNNING] = {"garbage in the catalog, running", 2, false},
	[DELETE_CATALOG] = {"deleted catalog, between", 2, false},
	[BREAK_CATALOG] = {"garbage in the catalog, between", 2, false},
	[DELETE_HISTORY_RUNNING] = {"deleted history, running", 1, false},
	[BREAK_HISTORY_RUNNING] = {"garbage in the history, running", 2, false},
	[DELETE_HISTORY] = {"deleted history, between", 1, false},
	[BREAK_HISTORY] = {"garbage in the history, between", 2, false},
	[DROP_HISTORY_TABLE] = {"dropped table of the history", 2, false},
	[FILL_DISK] = {"full disk", 3, false},
	[KILL_ON_FULL_DISK] = {"full disk, and SIGKILL of the supervisor", 2, false},
	[STARVE_TRAINER] = {"out-of-memory kill of the trainer", 2, false},
	[LIMIT_TRAINER] = {"no memory for the trainer", 2, false},
	[LIMIT_SAVER] = {"no memory for the saver", 2, false},
};

/* -- the plan -- */

/* splitmix64 */
static uint64_t mix(uint64_t word)
{
	word += UINT64_C(0x9e3779b97f4a7c15);
	word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
	return word ^ (word >> 31);
}

unsigned chaos_below(struct chaos *chaos, unsigned bound)
{
	assert_true(bound > 0);
	chaos->draws = mix(chaos->draws);
	return (unsigned)(chaos->draws % bound);
}

static enum fault draw(struct chaos *chaos)
{
	unsigned sum = 0, at;
	int fault = 0;

	for (int i = 0; i < FAULT_COUNT; i++)
		sum += faults[i].weight;
	at = chaos_below(chaos, sum);
	while (at >= faults[fault].weight)
		at -= faults[fault++].weight;
	return (enum fault)fault;
}

/* How long or how often a fault of the plan draws changes none of those that follow. */
static void make_plan(struct chaos *chaos, bool full, enum fault plan[PLAN_MAX])
{
	chaos->draws = mix(chaos->seed);
	for (unsigned i = 0; i < FAULT_COUNT; i++) {
		unsigned at = chaos_below(chaos, i + 1);

		plan[i] = plan[at];
		plan[at] = (enum fault)i;
	}
	for (unsigned i = FAULT_COUNT; i < PLAN_MAX; i++)
		plan[i] = draw(chaos);
	for (unsigned i = 0; i < PLAN_MAX; i++)
		while (!full && faults[plan[i]].slow)
			plan[i] = draw(chaos);
}

/* -- the run -- */

bool chaos_is_resting(const json_t *status, int64_t value)
{
	return is_training(status, 0) || is_finished(status, 0);
}

void chaos_let_a_step_finish(struct chaos *chaos)
{
	rig_wait(&chaos->rig, "a trainer at work", chaos_is_resting, 0);
	int64_t next = rig_step(&chaos->rig) + 1;

	rig_wait(&chaos->rig, "a new step", is_step, next < chaos->steps ? next : chaos->steps);
}

off_t chaos_log_end(const struct chaos *chaos)
{
	struct stat about;

	return stat(chaos->rig.log, &about) == 0 ? about.st_size : 0;
}

static bool find_in_log(const struct chaos *chaos, off_t mark, const char *text, char line[512])
{
	static char tail[LOG_TAIL_MAX];
	int fd = open(chaos->rig.log, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, tail, sizeof(tail) - 1, mark);

	if (fd >= 0)
		close(fd);
	tail[n > 0 ? n : 0] = '\0';
	char *at = strstr(tail, text);

	/* A line that is being written is not whole yet. */
	if (!at || !strchr(at, '\n'))
		return false;
	while (at > tail && at[-1] != '\n')
		at--;
	snprintf(line, 512, "%.*s", (int)strcspn(at, "\n"), at);
	return true;
}

bool chaos_log_says(
	const struct chaos *chaos, off_t mark, const char *text, nsec_t wait_ns, char line[512])
{
	nsec_t deadline = clock_monotonic_ns() + wait_ns;

	while (!find_in_log(chaos, mark, text, line)) {
		if (clock_monotonic_ns() >= deadline)
			return false;
		usleep(2000);
	}
	return true;
}

static bool make(struct chaos *chaos, enum fault fault)
{
	if (fault <= STOP_TRAINER)
		return fault_of_trainer(chaos, fault);
	if (fault <= STOP_SAVER)
		return fault_of_saver(chaos, fault);
	if (fault <= KILL_PREPARER)
		return fault_of_supervisor(chaos, fault);
	if (fault <= DELETE_BETWEEN)
		return damage_checkpoint(chaos, fault);
	if (fault <= BREAK_CATALOG)
		return fault_of_catalog(chaos, fault);
	if (fault <= DROP_HISTORY_TABLE)
		return fault_of_history(chaos, fault);
	if (fault <= KILL_ON_FULL_DISK)
		return fault_of_disk(chaos, fault);
	return fault_of_memory(chaos, fault);
}

static uint64_t count_effective(const struct chaos *chaos)
{
	uint64_t count = 0;

	for (int i = 0; i < FAULT_COUNT; i++)
		count += chaos->effective[i];
	return count;
}

/* One fault, and what must hold after each. */
static void commit(struct chaos *chaos, enum fault fault)
{
	nsec_t begun_ns;
	char time[CLOCK_TEXT_SIZE];

	chaos->draws = mix(chaos->seed) ^ mix(chaos->total++);
	print_message("# %llu: %s\n", (unsigned long long)chaos->total, faults[fault].name);
	chaos->attempted[fault]++;
	begun_ns = clock_monotonic_ns();
	chaos->effective[fault] += make(chaos, fault);
	chaos_let_a_step_finish(chaos);
	nsec_t took_ns = clock_monotonic_ns() - begun_ns;

	if (took_ns > chaos->longest_ns) {
		chaos->longest_ns = took_ns;
		clock_format_duration(took_ns, time);
		print_message("#   the longest so far: %s\n", time);
	}
	chaos->step_seen = rig_step(&chaos->rig);
	if (!kept_update(chaos))
		fail_msg("the catalog does not answer");
	watch_expect_good(chaos);
}

static int64_t count_events(struct chaos *chaos, const char *kind)
{
	AUTO_JSON reply = rig_call(&chaos->rig, "Events", json_pack("{s:i}", "limit", 10000), NULL);
	const json_t *events = json_object_get(reply, "events");
	int64_t count = 0;

	for (size_t i = 0; i < json_array_size(events); i++)
		count += strcmp(json_get_text(json_array_get(events, i), "kind", ""), kind) == 0;
	return count;
}

static void expect_no_partials(const struct rig *rig)
{
	char path[2 * RIG_PATH_MAX];
	struct dirent *entry;

	snprintf(path, sizeof(path), "%s/checkpoints", rig->run_dir);
	DIR *dir = opendir(path);

	assert_non_null(dir);
	while ((entry = readdir(dir)) != NULL)
		if (strstr(entry->d_name, ".partial"))
			fail_msg("%s is left", entry->d_name);
	closedir(dir);
}

/* Beside the other one, on the machine's own disk. */
static struct digest undisturbed_end(struct rig *rig, int64_t steps)
{
	struct digest digest;

	for (int64_t step = 1000; step < steps; step += 1000) /* each wait has a deadline */
		rig_wait(rig, "steps", is_step, step);
	rig_wait(rig, "the end of the run", is_finished, 0);
	AUTO_JSON status = rig_status(rig);

	assert_int_equal(json_get_int(status, "restarts", -1), 0);
	digest = rig_digest(rig, (uint64_t)steps);
	assert_int_equal(rig_stop(rig), 0);
	rig_close(rig);
	return digest;
}

static void open_on_small_disk(struct chaos *chaos, const char *settings)
{
	char image[2 * RIG_PATH_MAX];
	struct rig on_disk;

	rig_open(&on_disk, settings);
	rig_copy(&chaos->rig, &on_disk);
	snprintf(image, sizeof(image), "%s/disk", chaos->rig.dir);
	small_fs_mount_ext4(image, chaos->rig.run_dir, DISK_MIB);
	rig_copy_run(&chaos->rig, &on_disk);
	rig_close(&on_disk);
}

/* Each kind that can be made here took effect. */
static void expect_enough(const struct chaos *chaos, bool full, uint64_t least)
{
	assert_true(count_effective(chaos) >= least);
	for (int i = 0; full && i < FAULT_COUNT; i++)
		if (chaos->effective[i] == 0 && (i != STARVE_TRAINER || chaos->group[0]))
			fail_msg("never took effect: %s", faults[i].name);
}

static void finish(struct chaos *chaos)
{
	for (int64_t step = rig_step(&chaos->rig); step < chaos->steps; step += 1000)
		rig_wait(&chaos->rig, "the rest of the steps", is_step, step);
	rig_wait(&chaos->rig, "the end of the run", is_finished, 0);
	json_decref(rig_call(&chaos->rig, "Scrub", json_pack("{s:b}", "wait", 1), NULL));
	kept_expect_all_whole(chaos);
	/* A history that was deleted has forgotten some. */
	assert_true(count_events(chaos, "hang") <= chaos->hangs);
}

/* So many images that a fast machine is not done before the faults are. */
static int64_t batch_for_pace(void)
{
	nsec_t begun_ns, step_ns;
	char settings[64];
	struct rig rig;

	snprintf(settings, sizeof(settings), "interval=0 batch_size=%d", PACE_BATCH);
	rig_open(&rig, settings);
	rig_start(&rig, NULL);
	rig_wait(&rig, "a first step", is_step, 1);
	begun_ns = clock_monotonic_ns();
	int64_t first = rig_step(&rig);

	rig_wait(&rig, "steps to measure", is_step, first + PACE_STEPS);
	step_ns = (clock_monotonic_ns() - begun_ns) / PACE_STEPS;
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
	int64_t batch = PACE_BATCH * STEP_NS / step_ns;

	print_message("# a step of %d images takes %lld us\n", PACE_BATCH,
		(long long)(step_ns / NSEC_PER_USEC));
	return batch < PACE_BATCH ? PACE_BATCH : batch > BATCH_MAX ? BATCH_MAX : batch;
}

static void p2_chaos_leaves_the_same_bits(void **state)
{
	const char *given = getenv("CKPTD_TEST_SEED");
	bool full = getenv("CKPTD_FULL") != NULL;
	static enum fault plan[PLAN_MAX];
	uint64_t least = full ? FULL_EFFECTIVE : FAULT_COUNT / 2;
	struct chaos *chaos = *state;
	struct rig undisturbed;
	char settings[160], id[64];

	chaos->seed = given ? (unsigned)strtoul(given, NULL, 10) : SEED_DEFAULT;
	chaos->steps = full ? FULL_STEPS : SHORT_STEPS;
	chaos->spared = KEEP_LAST;
	print_message("# CKPTD_TEST_SEED=%u\n", chaos->seed);
	make_plan(chaos, full, plan);
	snprintf(settings, sizeof(settings), SETTINGS " steps_total=%lld batch_size=%lld",
		(long long)chaos->steps, (long long)batch_for_pace());
	small_fs_begin();
	rig_open(&undisturbed, settings);
	rig_start(&undisturbed, NULL);
	chaos->begun_ns = clock_monotonic_ns();

	hunger_begin(chaos);
	open_on_small_disk(chaos, settings);
	watch_begin(chaos);
	supervisor_start(chaos);
	chaos_let_a_step_finish(chaos);
	rig_save(&chaos->rig, id, NULL); /* something that can be lost */
	while (chaos->total < PLAN_MAX && rig_step(&chaos->rig) < chaos->steps * 9 / 10 &&
		(count_effective(chaos) < least ||
			(!full && clock_monotonic_ns() - chaos->begun_ns < SHORT_NS)))
		commit(chaos, plan[chaos->total]);
	expect_enough(chaos, full, least);
	finish(chaos);
	struct digest digest = rig_digest(&chaos->rig, (uint64_t)chaos->steps);
	struct digest expected = undisturbed_end(&undisturbed, chaos->steps);

	assert_true(digest_equal(&expected, &digest));
	watch_supervisor(chaos, 0, false);
	assert_int_equal(rig_stop(&chaos->rig), 0);
	watch_end(chaos);
	expect_no_partials(&chaos->rig);
	assert_int_equal(umount2(chaos->rig.run_dir, MNT_DETACH), 0);
	rig_close(&chaos->rig);
	hunger_end(chaos);
}

/* Also of a run that has failed. */
static int tell(void **state)
{
	const struct chaos *chaos = *state;
	char time[CLOCK_TEXT_SIZE], longest[CLOCK_TEXT_SIZE];

	clock_format_duration(clock_monotonic_ns() - chaos->begun_ns, time);
	clock_format_duration(chaos->longest_ns, longest);
	print_message(
		"# %llu faults took effect, of %llu, in %s and %lld steps; seed %u; %lld steps "
		"were made again; the longest fault and recovery took %s\n",
		(unsigned long long)count_effective(chaos), (unsigned long long)chaos->total, time,
		(long long)chaos->step_seen, chaos->seed, (long long)chaos->redone, longest);
	if (!chaos->watch)
		return 0;
	print_message("# meanwhile: %llu looks for trainers, %llu answers, the slowest %llu ms\n",
		(unsigned long long)atomic_load(&chaos->watch->scans),
		(unsigned long long)atomic_load(&chaos->watch->questions),
		(unsigned long long)atomic_load(&chaos->watch->longest_ms));
	for (int i = 0; i < FAULT_COUNT; i++)
		print_message("#   %4llu of %4llu %s\n", (unsigned long long)chaos->effective[i],
			(unsigned long long)chaos->attempted[i], faults[i].name);
	return 0;
}

int main(void)
{
	static struct chaos chaos;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate_setup_teardown(
			p2_chaos_leaves_the_same_bits, NULL, tell, &chaos),
	};
	struct rlimit no_core = {0, 0};

	setrlimit(RLIMIT_CORE, &no_core);
	return cmocka_run_group_tests_name("chaos", tests, NULL, NULL);
}
