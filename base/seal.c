/* Seal sums of whole chunks. */
#include "base/seal.h"

#include "base/panic.h"

void seal_sums(const void *data, size_t size, uint64_t *sums)
{
	const uint8_t *bytes = data;

	CHECK(size % SEAL_CHUNK_BYTES == 0);
	for (size_t i = 0; i < size / SEAL_CHUNK_BYTES; i++)
		sums[i] = seal_sum(bytes + i * SEAL_CHUNK_BYTES, 0, SEAL_CHUNK_BYTES / 4);
}
