/* DDPM (Ho et al. 2020, eq. 7, fixed_small variance) and DDIM (Song et al. 2020, eq. 12, eta 0),
 * as diffusers' schedulers compute them: leading spacing, clip_sample, set_alpha_to_one. Pure: one
 * step takes the model's output and gives the next sample. */
#pragma once

#include "base/error.h"
#include "base/rng.h"
#include "daemon/diffusion/schedule.h"

#include <stdbool.h>
#include <stdint.h>

enum sampler_kind { SAMPLER_DDIM, SAMPLER_DDPM };

struct sampler {
	enum sampler_kind kind;
	const struct schedule *schedule;
	uint32_t step_count; /* S */
	bool clip_sample;    /* to +-1 */
};

int sampler_init(struct sampler *sampler, enum sampler_kind kind, const struct schedule *schedule,
	uint32_t step_count, bool clip_sample, struct error *err);
/* The timestep of step i = 0..S-1, descending. */
uint32_t sampler_timestep(const struct sampler *sampler, uint32_t i);
/* x [count] is advanced in place from step i to the next. noise (DDPM, all but the last step):
 * standard normals [count]; NULL for DDIM. */
void sampler_step(const struct sampler *sampler, uint32_t i, const float *eps_hat,
	const float *noise, float *x, uint64_t count);
/* Classifier-free guidance: eps = uncond + scale (cond - uncond), into cond. */
void sampler_guide(float scale, const float *uncond, float *cond, uint64_t count);
