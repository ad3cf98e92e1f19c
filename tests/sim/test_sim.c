/* The supervisor's decisions in virtual time: seeded histories of crashes, kills, poisoned states,
 * bad data, broken engines, corrupt memory, full disks and people, driven through the table, the
 * ladder and the watchdog as supervisor.c drives them. P5: every history whose faults can be
 * survived at all ends with a finished run; P6: no false alarms.
 *
 * CKPTD_SIM_SEED=N runs the one history that failed, CKPTD_SIM_COUNT=N so many. */
#include "supervisor/fsm.h"
#include "supervisor/restart.h"
#include "supervisor/watchdog.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_DEFAULT 3000
#define RESTARTS_MAX 3000
#define HOPELESS 100 /* restarts without any sound state */
#define KEEP_LAST 6
#define LEFT_MAX 64
#define NEVER UINT64_MAX

/* splitmix64: enough to draw faults, and the same everywhere. */
static uint64_t draw(uint64_t *seed)
{
	uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint64_t below(uint64_t *seed, uint64_t bound)
{
	return draw(seed) % bound;
}

static bool one_in(uint64_t *seed, uint64_t n)
{
	return n > 0 && below(seed, n) == 0;
}

/* A state of training: at `step`, and from which step on something is wrong with it. */
struct point {
	uint64_t step;
	uint64_t poisoned_at; /* NEVER: sound */
};

struct world {
	uint64_t seed, first_seed;
	nsec_t now_ns;
	/* What may go wrong in this history. */
	uint64_t crash_one_in, kill_one_in, poison_one_in, corrupt_one_in, save_fails_one_in;
	uint64_t bad_data_step, bad_engine_step; /* dies there, always */
	uint64_t poison_lag;                     /* steps until a poisoned state dies */
	bool poison_wanders;                     /* at differing steps */
	uint64_t steps_total, interval;
	/* What there is. */
	struct point memory;
	bool has_memory;
	struct point line[KEEP_LAST + 1], left[LEFT_MAX];
	uint32_t line_count, left_count; /* line: greatest step first */
	bool ever_saved;
	bool skips_bad_data, safe_recorded; /* interventions on the line */
	/* The supervisor. */
	enum fsm_state state;
	struct ladder ladder;
	struct restart_decision decision;
	uint32_t restarts, forks, rung_before;
	bool trainer;
	struct point running;
	uint64_t begun_step, died_step;
	uint32_t fewest_in_climb; /* checkpoints there were at each counted death of it */
	bool left_in_climb;
};

static void check(struct world *world, bool good, const char *what)
{
	if (!good)
		fail_msg("%s (CKPTD_SIM_SEED=%" PRIu64
			 ", restart %u, state %s, rung %u, step %" PRIu64 ")",
			what, world->first_seed, world->restarts, fsm_state_name(world->state),
			world->ladder.rung, world->running.step);
}

static uint32_t feed(struct world *world, enum fsm_event event)
{
	struct fsm_step step = fsm_next(world->state, event);

	check(world, step.taken, fsm_event_name(event));
	world->state = step.next;
	check(world, !(step.actions & FSM_DO_SPAWN) || !world->trainer, "two trainers");
	return step.actions;
}

static void facts(struct world *world)
{
	struct fsm_facts now = {.trainer = world->trainer, .run = true};

	fsm_check(world->state, &now);
}

/* -- checkpoints -- */

static void save(struct world *world, struct point point)
{
	if (one_in(&world->seed, world->save_fails_one_in) || point.step == 0 ||
		(world->line_count > 0 && world->line[0].step >= point.step))
		return;
	memmove(world->line + 1, world->line, KEEP_LAST * sizeof(point));
	world->line[0] = point;
	if (world->line_count < KEEP_LAST)
		world->line_count++;
	world->ever_saved = true;
}

static void leave_newest(struct world *world, bool suspect)
{
	if (suspect && world->left_count < LEFT_MAX)
		world->left[world->left_count++] = world->line[0];
	memmove(world->line, world->line + 1, KEEP_LAST * sizeof(world->line[0]));
	world->line_count--;
}

static void fork_at(struct world *world, uint64_t step, bool suspect)
{
	while (world->line_count > 0 && world->line[0].step > step)
		leave_newest(world, suspect);
	check(world, world->line_count > 0 && world->line[0].step == step,
		"a fork names a checkpoint on the line");
	if (world->has_memory && world->memory.step > step)
		world->has_memory = false;
	world->forks++;
}

/* The newest of those the ladder left; the line below it stays. */
static void fork_left(struct world *world)
{
	uint32_t best = 0;

	check(world, world->left_count > 0, "there is one to return to");
	for (uint32_t i = 1; i < world->left_count; i++)
		if (world->left[i].step > world->left[best].step)
			best = i;
	struct point point = world->left[best];

	world->left[best] = world->left[--world->left_count];
	while (world->line_count > 0 && world->line[0].step >= point.step)
		leave_newest(world, false);
	memmove(world->line + 1, world->line, KEEP_LAST * sizeof(point));
	world->line[0] = point;
	if (world->line_count < KEEP_LAST)
		world->line_count++;
	world->has_memory = false;
	world->forks++;
}

/* -- one trainer's life -- */

static bool fatal_here(struct world *world)
{
	const struct point *at = &world->running;
	uint64_t wander = world->poison_wanders ? below(&world->seed, 4) : 0;

	if (at->step == world->bad_data_step && !world->skips_bad_data)
		return true;
	if (at->step == world->bad_engine_step && !world->ladder.safe_engine &&
		!world->safe_recorded)
		return true;
	return at->poisoned_at != NEVER && at->step >= at->poisoned_at + world->poison_lag + wander;
}

static void one_step(struct world *world)
{
	struct point *at = &world->running;

	at->step++;
	if (at->poisoned_at == NEVER && one_in(&world->seed, world->poison_one_in))
		at->poisoned_at = at->step;
	world->memory = *at;
	world->has_memory = true;
	world->now_ns += NSEC_PER_SEC;
	ladder_progress(&world->ladder, at->step, world->interval);
	if (at->step % world->interval == 0)
		save(world, *at);
}

/* Trains until something ends it. */
static enum death_kind train(struct world *world)
{
	for (;;) {
		if (fatal_here(world))
			return DEATH_OWN;
		if (one_in(&world->seed, world->crash_one_in))
			return DEATH_OWN;
		if (one_in(&world->seed, world->kill_one_in))
			return DEATH_OUTSIDE;
		if (one_in(&world->seed, world->corrupt_one_in))
			return DEATH_MEMORY_CORRUPT;
		if (world->running.step >= world->steps_total)
			return DEATH_KIND_COUNT; /* none: finished */
		one_step(world);
	}
}

static void spawn(struct world *world, bool from_memory)
{
	check(world, !world->trainer, "one trainer at a time");
	world->trainer = true;
	if (from_memory && world->has_memory) {
		world->running = world->memory;
	} else if (world->line_count > 0) {
		world->running = world->line[0];
	} else {
		check(world, !world->ever_saved, "never from scratch after a checkpoint");
		world->running = (struct point){.poisoned_at = NEVER};
	}
	world->begun_step = world->running.step;
	world->memory = world->running;
	world->has_memory = true;
}

/* -- decisions -- */

static void fill_supply(struct world *world, struct restart_supply *ret)
{
	*ret = (struct restart_supply){.memory = world->has_memory,
		.count = world->line_count,
		.left_behind = world->left_count > 0,
		.scratch = !world->ever_saved,
		.safe_already = false,
		.random = (uint32_t)draw(&world->seed)};
	for (uint32_t i = 0; i < world->line_count; i++)
		ret->steps[i] = world->line[i].step;
}

static void check_decision(
	struct world *world, const struct restart_supply *supply, enum death_kind kind)
{
	const struct restart_decision *decision = &world->decision;

	check(world, decision->delay_ns >= 0 && decision->delay_ns <= LADDER_DELAY_MAX_NS,
		"the wait is bounded");
	check(world, decision->from != RESTART_MEMORY || supply->memory, "memory is there");
	check(world, decision->from != RESTART_MEMORY || kind != DEATH_MEMORY_CORRUPT,
		"corrupt memory is not resumed");
	check(world, decision->from != RESTART_FORK_START || supply->scratch, "step 0 is allowed");
	check(world, decision->from != RESTART_FORK_LEFT || supply->left_behind,
		"one was left behind");
	if (decision->counted && decision->rung > 0 && world->rung_before < decision->rung &&
		kind == DEATH_OWN)
		for (uint32_t rung = world->rung_before + 1; rung < decision->rung; rung++)
			check(world, decision->not_applicable & (1u << rung),
				"a rung is only skipped when it cannot apply");
	if (!decision->counted)
		check(world, decision->rung == world->rung_before, "uncounted deaths do not climb");
}

static void apply_decision(struct world *world)
{
	const struct restart_decision *decision = &world->decision;

	if (decision->from == RESTART_FORK_OLDER)
		fork_at(world, decision->step, true);
	else if (decision->from == RESTART_FORK_NEWEST)
		fork_at(world, decision->step, false);
	else if (decision->from == RESTART_FORK_LEFT)
		fork_left(world);
	else if (decision->from == RESTART_FORK_START)
		world->has_memory = false;
	if (decision->safe_engine && restart_forks(decision->from))
		world->safe_recorded = true;
	if (decision->skip_window && world->died_step == world->bad_data_step)
		world->skips_bad_data = true;
}

static void die(struct world *world, enum death_kind kind)
{
	struct restart_supply supply;
	struct death death = {.kind = kind,
		.cause = kind == DEATH_OWN ? 11 : 9,
		.step = world->running.step,
		.stepped = world->running.step > world->begun_step};

	world->trainer = false;
	world->died_step = world->running.step;
	if (kind == DEATH_MEMORY_CORRUPT)
		world->has_memory = false;
	fill_supply(world, &supply);
	ladder_progress(&world->ladder, death.step, world->interval);
	world->rung_before = world->ladder.counted == 0 ? 0 : world->ladder.rung;
	if (world->ladder.counted == 0) {
		world->fewest_in_climb = supply.count;
		world->left_in_climb = false;
	}
	if (supply.count < world->fewest_in_climb)
		world->fewest_in_climb = supply.count;
	world->decision = ladder_decide(&world->ladder, &death, &supply);
	if (!world->decision.counted)
		world->rung_before = world->decision.rung;
	check_decision(world, &supply, kind);
	world->restarts++;
	world->now_ns += world->decision.delay_ns;
	feed(world, FSM_DIED);
	apply_decision(world);
	world->left_in_climb = world->left_in_climb || world->decision.from == RESTART_FORK_OLDER;
	if (world->ladder.counted >= 3 && world->fewest_in_climb >= 2)
		check(world, world->left_in_climb,
			"a newest checkpoint that keeps killing is left within three tries");
	facts(world);
}

/* People come between, for a while. */
static void maybe_a_person(struct world *world)
{
	if (world->restarts > 50 || !one_in(&world->seed, 12))
		return;
	switch (below(&world->seed, 3)) {
	case 0:
		feed(world, FSM_PAUSE);
		feed(world, FSM_SAVE_OVER);
		facts(world);
		feed(world, FSM_RESUME);
		break;
	case 1:
		feed(world, FSM_STOP);
		feed(world, FSM_SAVE_OVER);
		facts(world);
		feed(world, FSM_RESUME);
		break;
	default:
		if (world->line_count < 2)
			return;
		feed(world, FSM_ROLLBACK);
		fork_at(world, world->line[1].step, false);
		/* A person's branch carries nothing over. */
		if (world->line[0].step < world->bad_data_step)
			world->skips_bad_data = false;
		world->safe_recorded = false;
		ladder_init(&world->ladder);
		world->ladder.furthest_step = world->ladder.climb_step = world->line[0].step;
		feed(world, FSM_FORKED);
	}
	world->decision.from = world->has_memory ? RESTART_MEMORY : RESTART_NEWEST;
}

static void draw_world(struct world *world, uint64_t seed)
{
	*world = (struct world){.seed = seed, .first_seed = seed};
	world->interval = 10 + below(&world->seed, 60);
	world->steps_total = 200 + below(&world->seed, 400);
	world->bad_data_step = world->bad_engine_step = NEVER;
	if (one_in(&world->seed, 3))
		world->crash_one_in = 20 + below(&world->seed, 500);
	if (one_in(&world->seed, 3))
		world->kill_one_in = 10 + below(&world->seed, 300);
	if (one_in(&world->seed, 3))
		world->poison_one_in = 150 + below(&world->seed, 500);
	if (one_in(&world->seed, 5))
		world->corrupt_one_in = 200 + below(&world->seed, 500);
	if (one_in(&world->seed, 3))
		world->save_fails_one_in = 2 + below(&world->seed, 5);
	if (one_in(&world->seed, 4))
		world->bad_data_step = below(&world->seed, world->steps_total);
	if (one_in(&world->seed, 6))
		world->bad_engine_step = below(&world->seed, world->steps_total);
	world->poison_lag = below(&world->seed, 2 * world->interval);
	world->poison_wanders = one_in(&world->seed, 2);
	ladder_init(&world->ladder);
}

/* False when every state that is left carries the poison: then only a person can help. */
static bool can_be_survived(const struct world *world)
{
	bool sound = !world->ever_saved;

	for (uint32_t i = 0; i < world->line_count; i++)
		sound = sound || world->line[i].poisoned_at == NEVER;
	for (uint32_t i = 0; i < world->left_count; i++)
		sound = sound || world->left[i].poisoned_at == NEVER;
	return sound || (world->has_memory && world->memory.poisoned_at == NEVER);
}

/* One history; the virtual time it took. */
static nsec_t live(uint64_t seed, uint32_t *ret_restarts)
{
	static struct world world;
	uint32_t actions, hopeless = 0;

	draw_world(&world, seed);
	feed(&world, FSM_RUN_FOUND);
	facts(&world);
	feed(&world, FSM_PREPARED_RUN);
	world.decision.from = RESTART_NEWEST;
	for (;;) {
		maybe_a_person(&world);
		actions = feed(&world, FSM_START);
		check(&world, actions == FSM_DO_SPAWN, "a start spawns");
		spawn(&world, world.decision.from == RESTART_MEMORY);
		facts(&world);
		enum death_kind kind = train(&world);

		if (kind == DEATH_KIND_COUNT)
			break;
		die(&world, kind);
		hopeless = can_be_survived(&world) ? 0 : hopeless + 1;
		if (hopeless > HOPELESS) {
			/* It still tries, slowly. */
			check(&world,
				world.decision.delay_ns >= LADDER_DELAY_MAX_NS / 2 ||
					world.ladder.counted < 16,
				"a hopeless run is tried slowly");
			*ret_restarts = world.restarts;
			return world.now_ns;
		}
		check(&world, world.restarts < RESTARTS_MAX, "every history ends");
	}
	world.trainer = false;
	feed(&world, FSM_FINISHED_STEPS);
	feed(&world, FSM_SAVE_OVER);
	check(&world, world.state == FSM_FINISHED, "finished");
	*ret_restarts = world.restarts;
	return world.now_ns;
}

static uint64_t number_from(const char *name, uint64_t fallback)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : fallback;
}

static void p5_every_history_ends_finished(void **unused)
{
	uint64_t seed = number_from("CKPTD_SIM_SEED", 0), restarts = 0, most = 0;
	uint64_t count = number_from("CKPTD_SIM_COUNT", COUNT_DEFAULT);
	uint32_t here;

	if (seed > 0) {
		live(seed, &here);
		return;
	}
	for (seed = 1; seed <= count; seed++) {
		live(seed, &here);
		restarts += here;
		most = here > most ? here : most;
	}
	print_message("# %" PRIu64 " histories, %" PRIu64 " restarts, at most %" PRIu64 " in one\n",
		count, restarts, most);
	/* A simulator without faults would show nothing. */
	assert_true(restarts > count);
}

/* -- the watchdog -- */

#define TICK (100 * NSEC_PER_MSEC)
#define PRIOR (60 * NSEC_PER_SEC)
#define GAPS_KEPT 10000
#define STEPS_DEFAULT 20000

struct machine {
	uint64_t seed, first_seed;
	struct watchdog watchdog;
	nsec_t now_ns, moved_ns, ticked_ns, next_tick_ns;
	uint64_t moves, step;
	nsec_t gaps[GAPS_KEPT];
	uint32_t gap_count;
};

/* Standard normal, by Box and Muller. */
static double normal(uint64_t *seed)
{
	double u = ((double)(draw(seed) >> 11) + 0.5) * 0x1p-53;
	double v = ((double)(draw(seed) >> 11) + 0.5) * 0x1p-53;

	return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static bool tick(struct machine *machine)
{
	nsec_t elapsed_ns = machine->now_ns - machine->ticked_ns;

	machine->ticked_ns = machine->now_ns;
	machine->next_tick_ns = machine->now_ns + TICK + (nsec_t)below(&machine->seed, TICK / 10);
	if (one_in(&machine->seed, 40)) /* a busy machine */
		machine->next_tick_ns += (nsec_t)below(&machine->seed, TICK * 4);
	return watchdog_tick(
		&machine->watchdog, elapsed_ns, machine->moves, machine->step, WATCHDOG_STEP);
}

/* One gap and the move at its end, with all ticks on the way. Now and then the machine sleeps, and
 * the trainer with it. */
static void gap(struct machine *machine, nsec_t gap_ns)
{
	nsec_t move_ns = machine->now_ns + gap_ns;

	while (machine->next_tick_ns < move_ns) {
		nsec_t asleep_ns = 0;

		if (one_in(&machine->seed, 5000))
			asleep_ns = (nsec_t)below(&machine->seed, 7200) * NSEC_PER_SEC;
		machine->now_ns = machine->next_tick_ns + asleep_ns;
		move_ns += asleep_ns;
		if (tick(machine))
			fail_msg("false alarm, CKPTD_SIM_SEED=%" PRIu64 " step %" PRIu64,
				machine->first_seed, machine->step);
	}
	machine->now_ns = machine->moved_ns = move_ns;
	machine->moves++;
	machine->step++;
	machine->gaps[machine->gap_count++ % GAPS_KEPT] = gap_ns;
}

static int compare_gaps(const void *a, const void *b)
{
	nsec_t x = *(const nsec_t *)a, y = *(const nsec_t *)b;

	return (x > y) - (x < y);
}

/* Lognormal gaps with sigma up to 0.5; then it stops, and that is seen in time. */
static void one_machine(uint64_t seed, uint64_t steps)
{
	static struct machine machine;

	machine = (struct machine){.seed = seed, .first_seed = seed};
	double median_ns = exp(
		log(2e6) + (log(4e9) - log(2e6)) * (double)below(&machine.seed, 1000) / 1000);
	double sigma = 0.5 * (double)below(&machine.seed, 1001) / 1000;

	watchdog_init(&machine.watchdog, TICK, PRIOR);
	watchdog_begin(&machine.watchdog, 0, 0);
	for (uint64_t i = 0; i < steps; i++)
		gap(&machine, (nsec_t)(median_ns * exp(sigma * normal(&machine.seed))));
	uint32_t count = machine.gap_count < GAPS_KEPT ? machine.gap_count : GAPS_KEPT;

	qsort(machine.gaps, count, sizeof(machine.gaps[0]), compare_gaps);
	nsec_t allowed_ns = 4 * machine.gaps[count - 1 - count / 1000];

	if (allowed_ns < NSEC_PER_SEC)
		allowed_ns = NSEC_PER_SEC;
	machine.ticked_ns = machine.now_ns;
	do {
		machine.now_ns = machine.ticked_ns + TICK; /* on time: lateness is not measured */
	} while (!tick(&machine));
	nsec_t rare_ns = machine.watchdog.gap_max_ns * 3 / 2 + 2 * TICK;

	if (machine.now_ns - machine.moved_ns > allowed_ns + TICK &&
		machine.now_ns - machine.moved_ns > rare_ns)
		fail_msg("a hang was found after %.2f s, allowed are %.2f s, "
			 "CKPTD_SIM_SEED=%" PRIu64,
			(double)(machine.now_ns - machine.moved_ns) / 1e9, (double)allowed_ns / 1e9,
			seed);
}

/* CKPTD_FULL: over a million steps. */
static void p6_no_false_alarm_and_no_miss(void **unused)
{
	uint64_t seed = number_from("CKPTD_SIM_SEED", 0);
	uint64_t machines = getenv("CKPTD_FULL") ? 600 : 60;

	if (seed > 0) {
		one_machine(seed, STEPS_DEFAULT);
		return;
	}
	for (seed = 1; seed <= machines; seed++)
		one_machine(seed, STEPS_DEFAULT);
	print_message("# %" PRIu64 " steps on %" PRIu64 " machines\n", machines * STEPS_DEFAULT,
		machines);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p5_every_history_ends_finished),
		cmocka_unit_test(p6_no_false_alarm_and_no_miss),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
