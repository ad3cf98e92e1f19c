/* The signing key: opened here once, and passed on as a descriptor to the saver alone. All other
 * workers are told its public half. A key that was put in the place of another one counts from the
 * next preparation or reload on. */
#pragma once

#include "base/config.h"
#include "base/sign.h"

struct signing {
	char where[CONFIG_TEXT_MAX];       /* what signing_key said; "": there is none */
	int fd;                            /* -1 */
	char signer[SIGN_PUBLIC_HEX_SIZE]; /* public half, hex; "": none */
	char error[ERROR_TEXT_MAX];        /* why it cannot be read; "" */
};

void signing_init(struct signing *signing);
/* Reads the disk. In any thread; ret is overwritten. */
void signing_read(const char *where, struct signing *ret);
void signing_fini(struct signing *signing);
