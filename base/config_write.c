/* The configuration as text: the sample file, last-good.conf, and the manual's list of keys. */
#include "base/config.h"

#include "base/panic.h"

#include <errno.h>
#include <string.h>

#define COLUMNS 96

static const char *class_text(enum config_class class)
{
	static const char *const texts[] = {
		[CONFIG_IDENTITY] = "fixed for the life of a run",
		[CONFIG_SCHEDULE] = "may change at a start or reload, recorded at that step",
		[CONFIG_FREE] = "may change at any time, changes no bits",
	};

	CHECK(class <= CONFIG_FREE);
	return texts[class];
}

/* text in lines of at most COLUMNS, each behind "# ". */
static void write_comment(const char *text, FILE *out)
{
	while (*text) {
		size_t length = strlen(text);

		if (length > COLUMNS) {
			length = COLUMNS;
			while (length > 1 && text[length] != ' ')
				length--;
		}
		fprintf(out, "# %.*s\n", (int)length, text);
		text += length;
		text += strspn(text, " ");
	}
}

static void write_limits(const struct config_key *key, char *text, size_t size)
{
	text[0] = 0;
	if (key->type == CONFIG_INT)
		snprintf(text, size, "%s%s%.0f to %.0f%s%s; ", key->choices ? key->choices : "",
			key->choices ? " or " : "", key->min, key->max, *key->unit ? " " : "",
			key->unit);
	else if (key->choices)
		snprintf(text, size, "%s; ", key->choices);
	else if (key->type == CONFIG_REAL)
		snprintf(text, size, "%g to %g%s%s; ", key->min, key->max, *key->unit ? " " : "",
			key->unit);
}

static const char *default_of(const struct config_key *key)
{
	return *key->default_text ? key->default_text : "empty";
}

static bool first_of_section(size_t i)
{
	for (size_t j = 0; j < i; j++)
		if (strcmp(config_key_at(j)->section, config_key_at(i)->section) == 0)
			return false;
	return true;
}

static void write_key(const struct config *config, const struct config_key *key, FILE *out)
{
	char value[CONFIG_TEXT_MAX], limits[256];

	config_value_text(config, key, value);
	write_limits(key, limits, sizeof(limits));
	fputc('\n', out);
	write_comment(key->text, out);
	fprintf(out, "# (%sdefault %s; %s)\n%s =%s%s\n", limits, default_of(key),
		class_text(key->class), key->key, *value ? " " : "", value);
}

int config_write(const struct config *config, FILE *out)
{
	fputs("# ckptd.conf: every setting with its meaning, limits and default.\n", out);
	for (size_t i = 0; i < config_key_count(); i++) {
		if (!first_of_section(i))
			continue;
		const char *section = config_key_at(i)->section;

		fprintf(out, "\n[%s]\n", section);
		for (size_t j = i; j < config_key_count(); j++)
			if (strcmp(config_key_at(j)->section, section) == 0)
				write_key(config, config_key_at(j), out);
	}
	return ferror(out) ? -EIO : 0;
}

/* troff takes a leading dot or quote and a backslash as its own. */
static void write_troff(const char *text, FILE *out)
{
	for (; *text; text++) {
		if (*text == '\\')
			fputs("\\e", out);
		else if (*text == '-')
			fputs("\\-", out);
		else
			fputc(*text, out);
	}
}

int config_write_man(FILE *out)
{
	for (size_t i = 0; i < config_key_count(); i++) {
		if (!first_of_section(i))
			continue;
		const char *section = config_key_at(i)->section;

		fprintf(out, ".SS [%s]\n", section);
		for (size_t j = i; j < config_key_count(); j++) {
			const struct config_key *key = config_key_at(j);
			char limits[256];

			if (strcmp(key->section, section) != 0)
				continue;
			write_limits(key, limits, sizeof(limits));
			fprintf(out, ".TP\n.B %s\n\\&", key->key);
			write_troff(key->text, out);
			fputs("\n(", out);
			write_troff(limits, out);
			fputs("default ", out);
			write_troff(default_of(key), out);
			fprintf(out, "; %s)\n", class_text(key->class));
		}
	}
	return ferror(out) ? -EIO : 0;
}
