/* The file that a save or a copy fills before it gets its name. Private to store/. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct partial {
	int fd;     /* -1: none */
	int direct; /* the same file, O_DIRECT; -1: not asked for, or refused */
};

/* Creates name, which one process at a time may have: an equal name can only be what a killed one
 * left behind. 0 or -errno. */
int partial_create(int folder_fd, const char *name, bool direct, struct partial *ret);
/* One chunk: direct where that is taken, else through the cache. */
int partial_write(const struct partial *partial, const void *chunk, off_t offset);
void partial_close(struct partial *partial);
