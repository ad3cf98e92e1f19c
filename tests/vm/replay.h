/* States that a lost power can leave of a disk with a volatile cache: a log of its writes and
 * flushes (QEMU's blklogwrites) is replayed on the disk as it was before, and of the writes since
 * the last flush any may be lost, or torn at 4 KiB. */
#pragma once

#include "tests/vm/disk.h"

#include <stdbool.h>
#include <stdint.h>

struct replay {
	uint32_t states, violations, flushes;
	int64_t promised; /* the last mark */
	char first[256];  /* violation */
};

/* base: the disk before the first entry, with a file system fs; it takes the log's writes. Looks at
 * about `states` states: each must be whole, and its newest verified checkpoint not older than the
 * last mark before (guest_agent.c). A mutant ends at the first violation. */
void replay_run(const char *log, const char *base, const struct disk_fs *fs, uint32_t states,
	bool mutant, struct replay *ret);
