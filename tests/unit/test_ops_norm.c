/* GroupNorm with SiLU over one or two sources: against its definition, gradients against finite
 * differences, dense output, residual, accumulation, thread counts (P2). */
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
	{2, 2, 8, {16, 0}, 4, false, false, 100.0},
};

struct bench {
	struct example example;
	uint32_t channels, span_count, pixels;
	size_t elems;
	double *x, *weight, *bias, *y, *direction;
	float *weight_f, *bias_f, *state, *sums, *dweight, *dbias;
	struct layout positions, tokens;
	const struct layout *out_layout;
	struct group_norm norm;
	struct field x_spans[SPANS_MAX], dx_spans[SPANS_MAX], out, dout, residual;
	const float *sources[SPANS_MAX];
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

/* out and its gradient have the spans behind each other, each padded to 16: NCHW <-> columns. */
static size_t column_of(const struct bench *bench, uint32_t c)
{
	uint32_t first = bench->example.spans[0];
	return c < first ? c : c - first + round_up_channels(first);
}

static float *at(const struct bench *bench, const struct field *field, size_t index)
{
	size_t pixel = index % bench->pixels, c = index / bench->pixels % bench->channels;
	size_t image = index / bench->pixels / bench->channels;
	size_t row = layout_row(field->layout, (uint32_t)image,
			     (uint32_t)(pixel / bench->example.size)) +
		pixel % bench->example.size;
	return &field->data[row * field->width + column_of(bench, (uint32_t)c)];
}

static void init_values(struct bench *bench)
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
	check_fill(1, bench->x, NULL, bench->elems);
	for (size_t i = 0; i < bench->elems; i++)
		bench->x[i] = (double)(float)(bench->x[i] + bench->example.offset);
	check_fill(2, bench->weight, bench->weight_f, bench->channels);
	check_fill(3, bench->bias, bench->bias_f, bench->channels);
	check_fill(4, bench->direction, NULL, bench->elems);
}

static void bench_init(struct bench *bench, struct example example)
{
	struct channel_span spans[SPANS_MAX];
	*bench = (struct bench){.example = example, .span_count = example.spans[1] ? 2 : 1};
	bench->channels = example.spans[0] + example.spans[1];
	bench->pixels = example.size * example.size;
	bench->elems = (size_t)example.n * bench->channels * bench->pixels;
	init_values(bench);
	assert_int_equal(
		layout_init(&bench->positions, example.batch, example.size, example.size, false),
		0);
	assert_int_equal(
		layout_init(&bench->tokens, example.batch, example.size, example.size, true), 0);
	bench->out_layout = example.dense ? &bench->tokens : &bench->positions;
	for (uint32_t i = 0; i < bench->span_count; i++) {
		spans[i] = (struct channel_span){
			example.spans[i], round_up_channels(example.spans[i])};
		bench->x_spans[i] = field_new(&bench->positions, example.spans[i]);
		bench->dx_spans[i] = field_new(&bench->positions, example.spans[i]);
		double *part = span_values(bench, bench->x, i);
		field_set(&bench->x_spans[i], example.n, part);
		bench->sources[i] = bench->x_spans[i].data;
		free(part);
	}
	group_norm_init(
		&bench->norm, spans, bench->span_count, example.groups, 1e-5f, example.silu);
	bench->norm.weight = bench->weight_f;
	bench->norm.bias = bench->bias_f;
	bench->state = check_floats(group_norm_state_elems(&bench->norm, example.batch));
	bench->sums = check_floats(group_norm_sums_elems(&bench->norm, example.batch));
	bench->out = field_new(bench->out_layout, bench->norm.width);
	bench->dout = field_new(bench->out_layout, bench->norm.width);
	bench->residual = field_new(&bench->positions, example.spans[0]);
}

static void bench_fini(struct bench *bench)
{
	double *doubles[] = {bench->x, bench->y, bench->direction, bench->weight, bench->bias};
	float *floats[] = {bench->weight_f, bench->bias_f, bench->state, bench->sums,
		bench->dweight, bench->dbias};
	for (size_t i = 0; i < 5; i++)
		free(doubles[i]);
	for (size_t i = 0; i < 6; i++)
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

static void run_forward(void *context)
{
	struct bench *bench = context;
	group_norm_forward(&bench->norm, &bench->positions, bench->example.n, bench->sources,
		bench->state, bench->out_layout, bench->out.data);
	assert_clean(&bench->out, bench->example.n);
}

static void run_backward(void *context)
{
	struct bench *bench = context;
	double *zeros = check_doubles(bench->elems / bench->channels * bench->norm.width);
	field_set(&bench->dout, bench->example.n, zeros);
	free(zeros);
	for (size_t i = 0; i < bench->elems; i++)
		*at(bench, &bench->dout, i) = (float)bench->direction[i];
	group_norm_backward(&bench->norm,
		&(struct group_norm_backward){
			.layout = &bench->positions,
			.out_layout = bench->out_layout,
			.n = bench->example.n,
			.sources = bench->sources,
			.state = bench->state,
			.sums = bench->sums,
			.dout = bench->dout.data,
			.dsources = {bench->dx_spans[0].data, bench->dx_spans[1].data},
			.accumulate = {bench->accumulate, bench->accumulate},
			.residual = bench->accumulate ? bench->residual.data : NULL,
			.dweight = bench->dweight,
			.dbias = bench->dbias,
			.accumulate_params = bench->accumulate,
		});
	for (uint32_t i = 0; i < bench->span_count; i++)
		assert_clean(&bench->dx_spans[i], bench->example.n);
}

/* The gradients of all spans, as NCHW. */
static float *gather_dx(const struct bench *bench)
{
	float *dx = check_floats(bench->elems);
	for (uint32_t i = 0; i < bench->span_count; i++) {
		float *part = field_get(&bench->dx_spans[i], bench->example.n);
		size_t count = (size_t)bench->example.spans[i] * bench->pixels;
		size_t before = i ? (size_t)bench->example.spans[0] * bench->pixels : 0;
		for (uint32_t image = 0; image < bench->example.n; image++)
			memcpy(dx + image * bench->channels * (size_t)bench->pixels + before,
				part + image * count, count * sizeof(float));
		free(part);
	}
	return dx;
}

static void check_example(struct bench *bench)
{
	uint32_t n = bench->example.n;
	double tolerance = bench->example.offset > 10.0 ? 2e-4 : 2e-5;
	loss(bench);
	run_forward(bench);
	for (size_t i = 0; i < bench->elems; i++)
		assert_near("y", i, (double)*at(bench, &bench->out, i), bench->y[i], tolerance);
	struct field again = field_new(bench->out_layout, bench->norm.width);
	group_norm_apply(&bench->norm, &bench->positions, n, bench->sources, bench->state,
		bench->out_layout, again.data);
	assert_memory_equal(again.data, bench->out.data,
		(size_t)n * bench->out_layout->image_stride * again.width * sizeof(float));
	field_free(&again);

	run_backward(bench);
	float *dx = gather_dx(bench);
	check_gradient("dx", bench->x, bench->elems, bench->elems / 300 + 1, dx, loss, bench,
		5 * tolerance);
	check_gradient("dweight", bench->weight, bench->channels, 1, bench->dweight, loss, bench,
		5 * tolerance);
	check_gradient(
		"dbias", bench->bias, bench->channels, 1, bench->dbias, loss, bench, 5 * tolerance);

	/* onto what is there, with a residual beside the first source */
	double *residual = span_values(bench, bench->direction, 0);
	field_set(&bench->residual, n, residual);
	free(residual);
	bench->accumulate = true;
	float dweight = bench->dweight[0], *twice;
	run_backward(bench);
	twice = gather_dx(bench);
	for (size_t i = 0; i < bench->elems; i++) {
		bool first = i / bench->pixels % bench->channels < bench->example.spans[0];
		double expected = 2.0 * (double)dx[i] + (first ? bench->direction[i] : 0.0);
		assert_near("accumulated", i, (double)twice[i], expected, 1e-5);
	}
	assert_true(bench->dweight[0] == dweight + dweight);
	bench->accumulate = false;
	free(dx);
	free(twice);
}

static void test_definition_and_gradients(void **state)
{
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++) {
		struct bench bench;
		print_message("# example %zu\n", i);
		bench_init(&bench, examples[i]);
		check_example(&bench);
		bench_fini(&bench);
	}
}

static void test_p2_threads(void **state)
{
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++) {
		struct bench bench;
		bench_init(&bench, examples[i]);
		const struct field *out = &bench.out, *dx = &bench.dx_spans[0];
		run_forward(&bench);
		check_threads("forward", run_forward, &bench, out->data,
			(size_t)out->layout->image_stride * examples[i].n * out->width);
		run_backward(&bench);
		check_threads("dx", run_backward, &bench, dx->data,
			(size_t)dx->layout->image_stride * examples[i].n * dx->width);
		check_threads("dweight", run_backward, &bench, bench.dweight, bench.channels);
		bench_fini(&bench);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_definition_and_gradients),
		cmocka_unit_test(test_p2_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
