/* The preview: n images side by side as one PNG. */
#include "daemon/image/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GAP 1 /* pixels of white between images */

/* diffusers: round(255 clamp(x / 2 + 1/2, 0, 1)), halves to even as numpy; NaN becomes black. */
static uint8_t to_byte(float value)
{
	float scaled = (value * 0.5f + 0.5f) * 255.0f;

	if (!(scaled > 0.0f))
		return 0;
	if (scaled >= 255.0f)
		return 255;
	unsigned whole = (unsigned)scaled;
	float rest = scaled - (float)whole;
	if (rest > 0.5f || (rest == 0.5f && whole % 2 == 1))
		whole++;
	return (uint8_t)whole;
}

int image_grid_png(const float *planes, uint32_t n, uint32_t size, uint32_t columns,
	void **ret_data, size_t *ret_size, struct error *err)
{
	*ret_data = NULL;
	*ret_size = 0;
	if (n == 0 || size == 0 || columns == 0 || size > IMAGE_SIDE_MAX || n > IMAGE_SIDE_MAX)
		return error_set(err, -EINVAL, "a grid of %u images of %u pixels in %u columns", n,
			size, columns);
	if (columns > n)
		columns = n;
	uint64_t pitch = (uint64_t)size + GAP, rows = ((uint64_t)n + columns - 1) / columns;
	uint64_t width = columns * pitch - GAP, height = rows * pitch - GAP;
	if (width > IMAGE_SIDE_MAX || height > IMAGE_SIDE_MAX || width * height > IMAGE_PIXELS_MAX)
		return error_set(err, -EFBIG, "a grid of %llu x %llu pixels is over the limit",
			(unsigned long long)width, (unsigned long long)height);

	uint8_t *rgb = malloc(width * height * 3);
	if (!rgb)
		return error_set(err, -ENOMEM, "no memory for a grid of %u images", n);
	memset(rgb, 255, width * height * 3);
	size_t plane = (size_t)size * size;
	for (uint32_t i = 0; i < n; i++) {
		const float *image = planes + i * 3 * plane;
		uint8_t *corner = rgb + (i / columns * pitch * width + i % columns * pitch) * 3;
		for (size_t y = 0; y < size; y++)
			for (size_t x = 0; x < size; x++)
				for (size_t c = 0; c < 3; c++)
					corner[(y * width + x) * 3 + c] = to_byte(
						image[c * plane + y * size + x]);
	}
	int r = image_encode_png(rgb, (uint32_t)width, (uint32_t)height, ret_data, ret_size, err);
	free(rgb);
	return r;
}
