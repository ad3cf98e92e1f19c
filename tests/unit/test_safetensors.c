/* P12: the strict reader of safetensors headers. Each rule of the format's reference reader has a
 * header that breaks it and nothing else; plain files go out and come back. */
#include "tests/unit/store_fixture.h"

#include "store/safetensors.h"

static int parse(const char *json, uint64_t data_bytes, struct error *err)
{
	struct st_header header;
	int rc = st_header_parse(json, strlen(json), data_bytes, &header, err);

	if (rc == 0)
		st_header_fini(&header);
	return rc;
}

#define F32(name, shape, begin, end)                                                               \
	"\"" name "\":{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end   \
	"]}"

static void each_rule_has_a_header_that_breaks_it(void **state)
{
	static const struct {
		const char *why; /* part of the message; NULL: it is accepted */
		const char *json;
		uint64_t data_bytes;
	} headers[] = {
		{NULL, "{" F32("a", "2,3", "0", "24") "}", 24},
		{NULL, "{}", 0},
		{NULL, "{" F32("a", "", "0", "4") "}   ", 4}, /* a scalar; padding */
		{NULL, "{" F32("b", "1", "4", "8") "," F32("a", "1", "0", "4") "}", 8},
		{NULL, "{" F32("e", "0,7", "4", "4") "," F32("a", "1", "0", "4") "}", 4},
		{NULL, "{\"__metadata__\":{\"format\":\"pt\"}," F32("a", "1", "0", "4") "}", 4},
		{NULL, "{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2},
		{"begin with '{'", "", 0},
		{"begin with '{'", " {}", 0},
		{"begin with '{'", "[]", 0},
		{"valid JSON", "{", 0},
		{"valid JSON", "{} x", 0},
		{"valid JSON",
			"{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
		{"valid JSON", "{" F32("a", "1", "0", "4") "," F32("a", "1", "4", "8") "}", 8},
		{"valid JSON",
			"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],"
			"\"data_offsets\":[0,4]}}",
			4},
		{"valid JSON", "{" F32("a", "99999999999999999999", "0", "4") "}", 4},
		{"not an object", "{\"a\":[]}", 0},
		{"is not an object", "{\"__metadata__\":3}", 0},
		{"is not a string", "{\"__metadata__\":{\"format\":1}}", 0},
		{"is not a string", "{\"__metadata__\":{\"format\":{}}}", 0},
		{"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
		{"unknown dtype",
			"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
		{"no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4},
		{"dimension 0", "{" F32("a", "-1", "0", "4") "}", 4},
		{"dimension 1", "{" F32("a", "1,1.0", "0", "4") "}", 4},
		{"more than 8", "{" F32("a", "1,1,1,1,1,1,1,1,1", "0", "4") "}", 4},
		{"data_offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4},
		{"data_offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}",
			4},
		{"data_offsets", "{" F32("a", "1", "-4", "0") "}", 4},
		{"data_offsets",
			"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4},
		{"shape overflows", "{" F32("a", "4294967296,4294967296", "0", "4") "}", 4},
		{"shape overflows", "{" F32("a", "4294967296,4294967296,0", "0", "0") "}", 0},
		{"size overflows", "{" F32("a", "9223372036854775807", "0", "4") "}", 4},
		{"whole byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}",
			2},
		{"ends before", "{" F32("a", "1", "4", "0") "}", 4},
		{"need 8", "{" F32("a", "2", "0", "4") "}", 4},
		{"need 4", "{" F32("a", "1", "0", "8") "}", 8},
		{"begins at 4", "{" F32("a", "1", "4", "8") "}", 8}, /* not from 0 */
		{"begins at 8", "{" F32("a", "1", "0", "4") "," F32("b", "1", "8", "12") "}",
			12}, /* a gap */
		{"begins at 0", "{" F32("a", "1", "0", "4") "," F32("b", "1", "0", "4") "}",
			4}, /* overlap */
		{"begins at 2", "{" F32("a", "1", "0", "4") "," F32("b", "1", "2", "6") "}", 6},
		{"the file has 5", "{" F32("a", "1", "0", "4") "}", 5}, /* trailing bytes */
		{"the file has 3", "{" F32("a", "1", "0", "4") "}", 3}, /* cut off */
		{"the file has 1", "{}", 1},
	};

	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
		struct error err = {{0}};
		int rc = parse(headers[i].json, headers[i].data_bytes, &err);

		if (headers[i].why == NULL
				? rc != 0
				: rc != -EBADMSG || strstr(err.text, headers[i].why) == NULL)
			fail_msg("%s: %d %s", headers[i].json, rc, err.text);
	}
}

static void too_long_header_is_refused_before_it_is_read(void **state)
{
	struct st_header header;
	struct error err;

	assert_int_equal(
		st_header_parse("{}", SAFETENSORS_HEADER_MAX + 1, 0, &header, &err), -EBADMSG);
}

static void each_truncation_is_refused(void **state)
{
	const char *json = "{\"__metadata__\":{\"format\":\"pt\"}," F32(
		"a", "2,3", "0", "24") "," F32("b", "1", "24", "28") "}";
	struct st_header header;
	struct error err;

	for (size_t n = 0; n < strlen(json); n++)
		assert_int_equal(st_header_parse(json, n, 28, &header, &err), -EBADMSG);
	assert_int_equal(st_header_parse(json, strlen(json), 28, &header, &err), 0);
	assert_int_equal(header.tensor_count, 2);
	assert_string_equal(st_header_metadata(&header, "format"), "pt");
	assert_null(st_header_metadata(&header, "root"));
	assert_non_null(st_header_find(&header, "b"));
	assert_null(st_header_find(&header, "c"));
	st_header_fini(&header);
}

/* -- plain files -- */

static void export_comes_back(void **state)
{
	struct fixture *fx = *state;
	float *section = calloc(1, fx->table.section_bytes);
	uint64_t length = 0;

	fixture_state(fx, 1, 3);
	PASS(st_write_section(
		fx->run_fd, "a.safetensors", &fx->table, (const float *)fx->block, &fx->err));
	assert_false(fixture_exists(fx->run_fd, ".a.safetensors.partial"));
	PASS(st_read_section(fx->run_fd, "a.safetensors", &fx->table, section, NULL, &fx->err));
	assert_memory_equal(section, fx->block, fx->table.section_bytes);
	/* The reference writer's habit: the header ends at a multiple of 8. */
	assert_int_equal(
		file_read_exact(openat(fx->run_fd, "a.safetensors", O_RDONLY), &length, 8, 0), 0);
	assert_int_equal(length % 8, 0);
	assert_int_equal(fixture_file_bytes(fx->run_fd, "a.safetensors"),
		8 + length + fx->table.tensor_bytes);
	free(section);
}

static void p7_failed_export_leaves_nothing(void **state)
{
	static const char *const plans[] = {"pwrite:1:ENOSPC", "pwrite:2:ENOSPC", "fsync:1:EIO",
		"rename:1:EIO", "open:1:EACCES", "close:1:EIO"};
	struct fixture *fx = *state;

	fixture_state(fx, 1, 3);
	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		assert_true(st_write_section(fx->run_fd, "a.safetensors", &fx->table,
				    (const float *)fx->block, &fx->err) < 0);
		sys_fault_plan(NULL);
		assert_false(fixture_exists(fx->run_fd, "a.safetensors"));
		assert_false(fixture_exists(fx->run_fd, ".a.safetensors.partial"));
	}
}

/* A file of the table of one tensor w [2, 2], from a header and raw data. */
static int read_small(struct fixture *fx, const char *json, const void *data, size_t size,
	const char *(*rename)(const char *, char *), float values[4])
{
	static const uint32_t shape[] = {2, 2};
	uint64_t length = strlen(json);
	struct tensor_table table;
	char file[1024];
	float *section;
	int rc;

	tensor_table_init(&table);
	assert_int_equal(tensor_table_add(&table, "w", 2, shape), 0);
	assert_int_equal(tensor_table_layout(&table, &fx->err), 0);
	memcpy(file, &length, 8);
	memcpy(file + 8, json, length);
	memcpy(file + 8 + length, data, size);
	fixture_write(fx->run_fd, "w.safetensors", file, 8 + length + size);
	section = malloc(table.section_bytes);
	rc = st_read_section(fx->run_fd, "w.safetensors", &table, section, rename, &fx->err);
	memcpy(values, section, 16);
	free(section);
	tensor_table_fini(&table);
	return rc;
}

#define ONE(dtype, shape, end)                                                                     \
	"{\"w\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[0," end "]}}"

static void half_floats_are_widened(void **state)
{
	/* 1, -2, the smallest subnormal, the largest finite; and as bfloat16. */
	static const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x7bff};
	static const uint16_t bfloat[] = {0x3f80, 0xc000, 0x0001, 0x7f7f};
	struct fixture *fx = *state;
	float values[4];

	PASS(read_small(fx, ONE("F16", "2,2", "8"), half, 8, NULL, values));
	assert_true(values[0] == 1.0f && values[1] == -2.0f && values[2] == 0x1p-24f &&
		values[3] == 65504.0f);
	PASS(read_small(fx, ONE("BF16", "2,2", "8"), bfloat, 8, NULL, values));
	assert_true(values[0] == 1.0f && values[1] == -2.0f && values[2] == 0x1p-133f &&
		values[3] == 0x1.fep127f);
}

static const char *rename_old(const char *name, char *buffer)
{
	return strcmp(name, "old") == 0 ? strcpy(buffer, "w") : NULL;
}

static void p9_what_does_not_fit_is_named(void **state)
{
	static const float good[] = {1, 2, 3, 4}, nan[] = {1, 2, NAN, 4};
	struct fixture *fx = *state;
	float values[4];

	assert_int_equal(read_small(fx, ONE("F32", "4", "16"), good, 16, NULL, values), -EINVAL);
	assert_non_null(strstr(fx->err.text, "other shape: w"));
	assert_int_equal(read_small(fx, ONE("I32", "2,2", "16"), good, 16, NULL, values), -EINVAL);
	assert_non_null(strstr(fx->err.text, "not F32, F16 or BF16: w"));
	assert_int_equal(read_small(fx, ONE("F32", "2,2", "16"), nan, 16, NULL, values), -EINVAL);
	assert_non_null(strstr(fx->err.text, "not finite: w"));
	assert_int_equal(read_small(fx, "{" F32("v", "2,2", "0", "16") "}", good, 16, NULL, values),
		-EINVAL);
	assert_non_null(strstr(fx->err.text, "unexpected v, missing w"));
	PASS(read_small(fx, "{" F32("old", "2,2", "0", "16") "}", good, 16, rename_old, values));
	assert_memory_equal(values, good, 16);
	assert_int_equal(read_small(fx, ONE("F32", "2,2", "16"), good, 15, NULL, values), -EBADMSG);
	assert_int_equal(
		st_read_section(fx->run_fd, "none", &fx->table, values, NULL, &fx->err), -ENOENT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_rule_has_a_header_that_breaks_it),
		cmocka_unit_test(too_long_header_is_refused_before_it_is_read),
		cmocka_unit_test(each_truncation_is_refused),
		TEST(export_comes_back),
		TEST(p7_failed_export_leaves_nothing),
		TEST(half_floats_are_widened),
		TEST(p9_what_does_not_fit_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
