/* Command lines by table. A specification is words between blanks: "json" is a flag, "count="
 * takes a value, "n|limit=" has the short form -n. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define ARGS_MAX 64

struct args {
	int option_count;
	struct {
		char name[24];
		const char *value; /* NULL for a flag */
	} options[ARGS_MAX];
	int positional_count;
	const char *positional[ARGS_MAX];
};

/* Reads argv[0..argc). stop_at_positional leaves the rest alone. Returns how many words were taken,
 * or -EINVAL with a line that names the word. */
int args_parse(const char *spec, int argc, char **argv, bool stop_at_positional, struct args *args,
	struct error *err);

bool args_flag(const struct args *args, const char *name);
/* The last one given, or NULL. */
const char *args_text(const struct args *args, const char *name);
/* The next value of a repeated option after *at (from 0), or NULL. */
const char *args_next(const struct args *args, const char *name, int *at);
/* A number in [min, max]; fallback when not given. -EINVAL names the option. */
int args_int(const struct args *args, const char *name, int64_t min, int64_t max, int64_t fallback,
	int64_t *ret, struct error *err);
int args_real(const struct args *args, const char *name, double min, double max, double fallback,
	double *ret, struct error *err);
