/* What the decoders of one format share: limits before memory, and the orientation tag. */
#pragma once

#include "daemon/image/image.h"

#include <stdbool.h>

bool png_is(const uint8_t *data, size_t size);
int png_size(const uint8_t *data, size_t size, uint32_t *ret_width, uint32_t *ret_height,
	struct error *err);
/* orientation: 1..8, from the picture's own tag. */
int png_decode(const uint8_t *data, size_t size, struct image *ret, unsigned *ret_orientation,
	struct error *err);

bool jpeg_is(const uint8_t *data, size_t size);
int jpeg_size(const uint8_t *data, size_t size, uint32_t *ret_width, uint32_t *ret_height,
	struct error *err);
int jpeg_decode(const uint8_t *data, size_t size, struct image *ret, unsigned *ret_orientation,
	struct error *err);

/* -EFBIG over IMAGE_SIDE_MAX or IMAGE_PIXELS_MAX, -EBADMSG when a side is 0. */
int image_check_size(const char *format, uint64_t width, uint64_t height, struct error *err);

/* The orientation in a TIFF structure (what follows "Exif\0\0"); 1 when absent or malformed. */
unsigned exif_orientation(const uint8_t *tiff, size_t size);
