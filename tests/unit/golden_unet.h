/* The nets, the fill of weights and inputs, and the numbers that diffusers 0.27.2 gave for them
 * (docs/MODEL.md, golden numbers). */
#pragma once

#include "daemon/model/unet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static inline double golden_value(uint32_t tensor, uint32_t element)
{
	uint32_t h = element + tensor * 0x9E3779B9u;
	h ^= h >> 16;
	h *= 0x7feb352du;
	h ^= h >> 15;
	h *= 0x846ca68bu;
	h ^= h >> 16;
	return (double)h / 2147483648.0 - 1.0;
}

static inline void golden_fill(uint32_t tensor, float *values, size_t count)
{
	for (size_t i = 0; i < count; i++)
		values[i] = (float)golden_value(tensor, (uint32_t)i);
}

static inline int golden_by_name(const void *a, const void *b)
{
	const struct tensor_spec *const *left = a, *const *right = b;
	return strcmp((*left)->name, (*right)->name);
}

/* Every tensor's values: by its index in the order of names. */
static inline void golden_weights(const struct tensor_table *table, float *section)
{
	const struct tensor_spec **order = calloc(table->count, sizeof(*order));
	for (uint32_t i = 0; i < table->count; i++)
		order[i] = &table->specs[i];
	qsort(order, table->count, sizeof(*order), golden_by_name);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct tensor_spec *spec = order[i];
		float *values = section + spec->offset / sizeof(float);
		uint64_t fan_in = spec->elem_count / spec->shape[0];
		size_t length = strlen(spec->name);
		bool weight = length > 6 && !strcmp(spec->name + length - 6, "weight");
		for (uint64_t j = 0; j < spec->elem_count; j++) {
			double v = golden_value(i, (uint32_t)j);
			if (spec->dim_count >= 2)
				v /= sqrt((double)fan_in);
			else
				v = (weight ? 1.0 : 0.0) + 0.1 * v;
			values[j] = (float)v;
		}
	}
	free(order);
}

static inline struct unet_config golden_config_a(void)
{
	return (struct unet_config){
		.sample_size = 8,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 2,
		.channels = {32, 64},
		.down_attention = {false, true},
		.up_attention = {true, false},
		.layers_per_block = 1,
		.head_dim = 8,
		.groups = 8,
		.norm_eps = 1e-5f,
		.downsample_padding = 1,
		.flip_sin_to_cos = true,
		.freq_shift = 0,
	};
}

static inline struct unet_config golden_config_b(void)
{
	struct unet_config config = golden_config_a();
	config.head_dim = 0;
	config.downsample_padding = 0;
	config.flip_sin_to_cos = false;
	config.freq_shift = 1;
	config.norm_eps = 1e-6f;
	return config;
}

static inline struct unet_config golden_config_a4(void)
{
	struct unet_config config = golden_config_a();
	config.class_count = 4;
	return config;
}

/* ddpm-cifar10-32 */
static inline struct unet_config golden_config_c(void)
{
	return (struct unet_config){
		.sample_size = 32,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 4,
		.channels = {128, 256, 256, 256},
		.down_attention = {false, true, false, false},
		.up_attention = {false, false, true, false},
		.layers_per_block = 2,
		.head_dim = 0,
		.groups = 32,
		.norm_eps = 1e-6f,
		.downsample_padding = 0,
		.flip_sin_to_cos = false,
		.freq_shift = 1,
	};
}

/* The default of diffusers' train_unconditional.py. */
static inline struct unet_config golden_config_unconditional(void)
{
	return (struct unet_config){
		.sample_size = 64,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 6,
		.channels = {128, 128, 256, 256, 512, 512},
		.down_attention = {false, false, false, false, true, false},
		.up_attention = {false, true, false, false, false, false},
		.layers_per_block = 2,
		.head_dim = 8,
		.groups = 32,
		.norm_eps = 1e-5f,
		.downsample_padding = 1,
		.flip_sin_to_cos = true,
		.freq_shift = 0,
	};
}
