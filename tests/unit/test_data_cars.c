/* P2: the drawn cars are a function of seed and index alone, to the byte, and are pictures of cars
 * in four classes. */
#include "daemon/data/data.h"

#include <errno.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct data open_cars(uint32_t size, uint64_t seed, bool labels, double holdout)
{
	struct data_config config = {.source = "cars",
		.image_size = size,
		.labels = labels,
		.holdout_percent = holdout,
		.seed = seed,
		.cache_fd = -1};
	struct error err = {0};
	struct data data = {0};

	if (data_prepare(&config, NULL, NULL, NULL, &err) < 0 ||
		data_open(&config, &data, &err) < 0)
		fail_msg("%s", err.text);
	return data;
}

static struct digest digest_of_images(
	const struct data *data, bool holdout, uint32_t size, unsigned count)
{
	size_t bytes = (size_t)size * size * 3;
	uint8_t *rgb = malloc(bytes);
	struct digest_stream stream;
	int32_t label;

	assert_non_null(rgb);
	digest_begin(&stream);
	for (unsigned i = 0; i < count; i++) {
		data_read(data, holdout, i, rgb, &label);
		digest_add(&stream, rgb, bytes);
		digest_add(&stream, &label, sizeof(label));
	}
	free(rgb);
	return digest_end(&stream);
}

/* These bytes are part of every run's identity: a change here is a change of the format. */
static void test_the_bytes_are_pinned(void **unused)
{
	static const struct {
		uint32_t size;
		const char *hex;
	} rows[] = {
		{32, "097e32163f3adba7699f620aecddce9d919701f17624afcb8dc7ed71130a708c"},
		{65, "9f6e20f1dec210622a1448b155716ba5a102525ca9e1a294cebefbd82dcedf9e"},
	};
	char hex[DIGEST_HEX_SIZE];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct data data = open_cars(rows[i].size, 1, true, 2.0);
		struct digest digest = digest_of_images(&data, false, rows[i].size, 64);
		digest_to_hex(&digest, hex);
		assert_string_equal(hex, rows[i].hex);
		data_close(&data);
	}
}

static void test_seed_index_and_holdout_make_the_image(void **unused)
{
	struct data one = open_cars(16, 1, false, 2.0), two = open_cars(16, 2, false, 2.0);
	struct digest a = digest_of_images(&one, false, 16, 8);
	struct digest b = digest_of_images(&two, false, 16, 8);
	struct digest c = digest_of_images(&one, true, 16, 8);
	struct digest again = digest_of_images(&one, false, 16, 8);

	assert_true(digest_equal(&a, &again));
	assert_false(digest_equal(&a, &b));
	assert_false(digest_equal(&a, &c));
	assert_false(digest_equal(&one.digest, &two.digest));
	assert_true(one.train_count == (uint64_t)1 << 31 && one.holdout_count > 1024);
	data_close(&one);
	data_close(&two);
	struct data none = open_cars(16, 1, false, 0.0);
	assert_int_equal(none.holdout_count, 0);
	data_close(&none);
}

static void test_planes_are_the_pixels(void **unused)
{
	enum { SIZE = 24, PLANE = SIZE * SIZE };
	struct data data = open_cars(SIZE, 7, false, 2.0);
	float planes[3 * PLANE], mirrored[3 * PLANE];
	uint8_t rgb[3 * PLANE];
	int32_t label;

	for (uint64_t index = 0; index < 4; index++) {
		data_read(&data, false, index, rgb, &label);
		assert_int_equal(label, -1);
		data_read_planar(&data, false, index, false, planes, &label);
		data_read_planar(&data, false, index, true, mirrored, &label);
		for (unsigned i = 0; i < 3 * PLANE; i++) {
			unsigned c = i / PLANE, y = i % PLANE / SIZE, x = i % SIZE;
			assert_true(
				planes[i] == (float)rgb[(y * SIZE + x) * 3 + c] / 127.5f - 1.0f);
			assert_true(mirrored[i] == planes[c * PLANE + y * SIZE + SIZE - 1 - x]);
		}
	}
	data_close(&data);
}

static void test_classes_are_even_and_differ(void **unused)
{
	enum { SIZE = 32, COUNT = 2000 };
	struct data data = open_cars(SIZE, 3, true, 2.0);
	uint8_t rgb[SIZE * SIZE * 3];
	unsigned counts[4] = {0};
	int32_t label;

	assert_int_equal(data.class_count, 4);
	for (unsigned i = 0; i < COUNT; i++) {
		data_read(&data, false, i, rgb, &label);
		assert_in_range(label, 0, 3);
		counts[label]++;
	}
	for (unsigned c = 0; c < 4; c++)
		assert_in_range(counts[c], COUNT / 5, COUNT * 3 / 10);
	data_close(&data);
}

/* What makes a car of it: two dark tyres low in the picture, whatever the class and the size. */
static void test_there_are_two_wheels(void **unused)
{
	enum { SIZE = 64 };
	struct data data = open_cars(SIZE, 5, false, 2.0);
	uint8_t rgb[SIZE * SIZE * 3];
	int32_t label;

	for (unsigned i = 0; i < 50; i++) {
		unsigned left = 0, right = 0;
		data_read(&data, false, i, rgb, &label);
		for (unsigned y = SIZE / 2; y < SIZE * 9 / 10; y++) {
			for (unsigned x = 0; x < SIZE; x++) {
				const uint8_t *p = rgb + (y * SIZE + x) * 3;
				if (p[0] < 36 && p[1] < 36 && p[2] < 36)
					*(x < SIZE / 2 ? &left : &right) += 1;
			}
		}
		assert_in_range(left, 20, 400);
		assert_in_range(right, 20, 400);
	}
	data_close(&data);
}

static void test_reading_is_thread_safe(void **unused)
{
	enum { SIZE = 32, COUNT = 64, BYTES = SIZE * SIZE * 3 };
	struct data data = open_cars(SIZE, 9, false, 2.0);
	static uint8_t alone[COUNT][BYTES], together[COUNT][BYTES];
	int32_t label;

	for (unsigned i = 0; i < COUNT; i++)
		data_read(&data, false, i, alone[i], &label);
	omp_set_num_threads(4);
#pragma omp parallel for private(label)
	for (unsigned i = 0; i < COUNT; i++)
		data_read(&data, false, i, together[i], &label);
	assert_memory_equal(alone, together, sizeof(alone));
	data_close(&data);
}

static void test_largest_size_is_drawn_and_larger_is_refused(void **unused)
{
	struct data_config config = {.source = "cars", .image_size = 1025, .cache_fd = -1};
	struct error err;
	struct data data;

	assert_int_equal(data_open(&config, &data, &err), -EINVAL);
	config.image_size = 0;
	assert_int_equal(data_open(&config, &data, &err), -EINVAL);
	config.image_size = 32;
	config.source = "boats";
	assert_int_equal(data_prepare(&config, NULL, NULL, NULL, &err), -EINVAL);
	assert_non_null(strstr(err.text, "boats"));
	data = open_cars(1024, 1, false, 2.0);
	digest_of_images(&data, false, 1024, 2);
	data_close(&data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_bytes_are_pinned),
		cmocka_unit_test(test_seed_index_and_holdout_make_the_image),
		cmocka_unit_test(test_planes_are_the_pixels),
		cmocka_unit_test(test_classes_are_even_and_differ),
		cmocka_unit_test(test_there_are_two_wheels),
		cmocka_unit_test(test_reading_is_thread_safe),
		cmocka_unit_test(test_largest_size_is_drawn_and_larger_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
