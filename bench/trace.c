/* See trace.h. For a function f, f here is the wrapper __wrap_f, which every other file of the
 * program reaches under the name f, and __real_f is the one that does the work. */
#include "bench/trace.h"

#include "base/panic.h"
#include "daemon/diffusion/loss.h"
#include "daemon/ops/attention.h"
#include "daemon/ops/conv.h"
#include "daemon/ops/norm.h"
#include "daemon/ops/sums.h"
#include "daemon/optim/adamw.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A convolution whose taps are in the next call of engine->conv. */
struct pending {
	const struct conv *conv;
	bool by_data;
	uint32_t source;
};

static struct {
	const struct engine *engine;
	struct engine timed;
	bool on;
	uint32_t step, count;
	struct op ops[TRACE_OPS_MAX];
	uint32_t pending_count;
	struct pending pending[OP_CONVS_MAX];
	const struct tensor *patches; /* the input's: its 1x1 is a 3x3 of the image */
} trace;

struct op *trace_ops(uint32_t *ret_count)
{
	*ret_count = trace.count;
	return trace.ops;
}

void trace_begin(uint32_t step)
{
	CHECK(step < TRACE_STEPS_MAX);
	trace.on = true;
	trace.step = step;
	for (uint32_t i = 0; i < trace.count; i++) {
		trace.ops[i].calls = 0;
		trace.ops[i].flops = trace.ops[i].bytes = 0;
	}
}

void trace_end(void)
{
	trace.on = false;
}

static struct op *find_op(const char *name)
{
	for (uint32_t i = 0; i < trace.count; i++)
		if (strcmp(trace.ops[i].name, name) == 0)
			return &trace.ops[i];
	CHECK(trace.count < TRACE_OPS_MAX);
	struct op *op = &trace.ops[trace.count++];
	snprintf(op->name, sizeof(op->name), "%s", name);
	return op;
}

/* The call that began then ends now. */
__attribute__((format(printf, 4, 5))) static struct op *add(
	nsec_t begun, double flops, double bytes, const char *fmt, ...)
{
	nsec_t took = clock_monotonic_ns() - begun;
	char name[sizeof(trace.ops[0].name)];
	va_list args;

	if (!trace.on)
		return NULL;
	va_start(args, fmt);
	vsnprintf(name, sizeof(name), fmt, args);
	va_end(args);
	struct op *op = find_op(name);
	op->calls++;
	op->flops += flops;
	op->bytes += bytes;
	op->step_ns[trace.step] += took;
	return op;
}

void trace_other(nsec_t begun, const char *name)
{
	add(begun, 0, 0, "%s", name);
}

static double pixels_of(const struct tensor *tensor, uint32_t n)
{
	return (double)n * tensor->layout->height * tensor->layout->width;
}

/* Bytes of what is in a tensor, without pads. */
static double bytes_of(const struct tensor *tensor, uint32_t n)
{
	return tensor ? pixels_of(tensor, n) * tensor->channels * (double)elem_bytes(tensor->elem)
		      : 0;
}

static unsigned side_of(const struct tensor *tensor)
{
	return tensor->layout->height;
}

/* Convolutions. */

static const char *const kind_names[CONV_KIND_COUNT] = {
	[CONV_1X1] = "1x1",
	[CONV_SUM] = "1x1 (hi+lo)",
	[CONV_3X3] = "3x3",
	[CONV_DOWN_1] = "down",
	[CONV_DOWN_0] = "down",
	[CONV_UP] = "up",
};
static const char *const pass_names[] = {
	[CONV_FORWARD] = "forward",
	[CONV_BY_DATA] = "by data",
	[CONV_BY_WEIGHTS] = "by weights",
};

static uint32_t source_channels(const struct pending *pending)
{
	const struct conv *conv = pending->conv;

	return pending->by_data && conv->split ? conv->spans[pending->source].channels
					       : conv->in_channels;
}

/* "3x3 256+128>256" at the end of text. */
static void append_name(char *text, size_t size, const struct pending *pending)
{
	const struct conv *conv = pending->conv;
	size_t used = strlen(text);
	char in[32];

	if (conv->span_count > 1 && !(pending->by_data && conv->split))
		snprintf(in, sizeof(in), "%u+%u", conv->spans[0].channels, conv->spans[1].channels);
	else
		snprintf(in, sizeof(in), "%u", source_channels(pending));
	snprintf(text + used, size - used, "%s%s %s%c%u", used ? " + " : "", kind_names[conv->kind],
		in, pending->by_data ? '<' : '>', conv->out_channels);
}

/* side: of the smaller images, which the taps run over. */
static struct onednn_conv onednn_of(
	const struct pending *pending, enum conv_pass pass, uint32_t n, uint32_t side, bool input)
{
	const struct conv *conv = pending->conv;
	bool plain = !input && (conv->kind == CONV_1X1 || conv->kind == CONV_SUM);
	bool down = conv->kind == CONV_DOWN_0 || conv->kind == CONV_DOWN_1;

	return (struct onednn_conv){
		.pass = pass,
		.bf16 = trace.engine->form.elem == ELEM_BF16,
		.n = n,
		.in = input ? conv->in_channels / 9 : source_channels(pending),
		.out = conv->out_channels,
		.side = down || conv->kind == CONV_UP ? 2 * side : side,
		.kernel = plain ? 1 : 3,
		.stride = down ? 2 : 1,
		.pad_before = !plain && conv->kind != CONV_DOWN_0,
		.pad_after = !plain,
	};
}

static void set_convs(struct op *op, enum conv_pass pass, const struct conv_call *call)
{
	op->conv_count = trace.pending_count;
	op->conv_calls = 1;
	for (uint32_t i = 0; i < trace.pending_count; i++) {
		const struct pending *pending = &trace.pending[i];
		enum conv_kind kind = pending->conv->kind;
		bool down = kind == CONV_DOWN_0 || kind == CONV_DOWN_1;

		op->convs[i] = onednn_of(pending, pass, call->n, side_of(call->out),
			call->taps[0].in == trace.patches);
		if (pending->by_data ? down : kind == CONV_UP)
			op->conv_calls = 4; /* phases */
	}
}

static bool reads_before(const struct conv_call *call, uint32_t tap)
{
	for (uint32_t i = 0; i < tap; i++)
		if (call->taps[i].in == call->taps[tap].in)
			return true;
	return false;
}

static void timed_conv(const struct conv_call *call)
{
	enum conv_pass pass = CONV_FORWARD;
	char name[96] = "";
	double flops = 0,
	       bytes = bytes_of(call->out, call->n) * (call->accumulate ? 2 : 1) +
		bytes_of(call->residual, call->n);
	nsec_t begun = clock_monotonic_ns();

	trace.engine->conv(call);
	nsec_t work = clock_monotonic_ns() - begun;
	for (uint32_t i = 0; i < call->tap_count; i++) {
		const struct tensor *in = call->taps[i].in;

		flops += 2.0 * pixels_of(in, call->n) * in->channels * call->out->channels;
		bytes += (double)trace.engine->packed_bytes(in->width, call->out->width);
		if (!reads_before(call, i))
			bytes += bytes_of(in, call->n);
	}
	for (uint32_t i = 0; i < trace.pending_count; i++) {
		append_name(name, sizeof(name), &trace.pending[i]);
		if (trace.pending[i].by_data)
			pass = CONV_BY_DATA;
	}
	struct op *op = add(clock_monotonic_ns() - work, flops, bytes, "%s, %ux%u, %s", name,
		side_of(call->out), side_of(call->out), pass_names[pass]);
	if (op)
		set_convs(op, pass, call);
	trace.pending_count = 0;
}

const struct engine *trace_engine(const struct engine *engine)
{
	trace.engine = engine;
	trace.timed = *engine;
	trace.timed.conv = timed_conv;
	return &trace.timed;
}

static void remember(const struct conv *conv, bool by_data, uint32_t source)
{
	CHECK(trace.pending_count < OP_CONVS_MAX);
	trace.pending[trace.pending_count++] = (struct pending){conv, by_data, source};
}

extern __typeof__(conv_add_taps) __real_conv_add_taps, __wrap_conv_add_taps;
void __wrap_conv_add_taps(const struct conv *conv, uint32_t out_phase,
	const struct tensor *const *sources, struct conv_call *call)
{
	remember(conv, false, 0);
	__real_conv_add_taps(conv, out_phase, sources, call);
}

extern __typeof__(conv_add_data_taps) __real_conv_add_data_taps, __wrap_conv_add_data_taps;
void __wrap_conv_add_data_taps(const struct conv *conv, uint32_t source,
	const struct tensor *const *dout, struct conv_call *call)
{
	remember(conv, true, source);
	__real_conv_add_data_taps(conv, source, dout, call);
}

static double weights_bytes(const struct conv *conv)
{
	return 4.0 * conv->in_channels * conv->out_channels * conv->kernel_elems;
}

extern __typeof__(conv_weights_gradient) __real_conv_weights_gradient, __wrap_conv_weights_gradient;
void __wrap_conv_weights_gradient(const struct conv *conv, uint32_t n,
	const struct tensor *const *sources, const struct tensor *const *dout, float *raw,
	void *scratch, float *dw, bool accumulate)
{
	uint32_t in_count = conv->split ? conv->span_count : 1, out_count = 1;
	struct pending pending = {.conv = conv};
	char name[96] = "";
	double bytes = weights_bytes(conv) * (accumulate ? 2 : 1);
	double flops = 2.0 * pixels_of(dout[0], n) * conv->in_channels * conv->out_channels *
		conv->block_count;
	nsec_t begun = clock_monotonic_ns();

	__real_conv_weights_gradient(conv, n, sources, dout, raw, scratch, dw, accumulate);
	nsec_t work = clock_monotonic_ns() - begun;
	for (uint32_t b = 0; b < conv->block_count; b++) {
		if (conv->blocks[b].in_phase >= in_count)
			in_count = conv->blocks[b].in_phase + 1u;
		if (conv->blocks[b].out_phase >= out_count)
			out_count = conv->blocks[b].out_phase + 1u;
	}
	for (uint32_t i = 0; i < in_count; i++)
		bytes += bytes_of(sources[i], n);
	for (uint32_t i = 0; i < out_count; i++)
		bytes += bytes_of(dout[i], n);
	append_name(name, sizeof(name), &pending);
	struct op *op = add(clock_monotonic_ns() - work, flops, bytes, "%s, %ux%u, by weights",
		name, side_of(dout[0]), side_of(dout[0]));
	if (!op)
		return;
	op->conv_count = op->conv_calls = 1;
	op->convs[0] = onednn_of(
		&pending, CONV_BY_WEIGHTS, n, side_of(dout[0]), sources[0] == trace.patches);
}

extern __typeof__(conv_pack) __real_conv_pack, __wrap_conv_pack;
void __wrap_conv_pack(struct conv *conv, const float *weights)
{
	double packed = (double)conv_packed_bytes(conv) * (conv->backward ? 2 : 1);
	nsec_t begun = clock_monotonic_ns();

	__real_conv_pack(conv, weights);
	add(begun, 0, weights_bytes(conv) + packed, "packing of weights, %u values each",
		conv->kernel_elems);
}

/* Norms. */

static double sources_bytes(
	const struct group_norm *norm, uint32_t n, const struct tensor *const *sources)
{
	double bytes = 0;

	for (uint32_t i = 0; i < norm->span_count; i++)
		bytes += bytes_of(sources[i], n);
	return bytes;
}

static void add_norm(nsec_t begun, const struct group_norm *norm, const struct tensor *source,
	double bytes, const char *what)
{
	const char *silu = norm->silu ? " + silu" : "";
	unsigned side = side_of(source);

	if (norm->span_count > 1)
		add(begun, 0, bytes, "norm%s %u+%u, %ux%u, %s", silu, norm->spans[0].channels,
			norm->spans[1].channels, side, side, what);
	else
		add(begun, 0, bytes, "norm%s %u, %ux%u, %s", silu, norm->channels, side, side,
			what);
}

extern __typeof__(group_norm_forward) __real_group_norm_forward, __wrap_group_norm_forward;
void __wrap_group_norm_forward(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, float *state, const struct tensor *out)
{
	nsec_t begun = clock_monotonic_ns();

	__real_group_norm_forward(norm, n, sources, state, out);
	add_norm(begun, norm, sources[0], sources_bytes(norm, n, sources) + bytes_of(out, n),
		"forward");
}

extern __typeof__(group_norm_apply) __real_group_norm_apply, __wrap_group_norm_apply;
void __wrap_group_norm_apply(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, const float *state, const struct tensor *out)
{
	nsec_t begun = clock_monotonic_ns();

	__real_group_norm_apply(norm, n, sources, state, out);
	add_norm(begun, norm, sources[0], sources_bytes(norm, n, sources) + bytes_of(out, n),
		"again");
}

extern __typeof__(group_norm_backward) __real_group_norm_backward, __wrap_group_norm_backward;
void __wrap_group_norm_backward(
	const struct group_norm *norm, const struct group_norm_backward *call)
{
	double bytes = sources_bytes(norm, call->n, call->sources) + bytes_of(call->dout, call->n) +
		bytes_of(call->residual, call->n);
	nsec_t begun = clock_monotonic_ns();

	__real_group_norm_backward(norm, call);
	for (uint32_t i = 0; i < norm->span_count; i++)
		bytes += bytes_of(call->dsources[i], call->n) * (call->accumulate[i] ? 2 : 1);
	add_norm(begun, norm, call->sources[0], bytes, "backward");
}

extern __typeof__(sums_per_image) __real_sums_per_image, __wrap_sums_per_image;
void __wrap_sums_per_image(uint32_t n, const struct tensor *data, float *sums)
{
	nsec_t begun = clock_monotonic_ns();

	__real_sums_per_image(n, data, sums);
	add(begun, 0, bytes_of(data, n), "sums of gradients %u, %ux%u", data->channels,
		side_of(data), side_of(data));
}

/* Attention: two products forward; backward makes the first again, and four more. */

static double attention_flops(const struct attention *attention, uint32_t n)
{
	return 2.0 * n * attention->tokens * attention->tokens * attention->heads *
		attention->head_dim;
}

static void add_attention(nsec_t begun, const struct attention *attention, double flops,
	double bytes, const char *what)
{
	add(begun, flops, bytes, "attention, %u tokens, %u x %u, %s", attention->tokens,
		attention->heads, attention->head_dim, what);
}

extern __typeof__(attention_forward) __real_attention_forward, __wrap_attention_forward;
void __wrap_attention_forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o)
{
	nsec_t begun = clock_monotonic_ns();

	__real_attention_forward(attention, n, q, k, v, o);
	add_attention(
		begun, attention, 2 * attention_flops(attention, n), 4 * bytes_of(q, n), "forward");
}

extern __typeof__(attention_backward) __real_attention_backward, __wrap_attention_backward;
void __wrap_attention_backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3])
{
	nsec_t begun = clock_monotonic_ns();

	__real_attention_backward(attention, n, qkv, dout, dqkv);
	add_attention(begun, attention, 5 * attention_flops(attention, n), 7 * bytes_of(dout, n),
		"backward");
}

/* Passes that move values. */

extern __typeof__(tensor_scatter_patches) __real_tensor_scatter_patches,
	__wrap_tensor_scatter_patches;
void __wrap_tensor_scatter_patches(uint32_t n, const float *src, uint32_t channels,
	const struct tensor *dst, const struct tensor *rest)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_scatter_patches(n, src, channels, dst, rest);
	add(begun, 0, 4.0 * channels * pixels_of(dst, n) + bytes_of(dst, n) + bytes_of(rest, n),
		"patches of the input");
	trace.patches = dst;
}

extern __typeof__(tensor_scatter_image) __real_tensor_scatter_image, __wrap_tensor_scatter_image;
void __wrap_tensor_scatter_image(uint32_t n, const float *src, const struct tensor *dst)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_scatter_image(n, src, dst);
	add(begun, 0, 4.0 * dst->channels * pixels_of(dst, n) + bytes_of(dst, n),
		"image to positions");
}

extern __typeof__(tensor_gather_image) __real_tensor_gather_image, __wrap_tensor_gather_image;
void __wrap_tensor_gather_image(uint32_t n, const struct tensor *src, float *dst)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_gather_image(n, src, dst);
	add(begun, 0, 4.0 * src->channels * pixels_of(src, n) + bytes_of(src, n),
		"positions to image");
}

extern __typeof__(tensor_split_phases) __real_tensor_split_phases, __wrap_tensor_split_phases;
void __wrap_tensor_split_phases(
	uint32_t n, const struct tensor *large, const struct tensor *const phases[4])
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_split_phases(n, large, phases);
	add(begun, 0, 2 * bytes_of(large, n), "phases split %u, %ux%u", large->channels,
		side_of(large), side_of(large));
}

extern __typeof__(tensor_merge_phases) __real_tensor_merge_phases, __wrap_tensor_merge_phases;
void __wrap_tensor_merge_phases(uint32_t n, const struct tensor *const phases[4],
	const struct tensor *large, bool accumulate)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_merge_phases(n, phases, large, accumulate);
	add(begun, 0, (accumulate ? 3 : 2) * bytes_of(large, n), "phases merged %u, %ux%u",
		large->channels, side_of(large), side_of(large));
}

extern __typeof__(tensor_scatter_tokens) __real_tensor_scatter_tokens, __wrap_tensor_scatter_tokens;
void __wrap_tensor_scatter_tokens(uint32_t n, const struct tensor *tokens,
	const struct tensor *other, const struct tensor *dst)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_scatter_tokens(n, tokens, other, dst);
	add(begun, 0, bytes_of(tokens, n) + bytes_of(other, n) + bytes_of(dst, n),
		"tokens to positions %u, %ux%u", dst->channels, side_of(dst), side_of(dst));
}

extern __typeof__(tensor_gather_tokens) __real_tensor_gather_tokens, __wrap_tensor_gather_tokens;
void __wrap_tensor_gather_tokens(uint32_t n, const struct tensor *src, const struct tensor *tokens)
{
	nsec_t begun = clock_monotonic_ns();

	__real_tensor_gather_tokens(n, src, tokens);
	add(begun, 0, bytes_of(src, n) + bytes_of(tokens, n), "positions to tokens %u, %ux%u",
		src->channels, side_of(src), side_of(src));
}

/* What surrounds the net. */

extern __typeof__(loss_mse) __real_loss_mse, __wrap_loss_mse;
void __wrap_loss_mse(uint32_t n, uint64_t elems, uint32_t batch, const float *target,
	const float *output, float *gradient, double *per_sample)
{
	nsec_t begun = clock_monotonic_ns();

	__real_loss_mse(n, elems, batch, target, output, gradient, per_sample);
	add(begun, 0, 12.0 * n * (double)elems, "loss");
}

extern __typeof__(adamw_square_sum) __real_adamw_square_sum, __wrap_adamw_square_sum;
double __wrap_adamw_square_sum(const float *grads, uint64_t count)
{
	nsec_t begun = clock_monotonic_ns();
	double sum = __real_adamw_square_sum(grads, count);

	add(begun, 0, 4.0 * (double)count, "norm of the gradient");
	return sum;
}

/* Four sections and the gradient are read, four sections written. */
extern __typeof__(adamw_update) __real_adamw_update, __wrap_adamw_update;
bool __wrap_adamw_update(const struct adamw *adamw, const float *grads, uint64_t elems,
	float *const src[SECTION_COUNT], float *const dst[SECTION_COUNT], const uint64_t *src_sums,
	uint64_t *dst_sums, _Atomic uint64_t *moves)
{
	nsec_t begun = clock_monotonic_ns();
	bool whole = __real_adamw_update(adamw, grads, elems, src, dst, src_sums, dst_sums, moves);

	add(begun, 0, 36.0 * (double)elems, "optimizer: AdamW, EMA, sums");
	return whole;
}
