/* The golden numbers of diffusers for whole nets (outputs, loss, gradients), tensor names and
 * counts, and what the model promises about bits (P2): threads, n, repetition. */
#include "tests/unit/golden_unet.h"

#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/oracle/naive_unet.h"

/* One training step of a net on the golden inputs. */
struct run {
	struct unet_config config;
	struct tensor_table table;
	struct unet *unet;
	uint32_t n;
	size_t x_elems, elems; /* of x; of y */
	float *weights, *grads, *x, *y, *target, *dy;
	float timesteps[8];
	int32_t labels[8];
	double loss;
};

static float *floats(size_t count)
{
	float *values = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
	assert_non_null(values);
	memset(values, 0, count * sizeof(float));
	return values;
}

static void run_init(struct run *run, struct unet_config config, uint32_t n, uint32_t batch)
{
	struct error err;
	*run = (struct run){.config = config, .n = n, .timesteps = {10, 500}, .labels = {0, 3}};
	assert_int_equal(unet_tensor_table(&config, &run->table, &err), 0);
	assert_int_equal(unet_new(&config, &run->table, batch, true, NULL, &run->unet, &err), 0);
	size_t section = run->table.section_bytes / sizeof(float);
	size_t pixels = (size_t)config.sample_size * config.sample_size;
	run->x_elems = n * config.in_channels * pixels;
	run->elems = n * config.out_channels * pixels;
	run->weights = floats(section);
	run->grads = floats(section);
	run->x = floats(run->x_elems);
	run->y = floats(run->elems);
	run->target = floats(run->elems);
	run->dy = floats(run->elems);
	golden_weights(&run->table, run->weights);
	golden_fill(0xFFFF, run->x, run->x_elems);
	golden_fill(0xFFFE, run->target, run->elems);
	unet_load_weights(run->unet, run->weights);
}

static void run_fini(struct run *run)
{
	unet_free(run->unet);
	tensor_table_fini(&run->table);
	free(run->weights);
	free(run->grads);
	free(run->x);
	free(run->y);
	free(run->target);
	free(run->dy);
}

static void run_step(struct run *run, bool accumulate)
{
	unet_forward(run->unet, run->n, run->x, run->timesteps, run->labels, run->y);
	run->loss = 0.0;
	for (size_t i = 0; i < run->elems; i++) {
		double d = (double)run->y[i] - (double)run->target[i];
		run->loss += d * d / (double)run->elems;
		run->dy[i] = (float)(2.0 * d / (double)run->elems);
	}
	unet_backward(run->unet, run->dy, run->grads, accumulate);
}

static double norm_of(const float *values, size_t count)
{
	double sum = 0.0;
	for (size_t i = 0; i < count; i++)
		sum += (double)values[i] * (double)values[i];
	return sqrt(sum);
}

static double gradient_norm(const struct run *run, const char *name)
{
	const struct tensor_spec *spec = tensor_table_find(&run->table, name);
	assert_non_null(spec);
	return norm_of(run->grads + spec->offset / sizeof(float), spec->elem_count);
}

static void assert_close(const char *what, double value, double golden, double tolerance)
{
	if (!(fabs(value - golden) <= tolerance))
		fail_msg("%s: %.9g, golden %.9g, off by %.3g", what, value, golden,
			fabs(value - golden));
}

struct golden {
	double first[4], last, mean, std, loss, total;
	double conv_in, linear_1, to_q, to_out_bias;
};

static void check_golden(struct run *run, const struct golden *golden)
{
	double mean = 0.0, square = 0.0, count = (double)run->elems;
	run_step(run, false);
	for (size_t i = 0; i < run->elems; i++) {
		mean += (double)run->y[i] / count;
		square += (double)run->y[i] * (double)run->y[i] / count;
	}
	for (int i = 0; i < 4; i++)
		assert_close("y", (double)run->y[i], golden->first[i], 2e-6);
	assert_close("y[-1]", (double)run->y[run->elems - 1], golden->last, 2e-6);
	assert_close("mean", mean, golden->mean, 1e-6);
	assert_close("std", sqrt(square - mean * mean), golden->std, 1e-6);
	assert_close("loss", run->loss, golden->loss, 1e-6);
	assert_close("total", norm_of(run->grads, run->table.section_bytes / sizeof(float)),
		golden->total, 2e-6 * golden->total);
	assert_close("conv_in", gradient_norm(run, "conv_in.weight"), golden->conv_in,
		5e-6 * golden->conv_in);
	assert_close("linear_1", gradient_norm(run, "time_embedding.linear_1.weight"),
		golden->linear_1, 5e-6 * golden->linear_1);
	assert_close("to_q", gradient_norm(run, "down_blocks.1.attentions.0.to_q.weight"),
		golden->to_q, 5e-6 * golden->to_q);
	assert_close("to_out", gradient_norm(run, "mid_block.attentions.0.to_out.0.bias"),
		golden->to_out_bias, 5e-6 * golden->to_out_bias);
}

static void test_golden_a(void **state)
{
	struct run run;
	run_init(&run, golden_config_a(), 2, 2);
	assert_int_equal(run.table.param_count, 702499);
	assert_int_equal(run.table.count, 144);
	check_golden(&run,
		&(struct golden){{-.1627687, -.4563490, -.5885247, -.2716804}, -.0513672,
			-.07744299, .36517149, .51281791, 3.5354797, .29050265, .061968662,
			.017330381, .025402883});
	run_fini(&run);
}

static void test_golden_b(void **state)
{
	struct run run;
	run_init(&run, golden_config_b(), 2, 2);
	check_golden(&run,
		&(struct golden){{-.1377075, -.5350202, -.6494389, -.2333595}, .1811278, -.08135775,
			.35212780, .48920896, 3.5126036, .30681075, .067790725, .020256575,
			.024490421});
	run_fini(&run);
}

static void test_golden_a4(void **state)
{
	struct run run;
	run_init(&run, golden_config_a4(), 2, 2);
	check_golden(&run,
		&(struct golden){{-.3476605, -.5375487, -.6492863, -.6356626}, -.0390834,
			-.07181331, .38702346, .51537191, 3.3843463, .24790831, .041204240,
			.012710074, .023752312});
	run_fini(&run);
}

static void test_golden_c(void **state)
{
	struct run run;
	run_init(&run, golden_config_c(), 1, 1);
	assert_int_equal(run.table.param_count, 35746307);
	assert_int_equal(run.table.count, 328);
	run.timesteps[0] = 500;
	check_golden(&run,
		&(struct golden){{.0374890, -.1984762, -.3731188, -.0125305}, .2817102, .14773704,
			.41616610, .53650317, 6.8982445, .12493018, .15965325, .00321042,
			.00040113116});
	run_fini(&run);
}

/* Every corner that the golden nets leave out: widths that are no multiple of 16, groups over the
 * seam, three levels, two layers, both paddings, classes, attention at every level. */
static const struct unet_config odd_configs[] = {
	{
		.sample_size = 4,
		.in_channels = 1,
		.out_channels = 2,
		.level_count = 3,
		.channels = {12, 20, 36},
		.down_attention = {true, false, true},
		.up_attention = {true, true, false},
		.layers_per_block = 1,
		.head_dim = 4,
		.groups = 4,
		.norm_eps = 1e-5f,
		.downsample_padding = 0,
		.freq_shift = 1,
		.class_count = 3,
	},
	{
		.sample_size = 3,
		.in_channels = 4,
		.out_channels = 4,
		.level_count = 1,
		.channels = {9},
		.layers_per_block = 2,
		.groups = 3,
		.norm_eps = 1e-5f,
		.downsample_padding = 1,
		.flip_sin_to_cos = true,
	},
};

struct naive_run {
	struct run *run;
	size_t x_elems, y_elems, section;
	double *weights, *x, *y, *target, timesteps[8];
};

static double naive_loss(struct naive_run *naive)
{
	const struct run *run = naive->run;
	naive_unet(&run->config, &run->table, naive->weights, run->n, naive->x, naive->timesteps,
		run->labels, naive->y);
	double sum = 0.0;
	for (size_t i = 0; i < naive->y_elems; i++) {
		double d = naive->y[i] - naive->target[i];
		sum += d * d / (double)naive->y_elems;
	}
	return sum;
}

static double *widen(const float *values, size_t count)
{
	double *wide = calloc(count, sizeof(*wide));
	assert_non_null(wide);
	for (size_t i = 0; i < count; i++)
		wide[i] = (double)values[i];
	return wide;
}

/* The derivative along a direction within one tensor, against its gradient. */
static void check_tensor_gradient(struct naive_run *naive, const struct tensor_spec *spec)
{
	const struct run *run = naive->run;
	const double epsilon = 1e-4;
	size_t at = spec->offset / sizeof(float);
	double *values = naive->weights + at, expected = 0.0, scale = 0.0;
	double *saved = calloc(spec->elem_count, sizeof(*saved));
	assert_non_null(saved);
	memcpy(saved, values, spec->elem_count * sizeof(*saved));
	double losses[2];
	for (int side = 0; side < 2; side++) {
		for (size_t i = 0; i < spec->elem_count; i++)
			values[i] = saved[i] +
				(side ? -epsilon : epsilon) * golden_value(77, (uint32_t)i);
		losses[side] = naive_loss(naive);
	}
	memcpy(values, saved, spec->elem_count * sizeof(*saved));
	free(saved);
	for (size_t i = 0; i < spec->elem_count; i++) {
		double term = (double)run->grads[at + i] * golden_value(77, (uint32_t)i);
		expected += term;
		scale += fabs(term);
	}
	assert_close(spec->name, (losses[0] - losses[1]) / (2.0 * epsilon), expected,
		2e-6 + 2e-4 * scale);
}

static void check_odd_net(const struct unet_config *config)
{
	struct run run;
	run_init(&run, *config, 2, 3);
	run.labels[0] = 2;
	run.labels[1] = 0;
	run_step(&run, false);
	struct naive_run naive = {.run = &run,
		.x_elems = run.x_elems,
		.y_elems = run.elems,
		.section = run.table.section_bytes / sizeof(float),
		.timesteps = {10, 500}};
	naive.weights = widen(run.weights, naive.section);
	naive.x = widen(run.x, naive.x_elems);
	naive.target = widen(run.target, naive.y_elems);
	naive.y = widen(run.y, naive.y_elems);
	double loss = naive_loss(&naive);
	assert_close("loss", run.loss, loss, 1e-5 * loss);
	for (size_t i = 0; i < naive.y_elems; i++)
		assert_close("y", (double)run.y[i], naive.y[i], 1e-5);
	for (uint32_t i = 0; i < run.table.count; i++)
		check_tensor_gradient(&naive, &run.table.specs[i]);
	free(naive.weights);
	free(naive.x);
	free(naive.y);
	free(naive.target);
	run_fini(&run);
}

static void test_odd_nets(void **state)
{
	for (size_t i = 0; i < sizeof(odd_configs) / sizeof(*odd_configs); i++)
		check_odd_net(&odd_configs[i]);
}

static void test_p2_threads(void **state)
{
	static const int threads[] = {1, 2, 3, 5};
	int before = omp_get_max_threads();
	struct run first;
	run_init(&first, golden_config_a4(), 2, 2);
	run_step(&first, false);
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		struct run run;
		omp_set_num_threads(threads[i]);
		run_init(&run, golden_config_a4(), 2, 2);
		run_step(&run, false);
		assert_memory_equal(run.y, first.y, first.elems * sizeof(float));
		assert_memory_equal(run.grads, first.grads, first.table.section_bytes);
		run_fini(&run);
	}
	/* a plan made for fewer threads than run now */
	omp_set_num_threads(omp_get_num_procs() + 3);
	run_step(&first, false);
	struct run last;
	run_init(&last, golden_config_a4(), 2, 2);
	run_step(&last, false);
	assert_memory_equal(first.grads, last.grads, first.table.section_bytes);
	run_fini(&last);
	omp_set_num_threads(before);
	run_fini(&first);
}

/* The bits of an image depend neither on the other images nor on how many there are; and what an
 * earlier call left in the buffers is not read, even when it was not finite. */
static void test_p2_images_alone(void **state)
{
	struct run run;
	run_init(&run, golden_config_b(), 5, 5); /* more than one block of positions */
	run.timesteps[2] = 900;
	size_t image = run.elems / 5;
	float *all = floats(run.elems), *grads = floats(run.table.section_bytes / sizeof(float));
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
	run_init(&fresh, golden_config_b(), 1, 5);
	for (size_t i = 0; i < run.elems; i++)
		run.x[i] = NAN;
	run_step(&run, false);
	run.n = 1;
	run.elems = image;
	golden_fill(0xFFFF, run.x, run.elems);
	run_step(&run, false);
	run_step(&fresh, false);
	assert_memory_equal(run.grads, fresh.grads, run.table.section_bytes);
	run_fini(&fresh);
	free(all);
	free(grads);
	run_fini(&run);
}

static void test_accumulate(void **state)
{
	struct run run;
	run_init(&run, golden_config_a4(), 2, 2);
	size_t section = run.table.section_bytes / sizeof(float);
	float *once = floats(section);
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

/* Without gradients: the same bits, less memory. */
static void test_inference_plan(void **state)
{
	struct run run;
	struct unet *inference;
	struct error err;
	_Atomic uint64_t moves = 0;
	run_init(&run, golden_config_b(), 2, 2);
	run_step(&run, false);
	float *y = floats(run.elems);
	assert_int_equal(unet_new(&run.config, &run.table, 2, false, &moves, &inference, &err), 0);
	unet_load_weights(inference, run.weights);
	uint64_t loaded = moves;
	unet_forward(inference, 2, run.x, run.timesteps, NULL, y);
	assert_true(moves > loaded);
	assert_memory_equal(y, run.y, run.elems * sizeof(float));
	unet_free(inference);
	free(y);
	run_fini(&run);

	size_t bytes[2];
	run_init(&run, golden_config_b(), 1, 1);
	for (int training = 0; training < 2; training++) {
		assert_int_equal(
			unet_new(&run.config, &run.table, 64, training, NULL, &inference, &err), 0);
		bytes[training] = unet_plan_bytes(inference);
		unet_free(inference);
	}
	assert_true(2 * bytes[0] < bytes[1]);
	run_fini(&run);
}

static void test_tables(void **state)
{
	struct tensor_table table;
	struct error err;
	struct unet_config config = golden_config_unconditional();
	assert_int_equal(unet_tensor_table(&config, &table, &err), 0);
	assert_int_equal(table.param_count, 113673219);
	assert_int_equal(table.count, 450);
	static const struct {
		const char *name;
		uint32_t dim_count, shape[4];
	} expected[] = {
		{"conv_in.weight", 4, {128, 3, 3, 3}},
		{"time_embedding.linear_1.weight", 2, {512, 128}},
		{"down_blocks.2.resnets.0.conv_shortcut.weight", 4, {256, 128, 1, 1}},
		{"down_blocks.4.attentions.1.to_out.0.weight", 2, {512, 512}},
		{"down_blocks.4.downsamplers.0.conv.bias", 1, {512}},
		{"mid_block.attentions.0.group_norm.weight", 1, {512}},
		{"up_blocks.1.attentions.2.to_k.weight", 2, {512, 512}},
		{"up_blocks.1.resnets.2.conv1.weight", 4, {512, 768, 3, 3}},
		{"up_blocks.2.resnets.0.norm1.weight", 1, {768}},
		{"up_blocks.5.resnets.2.time_emb_proj.weight", 2, {128, 512}},
		{"up_blocks.4.upsamplers.0.conv.weight", 4, {128, 128, 3, 3}},
		{"conv_norm_out.bias", 1, {128}},
		{"conv_out.weight", 4, {3, 128, 3, 3}},
	};
	for (size_t i = 0; i < sizeof(expected) / sizeof(*expected); i++) {
		const struct tensor_spec *spec = tensor_table_find(&table, expected[i].name);
		assert_non_null(spec);
		assert_int_equal(spec->dim_count, expected[i].dim_count);
		assert_memory_equal(
			spec->shape, expected[i].shape, expected[i].dim_count * sizeof(uint32_t));
	}
	assert_null(tensor_table_find(&table, "up_blocks.5.upsamplers.0.conv.weight"));
	assert_null(tensor_table_find(&table, "down_blocks.0.resnets.0.conv_shortcut.weight"));
	tensor_table_fini(&table);
}

/* P9: one line that names the key and the rule. */
static void test_p9_bad_config(void **state)
{
	struct unet_config config = golden_config_a();
	struct tensor_table table;
	struct unet *unet;
	struct error err;
	assert_int_equal(unet_config_check(&config, &err), 0);
	config.groups = 7;
	assert_true(unet_tensor_table(&config, &table, &err) < 0);
	assert_non_null(strstr(err.text, "32 is not divisible by groups = 7"));
	config = golden_config_a();
	config.sample_size = 9;
	assert_true(unet_config_check(&config, &err) < 0);
	assert_non_null(strstr(err.text, "image_size: 9"));
	config = golden_config_a();
	config.head_dim = 24;
	assert_true(unet_config_check(&config, &err) < 0);
	assert_non_null(strstr(err.text, "head_dim: 24 does not divide the 64 channels"));
	config = golden_config_a();
	config.level_count = 9;
	assert_true(unet_config_check(&config, &err) < 0);
	config = golden_config_a();
	config.freq_shift = 16;
	assert_true(unet_config_check(&config, &err) < 0);
	config = golden_config_a();
	assert_int_equal(unet_tensor_table(&config, &table, &err), 0);
	assert_true(unet_new(&config, &table, 0, true, NULL, &unet, &err) < 0);
	assert_true(unet_new(&config, &table, 1u << 30, true, NULL, &unet, &err) < 0);
	assert_non_null(strstr(err.text, "micro_batch"));
	tensor_table_fini(&table);
}

static void moments_of(
	const float *values, size_t count, double *ret_mean, double *ret_std, double *ret_max)
{
	double mean = 0.0, square = 0.0, max = 0.0;
	for (size_t i = 0; i < count; i++) {
		mean += (double)values[i] / (double)count;
		square += (double)values[i] * (double)values[i] / (double)count;
		max = fmax(max, fabs((double)values[i]));
	}
	*ret_mean = mean;
	*ret_std = sqrt(square - mean * mean);
	*ret_max = max;
}

static void check_initial(const struct tensor_table *table, const float *section, bool zero_out)
{
	for (uint32_t i = 0; i < table->count; i++) {
		const struct tensor_spec *spec = &table->specs[i];
		double mean, std, max, count = (double)spec->elem_count;
		moments_of(section + spec->offset / sizeof(float), spec->elem_count, &mean, &std,
			&max);
		bool zeroed = strstr(spec->name, ".conv2.") || strstr(spec->name, ".to_out.0.") ||
			!strncmp(spec->name, "conv_out.", 9);
		if (zero_out && zeroed) {
			assert_true(max == 0.0);
		} else if (strstr(spec->name, "norm")) {
			const float *values = section + spec->offset / sizeof(float);
			float expected = strstr(spec->name, "weight") ? 1.0f : 0.0f;
			for (uint64_t j = 0; j < spec->elem_count; j++)
				assert_true(values[j] == expected);
		} else if (strstr(spec->name, "class_embedding")) {
			assert_close(spec->name, mean, 0.0, 5.0 / sqrt(count));
			assert_close(spec->name, std, 1.0, 5.0 / sqrt(count));
		} else if (spec->dim_count > 1) {
			double bound = 1.0 / sqrt(count / spec->shape[0]);
			assert_true(max <= bound && max > 0.9 * bound);
			assert_close(spec->name, mean, 0.0, 5.0 * bound / sqrt(count));
			assert_close(spec->name, std, bound / sqrt(3.0), 5.0 * bound / sqrt(count));
		} else {
			assert_true(max > 0.0 && max < 1.0 / sqrt(26.0));
		}
	}
	assert_true(section[table->section_bytes / sizeof(float) - 1] == 0.0f);
}

static void test_initial_weights(void **state)
{
	struct unet_config config = golden_config_a4();
	struct tensor_table table;
	struct error err;
	struct rng rng;
	assert_int_equal(unet_tensor_table(&config, &table, &err), 0);
	float *section = floats(table.section_bytes / sizeof(float));
	memset(section, 0xff, table.section_bytes);
	rng_init(&rng, 7);
	unet_init_weights(&config, &table, &rng, false, section);
	check_initial(&table, section, false);
	const struct tensor_spec *bias = tensor_table_find(&table, "conv_in.bias");
	double mean, std, max;
	moments_of(section + bias->offset / sizeof(float), bias->elem_count, &mean, &std, &max);
	assert_true(max <= 1.0 / sqrt(27.0) && max > 0.8 / sqrt(27.0)); /* of the weight's fan_in */
	unet_init_weights(&config, &table, &rng, true, section);
	check_initial(&table, section, true);
	free(section);
	tensor_table_fini(&table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_a),
		cmocka_unit_test(test_golden_b),
		cmocka_unit_test(test_golden_a4),
		cmocka_unit_test(test_golden_c),
		cmocka_unit_test(test_odd_nets),
		cmocka_unit_test(test_p2_threads),
		cmocka_unit_test(test_p2_images_alone),
		cmocka_unit_test(test_accumulate),
		cmocka_unit_test(test_inference_plan),
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_p9_bad_config),
		cmocka_unit_test(test_initial_weights),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
