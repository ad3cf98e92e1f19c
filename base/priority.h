/* CPU and I/O priority. What works beside the trainer stays out of its way. Nice values belong to
 * threads, and those made later inherit them; but where the kernel weighs whole sessions against
 * each other (autogroup, sched(7)), they only count within one, and every worker leads its own. So
 * a process that leads a session has its session's nice value set as well. */
#pragma once

#include <sys/types.h>

/* Before other threads: this process gets `by` ahead of all that it starts, as far as that is
 * allowed. What it had is what priority_set calls 0 from then on. */
void priority_raise(int by);
/* All threads of a process. nice above 0 also means the lowest best-effort I/O priority, else the
 * one that goes with nice. All is tried; the first error, for a message: nothing depends on it. */
int priority_set(pid_t process, int nice);
/* The caller uses the disk only when nobody else wants it, where that is allowed. */
void priority_idle_io(void);
