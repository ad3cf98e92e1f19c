/* Whose signatures count: a policy of the process, set once before the first checkpoint is opened.
 * Without one (nothing configured, or ckptctl) each checkpoint is as good as its signature, and an
 * unsigned one as good as a signed one. */
#pragma once

#include "base/config.h"
#include "base/sign.h"

#define TRUST_KEYS_MAX 64

struct trust {
	bool require;     /* refuse what is not signed */
	bool only_listed; /* refuse what others signed */
	uint32_t key_count;
	struct sign_public keys[TRUST_KEYS_MAX]; /* the own one first, if there is one */
	bool has_own;
};

/* From signing_key, trusted_keys and require_signature. On an error what could be read is there all
 * the same, and nothing else is trusted. */
int trust_read(const struct config *config, struct trust *ret, struct error *err);
/* The same for one who may not read the key: own is its public half, or NULL. */
int trust_gather(const struct config *config, const struct sign_public *own, struct trust *ret,
	struct error *err);
void trust_set(const struct trust *trust);
/* signer: NULL for a checkpoint that is not signed. -EPROTONOSUPPORT and why. */
int trust_check(const struct sign_public *signer, struct error *err);
