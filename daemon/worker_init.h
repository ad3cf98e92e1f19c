/* The first weights of a run: drawn from the seed, or read from a diffusers folder. */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "base/rng.h"
#include "daemon/worker_plan.h"

/* Fills section (padding zero). -ENOENT, -EBADMSG, -EINVAL with every difference named. */
int init_weights(const struct model *model, const struct config *config, const struct rng *rng,
	float *section, struct error *err);
