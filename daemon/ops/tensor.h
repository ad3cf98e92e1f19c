/* An activation or a gradient in memory: the positions of a layout, with channels in blocks. A
 * block is one whole sequence of positions (head, images, tail), each with `block` channels side by
 * side:
 *
 *     element (p, c) is number (c / block) * plane + p * block + c % block behind position 0
 *
 * fp32 engines take one block of the whole width (NHWC). amx takes blocks of 32 channels in bf16: a
 * position of a block is one cache line, 16 of them are one tile, and every pass is a stream. */
#pragma once

#include "daemon/ops/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum elem { ELEM_F32, ELEM_BF16 };

/* How an engine stores activations. */
struct form {
	enum elem elem;
	uint32_t block; /* channels of a block; 0: one block of the whole width */
	uint32_t align; /* widths are channels rounded up to this */
};

struct tensor {
	const struct layout *layout; /* NULL: a plain array of floats */
	uint32_t channels, width;    /* channels from `channels` to `width` are zero */
	enum elem elem;
	uint32_t block; /* divides width */
	size_t plane;   /* elements of a block */
	void *data;     /* position 0 of the first block */
	/* Of the plan (model/plan.h). */
	size_t bytes, offset;
	uint32_t first, last;
};

/* Channels handled at a time by the passes over memory: two vectors of 16 floats. */
#define STRIP 32

static inline uint32_t round_up_to(uint32_t channels, uint32_t align)
{
	return (channels + align - 1) / align * align;
}

static inline size_t elem_bytes(enum elem elem)
{
	return elem == ELEM_BF16 ? 2 : 4;
}

/* width: a multiple of form->align. data is not set. */
struct tensor tensor_of(
	const struct layout *layout, uint32_t channels, uint32_t width, const struct form *form);
/* All blocks with heads and tails. */
size_t tensor_bytes(const struct tensor *tensor);
/* memory: tensor_bytes, aligned to 64. */
void tensor_bind(struct tensor *tensor, void *memory);

static inline void *tensor_at(const struct tensor *tensor, uint32_t column, ptrdiff_t position)
{
	ptrdiff_t at = (ptrdiff_t)(column / tensor->block * tensor->plane) +
		position * (ptrdiff_t)tensor->block + column % tensor->block;
	return (uint8_t *)tensor->data + at * (ptrdiff_t)elem_bytes(tensor->elem);
}

/* Bytes from a position to the next. */
static inline size_t tensor_step(const struct tensor *tensor)
{
	return tensor->block * elem_bytes(tensor->elem);
}

/* Zeroes the heads, and all from the last image in use to the ends of the tails. */
void tensor_zero_edges(const struct tensor *tensor, uint32_t n);
/* The zero invariant, for DEBUG_CHECK: pads, edges, and the columns behind the channels. */
bool tensor_is_clean(const struct tensor *tensor, uint32_t n);
/* The same without the columns: where an input was NaN they are too, 0 times NaN. */
bool tensor_pads_are_zero(const struct tensor *tensor, uint32_t n);

/* One of up to two tensors of equal layout whose channels follow each other (a concatenation). */
struct channel_span {
	uint32_t channels, width;
};
#define SPANS_MAX 2

/* Passes that move values. src [n][channels][H][W] fp32 -> positions. */
void tensor_scatter_image(uint32_t n, const float *src, const struct tensor *dst);
/* positions -> dst [n][channels][H][W]. */
void tensor_gather_image(uint32_t n, const struct tensor *src, float *dst);
/* src [n][channels][H][W] -> positions of 3x3 patches: value 9 c + 3 ky + kx of a position is the
 * pixel (y+ky-1, x+kx-1) of channel c, so a 3x3 convolution of few channels is one product. rest
 * (or NULL) takes what dst lost by rounding, so that dst + rest is x to 16 bits of mantissa. */
void tensor_scatter_patches(uint32_t n, const float *src, uint32_t channels,
	const struct tensor *dst, const struct tensor *rest);

/* The four phases of a tensor of twice the size: phase[2a+b] at (y, x) is large at (2y+a, 2x+b). */
void tensor_split_phases(
	uint32_t n, const struct tensor *large, const struct tensor *const phases[4]);
/* The way back. accumulate: adds to large. */
void tensor_merge_phases(uint32_t n, const struct tensor *const phases[4],
	const struct tensor *large, bool accumulate);

/* dst at positions = tokens at (image, y W + x), plus add when it is not NULL. */
void tensor_scatter_tokens(uint32_t n, const struct tensor *tokens, const struct tensor *add,
	const struct tensor *dst);
void tensor_gather_tokens(uint32_t n, const struct tensor *src, const struct tensor *tokens);
