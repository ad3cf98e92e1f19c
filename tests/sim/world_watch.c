/* What must hold in world.h, after every event and at each decision. */
#include "tests/sim/world.h"

#include "base/panic.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SILENCE_NS (LADDER_DELAY_MAX_NS + 300 * NSEC_PER_SEC) /* of something that is tried */
#define FOUND_LATE_NS (3 * NSEC_PER_SEC)
#define STALL_NS (2 * NSEC_PER_SEC) /* within one step, that is not to be broken */
#define GROWN_NS (12 * NSEC_PER_SEC)
#define RESTING_NS (2 * NSEC_PER_SEC)
#define SLACK_NS (4 * NSEC_PER_SEC)
#define BEHIND_NS (4000 * NSEC_PER_SEC) /* the last hang of a mirror, and a retry */
#define HOPELESS 60                     /* deaths without any sound state */

struct fsm_step __wrap_fsm_next(enum fsm_state state, enum fsm_event event);
struct fsm_step __real_fsm_next(enum fsm_state state, enum fsm_event event);
struct restart_decision __wrap_ladder_decide(
	struct ladder *ladder, const struct death *death, const struct restart_supply *supply);
struct restart_decision __real_ladder_decide(
	struct ladder *ladder, const struct death *death, const struct restart_supply *supply);

/* -- the table -- */

struct fsm_step __wrap_fsm_next(enum fsm_state state, enum fsm_event event)
{
	struct fsm_step step = __real_fsm_next(state, event);

	world.counts->table[state][event] += step.taken;
	return step;
}

/* -- the ladder -- */

static void check_rungs(const struct death *death, const struct restart_decision *decision)
{
	bool waits = death->kind == DEATH_STORAGE || death->kind == DEATH_TRANSIENT;
	bool jumps = death->kind == DEATH_NONFINITE || death->kind == DEATH_MEMORY_CORRUPT;

	MUST(!decision->counted || !waits, "a disk that fails climbs the ladder");
	if (!decision->counted) {
		MUST(decision->rung == world.rung_before, "a death that does not count climbs");
		return;
	}
	for (uint32_t rung = world.rung_before + 1; rung < decision->rung && !jumps; rung++)
		MUST(decision->not_applicable & (1u << rung), "rung %u is skipped: from %u to %u",
			rung, world.rung_before, decision->rung);
}

/* A new supervisor goes on in the climb where the old one was. */
static void check_climb(const struct ladder *ladder)
{
	if (!world.climb.known || ladder->furthest_step > world.climb.furthest_step)
		return;
	MUST(ladder->rung == world.climb.rung && ladder->counted == world.climb.counted,
		"a climb is forgotten: %u deaths on rung %u are now %u on rung %u",
		world.climb.counted, world.climb.rung, ladder->counted, ladder->rung);
}

void watch_climb_lost(void)
{
	world.climb.known = false;
	world.data_deaths = 0;
	world.round = (struct round){0};
}

static void note_climb(const struct ladder *ladder)
{
	world.climb.known = true;
	world.climb.rung = ladder->rung;
	world.climb.counted = ladder->counted;
	world.climb.furthest_step = ladder->furthest_step;
}

/* So many steps were blamed in this climb; beyond the last one it holds the last one's place. */
static uint32_t blamed_steps(uint64_t step)
{
	struct round *round = &world.round;

	for (uint32_t i = 0; i < round->blamed_count; i++)
		if (round->blamed[i] == step)
			return round->blamed_count;
	if (round->blamed_count < LADDER_FATAL_MAX)
		round->blamed_count++;
	round->blamed[round->blamed_count - 1] = step;
	return round->blamed_count;
}

/* Without progress a branch begins for a checkpoint not tried yet, or to skip more data: for each
 * step that is blamed through all that there are, and no more. */
static void check_branches(const struct death *death, const struct restart_supply *supply,
	const struct restart_decision *decision)
{
	struct round *round = &world.round;

	if (decision->skip_window == 0)
		return;
	uint32_t blamed = blamed_steps(death->step);

	if (decision->skip_window != round->window) {
		round->forks = 0;
		round->most = 0;
	}
	if (supply->count > round->most)
		round->most = supply->count;
	round->window = decision->skip_window;
	round->forks++;
	MUST(decision->rung < LADDER_RUNG_MAX || round->forks <= (round->most + 4) * blamed,
		"%u branches that skip no more than the first of them, with %u checkpoints",
		round->forks, round->most);
}

/* Twice as much each time: what kills is behind in a few tries for each image of it. */
static void check_data(const struct death *death, const struct restart_decision *decision)
{
	uint64_t batches = world.bad_image_count / (BATCH_SIZE / 2) + 2;

	if (!world.died_of_data || death->kind != DEATH_OWN)
		return;
	world.data_deaths++;
	MUST(world.data_deaths <= 12 * batches + 100, "bad data killed %u times, on rung %u",
		world.data_deaths, decision->rung);
}

static void check_source(const struct death *death, const struct restart_supply *supply,
	const struct restart_decision *decision)
{
	bool corrupt = death->kind == DEATH_MEMORY_CORRUPT;

	MUST(decision->delay_ns >= 0 && decision->delay_ns <= LADDER_DELAY_MAX_NS,
		"a wait of %" PRId64 " ns", decision->delay_ns);
	MUST(death->kind != DEATH_STORAGE || decision->delay_ns > NSEC_PER_SEC,
		"a disk that fails is tried again after %" PRId64 " ns", decision->delay_ns);
	MUST(decision->from != RESTART_MEMORY || (supply->memory && !corrupt),
		"from a memory that is not to be used");
	MUST(decision->from != RESTART_FORK_START || supply->scratch, "step 0 is not allowed");
	MUST(decision->from != RESTART_FORK_LEFT || supply->left_behind, "nothing was left");
	MUST(decision->counted || !supply->memory || decision->from == RESTART_MEMORY,
		"a death that does not count leaves the memory");
	MUST(corrupt || supply->memory || !memory_on_line() ||
			(world.sup->newest.known &&
				world.memory.record.step < world.sup->newest.step),
		"a state in memory is not seen");
}

/* A newest checkpoint that keeps killing is left within three tries. */
static void check_poison(const struct ladder *ladder, const struct restart_supply *supply,
	const struct restart_decision *decision)
{
	if (supply->count < world.fewest_in_climb)
		world.fewest_in_climb = supply->count;
	world.left_in_climb = world.left_in_climb || decision->from == RESTART_FORK_OLDER;
	MUST(ladder->counted < 3 || world.fewest_in_climb < 2 || world.left_in_climb,
		"the newest checkpoint is not left after %u deaths", ladder->counted);
}

/* By the ladder, and on the way of this line: what was before a restart from scratch is no help. */
static bool is_left_behind(const struct file *file)
{
	return line_is_suspect(&world.line, file->branch, file->step) &&
		line_beginning(&world.line, file->branch) ==
		line_beginning(&world.line, world.line.current);
}

/* Without a sound state only a person can help. */
static bool can_be_survived(void)
{
	struct state_record *record = &world.memory.record;
	bool any = false;

	for (uint32_t i = 0; i < FILES_MAX; i++) {
		const struct file *file = &world.files[i];
		bool there = file->used && (line_holds(file) || is_left_behind(file));
		/* One without a row waits for whoever reads it: a scrub. */
		bool reached = there && (file->row == CHECKPOINT_VERIFIED || world.scrubs);

		any = any || there;
		if (reached && !file->rotten && file->truth.poisoned_at == STEP_NEVER)
			return true;
	}
	return (!any && !world.ever_verified) ||
		(memory_on_line() && truth_of(record)->poisoned_at == STEP_NEVER);
}

static void count_decision(const struct death *death, const struct restart_decision *decision)
{
	struct counts *counts = world.counts;

	counts->kinds[death->kind]++;
	counts->rungs[decision->rung]++;
	counts->froms[decision->from]++;
	counts->withdrawn += decision->withdrawn;
	counts->passed_over += decision->not_applicable != 0;
	world.restarts++;
	world.hopeless = can_be_survived() ? 0 : world.hopeless + 1;
	if (world.hopeless > HOPELESS && decision->counted)
		MUST(decision->delay_ns >= LADDER_DELAY_MAX_NS / 2 ||
				world.sup->ladder.counted < 16,
			"a hopeless run is not tried slowly");
}

struct restart_decision __wrap_ladder_decide(
	struct ladder *ladder, const struct death *death, const struct restart_supply *supply)
{
	struct restart_decision decision;

	check_climb(ladder);
	world.rung_before = ladder->rung;
	if (ladder->counted == 0) {
		world.data_deaths = 0;
		world.round = (struct round){0};
		world.fewest_in_climb = supply->count;
		world.left_in_climb = false;
	}
	bool first = ladder->counted == 0;

	decision = __real_ladder_decide(ladder, death, supply);
	if (first && decision.counted)
		world.rung_before = 0;
	check_rungs(death, &decision);
	check_source(death, supply, &decision);
	check_poison(ladder, supply, &decision);
	check_branches(death, supply, &decision);
	check_data(death, &decision);
	note_climb(ladder);
	count_decision(death, &decision);
	world.forks_allowed += restart_forks(decision.from);
	world.leave_memory = world.leave_memory || decision.from != RESTART_MEMORY;
	return decision;
}

/* -- a start -- */

void check_start(const struct worker *worker)
{
	uint64_t step = worker->record.step;

	MUST(step >= worker->floor_step || world.rotted,
		"a start at step %" PRIu64 ", with step %" PRIu64 " verified on the line", step,
		worker->floor_step);
	/* What had overtaken the memory may be rotten. */
	MUST(world.leave_memory || world.memory.flipped || !memory_on_line() ||
			(worker->overtaken && world.rotted) || step >= world.memory.record.step,
		"a start at step %" PRIu64 ", with step %" PRIu64 " in memory", step,
		world.memory.record.step);
	MUST(world.sup->run.wanted == WANTED_RUN || world.sup->state != FSM_TRAINING,
		"a trainer for a run that is not to run");
}

/* -- after every event -- */

static void check_processes(void)
{
	const struct worker *trainer = find_worker(ROLE_TRAIN);
	uint32_t trainers = 0;

	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		trainers += world.workers[i].alive && world.workers[i].role == ROLE_TRAIN;
	MUST(trainers <= 1, "%u trainers", trainers);
	MUST(!world.memory.pinned || world.sup->saver.in_flight || !world.memory.mapped,
		"a pin without a saver");
	if (!trainer || trainer->stage != STAGE_HUNG)
		return;
	nsec_t allowed_ns = watchdog_deadline_ns(&world.sup->watchdog),
	       prior_ns = world.sup->config.hang_timeout * NSEC_PER_SEC;

	allowed_ns = (allowed_ns > prior_ns ? allowed_ns : prior_ns) * 3 / 2;
	MUST(virtual_now_ns - trainer->hung_since_ns <
			allowed_ns + FOUND_LATE_NS + CHILD_ABORT_GRACE_MS * NSEC_PER_MSEC,
		"a hang is not found within %" PRId64 " ms", allowed_ns / NSEC_PER_MSEC);
}

/* A trainer that leaks is replaced between two steps. */
static void check_growth(void)
{
	struct worker *trainer = find_worker(ROLE_TRAIN);
	uint64_t limit = (uint64_t)world.sup->config.memory_growth << 20;

	if (!trainer || world.sup->state != FSM_TRAINING || trainer->stage == STAGE_HUNG ||
		trainer->private_bytes <= TRAINER_BYTES + 2 * limit ||
		trainer->steps <= 2 * GROWTH_SETTLE_STEPS ||
		trainer->next_ns - virtual_now_ns > STALL_NS) {
		world.grown_since_ns = virtual_now_ns;
		return;
	}
	MUST(virtual_now_ns - world.grown_since_ns < GROWN_NS, "a trainer leaks, and stays");
}

static bool rests(enum fsm_state state)
{
	return state == FSM_PAUSED || state == FSM_STOPPED || state == FSM_FINISHED ||
		state == FSM_ENDED;
}

/* Something is tried, or somebody does not want it. */
static void check_going_on(void)
{
	const struct supervisor *sup = world.sup;

	if (rests(sup->state))
		world.tried_ns = virtual_now_ns;
	MUST(virtual_now_ns - world.tried_ns < SILENCE_NS, "nothing is tried any more");
	if ((sup->state != FSM_PAUSED && sup->state != FSM_STOPPED) ||
		sup->run.wanted != WANTED_RUN)
		world.resting_since_ns = virtual_now_ns;
	MUST(virtual_now_ns - world.resting_since_ns < RESTING_NS, "%s, and the run is wanted",
		fsm_state_name(sup->state));
}

static void check_newest(void)
{
	const struct newest *newest = &world.sup->newest;
	const struct file *file;

	if (!newest->known || newest->step == world.newest_before)
		return;
	world.newest_before = newest->step;
	file = find_file(newest->step, newest->branch);
	MUST(file, "the newest that is shown is not there: step %" PRIu64, newest->step);
}

static void check_finished(void)
{
	uint64_t last = (uint64_t)world.sup->config.steps_total;
	bool saved = world.rotted;

	if (world.sup->state != FSM_FINISHED || world.state_before == FSM_FINISHED)
		return;
	world.counts->finished++;
	for (uint32_t i = 0; i < FILES_MAX; i++)
		saved = saved ||
			(world.files[i].used && line_holds(&world.files[i]) &&
				world.files[i].step >= last);
	MUST(saved, "finished, and the last state is not saved");
}

static void check_stop(void)
{
	if (world.sup->state == FSM_EXITING && world.term_ns == 0) {
		world.term_ns = virtual_now_ns;
		world.term_allowed_ns = 0;
		for (uint32_t i = 0; i < WORKERS_MAX; i++) {
			const struct worker *worker = &world.workers[i];

			if (worker->role == ROLE_MIRROR)
				continue;
			if (worker->alive && worker->next_ns != VIRTUAL_NEVER)
				world.term_allowed_ns += worker->next_ns - virtual_now_ns;
			else if (worker->alive && worker->role == ROLE_SAVE)
				world.term_allowed_ns += 125 * NSEC_PER_SEC;
		}
	}
	if (world.term_ns == 0 || world.sup->state != FSM_EXITING)
		return;
	nsec_t allowed_ns = world.sup->config.stop_timeout * NSEC_PER_SEC + world.term_allowed_ns;

	MUST(virtual_now_ns - world.term_ns < allowed_ns * 11 / 10 + SLACK_NS,
		"it does not end within %" PRId64 " s", allowed_ns / NSEC_PER_SEC);
}

bool mirror_is_good(void)
{
	const struct file *newest = NULL;

	for (uint32_t i = 0; i < FILES_MAX; i++) {
		const struct file *file = &world.files[i];

		if (file->used && file->told && file->row == CHECKPOINT_VERIFIED &&
			line_holds(file) && (!newest || file->step > newest->step))
			newest = file;
	}
	/* What rots unseen on the disk cannot be brought any more. */
	return !world.has_mirror || !newest || newest->mirrored || newest->rotten;
}

/* Whatever the mirror did, it has the newest in the end, as soon as there is quiet. */
static void check_mirror(void)
{
	if (!world.has_mirror || !calm() || !sup_is_quiet(world.sup) ||
		virtual_now_ns < world.no_mirror_until_ns || mirror_is_good())
		world.behind_since_ns = virtual_now_ns;
	MUST(virtual_now_ns - world.behind_since_ns < BEHIND_NS, "the mirror stays behind");
}

void watch_event(void)
{
	struct supervisor *sup = world.sup;

	world.counts->events++;
	check_processes();
	check_growth();
	check_going_on();
	check_newest();
	check_finished();
	check_stop();
	check_mirror();
	people_check();
	if (sup->state == FSM_RENEWING && world.state_before != FSM_RENEWING)
		world.counts->renewals++;
	world.state_before = sup->state;
}

void watch_sleep(nsec_t asleep_ns)
{
	world.tried_ns += asleep_ns;
	world.resting_since_ns += asleep_ns;
	world.ended_ns += asleep_ns;
	world.grown_since_ns += asleep_ns;
	world.behind_since_ns += asleep_ns;
	if (world.term_ns > 0)
		world.term_ns += asleep_ns;
}
