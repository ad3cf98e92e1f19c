/* Pictures in and out: the door of spng and libjpeg-turbo. Decoders get bytes, never paths. */
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define IMAGE_SIDE_MAX 32768
#define IMAGE_PIXELS_MAX ((uint64_t)1 << 28)

struct image {
	uint32_t width, height;
	uint8_t *rgb; /* [height][width][3], owned */
};
void image_fini(struct image *image);

/* PNG or JPEG by its magic; every bit depth and colour mode to 8-bit RGB: alpha is blended over
 * white, 16 bit is rounded, CMYK is converted, the EXIF orientation is applied. -EBADMSG with the
 * reason (a cut or damaged picture is an error, never half of one), -EFBIG, -ENOMEM. */
int image_decode(const void *data, size_t size, struct image *ret, struct error *err);
/* The sides from the header alone, before the orientation: what decoding would cost. The same
 * errors. */
int image_probe(const void *data, size_t size, uint32_t *ret_width, uint32_t *ret_height,
	struct error *err);
/* Centre crop to a square, then resize to size x size by area averaging (down) or bicubic (up), in
 * fixed order: bits do not depend on threads. out: [size][size][3]. */
void image_square(const struct image *image, uint32_t size, uint8_t *out);

/* 8-bit RGB PNG bytes, malloc'ed. */
int image_encode_png(const uint8_t *rgb, uint32_t width, uint32_t height, void **ret_data,
	size_t *ret_size, struct error *err);
/* A grid of n planar fp32 images [n][3][size][size] in [-1, 1] (clamped, rounded as diffusers),
 * columns wide, one pixel of white between, as PNG bytes. */
int image_grid_png(const float *planes, uint32_t n, uint32_t size, uint32_t columns,
	void **ret_data, size_t *ret_size, struct error *err);
