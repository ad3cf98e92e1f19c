/* Tensor names and counts, configurations that are refused, initial weights, and nets against their
 * definition in double that the golden numbers (test_unet_golden.c) leave out. */
#include "tests/oracle/naive_unet.h"
#include "tests/unit/unet_run.h"

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

static void check_odd_net(const struct engine *engine, const struct unet_config *config)
{
	struct run run;
	run_init(&run, engine, *config, 2, 3);
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
	const struct engine *engine = check_engine(state);
	for (size_t i = 0; i < sizeof(odd_configs) / sizeof(*odd_configs); i++)
		check_odd_net(engine, &odd_configs[i]);
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
	struct unet_setup setup = {
		.config = &config, .table = &table, .engine = engine_openblas(), .training = true};
	assert_true(unet_new(&setup, &unet, &err) < 0);
	setup.batch = 1u << 30;
	assert_true(unet_new(&setup, &unet, &err) < 0);
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
	float *section = run_floats(table.section_bytes / sizeof(float));
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
		ON_ENGINE(test_odd_nets, "openblas"),
		ON_ENGINE(test_odd_nets, "avx512"),
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_p9_bad_config),
		cmocka_unit_test(test_initial_weights),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
