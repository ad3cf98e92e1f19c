/* Shared memory of a fixed size: what the state memory and the progress page have in common. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A memfd of exactly size bytes, the first `now` of them allocated, beginning with head, its size
 * sealed for ever. More than this machine or this control group has left for all of it is -ENOMEM
 * here, not a SIGBUS or an out-of-memory kill later. Returns the descriptor (close-on-exec). name
 * is a fault point. */
int memfd_create_sized(const char *name, uint64_t size, uint64_t now, const void *head,
	size_t head_size, struct error *err);
/* Allocates bytes of a map, in huge pages where the kernel can; what has been written stays. What
 * cannot be had is left for the first touch. */
void memfd_allocate(uint8_t *map, size_t bytes);
/* All of it, readable and writable, shared; begins at a multiple of 2 MiB, so that huge pages are
 * mapped as such. NULL: errno says why. Undone by munmap. */
void *memfd_map(int fd, size_t bytes);
/* True for a memfd that can neither shrink nor grow, by anyone. */
bool memfd_size_sealed(int fd);
