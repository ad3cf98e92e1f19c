/* One mapping laid out when a run starts; nothing is freed singly. Every block is aligned to 64
 * bytes. In planning mode (no memory) it only counts, so the size can be printed before. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct arena {
	uint8_t *base; /* NULL while planning */
	size_t size;
	size_t used;
};

/* Planning: arena_alloc counts and returns NULL. */
void arena_plan_init(struct arena *arena);
/* Maps size bytes, zeroed and faulted in. -ENOMEM. */
int arena_init(struct arena *arena, size_t size);
void arena_fini(struct arena *arena);
/* Panics when a real arena is too small: the plan was wrong. */
void *arena_alloc(struct arena *arena, size_t size);
