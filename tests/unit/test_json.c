/* P9: JSON from outside is read by type and bound; the configuration survives the trip as JSON. */
#include "proto/interface.h"
#include "proto/json.h"
#include "proto/link.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_members_have_types(void **unused)
{
	AUTO_JSON object = json_loads(
		"{\"i\": 7, \"r\": 0.5, \"b\": true, \"s\": \"x\", \"n\": null}", 0, NULL);

	assert_int_equal(json_get_int(object, "i", -1), 7);
	assert_int_equal(json_get_int(object, "r", -1), -1);
	assert_int_equal(json_get_int(object, "s", -1), -1);
	assert_int_equal(json_get_int(object, "n", -1), -1);
	assert_int_equal(json_get_int(object, "none", -1), -1);
	assert_true(json_get_real(object, "r", 9.0) == 0.5);
	assert_true(json_get_real(object, "i", 9.0) == 7.0);
	assert_true(json_get_real(object, "b", 9.0) == 9.0);
	assert_true(json_get_bool(object, "b", false));
	assert_true(json_get_bool(object, "i", true));
	assert_string_equal(json_get_text(object, "s", "?"), "x");
	assert_string_equal(json_get_text(object, "i", "?"), "?");
	assert_int_equal(json_get_int(NULL, "i", 3), 3);
}

static void test_there_is_no_nan(void **unused)
{
	AUTO_JSON nan_value = json_finite(NAN);
	AUTO_JSON inf_value = json_finite(-INFINITY);
	AUTO_JSON value = json_finite(0.25);

	assert_true(json_is_null(nan_value));
	assert_true(json_is_null(inf_value));
	assert_true(json_real_value(value) == 0.25);
}

static void test_p2_configuration_survives_the_trip(void **unused)
{
	struct config config, back;
	struct error err;

	config_defaults(&config);
	assert_int_equal(config_set(&config, "seed", "123456789012345", "test", &err), 0);
	assert_int_equal(config_set(&config, "learning_rate", "0.000123456789", "test", &err), 0);
	assert_int_equal(config_set(&config, "data", "folder:/a \"b\"\\c", "test", &err), 0);
	assert_int_equal(config_set(&config, "flips", "false", "test", &err), 0);
	AUTO_JSON json = json_from_config(&config);
	assert_non_null(json);
	assert_int_equal(json_object_size(json), config_key_count());
	config_defaults(&back);
	if (json_to_config(json, &back, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < config_key_count(); i++)
		assert_true(config_value_equal(&config, &back, config_key_at(i)));
}

static void test_p9_bad_configuration_is_refused(void **unused)
{
	const char *bad[] = {"[]", "{\"no_such_key\": \"1\"}", "{\"seed\": 1}",
		"{\"seed\": \"many\"}", "{\"image_size\": \"1000000\"}"};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct config config;
		struct error err = {0};
		AUTO_JSON json = json_loads(bad[i], 0, NULL);

		config_defaults(&config);
		assert_true(json_to_config(json, &config, &err) < 0);
		assert_true(err.text[0] != '\0');
	}
}

static void test_the_interface_is_in_the_program(void **unused)
{
	assert_non_null(strstr(proto_interface_description, "interface " PROTO_INTERFACE "\n"));
	assert_non_null(strstr(proto_interface_description, "method Status(interval_ms: ?int)"));
	assert_non_null(strstr(proto_interface_description, "\"killed by SIGSEGV\""));
	assert_int_equal(
		proto_interface_description[strlen(proto_interface_description) - 1], '\n');
	assert_true(strlen(proto_version) >= 5);
}

static void test_exit_codes_have_names(void **unused)
{
	assert_string_equal(link_exit_name(LINK_EXIT_DONE), "done");
	assert_string_equal(link_exit_name(LINK_EXIT_CONFIG), "configuration");
	assert_string_equal(link_exit_name(LINK_EXIT_MEMORY_CORRUPT), "memory corrupt");
	assert_string_equal(link_exit_name(139), "exit code");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_members_have_types),
		cmocka_unit_test(test_there_is_no_nan),
		cmocka_unit_test(test_p2_configuration_survives_the_trip),
		cmocka_unit_test(test_p9_bad_configuration_is_refused),
		cmocka_unit_test(test_the_interface_is_in_the_program),
		cmocka_unit_test(test_exit_codes_have_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
