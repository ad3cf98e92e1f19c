/* The order of tensors in a section: the layout of every checkpoint and of the state memory. */
#include "base/tensor_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static void add(struct tensor_table *table, const char *name, uint32_t rows, uint32_t columns)
{
	assert_int_equal(tensor_table_add(table, name, 2, (uint32_t[]){rows, columns}), 0);
}

static void test_whole_lines_first_then_by_name(void **unused)
{
	static const char *const names[] = {"b.weight", "c", "a.bias", "a_last"};
	static const uint64_t offsets[] = {0, 64, 320, 332};
	struct tensor_table table;
	struct error err;

	tensor_table_init(&table);
	add(&table, "a_last", 1, 5);
	add(&table, "c", 8, 8);
	add(&table, "a.bias", 1, 3);
	add(&table, "b.weight", 4, 4);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	for (uint32_t i = 0; i < 4; i++) {
		assert_string_equal(table.specs[i].name, names[i]);
		assert_true(table.specs[i].offset == offsets[i]);
		assert_ptr_equal(tensor_table_find(&table, names[i]), &table.specs[i]);
	}
	assert_null(tensor_table_find(&table, "a"));
	assert_true(table.param_count == 16 + 64 + 3 + 5);
	assert_true(table.tensor_bytes == 352 && table.section_bytes == SECTION_ALIGN);
	tensor_table_fini(&table);
	tensor_table_fini(&table);
}

static void test_sections_end_at_a_mebibyte(void **unused)
{
	struct tensor_table table;
	struct error err;

	tensor_table_init(&table);
	add(&table, "a", 512, 512);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	assert_true(table.section_bytes == SECTION_ALIGN);
	tensor_table_fini(&table);
	tensor_table_init(&table);
	add(&table, "a", 512, 512);
	add(&table, "b", 1, 1);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	assert_true(table.section_bytes == 2 * SECTION_ALIGN);
	tensor_table_fini(&table);
}

static void test_p9_bad_tensors_are_refused(void **unused)
{
	char long_name[TENSOR_NAME_MAX + 1];
	struct tensor_table table;
	struct error err;
	uint32_t shape[5] = {2, 2, 2, 2, 2};

	memset(long_name, 'n', sizeof(long_name));
	long_name[TENSOR_NAME_MAX] = 0;
	tensor_table_init(&table);
	assert_int_equal(tensor_table_layout(&table, &err), -EINVAL);
	assert_int_equal(tensor_table_add(&table, "", 1, shape), -EINVAL);
	assert_int_equal(tensor_table_add(&table, long_name, 1, shape), -EINVAL);
	long_name[TENSOR_NAME_MAX - 1] = 0;
	assert_int_equal(tensor_table_add(&table, long_name, 1, shape), 0);
	assert_int_equal(tensor_table_add(&table, "a", 5, shape), -EINVAL);
	shape[1] = 0;
	assert_int_equal(tensor_table_add(&table, "a", 2, shape), -EINVAL);
	for (int i = 0; i < 4; i++)
		shape[i] = UINT32_MAX;
	assert_int_equal(tensor_table_add(&table, "a", 4, shape), -EOVERFLOW);
	shape[0] = 1;
	assert_int_equal(tensor_table_add(&table, "twin", 1, shape), 0);
	assert_int_equal(tensor_table_add(&table, "twin", 1, shape), 0);
	assert_int_equal(tensor_table_layout(&table, &err), -EINVAL);
	assert_non_null(strstr(err.text, "twin"));
	tensor_table_fini(&table);
}

static void test_there_is_a_largest_table(void **unused)
{
	struct tensor_table table;
	struct error err;
	char name[32];

	tensor_table_init(&table);
	for (int i = 0; i < TENSOR_COUNT_MAX; i++) {
		snprintf(name, sizeof(name), "t%d", i);
		add(&table, name, 1, 1 + (uint32_t)i % 32);
	}
	assert_int_equal(tensor_table_add(&table, "more", 1, (uint32_t[]){1}), -EOVERFLOW);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	assert_non_null(tensor_table_find(&table, "t4095"));
	for (uint32_t i = 1; i < table.count; i++) /* no gaps, no overlap */
		assert_true(table.specs[i].offset ==
			table.specs[i - 1].offset + table.specs[i - 1].elem_count * 4);
	tensor_table_fini(&table);
}

static struct digest digest_of_two(const char *name, uint32_t rows, uint32_t columns, bool swapped)
{
	struct tensor_table table;
	struct error err;

	tensor_table_init(&table);
	if (swapped)
		add(&table, name, rows, columns);
	add(&table, "first", 16, 16);
	if (!swapped)
		add(&table, name, rows, columns);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	struct digest digest = tensor_table_digest(&table);
	tensor_table_fini(&table);
	return digest;
}

static void test_the_digest_is_of_the_layout(void **unused)
{
	struct digest a = digest_of_two("second", 4, 8, false);
	struct digest same = digest_of_two("second", 4, 8, true);
	struct digest turned = digest_of_two("second", 8, 4, false);
	struct digest renamed = digest_of_two("secons", 4, 8, false);

	assert_true(digest_equal(&a, &same)); /* the order of adding does not matter */
	assert_false(digest_equal(&a, &turned));
	assert_false(digest_equal(&a, &renamed));
}

static void test_sections_have_names(void **unused)
{
	assert_string_equal(section_prefix(SECTION_WEIGHTS), "unet");
	assert_string_equal(section_prefix(SECTION_EXP_AVG_SQ), "exp_avg_sq");
	assert_string_equal(section_pad_name(SECTION_WEIGHTS), "weights");
	assert_string_equal(section_pad_name(SECTION_EMA), "ema");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_whole_lines_first_then_by_name),
		cmocka_unit_test(test_sections_end_at_a_mebibyte),
		cmocka_unit_test(test_p9_bad_tensors_are_refused),
		cmocka_unit_test(test_there_is_a_largest_table),
		cmocka_unit_test(test_the_digest_is_of_the_layout),
		cmocka_unit_test(test_sections_have_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
