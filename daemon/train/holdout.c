/* See holdout.h. */
#include "daemon/train/holdout.h"

#include <errno.h>
#include <string.h>

/* The second number of a triple's nonce: its noise and its timestep must not share a stream. */
enum { TRIPLE_NOISE, TRIPLE_TIMESTEP };

static void lay_out(struct holdout *holdout, struct arena *arena)
{
	uint32_t batch = holdout->setup.batch;
	size_t bytes = batch * holdout->image_elems * sizeof(float);

	holdout->images = arena_alloc(arena, bytes);
	holdout->noise = arena_alloc(arena, bytes);
	holdout->noisy = arena_alloc(arena, bytes);
	holdout->output = arena_alloc(arena, bytes);
	holdout->timestep_values = arena_alloc(arena, batch * sizeof(float));
	holdout->timesteps = arena_alloc(arena, batch * sizeof(uint32_t));
	holdout->sample_loss = arena_alloc(arena, batch * sizeof(double));
	holdout->labels = holdout->setup.model->class_count
		? arena_alloc(arena, batch * sizeof(int32_t))
		: NULL;
}

int holdout_init(struct holdout *holdout, const struct holdout_setup *setup, struct error *err)
{
	uint64_t side = setup->model->sample_size;
	struct arena plan;
	int r;

	memset(holdout, 0, sizeof(*holdout));
	holdout->setup = *setup;
	holdout->image_elems = 3 * side * side;
	if (setup->data->holdout_count == 0)
		holdout->setup.triple_count = 0;
	if (holdout->setup.triple_count == 0)
		return 0;
	arena_plan_init(&plan);
	lay_out(holdout, &plan);
	r = arena_init(&holdout->arena, plan.used);
	if (r < 0)
		return error_set(
			err, r, "no memory to score %u held-out images at a time", setup->batch);
	lay_out(holdout, &holdout->arena);
	return 0;
}

void holdout_fini(struct holdout *holdout)
{
	arena_fini(&holdout->arena);
	memset(holdout, 0, sizeof(*holdout));
}

static void load_triple(struct holdout *holdout, uint32_t triple, uint32_t k)
{
	const struct holdout_setup *setup = &holdout->setup;
	uint64_t elems = holdout->image_elems;
	float *image = holdout->images + k * elems, *noise = holdout->noise + k * elems;
	uint32_t t = (uint32_t)rng_below(
		&setup->rng, RNG_HOLDOUT, TRIPLE_TIMESTEP, triple, setup->schedule->count);
	int32_t label = -1;

	data_read_planar(
		setup->data, true, triple % setup->data->holdout_count, false, image, &label);
	rng_normal(&setup->rng, RNG_HOLDOUT, TRIPLE_NOISE, triple, noise, elems);
	schedule_add_noise(setup->schedule, t, image, noise, holdout->noisy + k * elems, elems);
	holdout->timesteps[k] = t;
	holdout->timestep_values[k] = (float)t;
	if (holdout->labels)
		holdout->labels[k] = label >= 0 ? label : (int32_t)setup->model->class_count - 1;
}

bool holdout_score(struct holdout *holdout, struct unet *unet, struct loss *ret)
{
	const struct holdout_setup *setup = &holdout->setup;

	memset(ret, 0, sizeof(*ret));
	for (uint32_t first = 0; first < setup->triple_count; first += setup->batch) {
		uint32_t left = setup->triple_count - first;
		uint32_t n = left < setup->batch ? left : setup->batch;

		if (setup->cancelled && setup->cancelled(setup->context))
			return false;
#pragma omp parallel for schedule(dynamic, 1)
		for (uint32_t k = 0; k < n; k++)
			load_triple(holdout, first + k, k);
		unet_forward(unet, n, holdout->noisy, holdout->timestep_values, holdout->labels,
			holdout->output);
		loss_mse(n, holdout->image_elems, n, holdout->noise, holdout->output, NULL,
			holdout->sample_loss);
		loss_add(ret, n, holdout->sample_loss, holdout->timesteps, setup->schedule->count);
	}
	if (setup->triple_count == 0)
		return false;
	loss_finish(ret);
	return true;
}
