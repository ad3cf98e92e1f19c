/* One training step of a net on the golden inputs, on any engine: what the tests of nets share. */
#pragma once

#include "tests/unit/golden_unet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/unit/engines.h"

/* Concatenations of different widths, heads narrower than a square, three levels. */
static inline struct unet_config uneven_config(void)
{
	return (struct unet_config){
		.sample_size = 8,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 3,
		.channels = {32, 96, 64},
		.down_attention = {false, true, true},
		.up_attention = {true, false, true},
		.layers_per_block = 1,
		.head_dim = 16,
		.groups = 8,
		.norm_eps = 1e-5f,
		.downsample_padding = 0,
		.flip_sin_to_cos = true,
	};
}

struct run {
	struct unet_config config;
	struct tensor_table table;
	struct unet *unet;
	uint32_t n;
	size_t x_elems, elems; /* of x; of y */
	float *weights, *grads, *x, *y, *target, *dy;
	float timesteps[8];
	int32_t labels[8];
	double loss;
};

static inline float *run_floats(size_t count)
{
	float *values = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
	assert_non_null(values);
	memset(values, 0, count * sizeof(float));
	return values;
}

static inline void run_init_with(
	struct run *run, const struct unet_config *config, uint32_t n, struct unet_setup setup)
{
	struct error err;
	*run = (struct run){.config = *config, .n = n, .timesteps = {10, 500}, .labels = {0, 3}};
	if (unet_tensor_table(config, &run->table, &err) < 0)
		fail_msg("%s", err.text);
	setup.config = config;
	setup.table = &run->table;
	if (unet_new(&setup, &run->unet, &err) < 0)
		fail_msg("%s", err.text);
	size_t section = run->table.section_bytes / sizeof(float);
	size_t pixels = (size_t)config->sample_size * config->sample_size;
	run->x_elems = n * config->in_channels * pixels;
	run->elems = n * config->out_channels * pixels;
	run->weights = run_floats(section);
	run->grads = run_floats(section);
	run->x = run_floats(run->x_elems);
	run->y = run_floats(run->elems);
	run->target = run_floats(run->elems);
	run->dy = run_floats(run->elems);
	golden_weights(&run->table, run->weights);
	golden_fill(0xFFFF, run->x, run->x_elems);
	golden_fill(0xFFFE, run->target, run->elems);
	unet_load_weights(run->unet, run->weights);
}

static inline void run_init(struct run *run, const struct engine *engine, struct unet_config config,
	uint32_t n, uint32_t batch)
{
	run_init_with(run, &config, n,
		(struct unet_setup){.engine = engine, .batch = batch, .training = true});
}

static inline void run_fini(struct run *run)
{
	unet_free(run->unet);
	tensor_table_fini(&run->table);
	free(run->weights);
	free(run->grads);
	free(run->x);
	free(run->y);
	free(run->target);
	free(run->dy);
}

static inline void run_step(struct run *run, bool accumulate)
{
	unet_forward(run->unet, run->n, run->x, run->timesteps, run->labels, run->y);
	run->loss = 0.0;
	for (size_t i = 0; i < run->elems; i++) {
		double d = (double)run->y[i] - (double)run->target[i];
		run->loss += d * d / (double)run->elems;
		run->dy[i] = (float)(2.0 * d / (double)run->elems);
	}
	unet_backward(run->unet, run->dy, run->grads, accumulate);
}

static inline size_t run_section(const struct run *run)
{
	return run->table.section_bytes / sizeof(float);
}

/* Of the outputs and all gradients. */
static inline void assert_same_bits(const struct run *a, const struct run *b)
{
	if (memcmp(a->y, b->y, a->elems * sizeof(float)) != 0)
		fail_msg("y has other bits");
	for (uint32_t i = 0; i < a->table.count; i++) {
		const struct tensor_spec *spec = &a->table.specs[i];
		size_t at = spec->offset / sizeof(float);
		if (memcmp(a->grads + at, b->grads + at, spec->elem_count * sizeof(float)) != 0)
			fail_msg("the gradient of %s has other bits", spec->name);
	}
}

static inline double norm_of(const float *values, size_t count)
{
	double sum = 0.0;
	for (size_t i = 0; i < count; i++)
		sum += (double)values[i] * (double)values[i];
	return sqrt(sum);
}

static inline double distance_of(const float *a, const float *b, size_t count)
{
	double sum = 0.0;
	for (size_t i = 0; i < count; i++)
		sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
	return sqrt(sum);
}

static inline void assert_close(const char *what, double value, double golden, double tolerance)
{
	if (!(fabs(value - golden) <= tolerance))
		fail_msg("%s: %.9g, golden %.9g, off by %.3g", what, value, golden,
			fabs(value - golden));
}
