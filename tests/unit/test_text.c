/* What a worker says, before anybody is told. */
#include "supervisor/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void no_control_character_is_left(void **unused)
{
	char text[] = "a\nb\x1b[2J\x7f \xc2\x80\xc2\x9f \xc2\xa0\xc3\xa4 \xe2\x82\xac";

	text_flatten(text);
	assert_string_equal(text, "a b [2J       \xc2\xa0\xc3\xa4 \xe2\x82\xac");
}

static void a_text_is_taken_as_one_line_and_cut(void **unused)
{
	AUTO_JSON body = json_pack("{s:s, s:i}", "text", "x\nMAINPID=1", "number", 7);
	char text[32], small[4];

	text_take(text, sizeof(text), body, "text");
	assert_string_equal(text, "x MAINPID=1");
	text_take(small, sizeof(small), body, "text");
	assert_string_equal(small, "x M");
	text_take(text, sizeof(text), body, "number");
	assert_string_equal(text, "");
	AUTO_JSON value = text_take_json(body, "text");

	assert_string_equal(json_string_value(value), "x MAINPID=1");
}

static void a_count_that_is_none_is_0(void **unused)
{
	AUTO_JSON body = json_pack("{s:I, s:I, s:I, s:I, s:f, s:s}", "good", (json_int_t)5, "most",
		(json_int_t)COUNT_MAX, "beyond", (json_int_t)COUNT_MAX + 1, "negative",
		(json_int_t)-1, "real", 1.0, "text", "5");

	assert_int_equal(count_take(body, "good"), 5);
	assert_true(count_take(body, "most") == (uint64_t)COUNT_MAX);
	assert_int_equal(count_take(body, "beyond"), 0);
	assert_int_equal(count_take(body, "negative"), 0);
	assert_int_equal(count_take(body, "real"), 0);
	assert_int_equal(count_take(body, "text"), 0);
	assert_int_equal(count_take(body, "missing"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_control_character_is_left),
		cmocka_unit_test(a_text_is_taken_as_one_line_and_cut),
		cmocka_unit_test(a_count_that_is_none_is_0),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
