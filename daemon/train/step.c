/* See step.h. */
#include "daemon/train/step.h"

#include "base/panic.h"
#include "daemon/train/fault.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Called twice: once to count, once to hand out. */
static void lay_out(struct train *train, struct arena *arena)
{
	uint32_t micro = train->setup.params.micro_batch;
	size_t batch_bytes = (size_t)micro * train->image_elems * sizeof(float);

	train->grads = arena_alloc(arena, train->section_elems * sizeof(float));
	train->images = arena_alloc(arena, batch_bytes);
	train->noise = arena_alloc(arena, batch_bytes);
	train->noisy = arena_alloc(arena, batch_bytes);
	train->output = arena_alloc(arena, batch_bytes);
	train->gradient = arena_alloc(arena, batch_bytes);
	train->timestep_values = arena_alloc(arena, micro * sizeof(float));
	train->timesteps = arena_alloc(arena, micro * sizeof(uint32_t));
	train->sample_loss = arena_alloc(arena, micro * sizeof(double));
	train->labels = train->setup.model->class_count
		? arena_alloc(arena, micro * sizeof(int32_t))
		: NULL;
}

int train_new(const struct train_setup *setup, struct train **ret, struct error *err)
{
	const struct train_params *params = &setup->params;
	const struct unet_config *model = setup->model;
	const struct unet_setup net = {
		.config = model,
		.table = setup->table,
		.engine = setup->engine,
		.batch = params->micro_batch,
		.training = true,
		.recompute = setup->recompute,
		.moves = setup->moves,
	};
	struct arena plan;
	struct train *train;
	int r;

	CHECK(params->micro_batch > 0 && params->batch_size % params->micro_batch == 0);
	CHECK(setup->data->train_count > 0 && model->in_channels == 3 && model->out_channels == 3);
	train = calloc(1, sizeof(*train));
	if (!train)
		return error_set(err, -ENOMEM, "no memory for the training step");
	train->setup = *setup;
	train->image_elems = (uint64_t)3 * model->sample_size * model->sample_size;
	train->section_elems = setup->table->section_bytes / sizeof(float);

	r = unet_new(&net, &train->unet, err);
	if (r < 0)
		goto fail;
	arena_plan_init(&plan);
	lay_out(train, &plan);
	r = arena_init(&train->arena, plan.used);
	if (r < 0) {
		error_set(err, r,
			"no memory for a batch of %u images (%.1f MiB): a smaller micro_batch "
			"needs less",
			params->micro_batch, (double)plan.used / (1 << 20));
		goto fail;
	}
	lay_out(train, &train->arena);
	*ret = train;
	return 0;
fail:
	train_free(train);
	return r;
}

void train_free(struct train *train)
{
	if (!train)
		return;
	unet_free(train->unet);
	arena_fini(&train->arena);
	free(train);
}

uint64_t train_plan_bytes(const struct train *train)
{
	return unet_plan_bytes(train->unet) + train->arena.size;
}

uint64_t train_data_index(const struct rng *rng, uint64_t train_count, uint64_t cursor)
{
	return rng_permute(rng, cursor / train_count, train_count, cursor % train_count);
}

static int32_t drop_label(const struct train *train, uint64_t step, uint64_t sample, int32_t label)
{
	const struct train_setup *setup = &train->setup;
	int32_t null_class = (int32_t)setup->model->class_count - 1;
	uint64_t bound = UINT64_C(1) << 24;
	uint64_t draw = rng_below(&setup->rng, RNG_LABEL_DROP, step, sample, bound);

	if (label < 0 || (double)draw < setup->params.label_drop * (double)bound)
		return null_class;
	return label;
}

/* Image, timestep, noise and noisy image of sample `first + k` of the batch, into row k. */
static void load_sample(
	struct train *train, uint64_t step, uint64_t cursor, uint32_t first, uint32_t k)
{
	const struct train_setup *setup = &train->setup;
	uint64_t sample = first + k, elems = train->image_elems;
	float *image = train->images + k * elems, *noise = train->noise + k * elems;
	uint64_t index = train_data_index(&setup->rng, setup->data->train_count, cursor + sample);
	bool flip = setup->params.flips && rng_below(&setup->rng, RNG_FLIP, step, sample, 2);
	uint32_t t = (uint32_t)rng_below(
		&setup->rng, RNG_TIMESTEP, step, sample, setup->schedule->count);
	int32_t label = -1;

	data_read_planar(setup->data, false, index, flip, image, &label);
	rng_normal(&setup->rng, RNG_NOISE, step, sample, noise, elems);
	schedule_add_noise(setup->schedule, t, image, noise, train->noisy + k * elems, elems);
	train->timesteps[k] = t;
	train->timestep_values[k] = (float)t;
	if (train->labels)
		train->labels[k] = drop_label(train, step, sample, label);
	if (setup->moves)
		atomic_fetch_add_explicit(setup->moves, 1, memory_order_relaxed);
}

static void enter(const struct train *train, enum train_part part)
{
	if (train->setup.entered)
		train->setup.entered(train->setup.context, part);
}

static void micro_batch(
	struct train *train, uint64_t step, uint64_t cursor, uint32_t first, struct loss *loss)
{
	const struct train_params *params = &train->setup.params;
	uint32_t n = params->micro_batch;

	enter(train, TRAIN_LOAD);
#pragma omp parallel for schedule(dynamic, 1)
	for (uint32_t k = 0; k < n; k++)
		load_sample(train, step, cursor, first, k);

	enter(train, TRAIN_FORWARD);
	unet_forward(
		train->unet, n, train->noisy, train->timestep_values, train->labels, train->output);
	loss_mse(n, train->image_elems, params->batch_size, train->noise, train->output,
		train->gradient, train->sample_loss);
	loss_add(loss, n, train->sample_loss, train->timesteps, train->setup.schedule->count);

	enter(train, TRAIN_BACKWARD);
	unet_backward(train->unet, train->gradient, train->grads, first > 0);
}

void train_gradient(
	struct train *train, uint64_t step, uint64_t images_seen, struct train_result *ret)
{
	const struct train_params *params = &train->setup.params;
	double square_sum;

	memset(ret, 0, sizeof(*ret));
	for (uint32_t first = 0; first < params->batch_size; first += params->micro_batch)
		micro_batch(train, step, images_seen, first, &ret->loss);
	loss_finish(&ret->loss);
	if (fault_at("train.nonfinite", step) < 0)
		train->grads[0] = NAN;
	if (fault_at("train.spike", step) < 0)
		train->grads[0] = 1e6f;
	square_sum = adamw_square_sum(train->grads, train->section_elems);
	ret->grad_norm = sqrt(square_sum); /* one correctly rounded instruction, no library call */
	ret->finite = isfinite(square_sum) && isfinite(ret->loss.mean);
}

struct adamw train_scalars(
	const struct train_params *params, uint64_t update_count, double grad_norm)
{
	uint64_t k = update_count + 1; /* this update, counted from 1 */
	double clip = 1;

	if (params->clip_norm > 0) {
		clip = params->clip_norm / (grad_norm + 1e-6);
		if (clip > 1)
			clip = 1;
	}
	return (struct adamw){
		.learning_rate = (float)(params->learning_rate *
			lr_factor(params->lr_kind, update_count, params->warmup_steps,
				params->steps_total)),
		.beta1 = (float)params->beta1,
		.beta2 = (float)params->beta2,
		.eps = (float)params->adam_eps,
		.weight_decay = (float)params->weight_decay,
		.bias_correction1 = (float)(1 - power_int(params->beta1, k)),
		.bias_correction2 = (float)(1 - power_int(params->beta2, k)),
		.clip_scale = (float)clip,
		.ema_decay = (float)ema_decay(k, params->ema_power, params->ema_max),
	};
}

bool train_update(struct train *train, const struct adamw *scalars, float *const src[SECTION_COUNT],
	float *const dst[SECTION_COUNT], const uint64_t *src_sums, uint64_t *dst_sums)
{
	return adamw_update(scalars, train->grads, train->section_elems, src, dst, src_sums,
		dst_sums, train->setup.moves);
}
