/* One step of DDIM or DDPM. Coefficients in double, the sample in fp32, as diffusers orders the
 * operations: x0 is clipped, epsilon is not recomputed from it. */
#include "daemon/diffusion/sampler.h"
#include "base/panic.h"

#include <errno.h>
#include <stddef.h>

#define VARIANCE_MIN 1e-20

int sampler_init(struct sampler *sampler, enum sampler_kind kind, const struct schedule *schedule,
	uint32_t step_count, bool clip_sample, struct error *err)
{
	if (step_count == 0 || step_count > schedule->count)
		return error_set(err, -EINVAL, "%u sampling steps: must be 1 to %u (timesteps)",
			step_count, schedule->count);
	*sampler = (struct sampler){.kind = kind,
		.schedule = schedule,
		.step_count = step_count,
		.clip_sample = clip_sample};
	return 0;
}

/* Leading spacing, offset 0. */
uint32_t sampler_timestep(const struct sampler *sampler, uint32_t i)
{
	CHECK(i < sampler->step_count);
	return (sampler->step_count - 1 - i) * (sampler->schedule->count / sampler->step_count);
}

/* x_next = x0_scale x0 + x_scale x + eps_scale eps + noise_scale z. */
struct step_scales {
	float x0, x, eps, noise;
};

/* Song et al. 2020, eq. 12 with eta 0. */
static struct step_scales ddim_scales(double alpha_bar_next)
{
	return (struct step_scales){.x0 = (float)__builtin_sqrt(alpha_bar_next),
		.eps = (float)__builtin_sqrt(1.0 - alpha_bar_next)};
}

/* Ho et al. 2020, eq. 6 and 7. */
static struct step_scales ddpm_scales(double alpha_bar, double alpha_bar_next, bool last)
{
	double alpha = alpha_bar / alpha_bar_next, beta = 1.0 - alpha;
	double variance = (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * beta;

	if (variance < VARIANCE_MIN)
		variance = VARIANCE_MIN;
	return (struct step_scales){
		.x0 = (float)(__builtin_sqrt(alpha_bar_next) * beta / (1.0 - alpha_bar)),
		.x = (float)(__builtin_sqrt(alpha) * (1.0 - alpha_bar_next) / (1.0 - alpha_bar)),
		.noise = last ? 0.0f : (float)__builtin_sqrt(variance),
	};
}

void sampler_step(const struct sampler *sampler, uint32_t i, const float *eps_hat,
	const float *noise, float *x, uint64_t count)
{
	const double *alpha_bars = sampler->schedule->alpha_bar;
	bool last = i + 1 == sampler->step_count;
	double alpha_bar = alpha_bars[sampler_timestep(sampler, i)];
	double alpha_bar_next = last ? 1.0 : alpha_bars[sampler_timestep(sampler, i + 1)];
	float signal = (float)__builtin_sqrt(alpha_bar);
	float spread = (float)__builtin_sqrt(1.0 - alpha_bar);
	struct step_scales scale = sampler->kind == SAMPLER_DDIM
		? ddim_scales(alpha_bar_next)
		: ddpm_scales(alpha_bar, alpha_bar_next, last);

	CHECK(scale.noise == 0.0f || noise);
	for (uint64_t k = 0; k < count; k++) {
		float x0 = (x[k] - spread * eps_hat[k]) / signal;
		if (sampler->clip_sample)
			x0 = x0 < -1.0f ? -1.0f : x0 > 1.0f ? 1.0f : x0;
		float next = scale.x0 * x0 + (scale.x * x[k] + scale.eps * eps_hat[k]);
		if (scale.noise != 0.0f)
			next += scale.noise * noise[k];
		x[k] = next;
	}
}

void sampler_guide(float scale, const float *uncond, float *cond, uint64_t count)
{
	for (uint64_t k = 0; k < count; k++)
		cond[k] = uncond[k] + scale * (cond[k] - uncond[k]);
}
