/* The decisions of restart.h. It must never do I/O. Invariants: a decision always exists and always
 * names something the supply has (or the newest, for the trainer to look); no delay is over
 * LADDER_DELAY_MAX_NS; a rung is only climbed by counted deaths; without progress there is an end
 * of new branches. */
#include "supervisor/restart.h"

#include "base/digest.h"
#include "base/panic.h"

#include <stddef.h>
#include <string.h>

#define STORAGE_DELAY_NS (5 * NSEC_PER_SEC)
#define STORAGE_DELAY_MAX_NS (300 * NSEC_PER_SEC)
#define TRANSIENT_DELAY_NS (15 * NSEC_PER_SEC)
#define WINDOWS_MAX 1024

void ladder_init(struct ladder *ladder)
{
	*ladder = (struct ladder){.version = LADDER_VERSION};
}

void ladder_progress(struct ladder *ladder, uint64_t step, uint64_t interval_steps)
{
	CHECK(ladder->version == LADDER_VERSION);
	CHECK(interval_steps > 0);
	if (step <= ladder->furthest_step)
		return;
	ladder->furthest_step = step;
	ladder->counted = 0;
	ladder->free_in_row = 0;
	ladder->fruitless = 0;
	ladder->older_taken = ladder->all_tried = ladder->rounds = 0;
	ladder->left_step = 0;
	if (step - ladder->climb_step < interval_steps)
		return;
	ladder_init(ladder);
	ladder->furthest_step = step;
	ladder->climb_step = step;
}

nsec_t backoff_ns(nsec_t base_ns, nsec_t max_ns, uint32_t count, uint32_t random)
{
	nsec_t delay_ns = base_ns;

	CHECK(base_ns > 0 && max_ns >= base_ns);
	for (uint32_t i = 0; i < count && delay_ns < max_ns; i++)
		delay_ns *= 2;
	if (delay_ns > max_ns)
		delay_ns = max_ns;
	delay_ns -= (nsec_t)((double)(delay_ns / 4) * (random / 4294967296.0));
	CHECK(delay_ns > 0 && delay_ns <= max_ns);
	return delay_ns;
}

/* No wait for the first restart after progress, then doubling. Deaths that each got on by a step
 * wait too, but not so long that the wait is all there is. */
static nsec_t restart_delay_ns(const struct ladder *ladder, uint32_t random)
{
	uint32_t tries = ladder->fruitless > ladder->counted ? ladder->fruitless : ladder->counted;

	if (tries > 1)
		return backoff_ns(LADDER_DELAY_FIRST_NS, LADDER_DELAY_MAX_NS, tries - 2, random);
	if (ladder->since_reset > LADDER_QUICK_RESTARTS)
		return backoff_ns(LADDER_DELAY_FIRST_NS, LADDER_DELAY_MOVING_MAX_NS,
			ladder->since_reset - LADDER_QUICK_RESTARTS - 1, random);
	return 0;
}

/* The number at which the doubling reaches its end. */
static bool longest_wait(const struct ladder *ladder)
{
	return ladder->counted >= 2 &&
		(LADDER_DELAY_FIRST_NS << (ladder->counted < 34 ? ladder->counted - 2 : 32)) >=
		LADDER_DELAY_MAX_NS;
}

static bool is_evidence(const struct fatal *fatal, const struct death *death)
{
	return fatal->count > 0 && fatal->cause == death->cause &&
		(fatal->step == death->step ||
			(fatal->images > 0 && fatal->images == death->images));
}

/* Counts how often this step was fatal for this cause, this time included. Other deaths may come
 * between; when there is no room, the weakest evidence gives way. */
static struct fatal *note_evidence(struct ladder *ladder, const struct death *death)
{
	struct fatal *weakest = &ladder->fatal[0];

	for (uint32_t i = 0; i < LADDER_FATAL_MAX; i++) {
		struct fatal *fatal = &ladder->fatal[i];

		if (is_evidence(fatal, death)) {
			fatal->count += fatal->count < UINT32_MAX;
			fatal->step = death->step;
			return fatal;
		}
		if (fatal->count < weakest->count)
			weakest = fatal;
	}
	*weakest = (struct fatal){
		.step = death->step, .images = death->images, .cause = death->cause, .count = 1};
	return weakest;
}

/* From the third death of the same kind on: 1 times the data of the fatal step, from the sixth on
 * twice as much, ... Bad data may lie side by side, and a branch that was to skip them may not have
 * been made. 0 for less evidence. */
static uint32_t windows(uint32_t same)
{
	uint32_t count = 0;

	for (uint32_t deaths = 3; deaths <= same && count < WINDOWS_MAX; deaths *= 2)
		count = count > 0 ? 2 * count : 1;
	return count;
}

/* The rung this death asks for, before it is asked whether it can apply. *ret_hold: stay on the
 * rung without a new branch. */
static uint32_t wanted_rung(
	const struct ladder *ladder, const struct death *death, bool evidence, bool *ret_hold)
{
	uint32_t rung = ladder->counted <= 1 ? 0 : ladder->rung + 1;

	*ret_hold = false;
	if (rung > LADDER_RUNG_MAX)
		rung = LADDER_RUNG_MAX;
	if (death->kind == DEATH_MEMORY_CORRUPT && rung < 1)
		rung = 1;
	if (death->kind == DEATH_NONFINITE && rung < 3)
		rung = 3;
	if (rung >= 3 && !evidence) {
		rung = ladder->rung > 2 ? ladder->rung : 2;
		*ret_hold = rung > 2 || ladder->rung == 2;
	}
	return rung;
}

/* Whether the rung can do anything that the one below did not. */
static bool rung_applies(
	uint32_t rung, const struct death *death, const struct restart_supply *supply)
{
	switch (rung) {
	case 0:
		return supply->memory && death->kind != DEATH_MEMORY_CORRUPT;
	case 1:
		return supply->count > 0 || supply->unread || supply->scratch;
	case 2:
		return supply->count > 0;
	case 3:
		return supply->count > 0 || supply->scratch;
	case 4:
		return !supply->safe_already;
	default:
		return true;
	}
}

/* The newest verified one before the newest; once something was left behind, before the one that
 * was taken then, or the replayed checkpoints would be taken for older ones. */
static bool find_older(
	const struct ladder *ladder, const struct restart_supply *supply, uint64_t *ret_step)
{
	CHECK(supply->count <= RESTART_STEPS_MAX);
	for (uint32_t i = 1; i < supply->count; i++) {
		CHECK(supply->steps[i] < supply->steps[i - 1]);
		if (ladder->older_taken && supply->steps[i] >= ladder->fork_step)
			continue;
		*ret_step = supply->steps[i];
		return true;
	}
	return false;
}

static void choose_newest_fork(
	const struct restart_supply *supply, struct restart_decision *decision)
{
	decision->from = RESTART_NEWEST;
	if (supply->count > 0) {
		decision->from = RESTART_FORK_NEWEST;
		decision->step = supply->steps[0];
	} else if (supply->scratch) {
		decision->from = RESTART_FORK_START;
	}
}

/* Through the older ones to the newest again, on a new branch each time; then it stays on the last.
 * more_data: more than any branch skips yet, so that all of them are worth another try. */
static void choose_round(struct ladder *ladder, const struct restart_supply *supply, bool more_data,
	struct restart_decision *decision)
{
	if (ladder->all_tried && more_data && ladder->rounds < LADDER_ROUNDS_MAX) {
		ladder->rounds++;
		ladder->all_tried = ladder->older_taken = 0;
	}
	if (ladder->all_tried) {
		decision->from = RESTART_NEWEST;
	} else if (find_older(ladder, supply, &decision->step)) {
		decision->from = RESTART_FORK_OLDER;
	} else {
		decision->from = RESTART_NEWEST;
		if (supply->left_behind)
			decision->from = RESTART_FORK_LEFT;
		else if (more_data)
			choose_newest_fork(supply, decision);
		ladder->all_tried = 1;
	}
}

/* Where a rung starts from, given what there is. */
static void choose_source(struct ladder *ladder, const struct restart_supply *supply,
	bool more_data, struct restart_decision *decision)
{
	bool older;

	switch (decision->rung) {
	case 0:
		decision->from = RESTART_MEMORY;
		return;
	case 1:
		decision->from = RESTART_NEWEST;
		return;
	case 2:
		older = find_older(ladder, supply, &decision->step);
		decision->from = older ? RESTART_FORK_OLDER : RESTART_NEWEST;
		return;
	case 3:
	case 4:
		older = find_older(ladder, supply, &decision->step);
		if (older && !ladder->older_taken)
			decision->from = RESTART_FORK_OLDER;
		else
			choose_newest_fork(supply, decision);
		return;
	default:
		choose_round(ladder, supply, more_data, decision);
	}
}

/* Deaths at differing steps blame no state and no data. A trainer that got on a little goes on from
 * where it was; else the newest checkpoint again, and when waiting longer is no use, an older one.
 */
static void choose_held_source(const struct ladder *ladder, const struct death *death,
	const struct restart_supply *supply, struct restart_decision *decision)
{
	decision->from = RESTART_NEWEST;
	if (death->stepped && rung_applies(0, death, supply))
		decision->from = RESTART_MEMORY;
	else if (longest_wait(ladder) && find_older(ladder, supply, &decision->step))
		decision->from = RESTART_FORK_OLDER;
}

/* Nothing on disk and step 0 not allowed: then the memory is all there is. */
static enum restart_from last_resort(
	enum restart_from from, const struct death *death, const struct restart_supply *supply)
{
	if (from == RESTART_NEWEST && supply->count == 0 && !supply->unread && !supply->scratch &&
		supply->memory && death->kind != DEATH_MEMORY_CORRUPT)
		return RESTART_MEMORY;
	return from;
}

static void decide_counted(struct ladder *ladder, const struct death *death,
	const struct restart_supply *supply, struct restart_decision *decision)
{
	bool hold;

	ladder->counted++;
	if (ladder->since_reset++ == 0)
		ladder->climb_step = ladder->furthest_step;
	ladder->free_in_row = 0;
	struct fatal *fatal = note_evidence(ladder, death);
	uint32_t due = windows(fatal->count);
	bool evidence = fatal->count >= 3 || death->kind == DEATH_NONFINITE;
	uint32_t rung = wanted_rung(ladder, death, evidence, &hold);

	while (rung < LADDER_RUNG_MAX && !rung_applies(rung, death, supply)) {
		/* From here on a rung would be taken without its evidence: stay instead. */
		if (rung == 2 && !evidence)
			break;
		decision->not_applicable |= 1u << rung;
		rung++;
	}
	decision->rung = rung;
	if (hold)
		choose_held_source(ladder, death, supply, decision);
	else
		choose_source(ladder, supply, due > fatal->skipped, decision);
	decision->from = last_resort(decision->from, death, supply);
	if (rung >= 3 && !hold && restart_forks(decision->from))
		decision->skip_window = fatal->skipped = due > 0 ? due : 1;
	decision->withdrawn = ladder->older_taken && rung >= 3 && !hold && ladder->rung == 2;
	if (decision->from == RESTART_FORK_OLDER) {
		ladder->older_taken = 1;
		ladder->fork_step = decision->step;
	} else if (decision->from == RESTART_FORK_LEFT) {
		ladder->older_taken = 0;
	}
	if (rung >= 4)
		ladder->safe_engine = 1;
	ladder->rung = rung;
}

/* Every checkpoint on the line is known to be bad: better one under suspicion than none. */
static bool only_left_behind(
	const struct ladder *ladder, const struct death *death, const struct restart_supply *supply)
{
	return death->kind == DEATH_TRANSIENT && ladder->rounds < LADDER_ROUNDS_MAX &&
		supply->left_behind && !supply->memory && supply->count == 0 && !supply->unread &&
		!supply->scratch;
}

struct restart_decision ladder_decide(
	struct ladder *ladder, const struct death *death, const struct restart_supply *supply)
{
	struct restart_decision decision = {.rung = ladder->rung};
	bool waits = death->kind == DEATH_STORAGE || death->kind == DEATH_TRANSIENT;
	bool counted = !waits && death->kind != DEATH_OUTSIDE;

	CHECK(ladder->version == LADDER_VERSION && ladder->rung <= LADDER_RUNG_MAX);
	CHECK((unsigned)death->kind < DEATH_KIND_COUNT);
	ladder->fruitless = death->stepped ? 1 : ladder->fruitless + 1;
	if (death->kind == DEATH_OUTSIDE) {
		ladder->free_in_row = death->stepped ? 0 : ladder->free_in_row + 1;
		counted = ladder->free_in_row >= LADDER_FREE_LIMIT;
	}
	if (counted) {
		decide_counted(ladder, death, supply, &decision);
	} else if (only_left_behind(ladder, death, supply)) {
		decision.from = RESTART_FORK_LEFT;
		ladder->older_taken = 0;
		ladder->rounds++;
	} else {
		decision.from = supply->memory ? RESTART_MEMORY : RESTART_NEWEST;
	}
	decision.counted = counted;
	decision.safe_engine = ladder->safe_engine;
	if (death->kind == DEATH_STORAGE)
		decision.delay_ns = backoff_ns(STORAGE_DELAY_NS, STORAGE_DELAY_MAX_NS,
			ladder->fruitless - 1, supply->random);
	else if (death->kind == DEATH_TRANSIENT)
		decision.delay_ns = backoff_ns(TRANSIENT_DELAY_NS, LADDER_DELAY_MAX_NS,
			ladder->fruitless - 1, supply->random);
	else
		decision.delay_ns = restart_delay_ns(ladder, supply->random);
	CHECK(decision.rung <= LADDER_RUNG_MAX);
	CHECK(decision.delay_ns >= 0 && decision.delay_ns <= LADDER_DELAY_MAX_NS);
	CHECK(decision.from != RESTART_FORK_OLDER || supply->count >= 2);
	return decision;
}

static uint64_t ladder_sum(const struct ladder *ladder)
{
	struct digest digest = digest_of(ladder, offsetof(struct ladder, check));
	uint64_t sum;

	memcpy(&sum, digest.bytes, sizeof(sum));
	return sum;
}

void ladder_seal(struct ladder *ladder)
{
	CHECK(ladder->version == LADDER_VERSION);
	ladder->check = ladder_sum(ladder);
}

bool ladder_valid(const struct ladder *ladder)
{
	return ladder->version == LADDER_VERSION && ladder->check == ladder_sum(ladder) &&
		ladder->rung <= LADDER_RUNG_MAX && ladder->climb_step <= ladder->furthest_step;
}

bool restart_forks(enum restart_from from)
{
	return from != RESTART_MEMORY && from != RESTART_NEWEST;
}

const char *restart_from_text(enum restart_from from)
{
	switch (from) {
	case RESTART_MEMORY:
		return "from memory";
	case RESTART_NEWEST:
		return "from the newest verified checkpoint";
	case RESTART_FORK_NEWEST:
		return "from the newest verified checkpoint, on a new branch";
	case RESTART_FORK_OLDER:
		return "from the verified checkpoint before the newest, on a new branch";
	case RESTART_FORK_LEFT:
		return "from a checkpoint left behind, on a new branch";
	case RESTART_FORK_START:
		return "from step 0, on a new branch";
	}
	return "from nowhere";
}
