/* The loss is the mean square, its gradient is its derivative, and threads do not change a bit. */
#include "daemon/diffusion/loss.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define SAMPLES 5
#define ELEMS 1003 /* no multiple of any lane count */

static float target[SAMPLES * ELEMS], output[SAMPLES * ELEMS], gradient[SAMPLES * ELEMS];

static int set_up(void **unused)
{
	uint32_t state = 3;

	for (unsigned i = 0; i < SAMPLES * ELEMS; i++) {
		target[i] = (float)((state = state * 1664525 + 1013904223) >> 8) * 0x1p-23f - 1.0f;
		output[i] = (float)((state = state * 1664525 + 1013904223) >> 8) * 0x1p-23f - 1.0f;
	}
	return 0;
}

static void test_mean_and_gradient(void **unused)
{
	double per_sample[SAMPLES];

	loss_mse(SAMPLES, ELEMS, 8, target, output, gradient, per_sample);
	for (unsigned s = 0; s < SAMPLES; s++) {
		double sum = 0.0;
		for (unsigned i = 0; i < ELEMS; i++) {
			double difference = (double)output[s * ELEMS + i] - target[s * ELEMS + i];
			sum += difference * difference;
			double expected = 2.0 * difference / (8.0 * ELEMS);
			assert_true(fabs(gradient[s * ELEMS + i] - expected) < 1e-9);
		}
		assert_true(fabs(per_sample[s] - sum / ELEMS) < 1e-7);
	}
	/* Without a gradient the means are the same bits. */
	double again[SAMPLES];
	loss_mse(SAMPLES, ELEMS, 8, target, output, NULL, again);
	assert_memory_equal(again, per_sample, sizeof(again));
}

static void test_threads_do_not_change_bits(void **unused)
{
	double one[SAMPLES], many[SAMPLES];

	omp_set_num_threads(1);
	loss_mse(SAMPLES, ELEMS, SAMPLES, target, output, gradient, one);
	omp_set_num_threads(4);
	loss_mse(SAMPLES, ELEMS, SAMPLES, target, output, gradient, many);
	assert_memory_equal(one, many, sizeof(one));
}

static void test_nan_is_seen(void **unused)
{
	double per_sample[SAMPLES];
	float kept = output[ELEMS + 7];

	output[ELEMS + 7] = NAN;
	loss_mse(SAMPLES, ELEMS, SAMPLES, target, output, gradient, per_sample);
	output[ELEMS + 7] = kept;
	assert_true(isnan(per_sample[1]));
	assert_true(isfinite(per_sample[0]) && isfinite(per_sample[2]));
}

static void test_quartiles_by_timestep(void **unused)
{
	static const double per_sample[6] = {1, 2, 3, 4, 5, 6};
	static const uint32_t timesteps[6] = {0, 249, 250, 999, 500, 749};
	struct loss loss = {0};

	loss_add(&loss, 4, per_sample, timesteps, 1000);
	loss_add(&loss, 2, per_sample + 4, timesteps + 4, 1000);
	loss_finish(&loss);
	assert_true(loss.mean == 3.5);
	assert_true(loss.quartile_sum[0] == 3 && loss.quartile_count[0] == 2);
	assert_true(loss.quartile_sum[1] == 3 && loss.quartile_count[1] == 1);
	assert_true(loss.quartile_sum[2] == 11 && loss.quartile_count[2] == 2);
	assert_true(loss.quartile_sum[3] == 4 && loss.quartile_count[3] == 1);
	struct loss empty = {0};
	loss_finish(&empty);
	assert_true(empty.mean == 0.0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mean_and_gradient),
		cmocka_unit_test(test_threads_do_not_change_bits),
		cmocka_unit_test(test_nan_is_seen),
		cmocka_unit_test(test_quartiles_by_timestep),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
