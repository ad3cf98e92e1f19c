/* What the tests of the operators share: an engine for each row of a test, deterministic values,
 * tensors that start as NaN everywhere (so that a pad which nobody wrote, or a stale value that
 * somebody read, is seen), finite differences of a naive double function, and how far results may
 * be from it.
 *
 * bf16 has 8 bits of mantissa: rounding moves a value by at most 2^-8 of itself, and values of all
 * mantissas by 1.7e-3 in the mean square (a uniform error of 2^-7 of the power of two below). What
 * is given to an engine is rounded to its form first, so only its own roundings count. */
#pragma once

#include "base/fmath.h"
#include "base/rng.h"
#include "daemon/ops/tensor.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/engines.h"

/* For what depends on the form alone: its state is the form. Neither needs an engine. */
static const struct form check_fp32 = {ELEM_F32, 0, 16}, check_bf16 = {ELEM_BF16, 32, 32};
#define IN_FORM(test, form)                                                                        \
	(struct CMUnitTest)                                                                        \
	{                                                                                          \
		.name = #test " in " #form, .test_func = test,                                     \
		.initial_state = (void *)&check_##form                                             \
	}
#define IN_EACH_FORM(test) IN_FORM(test, fp32), IN_FORM(test, bf16)

static inline double *check_doubles(size_t count)
{
	double *values = calloc(count ? count : 1, sizeof(*values));
	assert_non_null(values);
	return values;
}

/* Every bit set is a NaN in fp32 and in bf16. */
static inline void *check_bytes(size_t bytes)
{
	size_t lines = bytes ? (bytes + 63) / 64 : 1;
	void *memory = aligned_alloc(64, lines * 64);
	assert_non_null(memory);
	memset(memory, 0xff, lines * 64);
	return memory;
}

static inline float *check_floats(size_t count)
{
	return check_bytes(count * sizeof(float));
}

/* To the nearest value of 8 bits of mantissa, ties to even; not for NaN, nor near the ends. */
static inline double check_rounded(double value, enum elem elem)
{
	int exponent;
	if (elem == ELEM_F32)
		return (double)(float)value;
	double mantissa = frexp(value, &exponent);
	return ldexp(nearbyint(ldexp(mantissa, 8)), exponent - 8);
}

/* Standard normals that elem can hold, as floats and as the same values in double. */
static inline void check_fill(
	uint64_t seed, enum elem elem, double *values, float *floats, size_t count)
{
	struct rng rng;
	rng_init(&rng, seed);
	float *drawn = check_floats(count);
	rng_normal(&rng, RNG_DATA, 0, 0, drawn, count);
	for (size_t i = 0; i < count; i++) {
		double value = check_rounded((double)drawn[i], elem);
		if (values)
			values[i] = value;
		if (floats)
			floats[i] = (float)value;
	}
	free(drawn);
}

/* A tensor with its memory. */
struct field {
	struct tensor tensor;
	void *memory;
};

static inline void field_spoil(struct field *field)
{
	memset(field->memory, 0xff, tensor_bytes(&field->tensor));
}

static inline struct field field_new(
	const struct form *form, const struct layout *layout, uint32_t channels)
{
	struct field field = {
		.tensor = tensor_of(layout, channels, round_up_to(channels, form->align), form)};
	field.memory = check_bytes(tensor_bytes(&field.tensor));
	tensor_bind(&field.tensor, field.memory);
	return field;
}

static inline void field_free(struct field *field)
{
	free(field->memory);
}

static inline double field_value(const struct field *field, uint32_t column, size_t position)
{
	const void *at = tensor_at(&field->tensor, column, (ptrdiff_t)position);
	uint32_t bits = 0;
	if (field->tensor.elem == ELEM_F32) {
		memcpy(&bits, at, 4);
	} else {
		uint16_t half;
		memcpy(&half, at, 2);
		bits = (uint32_t)half << 16;
	}
	return (double)fm_from_bits(bits);
}

/* From and to NCHW. */
static inline void field_set(struct field *field, uint32_t n, const double *values)
{
	const struct layout *layout = field->tensor.layout;
	size_t count = (size_t)n * field->tensor.channels * layout->height * layout->width;
	float *floats = check_floats(count);
	for (size_t i = 0; i < count; i++)
		floats[i] = (float)values[i];
	field_spoil(field);
	tensor_scatter_image(n, floats, &field->tensor);
	free(floats);
}

static inline double *field_get(const struct field *field, uint32_t n)
{
	const struct layout *layout = field->tensor.layout;
	size_t pixels = (size_t)layout->height * layout->width, at = 0;
	double *values = check_doubles((size_t)n * field->tensor.channels * pixels);
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t c = 0; c < field->tensor.channels; c++)
			for (uint32_t y = 0; y < layout->height; y++)
				for (uint32_t x = 0; x < layout->width; x++)
					values[at++] = field_value(
						field, c, layout_row(layout, image, y) + x);
	return values;
}

static inline void assert_clean(const struct field *field, uint32_t n)
{
	assert_true(tensor_is_clean(&field->tensor, n));
}

static inline void assert_near(
	const char *what, size_t index, double value, double expected, double tolerance)
{
	if (!(fabs(value - expected) <= tolerance * (1.0 + fabs(expected))))
		fail_msg("%s[%zu]: %.9g, expected %.9g, off by %.3g", what, index, value, expected,
			fabs(value - expected));
}

/* How far values may be from the definition: how often they are rounded to bf16 on their way, and
 * the tolerance of the fp32 arithmetic between. */
struct bound {
	unsigned roundings;
	double tolerance;
};

/* Roundings are independent, so their errors add in squares; twice that is allowed. A single value
 * bears its last rounding, 2^-8 of itself, and what earlier ones left: 6 times their mean square is
 * the most that was seen; twice that is allowed. */
static inline void assert_all_near(const char *what, const double *values, const double *expected,
	size_t count, struct bound bound)
{
	const double one = 1.7e-3;
	double square = 0.0, away = 0.0;
	for (size_t i = 0; i < count; i++) {
		square += expected[i] * expected[i];
		away += (values[i] - expected[i]) * (values[i] - expected[i]);
	}
	double norm = sqrt(square), mean = sqrt(square / (double)count);
	double early = bound.roundings > 1 ? one * sqrt(bound.roundings - 1.0) : 0.0;
	for (size_t i = 0; i < count; i++) {
		double allowed = bound.tolerance * (1.0 + fabs(expected[i]));
		if (bound.roundings)
			allowed += fabs(expected[i]) / 256 + 12.0 * early * mean;
		if (!(fabs(values[i] - expected[i]) <= allowed))
			fail_msg("%s[%zu]: %.9g, expected %.9g, off by %.3g", what, i, values[i],
				expected[i], fabs(values[i] - expected[i]));
	}
	if (bound.roundings && !(sqrt(away) <= 2.0 * one * sqrt(bound.roundings) * norm))
		fail_msg("%s: %.3g of the norm away", what, sqrt(away) / norm);
}

/* The same for what operators give as floats. */
static inline double *check_widened(const float *values, size_t count)
{
	double *wide = check_doubles(count);
	for (size_t i = 0; i < count; i++)
		wide[i] = (double)values[i];
	return wide;
}

/* The loss of the gradient checks: sum of output times a fixed direction. */
typedef double check_loss(void *context);

/* gradient[i] against the central difference of loss by values[i], for every step-th i. */
static inline void check_gradient(const char *what, double *values, size_t count, size_t step,
	const double *gradient, check_loss *loss, void *context, double tolerance)
{
	const double epsilon = 1e-4;
	for (size_t i = 0; i < count; i += step) {
		double value = values[i];
		values[i] = value + epsilon;
		double up = loss(context);
		values[i] = value - epsilon;
		double down = loss(context);
		values[i] = value;
		assert_near(what, i, gradient[i], (up - down) / (2.0 * epsilon), tolerance);
	}
}

static inline double check_dot(const double *a, const double *b, size_t count)
{
	double sum = 0.0;
	for (size_t i = 0; i < count; i++)
		sum += a[i] * b[i];
	return sum;
}

/* A number of these bytes, and of all that went into `bits` before (FNV-1a). */
static inline uint64_t check_bits(uint64_t bits, const void *data, size_t bytes)
{
	const uint8_t *at = data;
	for (size_t i = 0; i < bytes; i++)
		bits = (bits ^ at[i]) * UINT64_C(0x100000001b3);
	return bits;
}

/* All memory of a field, pads and all. */
static inline uint64_t field_bits(uint64_t bits, const struct field *field)
{
	return check_bits(bits, field->memory, tensor_bytes(&field->tensor));
}

/* Runs a function with 1, 2, 3 and 5 threads; it returns the bits of its results, and they must be
 * the same each time (P2). */
typedef uint64_t check_run(void *context);

static inline void check_threads(const char *what, check_run *run, void *context)
{
	static const int threads[] = {1, 2, 3, 5};
	int before = omp_get_max_threads();
	uint64_t first = 0;
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		omp_set_num_threads(threads[i]);
		uint64_t bits = run(context);
		if (i == 0)
			first = bits;
		else if (bits != first)
			fail_msg("%s: %d threads give other bits than 1", what, threads[i]);
	}
	omp_set_num_threads(before);
}
