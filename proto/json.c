/* Typed, bounded access to JSON values, and the configuration as JSON. */
#include "proto/json.h"

#include "base/panic.h"

#include <errno.h>
#include <math.h>

int64_t json_get_int(const json_t *object, const char *key, int64_t fallback)
{
	const json_t *value = json_object_get(object, key);

	return json_is_integer(value) ? json_integer_value(value) : fallback;
}

double json_get_real(const json_t *object, const char *key, double fallback)
{
	const json_t *value = json_object_get(object, key);

	return json_is_number(value) ? json_number_value(value) : fallback;
}

bool json_get_bool(const json_t *object, const char *key, bool fallback)
{
	const json_t *value = json_object_get(object, key);

	return json_is_boolean(value) ? json_is_true(value) : fallback;
}

const char *json_get_text(const json_t *object, const char *key, const char *fallback)
{
	const json_t *value = json_object_get(object, key);

	return json_is_string(value) ? json_string_value(value) : fallback;
}

json_t *json_finite(double value)
{
	json_t *json = isfinite(value) ? json_real(value) : json_null();

	CHECK(json != NULL); /* out of memory for 24 bytes */
	return json;
}

json_t *json_from_config(const struct config *config)
{
	json_t *object = json_object();

	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);
		char text[CONFIG_TEXT_MAX];

		config_value_text(config, key, text);
		if (json_object_set_new(object, key->key, json_string(text)) < 0) {
			json_decref(object);
			return NULL;
		}
	}
	return object;
}

int json_to_config(const json_t *object, struct config *config, struct error *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(object))
		return error_set(err, -EINVAL, "configuration: not a JSON object");
	json_object_foreach((json_t *)object, key, value)
	{
		if (config_key_find(key) == NULL)
			return error_set(err, -EINVAL, "configuration: unknown key '%s'", key);
		if (!json_is_string(value))
			return error_set(err, -EINVAL, "configuration: '%s' is not a string", key);
		int r = config_set(config, key, json_string_value(value), "configuration", err);
		if (r < 0)
			return r;
	}
	return 0;
}
