/* What the model promises about bits, on every engine: they depend neither on threads (P2), nor on
 * the other images or what was in the buffers, nor on whether activations are kept or computed
 * again, nor on whether there are gradients. And a NaN is never lost on its way. */
#include "tests/unit/unet_run.h"

#include <omp.h>

static struct run run_of(const struct engine *engine, struct unet_config config)
{
	struct run run;
	run_init(&run, engine, config, 2, 2);
	run_step(&run, false);
	return run;
}

static void check_threads(const struct engine *engine, struct unet_config config)
{
	static const int threads[] = {1, 2, 3, 5};
	int before = omp_get_max_threads();
	struct run first = run_of(engine, config);
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		omp_set_num_threads(threads[i]);
		struct run run = run_of(engine, config);
		assert_same_bits(&run, &first);
		run_fini(&run);
	}
	/* a plan made for fewer threads than run now */
	omp_set_num_threads(omp_get_num_procs() + 3);
	run_step(&first, false);
	struct run last = run_of(engine, config);
	assert_same_bits(&first, &last);
	run_fini(&last);
	run_fini(&first);
	omp_set_num_threads(before);
}

static void test_p2_threads(void **state)
{
	const struct engine *engine = check_engine(state);
	check_threads(engine, golden_config_a4());
	check_threads(engine, uneven_config());
	if (engine->form.elem == ELEM_F32) {
		struct unet_config narrow = uneven_config();
		narrow.channels[0] = 16;
		narrow.channels[1] = 48;
		check_threads(engine, narrow);
	}
}

/* The bits of an image depend neither on the other images nor on how many there are; and what an
 * earlier call left in the buffers is not read, even when it was not finite. */
static void test_p2_images_alone(void **state)
{
	const struct engine *engine = check_engine(state);
	struct run run;
	run_init(&run, engine, golden_config_b(), 5, 5); /* more than one block of positions */
	run.timesteps[2] = 900;
	size_t image = run.elems / 5;
	float *all = run_floats(run.elems), *grads = run_floats(run_section(&run));
	run_step(&run, false);
	memcpy(all, run.y, run.elems * sizeof(float));
	memcpy(grads, run.grads, run.table.section_bytes);
	for (size_t i = 0; i < run.elems; i++)
		run.x[i] = NAN;
	run_step(&run, false);
	assert_true(isnan(run.y[0]) && isnan(norm_of(run.grads, 1)));
	golden_fill(0xFFFF, run.x, run.elems);
	for (uint32_t n = 1; n <= 5; n++) {
		unet_forward(run.unet, n, run.x, run.timesteps, NULL, run.y);
		assert_memory_equal(run.y, all, n * image * sizeof(float));
	}
	run_step(&run, false);
	assert_memory_equal(run.grads, grads, run.table.section_bytes);

	/* the same with fewer images than the plan has, against a plan that never saw others */
	struct run fresh;
	run_init(&fresh, engine, golden_config_b(), 1, 5);
	for (size_t i = 0; i < run.elems; i++)
		run.x[i] = NAN;
	run_step(&run, false);
	run.n = 1;
	run.elems = image;
	golden_fill(0xFFFF, run.x, run.elems);
	run_step(&run, false);
	run_step(&fresh, false);
	assert_same_bits(&run, &fresh);
	run_fini(&fresh);
	free(all);
	free(grads);
	run_fini(&run);
}

static void test_accumulate(void **state)
{
	struct run run;
	run_init(&run, check_engine(state), golden_config_a4(), 2, 2);
	size_t section = run_section(&run);
	float *once = run_floats(section);
	run.grads[section - 1] = 3.0f; /* padding stays as it is */
	run_step(&run, false);
	memcpy(once, run.grads, run.table.section_bytes);
	run_step(&run, true);
	assert_true(once[section - 1] == 3.0f && run.grads[section - 1] == 3.0f);
	for (size_t i = 0; i + 1 < section; i++)
		if (fabsf(run.grads[i] - 2.0f * once[i]) > 1e-6f * (1.0f + fabsf(once[i])))
			fail_msg("element %zu: %g after %g", i, (double)run.grads[i],
				(double)once[i]);
	free(once);
	run_fini(&run);
}

/* The same bits from fewer kept activations, and with accumulation too. */
static void check_recompute(const struct engine *engine, struct unet_config config)
{
	struct run kept = run_of(engine, config), again;
	run_init_with(&again, &config, 2,
		(struct unet_setup){
			.engine = engine, .batch = 2, .training = true, .recompute = true});
	run_step(&again, false);
	assert_same_bits(&kept, &again);
	run_step(&kept, true);
	run_step(&again, true);
	assert_same_bits(&kept, &again);
	run_fini(&kept);
	run_fini(&again);
}

static size_t plan_bytes(const struct engine *engine, struct unet_config config, uint32_t batch,
	bool training, bool recompute)
{
	struct run run;
	run_init_with(&run, &config, 1,
		(struct unet_setup){.engine = engine,
			.batch = batch,
			.training = training,
			.recompute = recompute});
	size_t bytes = unet_plan_bytes(run.unet);
	run_fini(&run);
	return bytes;
}

static void test_recomputed_activations(void **state)
{
	const struct engine *engine = check_engine(state);
	check_recompute(engine, golden_config_a4());
	check_recompute(engine, golden_config_b());
	check_recompute(engine, uneven_config());
	size_t kept = plan_bytes(engine, uneven_config(), 8, true, false);
	size_t again = plan_bytes(engine, uneven_config(), 8, true, true);
	print_message(
		"# plan for 8 images: %zu KiB, recomputed %zu KiB\n", kept >> 10, again >> 10);
	assert_true(again < kept);
}

/* Without gradients: the same bits, less memory. */
static void check_inference(const struct engine *engine, struct unet_config config)
{
	_Atomic uint64_t moves = 0;
	struct run training = run_of(engine, config), inference;
	run_init_with(&inference, &config, 2,
		(struct unet_setup){.engine = engine, .batch = 2, .moves = &moves});
	uint64_t loaded = moves;
	unet_forward(
		inference.unet, 2, inference.x, inference.timesteps, inference.labels, inference.y);
	assert_true(moves > loaded);
	assert_memory_equal(inference.y, training.y, training.elems * sizeof(float));
	run_fini(&inference);
	run_fini(&training);
}

static void test_inference_plan(void **state)
{
	const struct engine *engine = check_engine(state);
	check_inference(engine, golden_config_a4());
	check_inference(engine, golden_config_b());
	check_inference(engine, uneven_config());
	assert_true(2 * plan_bytes(engine, golden_config_b(), 64, false, false) <
		plan_bytes(engine, golden_config_b(), 64, true, false));
}

/* One pixel is enough for every tensor that it flows through; the step's verdict comes from their
 * squares. */
static void check_verdict(const struct engine *engine, struct unet_config config, float value)
{
	struct run run;
	run_init(&run, engine, config, 2, 2);
	run.x[run.x_elems - 1] = value;
	run_step(&run, false);
	size_t image = run.elems / 2;
	assert_true(isfinite(norm_of(run.y, image)));
	assert_false(isfinite(norm_of(run.y + image, image)));
	assert_false(isfinite(run.loss));
	for (uint32_t i = 0; i < run.table.count; i++) {
		const struct tensor_spec *spec = &run.table.specs[i];
		if (isfinite(norm_of(run.grads + spec->offset / sizeof(float), spec->elem_count)))
			fail_msg("%s is finite", spec->name);
	}
	run_fini(&run);
}

static void test_nan_reaches_every_gradient(void **state)
{
	const struct engine *engine = check_engine(state);
	check_verdict(engine, golden_config_a(), NAN);
	check_verdict(engine, golden_config_a(), -INFINITY);
	check_verdict(engine, golden_config_b(), INFINITY);
	check_verdict(engine, uneven_config(), -NAN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(test_p2_threads),
		ON_EACH_ENGINE(test_p2_images_alone),
		ON_EACH_ENGINE(test_accumulate),
		ON_EACH_ENGINE(test_recomputed_activations),
		ON_EACH_ENGINE(test_inference_plan),
		ON_EACH_ENGINE(test_nan_reaches_every_gradient),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
