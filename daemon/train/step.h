/* One training step, pure: data, noise and timesteps are functions of (seed, step, cursor), the
 * gradient is accumulated over micro-batches, and the update goes from one slot to another. It
 * knows neither files nor processes; worker_train drives it. Gradient averaging over several
 * machines would sit between train_gradient and train_update.
 *
 * Invariants: no allocation after train_new, no libm; bits depend on neither the number of
 * threads nor where an earlier process stopped. */
#pragma once

#include "base/arena.h"
#include "base/error.h"
#include "base/rng.h"
#include "base/tensor_table.h"
#include "daemon/data/data.h"
#include "daemon/diffusion/loss.h"
#include "daemon/diffusion/schedule.h"
#include "daemon/model/unet.h"
#include "daemon/optim/adamw.h"
#include "daemon/optim/lr.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What may change between two steps (schedule keys of the configuration). */
struct train_params {
	uint32_t batch_size, micro_batch; /* micro_batch divides batch_size */
	enum lr_kind lr_kind;
	uint64_t warmup_steps, steps_total;
	double learning_rate, beta1, beta2, adam_eps, weight_decay;
	double clip_norm; /* 0: none */
	double ema_max, ema_power;
	double label_drop;
	bool flips;
};

/* Where a step is, for whoever watches. */
enum train_part { TRAIN_LOAD, TRAIN_FORWARD, TRAIN_BACKWARD };

struct train_setup {
	const struct unet_config *model;
	const struct tensor_table *table;
	const struct engine *engine; /* must fit the model (model/choose.h) */
	const struct schedule *schedule;
	const struct data *data;
	struct rng rng;
	struct train_params params;
	bool recompute;                                       /* as in unet_setup */
	_Atomic uint64_t *moves;                              /* may be NULL */
	void (*entered)(void *context, enum train_part part); /* may be NULL */
	void *context;
};

struct train {
	struct train_setup setup; /* its pointers stay the caller's */
	struct unet *unet;
	uint64_t image_elems; /* 3 H W */
	uint64_t section_elems;
	struct arena arena;
	float *grads;                                      /* one section, zero padding */
	float *images, *noise, *noisy, *output, *gradient; /* [micro_batch, 3, H, W] */
	float *timestep_values;
	uint32_t *timesteps;
	int32_t *labels; /* NULL without classes */
	double *sample_loss;
};

struct train_result {
	struct loss loss; /* finished: mean over the batch */
	double grad_norm;
	bool finite; /* loss and norm */
};

/* Lays out the plan (for micro_batch images) and all buffers. -ENOMEM, -EINVAL. */
int train_new(const struct train_setup *setup, struct train **ret, struct error *err);
void train_free(struct train *train);
/* Everything this step will ever use, in bytes. */
uint64_t train_plan_bytes(const struct train *train);

/* The data index behind position `cursor` of the endless stream of epochs. */
uint64_t train_data_index(const struct rng *rng, uint64_t train_count, uint64_t cursor);

/* Gradient of step `step` (0, 1, ...) with the loaded weights, over images images_seen ..
 * images_seen + batch_size - 1 of the stream. */
void train_gradient(
	struct train *train, uint64_t step, uint64_t images_seen, struct train_result *ret);

/* The scalars of the update that follows update_count finished ones. */
struct adamw train_scalars(
	const struct train_params *params, uint64_t update_count, double grad_norm);
/* Applies it from slot src to slot dst (four sections each); sums as adamw_update. */
bool train_update(struct train *train, const struct adamw *scalars, float *const src[SECTION_COUNT],
	float *const dst[SECTION_COUNT], const uint64_t *src_sums, uint64_t *dst_sums);
