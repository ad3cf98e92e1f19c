/* Sixteen floats at a time: rounding to bf16 against exact arithmetic on the bits, and how far the
 * sigmoid functions are from libm. lanes.h has three forms (AVX-512 with bf16 instructions, without
 * them, and arrays); the program is built for each. */
#include "daemon/ops/lanes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* Skips where the CPU lacks what this program was built for. */
static void needs_cpu(void)
{
#ifdef __AVX512F__
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
		return;
	print_message("# skipped: this CPU has no AVX-512 (F, VL, DQ, BW)\n");
	skip();
#endif
}

static uint16_t rounded(float value)
{
	float values[LANES];
	uint16_t half[LANES];
	for (int i = 0; i < LANES; i++)
		values[i] = value;
	lanes_store(half, lanes_load(values, ELEM_F32), ELEM_BF16);
	for (int i = 1; i < LANES; i++)
		assert_int_equal(half[i], half[0]);
	return half[0];
}

/* The nearer of the two neighbours, the even one of equally near ones. */
static uint16_t exactly_rounded(uint32_t bits)
{
	uint32_t low = bits >> 16, away = bits & 0xffff;
	if (away > 0x8000 || (away == 0x8000 && low % 2))
		low++;
	return (uint16_t)low;
}

static void check_rounding(uint32_t bits)
{
	uint16_t half = rounded(fm_from_bits(bits));
	bool is_nan = (bits & 0x7fffffff) > 0x7f800000, tiny = (bits & 0x7f800000) == 0;
	if (is_nan) {
		if ((half & 0x7fff) <= 0x7f80)
			fail_msg("the NaN %08x becomes %04x", bits, half);
		return;
	}
	/* The instruction takes denormals for zero. */
	if (tiny && half == (bits >> 16 & 0x8000))
		return;
	if (half != exactly_rounded(bits))
		fail_msg("%08x becomes %04x, not %04x", bits, half, exactly_rounded(bits));
}

static void test_rounding(void **unused)
{
	static const uint32_t tails[] = {
		0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1234, 0xc000, 0x4000};
	needs_cpu();
	for (uint32_t high = 0; high < 0x10000; high++)
		for (size_t i = 0; i < sizeof(tails) / sizeof(*tails); i++)
			check_rounding(high << 16 | tails[i]);
	assert_int_equal(rounded(3e38f), 0x7f62);
	assert_int_equal(rounded(INFINITY), 0x7f80);
	assert_int_equal(rounded(-INFINITY), 0xff80);
	assert_int_equal(rounded(fm_from_bits(0x7f7fffff)), 0x7f80); /* the largest float */
}

static void test_widening(void **unused)
{
	needs_cpu();
	for (uint32_t high = 0; high < 0x10000; high += LANES) {
		uint16_t half[LANES];
		uint32_t bits[LANES];
		for (uint32_t i = 0; i < LANES; i++)
			half[i] = (uint16_t)(high + i);
		lanes_store(bits, lanes_load(half, ELEM_BF16), ELEM_F32);
		for (uint32_t i = 0; i < LANES; i++)
			assert_int_equal(bits[i], (high + i) << 16);
	}
}

static void test_arithmetic(void **unused)
{
	float a[LANES], b[LANES], y[LANES];
	double sum[LANES];
	needs_cpu();
	for (int i = 0; i < LANES; i++) {
		a[i] = 1.0f + (float)i * 0x1p-23f;
		b[i] = 3.0f - (float)i;
		sum[i] = 0x1p40 * i;
	}
	lanes x = lanes_load(a, ELEM_F32), z = lanes_load(b, ELEM_F32);
	lanes_store(y, lanes_add(x, z), ELEM_F32);
	for (int i = 0; i < LANES; i++)
		assert_true(y[i] == a[i] + b[i]);
	lanes_store(y, lanes_mul(lanes_sub(x, z), lanes_of(3.0f)), ELEM_F32);
	for (int i = 0; i < LANES; i++)
		assert_true(y[i] == (a[i] - b[i]) * 3.0f);
	lanes_store(y, lanes_fma(x, x, lanes_of(-1.0f)), ELEM_F32);
	for (int i = 0; i < LANES; i++)
		assert_true(y[i] == fmaf(a[i], a[i], -1.0f));
	lanes_add_to(sum, z);
	for (int i = 0; i < LANES; i++)
		assert_true(sum[i] == 0x1p40 * i + (double)b[i]);
}

typedef float function(float x);

/* lanes.h inlines by force, so each function is called through one of its own. */
static float exp_of(float x)
{
	float y[LANES];
	lanes_store(y, lanes_exp(lanes_of(x)), ELEM_F32);
	return y[LANES - 1];
}

static float sigmoid_of(float x)
{
	float y[LANES];
	lanes_store(y, lanes_sigmoid(lanes_of(x)), ELEM_F32);
	return y[LANES - 1];
}

static float sigmoid_bf16_of(float x)
{
	float y[LANES];
	lanes_store(y, lanes_sigmoid_bf16(lanes_of(x)), ELEM_F32);
	return y[LANES - 1];
}

static float sigmoid_for_f32(float x)
{
	float y[LANES];
	lanes_store(y, lanes_sigmoid_for(lanes_of(x), ELEM_F32), ELEM_F32);
	return y[0];
}

static float sigmoid_for_bf16(float x)
{
	float y[LANES];
	lanes_store(y, lanes_sigmoid_for(lanes_of(x), ELEM_BF16), ELEM_F32);
	return y[0];
}

static double sigmoid(double x)
{
	return 1.0 / (1.0 + exp(-x));
}

/* The largest relative error on [low, high], on a grid that meets no special points, and around
 * zero by powers of two down to denormals. */
static double worst_error(function *fast, double (*exact)(double), double low, double high)
{
	double worst = 0.0;
	for (int i = 0; i <= 400000; i++) {
		float x = (float)(low + (high - low) * i / 400000.0);
		double y = exact((double)x);
		worst = fmax(worst, fabs((double)fast(x) - y) / y);
	}
	for (int exponent = -149; exponent < 0; exponent++)
		for (int sign = -1; sign <= 1; sign += 2) {
			float x = ldexpf((float)sign, exponent);
			double y = exact((double)x);
			worst = fmax(worst, fabs((double)fast(x) - y) / y);
		}
	return worst;
}

static void assert_below(const char *what, double worst, double limit)
{
	print_message("# %s: relative error %.3g\n", what, worst);
	if (!(worst < limit))
		fail_msg("%s: relative error %.3g", what, worst);
}

static void test_exp_and_sigmoid_against_libm(void **unused)
{
	needs_cpu();
	assert_below("exp", worst_error(exp_of, exp, -87.0, 88.0), 3e-7);
	assert_below("sigmoid", worst_error(sigmoid_of, sigmoid, -79.9, 100.0), 3e-7);
	assert_below(
		"sigmoid for bf16", worst_error(sigmoid_bf16_of, sigmoid, -87.0, 100.0), 1.5e-4);
}

static void test_the_form_chooses_the_sigmoid(void **unused)
{
	needs_cpu();
	for (float x = -20.0f; x < 20.0f; x += 0.37f) {
		assert_true(sigmoid_for_f32(x) == sigmoid_of(x));
		assert_true(sigmoid_for_bf16(x) == sigmoid_bf16_of(x));
	}
}

/* Far out the limits; where x itself is about to overflow, they or NaN, never a wrong number: a
 * step with such values must not look finite. */
static void check_ends(const char *what, function *fast)
{
	static const float far[] = {88.0f, 90.0f, 1e3f, 1e6f, 1e10f};
	static const float extreme[] = {1e15f, 1e30f, 3e38f, INFINITY};
	assert_true(isnan(fast(NAN)) && isnan(fast(-NAN)));
	for (size_t i = 0; i < sizeof(far) / sizeof(*far); i++) {
		float up = fast(far[i]), down = fast(-far[i]);
		if (!(fabsf(up - 1.0f) < 1.5e-4f) || !(down >= 0.0f && down < 1e-34f))
			fail_msg("%s of +-%g: %g, %g", what, (double)far[i], (double)up,
				(double)down);
	}
	for (size_t i = 0; i < sizeof(extreme) / sizeof(*extreme); i++) {
		float up = fast(extreme[i]), down = fast(-extreme[i]);
		if (fabsf(up - 1.0f) > 1.5e-4f || down < 0.0f || down > 1e-34f)
			fail_msg("%s of +-%g: %g, %g", what, (double)extreme[i], (double)up,
				(double)down);
	}
}

static void test_ends(void **unused)
{
	needs_cpu();
	check_ends("sigmoid", sigmoid_of);
	check_ends("sigmoid for bf16", sigmoid_bf16_of);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rounding),
		cmocka_unit_test(test_widening),
		cmocka_unit_test(test_arithmetic),
		cmocka_unit_test(test_exp_and_sigmoid_against_libm),
		cmocka_unit_test(test_the_form_chooses_the_sigmoid),
		cmocka_unit_test(test_ends),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
