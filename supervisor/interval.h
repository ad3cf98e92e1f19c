/* How often to save: what a save costs the training against what an outage that loses the memory
 * would cost. Pure. */
#pragma once

#include "base/clock.h"

#include <stdint.h>

#define INTERVAL_MIN_NS (60 * NSEC_PER_SEC)
#define INTERVAL_MAX_NS (6 * 3600 * NSEC_PER_SEC)

struct interval_facts {
	double cost_seconds; /* training time that one save takes away; not positive: not known */
	double watched_seconds; /* since when outages are counted */
	uint32_t losses;        /* outages that lost the memory in that time */
	uint64_t save_bytes;
	double budget_gb_per_day; /* 10^9 bytes; 0: no limit */
};

/* sqrt(2 cost mean-time-between-losses), within the limits (J. W. Young, "A first order
 * approximation to the optimum checkpoint interval", 1974; J. T. Daly, 2006). A day without a loss
 * is assumed before the first is seen. The budget comes last: it may make it longer than
 * INTERVAL_MAX_NS. */
nsec_t interval_auto_ns(const struct interval_facts *facts);
