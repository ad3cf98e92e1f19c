/* diffusers' UNet2DModel: configuration, tensor table, and a plan (an ordered call list over fixed
 * buffers) that runs forward, and the same list reversed. docs/MODEL.md holds the specification.
 *
 * Layout inside: NHWC positions with shared zero pads (ops/layout.h). Outside: x, y, dy are dense
 * NCHW fp32, weights and gradients are one section in the tensor table's order and shapes. */
#pragma once

#include "base/error.h"
#include "base/rng.h"
#include "base/tensor_table.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNET_LEVELS_MAX 8

struct unet_config {
	uint32_t sample_size; /* H = W */
	uint32_t in_channels, out_channels;
	uint32_t level_count;
	uint32_t channels[UNET_LEVELS_MAX]; /* block_out_channels */
	bool down_attention[UNET_LEVELS_MAX];
	bool up_attention[UNET_LEVELS_MAX]; /* deepest first */
	uint32_t layers_per_block;
	uint32_t head_dim; /* 0: one head of all channels */
	uint32_t groups;
	float norm_eps;
	uint32_t downsample_padding; /* 1 symmetric, 0 right and bottom */
	bool flip_sin_to_cos;
	uint32_t freq_shift;
	uint32_t class_count; /* num_class_embeds, 0 none */
};

/* One line naming the key and the rule that is broken. */
int unet_config_check(const struct unet_config *config, struct error *err);
/* diffusers' names and shapes (docs/MODEL.md), laid out. */
int unet_tensor_table(
	const struct unet_config *config, struct tensor_table *ret, struct error *err);
/* section: weights in the table's order, padding zero. zero_out: conv2 of each resnet, to_out.0 of
 * each attention and conv_out start at zero. */
void unet_init_weights(const struct unet_config *config, const struct tensor_table *table,
	const struct rng *rng, bool zero_out, float *section);

struct unet;

struct engine;

struct unet_setup {
	const struct unet_config *config;
	const struct tensor_table *table; /* only while the plan is made */
	const struct engine *engine;      /* must fit the net (choose.h) */
	uint32_t batch;                   /* images at most */
	bool training;                    /* keeps what backward needs */
	/* Keeps only the results of blocks for backward, which computes their insides again: the
	 * same bits in less memory. */
	bool recompute;
	_Atomic uint64_t *moves; /* NULL, or counted up at each entry of the call list */
};

/* Lays out all memory. -ENOMEM, -EINVAL. */
int unet_new(const struct unet_setup *setup, struct unet **ret, struct error *err);
void unet_free(struct unet *unet);
size_t unet_plan_bytes(const struct unet *unet);

/* Packs the working copies. After each update, and around EMA evaluations. */
void unet_load_weights(struct unet *unet, const float *section);

/* x [n, in, H, W], timesteps [n], labels [n] (class models; else NULL) -> y [n, out, H, W].
 * n <= batch. Bits of image i do not depend on threads. */
void unet_forward(struct unet *unet, uint32_t n, const float *x, const float *timesteps,
	const int32_t *labels, float *y);
/* After unet_forward of the same n on a training plan: dy = gradient of the loss by y. Writes
 * (accumulate: adds to) every tensor's gradient into grads, a section; padding stays as it is. */
void unet_backward(struct unet *unet, const float *dy, float *grads, bool accumulate);
