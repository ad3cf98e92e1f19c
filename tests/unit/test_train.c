/* The training step, drawing and the held-out loss, without processes, on every engine: what P2
 * rests on. */
#include "base/digest.h"
#include "base/sys.h"
#include "daemon/train/generate.h"
#include "daemon/train/holdout.h"
#include "daemon/train/step.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/engines.h"

#define SEED 7

static const struct unet_config tiny = {
	.sample_size = 8,
	.in_channels = 3,
	.out_channels = 3,
	.level_count = 2,
	.channels = {32, 32},
	.down_attention = {false, true},
	.up_attention = {true, false},
	.layers_per_block = 1,
	.head_dim = 8,
	.groups = 4,
	.norm_eps = 1e-5f,
	.downsample_padding = 1,
	.flip_sin_to_cos = true,
	.class_count = 5,
};

struct bench {
	const struct engine *engine;
	struct unet_config model;
	struct tensor_table table;
	struct schedule schedule;
	struct data data;
	struct rng rng;
	float *weights; /* one section */
};

static struct train_params default_params(void)
{
	return (struct train_params){
		.batch_size = 4,
		.micro_batch = 4,
		.lr_kind = LR_CONSTANT,
		.steps_total = 100,
		.learning_rate = 2e-3,
		.beta1 = 0.9,
		.beta2 = 0.99,
		.adam_eps = 1e-8,
		.clip_norm = 1,
		.ema_max = 0.999,
		.ema_power = 0.75,
		.label_drop = 0.1,
		.flips = true,
	};
}

static void bench_open(struct bench *bench, const struct engine *engine)
{
	struct data_config data = {
		.source = "cars",
		.image_size = 8,
		.labels = true,
		.holdout_percent = 2,
		.seed = SEED,
		.cache_fd = -1,
	};
	struct error err = {{0}};

	memset(bench, 0, sizeof(*bench));
	bench->engine = engine;
	bench->model = tiny;
	rng_init(&bench->rng, SEED);
	if (unet_tensor_table(&bench->model, &bench->table, &err) < 0 ||
		schedule_init(&bench->schedule, "linear", 1000, 1e-4, 0.02, &err) < 0 ||
		data_open(&data, &bench->data, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(bench->data.class_count + 1, tiny.class_count);
	bench->weights = aligned_alloc(64, bench->table.section_bytes);
	memset(bench->weights, 0, bench->table.section_bytes);
	unet_init_weights(&bench->model, &bench->table, &bench->rng, false, bench->weights);
}

static void bench_close(struct bench *bench)
{
	free(bench->weights);
	data_close(&bench->data);
	tensor_table_fini(&bench->table);
}

static struct train *train_of(
	struct bench *bench, const struct train_params *params, bool recompute)
{
	struct train_setup setup = {
		.model = &bench->model,
		.table = &bench->table,
		.engine = bench->engine,
		.schedule = &bench->schedule,
		.data = &bench->data,
		.rng = bench->rng,
		.params = *params,
		.recompute = recompute,
	};
	struct train *train = NULL;
	struct error err;

	if (train_new(&setup, &train, &err) < 0)
		fail_msg("%s", err.text);
	unet_load_weights(train->unet, bench->weights);
	return train;
}

static struct train *bench_train(struct bench *bench, const struct train_params *params)
{
	return train_of(bench, params, false);
}

static struct digest gradient_digest(const struct train *train)
{
	return digest_of(train->grads, train->section_elems * sizeof(float));
}

static void p2_gradient_bits_do_not_depend_on_the_number_of_threads(void **state)
{
	struct train_params params = default_params();
	struct digest first, other;
	struct bench bench;

	bench_open(&bench, check_engine(state));
	for (int i = 0; i < 4; i++) {
		static const int thread_counts[] = {1, 2, 3, 5};
		struct train_result result;
		struct train *train;

		omp_set_num_threads(thread_counts[i]);
		train = bench_train(&bench, &params);
		train_gradient(train, 3, 12, &result);
		assert_true(result.finite);
		other = gradient_digest(train);
		if (i == 0)
			first = other;
		assert_true(digest_equal(&first, &other));
		train_free(train);
	}
	omp_set_num_threads(2);
	bench_close(&bench);
}

static void p2_a_step_is_a_function_of_its_number_and_cursor_alone(void **state)
{
	struct train_params params = default_params();
	struct train_result result, again;
	struct digest first, second, other;
	struct bench bench;
	struct train *train;

	bench_open(&bench, check_engine(state));
	train = bench_train(&bench, &params);
	train_gradient(train, 5, 20, &result);
	first = gradient_digest(train);
	train_gradient(train, 6, 24, &again);
	other = gradient_digest(train);
	train_gradient(train, 5, 20, &again);
	second = gradient_digest(train);
	assert_true(digest_equal(&first, &second));
	assert_true(result.loss.mean == again.loss.mean);
	assert_true(result.grad_norm == again.grad_norm);
	assert_false(digest_equal(&first, &other));
	train_free(train);
	bench_close(&bench);
}

static void p2_recomputed_activations_have_the_same_bits(void **state)
{
	struct train_params params = default_params();
	struct digest digests[2];
	struct bench bench;

	bench_open(&bench, check_engine(state));
	params.micro_batch = 2;
	for (int recompute = 0; recompute < 2; recompute++) {
		struct train *train = train_of(&bench, &params, recompute);
		struct train_result result;

		train_gradient(train, 3, 12, &result);
		digests[recompute] = gradient_digest(train);
		train_free(train);
	}
	assert_true(digest_equal(&digests[0], &digests[1]));
	bench_close(&bench);
}

/* The gradient of the whole batch, whatever it was cut into. */
static void micro_batches_change_only_the_rounding(void **state)
{
	struct train_params params = default_params();
	struct train_result whole, cut;
	struct bench bench;
	struct train *trains[2];
	double difference = 0, norm = 0;

	bench_open(&bench, check_engine(state));
	trains[0] = bench_train(&bench, &params);
	params.micro_batch = 1;
	trains[1] = bench_train(&bench, &params);
	train_gradient(trains[0], 2, 8, &whole);
	train_gradient(trains[1], 2, 8, &cut);
	assert_true(fabs(whole.loss.mean - cut.loss.mean) < 1e-6 * whole.loss.mean);
	for (int i = 0; i < 4; i++)
		assert_int_equal(whole.loss.quartile_count[i], cut.loss.quartile_count[i]);
	for (uint64_t i = 0; i < trains[0]->section_elems; i++) {
		double d = (double)trains[0]->grads[i] - (double)trains[1]->grads[i];

		difference += d * d;
		norm += (double)trains[0]->grads[i] * (double)trains[0]->grads[i];
	}
	assert_true(norm > 0);
	assert_true(sqrt(difference / norm) < 1e-5);
	train_free(trains[0]);
	train_free(trains[1]);
	bench_close(&bench);
}

static void every_epoch_shows_each_image_once_in_its_own_order(void **unused)
{
	enum { COUNT = 37 };
	struct rng rng;
	unsigned seen[2][COUNT] = {{0}}, same = 0;

	rng_init(&rng, SEED);
	for (uint64_t cursor = 0; cursor < 2 * COUNT; cursor++) {
		uint64_t index = train_data_index(&rng, COUNT, cursor);

		assert_true(index < COUNT);
		seen[cursor / COUNT][index]++;
		if (cursor < COUNT)
			same += index == train_data_index(&rng, COUNT, cursor + COUNT);
	}
	for (int i = 0; i < COUNT; i++) {
		assert_int_equal(seen[0][i], 1);
		assert_int_equal(seen[1][i], 1);
	}
	assert_true(same < COUNT / 2);
}

static void assert_near(double value, double expected)
{
	if (fabs(value - expected) > 2e-7 * fabs(expected) + 1e-9)
		fail_msg("%.9g is not %.9g", value, expected);
}

/* Values of PyTorch 1.13 and diffusers 0.27.2. */
static void scalars_are_those_of_torch_and_diffusers(void **unused)
{
	static const struct {
		uint64_t k;
		double lr, ema;
	} golden[] = {
		{0, 0, 0},
		{1, .1, .40539644},
		{10, 1, .83443997},
		{100, 0, .96861234},
		{1000, 0, .99438080},
	};
	struct train_params params = default_params();
	struct adamw scalars;

	params.lr_kind = LR_COSINE;
	params.warmup_steps = 10;
	params.steps_total = 100;
	params.learning_rate = 1;
	params.ema_max = 0.9999;
	for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
		scalars = train_scalars(&params, golden[i].k, 0);
		assert_near((double)scalars.learning_rate, golden[i].lr);
		assert_near((double)scalars.ema_decay, golden[i].ema);
	}
	scalars = train_scalars(&params, 1, 4);
	assert_near((double)scalars.bias_correction1, 1 - 0.9 * 0.9);
	assert_near((double)scalars.bias_correction2, 1 - 0.99 * 0.99);
	assert_near((double)scalars.clip_scale, 1 / (4 + 1e-6));
	assert_true(train_scalars(&params, 1, 0.5).clip_scale == 1);
	params.clip_norm = 0;
	assert_true(train_scalars(&params, 1, 4).clip_scale == 1);
}

static void a_nonfinite_gradient_is_noticed_at_its_step_only(void **state)
{
	struct train_params params = default_params();
	struct train_result result;
	struct bench bench;
	struct train *train;

	bench_open(&bench, check_engine(state));
	train = bench_train(&bench, &params);
	assert_int_equal(sys_fault_plan("train.nonfinite@2:*:EIO"), 0);
	train_gradient(train, 1, 4, &result);
	assert_true(result.finite);
	train_gradient(train, 2, 8, &result);
	assert_false(result.finite);
	train_gradient(train, 3, 12, &result);
	assert_true(result.finite);
	assert_int_equal(sys_fault_plan(NULL), 0);
	train_free(train);
	bench_close(&bench);
}

/* Two slots of four sections, written in turn, as the worker does. */
static void sixty_steps_learn_something(void **state)
{
	struct train_params params = default_params();
	struct bench bench;
	struct train *train;
	size_t section_elems, sum_count;
	float *slots[2], *sections[2][SECTION_COUNT];
	uint64_t *sums[2];
	double first = 0, last = 0;

	bench_open(&bench, check_engine(state));
	params.batch_size = params.micro_batch = 8;
	train = bench_train(&bench, &params);
	section_elems = train->section_elems;
	sum_count = section_elems * SECTION_COUNT * sizeof(float) >> 20;
	for (int i = 0; i < 2; i++) {
		slots[i] = aligned_alloc(64, section_elems * SECTION_COUNT * sizeof(float));
		memset(slots[i], 0, section_elems * SECTION_COUNT * sizeof(float));
		sums[i] = calloc(sum_count, sizeof(uint64_t));
		for (size_t k = 0; k < SECTION_COUNT; k++)
			sections[i][k] = slots[i] + k * section_elems;
	}
	memcpy(slots[0], bench.weights, bench.table.section_bytes);
	memcpy(slots[0] + section_elems, bench.weights, bench.table.section_bytes);
	for (uint64_t step = 0; step < 60; step++) {
		struct train_result result;
		struct adamw scalars;
		int src = step % 2, dst = 1 - src;

		train_gradient(train, step, step * params.batch_size, &result);
		assert_true(result.finite);
		scalars = train_scalars(&params, step, result.grad_norm);
		assert_true(train_update(train, &scalars, sections[src], sections[dst],
			step ? sums[src] : NULL, sums[dst]));
		unet_load_weights(train->unet, sections[dst][SECTION_WEIGHTS]);
		first += step < 10 ? result.loss.mean / 10 : 0;
		last += step >= 50 ? result.loss.mean / 10 : 0;
	}
	if (!(last < 0.7 * first))
		fail_msg("loss went from %.3f to %.3f", first, last);
	for (int i = 0; i < 2; i++) {
		free(slots[i]);
		free(sums[i]);
	}
	train_free(train);
	bench_close(&bench);
}

/* -- drawing and scoring -- */

static struct unet *bench_unet(struct bench *bench, uint32_t batch)
{
	const struct unet_setup setup = {
		.config = &bench->model,
		.table = &bench->table,
		.engine = bench->engine,
		.batch = batch,
	};
	struct unet *unet = NULL;
	struct error err;

	if (unet_new(&setup, &unet, &err) < 0)
		fail_msg("%s", err.text);
	unet_load_weights(unet, bench->weights);
	return unet;
}

static bool never(void *context)
{
	return false;
}

static bool always(void *context)
{
	return true;
}

#define DRAWN 3
#define DRAWN_ELEMS (3 * 8 * 8)

/* True when drawn to the end. */
static bool draw(struct bench *bench, enum sampler_kind kind, uint32_t batch, float guidance,
	int32_t label, bool (*cancelled)(void *context), float images[DRAWN * DRAWN_ELEMS])
{
	struct sampler sampler;
	struct generate_setup setup = {
		.model = &bench->model,
		.batch = batch,
		.sampler = &sampler,
		.rng = bench->rng,
		.guidance = guidance,
		.cancelled = cancelled,
	};
	int32_t labels[DRAWN] = {label, label, label};
	struct generate generate;
	struct unet *unet = bench_unet(bench, batch);
	struct error err;
	bool drawn;

	assert_int_equal(sampler_init(&sampler, kind, &bench->schedule, 5, true, &err), 0);
	assert_int_equal(generate_init(&generate, &setup, &err), 0);
	drawn = generate_images(&generate, unet, DRAWN, labels, images);
	generate_fini(&generate);
	unet_free(unet);
	return drawn;
}

static double distance(const float *a, const float *b, size_t count)
{
	double sum = 0;

	for (size_t i = 0; i < count; i++) {
		assert_true(isfinite(a[i]) && isfinite(b[i]));
		sum += fabs((double)a[i] - (double)b[i]);
	}
	return sum / (double)count;
}

static void an_image_does_not_depend_on_what_is_drawn_beside_it(void **state)
{
	static float alone[DRAWN * DRAWN_ELEMS], together[DRAWN * DRAWN_ELEMS];
	struct bench bench;

	bench_open(&bench, check_engine(state));
	for (int kind = SAMPLER_DDIM; kind <= SAMPLER_DDPM; kind++) {
		assert_true(draw(&bench, kind, 1, 1, 2, never, alone));
		assert_true(draw(&bench, kind, 2, 1, 2, never, together));
		assert_true(distance(alone, together, DRAWN * DRAWN_ELEMS) < 1e-4);
		assert_true(distance(alone, alone + DRAWN_ELEMS, DRAWN_ELEMS) > 1e-2);
	}
	bench_close(&bench);
}

static void guidance_and_labels_matter_and_the_null_class_is_not_guided(void **unused)
{
	static float plain[DRAWN * DRAWN_ELEMS], other[DRAWN * DRAWN_ELEMS];
	struct bench bench;
	int32_t null_class = (int32_t)tiny.class_count - 1;

	bench_open(&bench, engine_openblas());
	assert_true(draw(&bench, SAMPLER_DDIM, 3, 1, 2, never, plain));
	assert_true(draw(&bench, SAMPLER_DDIM, 3, 1, 1, never, other));
	assert_true(distance(plain, other, DRAWN * DRAWN_ELEMS) > 1e-4);
	assert_true(draw(&bench, SAMPLER_DDIM, 3, 4, 2, never, other));
	assert_true(distance(plain, other, DRAWN * DRAWN_ELEMS) > 1e-4);
	assert_true(draw(&bench, SAMPLER_DDIM, 3, 1, null_class, never, plain));
	assert_true(draw(&bench, SAMPLER_DDIM, 3, 4, null_class, never, other));
	assert_true(distance(plain, other, DRAWN * DRAWN_ELEMS) < 1e-5);
	assert_false(draw(&bench, SAMPLER_DDIM, 3, 1, 2, always, other));
	assert_int_equal(generate_label(&tiny, 5), 1);
	bench_close(&bench);
}

static struct loss score(struct bench *bench, uint32_t batch)
{
	struct holdout_setup setup = {
		.model = &bench->model,
		.schedule = &bench->schedule,
		.data = &bench->data,
		.rng = bench->rng,
		.batch = batch,
		.triple_count = 10,
	};
	struct unet *unet = bench_unet(bench, batch);
	struct holdout holdout;
	struct error err;
	struct loss loss;

	assert_int_equal(holdout_init(&holdout, &setup, &err), 0);
	assert_true(holdout_score(&holdout, unet, &loss));
	holdout_fini(&holdout);
	unet_free(unet);
	return loss;
}

static void the_holdout_scores_the_same_triples_every_time(void **state)
{
	struct bench bench;
	struct loss first, again, other;
	uint32_t count = 0;

	bench_open(&bench, check_engine(state));
	first = score(&bench, 4);
	again = score(&bench, 4);
	other = score(&bench, 3);
	assert_true(first.mean == again.mean && first.mean > 0);
	assert_true(fabs(first.mean - other.mean) < 1e-5 * first.mean);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(first.quartile_count[i], other.quartile_count[i]);
		count += first.quartile_count[i];
	}
	assert_int_equal(count, 10);
	bench_close(&bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(p2_gradient_bits_do_not_depend_on_the_number_of_threads),
		ON_EACH_ENGINE(p2_a_step_is_a_function_of_its_number_and_cursor_alone),
		ON_EACH_ENGINE(p2_recomputed_activations_have_the_same_bits),
		ON_EACH_ENGINE(micro_batches_change_only_the_rounding),
		cmocka_unit_test(every_epoch_shows_each_image_once_in_its_own_order),
		cmocka_unit_test(scalars_are_those_of_torch_and_diffusers),
		ON_EACH_ENGINE(a_nonfinite_gradient_is_noticed_at_its_step_only),
		ON_EACH_ENGINE(sixty_steps_learn_something),
		ON_EACH_ENGINE(an_image_does_not_depend_on_what_is_drawn_beside_it),
		cmocka_unit_test(guidance_and_labels_matter_and_the_null_class_is_not_guided),
		ON_EACH_ENGINE(the_holdout_scores_the_same_triples_every_time),
	};

	return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
