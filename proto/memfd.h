/* Shared memory of a fixed size: what the state memory and the progress page have in common. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A memfd of exactly size bytes, all of them allocated (more than this machine or this control
 * group has left is -ENOMEM here, not a SIGBUS or an out-of-memory kill later), beginning with
 * head, its size sealed for ever. Returns the descriptor (close-on-exec). name is a fault point. */
int memfd_create_sized(
	const char *name, uint64_t size, const void *head, size_t head_size, struct error *err);
/* All of it, readable and writable, shared; begins at a multiple of 2 MiB, so that huge pages are
 * mapped as such. populate: faulted in. NULL: errno says why. Undone by munmap. */
void *memfd_map(int fd, size_t bytes, bool populate);
/* True for a memfd that can neither shrink nor grow, by anyone. */
bool memfd_size_sealed(int fd);
