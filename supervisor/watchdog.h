/* Is the trainer hung? Pure: it is told, at each tick of the supervisor, how much time went by and
 * how far the counter of moves is. Time counts in these ticks: a late tick moves every deadline by
 * its lateness and one tick of grace, so that a suspend, a frozen machine or a jump of the clock is
 * not a hang.
 *
 * The deadline is learned from the gaps between moves: four times their 99.9th percentile, twice
 * the longest gap ever seen, never under WATCHDOG_FLOOR_NS. Before WATCHDOG_LEARN_STEPS steps, and
 * before a new trainer has finished its first one, the prior holds. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#define WATCHDOG_LEARN_STEPS 200
#define WATCHDOG_FLOOR_NS (5 * NSEC_PER_SEC)
#define WATCHDOG_CEILING_NS (3600 * NSEC_PER_SEC)
#define WATCHDOG_BUCKETS 96 /* four for each doubling, from 64 ms */

struct watchdog {
	nsec_t tick_ns, prior_ns;
	nsec_t quiet_ns;        /* in own time, since the last move */
	bool was_late;          /* the tick before this one */
	bool stepped;           /* this trainer has finished a step */
	uint64_t moves;         /* seen last */
	uint64_t step;          /* seen last */
	uint64_t steps_learned; /* over all trainers */
	uint64_t gap_count;
	nsec_t gap_max_ns;
	uint32_t gaps[WATCHDOG_BUCKETS];
};

void watchdog_init(struct watchdog *watchdog, nsec_t tick_ns, nsec_t prior_ns);
/* A new trainer begins: what was learned stays. */
void watchdog_begin(struct watchdog *watchdog, uint64_t moves, uint64_t step);
/* True when the trainer looks hung: the caller reads moves once more before it believes it.
 * excused: it waits for somebody else, so this tick does not count. */
bool watchdog_tick(
	struct watchdog *watchdog, nsec_t elapsed_ns, uint64_t moves, uint64_t step, bool excused);
nsec_t watchdog_deadline_ns(const struct watchdog *watchdog);
