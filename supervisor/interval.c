/* The formula of interval.h. Invariant: the result is at least INTERVAL_MIN_NS. */
#include "supervisor/interval.h"

#include "base/panic.h"

#include <math.h>

#define DAY_SECONDS 86400.0

nsec_t interval_auto_ns(const struct interval_facts *facts)
{
	double between = (facts->watched_seconds > 0 ? facts->watched_seconds : 0) + DAY_SECONDS;
	double least = 0, seconds = 0;

	if (facts->cost_seconds > 0)
		seconds = sqrt(2 * facts->cost_seconds * between / (facts->losses + 1.0));
	seconds = fmin(seconds, (double)INTERVAL_MAX_NS / 1e9);
	if (facts->budget_gb_per_day > 0)
		least = (double)facts->save_bytes * DAY_SECONDS / (facts->budget_gb_per_day * 1e9);
	seconds = fmax(fmax(seconds, least), (double)INTERVAL_MIN_NS / 1e9);
	CHECK(isfinite(seconds) && seconds < 1e9);
	return (nsec_t)(seconds * 1e9);
}
