/* See trust.h. */
#include "store/trust.h"

#include <errno.h>
#include <string.h>

static struct trust policy;

int trust_gather(const struct config *config, const struct sign_public *own, struct trust *ret,
	struct error *err)
{
	memset(ret, 0, sizeof(*ret));
	ret->require = config->require_signature;
	ret->only_listed = config->signing_key[0] != '\0' || config->trusted_keys[0] != '\0';
	if (own) {
		ret->keys[ret->key_count++] = *own;
		ret->has_own = true;
	}
	if (config->trusted_keys[0] == '\0')
		return 0;
	return sign_trusted_read(
		config->trusted_keys, ret->keys, TRUST_KEYS_MAX, &ret->key_count, err);
}

int trust_read(const struct config *config, struct trust *ret, struct error *err)
{
	struct sign_key key;
	struct error why;
	bool wanted = config->signing_key[0] != '\0';
	int rc = wanted ? sign_key_read(config->signing_key, &key, err) : 0, trusted;

	trusted = trust_gather(config, wanted && rc == 0 ? &key.public : NULL, ret, &why);
	if (wanted && rc == 0)
		sign_key_wipe(&key);
	return rc < 0 || trusted == 0 ? rc : error_set(err, trusted, "%s", why.text);
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
