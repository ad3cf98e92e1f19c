/* beta and alpha_bar by diffusers' names and formulas, in double (diffusers' own table is fp32). */
#include "daemon/diffusion/schedule.h"
#include "base/fmath.h"
#include "base/panic.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define BETA_MAX 0.999 /* of squaredcos_cap_v2 */

/* Nichol & Dhariwal 2021, eq. 17: alpha_bar at u = t / T. */
static double cosine_alpha_bar(double u)
{
	const double half_pi = 1.57079632679489661923;
	double c = fm_cos_d((u + 0.008) / 1.008 * half_pi);

	return c * c;
}

static double cosine_beta(uint32_t i, uint32_t count)
{
	double next = cosine_alpha_bar((double)(i + 1) / count);
	double beta = 1.0 - next / cosine_alpha_bar((double)i / count);

	return beta < BETA_MAX ? beta : BETA_MAX;
}

static double between(double first, double last, uint32_t i, uint32_t count)
{
	return first + (last - first) * ((double)i / (double)(count - 1));
}

int schedule_init(struct schedule *schedule, const char *name, uint32_t timesteps,
	double beta_start, double beta_end, struct error *err)
{
	bool linear = strcmp(name, "linear") == 0;
	bool scaled = strcmp(name, "scaled_linear") == 0;

	if (!linear && !scaled && strcmp(name, "squaredcos_cap_v2") != 0)
		return error_set(err, -EINVAL,
			"beta_schedule '%s' is unknown: use linear, scaled_linear or "
			"squaredcos_cap_v2",
			name);
	if (timesteps < 2 || timesteps > SCHEDULE_TIMESTEPS_MAX)
		return error_set(err, -EINVAL, "timesteps = %u: must be 2 to %d", timesteps,
			SCHEDULE_TIMESTEPS_MAX);
	if ((linear || scaled) && !(beta_start > 0.0 && beta_start <= beta_end && beta_end < 1.0))
		return error_set(err, -EINVAL,
			"beta_start = %g, beta_end = %g: 0 < beta_start <= beta_end < 1 is needed",
			beta_start, beta_end);

	double alpha_bar = 1.0;
	schedule->count = timesteps;
	for (uint32_t i = 0; i < timesteps; i++) {
		double beta;
		if (linear) {
			beta = between(beta_start, beta_end, i, timesteps);
		} else if (scaled) {
			double root = between(
				__builtin_sqrt(beta_start), __builtin_sqrt(beta_end), i, timesteps);
			beta = root * root;
		} else {
			beta = cosine_beta(i, timesteps);
		}
		alpha_bar *= 1.0 - beta;
		schedule->beta[i] = beta;
		schedule->alpha_bar[i] = alpha_bar;
	}
	return 0;
}

void schedule_add_noise(const struct schedule *schedule, uint32_t t, const float *x0,
	const float *eps, float *x_t, uint64_t count)
{
	CHECK(t < schedule->count);
	float signal = (float)__builtin_sqrt(schedule->alpha_bar[t]);
	float noise = (float)__builtin_sqrt(1.0 - schedule->alpha_bar[t]);

	for (uint64_t i = 0; i < count; i++)
		x_t[i] = signal * x0[i] + noise * eps[i];
}
