/* What goes wrong in a history of world.h, and with what it is drawn. */
#include "tests/sim/world.h"

#include "base/panic.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

const char *const fault_names[FAULT_COUNT] = {
	[FAULT_CRASH] = "crash",
	[FAULT_EXIT] = "exit",
	[FAULT_KILL] = "kill",
	[FAULT_HANG] = "hang",
	[FAULT_STALL] = "stall",
	[FAULT_SLOW] = "slow step",
	[FAULT_CORRUPT] = "corrupt update",
	[FAULT_BABBLE] = "babble",
	[FAULT_NONFINITE] = "non-finite",
	[FAULT_LEAK] = "leak",
	[FAULT_STUCK] = "stuck in the kernel",
	[FAULT_BOOT] = "death at the start",
	[FAULT_UNREADABLE] = "unreadable",
	[FAULT_CONFIG] = "configuration",
	[FAULT_SAVER] = "saver dies",
	[FAULT_SAVER_HANG] = "saver hangs",
	[FAULT_SPAWN] = "no process",
	[FAULT_PREPARER] = "preparer dies",
	[FAULT_STORAGE] = "storage",
	[FAULT_MIRROR_HANG] = "mirror hangs",
	[FAULT_SUSPEND] = "suspend",
	[FAULT_CLOCK] = "clock jump",
	[FAULT_POWER_CUT] = "power cut",
	[FAULT_SUPERVISOR] = "supervisor killed",
	[FAULT_TERM] = "SIGTERM",
	[FAULT_SIGPWR] = "SIGPWR",
	[FAULT_DISK_FULL] = "disk full",
	[FAULT_ROT] = "rotten checkpoint",
	[FAULT_LEDGER] = "slow disk",
	[FAULT_BITFLIP] = "bit flip",
	[FAULT_NO_MEMORY] = "no memory",
	[FAULT_NO_RUN] = "not mounted",
	[FAULT_DISK_BROKEN] = "I/O errors",
	[FAULT_NO_MIRROR] = "mirror away",
};

/* -- chances -- */

/* splitmix64: enough to draw faults, and the same everywhere. */
uint64_t draw(void)
{
	uint64_t z = world.seed += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

uint64_t below(uint64_t bound)
{
	return draw() % bound;
}

bool one_in(uint64_t n)
{
	return n > 0 && below(n) == 0;
}

nsec_t between_ns(nsec_t least_ns, nsec_t most_ns)
{
	return most_ns <= least_ns ? least_ns
				   : least_ns + (nsec_t)below((uint64_t)(most_ns - least_ns) + 1);
}

bool calm(void)
{
	return world.budget == 0;
}

static void note(enum fault fault)
{
	CHECK(world.budget > 0);
	world.budget--;
	world.counts->faults[fault]++;
}

bool strikes(enum fault fault)
{
	if (calm() || !one_in(world.odds[fault]))
		return false;
	note(fault);
	return true;
}

/* -- from outside -- */

static void suspend(void)
{
	nsec_t asleep_ns = between_ns(NSEC_PER_SEC, 7200 * NSEC_PER_SEC);

	virtual_now_ns += asleep_ns;
	workers_sleep(asleep_ns);
	people_sleep(asleep_ns);
	watch_sleep(asleep_ns);
	world.slept_ns = virtual_now_ns;
}

static void plan_suspend(void)
{
	world.suspended_ns = virtual_now_ns +
		between_ns(world.suspended_every_ns / 2, world.suspended_every_ns);
}

void sleep_within(nsec_t time_ns)
{
	if (calm() || world.odds[FAULT_SUSPEND] == 0)
		return;
	note(FAULT_SUSPEND);
	world.suspends_left = 4 + (uint32_t)below(4);
	world.suspended_every_ns = time_ns / (world.suspends_left + 1);
	plan_suspend();
}

/* Of two late ticks in a row the second counts. */
static bool slept_just_now(void)
{
	return virtual_now_ns - world.slept_ns <= 3 * TICK_NS;
}

static void suspend_again(void)
{
	if (slept_just_now()) {
		world.suspended_ns = virtual_now_ns + 3 * TICK_NS;
		return;
	}
	world.suspends_left--;
	suspend();
	if (world.suspends_left > 0)
		plan_suspend();
}

static void rot(void)
{
	struct file *file = &world.files[below(FILES_MAX)];

	if (one_in(2) && newest_good())
		file = newest_good();
	file->rotten = world.rotted = true;
}

static void kill_somebody(void)
{
	struct worker *worker = &world.workers[below(WORKERS_MAX)];

	if (one_in(2) && find_worker(ROLE_TRAIN))
		worker = find_worker(ROLE_TRAIN);
	if (worker->alive && worker->process && worker->stage != STAGE_DYING)
		worker_exit(worker, 0, SIGKILL);
}

static void disturb(enum fault fault)
{
	nsec_t until_ns = virtual_now_ns + between_ns(NSEC_PER_SEC, 60 * NSEC_PER_SEC);

	switch (fault) {
	case FAULT_KILL:
		kill_somebody();
		break;
	case FAULT_CONFIG:
		world.config_until_ns = until_ns;
		break;
	case FAULT_SPAWN:
		world.no_spawn_until_ns = until_ns;
		break;
	case FAULT_SUSPEND:
		if (!slept_just_now())
			suspend();
		break;
	case FAULT_CLOCK:
		virtual_wall_ns += between_ns(0, 20 * 86400 * NSEC_PER_SEC);
		virtual_wall_ns -= 10 * 86400 * NSEC_PER_SEC;
		break;
	case FAULT_POWER_CUT:
	case FAULT_SUPERVISOR:
		world.killed = true;
		world.power_cut = fault == FAULT_POWER_CUT;
		break;
	case FAULT_TERM:
		people_crossed(NULL);
		if (world.term_ns == 0)
			world.term_ns = virtual_now_ns;
		virtual_signal(SIGTERM);
		break;
	case FAULT_SIGPWR:
		people_crossed(NULL);
		virtual_signal(SIGPWR);
		break;
	case FAULT_DISK_FULL:
		world.full_until_ns = until_ns + (one_in(4) ? 300 * NSEC_PER_SEC : 0);
		break;
	case FAULT_ROT:
		rot();
		break;
	case FAULT_LEDGER:
		world.ledger_until_ns = virtual_now_ns + between_ns(0, 20 * NSEC_PER_SEC);
		break;
	case FAULT_BITFLIP:
		world.memory.flipped = world.memory.exists && world.memory.valid;
		break;
	case FAULT_NO_MEMORY:
		world.no_memory_until_ns = until_ns;
		break;
	case FAULT_NO_RUN:
		world.no_run_until_ns = until_ns;
		break;
	case FAULT_DISK_BROKEN:
		world.broken_until_ns = until_ns;
		break;
	case FAULT_NO_MIRROR:
		world.no_mirror_until_ns = until_ns + (one_in(2) ? 1800 * NSEC_PER_SEC : 0);
		break;
	default:
		break;
	}
}

static bool comes_from_outside(enum fault fault)
{
	return fault == FAULT_KILL || fault == FAULT_CONFIG || fault == FAULT_SPAWN ||
		fault >= FAULT_SUSPEND;
}

nsec_t faults_next_ns(void)
{
	nsec_t next_ns = calm() ? VIRTUAL_NEVER : world.disturbed_ns;

	return world.suspends_left > 0 && world.suspended_ns < next_ns ? world.suspended_ns
								       : next_ns;
}

void faults_advance(void)
{
	enum fault fault = (enum fault)below(FAULT_COUNT);

	if (world.suspends_left > 0 && world.suspended_ns <= virtual_now_ns) {
		suspend_again();
		return;
	}
	world.disturbed_ns = virtual_now_ns + between_ns(0, 4 * NSEC_PER_SEC);
	if (!comes_from_outside(fault) || world.odds[fault] == 0)
		return;
	note(fault);
	disturb(fault);
}

/* -- a history -- */

static void draw_odds(void)
{
	static const uint16_t most[FAULT_COUNT] = {
		[FAULT_CRASH] = 600,
		[FAULT_EXIT] = 900,
		[FAULT_KILL] = 900,
		[FAULT_HANG] = 1500,
		[FAULT_STALL] = 200,
		[FAULT_SLOW] = 60,
		[FAULT_CORRUPT] = 900,
		[FAULT_BABBLE] = 1500,
		[FAULT_NONFINITE] = 1,
		[FAULT_LEAK] = 200,
		[FAULT_STUCK] = 8,
		[FAULT_BOOT] = 4,
		[FAULT_UNREADABLE] = 4,
		[FAULT_CONFIG] = 1,
		[FAULT_SAVER] = 6,
		[FAULT_SAVER_HANG] = 30,
		[FAULT_SPAWN] = 1,
		[FAULT_PREPARER] = 4,
		[FAULT_STORAGE] = 600,
		[FAULT_MIRROR_HANG] = 3,
	};

	for (int i = 0; i < FAULT_COUNT; i++)
		if (one_in(3))
			world.odds[i] = most[i] > 0 ? 1 + (uint32_t)below(most[i]) : 1;
}

static void add_text(const char *key, const char *value)
{
	struct config_source *source = &world.options.source;
	uint32_t i = source->set_count++;

	CHECK(i < SETS_MAX);
	snprintf(world.set_texts[i], sizeof(world.set_texts[i]), "%s=%s", key, value);
	source->sets[i] = world.set_texts[i];
}

static void add_set(const char *key, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	add_text(key, text);
}

static void draw_config(uint64_t steps_total)
{
	static const uint16_t hang_timeouts[] = {5, 5, 10, 60};

	add_set("steps_total", steps_total);
	add_set("hang_timeout", hang_timeouts[below(4)]);
	add_set("stop_timeout", 5 + below(60));
	add_set("interval", one_in(4) ? 0 : 2 + below(40));
	add_set("interval_steps", one_in(2) ? 0 : 5 + below(60));
	add_set("keep_last", 2 + below(4));
	add_set("nonfinite_limit", 2 + below(4));
	add_set("memory_growth", 32);
	add_set("power_pause_max", 20 + below(300));
	world.scrubs = one_in(2);
	add_set("scrub_interval", world.scrubs ? 10 + below(100) : 0);
	add_set("threads", 2);
	if (one_in(2)) {
		world.slots = 1 + (uint32_t)below(3);
		add_set("slots", world.slots);
	}
	world.has_mirror = one_in(3);
	if (world.has_mirror)
		add_text("mirror", "/mirror");
	snprintf(world.options.worker_path, sizeof(world.options.worker_path), "/worker");
}

/* Whatever is asked for, two verified ones stay. keep_last 0: less than the configuration allows.
 */
static void draw_retention(void)
{
	world.retention = (struct retention_policy){.keep_last = one_in(3) ? 0 : 2,
		.keep_every = one_in(4) ? 20 : 0,
		.keep_bytes = one_in(3) ? (1 + below(6)) * FILE_BYTES : 0,
		.keep_tail = one_in(4),
		.abandoned_last = 4,
		.corrupt_last = 2};
}

void draw_history(uint64_t seed)
{
	world.seed = world.first_seed = seed;
	world.budget = (uint32_t)below(16);
	world.slots = 1 + (uint32_t)below(4);
	draw_odds();
	world.step_ns = between_ns(20 * NSEC_PER_MSEC, 200 * NSEC_PER_MSEC) * (one_in(8) ? 8 : 1);
	uint64_t steps_total = 20 + below(one_in(4) ? 500 : 120);

	draw_config(steps_total);
	world.save_ns = between_ns(
		50 * NSEC_PER_MSEC, one_in(4) ? 20 * NSEC_PER_SEC : NSEC_PER_SEC);
	world.boot_ns = between_ns(100 * NSEC_PER_MSEC, 1500 * NSEC_PER_MSEC);
	world.bad_image_first = below(steps_total * BATCH_SIZE);
	world.bad_image_count = one_in(5) ? 1 + below(one_in(3) ? 8 * BATCH_SIZE : BATCH_SIZE) : 0;
	world.bad_engine_step = one_in(8) ? below(steps_total) : STEP_NEVER;
	world.nan_step = world.odds[FAULT_NONFINITE] ? below(steps_total) : STEP_NEVER - 1000;
	draw_retention();
	world.poison_one_in = one_in(4) ? 20 + below(300) : 0;
	/* A sound state among poisoned ones is tried once a round: a wide window is out of reach.
	 */
	if (world.poison_one_in > 0 && world.bad_image_count > BATCH_SIZE)
		world.bad_image_count = BATCH_SIZE;
	world.poison_lag = below(40);
	world.poison_wanders = one_in(2);
	world.has_store = one_in(2);
	world.has_people = true;
	world.disturbed_ns = virtual_now_ns + between_ns(0, 20 * NSEC_PER_SEC);
}
