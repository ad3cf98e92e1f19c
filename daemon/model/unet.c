/* A plan of the UNet: lays out its memory once, then runs the call list forward, and reversed. */
#include "base/panic.h"
#include "daemon/model/layers.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>

static int init_layouts(struct unet *unet)
{
	for (uint32_t i = 0; i < unet->config.level_count; i++) {
		uint32_t size = unet->config.sample_size >> i;
		int code = layout_init(&unet->positions[i], unet->batch, size, size, false);
		if (code < 0)
			return code;
		code = layout_init(&unet->tokens[i], unet->batch, size, size, true);
		if (code < 0)
			return code;
	}
	return 0;
}

/* Every layer says at which steps its tensors are alive. */
static void plan_lifetimes(struct unet *unet)
{
	uint32_t count = unet->layer_count;
	for (uint32_t i = 0; i < count; i++)
		unet->layers[i].kind->plan(unet, &unet->layers[i], i);
	for (uint32_t i = count; unet->training && i-- > 0;)
		unet->layers[i].kind->plan_backward(unet, &unet->layers[i], 2 * count - 1 - i);
	size_t time_elems = (size_t)unet->batch * unet->time_proj_stride;
	unet->time_proj = persistent_array(unet, time_elems);
	if (!unet->training)
		return;
	unet->raw = persistent_array(unet, unet->raw_elems);
	unet->scratch = persistent_bytes(unet, unet->scratch_bytes);
	unet->dtime_proj = persistent_array(unet, time_elems);
	unet->image_sums = persistent_array(unet, unet->image_sums_elems);
	unet->norm_sums = persistent_array(unet, unet->norm_sums_elems);
}

static int build(struct unet *unet, struct error *err)
{
	int code = plan_init(&unet->plan);
	if (code == 0)
		code = init_layouts(unet);
	if (code == 0)
		code = unet_build_layers(unet);
	if (code < 0)
		return error_set(err, code, "the plan of the model: %s",
			code == -EOVERFLOW ? "images and batch are too large together; lower "
					     "micro_batch"
					   : "out of memory");
	plan_lifetimes(unet);
	size_t bytes = 0;
	code = plan_assign(&unet->plan, &bytes);
	if (code == 0)
		code = arena_init(&unet->arena, bytes);
	if (code < 0)
		return error_set(err, code,
			"no memory for the model's plan of %zu MiB; lower micro_batch",
			bytes >> 20);
	plan_bind(&unet->plan, arena_alloc(&unet->arena, bytes));
	return 0;
}

int unet_new(const struct unet_setup *setup, struct unet **ret, struct error *err)
{
	int code = unet_config_check(setup->config, err);
	if (code < 0)
		return code;
	if (setup->batch < 1)
		return error_set(err, -EINVAL, "the plan of the model: a batch of 0 images");
	struct unet *unet = calloc(1, sizeof(*unet));
	if (!unet)
		return error_set(err, -ENOMEM, "the plan of the model: out of memory");
	int threads = omp_get_max_threads() > omp_get_num_procs() ? omp_get_max_threads()
								  : omp_get_num_procs();
	unet->config = *setup->config;
	unet->table = setup->table;
	unet->engine = setup->engine;
	unet->form = &setup->engine->form;
	unet->batch = setup->batch;
	unet->time_width = unet_time_width(setup->config);
	unet->training = setup->training;
	unet->recompute = setup->recompute;
	unet->thread_count = (uint32_t)threads;
	unet->moves = setup->moves;
	code = build(unet, err);
	unet->table = NULL;
	if (code < 0) {
		unet_free(unet);
		return code;
	}
	*ret = unet;
	return 0;
}

void unet_free(struct unet *unet)
{
	if (!unet)
		return;
	for (uint32_t i = 0; i < UNET_LEVELS_MAX; i++) {
		layout_fini(&unet->positions[i]);
		layout_fini(&unet->tokens[i]);
	}
	arena_fini(&unet->arena);
	plan_fini(&unet->plan);
	free(unet->layers);
	free(unet->features);
	free(unet);
}

size_t unet_plan_bytes(const struct unet *unet)
{
	return unet->arena.size;
}

static void count_move(struct unet *unet)
{
	if (unet->moves)
		atomic_fetch_add_explicit(unet->moves, 1, memory_order_relaxed);
}

void unet_load_weights(struct unet *unet, const float *section)
{
	for (uint32_t i = 0; i < unet->layer_count; i++) {
		count_move(unet);
		unet->layers[i].kind->load(unet, &unet->layers[i], section);
	}
}

void unet_forward(struct unet *unet, uint32_t n, const float *x, const float *timesteps,
	const int32_t *labels, float *y)
{
	CHECK(n >= 1 && n <= unet->batch);
	CHECK(!unet->config.class_count || labels);
	unet->n = n;
	unet->x = x;
	unet->timesteps = timesteps;
	unet->labels = labels;
	unet->y = y;
	for (uint32_t i = 0; i < unet->layer_count; i++) {
		count_move(unet);
		unet->layers[i].kind->forward(unet, &unet->layers[i]);
		if (unet->features[i].value)
			DEBUG_CHECK(tensor_is_clean(unet->features[i].value, n));
	}
}

void unet_backward(struct unet *unet, const float *dy, float *grads, bool accumulate)
{
	CHECK(unet->training && unet->n);
	unet->dy = dy;
	unet->grads = grads;
	unet->accumulate = accumulate;
	for (uint32_t i = unet->layer_count; i-- > 0;) {
		count_move(unet);
		if (unet->features[i].value)
			DEBUG_CHECK(tensor_is_clean(unet->features[i].grad, unet->n));
		unet->layers[i].kind->backward(unet, &unet->layers[i]);
	}
}
