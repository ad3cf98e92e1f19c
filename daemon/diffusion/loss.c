/* The loss and its gradient. Threads split samples; the sum inside a sample runs over a fixed set
 * of lanes that are added in a fixed order. */
#include "daemon/diffusion/loss.h"
#include "base/panic.h"

#include <stddef.h>

#define LANES 16

static double sample_mean(
	uint64_t elems, float scale, const float *target, const float *output, float *gradient)
{
	double lane[LANES] = {0};
	double sum = 0.0;
	uint64_t whole = elems - elems % LANES;

	for (uint64_t i = 0; i < whole; i += LANES) {
		for (unsigned j = 0; j < LANES; j++) {
			double difference = (double)(output[i + j] - target[i + j]);
			lane[j] += difference * difference;
		}
	}
	for (uint64_t i = whole; i < elems; i++) {
		double difference = (double)(output[i] - target[i]);
		lane[i - whole] += difference * difference;
	}
	for (unsigned j = 0; j < LANES; j++)
		sum += lane[j];
	if (gradient)
		for (uint64_t i = 0; i < elems; i++)
			gradient[i] = scale * (output[i] - target[i]);
	return sum / (double)elems;
}

void loss_mse(uint32_t n, uint64_t elems, uint32_t batch, const float *target, const float *output,
	float *gradient, double *per_sample)
{
	float scale = (float)(2.0 / ((double)batch * (double)elems));

#pragma omp parallel for schedule(static) if (n > 1)
	for (uint32_t s = 0; s < n; s++)
		per_sample[s] = sample_mean(elems, scale, target + s * elems, output + s * elems,
			gradient ? gradient + s * elems : NULL);
}

void loss_add(struct loss *loss, uint32_t n, const double *per_sample, const uint32_t *timesteps,
	uint32_t timestep_count)
{
	for (uint32_t s = 0; s < n; s++) {
		CHECK(timesteps[s] < timestep_count);
		uint32_t quartile = (uint32_t)((uint64_t)timesteps[s] * 4 / timestep_count);
		loss->mean += per_sample[s];
		loss->quartile_sum[quartile] += per_sample[s];
		loss->quartile_count[quartile]++;
	}
}

void loss_finish(struct loss *loss)
{
	uint64_t count = 0;

	for (unsigned q = 0; q < 4; q++)
		count += loss->quartile_count[q];
	if (count)
		loss->mean /= (double)count;
}
