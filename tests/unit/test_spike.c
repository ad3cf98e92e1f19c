/* What is a spike, and what teaches what is usual. */
#include "daemon/worker_spike.h"

#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define LIMIT 8

static void learn_equal(struct usual *usual, uint64_t count, double grad_norm, double loss)
{
	for (uint64_t i = 0; i < count; i++)
		spike_learn(usual, grad_norm, loss);
}

static void the_first_updates_are_their_ordinary_mean_and_variance(void **unused)
{
	struct usual usual = {0};
	double sum = 0, squares = 0, mean;

	for (int i = 1; i <= SPIKE_LEARNED; i++) {
		double value = 1.0 + (i * 37 % 101) / 10.0;

		spike_learn(&usual, value, 1);
		sum += log(value);
		squares += log(value) * log(value);
	}
	mean = sum / SPIKE_LEARNED;
	assert_true(fabs(usual.grad_norm.mean - mean) < 1e-12);
	assert_true(
		fabs(usual.grad_norm.variance - (squares / SPIKE_LEARNED - mean * mean)) < 1e-12);
	assert_true(usual.loss.mean == 0 && usual.loss.variance == 0);
}

static void equal_numbers_have_the_least_deviation(void **unused)
{
	struct usual usual = {0};

	learn_equal(&usual, 1000, 3, 0.02);
	assert_true(spike_measure(&usual, 3 * exp(LIMIT * 0.25 - 0.01), 0.02).deviations < LIMIT);
	assert_true(spike_measure(&usual, 3 * exp(LIMIT * 0.25 + 0.01), 0.02).deviations > LIMIT);
	assert_string_equal(spike_measure(&usual, 30, 0.02).what, "gradient norm");
	assert_true(spike_measure(&usual, 3, 0.02 * exp(LIMIT * 0.25 + 0.01)).deviations > LIMIT);
	assert_string_equal(spike_measure(&usual, 3, 0.2).what, "loss");
	assert_true(spike_measure(&usual, 0, 0).deviations < 0);
}

static void nothing_is_a_spike_before_it_is_known_what_is_usual(void **unused)
{
	struct usual usual = {0};

	learn_equal(&usual, SPIKE_LEARNED - 1, 1, 1);
	assert_true(spike_measure(&usual, 1e30, 1e30).deviations == 0);
	learn_equal(&usual, 1, 1, 1);
	assert_true(spike_measure(&usual, 1e30, 1).deviations > LIMIT);
}

/* As norms and losses of small batches are, with a slow fall below it. */
static void a_noisy_run_has_no_spikes_and_a_real_one_is_found(void **unused)
{
	static const double sigmas[] = {0.1, 0.5, 1.0};

	for (int k = 0; k < 3; k++) {
		struct usual usual = {0};
		struct rng rng;
		double level = 0;

		rng_init(&rng, 7);
		for (uint64_t step = 0; step < 100000; step++) {
			float normal;

			rng_normal(&rng, RNG_NOISE, step, 0, &normal, 1);
			double norm = exp(level + sigmas[k] * (double)normal);

			if (spike_measure(&usual, norm, norm).deviations > LIMIT)
				fail_msg("sigma %g: step %lu is called a spike", sigmas[k],
					(unsigned long)step);
			spike_learn(&usual, norm, norm);
			level -= 5e-5;
		}
		assert_true(spike_measure(&usual, exp(level + 10 * fmax(sigmas[k], 0.25)), 0)
				    .deviations > LIMIT);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_updates_are_their_ordinary_mean_and_variance),
		cmocka_unit_test(equal_numbers_have_the_least_deviation),
		cmocka_unit_test(nothing_is_a_spike_before_it_is_known_what_is_usual),
		cmocka_unit_test(a_noisy_run_has_no_spikes_and_a_real_one_is_found),
	};

	return cmocka_run_group_tests_name("spike", tests, NULL, NULL);
}
