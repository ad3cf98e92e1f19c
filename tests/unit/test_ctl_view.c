/* P11: what ckptctl draws is what it was told, harmless on any terminal of any size. */
#include "ctl/text.h"
#include "ctl/view.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assert_clean(const char *text, const char *want)
{
	char out[64];

	text_clean(text, out, sizeof(out));
	assert_string_equal(out, want);
}

static void test_p10_text_cannot_command_a_terminal(void **unused)
{
	assert_clean("plain", "plain");
	assert_clean("a\033[2Jb\007c", "a?[2Jb?c");
	assert_clean("two\nlines\tand\rmore", "two lines and?more");
	assert_clean(
		"\xc3\xa4\xe2\x82\xac\xf0\x9f\x9a\x97", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x9a\x97");
	assert_clean("\xc2\x9b"
		     "31m",
		"?31m"); /* C1: a control sequence in one character */
	assert_clean("\xff\xfe\x80x", "???x");
	assert_clean("\xc3", "?");
	assert_clean("\xe2\x82", "??");
	assert_clean("\x7f", "?");
	/* Cut at a character, never inside one. */
	char small[4];
	text_clean("ab\xe2\x82\xac", small, sizeof(small));
	assert_string_equal(small, "ab");
}

static void test_numbers_for_people(void **unused)
{
	char out[TEXT_NUMBER_SIZE];

	assert_string_equal(text_count(0, out), "0");
	assert_string_equal(text_count(999, out), "999");
	assert_string_equal(text_count(1000, out), "1,000");
	assert_string_equal(text_count(UINT64_MAX, out), "18,446,744,073,709,551,615");
	assert_string_equal(text_bytes(512, out), "512 bytes");
	assert_string_equal(text_bytes(1536, out), "1.5 KiB");
	assert_string_equal(text_bytes((uint64_t)300 << 20, out), "300 MiB");
	assert_string_equal(text_real(NAN, out), "-");
	assert_string_equal(text_real(0.041234, out), "0.04123");
	assert_string_equal(text_seconds(NAN, out), "-");
	assert_string_equal(text_seconds(-1.0, out), "-");
	assert_string_equal(text_seconds(1e300, out), "-");
	assert_int_equal(text_width("a\xc3\xa4\xe2\x96\x88"), 3);
	assert_int_equal(text_prefix("a\xc3\xa4\xe2\x96\x88", 2), 3);
	assert_int_equal(text_prefix("abc", 9), 3);
}

static void test_tables_align(void **unused)
{
	static const char *const heads[] = {"name", ">number", "rest"};
	struct table table;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	table_init(&table, 3, heads);
	const char *const cells[] = {"a", "1", "x", "l\xc3\xa4nger", "12345678", "y\033"};
	for (size_t i = 0; i < 6; i++)
		table_add(&table, cells[i]);
	table_print(&table, out);
	fclose(out);
	assert_string_equal(text,
		"name      number  rest\n"
		"a              1  x\n"
		"l\xc3\xa4nger  12345678  y?\n");
	table_fini(&table);
	free(text);
}

/* -- the curve -- */

static void keep(void *context, const char *text)
{
	char *all = context;

	strcat(all, text);
	strcat(all, "\n");
}

static void test_curve_shows_the_shape(void **unused)
{
	static struct curve curve;
	char drawn[4096] = "";
	double low, high;

	curve_init(&curve);
	assert_false(curve_draw(&curve, 10, 3, false, keep, drawn, &low, &high));
	for (uint64_t step = 1; step <= 10; step++)
		curve_add(&curve, step, (double)step);
	curve_add(&curve, 10, 99.0); /* again: not counted */
	curve_add(&curve, 11, NAN);  /* nothing to draw */
	assert_true(curve_draw(&curve, 10, 10, false, keep, drawn, &low, &high));
	assert_true(low == 1.0 && high == 10.0);
	/* Rising: top right and bottom left are set. */
	assert_int_equal(drawn[9], '*');
	assert_int_equal(drawn[9 * 11], '*');
	assert_int_equal(drawn[0], ' ');
}

static void test_curve_is_bounded(void **unused)
{
	static struct curve curve;
	static char drawn[200000];
	double low, high;

	curve_init(&curve);
	for (uint64_t step = 1; step <= 1000000; step++)
		curve_add(&curve, step, 1.0 / (double)step);
	assert_in_range(curve.count, CURVE_POINTS / 2, CURVE_POINTS);
	assert_int_equal(curve.last_step, 1000000);
	assert_true(curve_draw(&curve, 9999, 9999, true, keep, drawn, &low, &high));
	assert_true(low > 0.0 && low < high);
	/* A flat and a negative curve are drawn too. */
	curve_init(&curve);
	for (uint64_t step = 1; step <= 5; step++)
		curve_add(&curve, step, -2.0);
	drawn[0] = '\0';
	assert_true(curve_draw(&curve, 5, 3, false, keep, drawn, &low, &high));
	assert_non_null(strchr(drawn, '*'));
}

/* -- the view -- */

static struct look example(void)
{
	static const char text[] =
		"{\"state\":\"training\",\"state_text\":\"a sentence about it\",\"step\":1234,"
		"\"steps_total\":6000,\"run_dir\":\"/var/lib/ckptd/a/rather/long/path/for/it\","
		"\"loss\":0.05,\"images_per_second\":40.0,\"engine\":{\"name\":\"openblas\"},"
		"\"newest_verified\":{\"id\":\"step-000001200-b0001\",\"age_seconds\":3.0},"
		"\"slots\":{\"count\":3},\"data\":{\"text\":\"cars \xc3\xa4\xc3\xb6\"},"
		"\"warnings\":[\"first warning\",\"second\"]}";
	AUTO_JSON json = json_loads(text, 0, NULL);
	struct look look;

	assert_non_null(json);
	look_read(json, &look);
	return look;
}

/* Columns without colours. */
static int line_width(const char *line, size_t length)
{
	int width = 0;

	for (size_t i = 0; i < length; i++) {
		if (line[i] == '\033') {
			while (i < length && line[i] != 'm')
				i++;
			continue;
		}
		width += ((unsigned char)line[i] & 0xc0) != 0x80;
	}
	return width;
}

/* Not inlined: gcc 12 takes what open_memstream gave for the address of `text`. */
__attribute__((noinline)) static char *render(
	const struct view *view, const struct look *look, const struct curve *curve)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	view_render(view, look, curve, out);
	fclose(out);
	return text;
}

static void test_view_fits_every_screen(void **unused)
{
	static struct curve curve;
	struct look look = example();

	curve_init(&curve);
	for (uint64_t step = 1; step < 500; step++)
		curve_add(&curve, step, 1.0 / (double)step);
	for (int width = 20; width <= 200; width += 7)
		for (int height = 1; height <= 60; height++)
			for (int style = 0; style < 4; style++) {
				const struct view view = {.width = width,
					.height = height,
					.color = style & 1,
					.utf8 = style & 2,
					.hint = "Ctrl-C saves and stops"};
				char *text = render(&view, &look, &curve), *at = text;
				int lines = 1;

				for (;; lines++) {
					size_t length = strcspn(at, "\n");
					assert_true(line_width(at, length) <= width);
					if (at[length] == '\0')
						break;
					at += length + 1;
				}
				assert_true(lines <= height);
				free(text);
			}
}

static void test_view_says_what_matters_first(void **unused)
{
	static struct curve curve;
	struct look look = example();
	const struct view view = {.width = 100, .height = 24, .utf8 = true, .hint = "hint"};

	curve_init(&curve);
	char *text = render(&view, &look, &curve);
	assert_non_null(strstr(text, "20.6 %  step 1,234 of 6,000"));
	assert_non_null(strstr(text, "first warning"));
	assert_true(strstr(text, "second") < strstr(text, "0.05"));
	assert_non_null(strstr(text, "step-000001200-b0001 verified 3 s ago"));
	assert_non_null(strstr(text, "\xe2\x96\x88")); /* the bar */
	assert_null(strchr(text, '\033'));             /* no colour was wanted */
	assert_string_equal(text + strlen(text) - 4, "hint");
	free(text);
}

/* In colours only the state and its sentence stand out; without, these two say it. */
static void test_what_is_old_is_dimmed(void **unused)
{
	static struct curve curve;
	struct look look = example();
	struct view view = {
		.width = 100, .height = 24, .color = true, .stale = true, .hint = "hint"};

	curve_init(&curve);
	for (uint64_t step = 1; step < 50; step++)
		curve_add(&curve, step, 1.0 / (double)step);
	snprintf(look.state, sizeof(look.state), "no answer");
	snprintf(look.state_text, sizeof(look.state_text), "waiting");
	char *text = render(&view, &look, &curve);
	assert_non_null(strstr(text, "\033[31;1mno answer\033[0m\n\033[31;1mwaiting\033[0m\n"));
	char *rest = strstr(text, "waiting");
	assert_non_null(strstr(rest, "step 1,234 of 6,000"));
	for (char *at = strstr(rest, "\033[") + 1; (at = strstr(at, "\033[")); at++)
		assert_true(strncmp(at, "\033[2m", 4) == 0 || strncmp(at, "\033[0m", 4) == 0);
	free(text);
	look_read(NULL, &look);
	snprintf(look.state, sizeof(look.state), "no answer");
	text = render(&view, &look, &curve);
	assert_null(strstr(text, "none verified yet")); /* nothing was ever said */
	free(text);
}

static void test_nothing_known_is_shown_as_nothing_known(void **unused)
{
	static struct curve curve;
	struct look look;
	const struct view view = {.width = 80, .height = 24, .hint = ""};

	curve_init(&curve);
	look_read(NULL, &look);
	assert_true(isnan(look.loss));
	assert_true(look_share(&look) == 0.0);
	char *text = render(&view, &look, &curve);
	assert_non_null(strstr(text, "none verified yet"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p10_text_cannot_command_a_terminal),
		cmocka_unit_test(test_numbers_for_people),
		cmocka_unit_test(test_tables_align),
		cmocka_unit_test(test_curve_shows_the_shape),
		cmocka_unit_test(test_curve_is_bounded),
		cmocka_unit_test(test_view_fits_every_screen),
		cmocka_unit_test(test_view_says_what_matters_first),
		cmocka_unit_test(test_what_is_old_is_dimmed),
		cmocka_unit_test(test_nothing_known_is_shown_as_nothing_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
