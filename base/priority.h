/* CPU and I/O priority of a thread: both belong to threads, and those made later inherit them. What
 * works beside the trainer stays out of its way. */
#pragma once

#include <sys/types.h>

/* Before other threads: this process gets `by` ahead of all that it starts, as far as that is
 * allowed. What it had is what priority_set calls 0 from then on. */
void priority_raise(int by);
/* thread 0: the caller. nice above 0 also means the lowest best-effort I/O priority, else the one
 * that goes with nice. Both are tried; the first error, for a message: nothing depends on it. */
int priority_set(pid_t thread, int nice);
/* The caller uses the disk only when nobody else wants it, where that is allowed. */
void priority_idle_io(void);
