/* The last line of a process that found its own bug. Must not allocate or take a lock. */
#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void panic_at(const char *file, int line, const char *what)
{
	char text[512];
	int length = snprintf(text, sizeof(text), "panic at %s:%d: %s\n", file, line, what);

	if (length > (int)sizeof(text) - 1)
		length = (int)sizeof(text) - 1;
	if (length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0)
		abort();
	abort();
}
