/* See trust.h. */
#include "store/trust.h"

#include <errno.h>
#include <string.h>

static struct trust policy;

int trust_read(const struct config *config, struct trust *ret, struct error *err)
{
	struct sign_key key;
	int rc = 0;

	memset(ret, 0, sizeof(*ret));
	ret->require = config->require_signature;
	ret->only_listed = config->signing_key[0] != '\0' || config->trusted_keys[0] != '\0';
	if (config->signing_key[0] != '\0') {
		rc = sign_key_read(config->signing_key, &key, err);
		if (rc == 0) {
			ret->keys[ret->key_count++] = key.public;
			ret->has_own = true;
			sign_key_wipe(&key);
		}
	}
	if (config->trusted_keys[0] != '\0') {
		struct error why;
		int trusted = sign_trusted_read(
			config->trusted_keys, ret->keys, TRUST_KEYS_MAX, &ret->key_count, &why);

		if (trusted < 0 && rc == 0)
			rc = error_set(err, trusted, "%s", why.text);
	}
	return rc;
}

void trust_set(const struct trust *trust)
{
	policy = *trust;
}

int trust_check(const struct sign_public *signer, struct error *err)
{
	char hex[SIGN_PUBLIC_HEX_SIZE];

	if (signer == NULL)
		return !policy.require ? 0
				       : error_set(err, -EPROTONOSUPPORT,
						 "it is not signed, and require_signature is set");
	if (!policy.only_listed)
		return 0;
	for (uint32_t i = 0; i < policy.key_count; i++)
		if (sign_public_equal(&policy.keys[i], signer))
			return 0;
	sign_public_hex(signer, hex);
	return error_set(err, -EPROTONOSUPPORT, "an untrusted key signed it: %s", hex);
}
