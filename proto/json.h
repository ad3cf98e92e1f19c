/* JSON (jansson's door for proto, supervisor, daemon and ctl). Values are json_t; these helpers
 * read typed members with bounds and never trust a type. */
#pragma once

#include "base/config.h"
#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Typed members; the default when missing, null or of another type. */
int64_t json_get_int(const json_t *object, const char *key, int64_t fallback);
double json_get_real(const json_t *object, const char *key, double fallback);
bool json_get_bool(const json_t *object, const char *key, bool fallback);
const char *json_get_text(const json_t *object, const char *key, const char *fallback);
/* A real, or null when it is not finite (JSON has no NaN). Never returns NULL. */
json_t *json_finite(double value);

/* {"key": "canonical text", ...} of every configuration key, and back. Unknown keys are refused. */
json_t *json_from_config(const struct config *config);
int json_to_config(const json_t *object, struct config *config, struct error *err);

/* cleanup attribute for json_t * */
static inline void json_unref(json_t **value)
{
	json_decref(*value);
}
#define AUTO_JSON __attribute__((cleanup(json_unref))) json_t *
