/* text.h. It must never fail: what it is given may be anything. */
#include "supervisor/text.h"

#include "base/panic.h"

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
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
}
