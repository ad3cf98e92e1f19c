/* Counter-based random numbers: the door of libsodium's stream cipher. */
#include "base/rng.h"

#include "base/digest.h"
#include "base/fmath.h"
#include "base/panic.h"

#include <endian.h>
#include <sodium.h>
#include <string.h>

#define RNG_BYTES_MAX ((size_t)64 << 20)
#define BLOCK_PAIRS 256 /* Box-Muller pairs made at a time, on the stack */

void rng_init(struct rng *rng, uint64_t seed)
{
	static const char domain[24] = "ckptd random numbers 1";
	uint8_t message[sizeof(domain) + 8];
	uint64_t little = htole64(seed);

	memcpy(message, domain, sizeof(domain));
	memcpy(message + sizeof(domain), &little, 8);
	struct digest digest = digest_of(message, sizeof(message));
	_Static_assert(sizeof(rng->key) == sizeof(digest.bytes), "key size");
	memcpy(rng->key, digest.bytes, sizeof(rng->key));
}

struct nonce {
	uint8_t bytes[crypto_stream_xchacha20_NONCEBYTES];
};

static struct nonce make_nonce(enum rng_purpose purpose, uint64_t step, uint64_t index)
{
	struct nonce nonce = {0};
	uint32_t purpose_le = htole32((uint32_t)purpose);
	uint64_t step_le = htole64(step), index_le = htole64(index);

	_Static_assert(sizeof(nonce.bytes) == 24, "XChaCha20");
	memcpy(nonce.bytes, &purpose_le, 4);
	memcpy(nonce.bytes + 8, &step_le, 8);
	memcpy(nonce.bytes + 16, &index_le, 8);
	return nonce;
}

void rng_bytes(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	void *data, size_t size)
{
	struct nonce nonce = make_nonce(purpose, step, index);

	CHECK(size <= RNG_BYTES_MAX);
	crypto_stream_xchacha20(data, size, nonce.bytes, rng->key);
}

/* Bytes of the stream from 64 * block on. */
static void stream_at(
	const struct rng *rng, const struct nonce *nonce, uint64_t block, void *data, size_t size)
{
	memset(data, 0, size);
	crypto_stream_xchacha20_xor_ic(data, data, size, nonce->bytes, block, rng->key);
}

uint64_t rng_u64(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index)
{
	uint64_t value;

	rng_bytes(rng, purpose, step, index, &value, sizeof(value));
	return le64toh(value);
}

uint64_t rng_below(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	uint64_t bound)
{
	CHECK(bound > 0);
	return (uint64_t)((unsigned __int128)rng_u64(rng, purpose, step, index) * bound >> 64);
}

/* Box and Muller 1958: r = sqrt(-2 ln u1), angle = 2 pi u2. u1 = (x + 1/2) 2^-32 as a float is
 * never 0 and reaches 6.7 sigma; rounded to 1 it gives r = 0. */
static void box_muller(const uint32_t *words, float *values, size_t pairs)
{
	for (size_t i = 0; i < pairs; i++) {
		float u1 = ((float)words[2 * i] + 0.5f) * 0x1p-32f;
		float u2 = (float)(words[2 * i + 1] >> 8) * 0x1p-24f;
		float squared = -2.0f * fm_log(u1), sine, cosine;
		float radius = __builtin_sqrtf(squared > 0 ? squared : 0);

		fm_sincos_turns(u2, &sine, &cosine);
		values[2 * i] = radius * cosine;
		values[2 * i + 1] = radius * sine;
	}
}

void rng_normal(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	float *values, size_t count)
{
	struct nonce nonce = make_nonce(purpose, step, index);
	uint32_t words[2 * BLOCK_PAIRS];
	float made[2 * BLOCK_PAIRS];
	uint64_t block = 0;

	_Static_assert(sizeof(words) % 64 == 0, "whole cipher blocks");
	for (size_t done = 0; done < count; done += 2 * BLOCK_PAIRS) {
		size_t left = count - done, n = left < 2 * BLOCK_PAIRS ? left : 2 * BLOCK_PAIRS;
		size_t pairs = (n + 1) / 2;

		stream_at(rng, &nonce, block, words, pairs * 8);
		for (size_t i = 0; i < 2 * pairs; i++)
			words[i] = le32toh(words[i]);
		box_muller(words, made, pairs);
		memcpy(values + done, made, n * sizeof(*values));
		block += sizeof(words) / 64;
	}
}

void rng_uniform(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	float bound, float *values, size_t count)
{
	struct nonce nonce = make_nonce(purpose, step, index);
	uint32_t words[512];
	uint64_t block = 0;

	for (size_t done = 0; done < count; done += 512) {
		size_t n = count - done < 512 ? count - done : 512;

		stream_at(rng, &nonce, block, words, n * 4);
		for (size_t i = 0; i < n; i++)
			values[done + i] = ((float)(le32toh(words[i]) >> 8) * 0x1p-23f - 1.0f) *
				bound;
		block += sizeof(words) / 64;
	}
}

static uint32_t feistel_round(uint64_t key, uint32_t half)
{
	/* A 64-bit mixer (the finaliser of MurmurHash3, public domain formula). */
	uint64_t h = (key ^ half) * UINT64_C(0xff51afd7ed558ccd);

	h ^= h >> 33;
	h *= UINT64_C(0xc4ceb9fe1a85ec53);
	h ^= h >> 33;
	return (uint32_t)h;
}

uint64_t rng_permute(const struct rng *rng, uint64_t epoch, uint64_t n, uint64_t i)
{
	uint64_t keys[6];
	unsigned half_bits = 1;

	CHECK(n > 0 && n <= UINT64_C(1) << 48 && i < n);
	while (half_bits < 24 && (UINT64_C(1) << (2 * half_bits)) < n)
		half_bits++;
	uint32_t mask = (uint32_t)((UINT64_C(1) << half_bits) - 1);
	rng_bytes(rng, RNG_ORDER, epoch, n, keys, sizeof(keys));
	do { /* at most a factor of four beyond n: the walk ends soon */
		uint32_t left = (uint32_t)(i >> half_bits) & mask, right = (uint32_t)i & mask;

		for (int round = 0; round < 6; round++) {
			uint32_t next = (left ^ feistel_round(le64toh(keys[round]), right)) & mask;

			left = right;
			right = next;
		}
		i = (uint64_t)left << half_bits | right;
	} while (i >= n);
	return i;
}
