/* L_simple: mean over batch, channels and pixels of (eps - eps_hat)^2 (DDPM eq. 14), with its
 * gradient, in fixed order: the result does not depend on threads. */
#pragma once

#include <stdint.h>

struct loss {
	double mean;            /* over the samples given */
	double quartile_sum[4]; /* by timestep: 4 t / T */
	uint32_t quartile_count[4];
};

/* target, output, gradient: [n, elems]; per_sample [n] gets each sample's mean; gradient (may be
 * NULL) = 2 (output - target) / (batch elems), batch being the whole step's. */
void loss_mse(uint32_t n, uint64_t elems, uint32_t batch, const float *target, const float *output,
	float *gradient, double *per_sample);
/* Adds n samples into loss in order. loss_finish makes mean the mean; the quartiles stay sums
 * beside their counts. */
void loss_add(struct loss *loss, uint32_t n, const double *per_sample, const uint32_t *timesteps,
	uint32_t timestep_count);
void loss_finish(struct loss *loss);
