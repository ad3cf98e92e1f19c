/* The sequence of positions and the passes that move values, in both forms: where a value lies,
 * what goes in comes out, and the zero invariant holds after every writer, with fewer images than
 * the plan has and over stale memory; sums over positions; thread counts (P2). */
#include "tests/unit/ops_check.h"

#include "daemon/ops/sums.h"

struct shape {
	uint32_t batch, n, height, width, channels;
};

static const struct shape shapes[] = {
	{1, 1, 1, 1, 1},
	{3, 2, 4, 4, 3},
	{2, 2, 6, 4, 17},
	{3, 2, 3, 5, 70},
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

/* Blocks of channels one after the other, each a whole sequence of positions. */
static void test_addresses(void **state)
{
	const struct form *form = *state;
	struct layout layout;
	assert_int_equal(layout_init(&layout, 2, 4, 4, false), 0);
	struct field field = field_new(form, &layout, 70);
	const struct tensor *tensor = &field.tensor;
	size_t positions = 6 + 64 + 6, block = form->block ? form->block : 80;
	size_t elem = form->elem == ELEM_BF16 ? 2 : 4;
	assert_int_equal(tensor->width, form->block ? 96 : 80);
	assert_int_equal(tensor_bytes(tensor), positions * tensor->width * elem);
	assert_int_equal(tensor_step(tensor), block * elem);
	for (uint32_t c = 0; c < tensor->width; c++)
		for (ptrdiff_t p = -6; p < 70; p++) {
			size_t at = c / block * block * positions + (size_t)(p + 6) * block +
				c % block;
			assert_ptr_equal(
				tensor_at(tensor, c, p), (uint8_t *)field.memory + at * elem);
		}
	field_free(&field);
	layout_fini(&layout);
}

static void round_trip(const struct form *form, struct shape s)
{
	struct layout layout;
	assert_int_equal(layout_init(&layout, s.batch, s.height, s.width, false), 0);
	size_t pixels = (size_t)s.height * s.width, count = s.n * s.channels * pixels;
	double *values = check_doubles(count);
	float *floats = check_floats(count), *gathered = check_floats(count);
	check_fill(1, ELEM_F32, NULL, floats, count);
	for (size_t i = 0; i < count; i++)
		values[i] = check_rounded((double)floats[i], form->elem);
	struct field field = field_new(form, &layout, s.channels);
	tensor_scatter_image(s.n, floats, &field.tensor);
	assert_clean(&field, s.n);
	double *back = field_get(&field, s.n);
	tensor_gather_image(s.n, &field.tensor, gathered);
	for (size_t i = 0; i < count; i++)
		assert_true(back[i] == values[i] && (double)gathered[i] == values[i]);
	/* fewer images over the same memory: the others become pads */
	tensor_scatter_image(1, floats, &field.tensor);
	assert_clean(&field, 1);
	free(back);
	free(values);
	free(floats);
	free(gathered);
	field_free(&field);
	layout_fini(&layout);
}

static void test_image_round_trip(void **state)
{
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
		round_trip(*state, shapes[i]);
}

/* One value that is not zero, at a place of each kind. */
static void test_any_dirt_is_seen(void **state)
{
	const struct form *form = *state;
	struct layout layout;
	double zeros[2 * 70 * 16] = {0};
	assert_int_equal(layout_init(&layout, 3, 4, 4, false), 0);
	struct field field = field_new(form, &layout, 70);
	const struct {
		uint32_t column;
		ptrdiff_t position;
		bool clean;
	} places[] = {
		{0, 0, true},    /* a pixel */
		{69, 25, true},  /* of the last channel and of the second image */
		{70, 0, false},  /* a column behind the channels */
		{0, 4, false},   /* the pad of a row */
		{33, 24, false}, /* the row of pads below the first image */
		{40, -6, false}, /* the head */
		{0, 50, false},  /* the image that is not in use */
		{69, 101, false} /* the tail */
	};
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		field_set(&field, 2, zeros);
		assert_clean(&field, 2);
		*(uint8_t *)tensor_at(&field.tensor, places[i].column, places[i].position) = 1;
		assert_true(tensor_is_clean(&field.tensor, 2) == places[i].clean);
	}
	field_free(&field);
	layout_fini(&layout);
}

/* The value of channel c at (y, x) of an image, zero outside. */
static double pixel_of(const float *planes, int channels, int image, int c, int y, int x)
{
	if (y < 0 || y >= 3 || x < 0 || x >= 4)
		return 0.0;
	return (double)planes[((image * channels + c) * 3 + y) * 4 + x];
}

/* Patches, and what rounding them leaves: together they are the pixel to 16 bits. */
static void test_patches(void **state)
{
	const struct form *form = *state;
	struct layout layout;
	float planes[2 * 4 * 3 * 4];
	assert_int_equal(layout_init(&layout, 3, 3, 4, false), 0);
	check_fill(1, ELEM_F32, NULL, planes, sizeof(planes) / sizeof(*planes));
	struct field patches = field_new(form, &layout, 9 * 4);
	struct field alone = field_new(form, &layout, 9 * 4);
	struct field rest = field_new(form, &layout, 9 * 4);
	tensor_scatter_patches(2, planes, 4, &alone.tensor, NULL);
	tensor_scatter_patches(2, planes, 4, &patches.tensor, &rest.tensor);
	assert_clean(&alone, 2);
	assert_clean(&patches, 2);
	assert_clean(&rest, 2);
	assert_true(field_bits(0, &alone) == field_bits(0, &patches));
	for (int at = 0; at < 2 * 3 * 4 * 36; at++) {
		int i = at % 36, x = at / 36 % 4, y = at / 144 % 3, image = at / 432;
		size_t position = layout_row(&layout, (uint32_t)image, (uint32_t)y) + (size_t)x;
		double expected = pixel_of(
			planes, 4, image, i / 9, y + i % 9 / 3 - 1, x + i % 3 - 1);
		double first = field_value(&patches, (uint32_t)i, position);
		double second = field_value(&rest, (uint32_t)i, position);
		assert_true(first == check_rounded(expected, form->elem));
		assert_true(fabs(first + second - expected) <= 0x1p-16 * fabs(expected));
	}
	field_free(&patches);
	field_free(&alone);
	field_free(&rest);
	layout_fini(&layout);
}

/* What the passes below share: a batch of 3 of which 2 are used. */
struct moves {
	struct layout large, small, tokens;
	struct field field, back, dense, phases[4];
	const struct tensor *phase_tensors[4];
	double *values;
	size_t count;
};

static void moves_init(struct moves *moves, const struct form *form, uint32_t channels)
{
	assert_int_equal(layout_init(&moves->large, 3, 6, 4, false), 0);
	assert_int_equal(layout_init(&moves->small, 3, 3, 2, false), 0);
	assert_int_equal(layout_init(&moves->tokens, 3, 6, 4, true), 0);
	assert_int_equal(moves->tokens.image_stride, 24);
	moves->count = (size_t)2 * channels * 24;
	moves->values = check_doubles(moves->count);
	check_fill(3, form->elem, moves->values, NULL, moves->count);
	moves->field = field_new(form, &moves->large, channels);
	moves->back = field_new(form, &moves->large, channels);
	moves->dense = field_new(form, &moves->tokens, channels);
	for (int i = 0; i < 4; i++) {
		moves->phases[i] = field_new(form, &moves->small, channels);
		moves->phase_tensors[i] = &moves->phases[i].tensor;
	}
	field_set(&moves->field, 2, moves->values);
}

static void moves_fini(struct moves *moves)
{
	field_free(&moves->field);
	field_free(&moves->back);
	field_free(&moves->dense);
	for (int i = 0; i < 4; i++)
		field_free(&moves->phases[i]);
	free(moves->values);
	layout_fini(&moves->large);
	layout_fini(&moves->small);
	layout_fini(&moves->tokens);
}

static void assert_back(const struct moves *moves, double factor)
{
	assert_clean(&moves->back, 2);
	double *values = field_get(&moves->back, 2);
	for (size_t i = 0; i < moves->count; i++)
		assert_true(values[i] == factor * moves->values[i]);
	free(values);
}

static void test_phases(void **state)
{
	struct moves moves;
	moves_init(&moves, *state, 37);
	tensor_split_phases(2, &moves.field.tensor, moves.phase_tensors);
	for (uint32_t i = 0; i < 4; i++) {
		assert_clean(&moves.phases[i], 2);
		double *phase = field_get(&moves.phases[i], 2);
		for (uint32_t at = 0; at < moves.count / 4; at++) {
			uint32_t y = 2 * (at / 2 % 3) + i / 2, x = 2 * (at % 2) + i % 2;
			assert_true(phase[at] == moves.values[(at / 6 * 6 + y) * 4 + x]);
		}
		free(phase);
	}
	tensor_merge_phases(2, moves.phase_tensors, &moves.back.tensor, false);
	assert_back(&moves, 1.0);
	tensor_merge_phases(2, moves.phase_tensors, &moves.back.tensor, true);
	assert_back(&moves, 2.0);
	moves_fini(&moves);
}

static void test_tokens(void **state)
{
	struct moves moves;
	moves_init(&moves, *state, 37);
	tensor_gather_tokens(2, &moves.field.tensor, &moves.dense.tensor);
	assert_clean(&moves.dense, 2);
	for (uint32_t at = 0; at < moves.count; at++)
		assert_true(field_value(&moves.dense, at / 24 % 37, at / 24 / 37 * 24 + at % 24) ==
			moves.values[at]);
	tensor_scatter_tokens(2, &moves.dense.tensor, NULL, &moves.back.tensor);
	assert_back(&moves, 1.0);
	field_spoil(&moves.back);
	tensor_scatter_tokens(2, &moves.dense.tensor, &moves.field.tensor, &moves.back.tensor);
	assert_back(&moves, 2.0);
	moves_fini(&moves);
}

static uint64_t run_all(void *context)
{
	struct moves *moves = context;
	uint64_t bits = 0;
	tensor_split_phases(2, &moves->field.tensor, moves->phase_tensors);
	tensor_merge_phases(2, moves->phase_tensors, &moves->back.tensor, false);
	tensor_merge_phases(2, moves->phase_tensors, &moves->back.tensor, true);
	bits = field_bits(bits, &moves->back);
	tensor_gather_tokens(2, &moves->field.tensor, &moves->dense.tensor);
	tensor_scatter_tokens(2, &moves->dense.tensor, &moves->field.tensor, &moves->back.tensor);
	return field_bits(bits, &moves->back);
}

static void test_p2_threads(void **state)
{
	struct moves moves;
	moves_init(&moves, *state, 70);
	check_threads("moves", run_all, &moves);
	moves_fini(&moves);
}

/* Of an image's positions, and of the images. */
static void test_sums(void **state)
{
	const struct form *form = *state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		struct shape s = shapes[i];
		struct layout layout;
		assert_int_equal(layout_init(&layout, s.batch, s.height, s.width, false), 0);
		size_t pixels = (size_t)s.height * s.width, rows = s.n * s.channels;
		double *values = check_doubles(rows * pixels);
		float *sums = check_floats(rows), *totals = check_floats(s.channels);
		check_fill(i, form->elem, values, NULL, rows * pixels);
		struct field field = field_new(form, &layout, s.channels);
		field_set(&field, s.n, values);
		sums_per_image(s.n, &field.tensor, sums);
		sums_over_rows(s.n, sums, s.channels, s.channels, totals, false);
		sums_over_rows(s.n, sums, s.channels, s.channels, totals, true);
		for (uint32_t c = 0; c < s.channels; c++) {
			double total = 0.0;
			for (uint32_t image = 0; image < s.n; image++) {
				size_t row = (size_t)image * s.channels + c;
				double sum = 0.0;
				for (size_t p = 0; p < pixels; p++)
					sum += values[row * pixels + p];
				assert_near("sum", row, (double)sums[row], sum, 2e-6);
				total += sum;
			}
			assert_near("twice", c, (double)totals[c], 2.0 * total, 1e-5);
		}
		free(values);
		free(sums);
		free(totals);
		field_free(&field);
		layout_fini(&layout);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_positions),
		IN_EACH_FORM(test_addresses),
		IN_EACH_FORM(test_image_round_trip),
		IN_EACH_FORM(test_any_dirt_is_seen),
		IN_EACH_FORM(test_patches),
		IN_EACH_FORM(test_phases),
		IN_EACH_FORM(test_tokens),
		IN_EACH_FORM(test_p2_threads),
		IN_EACH_FORM(test_sums),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
