/* Every kind of convolution against its definition, and its two gradients against finite
 * differences of the definition: with spans, fewer images than the plan, stale memory, thread
 * counts (P2). */
#include "tests/unit/ops_check.h"

#include "daemon/ops/conv.h"
#include "daemon/ops/sums.h"
#include "tests/oracle/naive_ops.h"

struct example {
	enum conv_kind kind;
	uint32_t batch, n, size; /* size: of the input */
	uint32_t spans[SPANS_MAX];
	bool split;
	uint32_t out;
};

static const struct example examples[] = {
	{CONV_3X3, 2, 2, 4, {3, 0}, false, 5}, {CONV_3X3, 3, 2, 6, {17, 5}, false, 16},
	{CONV_1X1, 3, 2, 4, {7, 20}, true, 18}, {CONV_1X1, 2, 2, 4, {20, 7}, false, 3},
	{CONV_DOWN_1, 3, 2, 6, {5, 0}, false, 5}, {CONV_DOWN_0, 3, 2, 6, {5, 0}, false, 17},
	{CONV_UP, 3, 2, 3, {5, 0}, false, 5},
	{CONV_3X3, 5, 4, 9, {70, 0}, false, 140}, /* more than one block of everything */
};

/* One side of a convolution as the engine sees it: spans, or the four phases of a larger tensor. */
struct side {
	struct layout layout, small; /* small: half the size, when phased */
	bool phased;
	uint32_t count; /* tensors at the taps: spans or phases */
	uint32_t span_count;
	struct channel_span spans[SPANS_MAX];
	struct field whole; /* the unsplit tensor */
	struct field tensors[4];
	const float *pointers[4];
};

/* Everything of one example: the definition beside the fast one. */
struct bench {
	struct example example;
	struct naive_conv naive;
	struct conv conv;
	uint32_t in;
	size_t x_elems, weight_elems, y_elems;
	double *x, *weight, *bias, *y, *direction, *large;
	struct side in_side, out_side, din_side;
	const struct layout *taps; /* where the taps run */
	float *section, *bias_padded, *scratch, *dweight, *result;
};

static struct naive_conv naive_shape(const struct example *example, uint32_t in)
{
	bool one = example->kind == CONV_1X1;
	bool strided = example->kind == CONV_DOWN_0 || example->kind == CONV_DOWN_1;
	return (struct naive_conv){
		.in = in,
		.out = example->out,
		.k = one ? 1 : 3,
		.stride = strided ? 2 : 1,
		.pad_before = one || example->kind == CONV_DOWN_0 ? 0 : 1,
		.pad_after = one ? 0 : 1,
	};
}

static double loss(void *context)
{
	struct bench *bench = context;
	uint32_t n = bench->example.n, size = bench->example.size;
	const double *x = bench->x;
	if (bench->example.kind == CONV_UP) {
		naive_upsample(n, bench->in, size, size, bench->x, bench->large);
		x = bench->large;
		size *= 2;
	}
	naive_conv2d(&bench->naive, n, size, size, x, bench->weight, bench->bias, bench->y);
	return check_dot(bench->y, bench->direction, bench->y_elems);
}

/* Stale memory everywhere; values come by side_set or from an engine. */
static void side_init(struct side *side, uint32_t batch, uint32_t size, bool phased,
	const uint32_t *channels, uint32_t span_count, bool split)
{
	*side = (struct side){.phased = phased, .span_count = span_count};
	assert_int_equal(layout_init(&side->layout, batch, size, size, false), 0);
	assert_int_equal(layout_init(&side->small, batch, size / 2 ? size / 2 : 1,
				 size / 2 ? size / 2 : 1, false),
		0);
	uint32_t width = 0;
	for (uint32_t i = 0; i < span_count; i++) {
		side->spans[i] = (struct channel_span){channels[i], round_up_channels(channels[i])};
		width += side->spans[i].width;
	}
	side->whole = field_new(&side->layout, width);
	side->count = phased ? 4 : split ? span_count : 1;
	for (uint32_t i = 0; i < side->count; i++) {
		side->tensors[i] = field_new(phased ? &side->small : &side->layout,
			split ? side->spans[i].width : width);
		side->pointers[i] = side->tensors[i].data;
	}
}

static void side_fini(struct side *side)
{
	for (uint32_t i = 0; i < side->count; i++)
		field_free(&side->tensors[i]);
	field_free(&side->whole);
	layout_fini(&side->layout);
	layout_fini(&side->small);
}

static uint32_t column_of(const struct side *side, uint32_t c)
{
	return c < side->spans[0].channels ? c : c - side->spans[0].channels + side->spans[0].width;
}

/* Copies between the unsplit tensor and the tensors at the taps. */
static void copy_columns(
	const struct field *src, uint32_t from, struct field *dst, uint32_t to, uint32_t count)
{
	size_t begin = src->layout->head, rows = begin + src->layout->padded + src->layout->tail;
	for (size_t row = 0; row < rows; row++)
		memcpy(dst->memory + row * dst->width + to, src->memory + row * src->width + from,
			count * sizeof(float));
}

static void side_split(struct side *side, uint32_t n)
{
	float *phases[4];
	for (uint32_t i = 0; i < side->count; i++)
		phases[i] = side->tensors[i].data;
	if (side->phased)
		layout_split_phases(&side->layout, &side->small, n, side->whole.data, phases,
			side->whole.width);
	else
		for (uint32_t i = 0; i < side->count; i++)
			copy_columns(&side->whole, i ? side->spans[0].width : 0, &side->tensors[i],
				0, side->tensors[i].width);
}

static void side_merge(struct side *side, uint32_t n)
{
	if (side->phased)
		layout_merge_phases(&side->layout, &side->small, n, side->pointers,
			side->whole.data, side->whole.width, false);
	else
		for (uint32_t i = 0; i < side->count; i++)
			copy_columns(&side->tensors[i], 0, &side->whole,
				i ? side->spans[0].width : 0, side->tensors[i].width);
}

static void side_set(struct side *side, uint32_t n, uint32_t channels, const double *values)
{
	const struct layout *layout = &side->layout;
	size_t pixels = (size_t)layout->height * layout->width;
	double *wide = check_doubles(n * side->whole.width * pixels);
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t c = 0; c < channels; c++)
			memcpy(wide +
					((size_t)image * side->whole.width + column_of(side, c)) *
						pixels,
				values + ((size_t)image * channels + c) * pixels,
				pixels * sizeof(double));
	field_set(&side->whole, n, wide);
	free(wide);
	side_split(side, n);
}

static float *side_get(struct side *side, uint32_t n, uint32_t channels)
{
	size_t pixels = (size_t)side->layout.height * side->layout.width;
	float *wide = field_get(&side->whole, n), *values = check_floats(n * channels * pixels);
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t c = 0; c < channels; c++)
			memcpy(values + ((size_t)image * channels + c) * pixels,
				wide +
					((size_t)image * side->whole.width + column_of(side, c)) *
						pixels,
				pixels * sizeof(float));
	free(wide);
	return values;
}

static void init_values(struct bench *bench)
{
	uint32_t n = bench->example.n, size = bench->example.size;
	uint32_t large = bench->example.kind == CONV_UP ? 2 * size : size;
	uint32_t out_size = naive_conv_size(&bench->naive, large), k = bench->naive.k;
	bench->x_elems = (size_t)n * bench->in * size * size;
	bench->weight_elems = (size_t)bench->example.out * bench->in * k * k;
	bench->y_elems = (size_t)n * bench->example.out * out_size * out_size;
	bench->x = check_doubles(bench->x_elems);
	bench->large = check_doubles(4 * bench->x_elems);
	bench->weight = check_doubles(bench->weight_elems);
	bench->bias = check_doubles(bench->example.out);
	bench->y = check_doubles(bench->y_elems);
	bench->direction = check_doubles(bench->y_elems);
	bench->section = check_floats(bench->weight_elems);
	bench->dweight = check_floats(bench->weight_elems);
	uint32_t out_width = round_up_channels(bench->example.out);
	bench->bias_padded = check_floats(out_width);
	memset(bench->bias_padded, 0, out_width * sizeof(float));
	check_fill(1, bench->x, NULL, bench->x_elems);
	check_fill(2, bench->weight, bench->section, bench->weight_elems);
	check_fill(3, bench->bias, bench->bias_padded, bench->example.out);
	check_fill(4, bench->direction, NULL, bench->y_elems);
}

static void bench_init(struct bench *bench, struct example example)
{
	*bench = (struct bench){.example = example};
	uint32_t span_count = example.spans[1] ? 2 : 1;
	bench->in = example.spans[0] + example.spans[1];
	bench->naive = naive_shape(&example, bench->in);
	init_values(bench);
	bool down = example.kind == CONV_DOWN_0 || example.kind == CONV_DOWN_1;
	bool up = example.kind == CONV_UP;
	uint32_t out_size = down ? example.size / 2 : up ? 2 * example.size : example.size;
	side_init(&bench->in_side, example.batch, example.size, down, example.spans, span_count,
		example.split);
	side_init(&bench->din_side, example.batch, example.size, down, example.spans, span_count,
		example.split);
	side_init(&bench->out_side, example.batch, out_size, up, &example.out, 1, false);
	bench->taps = down ? &bench->in_side.small : &bench->in_side.layout;
	conv_init(&bench->conv, engine_openblas(), example.kind, bench->in_side.spans, span_count,
		example.split, example.out);
	bench->conv.forward = malloc(conv_packed_bytes(&bench->conv));
	bench->conv.backward = malloc(conv_packed_bytes(&bench->conv));
	assert_true(bench->conv.forward && bench->conv.backward);
	bench->scratch = check_floats(conv_scratch_elems(&bench->conv));
	conv_pack(&bench->conv, bench->section, bench->scratch);
	side_set(&bench->in_side, example.n, bench->in, bench->x);
}

static void bench_fini(struct bench *bench)
{
	free(bench->x);
	free(bench->large);
	free(bench->weight);
	free(bench->bias);
	free(bench->y);
	free(bench->direction);
	free(bench->section);
	free(bench->bias_padded);
	free(bench->scratch);
	free(bench->dweight);
	free(bench->conv.forward);
	free(bench->conv.backward);
	side_fini(&bench->in_side);
	side_fini(&bench->din_side);
	side_fini(&bench->out_side);
}

static void run_call(struct conv_call *call)
{
	engine_openblas()->conv(call);
	layout_zero_edges(call->layout, call->n, call->out, call->out_width);
}

static void run_forward(void *context)
{
	struct bench *bench = context;
	struct side *out = &bench->out_side;
	for (uint32_t phase = 0; phase < out->count; phase++) {
		struct conv_call call = {
			.layout = bench->taps,
			.n = bench->example.n,
			.out = out->tensors[phase].data,
			.out_width = bench->conv.out_width,
			.bias = {bench->bias_padded},
		};
		conv_add_taps(&bench->conv, bench->taps, phase, bench->in_side.pointers, &call);
		run_call(&call);
		assert_clean(&out->tensors[phase], call.n);
	}
	side_merge(out, bench->example.n);
}

static void run_data(void *context)
{
	struct bench *bench = context;
	for (uint32_t source = 0; source < bench->din_side.count; source++) {
		struct conv_call call = {
			.layout = bench->taps,
			.n = bench->example.n,
			.out = bench->din_side.tensors[source].data,
			.out_width = bench->din_side.tensors[source].width,
		};
		conv_add_data_taps(
			&bench->conv, bench->taps, source, bench->out_side.pointers, &call);
		run_call(&call);
		assert_clean(&bench->din_side.tensors[source], call.n);
	}
	side_merge(&bench->din_side, bench->example.n);
}

static void run_weights(void *context)
{
	struct bench *bench = context;
	conv_weights_gradient(&bench->conv, bench->taps, bench->example.n, bench->in_side.pointers,
		bench->out_side.pointers, bench->scratch, bench->dweight, false);
}

static void check_example(struct bench *bench)
{
	uint32_t n = bench->example.n, out = bench->example.out;
	size_t probes = bench->weight_elems > 10000 ? 5 : 200; /* the definition is slow */
	loss(bench);
	run_forward(bench);
	float *y = side_get(&bench->out_side, n, out);
	assert_all_near("y", y, bench->y, bench->y_elems, 2e-5);

	side_set(&bench->out_side, n, out, bench->direction);
	run_data(bench);
	float *dx = side_get(&bench->din_side, n, bench->in);
	check_gradient(
		"dx", bench->x, bench->x_elems, bench->x_elems / probes + 1, dx, loss, bench, 2e-5);
	run_weights(bench);
	check_gradient("dw", bench->weight, bench->weight_elems, bench->weight_elems / probes + 1,
		bench->dweight, loss, bench, 5e-5);

	/* accumulate adds to what is there */
	float *once = check_floats(bench->weight_elems);
	memcpy(once, bench->dweight, bench->weight_elems * sizeof(float));
	conv_weights_gradient(&bench->conv, bench->taps, n, bench->in_side.pointers,
		bench->out_side.pointers, bench->scratch, bench->dweight, true);
	for (size_t i = 0; i < bench->weight_elems; i++)
		assert_near("dw twice", i, (double)bench->dweight[i], 2.0 * (double)once[i], 1e-5);

	float *sums = check_floats((size_t)n * out), *dbias = check_floats(out);
	sums_per_image(&bench->out_side.layout, n, bench->out_side.whole.data, out,
		bench->out_side.whole.width, sums);
	sums_over_rows(n, sums, out, out, dbias, false);
	check_gradient("db", bench->bias, out, out / probes + 1, dbias, loss, bench, 2e-5);
	free(y);
	free(dx);
	free(once);
	free(sums);
	free(dbias);
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
		const struct field *y = &bench.out_side.tensors[0],
				   *dx = &bench.din_side.tensors[0];
		run_forward(&bench);
		check_threads("forward", run_forward, &bench, y->data,
			(size_t)y->layout->image_stride * examples[i].n * y->width);
		side_set(&bench.out_side, examples[i].n, examples[i].out, bench.direction);
		run_data(&bench);
		check_threads("by data", run_data, &bench, dx->data,
			(size_t)dx->layout->image_stride * examples[i].n * dx->width);
		check_threads("by weights", run_weights, &bench, bench.dweight, bench.weight_elems);
		bench_fini(&bench);
	}
}

/* accumulate, per-image values and residual of the engine's call. */
static void test_epilogue(void **state)
{
	struct bench bench;
	bench_init(&bench, (struct example){CONV_1X1, 3, 2, 4, {5, 0}, false, 6});
	loss(&bench);
	struct field *out = &bench.out_side.tensors[0];
	struct field residual = field_new(&bench.out_side.layout, 6);
	field_set(&residual, 2, bench.direction);
	float per_image[2][32];
	check_fill(9, NULL, &per_image[0][0], 64);
	memset(&per_image[0][6], 0, 26 * sizeof(float));
	memset(&per_image[1][6], 0, 26 * sizeof(float));
	double *first = check_doubles(bench.y_elems);
	check_fill(10, first, NULL, bench.y_elems);
	side_set(&bench.out_side, 2, 6, first);
	struct conv_call call = {
		.layout = bench.taps,
		.n = 2,
		.out = out->data,
		.out_width = 16,
		.accumulate = true,
		.bias = {bench.bias_padded, bench.bias_padded},
		.per_image = &per_image[0][0],
		.per_image_stride = 32,
		.residual = residual.data,
	};
	conv_add_taps(&bench.conv, bench.taps, 0, bench.in_side.pointers, &call);
	run_call(&call);
	assert_clean(out, 2);
	side_merge(&bench.out_side, 2);
	float *y = side_get(&bench.out_side, 2, 6);
	for (size_t i = 0; i < bench.y_elems; i++) {
		size_t image = i / 96, c = i / 16 % 6;
		double expected = first[i] + bench.y[i] + bench.bias[c] +
			(double)per_image[image][c] + bench.direction[i];
		assert_near("y", i, (double)y[i], expected, 1e-5);
	}
	free(y);
	free(first);
	field_free(&residual);
	bench_fini(&bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_definition_and_gradients),
		cmocka_unit_test(test_p2_threads),
		cmocka_unit_test(test_epilogue),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
