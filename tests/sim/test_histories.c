/* The whole supervisor in virtual time (world.h): seeded histories of everything that goes wrong,
 * with what must hold checked after every event (world_watch.c). Each history is one life of a run,
 * through deaths of the trainer, the supervisor and the machine, to its end.
 *
 * CKPTD_FULL: a million. A failure prints its seed; CKPTD_SIM_SEED=N plays that one with its log,
 * CKPTD_SIM_COUNT=N so many from there. */
#include "tests/sim/world.h"

#include "base/log.h"
#include "base/panic.h"
#include "supervisor/methods.h"

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define COUNT_DEFAULT 2000
#define COUNT_FULL 1000000
#define BATCH 500 /* histories in one process */
#define BATCHES_AT_ONCE_MAX 8
#define EVENTS_MAX 3000000
#define ENDING_NS (120 * NSEC_PER_SEC) /* what is stuck in the kernel */
#define END_NS (40 * 86400 * NSEC_PER_SEC)
#define START_NS (1000000 * NSEC_PER_SEC)
#define WALL_NS (INT64_C(1767225600) * NSEC_PER_SEC)

struct world world;

void __wrap_log_write(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void __wrap_digest_random_id(uint8_t *bytes, size_t size);

static bool loud;

void __wrap_log_write(enum log_level level, const char *fmt, ...)
{
	va_list arguments;

	if (!loud)
		return;
	printf("# %10.3f %-11s %4" PRIu64 " ", (double)(virtual_now_ns - START_NS) / 1e9,
		world.sup ? fsm_state_name(world.sup->state) : "", world.memory.record.step);
	va_start(arguments, fmt);
	vprintf(fmt, arguments);
	va_end(arguments);
	putchar('\n');
}

void __wrap_digest_random_id(uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)draw();
}

void world_check(bool good, const char *fmt, ...)
{
	va_list arguments;

	if (good)
		return;
	fprintf(stderr, "# ");
	va_start(arguments, fmt);
	vfprintf(stderr, fmt, arguments);
	va_end(arguments);
	fprintf(stderr, " (%s, rung %u, step %" PRIu64 ", %.3f s)\n",
		world.sup ? fsm_state_name(world.sup->state) : "between two lives",
		world.sup ? world.sup->ladder.rung : 0, world.memory.record.step,
		(double)(virtual_now_ns - START_NS) / 1e9);
	fflush(NULL);
	abort();
}

/* -- what comes next -- */

static struct worker *next_worker(void)
{
	struct worker *next = NULL;

	for (uint32_t i = 0; i < WORKERS_MAX; i++) {
		struct worker *worker = &world.workers[i];

		if (worker->alive && worker->next_ns != VIRTUAL_NEVER &&
			(!next || worker->next_ns < next->next_ns))
			next = worker;
	}
	return next;
}

static nsec_t earlier(nsec_t a_ns, nsec_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

nsec_t host_next_ns(void)
{
	const struct worker *worker = next_worker();
	nsec_t next_ns = worker ? worker->next_ns : VIRTUAL_NEVER;

	if (!world.sup)
		return next_ns;
	next_ns = earlier(next_ns, ledger_next_ns());
	next_ns = earlier(next_ns, people_next_ns());
	return earlier(next_ns, faults_next_ns());
}

void host_advance(void)
{
	struct worker *worker = next_worker();

	if (worker && worker->next_ns <= virtual_now_ns)
		worker_advance(worker);
	else if (ledger_next_ns() <= virtual_now_ns)
		ledger_advance();
	else if (people_next_ns() <= virtual_now_ns)
		people_advance();
	else
		faults_advance();
}

static bool anybody_waits(void)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (world.clients[i].open)
			return true;
	return false;
}

/* A machine is late now and then; and where there is nothing to watch, time may fly. */
nsec_t host_tick_ns(uint64_t after_ms)
{
	nsec_t after_ns = (nsec_t)after_ms * NSEC_PER_MSEC;

	if (any_worker() || anybody_waits()) {
		world.idle_since_ns = virtual_now_ns;
		if (one_in(60))
			after_ns += between_ns(0, 4 * after_ns);
	} else {
		nsec_t idle_ns = virtual_now_ns - world.idle_since_ns;

		after_ns += earlier(idle_ns / 8, 20 * NSEC_PER_SEC);
	}
	return virtual_now_ns + after_ns;
}

/* -- lives -- */

static void power_off(void)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		world.workers[i].alive = false;
	memory_lose();
}

/* The process is gone, as SIGKILL or a power cut leaves it. */
static void bury(void)
{
	ledger_lose();
	virtual_reset();
	people_lose();
	world.memory.mapped = false;
	if (world.power_cut)
		power_off();
	else
		workers_orphan();
	if (!world.memory.stored) {
		memory_lose();
		world.leave_memory = true;
	}
	world.sup = NULL;
	world.killed = world.power_cut = false;
	virtual_now_ns += between_ns(50 * NSEC_PER_MSEC, 20 * NSEC_PER_SEC);
}

static bool background_alive(const struct supervisor *sup)
{
	return child_alive(&sup->sample.child) || child_alive(&sup->verify.child) ||
		child_alive(&sup->scrub.child) || child_alive(&sup->mirror.child) ||
		child_alive(&sup->saver.child);
}

static void end_life(struct supervisor *sup)
{
	MUST(sup->state == FSM_ENDED, "the loop ended in state %s", fsm_state_name(sup->state));
	world.ended_ns = virtual_now_ns;
	while (background_alive(sup)) {
		uv_loop_init(&sup->loop);
		if (!virtual_turn())
			break;
	}
	supervisor_fini(sup);
	MUST(virtual_now_ns - world.ended_ns < ENDING_NS, "the end is not the end");
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		MUST(!world.workers[i].alive || world.workers[i].orphan,
			"it ends, and a worker does not");
	virtual_reset();
	people_lose();
	if (!world.memory.stored)
		world.leave_memory = true;
	world.sup = NULL;
	virtual_now_ns += between_ns(50 * NSEC_PER_MSEC, 20 * NSEC_PER_SEC);
}

/* True when the run is over, or nobody but a person could help it. */
static bool is_over(void)
{
	bool hopeless = world.hopeless > 60;

	if (hopeless && calm())
		world.counts->hopeless++;
	return calm() && (hopeless || (world.sup->state == FSM_FINISHED && mirror_is_good()));
}

/* One life of the supervisor: true when it was the last. */
static bool live_once(void)
{
	static struct supervisor sup;
	struct error error;
	uint64_t events = 0;
	bool over = false;

	memset(&sup, 0, sizeof(sup));
	world.sup = &sup;
	world.counts->lives++;
	world.term_ns = 0;
	world.rung_before = 0;
	world.tried_ns = world.idle_since_ns = world.resting_since_ns = virtual_now_ns;
	world.behind_since_ns = virtual_now_ns;
	for (uint32_t i = 0; i < FILES_MAX; i++)
		world.files[i].told = false;
	if (!world.memory.exists)
		watch_climb_lost();
	world.state_before = FSM_STARTING;
	world.newest_before = STEP_NEVER;
	CHECK(supervisor_init(&sup, &world.options, &error) == 0);
	open_run(&sup);
	while (virtual_turn()) {
		watch_event();
		MUST(++events < EVENTS_MAX && virtual_now_ns < START_NS + END_NS,
			"this history does not end");
		if (world.killed)
			break;
		if (!over && is_over()) {
			over = true;
			virtual_signal(SIGTERM);
		}
	}
	if (world.killed)
		bury();
	else
		end_life(&sup);
	return over;
}

static void live(uint64_t seed, struct counts *counts)
{
	memset(&world, 0, offsetof(struct world, progress));
	memset((char *)&world + offsetof(struct world, ledger_until_ns), 0,
		sizeof(world) - offsetof(struct world, ledger_until_ns));
	world.counts = counts;
	world.pid_last = VIRTUAL_PID_FIRST;
	virtual_reset();
	virtual_now_ns = START_NS;
	virtual_wall_ns = WALL_NS;
	draw_history(seed);
	snprintf(world.run.id_hex, sizeof(world.run.id_hex), "%032" PRIx64, seed);
	memcpy(world.run.id, &seed, sizeof(seed));
	world.line.branches = calloc(1, sizeof(*world.line.branches));
	CHECK(world.line.branches);
	world.line.branches[0].branch = 1;
	world.line.count = world.line.current = world.line.highest = 1;
	while (!live_once())
		continue;
	free(world.line.branches);
	counts->histories++;
	counts->virtual_seconds += (uint64_t)((virtual_now_ns - START_NS) / NSEC_PER_SEC);
}

/* -- batches: in processes of their own, so that a failed CHECK has a seed too -- */

struct batch {
	uint64_t seed; /* that is played now */
	struct counts counts;
};

static struct batch *batches;

static pid_t start_batch(struct batch *batch, uint64_t first, uint64_t count)
{
	fflush(NULL);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid > 0)
		return pid;
	signal(SIGSEGV, SIG_DFL);
	signal(SIGABRT, SIG_DFL);
	for (batch->seed = first; batch->seed < first + count; batch->seed++)
		live(batch->seed, &batch->counts);
	_exit(0);
}

static void end_batch(struct batch *batch, pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("a history failed: CKPTD_SIM_SEED=%" PRIu64, batch->seed);
}

static void add_counts(struct counts *sum, const struct counts *counts)
{
	uint64_t *to = (uint64_t *)sum;
	const uint64_t *from = (const uint64_t *)counts;

	for (size_t i = 0; i < sizeof(*sum) / sizeof(uint64_t); i++)
		to[i] += from[i];
}

/* -- what was covered -- */

static void print_list(
	const char *what, const char *const *names, const uint64_t *counts, int count)
{
	printf("# %s:", what);
	for (int i = 0; i < count; i++)
		printf(" %s %" PRIu64 "%s", names[i], counts[i], i + 1 < count ? "," : "\n");
}

static void print_table(const struct counts *counts)
{
	int there = 0, taken = 0;

	for (int state = 0; state < FSM_STATE_COUNT; state++)
		for (int event = 0; event < FSM_EVENT_COUNT; event++) {
			bool is = fsm_next((enum fsm_state)state, (enum fsm_event)event).taken;

			there += is;
			taken += is && counts->table[state][event] > 0;
			if (is && counts->table[state][event] == 0)
				printf("# never taken: %s, %s\n",
					fsm_state_name((enum fsm_state)state),
					fsm_event_name((enum fsm_event)event));
		}
	printf("# %d of %d transitions of the table taken\n", taken, there);
}

static void print_counts(struct counts *counts)
{
	static const char *const rungs[] = {"0", "1", "2", "3", "4", "5"};
	static const char *const kinds[] = {
		"own", "outside", "memory corrupt", "non-finite", "storage", "transient"};
	static const char *const froms[] = {
		"memory", "newest", "fork newest", "fork older", "fork left", "fork start"};
	static const char *const calls[] = {"Status", "Save", "Pause", "Resume", "Stop", "Stop now",
		"Stop exit", "Rollback", "Restart", "Reload", "PowerFail", "PowerOk", "Verify",
		"Scrub", "Sample", "Keep", "Checkpoints"};
	struct counts table = *counts;

	printf("# %" PRIu64 " histories (%" PRIu64 " without hope), %" PRIu64 " lives, %" PRIu64
	       " starts, %" PRIu64 " steps, %" PRIu64 " saves, %" PRIu64 " branches\n",
		counts->histories, counts->hopeless, counts->lives, counts->starts, counts->steps,
		counts->saves, counts->forks);
	printf("# %" PRIu64 " rounds of the mirror, %" PRIu64 " checkpoints made room\n",
		counts->mirrorings, counts->made_room);
	printf("# %" PRIu64 " events in %.1f days; %" PRIu64 " hangs found, %" PRIu64
	       " renewals, %" PRIu64 " suspicions withdrawn, %" PRIu64
	       " decisions passed rungs over, %" PRIu64 " checkpoints removed\n",
		counts->events, (double)counts->virtual_seconds / 86400, counts->hangs_found,
		counts->renewals, counts->withdrawn, counts->passed_over, counts->removed);
	print_list("rungs", rungs, counts->rungs, LADDER_RUNG_MAX + 1);
	print_list("deaths", kinds, counts->kinds, DEATH_KIND_COUNT);
	print_list("restarts from", froms, counts->froms, RESTART_FORK_START + 1);
	print_list("calls", calls, counts->calls, CALL_KIND_COUNT);
	print_list("faults", fault_names, counts->faults, FAULT_COUNT);
	world.counts = &table;
	print_table(counts);
}

static uint64_t number_from(const char *name, uint64_t fallback)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : fallback;
}

static void p5_every_history_ends_and_nothing_is_lost(void **unused)
{
	uint64_t seed = number_from("CKPTD_SIM_SEED", 0), first = seed > 0 ? seed : 1;
	uint64_t count = number_from("CKPTD_SIM_COUNT",
		seed > 0                       ? 1
			: getenv("CKPTD_FULL") ? COUNT_FULL
					       : COUNT_DEFAULT);
	uint64_t at_once = number_from("CKPTD_SIM_JOBS", 1);
	struct counts counts = {0};

	loud = seed > 0 && count == 1;
	assert_true(at_once >= 1 && at_once <= BATCHES_AT_ONCE_MAX);
	while (count > 0) {
		pid_t pids[BATCHES_AT_ONCE_MAX];
		uint64_t started = 0;

		memset(batches, 0, BATCHES_AT_ONCE_MAX * sizeof(*batches));
		for (; started < at_once && count > 0; started++) {
			uint64_t some = count < BATCH ? count : BATCH;

			pids[started] = start_batch(&batches[started], first, some);
			first += some;
			count -= some;
		}
		for (uint64_t i = 0; i < started; i++)
			end_batch(&batches[i], pids[i]);
		for (uint64_t i = 0; i < started; i++)
			add_counts(&counts, &batches[i].counts);
	}
	print_counts(&counts);
	/* A simulator without faults would show nothing. */
	if (counts.histories >= COUNT_DEFAULT)
		for (int i = 0; i < FAULT_COUNT; i++)
			assert_true(i == FAULT_NONFINITE || counts.faults[i] > 0);
	if (counts.histories >= COUNT_DEFAULT)
		for (int i = 0; i < DEATH_KIND_COUNT; i++)
			assert_true(counts.kinds[i] > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p5_every_history_ends_and_nothing_is_lost),
	};

	unsetenv("NOTIFY_SOCKET");
	unsetenv("STATE_DIRECTORY");
	batches = mmap(NULL, BATCHES_AT_ONCE_MAX * sizeof(*batches), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(batches != MAP_FAILED);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
