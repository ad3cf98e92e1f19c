/* Convolutions as tap lists: which kernel positions make a block, at which offset it reads, and the
 * way between the section's [out, in, kh, kw] and the engine's blocks. */
#include "daemon/ops/conv.h"

#include "base/panic.h"

#include <string.h>

/* Elements of a 3x3 kernel; the only other one is 1x1. */
#define KERNEL_MAX 9
#define K(ky, kx) (1u << (3 * (ky) + (kx)))

static const struct conv_block blocks_1x1[] = {{1, 0, 0, 0, 0}};

static const struct conv_block blocks_sum[] = {{1, 0, 0, 0, 0}, {1, 0, 0, 1, 0}};

static const struct conv_block blocks_3x3[] = {
	{K(0, 0), -1, -1, 0, 0},
	{K(0, 1), -1, 0, 0, 0},
	{K(0, 2), -1, 1, 0, 0},
	{K(1, 0), 0, -1, 0, 0},
	{K(1, 1), 0, 0, 0, 0},
	{K(1, 2), 0, 1, 0, 0},
	{K(2, 0), 1, -1, 0, 0},
	{K(2, 1), 1, 0, 0, 0},
	{K(2, 2), 1, 1, 0, 0},
};

/* Input row 2y + ky - 1: phase 1 of row y-1, phase 0 of row y, phase 1 of row y. */
static const struct conv_block blocks_down_1[] = {
	{K(0, 0), -1, -1, 3, 0},
	{K(0, 1), -1, 0, 2, 0},
	{K(0, 2), -1, 0, 3, 0},
	{K(1, 0), 0, -1, 1, 0},
	{K(1, 1), 0, 0, 0, 0},
	{K(1, 2), 0, 0, 1, 0},
	{K(2, 0), 0, -1, 3, 0},
	{K(2, 1), 0, 0, 2, 0},
	{K(2, 2), 0, 0, 3, 0},
};

/* Input row 2y + ky: phase 0 of row y, phase 1 of row y, phase 0 of row y+1. */
static const struct conv_block blocks_down_0[] = {
	{K(0, 0), 0, 0, 0, 0},
	{K(0, 1), 0, 0, 1, 0},
	{K(0, 2), 0, 1, 0, 0},
	{K(1, 0), 0, 0, 2, 0},
	{K(1, 1), 0, 0, 3, 0},
	{K(1, 2), 0, 1, 2, 0},
	{K(2, 0), 1, 0, 0, 0},
	{K(2, 1), 1, 0, 1, 0},
	{K(2, 2), 1, 1, 0, 0},
};

/* Output row 2y + a reads the enlarged rows 2y + a - 1 .. 2y + a + 1: for a = 0 the rows y-1 (ky 0)
 * and y (ky 1, 2), for a = 1 the rows y (ky 0, 1) and y+1 (ky 2). Columns alike. */
#define TOP(kx) (K(0, kx))
#define LOWER_TWO(kx) (K(1, kx) | K(2, kx))
#define UPPER_TWO(kx) (K(0, kx) | K(1, kx))
#define BOTTOM(kx) (K(2, kx))
static const struct conv_block blocks_up[] = {
	{TOP(0), -1, -1, 0, 0},
	{TOP(1) | TOP(2), -1, 0, 0, 0},
	{LOWER_TWO(0), 0, -1, 0, 0},
	{LOWER_TWO(1) | LOWER_TWO(2), 0, 0, 0, 0},
	{TOP(0) | TOP(1), -1, 0, 0, 1},
	{TOP(2), -1, 1, 0, 1},
	{LOWER_TWO(0) | LOWER_TWO(1), 0, 0, 0, 1},
	{LOWER_TWO(2), 0, 1, 0, 1},
	{UPPER_TWO(0), 0, -1, 0, 2},
	{UPPER_TWO(1) | UPPER_TWO(2), 0, 0, 0, 2},
	{BOTTOM(0), 1, -1, 0, 2},
	{BOTTOM(1) | BOTTOM(2), 1, 0, 0, 2},
	{UPPER_TWO(0) | UPPER_TWO(1), 0, 0, 0, 3},
	{UPPER_TWO(2), 0, 1, 0, 3},
	{BOTTOM(0) | BOTTOM(1), 1, 0, 0, 3},
	{BOTTOM(2), 1, 1, 0, 3},
};

static const struct {
	const struct conv_block *blocks;
	uint32_t block_count, kernel_elems;
} kinds[CONV_KIND_COUNT] = {
	[CONV_1X1] = {blocks_1x1, 1, 1},
	[CONV_SUM] = {blocks_sum, 2, 1},
	[CONV_3X3] = {blocks_3x3, 9, 9},
	[CONV_DOWN_1] = {blocks_down_1, 9, 9},
	[CONV_DOWN_0] = {blocks_down_0, 9, 9},
	[CONV_UP] = {blocks_up, 16, 9},
};

void conv_init(struct conv *conv, const struct engine *engine, enum conv_kind kind,
	const struct channel_span *spans, uint32_t span_count, bool split, uint32_t out_channels)
{
	CHECK(span_count >= 1 && span_count <= SPANS_MAX && (!split || kind == CONV_1X1));
	*conv = (struct conv){
		.engine = engine,
		.kind = kind,
		.split = split,
		.span_count = span_count,
		.out_channels = out_channels,
		.out_width = round_up_to(out_channels, engine->form.align),
		.kernel_elems = kinds[kind].kernel_elems,
		.block_count = kinds[kind].block_count,
		.blocks = kinds[kind].blocks,
	};
	for (uint32_t i = 0; i < span_count; i++) {
		conv->spans[i] = spans[i];
		conv->in_channels += spans[i].channels;
		conv->in_width += spans[i].width;
	}
}

static uint32_t source_count(const struct conv *conv)
{
	return conv->split ? conv->span_count : 1;
}

static uint32_t source_width(const struct conv *conv, uint32_t source)
{
	return conv->split ? conv->spans[source].width : conv->in_width;
}

size_t conv_packed_bytes(const struct conv *conv)
{
	size_t bytes = 0;
	for (uint32_t i = 0; i < source_count(conv); i++)
		bytes += conv->engine->packed_bytes(source_width(conv, i), conv->out_width);
	return bytes * conv->block_count;
}

size_t conv_raw_elems(const struct conv *conv)
{
	return (size_t)conv->block_count * conv->out_width * conv->in_width;
}

size_t conv_scratch_bytes(const struct conv *conv, const struct layout *layout)
{
	uint32_t in_tensors = 1, out_tensors = 1;
	for (uint32_t b = 0; b < conv->block_count; b++) {
		if (conv->blocks[b].in_phase >= in_tensors)
			in_tensors = conv->blocks[b].in_phase + 1u;
		if (conv->blocks[b].out_phase >= out_tensors)
			out_tensors = conv->blocks[b].out_phase + 1u;
	}
	return conv->engine->weights_scratch_bytes(
		layout, in_tensors * conv->in_width, out_tensors * conv->out_width);
}

/* Where the packed tap of a block and source begins. The summands of CONV_SUM share theirs. */
static size_t packed_offset(const struct conv *conv, uint32_t block, uint32_t source)
{
	size_t block_bytes = conv_packed_bytes(conv) / conv->block_count;
	size_t offset = conv->kind == CONV_SUM ? 0 : block * block_bytes;
	for (uint32_t i = 0; i < source; i++)
		offset += conv->engine->packed_bytes(source_width(conv, i), conv->out_width);
	return offset;
}

/* The raw gradient of a block and source. */
static float *raw_matrix(const struct conv *conv, float *raw, uint32_t block, uint32_t source)
{
	size_t before = source ? conv->spans[0].width : 0;
	return raw + ((size_t)block * conv->in_width + before) * conv->out_width;
}

/* Columns of a span before it in its source. */
static uint32_t span_column(const struct conv *conv, uint32_t span)
{
	return conv->split || !span ? 0 : conv->spans[0].width;
}

/* One square of a source's weights: columns from `column` on, rows (output channels) from o0 on. */
struct square {
	uint32_t source, column, o0;
};

static uint32_t squares_across(const struct conv *conv, uint32_t source)
{
	return (source_width(conv, source) + PACK_SIDE - 1) / PACK_SIDE;
}

static uint32_t squares_of(const struct conv *conv, uint32_t source)
{
	return squares_across(conv, source) * ((conv->out_width + PACK_SIDE - 1) / PACK_SIDE);
}

static struct square square_at(const struct conv *conv, uint32_t index)
{
	struct square square = {0};
	if (index >= squares_of(conv, 0)) {
		index -= squares_of(conv, 0);
		square.source = 1;
	}
	uint32_t across = squares_across(conv, square.source);
	square.column = index % across * PACK_SIDE;
	square.o0 = index / across * PACK_SIDE;
	return square;
}

/* values[c] += every step-th weight of a row; constant steps become gathers. */
static inline __attribute__((always_inline)) void add_row(
	const float *weights, size_t step, uint32_t columns, float *values)
{
	for (uint32_t c = 0; c < columns; c++)
		values[c] += weights[c * step];
}

/* What a span has in a square, of kernel position k: values[o][column] += weights. */
static void add_span(const struct conv *conv, const struct square *square, uint32_t span,
	const float *weights, uint32_t k, float values[PACK_SIDE][PACK_SIDE])
{
	const size_t row = (size_t)conv->in_channels * conv->kernel_elems;
	uint32_t begin = span_column(conv, span), end = begin + conv->spans[span].channels;
	uint32_t from = square->column > begin ? square->column : begin;
	uint32_t to = least(square->column + PACK_SIDE, end), at = from - square->column;
	if (from >= to || square->o0 >= conv->out_channels)
		return;
	uint32_t channel = (span ? conv->spans[0].channels : 0) + from - begin;
	uint32_t rows = least(conv->out_channels - square->o0, PACK_SIDE);
	weights += square->o0 * row + (size_t)channel * conv->kernel_elems + k;
	for (uint32_t o = 0; o < rows; o++, weights += row) {
		if (conv->kernel_elems == 1)
			add_row(weights, 1, to - from, values[o] + at);
		else if (to - from == PACK_SIDE)
			add_row(weights, KERNEL_MAX, PACK_SIDE, values[o]);
		else
			add_row(weights, KERNEL_MAX, to - from, values[o] + at);
	}
}

/* values[o][column] of one block: the sum of its kernel positions. */
static void block_square(const struct conv *conv, uint32_t block, const struct square *square,
	const float *weights, float values[PACK_SIDE][PACK_SIDE])
{
	memset(values, 0, PACK_SIDE * sizeof(*values));
	for (uint32_t bits = conv->blocks[block].kernel_mask; bits; bits &= bits - 1)
		for (uint32_t span = 0; span < conv->span_count; span++)
			if (!conv->split || span == square->source)
				add_span(conv, square, span, weights, (uint32_t)__builtin_ctz(bits),
					values);
}

static void pack_square(struct conv *conv, const struct square *square, const float *weights)
{
	_Alignas(64) float values[PACK_SIDE][PACK_SIDE];
	uint32_t width = source_width(conv, square->source);
	uint32_t blocks = conv->kind == CONV_SUM ? 1 : conv->block_count;
	for (uint32_t b = 0; b < blocks; b++) {
		size_t offset = packed_offset(conv, b, square->source);
		block_square(conv, b, square, weights, values);
		conv->engine->pack(conv->forward + offset, width, conv->out_width, square->column,
			square->o0, values, true);
		if (conv->backward)
			conv->engine->pack(conv->backward + offset, conv->out_width, width,
				square->o0, square->column, values, false);
	}
}

void conv_pack(struct conv *conv, const float *weights)
{
	uint32_t count = squares_of(conv, 0) +
		(conv->split && conv->span_count > 1 ? squares_of(conv, 1) : 0);
#pragma omp parallel for schedule(dynamic)
	for (uint32_t i = 0; i < count; i++) {
		struct square square = square_at(conv, i);
		pack_square(conv, &square, weights);
	}
}

static int32_t tap_offset(const struct layout *layout, const struct conv_block *block)
{
	return block->dy * (int32_t)layout->pitch + block->dx;
}

void conv_add_taps(const struct conv *conv, uint32_t out_phase, const struct tensor *const *sources,
	struct conv_call *call)
{
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		if (block->out_phase != out_phase)
			continue;
		for (uint32_t s = 0; s < source_count(conv); s++) {
			const struct tensor *in = sources[conv->split ? s : block->in_phase];
			CHECK(call->tap_count < TAPS_MAX && in->width == source_width(conv, s));
			call->taps[call->tap_count++] = (struct tap){
				.in = in,
				.offset = tap_offset(in->layout, block),
				.packed = conv->forward + packed_offset(conv, b, s),
			};
		}
	}
}

void conv_add_data_taps(const struct conv *conv, uint32_t source, const struct tensor *const *dout,
	struct conv_call *call)
{
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		if (!conv->split && block->in_phase != source)
			continue;
		const struct tensor *in = dout[block->out_phase];
		CHECK(call->tap_count < TAPS_MAX && in->width == conv->out_width);
		call->taps[call->tap_count++] = (struct tap){
			.in = in,
			.offset = -tap_offset(in->layout, block),
			.packed = conv->backward + packed_offset(conv, b, conv->split ? source : 0),
		};
	}
}

/* kernel[k][c] = the sum of the raw gradients of all blocks with kernel position k. at: of the
 * line in each raw matrix. */
static void gather_line(const struct conv *conv, float *raw, uint32_t source, size_t at,
	float kernel[KERNEL_MAX][RAW_LINE])
{
	memset(kernel, 0, KERNEL_MAX * sizeof(*kernel));
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const float *line = raw_matrix(conv, raw, b, source) + at;
		for (uint32_t bits = conv->blocks[b].kernel_mask; bits; bits &= bits - 1) {
			float *sum = kernel[__builtin_ctz(bits)];
			for (uint32_t c = 0; c < RAW_LINE; c++)
				sum[c] += line[c];
		}
	}
}

/* dw[c][k] of the channels [c0, c0 + RAW_LINE) of a span. */
static void fold_line(const struct conv *conv, float *raw, uint32_t span, uint32_t o, uint32_t c0,
	float *dw, bool accumulate)
{
	_Alignas(64) float kernel[KERNEL_MAX][RAW_LINE], line[KERNEL_MAX * RAW_LINE];
	uint32_t source = conv->split ? span : 0, width = source_width(conv, source);
	uint32_t count = least(conv->spans[span].channels - c0, RAW_LINE) * conv->kernel_elems;
	const float *values = kernel[0];
	gather_line(conv, raw, source,
		conv->engine->dw_offset(width, o, span_column(conv, span) + c0), kernel);
	if (conv->kernel_elems > 1) {
		for (uint32_t c = 0; c < RAW_LINE; c++)
			for (uint32_t k = 0; k < KERNEL_MAX; k++)
				line[c * KERNEL_MAX + k] = kernel[k][c];
		values = line;
	}
	for (uint32_t i = 0; i < count; i++)
		dw[i] = accumulate ? dw[i] + values[i] : values[i];
}

static void fold_row(const struct conv *conv, float *raw, uint32_t o, float *dw, bool accumulate)
{
	for (uint32_t span = 0; span < conv->span_count; span++) {
		uint32_t channels = conv->spans[span].channels;
		for (uint32_t c = 0; c < channels; c += RAW_LINE)
			fold_line(conv, raw, span, o, c, dw + (size_t)c * conv->kernel_elems,
				accumulate);
		dw += (size_t)channels * conv->kernel_elems;
	}
}

void conv_weights_gradient(const struct conv *conv, uint32_t n, const struct tensor *const *sources,
	const struct tensor *const *dout, float *raw, void *scratch, float *dw, bool accumulate)
{
	struct conv_weights_call call = {.n = n, .scratch = scratch};
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		for (uint32_t s = 0; s < source_count(conv); s++) {
			const struct tensor *in = sources[conv->split ? s : block->in_phase];
			CHECK(call.tap_count < TAPS_MAX && in->width == source_width(conv, s));
			call.taps[call.tap_count] = (struct tap){
				.in = in,
				.offset = tap_offset(in->layout, block),
			};
			call.dout[call.tap_count] = dout[block->out_phase];
			call.dw[call.tap_count++] = raw_matrix(conv, raw, b, s);
		}
	}
	conv->engine->conv_weights(&call);
	size_t kernel_size = (size_t)conv->in_channels * conv->kernel_elems;
#pragma omp parallel for schedule(dynamic, 8)
	for (uint32_t o = 0; o < conv->out_channels; o++)
		fold_row(conv, raw, o, dw + o * kernel_size, accumulate);
}
