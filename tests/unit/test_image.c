/* P9: pictures of every mode decode to what an independent writer meant, damaged ones are errors,
 * and nothing foreign reads or writes out of bounds (run under ASan). */
#include "daemon/image/image.h"
#include "tests/unit/pictures.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct pictures pictures;

static int set_up(void **unused)
{
	pictures_read(&pictures);
	return 0;
}

static int tear_down(void **unused)
{
	pictures_free(&pictures);
	return 0;
}

/* Whether image is picture within its tolerance. */
static bool same_picture(const struct image *image, const struct picture *picture)
{
	if (image->width != picture->width || image->height != picture->height)
		return false;
	for (size_t i = 0; i < picture->rgb_size; i++)
		if (abs(image->rgb[i] - picture->rgb[i]) > picture->tolerance)
			return false;
	return true;
}

static void test_every_mode_decodes_to_what_was_meant(void **unused)
{
	assert_true(pictures.count > 60);
	for (size_t i = 0; i < pictures.count; i++) {
		const struct picture *picture = &pictures.all[i];
		struct error err = {0};
		struct image image;
		uint32_t width = 0, height = 0;
		int r = image_decode(picture->file, picture->file_size, &image, &err);

		if (r < 0 || !same_picture(&image, picture))
			fail_msg("%s: %d %s", picture->name, r, err.text);
		image_fini(&image);
		assert_int_equal(
			image_probe(picture->file, picture->file_size, &width, &height, &err), 0);
		assert_int_equal((uint64_t)width * height * 3, picture->rgb_size);
	}
}

/* A copy of exactly size bytes, so that ASan sees the first byte beyond. */
static int decode_copy(const uint8_t *file, size_t size, struct image *image)
{
	struct error err = {0};
	uint8_t *copy = malloc(size ? size : 1);

	assert_non_null(copy);
	memcpy(copy, file, size);
	int r = image_decode(copy, size, image, &err);
	free(copy);
	if (r < 0) {
		assert_null(image->rgb);
		assert_true(strlen(err.text) > 0 && !strchr(err.text, '\n'));
	}
	return r;
}

static void test_a_cut_picture_is_an_error(void **unused)
{
	for (size_t i = 0; i < pictures.count; i++) {
		const struct picture *picture = &pictures.all[i];

		for (size_t size = 0; size < picture->file_size; size++) {
			struct image image;
			int r = decode_copy(picture->file, size, &image);
			/* Only the checksum of the empty last chunk of a PNG is not missed. */
			bool whole = size + 4 >= picture->file_size && r == 0 &&
				same_picture(&image, picture);
			if (r != -EBADMSG && !whole)
				fail_msg("%s cut at %zu: %d", picture->name, size, r);
			image_fini(&image);
		}
	}
}

static void test_flipped_bytes_never_crash(void **unused)
{
	uint32_t state = 12345;

	for (size_t i = 0; i < pictures.count; i++) {
		const struct picture *picture = &pictures.all[i];
		uint8_t *copy = malloc(picture->file_size);
		assert_non_null(copy);
		for (unsigned round = 0; round < 100; round++) {
			struct image image;
			memcpy(copy, picture->file, picture->file_size);
			for (unsigned k = 0; k < 1 + round % 3; k++) {
				state = state * 1664525 + 1013904223;
				copy[(state >> 8) % picture->file_size] = (uint8_t)(state >> 24);
			}
			decode_copy(copy, picture->file_size, &image);
			image_fini(&image);
		}
		free(copy);
	}
}

static const struct picture *find(const char *name)
{
	const struct picture *picture = pictures_find(&pictures, name);

	assert_non_null(picture);
	return picture;
}

static void test_what_is_no_picture_says_so(void **unused)
{
	static const char text[] = "GIF89a is not for us";
	struct error err = {0};
	struct image image;

	assert_int_equal(image_decode(text, sizeof(text), &image, &err), -EBADMSG);
	assert_string_equal(err.text, "neither PNG nor JPEG");
	assert_int_equal(image_decode(text, 0, &image, &err), -EBADMSG);
}

static void put_be32(uint8_t *at, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < size; i++) {
		crc ^= data[i];
		for (unsigned bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

static void test_sizes_are_refused_before_memory(void **unused)
{
	const struct picture *png = find("rgb8.png"), *jpeg = find("colour.jpg");
	uint8_t *copy = malloc(png->file_size);
	struct error err = {0};
	struct image image;
	uint32_t width, height;

	assert_non_null(copy);
	memcpy(copy, png->file, png->file_size);
	put_be32(copy + 16, 30000);
	put_be32(copy + 20, 30000);
	put_be32(copy + 29, crc32_of(copy + 12, 17));
	assert_int_equal(image_probe(copy, png->file_size, &width, &height, &err), -EFBIG);
	assert_int_equal(image_decode(copy, png->file_size, &image, &err), -EFBIG);
	put_be32(copy + 16, 40000);
	put_be32(copy + 29, crc32_of(copy + 12, 17));
	assert_int_equal(image_decode(copy, png->file_size, &image, &err), -EFBIG);
	free(copy);

	copy = malloc(jpeg->file_size);
	assert_non_null(copy);
	memcpy(copy, jpeg->file, jpeg->file_size);
	for (size_t i = 0; i + 8 < jpeg->file_size; i++)
		if (copy[i] == 0xff && copy[i + 1] == 0xc0)
			memcpy(copy + i + 5, "\xff\x00\xff\x00", 4);
	assert_int_equal(image_decode(copy, jpeg->file_size, &image, &err), -EFBIG);
	free(copy);
}

static void test_square_crops_the_centre(void **unused)
{
	uint8_t pixels[4 * 10 * 3] = {0}, out[4 * 4 * 3];
	struct image image = {.width = 10, .height = 4, .rgb = pixels};

	for (unsigned i = 0; i < 40; i++)
		pixels[3 * i] = (uint8_t)(i % 10);
	image_square(&image, 4, out);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(out[3 * i], 3 + i % 4);
	/* Upright: the same from top to bottom. */
	image = (struct image){.width = 4, .height = 10, .rgb = pixels};
	for (unsigned i = 0; i < 40; i++)
		pixels[3 * i] = (uint8_t)(i / 4);
	image_square(&image, 4, out);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(out[3 * i], 3 + i / 4);
}

/* The definition, in double: the mean of the picture over the output pixel's area. */
static double area_mean(const struct image *image, unsigned c, double left, double top, double side)
{
	double sum = 0.0;

	for (uint32_t y = 0; y < image->height; y++) {
		for (uint32_t x = 0; x < image->width; x++) {
			double w = fmin(x + 1.0, left + side) - fmax(x, left);
			double h = fmin(y + 1.0, top + side) - fmax(y, top);
			if (w > 0.0 && h > 0.0)
				sum += w * h * image->rgb[(y * image->width + x) * 3 + c];
		}
	}
	return sum / (side * side);
}

static void test_down_is_the_area_average(void **unused)
{
	enum { SIDE = 23, SIZE = 8 };
	uint8_t pixels[SIDE * SIDE * 3], out[SIZE * SIZE * 3];
	struct image image = {.width = SIDE, .height = SIDE, .rgb = pixels};
	uint32_t state = 7;

	for (size_t i = 0; i < sizeof(pixels); i++)
		pixels[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
	image_square(&image, SIZE, out);
	for (unsigned i = 0; i < SIZE * SIZE * 3; i++) {
		double step = (double)SIDE / SIZE;
		double mean = area_mean(
			&image, i % 3, i / 3 % SIZE * step, i / 3 / SIZE * step, step);
		assert_true(fabs(out[i] - mean) <= 0.5 + 1e-9);
	}
}

static void test_up_keeps_what_bicubic_keeps(void **unused)
{
	enum { SIDE = 9, SIZE = 27 };
	uint8_t pixels[SIDE * SIDE * 3], out[SIZE * SIZE * 3];
	struct image image = {.width = SIDE, .height = SIDE, .rgb = pixels};

	/* A plane: cubic convolution is exact on it, away from the edge. */
	for (unsigned i = 0; i < SIDE * SIDE * 3; i++)
		pixels[i] = (uint8_t)(12 * (i / 3 % SIDE) + 9 * (i / 3 / SIDE) + 3 * (i % 3));
	image_square(&image, SIZE, out);
	for (unsigned y = 6; y < SIZE - 6; y++) {
		for (unsigned x = 6; x < SIZE - 6; x++) {
			double expected = 12 * ((x + 0.5) / 3 - 0.5) + 9 * ((y + 0.5) / 3 - 0.5);
			assert_true(fabs(out[(y * SIZE + x) * 3] - expected) <= 0.5 + 1e-4);
		}
	}
	/* A constant: exact everywhere. A step: overshoot is clamped, not wrapped. */
	memset(pixels, 255, sizeof(pixels));
	image_square(&image, SIZE, out);
	for (size_t i = 0; i < sizeof(out); i++)
		assert_int_equal(out[i], 255);
	memset(pixels, 0, sizeof(pixels) / 2);
	image_square(&image, SIZE, out);
	assert_int_equal(out[0], 0);
	assert_int_equal(out[sizeof(out) - 1], 255);
}

static void test_one_pixel_fills_a_square(void **unused)
{
	uint8_t pixel[3] = {10, 20, 30}, out[16 * 16 * 3];
	struct image image = {.width = 1, .height = 1, .rgb = pixel};

	image_square(&image, 16, out);
	for (unsigned i = 0; i < 16 * 16 * 3; i++)
		assert_int_equal(out[i], pixel[i % 3]);
}

static void test_encoded_pictures_read_back(void **unused)
{
	uint8_t pixels[13 * 5 * 3];
	struct image image;
	struct error err = {0};
	void *data;
	size_t size;

	for (size_t i = 0; i < sizeof(pixels); i++)
		pixels[i] = (uint8_t)(i * 37);
	assert_int_equal(image_encode_png(pixels, 13, 5, &data, &size, &err), 0);
	assert_int_equal(image_decode(data, size, &image, &err), 0);
	assert_int_equal(image.width, 13);
	assert_int_equal(image.height, 5);
	assert_memory_equal(image.rgb, pixels, sizeof(pixels));
	image_fini(&image);
	free(data);
	assert_int_equal(image_encode_png(pixels, 0, 5, &data, &size, &err), -EBADMSG);
	assert_null(data);
}

static void test_a_grid_rounds_as_diffusers_and_clamps(void **unused)
{
	/* Three 2 x 2 images in two columns: 5 x 5 pixels with white between and in the rest. */
	float planes[3][3][4];
	struct image image;
	struct error err = {0};
	void *data;
	size_t size;

	for (unsigned n = 0; n < 3; n++)
		for (unsigned c = 0; c < 3; c++)
			for (unsigned i = 0; i < 4; i++)
				planes[n][c][i] = (float)(n + 1) * 0.25f - (float)c * 0.125f;
	planes[0][0][0] = 3.0f;
	planes[0][1][0] = -3.0f;
	planes[0][2][0] = NAN;
	planes[0][0][1] = 2.0f * (0.5f / 255.0f) - 1.0f; /* about 0.5 */
	assert_int_equal(image_grid_png(&planes[0][0][0], 3, 2, 2, &data, &size, &err), 0);
	assert_int_equal(image_decode(data, size, &image, &err), 0);
	assert_int_equal(image.width, 5);
	assert_int_equal(image.height, 5);
	assert_int_equal(image.rgb[0], 255);
	assert_int_equal(image.rgb[1], 0);
	assert_int_equal(image.rgb[2], 0);
	assert_in_range(image.rgb[3], 0, 1);
	/* 255 (0.25 / 2 + 0.5) = 159.375; 255 (0.125 / 2 + 0.5) = 143.4375; 127.5 goes to even. */
	assert_int_equal(image.rgb[(5 + 1) * 3], 159);
	assert_int_equal(image.rgb[(5 + 1) * 3 + 1], 143);
	assert_int_equal(image.rgb[(5 + 1) * 3 + 2], 128);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(image.rgb[(i * 5 + 2) * 3], 255);
		assert_int_equal(image.rgb[(2 * 5 + i) * 3], 255);
	}
	/* The third image is below the first; its neighbour is empty. */
	assert_int_equal(image.rgb[(3 * 5) * 3], 223);
	assert_int_equal(image.rgb[(3 * 5 + 3) * 3], 255);
	image_fini(&image);
	free(data);
	assert_int_equal(image_grid_png(&planes[0][0][0], 0, 2, 2, &data, &size, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_mode_decodes_to_what_was_meant),
		cmocka_unit_test(test_a_cut_picture_is_an_error),
		cmocka_unit_test(test_flipped_bytes_never_crash),
		cmocka_unit_test(test_what_is_no_picture_says_so),
		cmocka_unit_test(test_sizes_are_refused_before_memory),
		cmocka_unit_test(test_square_crops_the_centre),
		cmocka_unit_test(test_down_is_the_area_average),
		cmocka_unit_test(test_up_keeps_what_bicubic_keeps),
		cmocka_unit_test(test_one_pixel_fills_a_square),
		cmocka_unit_test(test_encoded_pictures_read_back),
		cmocka_unit_test(test_a_grid_rounds_as_diffusers_and_clamps),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
