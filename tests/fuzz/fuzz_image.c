/* Pictures of up to a megapixel; larger ones cost time and test the same. */
#include "daemon/image/image.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

#define PIXELS_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t width, height;
	struct image image;
	struct error err;

	if (image_probe(data, size, &width, &height, &err) < 0)
		return 0;
	CHECK(width > 0 && height > 0 && width <= IMAGE_SIDE_MAX && height <= IMAGE_SIDE_MAX);
	if ((uint64_t)width * height > PIXELS_MAX || image_decode(data, size, &image, &err) < 0)
		return 0;
	CHECK((image.width == width && image.height == height) ||
		(image.width == height && image.height == width));
	uint8_t *square = malloc(16 * 16 * 3);

	CHECK(square);
	image_square(&image, 16, square);
	free(square);
	image_fini(&image);
	return 0;
}
