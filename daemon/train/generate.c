/* See generate.h. */
#include "daemon/train/generate.h"

#include "base/panic.h"

#include <errno.h>
#include <string.h>

static void lay_out(struct generate *generate, struct arena *arena)
{
	uint32_t batch = generate->setup.batch;
	size_t bytes = batch * generate->image_elems * sizeof(float);
	bool guided = generate->setup.guidance != 1 && generate->setup.model->class_count;
	bool noisy = generate->setup.sampler->kind == SAMPLER_DDPM;

	generate->eps = arena_alloc(arena, bytes);
	generate->eps_null = guided ? arena_alloc(arena, bytes) : NULL;
	generate->noise = noisy ? arena_alloc(arena, bytes) : NULL;
	generate->timestep_values = arena_alloc(arena, batch * sizeof(float));
	generate->null_labels = arena_alloc(arena, batch * sizeof(int32_t));
}

int generate_init(struct generate *generate, const struct generate_setup *setup, struct error *err)
{
	uint64_t side = setup->model->sample_size;
	struct arena plan;
	int r;

	CHECK(setup->batch > 0);
	memset(generate, 0, sizeof(*generate));
	generate->setup = *setup;
	generate->image_elems = 3 * side * side;
	arena_plan_init(&plan);
	lay_out(generate, &plan);
	r = arena_init(&generate->arena, plan.used);
	if (r < 0)
		return error_set(err, r, "no memory to draw %u images of %u x %u at a time",
			setup->batch, (uint32_t)side, (uint32_t)side);
	lay_out(generate, &generate->arena);
	for (uint32_t i = 0; i < setup->batch; i++)
		generate->null_labels[i] = (int32_t)setup->model->class_count - 1;
	return 0;
}

void generate_fini(struct generate *generate)
{
	arena_fini(&generate->arena);
	memset(generate, 0, sizeof(*generate));
}

int32_t generate_label(const struct unet_config *model, uint32_t i)
{
	uint32_t classes = model->class_count ? model->class_count - 1 : 0;

	return classes ? (int32_t)(i % classes) : (int32_t)model->class_count - 1;
}

/* One denoising step of images first..first+n-1, in place. */
static void denoise(struct generate *generate, struct unet *unet, uint32_t step, uint32_t first,
	uint32_t n, const int32_t *labels, float *x)
{
	const struct generate_setup *setup = &generate->setup;
	uint64_t elems = generate->image_elems;
	float t = (float)sampler_timestep(setup->sampler, step);
	bool last = step + 1 == setup->sampler->step_count;

	for (uint32_t k = 0; k < n; k++)
		generate->timestep_values[k] = t;
	unet_forward(unet, n, x, generate->timestep_values, labels, generate->eps);
	if (generate->eps_null) {
		unet_forward(unet, n, x, generate->timestep_values, generate->null_labels,
			generate->eps_null);
		sampler_guide(setup->guidance, generate->eps_null, generate->eps, n * elems);
	}
	if (generate->noise && !last) {
#pragma omp parallel for schedule(dynamic, 1)
		for (uint32_t k = 0; k < n; k++)
			rng_normal(&setup->rng, RNG_SAMPLER, step, first + k,
				generate->noise + k * elems, elems);
	}
	sampler_step(
		setup->sampler, step, generate->eps, last ? NULL : generate->noise, x, n * elems);
}

bool generate_images(struct generate *generate, struct unet *unet, uint32_t count,
	const int32_t *labels, float *images)
{
	const struct generate_setup *setup = &generate->setup;
	uint64_t elems = generate->image_elems;

	CHECK((labels != NULL) == (setup->model->class_count > 0));
	for (uint32_t first = 0; first < count; first += setup->batch) {
		uint32_t n = count - first < setup->batch ? count - first : setup->batch;
		float *x = images + first * elems;

		for (uint32_t k = 0; k < n; k++)
			rng_normal(&setup->rng, RNG_PREVIEW, 0, first + k, x + k * elems, elems);
		for (uint32_t step = 0; step < setup->sampler->step_count; step++) {
			if (setup->cancelled && setup->cancelled(setup->context))
				return false;
			denoise(generate, unet, step, first, n, labels ? labels + first : NULL, x);
		}
	}
	return true;
}
