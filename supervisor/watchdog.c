/* The deadline of watchdog.h. It must never read a clock. Invariants: own time never runs faster
 * than real time; one late tick adds nothing; the deadline stays within floor (or prior) and
 * ceiling. */
#include "supervisor/watchdog.h"

#include "base/panic.h"

#define BUCKET_FIRST_NS (64 * NSEC_PER_MSEC)
#define BUCKETS_PER_DOUBLING 16
/* A bucket's upper edge is up to a sixteenth too high. */
#define PERCENTILE_FACTOR(ns) ((ns)*15 / 4)

void watchdog_init(struct watchdog *watchdog, nsec_t tick_ns, nsec_t prior_ns)
{
	CHECK(tick_ns > 0);
	CHECK(prior_ns > 0);
	*watchdog = (struct watchdog){.tick_ns = tick_ns, .prior_ns = prior_ns};
}

void watchdog_begin(struct watchdog *watchdog, uint64_t moves, uint64_t step)
{
	CHECK(watchdog->tick_ns > 0);
	watchdog->quiet_ns = 0;
	watchdog->was_late = false;
	watchdog->other = false;
	watchdog->stepped = false;
	watchdog->moves = moves;
	watchdog->step = step;
}

static nsec_t bucket_edge_ns(uint32_t i)
{
	nsec_t octave_ns = BUCKET_FIRST_NS << (i / BUCKETS_PER_DOUBLING);

	CHECK(i < WATCHDOG_BUCKETS);
	return octave_ns + octave_ns / BUCKETS_PER_DOUBLING * (nsec_t)(i % BUCKETS_PER_DOUBLING);
}

static void learn_gap(struct watchdog *watchdog, nsec_t gap_ns)
{
	uint32_t i = 0;

	while (i + 1 < WATCHDOG_BUCKETS && bucket_edge_ns(i) < gap_ns)
		i++;
	if (watchdog->gaps[i] < UINT32_MAX) {
		watchdog->gaps[i]++;
		watchdog->gap_count++;
	}
	if (gap_ns > watchdog->gap_max_ns)
		watchdog->gap_max_ns = gap_ns;
}

/* A gap is seen up to one tick too long: the tick is taken off. */
static nsec_t percentile_gap_ns(const struct watchdog *watchdog)
{
	uint64_t above = watchdog->gap_count / 1000, seen = 0;

	for (uint32_t i = WATCHDOG_BUCKETS; i-- > 0;) {
		seen += watchdog->gaps[i];
		if (seen > above && bucket_edge_ns(i) > watchdog->tick_ns)
			return bucket_edge_ns(i) - watchdog->tick_ns;
	}
	return 0;
}

static nsec_t longer(nsec_t a_ns, nsec_t b_ns)
{
	return a_ns > b_ns ? a_ns : b_ns;
}

nsec_t watchdog_deadline_ns(const struct watchdog *watchdog)
{
	nsec_t deadline_ns = PERCENTILE_FACTOR(percentile_gap_ns(watchdog));
	nsec_t rare_ns = watchdog->gap_max_ns * 3 / 2;

	CHECK(watchdog->prior_ns > 0);
	if (watchdog->steps_learned < WATCHDOG_LEARN_STEPS)
		return watchdog->prior_ns;
	deadline_ns = longer(deadline_ns, WATCHDOG_FLOOR_NS);
	for (uint32_t i = 0; i < watchdog->hangs_in_row && rare_ns < watchdog->prior_ns; i++)
		rare_ns = 2 * longer(rare_ns, deadline_ns);
	if (rare_ns > watchdog->prior_ns)
		rare_ns = watchdog->prior_ns;
	deadline_ns = longer(deadline_ns, rare_ns);
	if (!watchdog->stepped || watchdog->other)
		deadline_ns = longer(deadline_ns, watchdog->prior_ns);
	return deadline_ns < WATCHDOG_CEILING_NS ? deadline_ns : WATCHDOG_CEILING_NS;
}

static void note_steps(struct watchdog *watchdog, uint64_t step)
{
	if (step > watchdog->step) {
		watchdog->steps_learned += step - watchdog->step;
		watchdog->steps_since_hang += step - watchdog->step;
		watchdog->stepped = true;
		if (watchdog->steps_since_hang >= WATCHDOG_LEARN_STEPS)
			watchdog->hangs_in_row = 0;
	}
	watchdog->step = step;
}

bool watchdog_tick(struct watchdog *watchdog, nsec_t elapsed_ns, uint64_t moves, uint64_t step,
	enum watchdog_pace pace)
{
	bool late = elapsed_ns > 2 * watchdog->tick_ns;
	nsec_t own_ns = elapsed_ns < watchdog->tick_ns ? elapsed_ns : watchdog->tick_ns;

	CHECK(elapsed_ns >= 0);
	/* A machine that is always late still notices a hang: only the first late tick is free. */
	if ((late && !watchdog->was_late) || pace == WATCHDOG_EXCUSED)
		own_ns = 0;
	watchdog->was_late = late;
	note_steps(watchdog, step);
	watchdog->quiet_ns += own_ns;
	watchdog->other = watchdog->other || pace == WATCHDOG_OTHER;
	CHECK(watchdog->quiet_ns >= 0);
	if (moves != watchdog->moves) {
		watchdog->moves = moves;
		if (!watchdog->other)
			learn_gap(watchdog, watchdog->quiet_ns);
		watchdog->quiet_ns = 0;
		watchdog->other = pace == WATCHDOG_OTHER;
		return false;
	}
	return watchdog->quiet_ns > watchdog_deadline_ns(watchdog);
}

void watchdog_hung(struct watchdog *watchdog)
{
	CHECK(watchdog->quiet_ns > 0);
	watchdog->steps_since_hang = 0;
	if (watchdog->hangs_in_row < UINT32_MAX)
		watchdog->hangs_in_row++;
}
