/* Seal sums of whole chunks. A save sums twice what it hashes once, so with the wider instructions
 * where the CPU has them; integers, so the sums are the same. */
#include "base/seal.h"

#include "base/panic.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

static void sums_any(const uint8_t *bytes, size_t count, uint64_t *sums)
{
	for (size_t i = 0; i < count; i++)
		sums[i] = seal_sum(bytes + i * SEAL_CHUNK_BYTES, 0, SEAL_CHUNK_BYTES / 4);
}

#ifdef __x86_64__
/* Eight words at a time: the product of the low halves of 64-bit lanes takes the even words as they
 * lie there, the odd ones after a shift. */
static __attribute__((target("avx2"))) uint64_t sum_avx2(const uint8_t *bytes)
{
	const __m256i *at = (const __m256i *)(const void *)bytes;
	const __m256i step = _mm256_set1_epi64x(16);
	__m256i even_weights = _mm256_set_epi64x(13, 9, 5, 1);
	__m256i odd_weights = _mm256_set_epi64x(15, 11, 7, 3);
	__m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
	uint64_t lanes[4];

	for (size_t i = 0; i < SEAL_CHUNK_BYTES / sizeof(*at); i++) {
		__m256i words = _mm256_loadu_si256(at + i);

		even = _mm256_add_epi64(even, _mm256_mul_epu32(words, even_weights));
		odd = _mm256_add_epi64(
			odd, _mm256_mul_epu32(_mm256_srli_epi64(words, 32), odd_weights));
		even_weights = _mm256_add_epi64(even_weights, step);
		odd_weights = _mm256_add_epi64(odd_weights, step);
	}
	_mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_add_epi64(even, odd));
	return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

static void sums_avx2(const uint8_t *bytes, size_t count, uint64_t *sums)
{
	for (size_t i = 0; i < count; i++)
		sums[i] = sum_avx2(bytes + i * SEAL_CHUNK_BYTES);
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
