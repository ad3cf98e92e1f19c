/* Where an activation lies in memory. A batch of images is one sequence of positions, each with
 * `width` floats (channels rounded up to 16, the rest zero):
 *
 *     padded:  pitch W+1, H+1 rows an image. A row's zero pad column is also the left pad of the
 *              next row, an image's pad row also the top pad of the next image; a halo of zeros
 *              stands before and after. Every tap of a convolution is then one constant offset.
 *     dense:   H*W positions an image and no pads: the tokens of attention.
 *
 * The zero invariant: every stored tensor, activation or gradient, is zero at all pads, in its head
 * and in its tail. Whoever writes a tensor writes these zeros too, so that buffers may be reused.
 * With n < batch images, positions of the images from n on count as pads.
 *
 * Letters: n images in use, H height, W width, C channels, p position. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Positions handled at a time: fits in the cache with all that a convolution reads. Part of the
 * order of summation, so a part of the bits. */
#define POSITION_BLOCK 256
#define CHANNEL_ALIGN 16

struct layout {
	uint32_t batch, height, width;
	bool dense;
	uint32_t pitch;        /* positions from one row to the next */
	uint32_t image_stride; /* positions from one image to the next */
	uint32_t head, tail;   /* positions of zeros before and after */
	uint32_t padded;       /* batch * image_stride rounded up to 32 */
	int32_t *image_of;     /* [padded]: the image of a position, -1 for a pad; owned */
};

/* -ENOMEM, -EOVERFLOW (more than 2^30 positions). */
int layout_init(struct layout *layout, uint32_t batch, uint32_t height, uint32_t width, bool dense);
void layout_fini(struct layout *layout);

static inline uint32_t round_up_channels(uint32_t channels)
{
	return (channels + CHANNEL_ALIGN - 1) / CHANNEL_ALIGN * CHANNEL_ALIGN;
}

/* Floats of a tensor with this width: head, positions, tail. */
size_t layout_elems(const struct layout *layout, uint32_t width);
/* The end of the blocks that hold n images. The blocks of a plan do not depend on n, so neither do
 * the bits of an image. */
uint32_t layout_active(const struct layout *layout, uint32_t n);
/* data points at position 0. Zeroes the head, and all from the last image to the end of the tail.
 */
void layout_zero_edges(const struct layout *layout, uint32_t n, float *data, uint32_t width);
/* Zeroes the pads between and behind the rows of one image. */
void layout_zero_image_pads(
	const struct layout *layout, uint32_t image, float *data, uint32_t width);
/* Position of the first pixel of row y of an image. */
static inline size_t layout_row(const struct layout *layout, uint32_t image, uint32_t y)
{
	return (size_t)image * layout->image_stride + (size_t)y * layout->pitch;
}
/* The zero invariant, for DEBUG_CHECK. channels: those from there to width must be zero too. */
bool layout_pads_are_zero(const struct layout *layout, uint32_t n, const float *data,
	uint32_t channels, uint32_t width);

/* One of up to two tensors of equal layout whose channels follow each other (a concatenation). */
struct channel_span {
	uint32_t channels, width;
};
#define SPANS_MAX 2

/* src [n][channels][H][W] -> positions. */
void layout_scatter_image(const struct layout *layout, uint32_t n, const float *src,
	uint32_t channels, float *dst, uint32_t width);
/* positions -> dst [n][channels][H][W]. */
void layout_gather_image(const struct layout *layout, uint32_t n, const float *src, uint32_t width,
	uint32_t channels, float *dst);
/* src [n][channels][H][W] -> positions of 3x3 patches: value 9 c + 3 ky + kx of a position is the
 * pixel (y+ky-1, x+kx-1) of channel c, so a 3x3 convolution of few channels is one product. */
void layout_scatter_patches(const struct layout *layout, uint32_t n, const float *src,
	uint32_t channels, float *dst, uint32_t width);

/* The four phases of a tensor of twice the size: phase[2a+b] at (y, x) is large at (2y+a, 2x+b). */
void layout_split_phases(const struct layout *large, const struct layout *small, uint32_t n,
	const float *src, float *const phases[4], uint32_t width);
/* The way back. accumulate: adds to dst. */
void layout_merge_phases(const struct layout *large, const struct layout *small, uint32_t n,
	const float *const phases[4], float *dst, uint32_t width, bool accumulate);

/* dst at positions = tokens at (image, y W + x), plus add when it is not NULL. */
void layout_scatter_tokens(const struct layout *positions, const struct layout *tokens, uint32_t n,
	const float *src, const float *add, float *dst, uint32_t width);
void layout_gather_tokens(const struct layout *positions, const struct layout *tokens, uint32_t n,
	const float *src, float *dst, uint32_t width);
