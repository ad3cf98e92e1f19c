/* Seal sums of whole chunks. A save sums twice what it hashes once, so with the wider instructions
 * where the CPU has them; integers, so the sums are the same. */
#include "base/seal.h"

#include "base/panic.h"

static void sums_any(const uint8_t *bytes, size_t count, uint64_t *sums)
{
	for (size_t i = 0; i < count; i++)
		sums[i] = seal_sum(bytes + i * SEAL_CHUNK_BYTES, 0, SEAL_CHUNK_BYTES / 4);
}

#ifdef __x86_64__
static __attribute__((target("avx2"), flatten)) void sums_avx2(
	const uint8_t *bytes, size_t count, uint64_t *sums)
{
	for (size_t i = 0; i < count; i++)
		sums[i] = seal_sum(bytes + i * SEAL_CHUNK_BYTES, 0, SEAL_CHUNK_BYTES / 4);
}
#endif

void seal_sums(const void *data, size_t size, uint64_t *sums)
{
	CHECK(size % SEAL_CHUNK_BYTES == 0);
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2")) {
		sums_avx2(data, size / SEAL_CHUNK_BYTES, sums);
		return;
	}
#endif
	sums_any(data, size / SEAL_CHUNK_BYTES, sums);
}
