/* The held-out loss: a fixed set of (image, timestep, noise) triples, drawn from the seed, scored
 * with whatever weights the plan holds (the EMA). The same triples for the whole run, so the
 * numbers of two steps can be compared. */
#pragma once

#include "base/arena.h"
#include "base/error.h"
#include "base/rng.h"
#include "daemon/data/data.h"
#include "daemon/diffusion/loss.h"
#include "daemon/diffusion/schedule.h"
#include "daemon/model/unet.h"

#include <stdbool.h>
#include <stdint.h>

struct holdout_setup {
	const struct unet_config *model;
	const struct schedule *schedule;
	const struct data *data;
	struct rng rng;
	uint32_t batch;                   /* triples at a time: at most the plan's */
	uint32_t triple_count;            /* wanted; 0 without held-out images */
	bool (*cancelled)(void *context); /* may be NULL */
	void *context;
};

struct holdout {
	struct holdout_setup setup;
	uint64_t image_elems;
	struct arena arena;
	float *images, *noise, *noisy, *output; /* [batch, 3, H, W] */
	float *timestep_values;
	uint32_t *timesteps;
	int32_t *labels; /* NULL without classes */
	double *sample_loss;
};

int holdout_init(struct holdout *holdout, const struct holdout_setup *setup, struct error *err);
void holdout_fini(struct holdout *holdout);
/* ret is finished (means). False: cancelled, or there is nothing to score. */
bool holdout_score(struct holdout *holdout, struct unet *unet, struct loss *ret);
