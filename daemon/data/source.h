/* Inside daemon/data: the one source that reads and writes the disk. */
#pragma once

#include "daemon/data/data.h"
#include "daemon/data/pack.h"

#define FOLDER_PREFIX "folder:"

/* dir: what follows "folder:". As data_prepare. */
int folder_prepare(const struct data_config *config, const char *dir, _Atomic uint64_t *moves,
	data_report *report, void *context, struct error *err);
int folder_open(
	const struct data_config *config, const char *dir, struct pack *ret, struct error *err);
