/* `ckptctl keygen FILE`: a key that signs checkpoints. */
#include "ctl/verbs.h"

#include "base/sign.h"
#include "ctl/text.h"

int verb_keygen(struct ctl *ctl, const struct args *args)
{
	const char *path = args->positional[0];
	char hex[SIGN_PUBLIC_HEX_SIZE], clean[4096];
	struct sign_public public;
	struct error err;
	int r = sign_key_create(path, &public, &err);

	if (r < 0)
		return ctl_fail(ctl, r, &err);
	sign_public_hex(&public, hex);
	if (ctl->json) {
		AUTO_JSON object = json_pack("{s:s, s:s}", "file", path, "public", hex);

		ctl_print_json(ctl, object);
		return CTL_OK;
	}
	text_clean(path, clean, sizeof(clean));
	fprintf(ctl->out, "secret key in %s, public key in %s.pub:\n%s\n", clean, clean, hex);
	return CTL_OK;
}
