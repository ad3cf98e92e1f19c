/* The files that a process may still open: Linux's Landlock, from ABI 1 (Linux 5.13) on. */
#pragma once

#include <stddef.h>

enum landlock_access {
	LANDLOCK_READ,  /* files and lists */
	LANDLOCK_WRITE, /* files as well: make, change, rename in their folder, remove */
};

struct landlock_folder {
	const char *path; /* what cannot be opened is left out, and so closed */
	enum landlock_access access;
};

/* From here on, for good and for children as well, the process opens only what lies below these
 * folders; as far as the kernel knows how, it also binds and connects no TCP socket and sends
 * signals to nobody outside. Attaching to a process outside, or looking into its memory and
 * descriptors, is refused too. What is open stays open.
 *
 * A domain is a thread's: all other threads must have ended (they are waited for a moment), or it
 * is -EBUSY. -EOPNOTSUPP, -ENOSYS: no Landlock in this kernel; on any error nothing is confined. */
int landlock_enter(const struct landlock_folder *folders, size_t count);
