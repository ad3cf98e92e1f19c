/* The terminal while the live view has it: another screen, no cursor, keys without Enter. */
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <termios.h>

struct terminal {
	FILE *out;
	bool entered, keys;
	struct termios saved;
};

/* True when out is a terminal that can hold a view. */
bool terminal_possible(FILE *out);
bool terminal_utf8(void);
bool terminal_color(void); /* NO_COLOR and TERM=dumb are respected */
void terminal_size(FILE *out, int *ret_width, int *ret_height);

void terminal_enter(struct terminal *terminal, FILE *out);
/* Everything as before. Harmless when not entered. */
void terminal_leave(struct terminal *terminal);
/* Shows a whole frame. -errno when the terminal is gone. */
int terminal_show(struct terminal *terminal, const char *frame);
