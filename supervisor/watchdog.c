/* The deadline of watchdog.h. It must never read a clock. Invariants: own time never runs faster
 * than real time; one late tick adds nothing; the deadline stays within floor (or prior) and
 * ceiling. */
#include "supervisor/watchdog.h"

#include "base/panic.h"

#define BUCKET_FIRST_NS (64 * NSEC_PER_MSEC)

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
	watchdog->stepped = false;
	watchdog->moves = moves;
	watchdog->step = step;
}

/* The upper edge of bucket i: four to each doubling. */
static nsec_t bucket_edge_ns(uint32_t i)
{
	nsec_t octave_ns = BUCKET_FIRST_NS << (i / 4);

	CHECK(i < WATCHDOG_BUCKETS);
	return octave_ns + octave_ns / 4 * (nsec_t)(i % 4);
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

static nsec_t percentile_gap_ns(const struct watchdog *watchdog)
{
	uint64_t above = watchdog->gap_count / 1000, seen = 0;

	for (uint32_t i = WATCHDOG_BUCKETS; i-- > 0;) {
		seen += watchdog->gaps[i];
		if (seen > above)
			return bucket_edge_ns(i);
	}
	return 0;
}

nsec_t watchdog_deadline_ns(const struct watchdog *watchdog)
{
	nsec_t rare_ns = 4 * watchdog->gap_max_ns;
	nsec_t deadline_ns = WATCHDOG_FLOOR_NS;

	CHECK(watchdog->prior_ns > 0);
	if (watchdog->steps_learned < WATCHDOG_LEARN_STEPS)
		return watchdog->prior_ns;
	/* What came only once or twice may come four times as long, within the prior. */
	if (rare_ns > watchdog->prior_ns)
		rare_ns = watchdog->prior_ns;
	if (deadline_ns < rare_ns)
		deadline_ns = rare_ns;
	if (deadline_ns < 4 * percentile_gap_ns(watchdog))
		deadline_ns = 4 * percentile_gap_ns(watchdog);
	if (deadline_ns < 2 * watchdog->gap_max_ns)
		deadline_ns = 2 * watchdog->gap_max_ns;
	if (!watchdog->stepped && deadline_ns < watchdog->prior_ns)
		deadline_ns = watchdog->prior_ns;
	return deadline_ns < WATCHDOG_CEILING_NS ? deadline_ns : WATCHDOG_CEILING_NS;
}

bool watchdog_tick(
	struct watchdog *watchdog, nsec_t elapsed_ns, uint64_t moves, uint64_t step, bool excused)
{
	bool late = elapsed_ns > 2 * watchdog->tick_ns;
	nsec_t own_ns = elapsed_ns < watchdog->tick_ns ? elapsed_ns : watchdog->tick_ns;

	CHECK(elapsed_ns >= 0);
	/* A machine that is always late still notices a hang: only the first late tick is free. */
	if ((late && !watchdog->was_late) || excused)
		own_ns = 0;
	watchdog->was_late = late;
	if (step > watchdog->step) {
		watchdog->steps_learned += step - watchdog->step;
		watchdog->stepped = true;
	}
	watchdog->step = step;
	watchdog->quiet_ns += own_ns;
	CHECK(watchdog->quiet_ns >= 0);
	if (moves != watchdog->moves) {
		watchdog->moves = moves;
		learn_gap(watchdog, watchdog->quiet_ns);
		watchdog->quiet_ns = 0;
		return false;
	}
	return watchdog->quiet_ns > watchdog_deadline_ns(watchdog);
}
