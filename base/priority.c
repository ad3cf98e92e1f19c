/* See base/priority.h. */
#include "base/priority.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/ioprio.h: the class, then the level in it. */
enum {
	IOPRIO_WHO_PROCESS = 1,
	AS_NICE_SAYS = 0,
	BEST_EFFORT_LOWEST = 2 << 13 | 7,
	IDLE = 3 << 13,
};

static int normal; /* nice of what nobody has changed */

void priority_raise(int by)
{
	errno = 0;
	int nice = getpriority(PRIO_PROCESS, 0);

	if (nice == -1 && errno != 0)
		return;
	normal = nice;
	(void)setpriority(PRIO_PROCESS, 0, nice - by);
}

int priority_set(pid_t thread, int nice)
{
	int code = setpriority(PRIO_PROCESS, (id_t)thread, normal + nice) < 0 ? -errno : 0;

	if (syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, (int)thread,
		    nice > 0 ? BEST_EFFORT_LOWEST : AS_NICE_SAYS) < 0 &&
		code == 0)
		code = -errno;
	return code;
}

void priority_idle_io(void)
{
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE);
}
