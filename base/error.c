/* One line of text beside a negative errno. */
#include "base/error.h"

#include "base/panic.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What comes from files may hold control characters: the line stays one line. */
static void flatten(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX]; /* not in place: err->text may be one of the arguments */
	va_list args;

	CHECK(code < 0);
	if (!err)
		return code;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	flatten(text);
	memcpy(err->text, text, sizeof(text));
	return code;
}

int error_prefix(struct error *err, int code, const char *fmt, ...)
{
	char before[ERROR_TEXT_MAX], after[ERROR_TEXT_MAX];
	va_list args;

	CHECK(code < 0);
	if (!err)
		return code;
	va_start(args, fmt);
	vsnprintf(before, sizeof(before), fmt, args);
	va_end(args);
	memcpy(after, err->text, sizeof(after));
	after[sizeof(after) - 1] = 0;
	size_t used = strnlen(before, sizeof(before) - 3);
	memcpy(err->text, before, used);
	memcpy(err->text + used, ": ", 2);
	used += 2;
	size_t room = sizeof(err->text) - used - 1, length = strnlen(after, room);
	memcpy(err->text + used, after, length);
	err->text[used + length] = 0;
	flatten(err->text);
	return code;
}
