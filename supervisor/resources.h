/* What a worker takes of the machine: its limits, its memory, and whether the kernel's
 * out-of-memory killer was at work. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Kills for lack of memory so far, in our control group (version 2, else 1), else on the machine; 0
 * where nobody counts. */
uint64_t resources_oom_kills(void);
/* Memory of the process alone, without what is shared; 0 when it is gone. */
uint64_t resources_private_bytes(pid_t pid);
/* That many, or one for each processor when none are named. */
uint32_t resources_threads(uint32_t named);
/* No core files, few descriptors, and at most so much private memory (0: no limit). */
void resources_limit(pid_t pid, uint64_t memory_bytes);

/* Growth of a trainer that lays its memory out when it starts and then takes no more. Pure. */
#define GROWTH_SETTLE_STEPS 20

struct growth {
	uint64_t base_bytes; /* the most it had in its first steps */
};
/* True when it has more than limit_bytes beyond its base. steps: finished by this trainer. */
bool growth_exceeds(
	struct growth *growth, uint64_t steps, uint64_t private_bytes, uint64_t limit_bytes);
