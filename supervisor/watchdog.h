/* Is the trainer hung? Pure: it is told, at each tick of the supervisor, how much time went by and
 * how far the counter of moves is. Time counts in these ticks: a late tick moves every deadline by
 * its lateness and one tick of grace, so that a suspend, a frozen machine or a jump of the clock is
 * not a hang.
 *
 * The deadline is learned from the gaps between moves within steps: four times their 99.9th
 * percentile, one and a half times the longest one ever seen (within the prior), never under
 * WATCHDOG_FLOOR_NS. The prior holds before WATCHDOG_LEARN_STEPS steps, before a new trainer has
 * finished its first one, and outside of steps: a preview or a start waits for disks. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#define WATCHDOG_LEARN_STEPS 200
#define WATCHDOG_FLOOR_NS (800 * NSEC_PER_MSEC) /* and two ticks: found within a second */
#define WATCHDOG_CEILING_NS (3600 * NSEC_PER_SEC)
#define WATCHDOG_BUCKETS 256 /* sixteen for each doubling, from 64 ms */

enum watchdog_pace {
	WATCHDOG_STEP,    /* it computes: what was learned holds */
	WATCHDOG_OTHER,   /* it starts, writes a preview, ends: the prior holds */
	WATCHDOG_EXCUSED, /* it waits for somebody else: this tick does not count */
};

struct watchdog {
	nsec_t tick_ns, prior_ns;
	nsec_t quiet_ns;        /* in own time, since the last move */
	bool was_late;          /* the tick before this one */
	bool other;             /* since the last move it was not always within a step */
	bool stepped;           /* this trainer has finished a step */
	uint64_t moves;         /* seen last */
	uint64_t step;          /* seen last */
	uint64_t steps_learned; /* over all trainers */
	/* Verdicts with fewer than WATCHDOG_LEARN_STEPS steps between them: the machine may just
	 * have become slow, so each doubles the deadline, up to the prior. */
	uint32_t hangs_in_row;
	uint64_t steps_since_hang;
	uint64_t gap_count;
	nsec_t gap_max_ns;
	uint32_t gaps[WATCHDOG_BUCKETS];
};

/* Also to forget: other threads, another engine or batch have gaps of their own. */
void watchdog_init(struct watchdog *watchdog, nsec_t tick_ns, nsec_t prior_ns);
/* A new trainer begins: what was learned stays. */
void watchdog_begin(struct watchdog *watchdog, uint64_t moves, uint64_t step);
/* True when the trainer looks hung: the caller reads moves once more before it believes it, and
 * then says so by watchdog_hung. */
bool watchdog_tick(struct watchdog *watchdog, nsec_t elapsed_ns, uint64_t moves, uint64_t step,
	enum watchdog_pace pace);
void watchdog_hung(struct watchdog *watchdog);
nsec_t watchdog_deadline_ns(const struct watchdog *watchdog);
