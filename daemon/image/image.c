/* Bytes to an upright 8-bit RGB picture: picks the decoder by magic and applies the orientation.
 * Sizes are checked before memory is asked for; a damaged picture is an error, never half of one.
 */
#include "daemon/image/image.h"
#include "base/panic.h"
#include "daemon/image/decode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void image_fini(struct image *image)
{
	if (!image)
		return;
	free(image->rgb);
	*image = (struct image){0};
}

int image_check_size(const char *format, uint64_t width, uint64_t height, struct error *err)
{
	if (width == 0 || height == 0)
		return error_set(err, -EBADMSG, "%s: a side of 0 pixels", format);
	if (width > IMAGE_SIDE_MAX || height > IMAGE_SIDE_MAX || width * height > IMAGE_PIXELS_MAX)
		return error_set(err, -EFBIG, "%s: %llu x %llu pixels are over the limit", format,
			(unsigned long long)width, (unsigned long long)height);
	return 0;
}

/* Orientations 2..8 of EXIF: 5..8 swap the axes; the others mirror them. */
static int orient(struct image *image, unsigned orientation, struct error *err)
{
	bool swap = orientation >= 5;
	bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
	bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
	uint32_t width = swap ? image->height : image->width;
	uint32_t height = swap ? image->width : image->height;
	uint8_t *rgb = malloc((size_t)width * height * 3);

	if (!rgb)
		return error_set(err, -ENOMEM, "no memory for a picture of %u x %u", width, height);
	for (uint32_t y = 0; y < height; y++) {
		for (uint32_t x = 0; x < width; x++) {
			uint32_t from_x = swap ? y : x, from_y = swap ? x : y;
			if (flip_x)
				from_x = image->width - 1 - from_x;
			if (flip_y)
				from_y = image->height - 1 - from_y;
			memcpy(rgb + ((size_t)y * width + x) * 3,
				image->rgb + ((size_t)from_y * image->width + from_x) * 3, 3);
		}
	}
	free(image->rgb);
	*image = (struct image){.width = width, .height = height, .rgb = rgb};
	return 0;
}

int image_decode(const void *data, size_t size, struct image *ret, struct error *err)
{
	unsigned orientation = 1;
	int r;

	*ret = (struct image){0};
	if (png_is(data, size))
		r = png_decode(data, size, ret, &orientation, err);
	else if (jpeg_is(data, size))
		r = jpeg_decode(data, size, ret, &orientation, err);
	else
		r = error_set(err, -EBADMSG, "neither PNG nor JPEG");
	if (r == 0 && orientation != 1)
		r = orient(ret, orientation, err);
	if (r < 0)
		image_fini(ret);
	return r;
}

int image_probe(
	const void *data, size_t size, uint32_t *ret_width, uint32_t *ret_height, struct error *err)
{
	if (png_is(data, size))
		return png_size(data, size, ret_width, ret_height, err);
	if (jpeg_is(data, size))
		return jpeg_size(data, size, ret_width, ret_height, err);
	return error_set(err, -EBADMSG, "neither PNG nor JPEG");
}
