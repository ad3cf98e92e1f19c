/* Notices an update that lies far outside of what the run is used to: a poisoned batch, the first
 * step of a divergence. Gradient norm and loss are each compared with the running mean and
 * deviation of their logarithms (both are near log-normal within a run), as in the z-score clipping
 * of "ZClip" (arXiv 2504.02507), but the update is skipped whole.
 *
 * Invariants: bits depend on nothing but the numbers seen; what counts as a spike teaches
 * nothing; nothing is a spike before SPIKE_LEARNED updates. */
#pragma once

#include "proto/state.h"

#include <stdbool.h>

#define SPIKE_LEARNED 100 /* updates */
/* Of the logarithm: however equal the numbers are, a spike of 8 deviations is 7 times the usual. */
#define SPIKE_DEVIATION_MIN 0.25

/* Of the two, what lies higher above its mean, in deviations; 0 while nothing is known. */
struct spike {
	double deviations;
	const char *what; /* "gradient norm" or "loss" */
};

/* grad_norm and loss must be finite. */
struct spike spike_measure(const struct usual *usual, double grad_norm, double loss);
/* A good update becomes part of what is usual. */
void spike_learn(struct usual *usual, double grad_norm, double loss);
