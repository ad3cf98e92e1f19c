/* The sequence of positions: what goes in comes out, and the zero invariant holds after every
 * writer, with fewer images than the plan has and over stale memory. */
#include "tests/unit/ops_check.h"

struct shape {
	uint32_t batch, n, height, width, channels;
};

static const struct shape shapes[] = {
	{1, 1, 1, 1, 1},
	{3, 2, 4, 4, 3},
	{2, 2, 6, 4, 17},
	{9, 5, 8, 8, 16},
};

static void test_positions(void **state)
{
	struct layout layout;
	assert_int_equal(layout_init(&layout, 2, 2, 3, false), 0);
	assert_int_equal(layout.pitch, 4);
	assert_int_equal(layout.image_stride, 12);
	assert_int_equal(layout.head, 5);
	assert_int_equal(layout.padded, 32);
	static const int expected[24] = {
		0, 0, 0, -1, 0, 0, 0, -1, -1, -1, -1, -1, 1, 1, 1, -1, 1, 1, 1, -1, -1, -1, -1, -1};
	for (uint32_t p = 0; p < 32; p++)
		assert_int_equal(layout.image_of[p], p < 24 ? expected[p] : -1);
	layout_fini(&layout);
	assert_true(layout_init(&layout, 1u << 20, 1024, 1024, false) < 0);
}

static void test_image_round_trip(void **state)
{
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		struct shape s = shapes[i];
		struct layout layout;
		assert_int_equal(layout_init(&layout, s.batch, s.height, s.width, false), 0);
		size_t count = (size_t)s.n * s.channels * s.height * s.width;
		double *values = check_doubles(count);
		check_fill(i, values, NULL, count);
		struct field field = field_new(&layout, s.channels);
		field_set(&field, s.n, values);
		assert_clean(&field, s.n);
		float *back = field_get(&field, s.n);
		assert_all_near("round trip", back, values, count, 0.0);
		/* fewer images over the same memory: the others become pads */
		field_set(&field, 1, values);
		assert_clean(&field, 1);
		field.data[(size_t)layout.width * field.width] = 1.0f;
		assert_false(
			layout_pads_are_zero(&layout, 1, field.data, field.channels, field.width));
		free(back);
		free(values);
		field_free(&field);
		layout_fini(&layout);
	}
}

static void test_patches(void **state)
{
	struct shape s = {2, 2, 3, 4, 2};
	struct layout layout;
	float planes[2 * 2 * 3 * 4];
	assert_int_equal(layout_init(&layout, s.batch, s.height, s.width, false), 0);
	check_fill(1, NULL, planes, sizeof(planes) / sizeof(*planes));
	struct field field = field_new(&layout, 9 * s.channels);
	layout_scatter_patches(&layout, s.n, planes, s.channels, field.data, field.width);
	assert_clean(&field, s.n);
	for (uint32_t image = 0; image < s.n; image++)
		for (int y = 0; y < 3; y++)
			for (int x = 0; x < 4; x++)
				for (int i = 0; i < 18; i++) {
					int in_y = y + i % 9 / 3 - 1, in_x = x + i % 3 - 1;
					bool inside = in_y >= 0 && in_y < 3 && in_x >= 0 &&
						in_x < 4;
					int plane = (int)image * 2 + i / 9;
					float expected = inside
						? planes[(plane * 3 + in_y) * 4 + in_x]
						: 0.0f;
					size_t row = layout_row(&layout, image, (uint32_t)y) +
						(size_t)x;
					assert_true(field.data[row * field.width + (size_t)i] ==
						expected);
				}
	field_free(&field);
	layout_fini(&layout);
}

static void test_phases(void **state)
{
	struct layout large, small;
	assert_int_equal(layout_init(&large, 3, 6, 4, false), 0);
	assert_int_equal(layout_init(&small, 3, 3, 2, false), 0);
	size_t count = 2 * 5 * 6 * 4;
	double *values = check_doubles(count);
	check_fill(3, values, NULL, count);
	struct field field = field_new(&large, 5), back = field_new(&large, 5), phases[4];
	float *pointers[4];
	for (int i = 0; i < 4; i++) {
		phases[i] = field_new(&small, 5);
		pointers[i] = phases[i].data;
	}
	field_set(&field, 2, values);
	layout_split_phases(&large, &small, 2, field.data, pointers, field.width);
	float *first = field_get(&phases[3], 2);
	assert_true((double)first[0] == values[4 + 1]); /* image 0, channel 0, (1, 1) */
	for (int i = 0; i < 4; i++)
		assert_clean(&phases[i], 2);
	const float *sources[4] = {pointers[0], pointers[1], pointers[2], pointers[3]};
	layout_merge_phases(&large, &small, 2, sources, back.data, back.width, false);
	assert_clean(&back, 2);
	layout_merge_phases(&large, &small, 2, sources, back.data, back.width, true);
	assert_clean(&back, 2);
	float *twice = field_get(&back, 2);
	for (size_t i = 0; i < count; i++)
		assert_true((double)twice[i] == 2.0 * values[i]);
	for (int i = 0; i < 4; i++)
		field_free(&phases[i]);
	free(first);
	free(twice);
	free(values);
	field_free(&field);
	field_free(&back);
	layout_fini(&large);
	layout_fini(&small);
}

static void test_tokens(void **state)
{
	struct layout positions, tokens;
	assert_int_equal(layout_init(&positions, 3, 5, 3, false), 0);
	assert_int_equal(layout_init(&tokens, 3, 5, 3, true), 0);
	assert_int_equal(tokens.image_stride, 15);
	size_t count = 2 * 4 * 5 * 3;
	double *values = check_doubles(count);
	check_fill(4, values, NULL, count);
	struct field field = field_new(&positions, 4), dense = field_new(&tokens, 4);
	struct field back = field_new(&positions, 4);
	field_set(&field, 2, values);
	layout_gather_tokens(&positions, &tokens, 2, field.data, dense.data, dense.width);
	assert_clean(&dense, 2);
	layout_scatter_tokens(
		&positions, &tokens, 2, dense.data, field.data, back.data, back.width);
	assert_clean(&back, 2);
	float *twice = field_get(&back, 2);
	for (size_t i = 0; i < count; i++)
		assert_true((double)twice[i] == 2.0 * values[i]);
	free(twice);
	free(values);
	field_free(&field);
	field_free(&dense);
	field_free(&back);
	layout_fini(&positions);
	layout_fini(&tokens);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_positions),
		cmocka_unit_test(test_image_round_trip),
		cmocka_unit_test(test_patches),
		cmocka_unit_test(test_phases),
		cmocka_unit_test(test_tokens),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
