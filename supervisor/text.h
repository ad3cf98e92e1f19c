/* Text from outside (paths, workers' words, cut to fit) on its way into JSON and logs. */
#pragma once

#include "proto/json.h"

/* A JSON string, whatever the bytes: what is not UTF-8 becomes '?'. Never NULL. */
json_t *text_json(const char *text);
/* One line for a terminal: control characters become spaces. */
void text_flatten(char *text);
/* UTF-8 all through. */
bool text_is_utf8(const char *text);
