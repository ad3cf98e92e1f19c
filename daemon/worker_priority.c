/* Work beside the trainer stays out of its way. Threads made later inherit both priorities. */
#include "daemon/worker.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { IOPRIO_WHO_SELF = 1, BEST_EFFORT_LOWEST = 2 << 13 | 7, IDLE = 3 << 13 };

/* Politeness: where it is refused, the work is done all the same. */
void worker_step_back(void)
{
	(void)setpriority(PRIO_PROCESS, 0, 10);
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_SELF, 0, BEST_EFFORT_LOWEST);
}

void worker_idle_io(void)
{
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_SELF, 0, IDLE);
}
