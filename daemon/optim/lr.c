/* Scalars of an update from counts alone. Pure, in double, without libm: the same bits on every
 * machine. */
#include "daemon/optim/lr.h"
#include "base/fmath.h"

double lr_factor(enum lr_kind kind, uint64_t k, uint64_t warmup, uint64_t total)
{
	const double pi = 3.14159265358979323846;

	if (k < warmup)
		return (double)k / (double)warmup;
	if (kind == LR_CONSTANT)
		return 1.0;
	double span = total > warmup + 1 ? (double)(total - warmup) : 1.0;
	double factor = 0.5 * (1.0 + fm_cos_d(pi * ((double)(k - warmup) / span)));
	return factor > 0.0 ? factor : 0.0;
}

double power_int(double beta, uint64_t k)
{
	double power = 1.0;

	for (double square = beta; k; k >>= 1, square *= square)
		if (k & 1)
			power *= square;
	return power;
}

double ema_decay(uint64_t n, double power, double max)
{
	if (n <= 1)
		return 0.0;
	double decay = 1.0 - fm_pow_d((double)n, -power);
	return decay < max ? decay : max;
}
