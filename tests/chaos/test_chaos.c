/* The whole system under random faults, to the end: the bits of a run that nobody touched (P2), no
 * start from anything older than the newest checkpoint that is whole (P1), no hang that was none
 * (P6), and never a person's hand. The driver lets a new step finish between two faults of the
 * trainer, so that the ladder stays below the rungs that change bits.
 *
 * A short one runs with the other tests; CKPTD_FULL (./do test chaos-full) makes over a thousand
 * faults. CKPTD_TEST_SEED repeats one. */
#include "base/clock.h"
#include "store/checkpoint.h"
#include "tests/system/rig.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/disk/small_fs.h"

#define SETTINGS "interval_steps=40 hang_timeout=20 keep_last=6"
#define SEED_DEFAULT 20261127
#define DISK_MIB 128
#define STARVING_BYTES (1 << 20)
#define DAMAGED_MAX 4096
#define SHORT_STEPS 1800
#define SHORT_FAULTS_LEAST 12
#define SHORT_NS (60 * NSEC_PER_SEC) /* no new fault after this */
#define FULL_STEPS 12000
#define FULL_FAULTS 1100

enum fault {
	KILL_TRAINER,
	SEGV_TRAINER,
	ABRT_TRAINER,
	STOP_TRAINER_SHORTLY,
	STOP_TRAINER,
	KILL_SAVER,
	STOP_SAVER,
	KILL_SUPERVISOR,
	RESTART_SUPERVISOR,
	FILL_DISK,
	FLIP_NEWEST,
	FLIP_ANY,
	DELETE_NEWEST,
	DELETE_CATALOG,
	BREAK_CATALOG,
	DELETE_HISTORY,
	STARVE_TRAINER,
	FAULT_COUNT,
};

static const struct {
	const char *name;
	unsigned weight;
} faults[FAULT_COUNT] = {
	[KILL_TRAINER] = {"SIGKILL of the trainer", 6},
	[SEGV_TRAINER] = {"SIGSEGV of the trainer", 4},
	[ABRT_TRAINER] = {"SIGABRT of the trainer", 3},
	[STOP_TRAINER_SHORTLY] = {"SIGSTOP of the trainer for a moment", 3},
	[STOP_TRAINER] = {"SIGSTOP of the trainer for good", 1},
	[KILL_SAVER] = {"SIGKILL of the saver", 4},
	[STOP_SAVER] = {"SIGSTOP of the saver for a moment", 2},
	[KILL_SUPERVISOR] = {"SIGKILL of the supervisor", 3},
	[RESTART_SUPERVISOR] = {"restart of the supervisor", 2},
	[FILL_DISK] = {"full disk", 2},
	[FLIP_NEWEST] = {"flipped bit in the newest checkpoint", 2},
	[FLIP_ANY] = {"flipped bit in a checkpoint", 2},
	[DELETE_NEWEST] = {"deleted newest checkpoint", 1},
	[DELETE_CATALOG] = {"deleted catalog", 1},
	[BREAK_CATALOG] = {"broken catalog", 1},
	[DELETE_HISTORY] = {"deleted history", 1},
	[STARVE_TRAINER] = {"out-of-memory kill of the trainer", 1},
};

struct kept {
	char id[64];
	int64_t step;
};

struct chaos {
	struct rig rig;
	unsigned seed;
	int64_t steps;
	unsigned count[FAULT_COUNT], total;
	int64_t hangs;                 /* that were made */
	char damaged[DAMAGED_MAX][64]; /* until it reads them the daemon believes them */
	unsigned damaged_count;
	char group[64]; /* the memory control group, "" when there is none */
};

static unsigned below(struct chaos *chaos, unsigned bound)
{
	return (unsigned)rand_r(&chaos->seed) % bound;
}

static bool is_resting(const json_t *status, int64_t value)
{
	return is_training(status, 0) || is_finished(status, 0);
}

static bool storage_is_good(const json_t *status, int64_t value)
{
	return json_get_bool(json_object_get(status, "storage"), "ok", false);
}

/* Between two faults of the trainer: one that was never finished before. */
static void let_a_step_finish(struct chaos *chaos)
{
	rig_wait(&chaos->rig, "a trainer at work", is_resting, 0);
	int64_t next = rig_step(&chaos->rig) + 1;

	rig_wait(&chaos->rig, "a new step", is_step, next < chaos->steps ? next : chaos->steps);
}

/* The trainer, somewhere inside a step; 0 when the run is over. */
static pid_t trainer_inside_a_step(struct chaos *chaos)
{
	let_a_step_finish(chaos);
	usleep((useconds_t)below(chaos, 20000));
	return rig_worker(&chaos->rig, "train");
}

static void signal_trainer(struct chaos *chaos, int number)
{
	pid_t pid = trainer_inside_a_step(chaos);

	if (pid > 0)
		kill(pid, number);
}

/* -- checkpoints -- */

static bool is_damaged(const struct chaos *chaos, const char *id)
{
	for (unsigned i = 0; i < chaos->damaged_count; i++)
		if (strcmp(chaos->damaged[i], id) == 0)
			return true;
	return false;
}

/* The verified ones that are whole, newest first. */
static size_t verified(struct chaos *chaos, struct kept kept[64])
{
	AUTO_JSON reply = rig_call(&chaos->rig, "Checkpoints", NULL, NULL);
	const json_t *rows = json_object_get(reply, "checkpoints");
	size_t count = 0;

	for (size_t i = json_array_size(rows); i-- > 0 && count < 64;) {
		const json_t *row = json_array_get(rows, i);

		if (strcmp(json_get_text(row, "state", ""), "verified") != 0 ||
			is_damaged(chaos, json_get_text(row, "id", "")))
			continue;
		snprintf(
			kept[count].id, sizeof(kept[count].id), "%s", json_get_text(row, "id", ""));
		kept[count++].step = json_get_int(row, "step", -1);
	}
	for (size_t i = 1; i < count; i++)
		for (size_t j = i; j > 0 && kept[j].step > kept[j - 1].step; j--) {
			struct kept other = kept[j];

			kept[j] = kept[j - 1];
			kept[j - 1] = other;
		}
	return count;
}

static void damage(struct chaos *chaos, const char *id, enum fault fault)
{
	char path[2 * RIG_PATH_MAX];
	struct stat about;

	rig_checkpoint_path(&chaos->rig, id, path);
	if (stat(path, &about) < 0) /* retention was faster */
		return;
	assert_true(chaos->damaged_count < DAMAGED_MAX);
	snprintf(chaos->damaged[chaos->damaged_count++], sizeof(chaos->damaged[0]), "%.63s", id);
	if (fault == DELETE_NEWEST)
		assert_int_equal(unlink(path), 0);
	else
		rig_flip(path, (off_t)(8 + below(chaos, (unsigned)about.st_size - 8)));
}

/* -- the supervisor -- */

static void start(struct chaos *chaos)
{
	rig_start(&chaos->rig, NULL);
	if (chaos->group[0]) {
		char path[96], pid[16];
		FILE *file;

		snprintf(path, sizeof(path), "%s/cgroup.procs", chaos->group);
		snprintf(pid, sizeof(pid), "%d", (int)chaos->rig.supervisor);
		file = fopen(path, "we");
		assert_non_null(file);
		assert_true(fputs(pid, file) >= 0);
		assert_int_equal(fclose(file), 0);
	}
}

/* The step that the newest start went on from; it waits for that start. */
static int64_t resumed_at(struct chaos *chaos)
{
	char text[256] = "";

	rig_wait(&chaos->rig, "a trainer at work", is_resting, 0);
	if (!rig_event(&chaos->rig, "training", "goes on from", 0, text))
		return chaos->steps; /* it was over before */
	return strtoll(strstr(text, "at step ") + strlen("at step "), NULL, 10);
}

/* Outside of systemd its memory is gone with it: the disk is next. P1: nothing older than the
 * newest checkpoint that is whole. */
static void start_and_check(struct chaos *chaos, const struct kept *kept, size_t count)
{
	int64_t newest = 0;

	for (size_t i = 0; i < count; i++)
		if (!is_damaged(chaos, kept[i].id) && kept[i].step > newest)
			newest = kept[i].step;
	start(chaos);
	int64_t resumed = resumed_at(chaos);

	if (resumed < newest)
		fail_msg("resumed at step %lld, but step %lld was verified and whole",
			(long long)resumed, (long long)newest);
}

static void end_supervisor(struct chaos *chaos, bool kindly)
{
	if (kindly)
		assert_int_equal(rig_stop(&chaos->rig), 0);
	else
		rig_kill_supervisor(&chaos->rig);
}

/* -- what needs more than a signal -- */

static void stop_for_good(struct chaos *chaos)
{
	pid_t pid = trainer_inside_a_step(chaos);
	char text[256];
	int64_t after = rig_last_event(&chaos->rig);

	if (pid <= 0)
		return;
	kill(pid, SIGSTOP);
	assert_true(rig_event(&chaos->rig, "hang", "has not moved", after, text) > 0);
	chaos->hangs++;
}

static void stop_shortly(struct chaos *chaos, const char *role)
{
	pid_t pid = rig_worker(&chaos->rig, role);

	if (pid <= 0)
		return;
	kill(pid, SIGSTOP);
	usleep(50000 + (useconds_t)below(chaos, 250000));
	kill(pid, SIGCONT);
}

/* The saver of a save that is asked for; 0 when it was faster. */
static pid_t begin_save(struct chaos *chaos)
{
	pid_t pid = 0;

	let_a_step_finish(chaos);
	rig_send(&chaos->rig, "Save");
	for (int i = 0; i < 100 && pid == 0; i++)
		pid = rig_worker(&chaos->rig, "save");
	usleep((useconds_t)below(chaos, 10000));
	return pid;
}

/* Older checkpoints give way to the save, or it fails. */
static void fill_disk(struct chaos *chaos)
{
	char filler[2 * RIG_PATH_MAX], error[64];

	let_a_step_finish(chaos);
	snprintf(filler, sizeof(filler), "%s/filler", chaos->rig.run_dir);
	small_fs_fill(filler);
	json_decref(rig_call(&chaos->rig, "Save", json_pack("{s:b}", "wait", 1), error));
	let_a_step_finish(chaos);
	assert_int_equal(unlink(filler), 0);
	rig_send(&chaos->rig, "Save");
	rig_wait(&chaos->rig, "saving to resume", storage_is_good, 0);
}

static void damage_while_down(struct chaos *chaos, enum fault fault)
{
	struct kept kept[64];
	bool kindly = below(chaos, 2);

	let_a_step_finish(chaos);
	size_t count = verified(chaos, kept);

	end_supervisor(chaos, kindly);
	if (fault == FLIP_NEWEST || fault == FLIP_ANY || fault == DELETE_NEWEST) {
		/* Two are left, or the run would have to begin anew. */
		if (count >= 3)
			damage(chaos,
				kept[fault == FLIP_ANY ? below(chaos, (unsigned)count) : 0].id,
				fault);
		start_and_check(chaos, kept, count);
		return;
	}
	char path[2 * RIG_PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", chaos->rig.run_dir,
		fault == DELETE_HISTORY ? "history.sqlite" : "catalog.sqlite");
	if (fault == BREAK_CATALOG)
		rig_flip(path, 30);
	else
		assert_int_equal(unlink(path), 0);
	start_and_check(chaos, kept, count);
}

/* -- a control group that can be made too small (version 1) -- */

static void set_group_limit(struct chaos *chaos, const char *bytes)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/memory.limit_in_bytes", chaos->group);
	FILE *file = fopen(path, "we");

	assert_non_null(file);
	assert_true(fputs(bytes, file) >= 0);
	fclose(file); /* refused while more is in use */
}

static bool died_of_hunger(const json_t *status, int64_t value)
{
	const json_t *death = json_object_get(status, "last_death");

	return json_get_int(status, "restarts", 0) > value &&
		strstr(json_get_text(death, "cause", ""), "out of memory") != NULL;
}

static int64_t restarts(struct chaos *chaos)
{
	AUTO_JSON status = rig_status(&chaos->rig);

	return json_get_int(status, "restarts", 0);
}

/* What is in use without a trainer, and hardly more: the next one cannot start. */
static void starve(struct chaos *chaos)
{
	char path[96], text[32] = "";
	pid_t pid = trainer_inside_a_step(chaos);
	int64_t before = restarts(chaos);

	if (!chaos->group[0] || pid <= 0)
		return;
	kill(chaos->rig.supervisor, SIGSTOP);
	kill(pid, SIGKILL);
	while (rig_worker(&chaos->rig, "train") == pid)
		usleep(1000);
	snprintf(path, sizeof(path), "%s/memory.usage_in_bytes", chaos->group);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	assert_non_null(fgets(text, sizeof(text), file));
	fclose(file);
	snprintf(text, sizeof(text), "%llu", strtoull(text, NULL, 10) + STARVING_BYTES);
	set_group_limit(chaos, text);
	kill(chaos->rig.supervisor, SIGCONT);
	rig_wait(&chaos->rig, "a kill for lack of memory", died_of_hunger, before);
	set_group_limit(chaos, "-1");
	rig_wait(&chaos->rig, "a trainer at work", is_resting, 0);
}

static void make_group(struct chaos *chaos)
{
	snprintf(chaos->group, sizeof(chaos->group), "/sys/fs/cgroup/memory/ckptd-chaos-%d",
		(int)getpid());
	if (mkdir(chaos->group, 0755) < 0) {
		print_message("# no control group of version 1: nobody starves\n");
		chaos->group[0] = '\0';
	}
}

static void remove_group(struct chaos *chaos)
{
	for (int i = 0; chaos->group[0] && i < 1000 && rmdir(chaos->group) < 0; i++)
		usleep(10000);
}

/* -- the run -- */

static void commit(struct chaos *chaos, enum fault fault)
{
	pid_t pid;

	switch (fault) {
	case KILL_TRAINER:
		signal_trainer(chaos, SIGKILL);
		break;
	case SEGV_TRAINER:
		signal_trainer(chaos, SIGSEGV);
		break;
	case ABRT_TRAINER:
		signal_trainer(chaos, SIGABRT);
		break;
	case STOP_TRAINER_SHORTLY:
		let_a_step_finish(chaos);
		stop_shortly(chaos, "train");
		break;
	case STOP_TRAINER:
		stop_for_good(chaos);
		break;
	case KILL_SAVER:
		pid = begin_save(chaos);
		if (pid > 0 && rig_worker(&chaos->rig, "save") == pid)
			kill(pid, SIGKILL);
		break;
	case STOP_SAVER:
		begin_save(chaos);
		stop_shortly(chaos, "save");
		break;
	case KILL_SUPERVISOR:
	case RESTART_SUPERVISOR: {
		struct kept kept[64];

		let_a_step_finish(chaos);
		size_t count = verified(chaos, kept);

		end_supervisor(chaos, fault == RESTART_SUPERVISOR);
		start_and_check(chaos, kept, count);
		break;
	}
	case FILL_DISK:
		fill_disk(chaos);
		break;
	case STARVE_TRAINER:
		starve(chaos);
		break;
	default:
		damage_while_down(chaos, fault);
	}
	chaos->count[fault]++;
	chaos->total++;
}

static enum fault draw(struct chaos *chaos)
{
	unsigned sum = 0, at;
	int fault = 0;

	for (int i = 0; i < FAULT_COUNT; i++)
		sum += faults[i].weight;
	at = below(chaos, sum);
	while (at >= faults[fault].weight)
		at -= faults[fault++].weight;
	return (enum fault)fault;
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

static struct digest undisturbed(const char *settings, int64_t steps)
{
	struct digest digest;
	struct rig rig;

	rig_open(&rig, settings);
	rig_start(&rig, NULL);
	for (int64_t step = 1000; step < steps; step += 1000) /* each wait has a deadline */
		rig_wait(&rig, "steps", is_step, step);
	rig_wait(&rig, "the end of the run", is_finished, 0);
	digest = rig_digest(&rig, (uint64_t)steps);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
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

static void tell(const struct chaos *chaos, nsec_t begun_ns)
{
	char time[CLOCK_TEXT_SIZE];

	clock_format_duration(clock_monotonic_ns() - begun_ns, time);
	print_message("# %u faults in %s\n", chaos->total, time);
	for (int i = 0; i < FAULT_COUNT; i++)
		print_message("#   %4u %s\n", chaos->count[i], faults[i].name);
}

static void p2_chaos_leaves_the_same_bits(void **unused)
{
	const char *given = getenv("CKPTD_TEST_SEED");
	bool full = getenv("CKPTD_FULL") != NULL;
	static struct chaos chaos;
	char settings[160];

	chaos.seed = given ? (unsigned)strtoul(given, NULL, 10) : SEED_DEFAULT;
	chaos.steps = full ? FULL_STEPS : SHORT_STEPS;
	print_message("# CKPTD_TEST_SEED=%u\n", chaos.seed);
	snprintf(settings, sizeof(settings), SETTINGS " steps_total=%lld", (long long)chaos.steps);
	small_fs_begin();
	struct digest expected = undisturbed(settings, chaos.steps);
	nsec_t begun_ns = clock_monotonic_ns();

	make_group(&chaos);
	open_on_small_disk(&chaos, settings);
	start(&chaos);
	while (full ? chaos.total < FULL_FAULTS : clock_monotonic_ns() - begun_ns < SHORT_NS) {
		if (rig_step(&chaos.rig) > chaos.steps * 9 / 10)
			break;
		commit(&chaos, draw(&chaos));
	}
	tell(&chaos, begun_ns);
	assert_true(chaos.total >= (full ? FULL_FAULTS : SHORT_FAULTS_LEAST));
	for (int64_t step = rig_step(&chaos.rig); step < chaos.steps; step += 1000)
		rig_wait(&chaos.rig, "the rest of the steps", is_step, step);
	rig_wait(&chaos.rig, "the end of the run", is_finished, 0);
	/* A history that was deleted has forgotten some. */
	assert_true(count_events(&chaos, "hang") <= chaos.hangs);
	struct digest digest = rig_digest(&chaos.rig, (uint64_t)chaos.steps);

	assert_true(digest_equal(&expected, &digest));
	assert_int_equal(rig_stop(&chaos.rig), 0);
	expect_no_partials(&chaos.rig);
	assert_int_equal(umount2(chaos.rig.run_dir, MNT_DETACH), 0);
	rig_close(&chaos.rig);
	remove_group(&chaos);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p2_chaos_leaves_the_same_bits),
	};

	return cmocka_run_group_tests_name("chaos", tests, NULL, NULL);
}
