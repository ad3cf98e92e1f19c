/* The configuration (P9): one line says what is wrong, where, and what would be right; nothing is
 * half taken over; what is written reads back to the same bits. */
#include "base/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void assert_says(const struct error *err, const char *part)
{
	if (!strstr(err->text, part))
		fail_msg("'%s' does not say '%s'", err->text, part);
}

static void assert_refused(const char *text, const char *message)
{
	struct config config, before;
	struct error err;

	config_defaults(&config);
	before = config;
	assert_int_equal(config_parse_text(&config, text, "a.conf", &err), -EINVAL);
	assert_says(&err, message);
	assert_memory_equal(&config, &before, sizeof(config)); /* nothing half taken over */
}

static void test_the_defaults_are_valid(void **unused)
{
	struct config config;
	struct error err;

	config_defaults(&config);
	assert_int_equal(config_check(&config, &err), 0);
	assert_int_equal(config.steps_total, 6000);
	assert_true(config.learning_rate == 1e-3);
	assert_true(config.flips);
	assert_string_equal(config.channels, "32,64,128");
}

static void test_a_file(void **unused)
{
	static const char text[] = "\xef\xbb\xbf; comment\n# comment\n\n[train]\n"
				   "  batch_size = 32   ; as much as fits\r\n"
				   "\tlearning_rate=2e-4\n[model]\nflip_sin_to_cos = no\n"
				   "[train]\nthreads: 3\n[data]\ndata = folder:/my pictures/a;b";
	struct config config;
	struct error err;

	config_defaults(&config);
	assert_int_equal(config_parse_text(&config, text, "a.conf", &err), 0);
	assert_int_equal(config.batch_size, 32);
	assert_true(config.learning_rate == 2e-4);
	assert_false(config.flip_sin_to_cos);
	assert_int_equal(config.threads, 3);
	assert_string_equal(config.data, "folder:/my pictures/a;b");
	assert_int_equal(config.warmup_steps, 100); /* the rest keeps its value */
}

static void test_p9_errors_name_place_and_fix(void **unused)
{
	assert_refused("[train]\n\nbatchsize = 3\n",
		"a.conf:3: there is no setting 'batchsize'; "
		"did you mean 'batch_size'?");
	assert_refused("[train]\nquite_another_thing = 3\n", "a.conf:2: there is no setting");
	assert_refused("[model]\nbatch_size = 3\n",
		"a.conf:2: 'batch_size' belongs below [train], not [model]");
	assert_refused("batch_size = 3\n", "put it below [train]");
	assert_refused("[train]\nbatch_size\n", "a.conf:2: neither");
	assert_refused("[train\nbatch_size = 3\n", "a.conf:1: neither");
	assert_refused("[train]\nbatch_size = 5000\n",
		"a.conf:2: batch_size = 5000: give 1 to 4096 images");
	assert_refused("[train]\nlr_schedule = step\n", "give one of constant|cosine");
	assert_refused("[train]\nlr_schedule = cos\n", "give one of constant|cosine");
	assert_refused("[train]\nlr_schedule = constant|cosine\n", "give one of");
	assert_refused("[train]\nengine = avx2\n", "give one of auto|openblas|avx512|amx");
	assert_refused("[data]\nflips = maybe\n", "give true or false");
	assert_refused("[train]\nlearning_rate = 2\n", "learning_rate = 2: give 0 to 1");
	/* The first line is right, the second not: see that neither is taken (assert_refused). */
	assert_refused("[train]\nbatch_size = 8\nwarmup_steps = -1\n", "a.conf:3: warmup_steps");
}

static void test_p9_numbers_are_numbers(void **unused)
{
	static const char *const ints[] = {"", "x", "1x", "0x10", "1.5", "1e3",
		"99999999999999999999", "-9223372036854775809", " 5", "5 ", "6 # six"};
	static const char *const reals[] = {
		"", "x", "0.1x", "nan", "inf", "-inf", "1e999", " 0.1", "0,1"};
	struct config config;
	struct error err;

	config_defaults(&config);
	for (size_t i = 0; i < sizeof(ints) / sizeof(*ints); i++)
		assert_int_equal(config_set(&config, "threads", ints[i], "--set", &err), -EINVAL);
	for (size_t i = 0; i < sizeof(reals) / sizeof(*reals); i++)
		assert_int_equal(config_set(&config, "ema_max", reals[i], "--set", &err), -EINVAL);
	assert_says(&err, "--set: ema_max = 0,1: give a number");
	assert_int_equal(config_set(&config, "seed", "9007199254740991", "--set", &err), 0);
	assert_int_equal(config_set(&config, "seed", "9007199254740992", "--set", &err), -EINVAL);
	assert_int_equal(config.seed, 9007199254740991);
}

static void test_a_number_may_be_auto_where_that_means_something(void **unused)
{
	struct config config, again;
	struct error err;
	char text[CONFIG_TEXT_MAX];

	config_defaults(&config);
	assert_int_equal(config.interval, CONFIG_AUTO);
	config_value_text(&config, config_key_find("interval"), text);
	assert_string_equal(text, "auto");
	again = config;
	assert_int_equal(config_set(&again, "interval", text, "--set", &err), 0);
	assert_true(config_value_equal(&config, &again, config_key_find("interval")));
	assert_int_equal(config_set(&config, "interval", "90", "--set", &err), 0);
	assert_int_equal(config.interval, 90);
	assert_int_equal(config_set(&config, "interval", "-1", "--set", &err), -EINVAL);
	assert_says(&err, "--set: interval = -1: give auto, or 0 to 604800 seconds");
	assert_int_equal(config_set(&config, "interval", "automatic", "--set", &err), -EINVAL);
	assert_says(&err, "give auto, or a whole number of seconds");
	assert_int_equal(config_set(&config, "threads", "auto", "--set", &err), -EINVAL);
}

static void test_p9_text_is_bounded_and_plain(void **unused)
{
	static const char *const bad[] = {"a\nb", "a\x7f", " a", "a ", ";a", "a ;b"};
	char long_text[CONFIG_TEXT_MAX + 1];
	struct config config;
	struct error err;

	config_defaults(&config);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(config_set(&config, "state_dir", bad[i], "--set", &err), -EINVAL);
	memset(long_text, 'd', sizeof(long_text));
	long_text[CONFIG_TEXT_MAX] = 0;
	assert_int_equal(config_set(&config, "state_dir", long_text, "--set", &err), -EINVAL);
	assert_says(&err, "longer than 255 bytes");
	long_text[CONFIG_TEXT_MAX - 1] = 0;
	assert_int_equal(config_set(&config, "state_dir", long_text, "--set", &err), 0);
}

static char *written(const struct config *config)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(out);
	assert_int_equal(config_write(config, out), 0);
	assert_int_equal(fclose(out), 0);
	return text;
}

/* last-good.conf must give back what was running, whatever the values were. */
static void test_what_is_written_reads_back(void **unused)
{
	struct config config, read;
	struct error err;
	char path[CONFIG_TEXT_MAX];

	config_defaults(&config);
	config.learning_rate = 0.1 + 0.2;
	config.adam_eps = 1.2345678901234567e-9;
	config.seed = 9007199254740991;
	config.flips = false;
	memset(path, 'p', sizeof(path) - 1); /* longer than inih's own lines */
	memcpy(path, "folder:/a b/", 12);
	path[sizeof(path) - 1] = 0;
	assert_int_equal(config_set(&config, "data", path, "test", &err), 0);
	char *text = written(&config);
	config_defaults(&read);
	assert_int_equal(config_parse_text(&read, text, "last-good.conf", &err), 0);
	for (size_t i = 0; i < config_key_count(); i++)
		assert_true(config_value_equal(&config, &read, config_key_at(i)));
	assert_memory_equal(&config, &read, sizeof(config));
	free(text);
}

static void test_the_sample_file_is_up_to_date(void **unused)
{
	struct config config;
	struct error err;
	const char *path = getenv("CKPTD_SAMPLE_CONFIG");
	FILE *file;
	char in_tree[65536];

	if (!path)
		fail_msg("CKPTD_SAMPLE_CONFIG names etc/ckptd.conf (meson sets it)");
	file = fopen(path, "r");
	assert_non_null(file);
	in_tree[fread(in_tree, 1, sizeof(in_tree) - 1, file)] = 0;
	fclose(file);
	config_defaults(&config);
	char *text = written(&config);
	assert_string_equal(in_tree, text);
	free(text);
	config.batch_size = 4; /* and it sets every key */
	assert_int_equal(config_parse_file(&config, path, &err), 0);
	assert_int_equal(config.batch_size, 16);
}

static void test_p9_files_that_are_none(void **unused)
{
	char path[] = "/tmp/ckptd-test-config-XXXXXX";
	struct config config;
	struct error err;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	config_defaults(&config);
	assert_int_equal(config_parse_file(&config, "/no/such.conf", &err), -ENOENT);
	assert_says(&err, "/no/such.conf");
	assert_int_equal(config_parse_file(&config, "/tmp", &err), -EINVAL);
	assert_int_equal(write(fd, "[train]\nthr\0eads = 3\n", 20), 20);
	assert_int_equal(config_parse_file(&config, path, &err), -EINVAL);
	assert_says(&err, "NUL");
	assert_int_equal(ftruncate(fd, 300 << 10), 0);
	assert_int_equal(config_parse_file(&config, path, &err), -EFBIG);
	close(fd);
	unlink(path);
}

/* Each row breaks the defaults by one or two settings, and the message names the culprit. */
static void test_p9_settings_that_do_not_fit_together(void **unused)
{
	static const struct {
		const char *key, *value, *other, *other_value, *says;
	} rows[] = {
		{"data", "dogs", NULL, NULL, "[data] data = dogs: give 'cars' or 'folder:DIR'"},
		{"data", "folder:", NULL, NULL, "[data] data"},
		{"micro_batch", "5", NULL, NULL, "[train] micro_batch = 5"},
		{"micro_batch", "32", NULL, NULL, "[train] micro_batch = 32"},
		{"preview_steps", "100", "timesteps", "50", "[preview] preview_steps = 100"},
		{"beta_start", "0.3", "beta_end", "0.2", "[diffusion] beta_start"},
		{"init", "", NULL, NULL, "[model] init"},
		{"state_dir", "", NULL, NULL, "[service] state_dir"},
		{"scrub_rate", "1e-300", NULL, NULL, "[checkpoint] scrub_rate = 1e-300"},
		{"channels", "", NULL, NULL, "[model] channels"},
		{"channels", "32,,64", NULL, NULL, "[model] channels"},
		{"channels", "32,64,-8", NULL, NULL, "[model] channels"},
		{"channels", "32,64,100000", NULL, NULL, "[model] channels"},
		{"channels", "8,8,8,8,8,8,8,8,8", NULL, NULL, "at most 8 levels"},
		{"channels", "32,64", NULL, NULL, "down_blocks names 3 blocks, channels 2"},
		{"down_blocks", "Down,Down,Sideways", NULL, NULL, "give Down or AttnDown"},
		{"up_blocks", "AttnUp,Up", NULL, NULL, "[model] up_blocks names 2 blocks"},
		{"up_blocks", "Down,Up,Up", NULL, NULL, "give Up or AttnUp"},
		{"image_size", "34", NULL, NULL, "[data] image_size = 34"},
		{"groups", "12", NULL, NULL, "[model] groups = 12"},
		{"head_dim", "48", NULL, NULL, "[model] head_dim = 48"},
		{"channels", "7,14,32", "groups", "1", "must be even"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		struct config config;
		struct error err = {"nothing"};

		config_defaults(&config);
		assert_int_equal(config_set(&config, rows[i].key, rows[i].value, "t", &err), 0);
		if (rows[i].other)
			assert_int_equal(
				config_set(&config, rows[i].other, rows[i].other_value, "t", &err),
				0);
		if (config_check(&config, &err) != -EINVAL)
			fail_msg("%s = '%s' passes", rows[i].key, rows[i].value);
		assert_says(&err, rows[i].says);
	}
}

static void test_levels(void **unused)
{
	struct config config;
	struct config_levels levels;
	struct error err;

	config_defaults(&config);
	assert_int_equal(config_set(&config, "channels", "128, 256 ,256,256", "t", &err), 0);
	assert_int_equal(
		config_set(&config, "down_blocks", "Down, AttnDown ,Down,Down", "t", &err), 0);
	assert_int_equal(config_set(&config, "up_blocks", "Up,Up,AttnUp,Up", "t", &err), 0);
	assert_int_equal(config_levels(&config, &levels, &err), 0);
	assert_int_equal(levels.count, 4);
	assert_int_equal(levels.channels[0], 128);
	assert_int_equal(levels.channels[3], 256);
	assert_true(levels.down_attention[1] && !levels.down_attention[0]);
	assert_true(levels.up_attention[2] && !levels.up_attention[3]);
	assert_int_equal(config_check(&config, &err), 0);
}

static void test_differences_by_class(void **unused)
{
	struct config a, b;

	config_defaults(&a);
	b = a;
	assert_null(config_next_difference(&a, &b, CONFIG_IDENTITY, NULL));
	b.seed = 2;
	b.image_size = 64;
	b.batch_size = 8;
	strcpy(b.engine, "openblas");
	b.threads = 5;
	strcpy(b.recompute, "blocks");
	const struct config_key *key = config_next_difference(&a, &b, CONFIG_IDENTITY, NULL);
	assert_string_equal(key->key, "image_size");
	key = config_next_difference(&a, &b, CONFIG_IDENTITY, key);
	assert_string_equal(key->key, "seed");
	assert_null(config_next_difference(&a, &b, CONFIG_IDENTITY, key));
	key = config_next_difference(&a, &b, CONFIG_SCHEDULE, NULL);
	assert_string_equal(key->key, "batch_size");
	key = config_next_difference(&a, &b, CONFIG_SCHEDULE, key);
	assert_string_equal(key->key, "engine");
	key = config_next_difference(&a, &b, CONFIG_FREE, NULL);
	assert_string_equal(key->key, "threads");
	key = config_next_difference(&a, &b, CONFIG_FREE, key);
	assert_string_equal(key->key, "recompute");
}

/* The table itself: each key once, limits that hold their default, a text for people. */
static void test_the_table(void **unused)
{
	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);

		assert_ptr_equal(config_key_find(key->key), key);
		assert_true(strlen(key->text) > 10);
		if (key->type == CONFIG_INT || key->type == CONFIG_REAL)
			assert_true(key->min < key->max);
	}
	assert_null(config_key_find("no_such_key"));
}

static void test_the_manual_names_every_key(void **unused)
{
	char *text = NULL, line[80];
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(out);
	assert_int_equal(config_write_man(out), 0);
	fclose(out);
	for (size_t i = 0; i < config_key_count(); i++) {
		snprintf(line, sizeof(line), "\n.B %s\n", config_key_at(i)->key);
		assert_non_null(strstr(text, line));
	}
	free(text);
}

static void test_a_full_disk_is_seen(void **unused)
{
	struct config config;
	FILE *full = fopen("/dev/full", "w");

	if (!full)
		skip();
	setvbuf(full, NULL, _IONBF, 0);
	config_defaults(&config);
	assert_int_equal(config_write(&config, full), -EIO);
	fclose(full);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_defaults_are_valid),
		cmocka_unit_test(test_a_file),
		cmocka_unit_test(test_p9_errors_name_place_and_fix),
		cmocka_unit_test(test_p9_numbers_are_numbers),
		cmocka_unit_test(test_a_number_may_be_auto_where_that_means_something),
		cmocka_unit_test(test_p9_text_is_bounded_and_plain),
		cmocka_unit_test(test_what_is_written_reads_back),
		cmocka_unit_test(test_the_sample_file_is_up_to_date),
		cmocka_unit_test(test_p9_files_that_are_none),
		cmocka_unit_test(test_p9_settings_that_do_not_fit_together),
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_differences_by_class),
		cmocka_unit_test(test_the_table),
		cmocka_unit_test(test_the_manual_names_every_key),
		cmocka_unit_test(test_a_full_disk_is_seen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
