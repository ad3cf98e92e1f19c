/* Command lines by table. Every error names the word that is wrong and what would be right. */
#include "ctl/args.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct spec_word {
	char name[24];
	bool takes_value;
};

/* Finds the word of spec that name (of length) stands for, by its long or its one-letter form. */
static bool spec_find(
	const char *spec, const char *name, size_t length, bool is_short, struct spec_word *ret)
{
	for (const char *at = spec; *at != '\0';) {
		size_t word = strcspn(at, " ");
		const char *bar = memchr(at, '|', word);
		const char *long_name = bar != NULL ? bar + 1 : at;
		size_t long_length = word - (size_t)(long_name - at);
		bool takes_value = long_length > 0 && long_name[long_length - 1] == '=';

		long_length -= takes_value;
		bool match = is_short
			? bar == at + 1 && length == 1 && *at == *name
			: long_length == length && strncmp(long_name, name, length) == 0;
		if (match && long_length < sizeof(ret->name)) {
			memcpy(ret->name, long_name, long_length);
			ret->name[long_length] = '\0';
			ret->takes_value = takes_value;
			return true;
		}
		at += word;
		at += strspn(at, " ");
	}
	return false;
}

/* One option word, and its value when that is the next word. Returns the words taken. */
static int parse_option(
	const char *spec, int argc, char **argv, struct args *args, struct error *err)
{
	const char *word = argv[0];
	bool is_short = word[1] != '-';
	const char *name = word + (is_short ? 1 : 2);
	size_t length = strcspn(name, "=");
	struct spec_word found;
	int taken = 1;

	if (!spec_find(spec, name, length, is_short, &found))
		return error_set(err, -EINVAL, "unknown option '%.*s'",
			(int)(length + (is_short ? 1 : 2)), word);
	if (args->option_count == ARGS_MAX)
		return error_set(err, -EINVAL, "more than %d options", ARGS_MAX);
	const char *value = name[length] == '=' ? name + length + 1 : NULL;
	if (found.takes_value && value == NULL) {
		if (argc < 2)
			return error_set(err, -EINVAL, "option '%s' needs a value", word);
		value = argv[1];
		taken = 2;
	} else if (!found.takes_value && value != NULL) {
		return error_set(err, -EINVAL, "option '--%s' takes no value", found.name);
	}
	memcpy(args->options[args->option_count].name, found.name, sizeof(found.name));
	args->options[args->option_count++].value = value;
	return taken;
}

int args_parse(const char *spec, int argc, char **argv, bool stop_at_positional, struct args *args,
	struct error *err)
{
	bool only_positional = false;
	int at = 0;

	*args = (struct args){0};
	while (at < argc) {
		const char *word = argv[at];

		if (!only_positional && strcmp(word, "--") == 0) {
			only_positional = true;
			at++;
		} else if (!only_positional && word[0] == '-' && word[1] != '\0') {
			int taken = parse_option(spec, argc - at, argv + at, args, err);
			if (taken < 0)
				return taken;
			at += taken;
		} else if (stop_at_positional) {
			break;
		} else if (args->positional_count == ARGS_MAX) {
			return error_set(err, -EINVAL, "more than %d arguments", ARGS_MAX);
		} else {
			args->positional[args->positional_count++] = word;
			at++;
		}
	}
	return at;
}

static int find_last(const struct args *args, const char *name)
{
	for (int i = args->option_count - 1; i >= 0; i--)
		if (strcmp(args->options[i].name, name) == 0)
			return i;
	return -1;
}

bool args_flag(const struct args *args, const char *name)
{
	return find_last(args, name) >= 0;
}

const char *args_text(const struct args *args, const char *name)
{
	int i = find_last(args, name);

	return i < 0 ? NULL : args->options[i].value;
}

const char *args_next(const struct args *args, const char *name, int *at)
{
	for (; *at < args->option_count; (*at)++)
		if (strcmp(args->options[*at].name, name) == 0)
			return args->options[(*at)++].value;
	return NULL;
}

int args_int(const struct args *args, const char *name, int64_t min, int64_t max, int64_t fallback,
	int64_t *ret, struct error *err)
{
	const char *text = args_text(args, name);
	char *end;

	*ret = fallback;
	if (text == NULL)
		return 0;
	errno = 0;
	*ret = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || *ret < min || *ret > max)
		return error_set(err, -EINVAL,
			"--%s is '%s', a whole number from %" PRId64 " to %" PRId64 " is needed",
			name, text, min, max);
	return 0;
}

int args_real(const struct args *args, const char *name, double min, double max, double fallback,
	double *ret, struct error *err)
{
	const char *text = args_text(args, name);
	char *end;

	*ret = fallback;
	if (text == NULL)
		return 0;
	*ret = strtod(text, &end);
	if (end == text || *end != '\0' || !isfinite(*ret) || *ret < min || *ret > max)
		return error_set(err, -EINVAL, "--%s is '%s', a number from %g to %g is needed",
			name, text, min, max);
	return 0;
}
