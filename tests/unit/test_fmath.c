/* Our own elementary functions (P2: no bit depends on a library). Two kinds of promise: how far
 * from libm they may be, and, by digest, which bits they give. The program is built twice, for any
 * CPU and for this one; both must give the same digests. */
#include "base/digest.h"
#include "base/fmath.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#define GRID 65536

static float input[GRID], output[2 * GRID];
static double input_d[GRID], output_d[2 * GRID];

static double ulps(float value, double exact)
{
	float nearest = fabsf((float)exact);

	return fabs(value - exact) / (double)(nextafterf(nearest, INFINITY) - nearest);
}

static double ulps_d(double value, long double exact)
{
	double nearest = fabs((double)exact);

	return (double)(fabsl(value - exact) /
		(long double)(nextafter(nearest, INFINITY) - nearest));
}

static void assert_digest(const void *data, size_t size, const char *expected)
{
	struct digest digest = digest_of(data, size);
	char hex[DIGEST_HEX_SIZE];

	digest_to_hex(&digest, hex);
	assert_string_equal(hex, expected);
}

static void test_p2_exp(void **unused)
{
	double worst = 0;

	for (int i = 0; i < GRID; i++)
		input[i] = -87.0f + (float)i * (175.0f / GRID);
	for (int i = 0; i < GRID; i++)
		output[i] = fm_exp(input[i]);
	for (int i = 0; i < GRID; i++)
		worst = fmax(worst, ulps(output[i], exp((double)input[i])));
	assert_true(worst < 1.0);
	assert_digest(output, GRID * sizeof(float),
		"ecd1b09cc15d80b301a316b02f2195d7ca3eecb4f403b03610c1ad046d33d382");
}

static void test_exp_at_the_ends(void **unused)
{
	assert_true(fm_exp(0.0f) == 1.0f && fm_exp(-0.0f) == 1.0f);
	assert_true(fm_exp(-88.0f) == 0.0f && fm_exp(-INFINITY) == 0.0f);
	assert_true(fm_exp(-1e30f) == 0.0f);
	assert_true(isinf(fm_exp(89.0f)) && isinf(fm_exp(1e30f)) && isinf(fm_exp(INFINITY)));
	assert_true(isfinite(fm_exp(88.6f)));
	assert_true(isnan(fm_exp(NAN)));
	assert_true(fm_sigmoid(-INFINITY) == 0.0f && fm_sigmoid(INFINITY) == 1.0f);
	assert_true(fm_sigmoid(0.0f) == 0.5f);
}

static void test_p2_log(void **unused)
{
	double worst = 0;

	/* Steps through the bits: every exponent of the normal numbers. */
	for (uint32_t i = 0; i < GRID; i++)
		input[i] = fm_from_bits(0x00800000u + i * ((0x7f800000u - 0x00800000u) / GRID));
	for (int i = 0; i < GRID; i++)
		output[i] = fm_log(input[i]);
	for (int i = 0; i < GRID; i++)
		worst = fmax(worst, input[i] == 1.0f ? 0 : ulps(output[i], log((double)input[i])));
	assert_true(worst < 2.0);
	assert_digest(output, GRID * sizeof(float),
		"a4bed3cfa14cf094bc62c01dcfb10b0845cf85dcc9ba6eb94ba2a51ec6751370");
}

static void test_log_near_one(void **unused)
{
	assert_true(fm_log(1.0f) == 0.0f);
	for (uint32_t i = 1; i < 200000; i += 17) {
		float above = fm_from_bits(0x3f800000u + i), below = fm_from_bits(0x3f800000u - i);

		assert_true(ulps(fm_log(above), log((double)above)) < 2.0);
		assert_true(ulps(fm_log(below), log((double)below)) < 2.0);
		assert_true(fm_log(below) < 0.0f); /* the root of -2 ln u exists */
	}
}

static void test_p2_sincos_turns(void **unused)
{
	for (int i = 0; i < GRID; i++)
		input[i] = (float)i / GRID;
	for (int i = 0; i < GRID; i++)
		fm_sincos_turns(input[i], &output[2 * i], &output[2 * i + 1]);
	for (int i = 0; i < GRID; i++) {
		double angle = 2.0 * M_PI * (double)input[i];

		assert_true(fabs(output[2 * i] - sin(angle)) < 1e-7);
		assert_true(fabs(output[2 * i + 1] - cos(angle)) < 1e-7);
	}
	assert_true(output[0] == 0.0f && output[1] == 1.0f);
	assert_digest(output, sizeof(output),
		"c7947e8971f5b4c06692e6d494b1f21940b23f24d6cd9d16412349fd1ab5a0c9");
}

static void test_p2_double_exp_log_pow(void **unused)
{
	for (int i = 0; i < GRID; i++)
		input_d[i] = -700.0 + i * (1400.0 / GRID);
	for (int i = 0; i < GRID; i++) {
		output_d[i] = fm_exp_d(input_d[i]);
		assert_true(ulps_d(output_d[i], expl(input_d[i])) < 1.0);
	}
	for (int i = 0; i < GRID; i++) {
		double x = 1e-4 + i * 0.37;

		output_d[GRID + i] = fm_log_d(x);
		assert_true(ulps_d(output_d[GRID + i], logl(x)) < 2.0);
	}
	assert_true(fm_log_d(1.0) == 0.0 && fm_exp_d(0.0) == 1.0);
	assert_digest(output_d, sizeof(output_d),
		"43b007a4197b798f230edb41aabba16c09451cec069d6bbe7045280996ef12a7");
	/* The EMA's warm-up: (1 + n)^-0.75. */
	for (int n = 0; n < 1000000; n += 997) {
		long double exact = powl(1.0L + n, -0.75L);

		assert_true(fabsl(fm_pow_d(1.0 + n, -0.75) / exact - 1) < 3e-15L);
	}
}

static void test_p2_double_sincos(void **unused)
{
	for (int i = 0; i < GRID; i++) {
		double x = -1e4 + i * (2e4 / GRID), *s = &output_d[2 * i], *c = s + 1;

		fm_sincos_d(x, s, c);
		assert_true(fabsl(*s - sinl(x)) < 2.3e-16L && fabsl(*c - cosl(x)) < 2.3e-16L);
		assert_true(ulps_d(*s, sinl(x)) < 2.0 && ulps_d(*c, cosl(x)) < 2.0);
		assert_true(fm_cos_d(x) == *c);
	}
	assert_digest(output_d, sizeof(output_d),
		"61c66bb27a5273fd73a3ec682ae504915370d885fc56397fdead91b5254c1923");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p2_exp),
		cmocka_unit_test(test_exp_at_the_ends),
		cmocka_unit_test(test_p2_log),
		cmocka_unit_test(test_log_near_one),
		cmocka_unit_test(test_p2_sincos_turns),
		cmocka_unit_test(test_p2_double_exp_log_pow),
		cmocka_unit_test(test_p2_double_sincos),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
