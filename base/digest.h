/* BLAKE2b-256 (libsodium's crypto_generichash), and hex. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIGEST_SIZE 32
#define DIGEST_HEX_SIZE 65 /* with NUL */

struct digest {
	uint8_t bytes[DIGEST_SIZE];
};

struct digest digest_of(const void *data, size_t size);

/* Incremental. The state is opaque and needs no release. */
struct digest_stream {
	_Alignas(64) uint8_t state[384];
};
void digest_begin(struct digest_stream *stream);
void digest_add(struct digest_stream *stream, const void *data, size_t size);
struct digest digest_end(struct digest_stream *stream);

bool digest_equal(const struct digest *a, const struct digest *b);
bool digest_is_zero(const struct digest *digest);
void digest_to_hex(const struct digest *digest, char hex[DIGEST_HEX_SIZE]); /* lower case */
/* Exactly 64 lower-case hex digits, else -EINVAL. */
int digest_from_hex(const char *hex, size_t length, struct digest *ret);

/* Random bytes from the system, for ids. */
void digest_random_id(uint8_t *bytes, size_t size);
void bytes_to_hex(const uint8_t *bytes, size_t size, char *hex);  /* hex holds 2*size+1 */
int bytes_from_hex(const char *hex, uint8_t *bytes, size_t size); /* hex of exactly 2*size digits */
