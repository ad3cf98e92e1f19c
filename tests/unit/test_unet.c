/* The golden numbers of diffusers for whole nets (outputs, loss, gradients), tensor names and
 * counts, and what the model promises about bits (P2): threads, n, repetition. */
#include "golden_unet.h"

#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* One training step of a net on the golden inputs. */
struct run {
	struct unet_config config;
	struct tensor_table table;
	struct unet *unet;
	uint32_t n;
	size_t elems; /* of x and y, all images */
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
	run->elems = (size_t)n * 3 * config.sample_size * config.sample_size;
	run->weights = floats(section);
	run->grads = floats(section);
	run->x = floats(run->elems);
	run->y = floats(run->elems);
	run->target = floats(run->elems);
	run->dy = floats(run->elems);
	golden_weights(&run->table, run->weights);
	golden_fill(0xFFFF, run->x, run->elems);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_a),
		cmocka_unit_test(test_golden_b),
		cmocka_unit_test(test_golden_a4),
		cmocka_unit_test(test_golden_c),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
