/* Images from noise: the denoising loop over a UNet's plan, for previews (in the trainer's own
 * plan, between steps) and for `sample`. Image i comes from (weights, seed, i, label); what is
 * drawn beside it changes no more than the last digits. */
#pragma once

#include "base/arena.h"
#include "base/error.h"
#include "base/rng.h"
#include "daemon/diffusion/sampler.h"
#include "daemon/model/unet.h"

#include <stdbool.h>
#include <stdint.h>

struct generate_setup {
	const struct unet_config *model;
	uint32_t batch; /* images at a time: at most the plan's */
	const struct sampler *sampler;
	struct rng rng;
	float guidance;                   /* classifier-free; 1: none. Only with classes. */
	bool (*cancelled)(void *context); /* asked between two denoising steps; may be NULL */
	void *context;
};

struct generate {
	struct generate_setup setup;
	uint64_t image_elems;
	struct arena arena;
	float *eps, *eps_null, *noise; /* [batch, 3, H, W] */
	float *timestep_values;
	int32_t *null_labels;
};

int generate_init(struct generate *generate, const struct generate_setup *setup, struct error *err);
void generate_fini(struct generate *generate);

/* The label of image i of a preview: classes in turn; null_class for a model without. */
int32_t generate_label(const struct unet_config *model, uint32_t i);

/* Draws images 0..count-1 into images [count, 3, H, W] with the weights that unet holds. labels
 * [count] for class models (else NULL); the null class is class_count - 1. False: cancelled. */
bool generate_images(struct generate *generate, struct unet *unet, uint32_t count,
	const int32_t *labels, float *images);
