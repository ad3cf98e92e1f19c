/* The noise schedules against docs/MODEL.md's golden numbers, which diffusers printed. */
#include "daemon/diffusion/schedule.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static struct schedule schedule;

static void assert_near(double value, double golden, double relative)
{
	if (!(fabs(value - golden) <= relative * fabs(golden)))
		fail_msg("%.12g, not %.12g", value, golden);
}

static void test_alpha_bar_is_diffusers(void **unused)
{
	static const uint32_t at[5] = {0, 1, 250, 499, 999};
	static const struct {
		const char *name;
		double start, end, golden[5];
	} rows[] = {
		{"linear", 1e-4, 0.02, {.99989998, .99978006, .52142304, .07858724, 4.0358307e-5}},
		{"squaredcos_cap_v2", 1e-4, 0.02,
			{.99995869, .99991256, .84588802, .49384347, 2.4287e-9}},
		{"scaled_linear", .00085, .012,
			{.99914998, .99829602, .67379230, .27766946, .00466010}},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_int_equal(schedule_init(&schedule, rows[i].name, 1000, rows[i].start,
					 rows[i].end, NULL),
			0);
		assert_int_equal(schedule.count, 1000);
		/* The golden numbers are fp32 products: of five digits at least. */
		for (unsigned k = 0; k < 5; k++)
			assert_near(schedule.alpha_bar[at[k]], rows[i].golden[k], 5e-5);
		for (uint32_t t = 1; t < 1000; t++)
			assert_true(schedule.alpha_bar[t] < schedule.alpha_bar[t - 1] &&
				schedule.beta[t] > 0.0 && schedule.beta[t] < 1.0);
	}
}

/* The posterior variances (DDPM eq. 7) that the sampler uses come from the same tables. */
static void test_variances_are_diffusers(void **unused)
{
	static const uint32_t at[3] = {1, 500, 999};
	static const double small[3] = {5.45348e-5, .0100512691, .0199999642};
	static const double large[3] = {1.199245e-4, .0100598931, .0199999809};

	assert_int_equal(schedule_init(&schedule, "linear", 1000, 1e-4, 0.02, NULL), 0);
	for (unsigned k = 0; k < 3; k++) {
		double before = schedule.alpha_bar[at[k] - 1], now = schedule.alpha_bar[at[k]];
		assert_near((1 - before) / (1 - now) * schedule.beta[at[k]], small[k], 1e-4);
		assert_near(schedule.beta[at[k]], large[k], 1e-4);
	}
}

static void test_noise_is_added_by_variance(void **unused)
{
	float x0[5] = {1.0f, -1.0f, 0.5f, 0.0f, 0.25f}, eps[5] = {0.0f, 1.0f, -2.0f, 1.0f, 0.5f};
	float x_t[5];

	assert_int_equal(schedule_init(&schedule, "linear", 1000, 1e-4, 0.02, NULL), 0);
	schedule_add_noise(&schedule, 250, x0, eps, x_t, 5);
	double signal = sqrt(schedule.alpha_bar[250]), noise = sqrt(1 - schedule.alpha_bar[250]);
	for (unsigned i = 0; i < 5; i++)
		assert_true(fabs(x_t[i] - (signal * x0[i] + noise * eps[i])) < 1e-6);
}

static void test_bad_schedules_are_named(void **unused)
{
	struct error err;

	assert_int_equal(schedule_init(&schedule, "sigmoid", 1000, 1e-4, 0.02, &err), -EINVAL);
	assert_non_null(strstr(err.text, "sigmoid"));
	assert_int_equal(schedule_init(&schedule, "linear", 1, 1e-4, 0.02, &err), -EINVAL);
	assert_int_equal(
		schedule_init(&schedule, "linear", SCHEDULE_TIMESTEPS_MAX + 1, 1e-4, 0.02, &err),
		-EINVAL);
	assert_int_equal(schedule_init(&schedule, "linear", 1000, 0.02, 1e-4, &err), -EINVAL);
	assert_int_equal(schedule_init(&schedule, "linear", 1000, NAN, 0.02, &err), -EINVAL);
	assert_int_equal(schedule_init(&schedule, "scaled_linear", 1000, 0.1, 1.0, &err), -EINVAL);
	assert_non_null(strstr(err.text, "beta_end"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alpha_bar_is_diffusers),
		cmocka_unit_test(test_variances_are_diffusers),
		cmocka_unit_test(test_noise_is_added_by_variance),
		cmocka_unit_test(test_bad_schedules_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
