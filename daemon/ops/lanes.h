/* Sixteen floats at a time, from and to both element types: what the passes over activations are
 * made of. With AVX-512 a register, elsewhere an array that the compiler vectorises.
 *
 * lanes_sigmoid keeps fp32 (relative error under 3e-7), lanes_sigmoid_bf16 what a value that is
 * rounded to bf16 next can use (under 1.5e-4; bf16 rounds by 2e-3). Neither calls libm. */
#pragma once

#include "base/fmath.h"
#include "daemon/ops/tensor.h"

#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* One value to nearest even, a NaN stays one; and back. */
static inline uint16_t bf16_of(float value)
{
	uint32_t bits = fm_bits(value);
	uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
	return (uint16_t)(value == value ? rounded : 0x7fc0);
}

static inline float float_of_bf16(uint16_t half)
{
	return fm_from_bits((uint32_t)half << 16);
}

#define LANES 16
#define LANES_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

typedef __m512 lanes;

LANES_INLINE lanes lanes_of(float value)
{
	return _mm512_set1_ps(value);
}

LANES_INLINE lanes lanes_load(const void *at, enum elem elem)
{
	if (elem == ELEM_F32)
		return _mm512_loadu_ps(at);
	__m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at));
	return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* To nearest even. A NaN stays one. */
LANES_INLINE void lanes_store(void *at, lanes x, enum elem elem)
{
	if (elem == ELEM_F32) {
		_mm512_storeu_ps(at, x);
		return;
	}
#ifdef __AVX512BF16__
	_mm256_storeu_si256(at, (__m256i)_mm512_cvtneps_pbh(x));
#else
	__m512i bits = _mm512_castps_si512(x);
	__m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
	__m512i round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
	__mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
	bits = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, bits, round);
	_mm256_storeu_si256(at, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
#endif
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
	return _mm512_add_ps(a, b);
}

LANES_INLINE lanes lanes_sub(lanes a, lanes b)
{
	return _mm512_sub_ps(a, b);
}

LANES_INLINE lanes lanes_mul(lanes a, lanes b)
{
	return _mm512_mul_ps(a, b);
}

/* a b + c, rounded once. */
LANES_INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
	return _mm512_fmadd_ps(a, b, c);
}

/* sum[i] += x[i] in double. */
LANES_INLINE void lanes_add_to(double sum[LANES], lanes x)
{
	__m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
	__m512d high = _mm512_cvtps_pd(
		_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
	_mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), low));
	_mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8), high));
}

/* e^x: Cody-Waite to |r| <= ln(2) / 2, then the Taylor polynomial of degree 6. */
LANES_INLINE lanes lanes_exp(lanes x)
{
	lanes n = _mm512_roundscale_ps(lanes_mul(x, lanes_of(1.44269504f)), 8);
	lanes r = lanes_fma(n, lanes_of(-0.693359375f), x);
	lanes p = lanes_of(1.0f / 720);
	r = lanes_fma(n, lanes_of(2.12194440e-4f), r);
	p = lanes_fma(p, r, lanes_of(1.0f / 120));
	p = lanes_fma(p, r, lanes_of(1.0f / 24));
	p = lanes_fma(p, r, lanes_of(1.0f / 6));
	p = lanes_fma(p, r, lanes_of(0.5f));
	p = lanes_fma(p, r, lanes_of(1.0f));
	p = lanes_fma(p, r, lanes_of(1.0f));
	return _mm512_scalef_ps(p, n);
}

/* 1 / (1 + e^-x); one step of Newton's method makes 14 bits 23. */
LANES_INLINE lanes lanes_sigmoid(lanes x)
{
	/* e^80 is far from where 1 + e^-x overflows; a NaN passes as the second operand. */
	lanes e = lanes_exp(_mm512_min_ps(lanes_of(80.0f), _mm512_sub_ps(_mm512_setzero_ps(), x)));
	lanes d = lanes_add(lanes_of(1.0f), e), r = _mm512_rcp14_ps(d);
	return lanes_fma(r, _mm512_fnmadd_ps(d, r, lanes_of(1.0f)), r);
}

/* 2^f on |f| <= 1/2 by the cubic of least relative error, 7.5e-5. */
LANES_INLINE lanes lanes_sigmoid_bf16(lanes x)
{
	lanes t = lanes_mul(x, lanes_of(-1.44269504f));
	lanes n = _mm512_roundscale_ps(t, 8), f = lanes_sub(t, n);
	lanes p = lanes_fma(f, lanes_of(0.05517132f), lanes_of(0.24261054f));
	p = lanes_fma(p, f, lanes_of(0.69326099f));
	p = lanes_fma(p, f, lanes_of(0.99992811f));
	return _mm512_rcp14_ps(lanes_add(lanes_of(1.0f), _mm512_scalef_ps(p, n)));
}

#else

typedef struct {
	float at[LANES];
} lanes;

#define LANES_EACH(expression)                                                                     \
	lanes y;                                                                                   \
	for (int i = 0; i < LANES; i++)                                                            \
		y.at[i] = (expression);                                                            \
	return y

LANES_INLINE lanes lanes_of(float value)
{
	LANES_EACH(value);
}

LANES_INLINE lanes lanes_load(const void *at, enum elem elem)
{
	lanes x;
	uint16_t half[LANES];
	if (elem == ELEM_F32) {
		memcpy(&x, at, sizeof(x));
		return x;
	}
	memcpy(half, at, sizeof(half));
	for (int i = 0; i < LANES; i++)
		x.at[i] = float_of_bf16(half[i]);
	return x;
}

/* To nearest even. A NaN stays one. */
LANES_INLINE void lanes_store(void *at, lanes x, enum elem elem)
{
	uint16_t half[LANES];
	if (elem == ELEM_F32) {
		memcpy(at, &x, sizeof(x));
		return;
	}
	for (int i = 0; i < LANES; i++)
		half[i] = bf16_of(x.at[i]);
	memcpy(at, half, sizeof(half));
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
	LANES_EACH(a.at[i] + b.at[i]);
}

LANES_INLINE lanes lanes_sub(lanes a, lanes b)
{
	LANES_EACH(a.at[i] - b.at[i]);
}

LANES_INLINE lanes lanes_mul(lanes a, lanes b)
{
	LANES_EACH(a.at[i] * b.at[i]);
}

/* a b + c, rounded once. */
LANES_INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
	LANES_EACH(__builtin_fmaf(a.at[i], b.at[i], c.at[i]));
}

/* sum[i] += x[i] in double. */
LANES_INLINE void lanes_add_to(double sum[LANES], lanes x)
{
	for (int i = 0; i < LANES; i++)
		sum[i] += (double)x.at[i];
}

LANES_INLINE lanes lanes_exp(lanes x)
{
	LANES_EACH(fm_exp(x.at[i]));
}

LANES_INLINE lanes lanes_sigmoid(lanes x)
{
	LANES_EACH(fm_sigmoid(x.at[i]));
}

LANES_INLINE lanes lanes_sigmoid_bf16(lanes x)
{
	LANES_EACH(fm_sigmoid(x.at[i]));
}

#undef LANES_EACH

#endif

/* The one that suits what is stored next. */
LANES_INLINE lanes lanes_sigmoid_for(lanes x, enum elem elem)
{
	return elem == ELEM_BF16 ? lanes_sigmoid_bf16(x) : lanes_sigmoid(x);
}
