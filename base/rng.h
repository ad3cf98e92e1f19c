/* Counter-based randomness: every number is a function of (seed, purpose, step, index), so that a
 * restart needs no generator state. XChaCha20 (libsodium) keyed by BLAKE2b of the seed; the 24-byte
 * nonce is purpose (u32 LE), 4 zero bytes, step (u64 LE), index (u64 LE).
 * Changing anything here changes every run's bits; tests/unit holds the digests. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum rng_purpose {
	RNG_INIT = 1,     /* step = tensor index in the table, index = 0 */
	RNG_ORDER = 2,    /* step = epoch: keys of the permutation */
	RNG_FLIP = 3,     /* step, index = sample in the batch */
	RNG_TIMESTEP = 4, /* step, index = sample in the batch */
	RNG_NOISE = 5,    /* step, index = sample in the batch */
	RNG_LABEL_DROP = 6,
	RNG_HOLDOUT = 7, /* index = triple: its timestep and noise */
	RNG_PREVIEW = 8, /* index = image: its first noise */
	RNG_SAMPLER = 9, /* step = sampler step, index = image: noise added on the way */
	RNG_DATA = 10,   /* drawn data: index = image index */
};

struct rng {
	uint8_t key[32];
};

void rng_init(struct rng *rng, uint64_t seed);

/* Fills data with size bytes (at most 64 MiB). Thread-safe. */
void rng_bytes(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	void *data, size_t size);
/* One 64-bit value. */
uint64_t rng_u64(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index);
/* Uniform integer in [0, bound), bound > 0, without modulo bias beyond 2^-64 (multiply-shift). */
uint64_t rng_below(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	uint64_t bound);
/* count standard normals by Box-Muller from our own polynomials (base/fmath.h), fp32. Value i comes
 * from bytes 8*(i/2).. of the stream: pairs (cos, sin). Thread-safe. */
void rng_normal(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	float *values, size_t count);
/* count uniforms in [-bound, bound), 24 bits each. */
void rng_uniform(const struct rng *rng, enum rng_purpose purpose, uint64_t step, uint64_t index,
	float bound, float *values, size_t count);

/* Position i (0 <= i < n, n <= 2^48) of the keyed permutation of [0, n) for this epoch: a Feistel
 * network over the next power of four, with cycle walking. */
uint64_t rng_permute(const struct rng *rng, uint64_t epoch, uint64_t n, uint64_t i);
