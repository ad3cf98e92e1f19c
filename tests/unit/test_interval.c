/* The interval that costs least. */
#include "supervisor/interval.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define DAY 86400.0

static double seconds(const struct interval_facts *facts)
{
	return (double)interval_auto_ns(facts) / 1e9;
}

/* By brute force: the share of time lost to saves and to steps done again, over whole seconds. */
static double best_of_all(double cost, double between)
{
	double best = 0, least = INFINITY;

	for (int every = 60; every < 21600; every++) {
		double lost = cost / every + every / (2 * between);

		if (lost < least) {
			least = lost;
			best = every;
		}
	}
	return best;
}

static void it_is_the_one_that_costs_least(void **unused)
{
	static const double costs[] = {0.1, 1, 10, 60};
	static const uint32_t losses[] = {0, 1, 7, 30};

	for (size_t i = 0; i < 4; i++)
		for (size_t j = 0; j < 4; j++) {
			struct interval_facts facts = {.cost_seconds = costs[i],
				.watched_seconds = 6 * DAY,
				.losses = losses[j]};
			double between = 7 * DAY / (losses[j] + 1.0);

			assert_true(fabs(seconds(&facts) - best_of_all(costs[i], between)) < 1);
		}
}

static void it_has_limits(void **unused)
{
	struct interval_facts facts = {.watched_seconds = 100 * DAY};

	assert_true(interval_auto_ns(&facts) == INTERVAL_MIN_NS); /* the cost is not known yet */
	facts.cost_seconds = 1e-6;
	assert_true(interval_auto_ns(&facts) == INTERVAL_MIN_NS);
	facts.cost_seconds = 1e6;
	assert_true(interval_auto_ns(&facts) == INTERVAL_MAX_NS);
	facts.losses = UINT32_MAX;
	facts.cost_seconds = 0.01;
	assert_true(interval_auto_ns(&facts) == INTERVAL_MIN_NS);
	/* A clock that was set back. */
	facts.watched_seconds = -100 * DAY;
	assert_true(interval_auto_ns(&facts) == INTERVAL_MIN_NS);
}

static void the_budget_is_kept(void **unused)
{
	struct interval_facts facts = {
		.cost_seconds = 0.001, .save_bytes = 1000000000, .budget_gb_per_day = 100};

	assert_true(fabs(seconds(&facts) - DAY / 100) < 1e-6);
	facts.budget_gb_per_day = 1;
	assert_true(fabs(seconds(&facts) - DAY) < 1e-6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_the_one_that_costs_least),
		cmocka_unit_test(it_has_limits),
		cmocka_unit_test(the_budget_is_kept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
