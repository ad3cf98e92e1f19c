/* What the tests of damage share: how much of it a run does, numbers from a seed that is printed
 * when something is not found, and a file's bytes under the tests' hands. Include after cmocka. */
#pragma once

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* CKPTD_FULL asks for everything (./do test disk-full); without it a test takes seconds. */
static inline bool damage_is_full(void)
{
	const char *full = getenv("CKPTD_FULL");

	return full != NULL && *full != '\0';
}

static inline uint64_t damage_seed(void)
{
	const char *seed = getenv("CKPTD_TEST_SEED");

	return seed != NULL ? strtoull(seed, NULL, 10) : 1;
}

/* xorshift64*: where the next bit flips. state: not 0. */
static inline uint64_t damage_next(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(0x2545f4914f6cdd1d);
}

/* Shared with the file: what is changed here is what the next pread gives. */
static inline uint8_t *damage_map(int dir_fd, const char *name, size_t size)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC);
	uint8_t *map;

	assert_true(fd >= 0);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	close(fd);
	return map;
}

static inline void damage_flip(uint8_t *bytes, uint64_t bit)
{
	bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
}
