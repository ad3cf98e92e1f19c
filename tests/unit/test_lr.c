/* Learning rate, bias corrections and EMA decay against docs/MODEL.md's golden numbers. */
#include "daemon/optim/lr.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void assert_near(double value, double golden, double absolute)
{
	if (!(fabs(value - golden) <= absolute))
		fail_msg("%.12g, not %.12g", value, golden);
}

static void test_cosine_is_diffusers(void **unused)
{
	static const uint64_t k[8] = {0, 1, 9, 10, 11, 55, 99, 100};
	static const double golden[8] = {0, .1, .9, 1, .99969541, .5, .00030459, 0};

	for (unsigned i = 0; i < 8; i++)
		assert_near(lr_factor(LR_COSINE, k[i], 10, 100), golden[i], 5e-9);
}

static void test_warmup_and_constant(void **unused)
{
	assert_true(lr_factor(LR_CONSTANT, 0, 0, 100) == 1.0);
	assert_true(lr_factor(LR_CONSTANT, 0, 4, 100) == 0.0);
	assert_true(lr_factor(LR_CONSTANT, 3, 4, 100) == 0.75);
	assert_true(lr_factor(LR_CONSTANT, 1000, 4, 100) == 1.0);
	/* A warm-up as long as the run, or longer, never divides by zero. */
	assert_true(lr_factor(LR_COSINE, 50, 100, 100) == 0.5);
	assert_true(lr_factor(LR_COSINE, 100, 100, 100) == 1.0);
	assert_true(lr_factor(LR_COSINE, 100, 100, 50) == 1.0);
}

static void test_powers_are_exact_enough(void **unused)
{
	static const double betas[3] = {0.9, 0.99, 0.9999};

	assert_true(power_int(0.9, 0) == 1.0);
	assert_true(power_int(0.9, 1) == 0.9);
	assert_true(power_int(0.0, 0) == 1.0 && power_int(0.0, 5) == 0.0);
	for (unsigned b = 0; b < 3; b++)
		for (uint64_t k = 1; k < 3000; k = k * 3 + 1)
			assert_near(power_int(betas[b], k) / pow(betas[b], (double)k), 1.0, 1e-12);
	assert_true(power_int(0.9, UINT64_MAX) == 0.0);
}

static void test_ema_decay_is_diffusers(void **unused)
{
	static const uint64_t n[8] = {1, 2, 3, 11, 101, 1001, 10001, 215446};
	static const double golden[8] = {
		0, .40539644, .56130866, .83443997, .96861234, .99438080, .99900007, .9999};

	for (unsigned i = 0; i < 8; i++)
		assert_near(ema_decay(n[i], 0.75, 0.9999), golden[i], 5e-9);
	assert_true(ema_decay(1000000, 0.75, 0.999) == 0.999);
	assert_true(ema_decay(0, 0.75, 0.999) == 0.0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cosine_is_diffusers),
		cmocka_unit_test(test_warmup_and_constant),
		cmocka_unit_test(test_powers_are_exact_enough),
		cmocka_unit_test(test_ema_decay_is_diffusers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
