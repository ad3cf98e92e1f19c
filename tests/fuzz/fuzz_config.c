/* The configuration file: what is accepted is written and read again as the same. */
#include "base/config.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check_round_trip(const struct config *config)
{
	struct config again;
	struct error err;
	char *text = NULL;
	size_t size = 0;
	FILE *file = open_memstream(&text, &size);

	CHECK(file && config_write(config, file) == 0 && fclose(file) == 0);
	config_defaults(&again);
	CHECK(config_parse_text(&again, text, "written", &err) == 0);
	for (size_t i = 0; i < config_key_count(); i++)
		CHECK(config_value_equal(config, &again, config_key_at(i)));
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config config;
	struct error err;
	char *text = fuzz_text(data, size);

	config_defaults(&config);
	if (config_parse_text(&config, text, "fuzz", &err) == 0) {
		struct config_levels levels;

		check_round_trip(&config);
		if (config_check(&config, &err) == 0) {
			CHECK(config_levels(&config, &levels, &err) == 0);
			CHECK(levels.count >= 1 && levels.count <= CONFIG_LEVELS_MAX);
		}
	} else {
		CHECK(err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
	}
	free(text);
	return 0;
}
