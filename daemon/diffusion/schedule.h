/* The noise schedule and the pieces of DDPM training that are functions of t. Formulas: Ho et al.
 * 2020 (DDPM) eq. 4 and 14; t = 0..T-1 as in diffusers. */
#pragma once

#include "base/error.h"
#include "base/rng.h"

#include <stdint.h>

#define SCHEDULE_TIMESTEPS_MAX 10000

struct schedule {
	uint32_t count; /* T */
	double beta[SCHEDULE_TIMESTEPS_MAX];
	double alpha_bar[SCHEDULE_TIMESTEPS_MAX]; /* product in fp64 */
};

/* name: linear, scaled_linear, squaredcos_cap_v2. -EINVAL. */
int schedule_init(struct schedule *schedule, const char *name, uint32_t timesteps,
	double beta_start, double beta_end, struct error *err);

/* x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, elementwise over count values. */
void schedule_add_noise(const struct schedule *schedule, uint32_t t, const float *x0,
	const float *eps, float *x_t, uint64_t count);
