/* The golden numbers of diffusers for whole nets (outputs, loss, gradients) on the fp32 engines,
 * and the amx engine beside them: its activations have 8 bits of mantissa, whose roundings add up
 * to nearly 1 % of a result behind some dozens of layers. */
#include "tests/unit/unet_run.h"

static double gradient_norm(const struct run *run, const char *name)
{
	const struct tensor_spec *spec = tensor_table_find(&run->table, name);
	assert_non_null(spec);
	return norm_of(run->grads + spec->offset / sizeof(float), spec->elem_count);
}

struct golden {
	double first[4], last, mean, std, loss, total;
	double conv_in, linear_1, to_q, to_out_bias;
};

static void check_golden(const struct run *run, const struct golden *golden)
{
	double mean = 0.0, square = 0.0, count = (double)run->elems;
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
	assert_close("total", norm_of(run->grads, run_section(run)), golden->total,
		2e-6 * golden->total);
	assert_close("conv_in", gradient_norm(run, "conv_in.weight"), golden->conv_in,
		5e-6 * golden->conv_in);
	assert_close("linear_1", gradient_norm(run, "time_embedding.linear_1.weight"),
		golden->linear_1, 5e-6 * golden->linear_1);
	assert_close("to_q", gradient_norm(run, "down_blocks.1.attentions.0.to_q.weight"),
		golden->to_q, 5e-6 * golden->to_q);
	assert_close("to_out", gradient_norm(run, "mid_block.attentions.0.to_out.0.bias"),
		golden->to_out_bias, 5e-6 * golden->to_out_bias);
}

/* How far a net may be from the same on openblas, as shares (the loss absolutely). */
struct beside {
	double y, loss, total, tensor;
};

static const struct beside fp32_beside = {2e-6, 1e-6, 2e-6, 2e-5};
/* Twice what was measured. */
static const struct beside bf16_beside = {2e-2, 3e-4, 4e-3, 0.1};

/* Every tensor's gradient near the other's. to_k.bias has a true gradient of zero. */
static void check_gradients(const struct run *run, const struct run *fp32, double share)
{
	double total = norm_of(fp32->grads, run_section(fp32));
	for (uint32_t i = 0; i < run->table.count; i++) {
		const struct tensor_spec *spec = &run->table.specs[i];
		size_t at = spec->offset / sizeof(float);
		double norm = norm_of(fp32->grads + at, spec->elem_count);
		double away = distance_of(run->grads + at, fp32->grads + at, spec->elem_count);
		if (norm < 1e-6 * total) {
			assert_non_null(strstr(spec->name, "to_k.bias"));
			assert_close(spec->name, away, 0.0, 1e-4 * total);
		} else if (!(away <= share * norm)) {
			fail_msg("%s: %.3g of its norm away", spec->name, away / norm);
		}
	}
}

static void check_beside(const struct run *run, const struct run *fp32, const struct beside *beside)
{
	double total = norm_of(fp32->grads, run_section(fp32));
	double away = distance_of(run->y, fp32->y, run->elems) / norm_of(fp32->y, run->elems);
	if (!(away <= beside->y))
		fail_msg("y: %.3g of its norm away", away);
	assert_close("loss", run->loss, fp32->loss, beside->loss);
	assert_close("total", norm_of(run->grads, run_section(run)), total, beside->total * total);
	check_gradients(run, fp32, beside->tensor);
}

/* timestep: of the first image, the second's is 500. */
static void check_net(const struct engine *engine, struct unet_config config, uint32_t n,
	float timestep, const struct golden *golden)
{
	struct run run, fp32;
	run_init(&run, engine, config, n, n);
	run.timesteps[0] = timestep;
	run_step(&run, false);
	if (engine->form.elem == ELEM_F32) {
		check_golden(&run, golden);
	} else {
		run_init(&fp32, engine_openblas(), config, n, n);
		fp32.timesteps[0] = timestep;
		run_step(&fp32, false);
		check_beside(&run, &fp32, &bf16_beside);
		run_fini(&fp32);
	}
	run_fini(&run);
}

static void test_a(void **state)
{
	check_net(check_engine(state), golden_config_a(), 2, 10,
		&(struct golden){{-.1627687, -.4563490, -.5885247, -.2716804}, -.0513672,
			-.07744299, .36517149, .51281791, 3.5354797, .29050265, .061968662,
			.017330381, .025402883});
}

static void test_b(void **state)
{
	check_net(check_engine(state), golden_config_b(), 2, 10,
		&(struct golden){{-.1377075, -.5350202, -.6494389, -.2333595}, .1811278, -.08135775,
			.35212780, .48920896, 3.5126036, .30681075, .067790725, .020256575,
			.024490421});
}

static void test_a4(void **state)
{
	check_net(check_engine(state), golden_config_a4(), 2, 10,
		&(struct golden){{-.3476605, -.5375487, -.6492863, -.6356626}, -.0390834,
			-.07181331, .38702346, .51537191, 3.3843463, .24790831, .041204240,
			.012710074, .023752312});
}

static void test_c(void **state)
{
	check_net(check_engine(state), golden_config_c(), 1, 500,
		&(struct golden){{.0374890, -.1984762, -.3731188, -.0125305}, .2817102, .14773704,
			.41616610, .53650317, 6.8982445, .12493018, .15965325, .00321042,
			.00040113116});
}

/* No golden numbers, but every operator of the amx engine, beside openblas. */
static void test_uneven(void **state)
{
	const struct engine *engine = check_engine(state);
	struct run run, fp32;
	run_init(&run, engine, uneven_config(), 2, 3);
	run_init(&fp32, engine_openblas(), uneven_config(), 2, 2);
	run_step(&run, false);
	run_step(&fp32, false);
	check_beside(&run, &fp32, engine->form.elem == ELEM_BF16 ? &bf16_beside : &fp32_beside);
	run_fini(&run);
	run_fini(&fp32);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(test_a),
		ON_EACH_ENGINE(test_b),
		ON_EACH_ENGINE(test_a4),
		ON_EACH_ENGINE(test_c),
		ON_ENGINE(test_uneven, "avx512"),
		ON_ENGINE(test_uneven, "amx"),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
