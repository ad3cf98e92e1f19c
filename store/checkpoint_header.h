/* The header of a checkpoint file: how it is built, and its root. Private to store/; the words are
 * in docs/CHECKPOINT_FORMAT.md. */
#pragma once

#include "store/checkpoint.h"

#define CHECKPOINT_HEADER_MAX ((uint64_t)16 << 20)
#define HEADER_LENGTH_BYTES 8

/* All bytes before the data: length, JSON, spaces up to a multiple of CHECKPOINT_DATA_ALIGN. The
 * values that are known only after the data has been hashed have a fixed width and are '0' first.
 */
struct checkpoint_header {
	uint8_t *bytes; /* owned; aligned to CHECKPOINT_DATA_ALIGN for direct I/O */
	size_t size;
	char *chunk_digests; /* where they go, in bytes */
	char *root;
	char *signature; /* NULL: not signed */
	const struct sign_key *key;
	uint32_t chunk_count;
};

int checkpoint_header_build(const struct checkpoint_source *source, const char *created,
	struct checkpoint_header *ret, struct error *err);
/* Fills in the digests of the chunks, then the root, then the signature. */
void checkpoint_header_finish(
	struct checkpoint_header *header, const struct digest *chunks, struct digest *ret_root);
void checkpoint_header_fini(struct checkpoint_header *header);

/* The place of the root's or the signature's value in the JSON; NULL unless there is exactly one.
 */
const char *checkpoint_header_find_root(const char *json, size_t size);
const char *checkpoint_header_find_signature(const char *json, size_t size);
/* BLAKE2b-256 over the domain, the length and the JSON with the values of root and signature (NULL:
 * there is none) as zeros. */
struct digest checkpoint_header_root(
	const char *json, size_t size, const char *root, const char *signature);
/* Ed25519 over the domain and the root. */
void checkpoint_header_sign(
	const struct sign_key *key, const struct digest *root, uint8_t ret[SIGN_BYTES]);
bool checkpoint_header_signed(const struct sign_public *signer, const struct digest *root,
	const uint8_t signature[SIGN_BYTES]);
