/* A run made again from its mirror. */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "ctl/ctl.h"

/* Under the run's lock, in a folder without a run: from path (the mirror, or the mirror and the
 * run's id). The configuration must be of that run. */
int mirror_into_folder(struct ctl *ctl, const char *path, const char *dir, int run_fd,
	const struct config *config, struct error *err);
