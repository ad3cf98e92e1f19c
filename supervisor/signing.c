/* See signing.h. The secret half is in memory while the public one is made of it, and no longer. */
#include "supervisor/signing.h"

#include "base/panic.h"

#include <stdio.h>
#include <unistd.h>

void signing_init(struct signing *signing)
{
	*signing = (struct signing){.fd = -1};
}

void signing_read(const char *where, struct signing *ret)
{
	struct sign_key key;
	struct error err;
	int code;

	signing_init(ret);
	snprintf(ret->where, sizeof(ret->where), "%s", where);
	if (where[0] == '\0')
		return;
	ret->fd = sign_key_open(where, &err);
	code = ret->fd < 0 ? ret->fd : sign_key_take(ret->fd, where, &key, &err);
	if (code == 0) {
		sign_public_hex(&key.public, ret->signer);
		sign_key_wipe(&key);
	} else {
		snprintf(ret->error, sizeof(ret->error), "%s", err.text);
		signing_fini(ret);
	}
	CHECK((ret->fd >= 0) == (ret->error[0] == '\0'));
}

void signing_fini(struct signing *signing)
{
	if (signing->fd >= 0)
		close(signing->fd);
	signing->fd = -1;
}
