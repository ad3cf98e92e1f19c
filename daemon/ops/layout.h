/* Where the pixels of a batch lie. A batch of images is one sequence of positions:
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

static inline uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

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

/* Positions with head and tail. */
static inline size_t layout_positions(const struct layout *layout)
{
	return (size_t)layout->head + layout->padded + layout->tail;
}
/* The end of the blocks that hold n images. The blocks of a plan do not depend on n, so neither do
 * the bits of an image. */
uint32_t layout_active(const struct layout *layout, uint32_t n);
/* Position of the first pixel of row y of an image. */
static inline size_t layout_row(const struct layout *layout, uint32_t image, uint32_t y)
{
	return (size_t)image * layout->image_stride + (size_t)y * layout->pitch;
}
