/* P9: every wrong line of a configuration gets one clear line back: where, what, what to do; and
 * the sample file in the tree is what the table says. */
#include "base/config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
/* after the headers that it needs */
#include <cmocka.h>

static void P9_wrong_lines_are_named(void **state)
{
	static const struct {
		const char *text, *message;
	} cases[] = {
		{"[train]\nbatchsize = 3\n",
			"f:2: there is no setting 'batchsize'; did you mean 'batch_size'?"},
		{"[train]\nquux_frobnicate = 3\n", "f:2: there is no setting 'quux_frobnicate'"},
		{"[data]\nbatch_size = 3\n", "f:2: 'batch_size' belongs below [train], not [data]"},
		{"[train]\n\nbatch_size = 0\n", "f:3: batch_size = 0: give 1 to 4096 images"},
		{"[train]\nbatch_size = 12x\n", "f:2: batch_size = 12x: give a whole number"},
		{"[train]\nbatch_size = 99999999999999999999\n", "give 1 to 4096"},
		{"[train]\nlearning_rate = nan\n", "f:2: learning_rate = nan: give a number"},
		{"[train]\nlearning_rate = 3\n", "give 0 to 1"},
		{"[data]\nflips = perhaps\n", "f:2: flips = perhaps: give true or false"},
		{"[diffusion]\nbeta_schedule = cubic\n",
			"give one of linear|scaled_linear|squaredcos_cap_v2"},
		{"[diffusion]\nbeta_schedule = linear|scaled_linear\n", "give one of"},
		{"[train]\nwhat is this\n", "f:2: neither '[section]' nor 'key = value'"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct config config, before;
		struct error err = {""};

		config_defaults(&config);
		before = config;
		assert_int_equal(config_parse_text(&config, cases[i].text, "f", &err), -EINVAL);
		if (!strstr(err.text, cases[i].message))
			fail_msg("'%s' does not say '%s'", err.text, cases[i].message);
		/* Nothing is half taken. */
		assert_memory_equal(&config, &before, sizeof(config));
	}
}

static void P9_what_does_not_fit_together_is_named(void **state)
{
	static const struct {
		const char *key, *value, *message;
	} cases[] = {
		{"data", "cart", "[data] data = cart: give 'cars' or 'folder:DIR'"},
		{"data", "folder:", "names no folder"},
		{"micro_batch", "5", "micro_batch = 5 does not divide batch_size = 16"},
		{"channels", "32,64", "down_blocks names 3 blocks, channels 2"},
		{"channels", "32,64,x", "'x' is no width"},
		{"channels", "33,66,99", "groups = 8 does not divide the width 33"},
		{"down_blocks", "Down,Down,Attn", "'Attn': give Down or AttnDown"},
		{"head_dim", "48", "head_dim = 48 does not divide the width 128"},
		{"image_size", "30", "with 3 levels it must be divisible by 4"},
		{"beta_start", "0.1", "beta_start = 0.1 is more than beta_end"},
		{"state_dir", "", "state_dir is empty"},
	};
	struct config config;
	struct error err = {""};

	config_defaults(&config);
	assert_int_equal(config_check(&config, &err), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		config_defaults(&config);
		assert_int_equal(
			config_set(&config, cases[i].key, cases[i].value, "--set", &err), 0);
		assert_int_equal(config_check(&config, &err), -EINVAL);
		if (!strstr(err.text, cases[i].message))
			fail_msg("'%s' does not say '%s'", err.text, cases[i].message);
	}
}

static void every_value_survives_its_text(void **state)
{
	struct config config, copy;
	struct error err;
	char text[CONFIG_TEXT_MAX];

	config_defaults(&config);
	config.learning_rate = 0.1 + 0.2;
	config.seed = INT64_C(9007199254740991);
	config_defaults(&copy);
	for (size_t i = 0; i < config_key_count(); i++) {
		config_value_text(&config, config_key_at(i), text);
		assert_int_equal(config_set(&copy, config_key_at(i)->key, text, "test", &err), 0);
	}
	assert_memory_equal(&config, &copy, sizeof(config));
}

static void a_difference_has_its_class(void **state)
{
	struct config a, b;

	config_defaults(&a);
	b = a;
	b.batch_size = 32;
	b.seed = 2;
	b.keep_last = 9;
	const struct config_key *key = config_next_difference(&a, &b, CONFIG_SCHEDULE, NULL);
	assert_non_null(key);
	assert_string_equal(key->key, "batch_size");
	assert_null(config_next_difference(&a, &b, CONFIG_SCHEDULE, key));
	assert_string_equal(config_next_difference(&a, &b, CONFIG_IDENTITY, NULL)->key, "seed");
	assert_string_equal(config_next_difference(&a, &b, CONFIG_FREE, NULL)->key, "keep_last");
}

static void sample_file_is_what_the_table_says(void **state)
{
	const char *path = getenv("CKPTD_SAMPLE_CONFIG");
	static char written[1 << 16], stored[1 << 16];
	struct config config;
	struct error err;

	assert_non_null(path);
	config_defaults(&config);
	FILE *out = fmemopen(written, sizeof(written), "w");
	assert_non_null(out);
	assert_int_equal(config_write(&config, out), 0);
	fclose(out);
	FILE *in = fopen(path, "r");
	assert_non_null(in);
	assert_true(fread(stored, 1, sizeof(stored) - 1, in) > 0);
	fclose(in);
	assert_string_equal(written, stored);

	/* And it reads back as the defaults. */
	struct config parsed;
	config_defaults(&parsed);
	parsed.batch_size = 99;
	assert_int_equal(config_parse_file(&parsed, path, &err), 0);
	assert_memory_equal(&config, &parsed, sizeof(config));
}

static void a_missing_file_is_named(void **state)
{
	struct config config;
	struct error err;

	config_defaults(&config);
	assert_int_equal(config_parse_file(&config, "/nonexistent/c.conf", &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/c.conf"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(P9_wrong_lines_are_named),
		cmocka_unit_test(P9_what_does_not_fit_together_is_named),
		cmocka_unit_test(every_value_survives_its_text),
		cmocka_unit_test(a_difference_has_its_class),
		cmocka_unit_test(sample_file_is_what_the_table_says),
		cmocka_unit_test(a_missing_file_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
