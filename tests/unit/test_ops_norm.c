/* GroupNorm with SiLU over one or two sources, in both forms: against its definition, gradients
 * against finite differences (bf16: all of their values against fp32 on the same input), dense
 * output, residual, accumulation, thread counts (P2). */
#include "tests/unit/ops_check.h"

#include "daemon/ops/norm.h"
#include "tests/oracle/naive_ops.h"

struct example {
	uint32_t batch, n, size;
	uint32_t spans[SPANS_MAX];
	uint32_t groups;
	bool silu, dense;
	double offset; /* of x: far from zero, the variance must survive */
};

static const struct example examples[] = {
	{2, 2, 4, {8, 0}, 2, true, false, 0.0},
	{3, 2, 5, {6, 0}, 1, false, true, 0.0},
	{3, 2, 4, {20, 10}, 5, true, false, 0.0}, /* a group over the seam: 18..23 */
	{2, 2, 3, {70, 74}, 1, true, false, 3.0}, /* a group of more than one block */
	{2, 1, 6, {128, 64}, 32, true, false, 0.0},
	{3, 2, 4, {96, 32}, 8, false, false, 0.0},
	{3, 2, 4, {64, 0}, 8, false, true, 0.0},
	{2, 2, 4, {32, 96}, 8, true, true, 0.0},
	{2, 2, 8, {16, 0}, 4, false, false, 100.0},
};
#define EXAMPLES (sizeof(examples) / sizeof(*examples))

struct bench {
	struct example example;
	const struct form *form;
	uint32_t channels, span_count, pixels;
	size_t elems;
	double *x, *weight, *bias, *y, *direction;
	float *weight_f, *bias_f, *state, *sums, *dweight, *dbias;
	struct layout positions, tokens;
	const struct layout *out_layout;
	struct group_norm norm;
	struct field x_spans[SPANS_MAX], dx_spans[SPANS_MAX], out, dout, residual;
	const struct tensor *sources[SPANS_MAX];
	bool accumulate;
};

static double loss(void *context)
{
	struct bench *bench = context;
	naive_group_norm(bench->example.n, bench->channels, bench->pixels, bench->example.groups,
		1e-5, bench->weight, bench->bias, bench->x, bench->y);
	for (size_t i = 0; bench->example.silu && i < bench->elems; i++)
		bench->y[i] = naive_silu(bench->y[i]);
	return check_dot(bench->y, bench->direction, bench->elems);
}

/* The channels of span i of NCHW values. */
static double *span_values(const struct bench *bench, const double *values, uint32_t i)
{
	size_t count = (size_t)bench->example.spans[i] * bench->pixels;
	size_t before = i ? (size_t)bench->example.spans[0] * bench->pixels : 0;
	double *part = check_doubles(bench->example.n * count);
	for (uint32_t image = 0; image < bench->example.n; image++)
		memcpy(part + image * count,
			values + image * bench->channels * (size_t)bench->pixels + before,
			count * sizeof(double));
	return part;
}

/* out and its gradient have the spans behind each other, each padded: NCHW with the columns of no
 * channel as further channels. */
static double *spread(const struct bench *bench, const double *values)
{
	uint32_t first = bench->example.spans[0], width = bench->norm.width;
	uint32_t gap = bench->norm.spans[0].width - first;
	double *wide = check_doubles((size_t)bench->example.n * width * bench->pixels);
	for (uint32_t image = 0; image < bench->example.n; image++)
		for (uint32_t c = 0; c < bench->channels; c++)
			memcpy(wide +
					((size_t)image * width + c + (c < first ? 0 : gap)) *
						bench->pixels,
				values + ((size_t)image * bench->channels + c) * bench->pixels,
				bench->pixels * sizeof(double));
	return wide;
}

static void init_values(struct bench *bench, enum elem elem)
{
	bench->x = check_doubles(bench->elems);
	bench->y = check_doubles(bench->elems);
	bench->direction = check_doubles(bench->elems);
	bench->weight = check_doubles(bench->channels);
	bench->bias = check_doubles(bench->channels);
	bench->weight_f = check_floats(bench->channels);
	bench->bias_f = check_floats(bench->channels);
	bench->dweight = check_floats(bench->channels);
	bench->dbias = check_floats(bench->channels);
	check_fill(1, ELEM_F32, bench->x, NULL, bench->elems);
	for (size_t i = 0; i < bench->elems; i++)
		bench->x[i] = check_rounded(bench->x[i] + bench->example.offset, elem);
	check_fill(2, ELEM_F32, bench->weight, bench->weight_f, bench->channels);
	check_fill(3, ELEM_F32, bench->bias, bench->bias_f, bench->channels);
	check_fill(4, elem, bench->direction, NULL, bench->elems);
}

static void init_fields(struct bench *bench)
{
	const struct example *example = &bench->example;
	const struct form *form = bench->form;
	bench->out_layout = example->dense ? &bench->tokens : &bench->positions;
	for (uint32_t i = 0; i < bench->span_count; i++) {
		bench->x_spans[i] = field_new(form, &bench->positions, example->spans[i]);
		bench->dx_spans[i] = field_new(form, &bench->positions, example->spans[i]);
		double *part = span_values(bench, bench->x, i);
		field_set(&bench->x_spans[i], example->n, part);
		bench->sources[i] = &bench->x_spans[i].tensor;
		free(part);
	}
	bench->out = field_new(form, bench->out_layout, bench->norm.width);
	bench->dout = field_new(form, bench->out_layout, bench->norm.width);
	bench->residual = field_new(form, &bench->positions, example->spans[0]);
}

/* elem: what the inputs are rounded to. */
static void bench_init(
	struct bench *bench, const struct form *form, enum elem elem, struct example example)
{
	struct channel_span spans[SPANS_MAX];
	*bench = (struct bench){.example = example, .form = form};
	bench->span_count = example.spans[1] ? 2 : 1;
	bench->channels = example.spans[0] + example.spans[1];
	bench->pixels = example.size * example.size;
	bench->elems = (size_t)example.n * bench->channels * bench->pixels;
	init_values(bench, elem);
	assert_int_equal(
		layout_init(&bench->positions, example.batch, example.size, example.size, false),
		0);
	assert_int_equal(
		layout_init(&bench->tokens, example.batch, example.size, example.size, true), 0);
	for (uint32_t i = 0; i < bench->span_count; i++)
		spans[i] = (struct channel_span){
			example.spans[i], round_up_to(example.spans[i], form->align)};
	group_norm_init(
		&bench->norm, spans, bench->span_count, example.groups, 1e-5f, example.silu);
	bench->norm.weight = bench->weight_f;
	bench->norm.bias = bench->bias_f;
	bench->state = check_floats(group_norm_state_elems(&bench->norm, example.batch));
	bench->sums = check_floats(group_norm_sums_elems(&bench->norm, example.batch));
	init_fields(bench);
}

static void bench_fini(struct bench *bench)
{
	double *doubles[] = {bench->x, bench->y, bench->direction, bench->weight, bench->bias};
	float *floats[] = {bench->weight_f, bench->bias_f, bench->state, bench->sums,
		bench->dweight, bench->dbias};
	for (size_t i = 0; i < sizeof(doubles) / sizeof(*doubles); i++)
		free(doubles[i]);
	for (size_t i = 0; i < sizeof(floats) / sizeof(*floats); i++)
		free(floats[i]);
	for (uint32_t i = 0; i < bench->span_count; i++) {
		field_free(&bench->x_spans[i]);
		field_free(&bench->dx_spans[i]);
	}
	field_free(&bench->out);
	field_free(&bench->dout);
	field_free(&bench->residual);
	layout_fini(&bench->positions);
	layout_fini(&bench->tokens);
}

static uint64_t run_forward(void *context)
{
	struct bench *bench = context;
	field_spoil(&bench->out);
	group_norm_forward(
		&bench->norm, bench->example.n, bench->sources, bench->state, &bench->out.tensor);
	assert_clean(&bench->out, bench->example.n);
	return field_bits(0, &bench->out);
}

/* dx may be written where dout was. */
static uint64_t run_backward_into(struct bench *bench, struct field *dx)
{
	double *wide = spread(bench, bench->direction);
	field_set(&bench->dout, bench->example.n, wide);
	free(wide);
	group_norm_backward(&bench->norm,
		&(struct group_norm_backward){
			.n = bench->example.n,
			.sources = bench->sources,
			.state = bench->state,
			.sums = bench->sums,
			.dout = &bench->dout.tensor,
			.dsources = {&dx->tensor, &bench->dx_spans[1].tensor},
			.accumulate = {bench->accumulate, bench->accumulate},
			.residual = bench->accumulate ? &bench->residual.tensor : NULL,
			.dweight = bench->dweight,
			.dbias = bench->dbias,
			.accumulate_params = bench->accumulate,
		});
	uint64_t bits = check_bits(0, bench->dweight, bench->channels * sizeof(float));
	bits = check_bits(bits, bench->dbias, bench->channels * sizeof(float));
	assert_clean(dx, bench->example.n);
	if (bench->span_count == 1)
		return field_bits(bits, dx);
	assert_clean(&bench->dx_spans[1], bench->example.n);
	return field_bits(field_bits(bits, &bench->dx_spans[1]), dx);
}

static uint64_t run_backward(void *context)
{
	struct bench *bench = context;
	for (uint32_t i = 0; i < bench->span_count && !bench->accumulate; i++)
		field_spoil(&bench->dx_spans[i]);
	return run_backward_into(bench, &bench->dx_spans[0]);
}

/* The gradients of all spans, as NCHW. */
static double *gather_dx(const struct bench *bench)
{
	double *dx = check_doubles(bench->elems);
	for (uint32_t i = 0; i < bench->span_count; i++) {
		double *part = field_get(&bench->dx_spans[i], bench->example.n);
		size_t count = (size_t)bench->example.spans[i] * bench->pixels;
		size_t before = i ? (size_t)bench->example.spans[0] * bench->pixels : 0;
		for (uint32_t image = 0; image < bench->example.n; image++)
			memcpy(dx + image * bench->channels * (size_t)bench->pixels + before,
				part + image * count, count * sizeof(double));
		free(part);
	}
	return dx;
}

static double tolerance_of(const struct bench *bench)
{
	return bench->example.offset > 10.0 ? 2e-4 : 2e-5;
}

/* Rounded once, when it is stored. The sigmoid for bf16 adds 1.5e-4 of a value. */
static void check_forward(struct bench *bench)
{
	uint32_t n = bench->example.n;
	struct bound bound = {bench->form->elem == ELEM_BF16, tolerance_of(bench)};
	if (bound.roundings && bench->example.silu)
		bound.tolerance += 1.5e-4;
	loss(bench);
	run_forward(bench);
	double *y = field_get(&bench->out, n), *expected = spread(bench, bench->y);
	assert_all_near(
		"y", y, expected, bench->elems / bench->channels * bench->norm.width, bound);
	free(y);
	free(expected);

	struct field again = field_new(bench->form, bench->out_layout, bench->norm.width);
	group_norm_apply(&bench->norm, n, bench->sources, bench->state, &again.tensor);
	assert_true(field_bits(0, &again) == field_bits(0, &bench->out));
	field_free(&again);
}

/* Rounded twice: after silu's gradient, and when it is stored. The sums for the parameters see
 * neither, only the sigmoid for bf16. */
static void check_against_fp32(const struct bench *bench, const double *dx)
{
	struct bench other;
	struct bound twice = {bench->example.silu ? 2 : 1, 3e-4}, sums = {0, 1e-3};
	bench_init(&other, &check_fp32, ELEM_BF16, bench->example);
	run_forward(&other);
	run_backward(&other);
	double *expected = gather_dx(&other);
	double *dweight = check_widened(bench->dweight, bench->channels);
	double *dbias = check_widened(bench->dbias, bench->channels);
	double *dweight_expected = check_widened(other.dweight, bench->channels);
	double *dbias_expected = check_widened(other.dbias, bench->channels);
	assert_all_near("dx of fp32", dx, expected, bench->elems, twice);
	assert_all_near("dweight of fp32", dweight, dweight_expected, bench->channels, sums);
	assert_all_near("dbias of fp32", dbias, dbias_expected, bench->channels, sums);
	free(expected);
	free(dweight);
	free(dbias);
	free(dweight_expected);
	free(dbias_expected);
	bench_fini(&other);
}

static void check_differences(struct bench *bench, const double *dx)
{
	double tolerance = 5 * tolerance_of(bench);
	double *dweight = check_widened(bench->dweight, bench->channels);
	double *dbias = check_widened(bench->dbias, bench->channels);
	check_gradient(
		"dx", bench->x, bench->elems, bench->elems / 60 + 1, dx, loss, bench, tolerance);
	check_gradient(
		"dweight", bench->weight, bench->channels, 1, dweight, loss, bench, tolerance);
	check_gradient("dbias", bench->bias, bench->channels, 1, dbias, loss, bench, tolerance);
	free(dweight);
	free(dbias);
}

/* Onto what is there, with a residual beside the first source; rounded once more. */
static void check_accumulate(struct bench *bench, const double *dx)
{
	double *residual = span_values(bench, bench->direction, 0), *twice;
	double *expected = check_doubles(bench->elems);
	float dweight = bench->dweight[0];
	field_set(&bench->residual, bench->example.n, residual);
	free(residual);
	bench->accumulate = true;
	run_backward(bench);
	bench->accumulate = false;
	twice = gather_dx(bench);
	for (size_t i = 0; i < bench->elems; i++) {
		bool first = i / bench->pixels % bench->channels < bench->example.spans[0];
		expected[i] = 2.0 * dx[i] + (first ? bench->direction[i] : 0.0);
	}
	assert_all_near("accumulated", twice, expected, bench->elems,
		(struct bound){bench->form->elem == ELEM_BF16 ? 3 : 0, 1e-5});
	assert_true(bench->dweight[0] == dweight + dweight);
	free(expected);
	free(twice);
}

static void test_definition_and_gradients(void **state)
{
	const struct form *form = *state;
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		print_message("# example %zu\n", i);
		bench_init(&bench, form, form->elem, examples[i]);
		check_forward(&bench);
		run_backward(&bench);
		double *dx = gather_dx(&bench);
		if (form->elem == ELEM_BF16)
			check_against_fp32(&bench, dx);
		else
			check_differences(&bench, dx);
		check_accumulate(&bench, dx);
		free(dx);
		bench_fini(&bench);
	}
}

static void test_a_gradient_in_place_has_the_same_bits(void **state)
{
	const struct form *form = *state;
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		if (examples[i].spans[1] || examples[i].dense)
			continue;
		bench_init(&bench, form, form->elem, examples[i]);
		run_forward(&bench);
		uint64_t bits = run_backward(&bench);
		field_spoil(&bench.dout);
		assert_true(run_backward_into(&bench, &bench.dout) == bits);
		bench_fini(&bench);
	}
}

static void test_p2_threads(void **state)
{
	const struct form *form = *state;
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		bench_init(&bench, form, form->elem, examples[i]);
		check_threads("forward", run_forward, &bench);
		check_threads("backward", run_backward, &bench);
		bench_fini(&bench);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_EACH_FORM(test_definition_and_gradients),
		IN_EACH_FORM(test_a_gradient_in_place_has_the_same_bits),
		IN_EACH_FORM(test_p2_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
