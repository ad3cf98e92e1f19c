/* The configuration: one flat struct, one table (config.def) from which come the fields, the
 * parser, the defaults, the limits, etc/ckptd.conf and the manual page.
 *
 * Classes: identity keys are fixed for the life of a run; schedule keys may change at a start or
 * reload and are recorded as an intervention at that step; free keys change no bits. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CONFIG_TEXT_MAX 256
#define CONFIG_AUTO (-1) /* what the word auto means where a number may be left to us */

enum config_class { CONFIG_IDENTITY, CONFIG_SCHEDULE, CONFIG_FREE };
enum config_type { CONFIG_INT, CONFIG_REAL, CONFIG_BOOL, CONFIG_TEXT };

struct config {
#define CFG_INT(section, key, def, min, max, unit, class, text) int64_t key;
#define CFG_AUTO(section, key, def, min, max, unit, class, text) int64_t key;
#define CFG_REAL(section, key, def, min, max, unit, class, text) double key;
#define CFG_BOOL(section, key, def, class, text) bool key;
#define CFG_TEXT(section, key, def, choices, class, text) char key[CONFIG_TEXT_MAX];
#include "base/config.def"
#undef CFG_INT
#undef CFG_AUTO
#undef CFG_REAL
#undef CFG_BOOL
#undef CFG_TEXT
};

struct config_key {
	const char *section, *key;
	enum config_type type;
	enum config_class class;
	size_t offset; /* in struct config */
	double min, max;
	const char *unit; /* "" when none */
	const char *default_text;
	const char *choices; /* "a|b|c" or NULL; of a number, the word "auto" or NULL */
	const char *text;    /* what it means, for people */
};

size_t config_key_count(void);
const struct config_key *config_key_at(size_t i);
const struct config_key *config_key_find(const char *key); /* NULL when unknown */

void config_defaults(struct config *config);

/* Reads an INI file over what config already holds. Errors say "file:line: ..." and the fix; an
 * unknown key names the nearest known one. -ENOENT, -EINVAL, -EFBIG (> 256 KiB). */
int config_parse_file(struct config *config, const char *path, struct error *err);
/* The same from memory; name stands for the file in messages. */
int config_parse_text(struct config *config, const char *text, const char *name, struct error *err);
/* One key from text ("12", "1e-3", "true", ...). where ("file:line", "--set") goes into the error.
 */
int config_set(struct config *config, const char *key, const char *value, const char *where,
	struct error *err);
/* What no single key can know: e.g. micro_batch divides batch_size. Names key and section. */
int config_check(const struct config *config, struct error *err);

#define CONFIG_LEVELS_MAX 8

/* The levels of the net, parsed from channels, down_blocks and up_blocks. */
struct config_levels {
	uint32_t count;
	uint32_t channels[CONFIG_LEVELS_MAX];
	bool down_attention[CONFIG_LEVELS_MAX];
	bool up_attention[CONFIG_LEVELS_MAX]; /* deepest first */
};
int config_levels(const struct config *config, struct config_levels *ret, struct error *err);

/* The canonical text of one value; config_set of it gives the same value bit for bit. */
void config_value_text(
	const struct config *config, const struct config_key *key, char text[CONFIG_TEXT_MAX]);
bool config_value_equal(
	const struct config *a, const struct config *b, const struct config_key *key);
/* The first key of this class that differs, NULL when none: start at after (NULL = first). */
const struct config_key *config_next_difference(const struct config *a, const struct config *b,
	enum config_class class, const struct config_key *after);

/* The file with every key, its text and its default (etc/ckptd.conf), and the same with this
 * config's values (last-good.conf). */
int config_write(const struct config *config, FILE *out);
/* The troff body of the manual page's key list. */
int config_write_man(FILE *out);
