/* Text for a terminal: columns, numbers, and other people's words made harmless. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Copies UTF-8 into out (size with NUL), control characters (C0, DEL, C1: a terminal would obey
 * them) and broken sequences as '?'. Cuts at a character. */
void text_clean(const char *text, char *out, size_t size);
/* Columns of clean text: code points. */
int text_width(const char *text);
/* The bytes of the first columns columns. */
size_t text_prefix(const char *text, int columns);

#define TEXT_NUMBER_SIZE 32
/* "12,345"; "1.5 GiB". */
const char *text_count(uint64_t value, char out[TEXT_NUMBER_SIZE]);
const char *text_bytes(uint64_t value, char out[TEXT_NUMBER_SIZE]);
/* A duration in seconds, as clock_format_duration; "-" when negative or not a number. */
const char *text_seconds(double seconds, char out[TEXT_NUMBER_SIZE]);
/* "0.0412": four significant digits, "-" for NaN. */
const char *text_real(double value, char out[TEXT_NUMBER_SIZE]);

/* A table of text: columns as wide as their widest cell, the last one as it is. */
#define TABLE_COLUMNS_MAX 12
struct table {
	int columns;
	const char *const *heads; /* a leading '>' aligns right */
	size_t cell_count, capacity;
	char **cells; /* owned */
};
void table_init(struct table *table, int columns, const char *const *heads);
void table_fini(struct table *table);
/* The next cell, row by row; cleaned. */
void table_add(struct table *table, const char *cell);
void table_print(const struct table *table, FILE *out);
