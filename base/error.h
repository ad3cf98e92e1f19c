/* Errors travel as a negative errno beside one line of text for a person: what, where, what to
 * do. base, proto and store fill it in and never print; the edge (a main, the supervisor) logs it
 * once. */
#pragma once

#define ERROR_TEXT_MAX 512

struct error {
	char text[ERROR_TEXT_MAX]; /* one line, no newline, always terminated */
};

/* Writes the line and returns code (a negative errno). err may be NULL. */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before what is already there, and returns code. */
int error_prefix(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
