/* Every kind of convolution on every engine against its definition, and its two gradients against
 * finite differences of the definition and, all of their values, against the openblas engine's:
 * with spans, fewer images than the plan, stale memory, thread counts (P2). */
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
	{CONV_1X1, 3, 2, 4, {96, 32}, true, 64}, {CONV_SUM, 3, 2, 4, {27, 0}, false, 40},
	{CONV_DOWN_1, 3, 2, 6, {5, 0}, false, 5}, {CONV_DOWN_1, 2, 2, 8, {33, 0}, false, 64},
	{CONV_DOWN_0, 3, 2, 6, {5, 0}, false, 17}, {CONV_UP, 3, 2, 3, {5, 0}, false, 5},
	{CONV_UP, 2, 1, 4, {64, 0}, false, 33},
	{CONV_3X3, 2, 2, 4, {5, 9}, false, 20},     /* spans that share a square of weights */
	{CONV_3X3, 4, 3, 9, {70, 0}, false, 140},   /* more than one block of everything */
	{CONV_3X3, 10, 9, 15, {5, 0}, false, 7},    /* more than 2048 positions */
	{CONV_3X3, 1, 1, 4, {224, 76}, false, 34},  /* more than 256 channels in */
	{CONV_1X1, 1, 1, 2, {1200, 300}, true, 33}, /* and far more */
};
#define EXAMPLES (sizeof(examples) / sizeof(*examples))

/* One side of a convolution as the engine sees it: spans, the four phases of a larger tensor, or
 * two summands. */
struct side {
	struct layout layout, small; /* small: half the size, when phased */
	bool phased, summed;
	uint32_t count; /* tensors at the taps */
	uint32_t span_count;
	struct channel_span spans[SPANS_MAX];
	struct field whole; /* the unsplit tensor */
	struct field tensors[4];
	const struct tensor *pointers[4];
};

/* Everything of one example: the definition beside the fast one. */
struct bench {
	struct example example;
	const struct engine *engine;
	struct naive_conv naive;
	struct conv conv;
	uint32_t in;
	size_t x_elems, weight_elems, y_elems;
	double *x, *weight, *bias, *y, *direction, *large;
	struct side in_side, out_side, din_side;
	const struct layout *taps; /* where the taps run */
	float *section, *bias_padded, *raw, *dweight;
	void *scratch;
};

static bool is_down(const struct example *example)
{
	return example->kind == CONV_DOWN_0 || example->kind == CONV_DOWN_1;
}

static struct naive_conv naive_shape(const struct example *example, uint32_t in)
{
	bool one = example->kind == CONV_1X1 || example->kind == CONV_SUM;
	return (struct naive_conv){
		.in = in,
		.out = example->out,
		.k = one ? 1 : 3,
		.stride = is_down(example) ? 2 : 1,
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
static void side_init(struct side *side, const struct form *form, const struct example *example,
	uint32_t size, const uint32_t *channels, uint32_t span_count)
{
	uint32_t half = size / 2 ? size / 2 : 1, width = 0;
	assert_int_equal(layout_init(&side->layout, example->batch, size, size, false), 0);
	assert_int_equal(layout_init(&side->small, example->batch, half, half, false), 0);
	side->span_count = span_count;
	for (uint32_t i = 0; i < span_count; i++) {
		side->spans[i] = (struct channel_span){
			channels[i], round_up_to(channels[i], form->align)};
		width += side->spans[i].width;
	}
	bool split = span_count > 1 && example->split;
	side->whole = field_new(form, &side->layout, width);
	side->count = side->phased ? 4 : side->summed ? 2 : split ? span_count : 1;
	for (uint32_t i = 0; i < side->count; i++) {
		side->tensors[i] = field_new(form, side->phased ? &side->small : &side->layout,
			split ? side->spans[i].channels : width);
		side->pointers[i] = &side->tensors[i].tensor;
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

/* Copies columns between the unsplit tensor and a tensor of its own. */
static void copy_columns(const struct field *src, uint32_t from, const struct field *dst,
	uint32_t to, uint32_t count)
{
	ptrdiff_t begin = -(ptrdiff_t)src->tensor.layout->head;
	size_t positions = layout_positions(src->tensor.layout);
	for (uint32_t c = 0; c < count; c++)
		for (size_t p = 0; p < positions; p++)
			memcpy(tensor_at(&dst->tensor, to + c, begin + (ptrdiff_t)p),
				tensor_at(&src->tensor, from + c, begin + (ptrdiff_t)p),
				elem_bytes(src->tensor.elem));
}

static void side_split(struct side *side, uint32_t n)
{
	if (side->phased)
		tensor_split_phases(n, &side->whole.tensor, side->pointers);
	else if (!side->summed)
		for (uint32_t i = 0; i < side->count; i++)
			copy_columns(&side->whole, i ? side->spans[0].width : 0, &side->tensors[i],
				0, side->tensors[i].tensor.width);
}

static void side_merge(struct side *side, uint32_t n)
{
	if (side->phased)
		tensor_merge_phases(n, side->pointers, &side->whole.tensor, false);
	else
		for (uint32_t i = 0; i < side->count; i++)
			copy_columns(&side->tensors[i], 0, &side->whole,
				i && !side->summed ? side->spans[0].width : 0,
				side->tensors[i].tensor.width);
}

/* Channels at their columns, zeros between. */
static double *spread(const struct side *side, uint32_t n, uint32_t channels, const double *values)
{
	size_t pixels = (size_t)side->layout.height * side->layout.width;
	uint32_t width = side->whole.tensor.width;
	double *wide = check_doubles(n * width * pixels);
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t c = 0; c < channels; c++)
			memcpy(wide + ((size_t)image * width + column_of(side, c)) * pixels,
				values + ((size_t)image * channels + c) * pixels,
				pixels * sizeof(double));
	return wide;
}

static void side_set(struct side *side, uint32_t n, uint32_t channels, const double *values)
{
	double *wide = spread(side, n, channels, values);
	field_set(&side->whole, n, wide);
	free(wide);
	side_split(side, n);
}

/* As two summands of which the second is small, as conv_in has them. */
static void side_set_summed(
	struct side *side, uint32_t n, enum elem elem, uint32_t channels, const double *values)
{
	size_t count = (size_t)n * channels * side->layout.height * side->layout.width;
	double *part = check_doubles(count);
	for (int i = 0; i < 2; i++) {
		for (size_t j = 0; j < count; j++) {
			double first = check_rounded(values[j], elem);
			part[j] = i ? values[j] - first : first;
		}
		double *wide = spread(side, n, channels, part);
		field_set(&side->tensors[i], n, wide);
		free(wide);
	}
	free(part);
}

static double *side_get(struct side *side, uint32_t n, uint32_t channels)
{
	size_t pixels = (size_t)side->layout.height * side->layout.width;
	uint32_t width = side->whole.tensor.width;
	double *wide = field_get(&side->whole, n), *values = check_doubles(n * channels * pixels);
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t c = 0; c < channels; c++)
			memcpy(values + ((size_t)image * channels + c) * pixels,
				wide + ((size_t)image * width + column_of(side, c)) * pixels,
				pixels * sizeof(double));
	free(wide);
	return values;
}

/* Weights for bf16 are small multiples of 1/16, so that the sums of up to four that CONV_UP packs
 * are values of 8 bits too. */
static void fill_weights(struct bench *bench, enum elem elem)
{
	check_fill(2, elem, bench->weight, bench->section, bench->weight_elems);
	for (size_t i = 0; elem == ELEM_BF16 && i < bench->weight_elems; i++) {
		double steps = nearbyint(bench->weight[i] * 16.0);
		bench->weight[i] = fmax(-64.0, fmin(64.0, steps)) / 16.0;
		bench->section[i] = (float)bench->weight[i];
	}
}

/* elem: what the inputs are rounded to. */
static void init_values(struct bench *bench, enum elem elem)
{
	uint32_t n = bench->example.n, size = bench->example.size;
	uint32_t large = bench->example.kind == CONV_UP ? 2 * size : size;
	uint32_t out_size = naive_conv_size(&bench->naive, large), k = bench->naive.k;
	uint32_t out_width = round_up_to(bench->example.out, bench->engine->form.align);
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
	bench->bias_padded = check_floats(out_width);
	memset(bench->bias_padded, 0, out_width * sizeof(float));
	check_fill(1, elem, bench->x, NULL, bench->x_elems);
	fill_weights(bench, elem);
	check_fill(3, ELEM_F32, bench->bias, bench->bias_padded, bench->example.out);
	check_fill(4, elem, bench->direction, NULL, bench->y_elems);
}

/* out_form: of the result, NULL: the engine's. */
static void bench_init(struct bench *bench, const struct engine *engine, enum elem elem,
	struct example example, const struct form *out_form)
{
	uint32_t span_count = example.spans[1] ? 2 : 1, size = example.size;
	bool down = is_down(&example), up = example.kind == CONV_UP;
	*bench = (struct bench){.example = example, .engine = engine};
	bench->in = example.spans[0] + example.spans[1];
	bench->naive = naive_shape(&example, bench->in);
	init_values(bench, elem);
	bench->in_side.phased = bench->din_side.phased = down;
	bench->in_side.summed = bench->din_side.summed = example.kind == CONV_SUM;
	bench->out_side.phased = up;
	side_init(&bench->in_side, &engine->form, &example, size, example.spans, span_count);
	side_init(&bench->din_side, &engine->form, &example, size, example.spans, span_count);
	side_init(&bench->out_side, out_form ? out_form : &engine->form, &example,
		down         ? size / 2
			: up ? 2 * size
			     : size,
		&example.out, 1);
	bench->taps = down ? &bench->in_side.small : &bench->in_side.layout;
	conv_init(&bench->conv, engine, example.kind, bench->in_side.spans, span_count,
		example.split, example.out);
	bench->conv.forward = check_bytes(conv_packed_bytes(&bench->conv));
	bench->conv.backward = check_bytes(conv_packed_bytes(&bench->conv));
	bench->raw = check_floats(conv_raw_elems(&bench->conv));
	bench->scratch = check_bytes(conv_scratch_bytes(&bench->conv, bench->taps));
	conv_pack(&bench->conv, bench->section);
	if (bench->in_side.summed)
		side_set_summed(&bench->in_side, example.n, elem, bench->in, bench->x);
	else
		side_set(&bench->in_side, example.n, bench->in, bench->x);
}

static void bench_fini(struct bench *bench)
{
	double *doubles[] = {
		bench->x, bench->large, bench->weight, bench->bias, bench->y, bench->direction};
	void *others[] = {bench->section, bench->bias_padded, bench->raw, bench->dweight,
		bench->scratch, bench->conv.forward, bench->conv.backward};
	for (size_t i = 0; i < sizeof(doubles) / sizeof(*doubles); i++)
		free(doubles[i]);
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		free(others[i]);
	side_fini(&bench->in_side);
	side_fini(&bench->din_side);
	side_fini(&bench->out_side);
}

static void run_call(const struct bench *bench, const struct conv_call *call)
{
	bench->engine->conv(call);
	tensor_zero_edges(call->out, call->n);
	assert_true(tensor_is_clean(call->out, call->n));
}

static uint64_t side_bits(const struct side *side)
{
	uint64_t bits = 0;
	for (uint32_t i = 0; i < side->count; i++)
		bits = field_bits(bits, &side->tensors[i]);
	return bits;
}

static uint64_t run_forward(void *context)
{
	struct bench *bench = context;
	struct side *out = &bench->out_side;
	for (uint32_t phase = 0; phase < out->count; phase++) {
		struct conv_call call = {
			.n = bench->example.n,
			.out = out->pointers[phase],
			.bias = {bench->bias_padded},
		};
		field_spoil(&out->tensors[phase]);
		conv_add_taps(&bench->conv, phase, bench->in_side.pointers, &call);
		run_call(bench, &call);
	}
	side_merge(out, bench->example.n);
	return side_bits(out);
}

static uint64_t run_data(void *context)
{
	struct bench *bench = context;
	for (uint32_t source = 0; source < bench->din_side.count; source++) {
		struct conv_call call = {
			.n = bench->example.n,
			.out = bench->din_side.pointers[source],
		};
		field_spoil(&bench->din_side.tensors[source]);
		conv_add_data_taps(&bench->conv, source, bench->out_side.pointers, &call);
		run_call(bench, &call);
	}
	side_merge(&bench->din_side, bench->example.n);
	return side_bits(&bench->din_side);
}

static void weights_gradient(struct bench *bench, bool accumulate)
{
	conv_weights_gradient(&bench->conv, bench->example.n, bench->in_side.pointers,
		bench->out_side.pointers, bench->raw, bench->scratch, bench->dweight, accumulate);
}

/* Several times: threads that write each other's weights need not meet. */
static uint64_t run_pack(void *context)
{
	struct bench *bench = context;
	size_t bytes = conv_packed_bytes(&bench->conv);
	uint64_t bits = 0;
	if (bench->weight_elems > 10000)
		return 0;
	for (int i = 0; i < 20; i++) {
		memset(bench->conv.forward, 0xff, bytes);
		memset(bench->conv.backward, 0xff, bytes);
		conv_pack(&bench->conv, bench->section);
		bits = check_bits(bits, bench->conv.forward, bytes);
		bits = check_bits(bits, bench->conv.backward, bytes);
	}
	return bits;
}

static uint64_t run_weights(void *context)
{
	struct bench *bench = context;
	weights_gradient(bench, false);
	return check_bits(0, bench->dweight, bench->weight_elems * sizeof(float));
}

/* Both gradients of the direction, from forward's values. */
struct gradients {
	double *dx, *dweight;
};

static struct gradients gradients_of(struct bench *bench)
{
	side_set(&bench->out_side, bench->example.n, bench->example.out, bench->direction);
	run_data(bench);
	run_weights(bench);
	return (struct gradients){
		.dx = side_get(&bench->din_side, bench->example.n, bench->in),
		.dweight = check_widened(bench->dweight, bench->weight_elems),
	};
}

static void check_differences(struct bench *bench, const struct gradients *gradients)
{
	size_t probes = bench->weight_elems > 10000 ? 2 : 50; /* the definition is slow */
	check_gradient("dx", bench->x, bench->x_elems, bench->x_elems / probes + 1, gradients->dx,
		loss, bench, 2e-5);
	check_gradient("dw", bench->weight, bench->weight_elems, bench->weight_elems / probes + 1,
		gradients->dweight, loss, bench, 5e-5);
}

/* Of a sum of `terms` products of normals one after the other: its partial sums grow as the root,
 * and so do the roundings', which makes 0.2 terms 2^-24 in the mean square; 5 times that. */
static double sum_tolerance(const struct bench *bench, uint32_t channels)
{
	return fmax(2e-5, 0x1p-24 * channels * bench->naive.k * bench->naive.k);
}

/* Against the openblas engine on the same values. */
static void check_against_openblas(
	const struct bench *bench, enum elem elem, const struct gradients *gradients)
{
	struct bench other;
	struct bound once = {elem == ELEM_BF16, sum_tolerance(bench, bench->example.out)};
	bench_init(&other, engine_openblas(), elem, bench->example, NULL);
	struct gradients expected = gradients_of(&other);
	assert_all_near("dx of openblas", gradients->dx, expected.dx, bench->x_elems, once);
	assert_all_near("dw of openblas", gradients->dweight, expected.dweight, bench->weight_elems,
		(struct bound){0, 5e-5});
	free(expected.dx);
	free(expected.dweight);
	bench_fini(&other);
}

static void check_example(struct bench *bench, enum elem elem)
{
	uint32_t n = bench->example.n, out = bench->example.out;
	loss(bench);
	run_forward(bench);
	double *y = side_get(&bench->out_side, n, out);
	assert_all_near("y", y, bench->y, bench->y_elems,
		(struct bound){elem == ELEM_BF16, sum_tolerance(bench, bench->in)});
	struct gradients gradients = gradients_of(bench);
	if (elem == ELEM_F32)
		check_differences(bench, &gradients);
	if (bench->engine != engine_openblas())
		check_against_openblas(bench, elem, &gradients);

	/* accumulate adds to what is there */
	weights_gradient(bench, true);
	for (size_t i = 0; i < bench->weight_elems; i++)
		assert_near(
			"dw twice", i, (double)bench->dweight[i], 2.0 * gradients.dweight[i], 1e-5);
	free(y);
	free(gradients.dx);
	free(gradients.dweight);
}

static void test_definition_and_gradients(void **state)
{
	const struct engine *engine = check_engine(state);
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		print_message("# example %zu\n", i);
		bench_init(&bench, engine, engine->form.elem, examples[i], NULL);
		check_example(&bench, engine->form.elem);
		bench_fini(&bench);
	}
}

static void test_p2_threads(void **state)
{
	const struct engine *engine = check_engine(state);
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		print_message("# example %zu\n", i);
		bench_init(&bench, engine, engine->form.elem, examples[i], NULL);
		check_threads("packing", run_pack, &bench);
		check_threads("forward", run_forward, &bench);
		side_set(&bench.out_side, examples[i].n, examples[i].out, bench.direction);
		check_threads("by data", run_data, &bench);
		check_threads("by weights", run_weights, &bench);
		bench_fini(&bench);
	}
}

/* accumulate, per-image values and residual of the engine's call: rounded once. */
static void test_epilogue(void **state)
{
	const struct engine *engine = check_engine(state);
	enum elem elem = engine->form.elem;
	struct bench bench;
	bench_init(
		&bench, engine, elem, (struct example){CONV_1X1, 3, 2, 4, {5, 0}, false, 38}, NULL);
	loss(&bench);
	struct field *out = &bench.out_side.tensors[0];
	struct field residual = field_new(&engine->form, &bench.out_side.layout, 38);
	field_set(&residual, 2, bench.direction);
	float per_image[2][80] = {0};
	for (int image = 0; image < 2; image++)
		check_fill(9 + (uint64_t)image, ELEM_F32, NULL, per_image[image], 38);
	double *first = check_doubles(bench.y_elems);
	check_fill(11, elem, first, NULL, bench.y_elems);
	side_set(&bench.out_side, 2, 38, first);
	struct conv_call call = {
		.n = 2,
		.out = &out->tensor,
		.accumulate = true,
		.bias = {bench.bias_padded, bench.bias_padded},
		.per_image = &per_image[0][0],
		.per_image_stride = 80,
		.residual = &residual.tensor,
	};
	conv_add_taps(&bench.conv, 0, bench.in_side.pointers, &call);
	run_call(&bench, &call);
	side_merge(&bench.out_side, 2);
	double *y = side_get(&bench.out_side, 2, 38);
	for (size_t i = 0; i < bench.y_elems; i++) {
		size_t image = i / 16 / 38, c = i / 16 % 38;
		first[i] += bench.y[i] + bench.bias[c] + (double)per_image[image][c] +
			bench.direction[i];
	}
	assert_all_near("y", y, first, bench.y_elems, (struct bound){elem == ELEM_BF16, 1e-5});
	free(y);
	free(first);
	field_free(&residual);
	bench_fini(&bench);
}

/* The result of conv_out: fp32 in the engine's blocks, not rounded. */
static void test_fp32_result(void **state)
{
	const struct engine *engine = check_engine(state);
	struct form form = engine->form;
	form.elem = ELEM_F32;
	for (size_t i = 0; i < 3; i++) {
		struct bench bench;
		bench_init(&bench, engine, engine->form.elem, examples[i], &form);
		loss(&bench);
		run_forward(&bench);
		double *y = side_get(&bench.out_side, examples[i].n, examples[i].out);
		assert_all_near("y", y, bench.y, bench.y_elems, (struct bound){0, 2e-5});
		free(y);
		bench_fini(&bench);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(test_definition_and_gradients),
		ON_EACH_ENGINE(test_p2_threads),
		ON_EACH_ENGINE(test_epilogue),
		ON_EACH_ENGINE(test_fp32_result),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
