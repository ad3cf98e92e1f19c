/* The 64-bit sums that seal a slot: one for each MiB of the block,
 *     sum = sigma word[i] * (2 i + 1)  mod 2^64,
 * word[i] = the i-th little-endian 32-bit word of that MiB, zero-extended, i from 0. Addition
 * commutes, so threads may add in any order; the odd weights make equal flips not cancel. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SEAL_CHUNK_BYTES ((size_t)1 << 20)

/* Sum of words[first..first+count) of one chunk, first being the index inside the chunk. */
static inline uint64_t seal_sum(const void *words, size_t first, size_t count)
{
	const uint32_t *word = words;
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += (uint64_t)word[i] * (uint32_t)(2 * (first + i) + 1);
	return sum;
}

/* size is a multiple of SEAL_CHUNK_BYTES; writes size / SEAL_CHUNK_BYTES sums. Not threaded. */
void seal_sums(const void *data, size_t size, uint64_t *sums);
