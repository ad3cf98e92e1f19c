/* What the tests of the operators share: deterministic values, tensors that start as NaN everywhere
 * (so that a pad which nobody wrote, or a stale value that somebody read, is seen), and finite
 * differences of a naive double function. */
#pragma once

#include "base/rng.h"
#include "daemon/ops/layout.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline double *check_doubles(size_t count)
{
	double *values = calloc(count ? count : 1, sizeof(*values));
	assert_non_null(values);
	return values;
}

static inline float *check_floats(size_t count)
{
	float *values = aligned_alloc(64, (count * sizeof(float) + 127) / 64 * 64);
	assert_non_null(values);
	for (size_t i = 0; i < count; i++)
		values[i] = NAN;
	return values;
}

/* Standard normals, as floats and as the same values in double. */
static inline void check_fill(uint64_t seed, double *values, float *floats, size_t count)
{
	struct rng rng;
	rng_init(&rng, seed);
	float *drawn = check_floats(count);
	rng_normal(&rng, RNG_DATA, 0, 0, drawn, count);
	for (size_t i = 0; i < count; i++) {
		if (values)
			values[i] = (double)drawn[i];
		if (floats)
			floats[i] = drawn[i];
	}
	free(drawn);
}

/* A tensor in a layout; data is position 0. */
struct field {
	const struct layout *layout;
	uint32_t channels, width;
	float *memory, *data;
};

static inline struct field field_new(const struct layout *layout, uint32_t channels)
{
	struct field field = {layout, channels, round_up_channels(channels), NULL, NULL};
	field.memory = check_floats(layout_elems(layout, field.width));
	field.data = field.memory + (size_t)layout->head * field.width;
	return field;
}

static inline void field_free(struct field *field)
{
	free(field->memory);
}

/* From and to NCHW doubles. */
static inline void field_set(struct field *field, uint32_t n, const double *values)
{
	size_t count = (size_t)n * field->channels * field->layout->height * field->layout->width;
	float *floats = check_floats(count);
	for (size_t i = 0; i < count; i++)
		floats[i] = (float)values[i];
	layout_scatter_image(field->layout, n, floats, field->channels, field->data, field->width);
	free(floats);
}

static inline float *field_get(const struct field *field, uint32_t n)
{
	size_t count = (size_t)n * field->channels * field->layout->height * field->layout->width;
	float *floats = check_floats(count);
	layout_gather_image(field->layout, n, field->data, field->width, field->channels, floats);
	return floats;
}

static inline void assert_clean(const struct field *field, uint32_t n)
{
	assert_true(
		layout_pads_are_zero(field->layout, n, field->data, field->channels, field->width));
}

static inline void assert_near(
	const char *what, size_t index, double value, double expected, double tolerance)
{
	if (!(fabs(value - expected) <= tolerance * (1.0 + fabs(expected))))
		fail_msg("%s[%zu]: %.9g, expected %.9g, off by %.3g", what, index, value, expected,
			fabs(value - expected));
}

static inline void assert_all_near(const char *what, const float *values, const double *expected,
	size_t count, double tolerance)
{
	for (size_t i = 0; i < count; i++)
		assert_near(what, i, (double)values[i], expected[i], tolerance);
}

/* The loss of the gradient checks: sum of output times a fixed direction. */
typedef double check_loss(void *context);

/* gradient[i] against the central difference of loss by values[i], for every step-th i. */
static inline void check_gradient(const char *what, double *values, size_t count, size_t step,
	const float *gradient, check_loss *loss, void *context, double tolerance)
{
	const double epsilon = 1e-4;
	for (size_t i = 0; i < count; i += step) {
		double value = values[i];
		values[i] = value + epsilon;
		double up = loss(context);
		values[i] = value - epsilon;
		double down = loss(context);
		values[i] = value;
		assert_near(what, i, (double)gradient[i], (up - down) / (2.0 * epsilon), tolerance);
	}
}

/* Runs a function with 1, 2, 3 and 5 threads; it leaves count floats in result each time, and they
 * must be the same bits (P2). */
typedef void check_run(void *context);

static inline void check_threads(
	const char *what, check_run *run, void *context, const float *result, size_t count)
{
	static const int threads[] = {1, 2, 3, 5};
	int before = omp_get_max_threads();
	float *first = check_floats(count);
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		omp_set_num_threads(threads[i]);
		run(context);
		if (i == 0)
			memcpy(first, result, count * sizeof(float));
		else if (memcmp(first, result, count * sizeof(float)))
			fail_msg("%s: %d threads give other bits than 1", what, threads[i]);
	}
	omp_set_num_threads(before);
	free(first);
}

static inline double check_dot(const double *a, const double *b, size_t count)
{
	double sum = 0.0;
	for (size_t i = 0; i < count; i++)
		sum += a[i] * b[i];
	return sum;
}
