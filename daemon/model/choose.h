/* The choice of the engine for a net: what this CPU, kernel and sandbox allow, and what fits. */
#pragma once

#include "base/error.h"
#include "daemon/model/unet.h"

#include <stddef.h>

/* wanted: auto | openblas | avx512 | amx. auto takes the fastest of them that runs here and fits
 * the net; openblas always does. reason: one short line for the status, why it is this engine;
 * after -ENOTSUP (a named one that cannot run) only why not, while err says what to do too. */
int unet_choose_engine(const struct unet_config *config, const char *wanted,
	const struct engine **ret, char *reason, size_t reason_size, struct error *err);
