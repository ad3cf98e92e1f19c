/* One step of each sampler against docs/MODEL.md's golden numbers, and what must hold of any. */
#include "daemon/diffusion/sampler.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static struct schedule linear;

static int set_up(void **unused)
{
	return schedule_init(&linear, "linear", 1000, 1e-4, 0.02, NULL);
}

static struct sampler make(enum sampler_kind kind, uint32_t steps, bool clip)
{
	struct sampler sampler;

	assert_int_equal(sampler_init(&sampler, kind, &linear, steps, clip, NULL), 0);
	return sampler;
}

/* x_t = .5, eps_hat = .3 at timestep t. */
static double golden_step(const struct sampler *sampler, uint32_t t)
{
	float x = 0.5f, eps = 0.3f, noise = 0.0f;

	for (uint32_t i = 0; i < sampler->step_count; i++) {
		if (sampler_timestep(sampler, i) == t) {
			sampler_step(sampler, i, &eps, &noise, &x, 1);
			return (double)x;
		}
	}
	fail_msg("timestep %u is not visited", t);
	return NAN;
}

static void test_ddim_is_diffusers(void **unused)
{
	struct sampler ddim = make(SAMPLER_DDIM, 50, true);

	assert_int_equal(sampler_timestep(&ddim, 0), 980);
	assert_int_equal(sampler_timestep(&ddim, 49), 0);
	assert_true(fabs(golden_step(&ddim, 780) - .35280016) < 1e-7);
	/* diffusers rounds alpha_bar[0] to fp32 before 1 - alpha_bar: 2.5e-7 here. */
	assert_true(fabs(golden_step(&ddim, 0) - .49702460) < 3e-7);
}

static void test_ddpm_is_diffusers(void **unused)
{
	struct sampler ddpm = make(SAMPLER_DDPM, 1000, true);

	assert_int_equal(sampler_timestep(&ddpm, 0), 999);
	assert_int_equal(sampler_timestep(&ddpm, 999), 0);
	assert_true(fabs(golden_step(&ddpm, 0) - .49702460) < 3e-7);
}

/* Against eq. 7 of Ho et al., written out in double. */
static void test_ddpm_mean_and_variance(void **unused)
{
	struct sampler ddpm = make(SAMPLER_DDPM, 1000, false);
	float x = 0.4f, with_noise = 0.4f, eps = -0.2f, none = 0.0f, one = 1.0f;
	uint32_t t = 500, i = 999 - t;
	double a = linear.alpha_bar[t], p = linear.alpha_bar[t - 1], beta = linear.beta[t];

	sampler_step(&ddpm, i, &eps, &none, &x, 1);
	sampler_step(&ddpm, i, &eps, &one, &with_noise, 1);
	double x0 = (0.4 - sqrt(1 - a) * -0.2) / sqrt(a);
	double mean = sqrt(p) * beta / (1 - a) * x0 + sqrt(1 - beta) * (1 - p) / (1 - a) * 0.4;
	assert_true(fabs(x - mean) < 1e-6);
	assert_true(fabs((with_noise - x) - sqrt(.0100512691)) < 1e-6);
}

static void test_x0_is_clipped_and_eps_is_not_recomputed(void **unused)
{
	struct sampler clipped = make(SAMPLER_DDIM, 50, true);
	struct sampler open = make(SAMPLER_DDIM, 50, false);
	float a = 5.0f, b = 5.0f, eps = 0.1f;
	uint32_t i = 10;
	double next = linear.alpha_bar[sampler_timestep(&clipped, i + 1)];

	sampler_step(&clipped, i, &eps, NULL, &a, 1);
	sampler_step(&open, i, &eps, NULL, &b, 1);
	assert_true(fabs(a - (sqrt(next) + sqrt(1 - next) * 0.1)) < 1e-6);
	assert_true(b > a);
}

/* With the true eps every DDIM step stays on the same (x0, eps): the end is x0. */
static void test_ddim_with_the_true_noise_ends_at_x0(void **unused)
{
	static const uint32_t step_counts[] = {1, 2, 7, 50, 333, 1000};

	for (size_t k = 0; k < sizeof(step_counts) / sizeof(step_counts[0]); k++) {
		struct sampler ddim = make(SAMPLER_DDIM, step_counts[k], true);
		float x0[3] = {-0.9f, 0.0f, 0.7f}, eps[3] = {0.5f, -1.5f, 2.0f}, x[3];
		schedule_add_noise(&linear, sampler_timestep(&ddim, 0), x0, eps, x, 3);
		for (uint32_t i = 0; i < step_counts[k]; i++)
			sampler_step(&ddim, i, eps, NULL, x, 3);
		for (unsigned j = 0; j < 3; j++)
			assert_true(fabsf(x[j] - x0[j]) < 1e-3f);
	}
}

static void test_guidance(void **unused)
{
	float uncond[2] = {1.0f, -1.0f}, cond[2] = {2.0f, -3.0f};

	sampler_guide(3.0f, uncond, cond, 2);
	assert_true(cond[0] == 4.0f && cond[1] == -7.0f);
}

static void test_bad_step_counts_are_refused(void **unused)
{
	struct sampler sampler;
	struct error err;

	assert_int_equal(sampler_init(&sampler, SAMPLER_DDIM, &linear, 0, true, &err), -EINVAL);
	assert_int_equal(sampler_init(&sampler, SAMPLER_DDIM, &linear, 1001, true, &err), -EINVAL);
	assert_non_null(strstr(err.text, "1001"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ddim_is_diffusers),
		cmocka_unit_test(test_ddpm_is_diffusers),
		cmocka_unit_test(test_ddpm_mean_and_variance),
		cmocka_unit_test(test_x0_is_clipped_and_eps_is_not_recomputed),
		cmocka_unit_test(test_ddim_with_the_true_noise_ends_at_x0),
		cmocka_unit_test(test_guidance),
		cmocka_unit_test(test_bad_step_counts_are_refused),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
