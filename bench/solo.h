/* A trainer on its own: the worker's training step over two slots of state in this process, without
 * supervisor, checkpoints or configuration file. For the benchmarks. */
#pragma once

#include "base/clock.h"
#include "daemon/train/step.h"

struct solo_setup {
	const struct unet_config *model;
	const struct engine *engine;
	struct train_params params;
	uint64_t seed;  /* of the images, the first weights and all that a step draws */
	bool zero_out;  /* last convolution of each block starts at zero */
	bool recompute; /* blocks */
	void (*entered)(void *context, enum train_part part); /* may be NULL */
	void *context;
};

struct solo {
	struct unet_config model;
	struct tensor_table table;
	struct schedule schedule; /* squaredcos_cap_v2, 1000 */
	struct data data;         /* cars */
	struct train *train;
	float *slots[2]; /* four sections each */
	uint64_t *sums[2];
	uint64_t step; /* finished ones; step s leaves its result in slot s % 2 */
};

/* What speed is measured with: the peer's AdamW (bench/peer_train.py) at a constant rate. */
struct train_params solo_params(uint32_t batch);
/* Sorts. */
nsec_t solo_median(nsec_t *values, uint32_t count);

int solo_init(struct solo *solo, const struct solo_setup *setup, struct error *err);
void solo_fini(struct solo *solo);
/* One whole step as the worker takes it: gradient, update from slot to slot, packing. A step that
 * is not finite ends the process. */
void solo_step(struct solo *solo, struct train_result *ret);
/* Of the newest state. */
float *solo_section(const struct solo *solo, enum section section);
