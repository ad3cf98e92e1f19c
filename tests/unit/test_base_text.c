/* What people read: errors, times, log lines, last words. */
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/panic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_p9_an_error_is_one_line(void **unused)
{
	struct error err;
	char long_text[2000];

	assert_int_equal(error_set(&err, -EIO, "%s:%d: a\nb\tc\x1b[31m", "file", 7), -EIO);
	assert_string_equal(err.text, "file:7: a b c [31m");
	assert_int_equal(error_set(NULL, -EINVAL, "nobody listens"), -EINVAL);
	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = 0;
	error_set(&err, -EIO, "%s", long_text);
	assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
	error_prefix(&err, -EIO, "before");
	assert_memory_equal(err.text, "before: xxx", 11);
	assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
	error_prefix(&err, -EIO, "%s", long_text);
	assert_true(strlen(err.text) < ERROR_TEXT_MAX);
}

static void test_an_error_may_quote_itself(void **unused)
{
	struct error err;

	error_set(&err, -EIO, "disk");
	error_set(&err, -EIO, "saving: %s; tried twice", err.text);
	assert_string_equal(err.text, "saving: disk; tried twice");
	assert_int_equal(error_prefix(&err, -ENOSPC, "step %d", 7), -ENOSPC);
	assert_string_equal(err.text, "step 7: saving: disk; tried twice");
}

static void test_times(void **unused)
{
	char text[CLOCK_TEXT_SIZE];
	nsec_t before = clock_monotonic_ns();

	assert_true(clock_monotonic_ns() >= before && before > 0);
	assert_true(clock_wall_ns() > INT64_C(1700000000) * NSEC_PER_SEC);
	clock_format_utc(0, text);
	assert_string_equal(text, "1970-01-01T00:00:00.000Z");
	clock_format_utc(INT64_C(1795408265123456789), text);
	assert_string_equal(text, "2026-11-23T04:31:05.123Z");
	clock_format_utc(-1, text);
	assert_string_equal(text, "unknown time");
	clock_format_utc(INT64_MAX, text);
	assert_string_equal(text, "2262-04-11T23:47:16.854Z");
}

static void test_durations(void **unused)
{
	static const struct {
		nsec_t ns;
		const char *text;
	} cases[] = {
		{0, "0 ms"},
		{-5, "0 ms"},
		{120 * NSEC_PER_MSEC, "120 ms"},
		{NSEC_PER_SEC - 1, "999 ms"},
		{45 * NSEC_PER_SEC, "45 s"},
		{60 * NSEC_PER_SEC, "1 min"},
		{61 * NSEC_PER_SEC, "1 min 1 s"},
		{11520 * NSEC_PER_SEC, "3 h 12 min"},
		{3605 * NSEC_PER_SEC, "1 h"},
		{86400 * NSEC_PER_SEC, "1 d"},
		{90000 * NSEC_PER_SEC, "1 d 1 h"},
		{INT64_MAX, "106751 d 23 h"},
	};
	char text[CLOCK_TEXT_SIZE];

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		clock_format_duration(cases[i].ns, text);
		assert_string_equal(text, cases[i].text);
	}
}

/* What a child that logs writes to its stderr, and how it ended. */
static int run_child(void (*body)(void), bool as_journal, char *text, size_t size)
{
	int ends[2], status;
	size_t used = 0;
	ssize_t got;

	assert_int_equal(pipe(ends), 0);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct stat st;
		char stream[64];

		dup2(ends[1], STDERR_FILENO);
		close(ends[0]);
		fstat(STDERR_FILENO, &st);
		snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
			(unsigned long long)st.st_ino + !as_journal);
		setenv("JOURNAL_STREAM", stream, 1);
		body();
		_exit(0);
	}
	close(ends[1]);
	while ((got = read(ends[0], text + used, size - used - 1)) > 0)
		used += (size_t)got;
	text[used] = 0;
	close(ends[0]);
	assert_true(waitpid(child, &status, 0) == child);
	return status;
}

static void log_some(void)
{
	enum log_level level;

	log_open("tester", LOG_LEVEL_INFO);
	log_warning("line\nbreak %d", 5);
	log_debug("not seen");
	if (log_level_parse("debug", &level) == 0)
		log_set_level(level);
	log_debug("seen");
}

static void test_log_lines(void **unused)
{
	char text[4096];

	run_child(log_some, true, text, sizeof(text));
	assert_string_equal(text, "<4>line break 5\n<7>seen\n");
	/* JOURNAL_STREAM inherited, but stderr goes elsewhere. */
	run_child(log_some, false, text, sizeof(text));
	assert_memory_equal(text + 4, "-", 1);
	assert_non_null(strstr(text, "Z tester warning: line break 5\n"));
	assert_non_null(strstr(text, "Z tester debug: seen\n"));
	assert_null(strstr(text, "not seen"));
}

static void log_long(void)
{
	char long_text[5000];

	memset(long_text, 'y', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = 0;
	log_open("tester", LOG_LEVEL_INFO);
	log_info("%s", long_text);
}

static void test_a_long_line_is_cut_but_ends(void **unused)
{
	char text[8192];

	run_child(log_long, true, text, sizeof(text));
	size_t length = strlen(text);
	assert_true(length > 1000 && length <= 2048);
	assert_int_equal(text[length - 1], '\n');
	assert_int_equal(text[length - 2], 'y');
}

static void test_levels_have_names(void **unused)
{
	enum log_level level;

	assert_int_equal(log_level_parse("notice", &level), 0);
	assert_int_equal(level, LOG_LEVEL_NOTICE);
	assert_int_equal(log_level_parse("loud", &level), -EINVAL);
}

static void break_a_promise(void)
{
	int one = 1;

	CHECK(one == 1);
	CHECK(one == 2);
}

static void test_last_words(void **unused)
{
	char text[4096];
	int status = run_child(break_a_promise, false, text, sizeof(text));

	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_non_null(strstr(text, "test_base_text.c:"));
	assert_non_null(strstr(text, ": one == 2\n"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p9_an_error_is_one_line),
		cmocka_unit_test(test_an_error_may_quote_itself),
		cmocka_unit_test(test_times),
		cmocka_unit_test(test_durations),
		cmocka_unit_test(test_log_lines),
		cmocka_unit_test(test_a_long_line_is_cut_but_ends),
		cmocka_unit_test(test_levels_have_names),
		cmocka_unit_test(test_last_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
