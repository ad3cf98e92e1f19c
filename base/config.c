/* The configuration's table and parser: the door of inih. Every message names the place, what is
 * wrong and what would be right. */
#include "base/config.h"

#include "base/file.h"
#include "base/panic.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_FILE_MAX ((size_t)256 << 10)

static const struct config_key keys[] = {
#define CFG_INT(sec, key, def, min, max, unit, cls, text)                                          \
	{#sec, #key, CONFIG_INT, CONFIG_##cls, offsetof(struct config, key), (double)(min),        \
		(double)(max), unit, #def, NULL, text},
#define CFG_AUTO(sec, key, def, min, max, unit, cls, text)                                         \
	{#sec, #key, CONFIG_INT, CONFIG_##cls, offsetof(struct config, key), (double)(min),        \
		(double)(max), unit, #def, "auto", text},
#define CFG_REAL(sec, key, def, min, max, unit, cls, text)                                         \
	{#sec, #key, CONFIG_REAL, CONFIG_##cls, offsetof(struct config, key), min, max, unit,      \
		#def, NULL, text},
#define CFG_BOOL(sec, key, def, cls, text)                                                         \
	{#sec, #key, CONFIG_BOOL, CONFIG_##cls, offsetof(struct config, key), 0, 1, "", #def,      \
		NULL, text},
#define CFG_TEXT(sec, key, def, choices, cls, text)                                                \
	{#sec, #key, CONFIG_TEXT, CONFIG_##cls, offsetof(struct config, key), 0, 0, "", def,       \
		choices, text},
#include "base/config.def"
#undef CFG_INT
#undef CFG_AUTO
#undef CFG_REAL
#undef CFG_BOOL
#undef CFG_TEXT
};

#define KEY_COUNT (sizeof(keys) / sizeof(*keys))

size_t config_key_count(void)
{
	return KEY_COUNT;
}

const struct config_key *config_key_at(size_t i)
{
	CHECK(i < KEY_COUNT);
	return &keys[i];
}

const struct config_key *config_key_find(const char *key)
{
	for (size_t i = 0; i < KEY_COUNT; i++)
		if (strcmp(keys[i].key, key) == 0)
			return &keys[i];
	return NULL;
}

void config_defaults(struct config *config)
{
	struct error err;

	memset(config, 0, sizeof(*config));
	for (size_t i = 0; i < KEY_COUNT; i++)
		CHECK(config_set(config, keys[i].key, keys[i].default_text, "default", &err) == 0);
}

/* Levenshtein's distance of two short names. */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned row[64];
	size_t length = strlen(b);

	if (length >= 63)
		return 63;
	for (size_t j = 0; j <= length; j++)
		row[j] = (unsigned)j;
	for (size_t i = 0; a[i]; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i + 1;
		for (size_t j = 0; j < length; j++) {
			unsigned change = diagonal + (a[i] != b[j]);

			diagonal = row[j + 1];
			unsigned best = row[j] < row[j + 1] ? row[j] + 1 : row[j + 1] + 1;
			row[j + 1] = change < best ? change : best;
		}
	}
	return row[length];
}

static int unknown_key(const char *key, const char *where, struct error *err)
{
	const struct config_key *nearest = &keys[0];
	unsigned best = 1000;

	for (size_t i = 0; i < KEY_COUNT; i++) {
		unsigned distance = edit_distance(key, keys[i].key);

		if (distance < best) {
			best = distance;
			nearest = &keys[i];
		}
	}
	if (best <= 3)
		return error_set(err, -EINVAL, "%s: there is no setting '%s'; did you mean '%s'?",
			where, key, nearest->key);
	return error_set(err, -EINVAL,
		"%s: there is no setting '%s'; see ckptd.conf(5) for those there are", where, key);
}

static int set_int(void *field, const struct config_key *key, const char *value, const char *where,
	struct error *err)
{
	const char *word = key->choices ? "auto, or " : "";
	char *end;

	if (key->choices && strcmp(value, key->choices) == 0) {
		*(int64_t *)field = CONFIG_AUTO;
		return 0;
	}
	errno = 0;
	long long number = strtoll(value, &end, 10);
	if (end == value || *end || isspace((unsigned char)*value))
		return error_set(err, -EINVAL, "%s: %s = %s: give %sa whole number%s%s", where,
			key->key, value, word, *key->unit ? " of " : "", key->unit);
	if (errno == ERANGE || (double)number < key->min || (double)number > key->max)
		return error_set(err, -EINVAL, "%s: %s = %s: give %s%.0f to %.0f%s%s", where,
			key->key, value, word, key->min, key->max, *key->unit ? " " : "",
			key->unit);
	*(int64_t *)field = number;
	return 0;
}

static int set_real(void *field, const struct config_key *key, const char *value, const char *where,
	struct error *err)
{
	char *end;
	double number = strtod(value, &end);

	if (end == value || *end || !isfinite(number) || isspace((unsigned char)*value))
		return error_set(
			err, -EINVAL, "%s: %s = %s: give a number", where, key->key, value);
	if (number < key->min || number > key->max)
		return error_set(err, -EINVAL, "%s: %s = %s: give %g to %g%s%s", where, key->key,
			value, key->min, key->max, *key->unit ? " " : "", key->unit);
	*(double *)field = number;
	return 0;
}

static int set_bool(void *field, const struct config_key *key, const char *value, const char *where,
	struct error *err)
{
	static const char *const words[][2] = {
		{"false", "true"}, {"no", "yes"}, {"off", "on"}, {"0", "1"}};

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		for (int j = 0; j < 2; j++)
			if (strcmp(value, words[i][j]) == 0) {
				*(bool *)field = j;
				return 0;
			}
	return error_set(err, -EINVAL, "%s: %s = %s: give true or false", where, key->key, value);
}

static bool is_choice(const char *choices, const char *value)
{
	size_t length = strlen(value);

	for (const char *at = choices; length > 0; at++) {
		size_t word = strcspn(at, "|");

		if (word == length && memcmp(at, value, word) == 0)
			return true;
		at += word;
		if (!*at)
			return false;
	}
	return false;
}

static int set_text(void *field, const struct config_key *key, const char *value, const char *where,
	struct error *err)
{
	size_t length = strlen(value);

	/* What the file's syntax would not give back: blanks at the ends, a comment. */
	if (length > 0 &&
		(isspace((unsigned char)*value) || isspace((unsigned char)value[length - 1]) ||
			*value == ';' || strstr(value, " ;")))
		return error_set(err, -EINVAL,
			"%s: %s = '%s': no blank at an end, no ';' at the start or behind a blank",
			where, key->key, value);
	if (key->choices && !is_choice(key->choices, value))
		return error_set(err, -EINVAL, "%s: %s = %s: give one of %s", where, key->key,
			value, key->choices);
	if (length >= CONFIG_TEXT_MAX)
		return error_set(err, -EINVAL, "%s: %s is longer than %d bytes", where, key->key,
			CONFIG_TEXT_MAX - 1);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)value[i] < 0x20 || value[i] == 0x7f)
			return error_set(
				err, -EINVAL, "%s: %s holds a control character", where, key->key);
	memset(field, 0, CONFIG_TEXT_MAX);
	memcpy(field, value, length);
	return 0;
}

int config_set(struct config *config, const char *key, const char *value, const char *where,
	struct error *err)
{
	const struct config_key *found = config_key_find(key);

	if (!found)
		return unknown_key(key, where, err);
	void *field = (char *)config + found->offset;
	switch (found->type) {
	case CONFIG_INT:
		return set_int(field, found, value, where, err);
	case CONFIG_REAL:
		return set_real(field, found, value, where, err);
	case CONFIG_BOOL:
		return set_bool(field, found, value, where, err);
	case CONFIG_TEXT:
		return set_text(field, found, value, where, err);
	}
	PANIC("config type");
}

void config_value_text(
	const struct config *config, const struct config_key *key, char text[CONFIG_TEXT_MAX])
{
	const void *field = (const char *)config + key->offset;

	switch (key->type) {
	case CONFIG_INT:
		if (key->choices && *(const int64_t *)field == CONFIG_AUTO)
			snprintf(text, CONFIG_TEXT_MAX, "%s", key->choices);
		else
			snprintf(text, CONFIG_TEXT_MAX, "%lld", (long long)*(const int64_t *)field);
		return;
	case CONFIG_REAL: {
		/* The shortest text that reads back to the same bits. */
		double value = *(const double *)field;

		for (int digits = 1; digits <= 17; digits++) {
			snprintf(text, CONFIG_TEXT_MAX, "%.*g", digits, value);
			if (strtod(text, NULL) == value)
				return;
		}
		return;
	}
	case CONFIG_BOOL:
		snprintf(text, CONFIG_TEXT_MAX, "%s", *(const bool *)field ? "true" : "false");
		return;
	case CONFIG_TEXT:
		snprintf(text, CONFIG_TEXT_MAX, "%s", (const char *)field);
		return;
	}
	PANIC("config type");
}

bool config_value_equal(
	const struct config *a, const struct config *b, const struct config_key *key)
{
	char left[CONFIG_TEXT_MAX], right[CONFIG_TEXT_MAX];

	config_value_text(a, key, left);
	config_value_text(b, key, right);
	return strcmp(left, right) == 0;
}

const struct config_key *config_next_difference(const struct config *a, const struct config *b,
	enum config_class class, const struct config_key *after)
{
	for (size_t i = after ? (size_t)(after - keys) + 1 : 0; i < KEY_COUNT; i++)
		if (keys[i].class == class && !config_value_equal(a, b, &keys[i]))
			return &keys[i];
	return NULL;
}

/* -- INI files -- */

struct parse {
	struct config *config;
	const char *name;
	const char *next;       /* text not handed to inih yet */
	const char *line_begin; /* of the line it has */
	size_t line_length;
	bool line_cut; /* it has only the beginning */
	unsigned line;
	int code;
	struct error *err;
};

/* inih's reader: one line at a time, so that the line number is known; without its indentation,
 * which inih would take for a continuation; cut to inih's buffer (take_value gets the rest). */
static char *read_line(char *line, int size, void *stream)
{
	struct parse *parse = stream;

	if (!*parse->next || parse->code < 0)
		return NULL;
	size_t indent = strspn(parse->next, " \t");
	size_t length = strcspn(parse->next + indent, "\n");
	size_t room = (size_t)size - 2, part = length < room ? length : room;

	parse->line++;
	parse->line_begin = parse->next + indent;
	parse->line_length = length;
	parse->line_cut = part < length;
	memcpy(line, parse->line_begin, part);
	line[part] = '\n';
	line[part + 1] = 0;
	parse->next = parse->line_begin + length + (parse->line_begin[length] == '\n');
	return line;
}

/* The whole value of a line that inih saw only the beginning of. */
static int whole_value(struct parse *parse, const char *where, char *value, size_t size)
{
	const char *begin = memchr(parse->line_begin, '=', parse->line_length);
	const char *end = parse->line_begin + parse->line_length;

	if (!begin || (size_t)(end - begin) >= size)
		return error_set(parse->err, -EINVAL,
			"%s: the line is too long: a value has at "
			"most %d bytes",
			where, CONFIG_TEXT_MAX - 1);
	do
		begin++;
	while (begin < end && isspace((unsigned char)*begin));
	while (end > begin && isspace((unsigned char)end[-1]))
		end--;
	memcpy(value, begin, (size_t)(end - begin));
	value[end - begin] = 0;
	return 0;
}

static int take_value(void *user, const char *section, const char *key, const char *value)
{
	struct parse *parse = user;
	const struct config_key *found = config_key_find(key);
	char where[CONFIG_TEXT_MAX + 32], whole[4 * CONFIG_TEXT_MAX];

	if (parse->code < 0)
		return 0;
	snprintf(where, sizeof(where), "%s:%u", parse->name, parse->line);
	if (parse->line_cut) {
		parse->code = whole_value(parse, where, whole, sizeof(whole));
		if (parse->code < 0)
			return 0;
		value = whole;
	}
	if (found && !*section) {
		parse->code = error_set(parse->err, -EINVAL,
			"%s: '%s' stands before any section: "
			"put it below [%s]",
			where, key, found->section);
		return 0;
	}
	if (found && strcmp(found->section, section) != 0) {
		parse->code = error_set(parse->err, -EINVAL,
			"%s: '%s' belongs below [%s], not [%s]", where, key, found->section,
			section);
		return 0;
	}
	parse->code = config_set(parse->config, key, value, where, parse->err);
	return parse->code == 0;
}

int config_parse_text(struct config *config, const char *text, const char *name, struct error *err)
{
	struct config parsed = *config;
	struct parse parse = {.config = &parsed, .name = name, .next = text, .err = err};
	int bad_line = ini_parse_stream(read_line, &parse, take_value, &parse);

	/* parse.line is the line refused; the first that inih cannot read may come before. */
	if (parse.code < 0 && (bad_line <= 0 || (unsigned)bad_line >= parse.line))
		return parse.code;
	if (bad_line < 0)
		return error_set(err, -ENOMEM, "%s: not enough memory to read it", name);
	if (bad_line > 0)
		return error_set(err, -EINVAL,
			"%s:%d: neither '[section]' nor 'key = value' nor a comment", name,
			bad_line);
	*config = parsed;
	return 0;
}

int config_parse_file(struct config *config, const char *path, struct error *err)
{
	char *text;
	size_t size;
	int code = file_read_all(AT_FDCWD, path, CONFIG_FILE_MAX, &text, &size);

	if (code == -EFBIG)
		return error_set(err, code, "%s: larger than 256 KiB: not a ckptd.conf", path);
	if (code < 0)
		return error_set(err, code, "%s: cannot be read: %s", path, strerror(-code));
	if (strlen(text) != size)
		code = error_set(err, -EINVAL, "%s: holds a NUL byte: not a text file", path);
	else
		code = config_parse_text(config, text, path, err);
	free(text);
	return code;
}
