/* The live view as text: pure, from what is known and the size of the screen. */
#pragma once

#include "ctl/curve.h"
#include "ctl/status_text.h"

#include <stdbool.h>
#include <stdio.h>

struct view {
	int width, height;
	bool color, utf8;
	bool stale;       /* what it shows is old: all but the state and its sentence is dimmed */
	const char *hint; /* the last line */
};

/* Exactly view->height lines (or fewer), none wider than view->width; each but the last ends with a
 * newline. With color, escape sequences for colour only. */
void view_render(
	const struct view *view, const struct look *look, const struct curve *curve, FILE *out);
