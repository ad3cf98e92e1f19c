/* Text from outside (paths, workers' words, cut to fit) on its way into JSON and logs. */
#pragma once

#include "proto/json.h"

#define COUNT_MAX (INT64_C(1) << 53) /* exact in every reader of JSON */

/* A JSON string, whatever the bytes: what is not UTF-8 becomes '?'. Never NULL. */
json_t *text_json(const char *text);
/* One line for a terminal: control characters (C0, DEL, C1 in UTF-8) become spaces. */
void text_flatten(char *text);
/* What a worker says under key, as one line: "" when it is no string; cut to size. */
void text_take(char *ret, size_t size, const json_t *body, const char *key);
/* The same as a JSON string, uncut: the caller's reference. */
json_t *text_take_json(const json_t *body, const char *key);
/* A count of a worker's: 0 when it is none, that is no integer of 0 to COUNT_MAX. */
uint64_t count_take(const json_t *body, const char *key);
/* UTF-8 all through. */
bool text_is_utf8(const char *text);
