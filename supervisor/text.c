/* text.h. It must never fail: what it is given may be anything. */
#include "supervisor/text.h"

#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN_MAX 4400 /* a path and some words */

bool text_is_utf8(const char *text)
{
	json_t *value = json_string(text);

	json_decref(value);
	return value != NULL;
}

json_t *text_json(const char *text)
{
	char shown[SHOWN_MAX];
	json_t *value = json_string(text);

	if (value)
		return value;
	size_t size = strnlen(text, sizeof(shown) - 1);

	for (size_t i = 0; i < size; i++)
		shown[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
	shown[size] = '\0';
	value = json_string(shown);
	CHECK(value);
	return value;
}

void text_flatten(char *text)
{
	for (; *text; text++) {
		unsigned char next = (unsigned char)text[1];

		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
		else if ((unsigned char)*text == 0xc2 && next >= 0x80 && next < 0xa0)
			text[0] = text[1] = ' ';
	}
}

void text_take(char *ret, size_t size, const json_t *body, const char *key)
{
	snprintf(ret, size, "%s", json_get_text(body, key, ""));
	text_flatten(ret);
}

json_t *text_take_json(const json_t *body, const char *key)
{
	char *text = strdup(json_get_text(body, key, ""));

	CHECK(text);
	text_flatten(text);
	json_t *value = text_json(text);

	free(text);
	return value;
}

uint64_t count_take(const json_t *body, const char *key)
{
	int64_t count = json_get_int(body, key, 0);

	return count >= 0 && count <= COUNT_MAX ? (uint64_t)count : 0;
}
