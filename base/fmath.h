/* Elementary functions without libm, so that their bits depend on no library: only IEEE operations,
 * explicit fused multiply-adds (build with -ffp-contract=off), no branches that a vectoriser could
 * not turn into selects. Largest errors measured (tests/unit/test_fmath.c holds them): fm_exp 1
 * ulp, fm_log 2 ulp, fm_sincos_turns 1e-7, fm_exp_d 1 ulp, fm_log_d 2 ulp, fm_sincos_d 2 ulp.
 *
 * Methods: Cody-Waite reduction and polynomials; log by the atanh series (Muller, Elementary
 * Functions, 3rd ed., chapters 3 and 11). */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float fm_from_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static inline uint32_t fm_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static inline double fm_from_bits_d(uint64_t bits)
{
	double value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static inline uint64_t fm_bits_d(double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

/* The nearest integer, for |x| < 2^22 (2^51): adding 1.5 * 2^23 rounds in the last place. */
static inline float fm_round(float x)
{
	return (x + 12582912.0f) - 12582912.0f;
}

static inline double fm_round_d(double x)
{
	return (x + 6755399441055744.0) - 6755399441055744.0;
}

/* e^x; 0 below -87.3, infinity above 88.7, NaN stays NaN. */
static inline float fm_exp(float x)
{
	float clamped = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
	float n = fm_round(clamped * 1.44269504f);
	float r = __builtin_fmaf(n, -0.693359375f, clamped);
	float p = 1.0f / 5040;

	r = __builtin_fmaf(n, 2.12194440e-4f, r);
	p = __builtin_fmaf(p, r, 1.0f / 720);
	p = __builtin_fmaf(p, r, 1.0f / 120);
	p = __builtin_fmaf(p, r, 1.0f / 24);
	p = __builtin_fmaf(p, r, 1.0f / 6);
	p = __builtin_fmaf(p, r, 0.5f);
	p = __builtin_fmaf(p, r, 1.0f);
	p = __builtin_fmaf(p, r, 1.0f);
	/* NaN would be undefined as an integer; its result is thrown away below. */
	int32_t exponent = (int32_t)(n == n ? n : 0.0f);
	/* Two factors, because 2^128 itself is no float. */
	int32_t half = exponent >> 1;
	float scale = fm_from_bits((uint32_t)(half + 127) << 23);
	float rest = fm_from_bits((uint32_t)(exponent - half + 127) << 23);
	float value = p * scale * rest;

	value = x < -87.3f ? 0.0f : value;
	value = x > 88.7f ? __builtin_inff() : value;
	return x == x ? value : x;
}

/* 1 / (1 + e^-x) */
static inline float fm_sigmoid(float x)
{
	return 1.0f / (1.0f + fm_exp(-x));
}

/* Natural logarithm of a positive normal float. */
static inline float fm_log(float x)
{
	uint32_t bits = fm_bits(x);
	/* mantissa in [sqrt(1/2), sqrt(2)) */
	int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23;
	float m = fm_from_bits(bits - ((uint32_t)exponent << 23));
	float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
	float p = 2.0f / 11, e = (float)exponent;

	p = __builtin_fmaf(p, s2, 2.0f / 9);
	p = __builtin_fmaf(p, s2, 2.0f / 7);
	p = __builtin_fmaf(p, s2, 2.0f / 5);
	p = __builtin_fmaf(p, s2, 2.0f / 3);
	p = p * s2;
	float tail = __builtin_fmaf(e, -2.12194440e-4f, p * s);
	return __builtin_fmaf(e, 0.693359375f, __builtin_fmaf(s, 2.0f, tail));
}

/* Sine and cosine of u whole turns, 0 <= u <= 1. */
static inline void fm_sincos_turns(float u, float *ret_sin, float *ret_cos)
{
	float quadrant = fm_round(u * 4.0f);
	float x = (u - quadrant * 0.25f) * 6.28318531f, x2 = x * x;
	float s = 2.75573192e-6f, c = 2.48015873e-5f;
	uint32_t q = (uint32_t)(int32_t)quadrant & 3;

	s = __builtin_fmaf(s, x2, -1.98412698e-4f);
	s = __builtin_fmaf(s, x2, 8.33333333e-3f);
	s = __builtin_fmaf(s, x2, -1.66666667e-1f);
	s = __builtin_fmaf(s * x2, x, x);
	c = __builtin_fmaf(-2.75573192e-7f, x2, c);
	c = __builtin_fmaf(c, x2, -1.38888889e-3f);
	c = __builtin_fmaf(c, x2, 4.16666667e-2f);
	c = __builtin_fmaf(c, x2, -0.5f);
	c = __builtin_fmaf(c, x2, 1.0f);
	float sine = q & 1 ? c : s, cosine = q & 1 ? s : c;

	*ret_sin = fm_from_bits(fm_bits(sine) ^ (q & 2) << 30);
	*ret_cos = fm_from_bits(fm_bits(cosine) ^ ((q + 1) & 2) << 30);
}

/* e^x for -700 <= x <= 700. */
static inline double fm_exp_d(double x)
{
	double n = fm_round_d(x * 1.4426950408889634);
	double r = __builtin_fma(n, -0.693147180369123816490, x);
	double p = 1.0 / 6227020800.0;
	static const double inverse_factorial[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
		1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5,
		1.0, 1.0};

	r = __builtin_fma(n, -1.90821492927058770002e-10, r);
	for (int i = 0; i < 13; i++)
		p = __builtin_fma(p, r, inverse_factorial[i]);
	return p * fm_from_bits_d((uint64_t)((int64_t)n + 1023) << 52);
}

/* Natural logarithm of a positive normal double. */
static inline double fm_log_d(double x)
{
	uint64_t bits = fm_bits_d(x);
	int64_t exponent = (int64_t)(bits - UINT64_C(0x3fe6a09e667f3bcd)) >> 52;
	double m = fm_from_bits_d(bits - ((uint64_t)exponent << 52));
	double s = (m - 1.0) / (m + 1.0), s2 = s * s, e = (double)exponent;
	double p = 2.0 / 23;

	for (int k = 21; k >= 3; k -= 2)
		p = __builtin_fma(p, s2, 2.0 / k);
	double tail = __builtin_fma(e, 1.90821492927058770002e-10, p * s2 * s);
	return __builtin_fma(e, 0.693147180369123816490, __builtin_fma(s, 2.0, tail));
}

/* Sine and cosine of x radians, |x| <= 1e5. */
static inline void fm_sincos_d(double x, double *ret_sin, double *ret_cos)
{
	double n = fm_round_d(x * 0.63661977236758134308);
	double r = __builtin_fma(n, -1.57079632679489655800, x);
	double s = -1.0 / 121645100408832000.0, c = -1.0 / 6402373705728000.0;
	uint64_t q = (uint64_t)(int64_t)n & 3;
	static const double sine_terms[] = {1.0 / 355687428096000.0, -1.0 / 1307674368000.0,
		1.0 / 6227020800.0, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120,
		-1.0 / 6};
	static const double cosine_terms[] = {1.0 / 20922789888000.0, -1.0 / 87178291200.0,
		1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24, -0.5};

	r = __builtin_fma(n, -6.12323399573676603587e-17, r);
	double r2 = r * r;
	for (int i = 0; i < 8; i++) {
		s = __builtin_fma(s, r2, sine_terms[i]);
		c = __builtin_fma(c, r2, cosine_terms[i]);
	}
	s = __builtin_fma(s * r2, r, r);
	c = __builtin_fma(c, r2, 1.0);
	double sine = q & 1 ? c : s, cosine = q & 1 ? s : c;
	*ret_sin = q & 2 ? -sine : sine;
	*ret_cos = (q + 1) & 2 ? -cosine : cosine;
}

static inline double fm_cos_d(double x)
{
	double sine, cosine;

	fm_sincos_d(x, &sine, &cosine);
	return cosine;
}

/* base^exponent for a positive base. */
static inline double fm_pow_d(double base, double exponent)
{
	return fm_exp_d(exponent * fm_log_d(base));
}
