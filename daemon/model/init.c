/* The first weights, as PyTorch draws them: convolutions and linears, weights and biases, uniform
 * within 1/sqrt(fan_in); norms 1 and 0; embeddings standard normal. */
#include "base/panic.h"
#include "daemon/model/unet.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The tensors that Ho et al. (DDPM) and improved-diffusion start at zero, so that the network's
 * first answer is zero: the last product of every residual branch, and of the network. */
static bool starts_at_zero(const char *name)
{
	return strstr(name, ".conv2.") || strstr(name, ".to_out.0.") ||
		strncmp(name, "conv_out.", 9) == 0;
}

/* The weight that a bias belongs to; a weight's own spec. */
static const struct tensor_spec *weight_of(
	const struct tensor_table *table, const struct tensor_spec *spec)
{
	const char *dot = strrchr(spec->name, '.');
	CHECK(dot);
	char name[TENSOR_NAME_MAX + 8];
	snprintf(name, sizeof(name), "%.*s.weight", (int)(dot - spec->name), spec->name);
	const struct tensor_spec *weight = tensor_table_find(table, name);
	CHECK(weight);
	return weight;
}

static void fill(float *values, uint64_t count, float value)
{
	for (uint64_t i = 0; i < count; i++)
		values[i] = value;
}

void unet_init_weights(const struct unet_config *config, const struct tensor_table *table,
	const struct rng *rng, bool zero_out, float *section)
{
	memset(section, 0, table->section_bytes);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct tensor_spec *spec = &table->specs[i];
		const struct tensor_spec *weight = weight_of(table, spec);
		float *values = section + spec->offset / sizeof(float);
		if (weight->dim_count == 1) { /* a norm */
			fill(values, spec->elem_count, spec == weight ? 1.0f : 0.0f);
		} else if (config->class_count && !strcmp(spec->name, "class_embedding.weight")) {
			rng_normal(rng, RNG_INIT, i, 0, values, spec->elem_count);
		} else if (!(zero_out && starts_at_zero(spec->name))) {
			uint64_t fan_in = weight->elem_count / weight->shape[0];
			float bound = 1.0f / sqrtf((float)fan_in);
			rng_uniform(rng, RNG_INIT, i, 0, bound, values, spec->elem_count);
		}
	}
}
