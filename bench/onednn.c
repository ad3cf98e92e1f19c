/* See onednn.h. The C interface of version 2. */
#include "bench/onednn.h"

#ifdef BENCH_ONEDNN

#include "base/clock.h"

#include <oneapi/dnnl/dnnl.h>

#include <stdio.h>
#include <string.h>

#define CALLS_MAX 25
#define CALLS_MIN 4
#define BUDGET_NS (300 * NSEC_PER_MSEC)

/* What stands in all operands: 0.0115 as fp32 and as bf16. */
#define FILL_BYTE 0x3c

static dnnl_engine_t engine;
static dnnl_stream_t stream;

const char *onednn_version(void)
{
	static char text[32];
	const dnnl_version_t *version = dnnl_version();

	snprintf(text, sizeof(text), "%d.%d.%d", version->major, version->minor, version->patch);
	return text;
}

static bool prepare(void)
{
	if (stream)
		return true;
	return dnnl_engine_create(&engine, dnnl_cpu, 0) == dnnl_success &&
		dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) == dnnl_success;
}

struct shapes {
	dnnl_memory_desc_t src, weights, bias, dst;
	dnnl_dims_t strides, before, after;
};

static void shapes_of(const struct onednn_conv *conv, struct shapes *ret)
{
	dnnl_data_type_t type = conv->bf16 ? dnnl_bf16 : dnnl_f32;
	/* Gradients of weights are fp32 here as in the engine. */
	dnnl_data_type_t weights = conv->pass == CONV_BY_WEIGHTS ? dnnl_f32 : type;
	uint32_t padded = conv->side + conv->pad_before + conv->pad_after;
	dnnl_dim_t out_side = (padded - conv->kernel) / conv->stride + 1;
	dnnl_dims_t src_dims = {conv->n, conv->in, conv->side, conv->side};
	dnnl_dims_t weights_dims = {conv->out, conv->in, conv->kernel, conv->kernel};
	dnnl_dims_t bias_dims = {conv->out};
	dnnl_dims_t dst_dims = {conv->n, conv->out, out_side, out_side};

	dnnl_memory_desc_init_by_tag(&ret->src, 4, src_dims, type, dnnl_format_tag_any);
	dnnl_memory_desc_init_by_tag(&ret->weights, 4, weights_dims, weights, dnnl_format_tag_any);
	dnnl_memory_desc_init_by_tag(&ret->bias, 1, bias_dims, dnnl_f32, dnnl_a);
	dnnl_memory_desc_init_by_tag(&ret->dst, 4, dst_dims, type, dnnl_format_tag_any);
	for (int i = 0; i < 2; i++) {
		ret->strides[i] = conv->stride;
		ret->before[i] = conv->pad_before;
		ret->after[i] = conv->pad_after;
	}
}

/* NULL where oneDNN has none. */
static dnnl_primitive_desc_t describe(
	enum conv_pass pass, const struct shapes *s, dnnl_primitive_desc_t hint)
{
	dnnl_primitive_desc_t ret = NULL;
	dnnl_convolution_desc_t desc;
	dnnl_status_t status;

	if (pass == CONV_FORWARD)
		status = dnnl_convolution_forward_desc_init(&desc, dnnl_forward_training,
			dnnl_convolution_direct, &s->src, &s->weights, &s->bias, &s->dst,
			s->strides, s->before, s->after);
	else if (pass == CONV_BY_DATA)
		status = dnnl_convolution_backward_data_desc_init(&desc, dnnl_convolution_direct,
			&s->src, &s->weights, &s->dst, s->strides, s->before, s->after);
	else
		status = dnnl_convolution_backward_weights_desc_init(&desc, dnnl_convolution_direct,
			&s->src, &s->weights, &s->bias, &s->dst, s->strides, s->before, s->after);
	if (status == dnnl_success)
		dnnl_primitive_desc_create(&ret, &desc, NULL, engine, hint);
	return ret;
}

/* What each pass reads and writes. */
struct operand {
	int arg;
	dnnl_query_t query;
};
#define OPERANDS 4

static const struct operand operands[][OPERANDS] = {
	[CONV_FORWARD] = {{DNNL_ARG_SRC, dnnl_query_src_md},
		{DNNL_ARG_WEIGHTS, dnnl_query_weights_md}, {DNNL_ARG_BIAS, dnnl_query_weights_md},
		{DNNL_ARG_DST, dnnl_query_dst_md}},
	[CONV_BY_DATA] = {{DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md},
		{DNNL_ARG_WEIGHTS, dnnl_query_weights_md},
		{DNNL_ARG_DIFF_SRC, dnnl_query_diff_src_md}},
	[CONV_BY_WEIGHTS] = {{DNNL_ARG_SRC, dnnl_query_src_md},
		{DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md},
		{DNNL_ARG_DIFF_WEIGHTS, dnnl_query_diff_weights_md},
		{DNNL_ARG_DIFF_BIAS, dnnl_query_diff_weights_md}},
};

static bool is_bias(int arg)
{
	return arg == DNNL_ARG_BIAS || arg == DNNL_ARG_DIFF_BIAS;
}

static bool fill(dnnl_primitive_desc_t desc, const struct operand *operand, dnnl_memory_t *ret)
{
	const dnnl_memory_desc_t *shape = dnnl_primitive_desc_query_md(
		desc, operand->query, is_bias(operand->arg));
	void *data;

	if (!shape || dnnl_memory_create(ret, shape, engine, DNNL_MEMORY_ALLOCATE) != dnnl_success)
		return false;
	if (dnnl_memory_get_data_handle(*ret, &data) != dnnl_success)
		return false;
	memset(data, FILL_BYTE, dnnl_memory_desc_get_size(shape));
	return true;
}

static double best_seconds(dnnl_primitive_t primitive, int count, const dnnl_exec_arg_t *args)
{
	nsec_t best = INT64_MAX, spent = 0;

	for (int i = 0; i < CALLS_MAX && (i < CALLS_MIN || spent < BUDGET_NS); i++) {
		nsec_t begun = clock_monotonic_ns();

		if (dnnl_primitive_execute(primitive, stream, count, args) != dnnl_success ||
			dnnl_stream_wait(stream) != dnnl_success)
			return -1;
		nsec_t took = clock_monotonic_ns() - begun;
		spent += took;
		best = took < best ? took : best;
	}
	return (double)best * 1e-9;
}

static double run(dnnl_primitive_desc_t desc, enum conv_pass pass)
{
	dnnl_exec_arg_t args[OPERANDS] = {0};
	dnnl_primitive_t primitive = NULL;
	double seconds = -1;
	int count = 0;
	bool filled = dnnl_primitive_create(&primitive, desc) == dnnl_success;

	for (; filled && count < OPERANDS && operands[pass][count].arg; count++) {
		args[count].arg = operands[pass][count].arg;
		filled = fill(desc, &operands[pass][count], &args[count].memory);
	}
	if (filled)
		seconds = best_seconds(primitive, count, args);
	for (int i = 0; i < OPERANDS; i++)
		dnnl_memory_destroy(args[i].memory);
	dnnl_primitive_destroy(primitive);
	return seconds;
}

double onednn_seconds(const struct onednn_conv *conv)
{
	dnnl_primitive_desc_t hint = NULL, desc = NULL;
	struct shapes shapes;
	double seconds = -1;

	if (!prepare())
		return -1;
	shapes_of(conv, &shapes);
	if (conv->pass != CONV_FORWARD) {
		struct onednn_conv forward = *conv;
		struct shapes forward_shapes;

		forward.pass = CONV_FORWARD;
		shapes_of(&forward, &forward_shapes);
		hint = describe(CONV_FORWARD, &forward_shapes, NULL);
	}
	if (conv->pass == CONV_FORWARD || hint)
		desc = describe(conv->pass, &shapes, hint);
	if (desc)
		seconds = run(desc, conv->pass);
	dnnl_primitive_desc_destroy(desc);
	dnnl_primitive_desc_destroy(hint);
	return seconds;
}

#else

#include <stddef.h>

const char *onednn_version(void)
{
	return NULL;
}

double onednn_seconds(const struct onednn_conv *conv)
{
	(void)conv;
	return -1;
}

#endif
