/* See worker_spike.h. */
#include "daemon/worker_spike.h"

#include "base/fmath.h"
#include "base/panic.h"

#include <math.h>

#define KEPT 100    /* updates that the running mean remembers */
#define LEAST 1e-30 /* a loss of nothing has a logarithm too */

static double log_of(double value)
{
	CHECK(isfinite(value) && value >= 0);
	return fm_log_d(value < LEAST ? LEAST : value);
}

static double deviations(const struct usual_value *usual, double value)
{
	double deviation = sqrt(usual->variance);

	if (deviation < SPIKE_DEVIATION_MIN)
		deviation = SPIKE_DEVIATION_MIN;
	return (log_of(value) - usual->mean) / deviation;
}

struct spike spike_measure(const struct usual *usual, double grad_norm, double loss)
{
	struct spike norm = {deviations(&usual->grad_norm, grad_norm), "gradient norm"},
		     of_loss = {deviations(&usual->loss, loss), "loss"};

	if (usual->updates < SPIKE_LEARNED)
		return (struct spike){0, "gradient norm"};
	return of_loss.deviations > norm.deviations ? of_loss : norm;
}

/* Exponentially weighted (T. Finch, "Incremental calculation of weighted mean and variance", 2009);
 * the ordinary mean over the first KEPT. */
static void learn(struct usual_value *usual, double value, double weight)
{
	double difference = log_of(value) - usual->mean, step = weight * difference;

	usual->mean += step;
	usual->variance = (1 - weight) * (usual->variance + difference * step);
}

void spike_learn(struct usual *usual, double grad_norm, double loss)
{
	double weight;

	if (usual->updates < UINT64_MAX)
		usual->updates++;
	weight = 1.0 / (double)(usual->updates < KEPT ? usual->updates : KEPT);
	learn(&usual->grad_norm, grad_norm, weight);
	learn(&usual->loss, loss, weight);
}
