/* What the bits of a run depend on besides its seed and data: CPU, engine and its library, this
 * build, libc. A resume on another fingerprint works, and says that bits may differ (P2). */
#pragma once

#include "base/digest.h"
#include "base/error.h"

#include <stddef.h>

int worker_fingerprint(struct digest *ret, char *text, size_t size, struct error *err);
