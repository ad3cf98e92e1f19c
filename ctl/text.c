/* Text for a terminal. Whatever came from a file or the daemon passes text_clean before a terminal
 * sees it. */
#include "ctl/text.h"

#include "base/clock.h"
#include "base/panic.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Length of the valid UTF-8 sequence at text, 0 when there is none. */
static size_t sequence_length(const unsigned char *text, uint32_t *ret_code)
{
	size_t length = text[0] < 0x80              ? 1
		: text[0] >= 0xc2 && text[0] < 0xe0 ? 2
		: text[0] >= 0xe0 && text[0] < 0xf0 ? 3
		: text[0] >= 0xf0 && text[0] < 0xf5 ? 4
						    : 0;
	static const uint8_t first_bits[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};

	*ret_code = text[0] & first_bits[length];
	for (size_t i = 1; i < length; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		*ret_code = *ret_code << 6 | (text[i] & 0x3fu);
	}
	return length;
}

void text_clean(const char *text, char *out, size_t size)
{
	size_t used = 0;

	CHECK(size > 0);
	for (const unsigned char *at = (const unsigned char *)text; *at != '\0';) {
		uint32_t code;
		size_t length = sequence_length(at, &code);
		bool bad = length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0);
		size_t need = bad ? 1 : length;

		if (used + need >= size)
			break;
		if (bad)
			out[used] = code == '\t' || code == '\n' ? ' ' : '?';
		else
			memcpy(out + used, at, length);
		used += need;
		at += length > 0 ? length : 1;
	}
	out[used] = '\0';
}

int text_width(const char *text)
{
	int width = 0;

	for (; *text != '\0'; text++)
		width += ((unsigned char)*text & 0xc0) != 0x80;
	return width;
}

size_t text_prefix(const char *text, int columns)
{
	size_t at = 0;

	for (int column = 0; text[at] != '\0'; at++) {
		if (((unsigned char)text[at] & 0xc0) == 0x80)
			continue;
		if (column++ == columns)
			break;
	}
	return at;
}

const char *text_count(uint64_t value, char out[TEXT_NUMBER_SIZE])
{
	char digits[TEXT_NUMBER_SIZE];
	int length = snprintf(digits, sizeof(digits), "%" PRIu64, value), used = 0;

	for (int i = 0; i < length; i++) {
		if (i > 0 && (length - i) % 3 == 0)
			out[used++] = ',';
		out[used++] = digits[i];
	}
	out[used] = '\0';
	return out;
}

const char *text_bytes(uint64_t value, char out[TEXT_NUMBER_SIZE])
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double scaled = (double)value;
	size_t unit = 0;

	while (scaled >= 1024.0 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		scaled /= 1024.0;
		unit++;
	}
	snprintf(out, TEXT_NUMBER_SIZE, "%.*f %s", unit > 0 && scaled < 100.0 ? 1 : 0, scaled,
		units[unit]);
	return out;
}

const char *text_seconds(double seconds, char out[TEXT_NUMBER_SIZE])
{
	if (!(seconds >= 0.0 && seconds < 9e9))
		snprintf(out, TEXT_NUMBER_SIZE, "-");
	else
		clock_format_duration((nsec_t)(seconds * 1e9), out);
	return out;
}
_Static_assert(TEXT_NUMBER_SIZE >= CLOCK_TEXT_SIZE, "text_seconds");

const char *text_real(double value, char out[TEXT_NUMBER_SIZE])
{
	if (isnan(value))
		snprintf(out, TEXT_NUMBER_SIZE, "-");
	else
		snprintf(out, TEXT_NUMBER_SIZE, "%.4g", value);
	return out;
}

void table_init(struct table *table, int columns, const char *const *heads)
{
	CHECK(columns > 0 && columns <= TABLE_COLUMNS_MAX);
	*table = (struct table){.columns = columns, .heads = heads};
}

void table_fini(struct table *table)
{
	for (size_t i = 0; i < table->cell_count; i++)
		free(table->cells[i]);
	free(table->cells);
	*table = (struct table){0};
}

void table_add(struct table *table, const char *cell)
{
	if (table->cell_count == table->capacity) {
		table->capacity = table->capacity * 2 + 64;
		table->cells = realloc(table->cells, table->capacity * sizeof(*table->cells));
		CHECK(table->cells != NULL);
	}
	size_t size = strlen(cell) + 1;
	char *copy = malloc(size);
	CHECK(copy != NULL);
	text_clean(cell, copy, size);
	table->cells[table->cell_count++] = copy;
}

static void print_row(
	const struct table *table, const int *widths, const char *const *cells, FILE *out)
{
	for (int column = 0; column < table->columns; column++) {
		bool right = table->heads[column][0] == '>';
		bool last = column == table->columns - 1;
		int pad = widths[column] - text_width(cells[column]);

		fprintf(out, "%*s%s%*s", right ? pad : 0, "", cells[column],
			right || last ? 0 : pad, "");
		fputs(last ? "\n" : "  ", out);
	}
}

void table_print(const struct table *table, FILE *out)
{
	const char *heads[TABLE_COLUMNS_MAX];
	int widths[TABLE_COLUMNS_MAX];

	CHECK(table->cell_count % (size_t)table->columns == 0);
	for (int column = 0; column < table->columns; column++) {
		heads[column] = table->heads[column] + (table->heads[column][0] == '>');
		widths[column] = text_width(heads[column]);
	}
	for (size_t i = 0; i < table->cell_count; i++) {
		int width = text_width(table->cells[i]);
		if (width > widths[i % (size_t)table->columns])
			widths[i % (size_t)table->columns] = width;
	}
	print_row(table, widths, heads, out);
	for (size_t i = 0; i < table->cell_count; i += (size_t)table->columns)
		print_row(table, widths, (const char *const *)table->cells + i, out);
}
