/* One anonymous mapping, handed out from the front. */
#include "base/arena.h"

#include "base/panic.h"

#include <errno.h>
#include <sys/mman.h>

#define ARENA_ALIGN ((size_t)64)

void arena_plan_init(struct arena *arena)
{
	*arena = (struct arena){0};
}

int arena_init(struct arena *arena, size_t size)
{
	*arena = (struct arena){0};
	if (size == 0)
		size = ARENA_ALIGN;
	void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		return -errno;
	/* Advice only: fewer TLB misses where the kernel has huge pages. */
	madvise(base, size, MADV_HUGEPAGE);
	if (madvise(base, size, MADV_POPULATE_WRITE) < 0 && errno != EINVAL) {
		int code = -errno;

		munmap(base, size);
		return code;
	}
	arena->base = base;
	arena->size = size;
	return 0;
}

void arena_fini(struct arena *arena)
{
	if (arena->base)
		munmap(arena->base, arena->size);
	*arena = (struct arena){0};
}

void *arena_alloc(struct arena *arena, size_t size)
{
	size_t rounded, end;

	CHECK(!__builtin_add_overflow(size, ARENA_ALIGN - 1, &rounded));
	rounded &= ~(ARENA_ALIGN - 1);
	CHECK(!__builtin_add_overflow(arena->used, rounded, &end));
	void *block = arena->base ? arena->base + arena->used : NULL;
	if (arena->base)
		CHECK(end <= arena->size);
	arena->used = end;
	return block;
}
