/* Ed25519 signatures (RFC 8032; libsodium's crypto_sign) and their key files. A secret key is in
 * memory only between read and wipe, and never in a message.
 *
 * A key file is one line of text:
 *     ckptd-ed25519-secret-1 HEX      the 32-byte seed; FILE, readable by its owner only
 *     ckptd-ed25519-public-1 HEX      the 32-byte public key; FILE.pub
 * A file of trusted keys has any number of public lines, each with an optional comment after the
 * key; empty lines and lines that begin with '#' say nothing. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIGN_PUBLIC_BYTES 32
#define SIGN_SEED_BYTES 32
#define SIGN_SECRET_BYTES 64
#define SIGN_BYTES 64
#define SIGN_PUBLIC_HEX_SIZE (2 * SIGN_PUBLIC_BYTES + 1)

struct sign_public {
	uint8_t bytes[SIGN_PUBLIC_BYTES];
};

struct sign_key {
	struct sign_public public;
	uint8_t secret[SIGN_SECRET_BYTES]; /* seed and public key */
};

void sign_key_from_seed(const uint8_t seed[SIGN_SEED_BYTES], struct sign_key *ret);
void sign_key_wipe(struct sign_key *key);

void sign_make(const struct sign_key *key, const void *data, size_t size, uint8_t ret[SIGN_BYTES]);
bool sign_verify(const struct sign_public *key, const void *data, size_t size,
	const uint8_t signature[SIGN_BYTES]);
bool sign_public_equal(const struct sign_public *a, const struct sign_public *b);
void sign_public_hex(const struct sign_public *key, char hex[SIGN_PUBLIC_HEX_SIZE]);

/* A new key into path and path.pub, synced; neither may be there yet (-EEXIST). */
int sign_key_create(const char *path, struct sign_public *ret, struct error *err);
/* where: a path, or credential:NAME, a file of $CREDENTIALS_DIRECTORY (systemd's
 * LoadCredential=). A plain path must be ours or root's and closed to all others (-EPERM). */
int sign_key_read(const char *where, struct sign_key *ret, struct error *err);
/* The two halves of that, when one process opens the file and another takes the key: a descriptor
 * (or -errno), and what stands there; each looks at owner and mode. */
int sign_key_open(const char *where, struct error *err);
int sign_key_take(int fd, const char *where, struct sign_key *ret, struct error *err);
/* Appends to keys; more than max is -E2BIG. */
int sign_trusted_read(const char *path, struct sign_public *keys, uint32_t max, uint32_t *count,
	struct error *err);
