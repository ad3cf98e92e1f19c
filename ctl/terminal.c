/* The terminal: plain ECMA-48 sequences that every terminal of the last thirty years knows. What
 * enter changes, leave restores; the view's own text never scrolls. */
#include "ctl/terminal.h"

#include <errno.h>
#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool terminal_possible(FILE *out)
{
	const char *term = getenv("TERM");

	return isatty(fileno(out)) && term != NULL && strcmp(term, "dumb") != 0;
}

bool terminal_utf8(void)
{
	return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

bool terminal_color(void)
{
	const char *no_color = getenv("NO_COLOR");

	return no_color == NULL || no_color[0] == '\0';
}

void terminal_size(FILE *out, int *ret_width, int *ret_height)
{
	struct winsize size = {0};

	*ret_width = 80;
	*ret_height = 24;
	if (ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0) {
		*ret_width = size.ws_col;
		*ret_height = size.ws_row;
	}
}

void terminal_enter(struct terminal *terminal, FILE *out)
{
	*terminal = (struct terminal){.out = out, .entered = true};
	fputs("\033[?1049h\033[?25l\033[2J", out);
	fflush(out);
	/* Only in the foreground: a background job would be stopped for touching the terminal. */
	if (isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == getpgrp() &&
		tcgetattr(STDIN_FILENO, &terminal->saved) == 0) {
		struct termios raw = terminal->saved;

		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
		terminal->keys = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
	}
}

void terminal_leave(struct terminal *terminal)
{
	if (!terminal->entered)
		return;
	if (terminal->keys)
		tcsetattr(STDIN_FILENO, TCSANOW, &terminal->saved);
	fputs("\033[0m\033[?25h\033[?1049l", terminal->out);
	fflush(terminal->out);
	terminal->entered = false;
}

int terminal_show(struct terminal *terminal, const char *frame)
{
	fputs("\033[H", terminal->out);
	for (const char *at = frame; *at != '\0';) {
		size_t length = strcspn(at, "\n");

		fwrite(at, 1, length, terminal->out);
		fputs("\033[K", terminal->out); /* what the last frame left on this line */
		at += length;
		if (*at == '\n') {
			fputs("\r\n", terminal->out);
			at++;
		}
	}
	fputs("\033[J", terminal->out);
	return fflush(terminal->out) == 0 ? 0 : -errno;
}
