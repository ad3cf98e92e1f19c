/* Convolutions as tap lists: which kernel positions make a block, at which offset it reads, and the
 * way between the section's [out, in, kh, kw] and the engine's blocks. */
#include "daemon/ops/conv.h"

#include "base/panic.h"

#include <string.h>

#define K(ky, kx) (1u << (3 * (ky) + (kx)))

static const struct conv_block blocks_1x1[] = {{1, 0, 0, 0, 0}};

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
		.out_width = round_up_channels(out_channels),
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

size_t conv_scratch_elems(const struct conv *conv)
{
	return (size_t)conv->block_count * conv->out_width * conv->in_width;
}

/* Where the packed tap of a block and source begins. */
static size_t packed_offset(const struct conv *conv, uint32_t block, uint32_t source)
{
	size_t block_bytes = conv_packed_bytes(conv) / conv->block_count;
	size_t offset = block * block_bytes;
	for (uint32_t i = 0; i < source; i++)
		offset += conv->engine->packed_bytes(source_width(conv, i), conv->out_width);
	return offset;
}

/* The plain matrix [out_width][source width] of a block and source inside the scratch. */
static float *plain_matrix(const struct conv *conv, float *scratch, uint32_t block, uint32_t source)
{
	size_t before = source ? conv->spans[0].width : 0;
	return scratch + ((size_t)block * conv->in_width + before) * conv->out_width;
}

/* Where the columns of a span begin in row o of a block's matrix. */
static float *span_row(
	const struct conv *conv, float *scratch, uint32_t block, uint32_t span, uint32_t o)
{
	uint32_t source = conv->split ? span : 0;
	uint32_t before = conv->split || !span ? 0 : conv->spans[0].width;
	return plain_matrix(conv, scratch, block, source) + (size_t)o * source_width(conv, source) +
		before;
}

static void zero_matrix_row(const struct conv *conv, float *scratch, uint32_t block, uint32_t row)
{
	for (uint32_t i = 0; i < source_count(conv); i++) {
		uint32_t width = source_width(conv, i);
		memset(plain_matrix(conv, scratch, block, i) + (size_t)row * width, 0,
			width * sizeof(float));
	}
}

/* Row o of every block's matrix from the kernel [in, kh, kw] of output channel o. */
static void plain_row(const struct conv *conv, const float *kernel, float *scratch, uint32_t o)
{
	const size_t step = conv->kernel_elems;
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const float *in = kernel;
		zero_matrix_row(conv, scratch, b, o);
		for (uint32_t span = 0; span < conv->span_count; span++) {
			float *row = span_row(conv, scratch, b, span, o);
			uint32_t channels = conv->spans[span].channels;
			for (uint32_t bits = conv->blocks[b].kernel_mask; bits; bits &= bits - 1) {
				uint32_t k = (uint32_t)__builtin_ctz(bits);
				for (uint32_t c = 0; c < channels; c++)
					row[c] += in[c * step + k];
			}
			in += channels * step;
		}
	}
}

void conv_pack(struct conv *conv, const float *weights, float *scratch)
{
	size_t kernel_size = (size_t)conv->in_channels * conv->kernel_elems;
	uint32_t sources = source_count(conv);
#pragma omp parallel for schedule(dynamic, 8)
	for (uint32_t o = 0; o < conv->out_width; o++) {
		if (o < conv->out_channels)
			plain_row(conv, weights + o * kernel_size, scratch, o);
		else
			for (uint32_t b = 0; b < conv->block_count; b++)
				zero_matrix_row(conv, scratch, b, o);
	}
#pragma omp parallel for schedule(dynamic)
	for (uint32_t i = 0; i < conv->block_count * sources; i++) {
		uint32_t block = i / sources, source = i % sources;
		uint32_t width = source_width(conv, source);
		const float *matrix = plain_matrix(conv, scratch, block, source);
		size_t offset = packed_offset(conv, block, source);
		conv->engine->pack(conv->forward + offset, width, conv->out_width, matrix, false);
		if (conv->backward)
			conv->engine->pack(
				conv->backward + offset, conv->out_width, width, matrix, true);
	}
}

static int32_t tap_offset(const struct layout *layout, const struct conv_block *block)
{
	return block->dy * (int32_t)layout->pitch + block->dx;
}

void conv_add_taps(const struct conv *conv, const struct layout *layout, uint32_t out_phase,
	const float *const *sources, struct conv_call *call)
{
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		if (block->out_phase != out_phase)
			continue;
		for (uint32_t s = 0; s < source_count(conv); s++) {
			CHECK(call->tap_count < TAPS_MAX);
			call->taps[call->tap_count++] = (struct tap){
				.in = sources[conv->split ? s : block->in_phase],
				.width = source_width(conv, s),
				.offset = tap_offset(layout, block),
				.packed = conv->forward + packed_offset(conv, b, s),
			};
		}
	}
}

void conv_add_data_taps(const struct conv *conv, const struct layout *layout, uint32_t source,
	const float *const *dout, struct conv_call *call)
{
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		if (!conv->split && block->in_phase != source)
			continue;
		CHECK(call->tap_count < TAPS_MAX);
		call->taps[call->tap_count++] = (struct tap){
			.in = dout[block->out_phase],
			.width = conv->out_width,
			.offset = -tap_offset(layout, block),
			.packed = conv->backward + packed_offset(conv, b, conv->split ? source : 0),
		};
	}
}

/* Row o of dw from the rows o of all blocks' gradients. */
static void fold_row(
	const struct conv *conv, float *scratch, uint32_t o, float *dw, bool accumulate)
{
	const size_t step = conv->kernel_elems;
	if (!accumulate)
		memset(dw, 0, conv->in_channels * step * sizeof(float));
	for (uint32_t span = 0; span < conv->span_count; span++) {
		uint32_t channels = conv->spans[span].channels;
		for (uint32_t b = 0; b < conv->block_count; b++) {
			const float *row = span_row(conv, scratch, b, span, o);
			for (uint32_t bits = conv->blocks[b].kernel_mask; bits; bits &= bits - 1) {
				uint32_t k = (uint32_t)__builtin_ctz(bits);
				for (uint32_t c = 0; c < channels; c++)
					dw[c * step + k] += row[c];
			}
		}
		dw += channels * step;
	}
}

void conv_weights_gradient(const struct conv *conv, const struct layout *layout, uint32_t n,
	const float *const *sources, const float *const *dout, float *scratch, float *dw,
	bool accumulate)
{
	struct conv_weights_call call = {
		.layout = layout,
		.n = n,
		.dout_width = conv->out_width,
	};
	for (uint32_t b = 0; b < conv->block_count; b++) {
		const struct conv_block *block = &conv->blocks[b];
		for (uint32_t s = 0; s < source_count(conv); s++) {
			CHECK(call.tap_count < TAPS_MAX);
			call.taps[call.tap_count] = (struct tap){
				.in = sources[conv->split ? s : block->in_phase],
				.width = source_width(conv, s),
				.offset = tap_offset(layout, block),
			};
			call.dout[call.tap_count] = dout[block->out_phase];
			call.dw[call.tap_count++] = plain_matrix(conv, scratch, b, s);
		}
	}
	conv->engine->conv_weights(&call);
	size_t kernel_size = (size_t)conv->in_channels * conv->kernel_elems;
#pragma omp parallel for schedule(dynamic, 8)
	for (uint32_t o = 0; o < conv->out_channels; o++)
		fold_row(conv, scratch, o, dw + o * kernel_size, accumulate);
}
