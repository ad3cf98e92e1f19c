/* What somebody could do who has taken a process over through a bug in it: its threads make system
 * calls for the test (by ptrace, as from outside no filter and no rule can tell). Only on x86-64.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TAKEOVER_THREADS_MAX 64

struct takeover {
	pid_t pid;
	int memory_fd;
	size_t thread_count;
	pid_t threads[TAKEOVER_THREADS_MAX];
};

/* Stops all threads. false: not possible here. */
bool takeover_begin(struct takeover *takeover, pid_t pid);
/* Lets them go on where they were. */
void takeover_end(struct takeover *takeover);

/* A call by one thread: what the kernel answers, -errno for a failure. A text is passed as its copy
 * in the process. */
struct takeover_argument {
	const char *text; /* or NULL: */
	long value;
};
#define TEXT_ARGUMENT(argument) ((struct takeover_argument){.text = (argument)})
#define VALUE_ARGUMENT(argument) ((struct takeover_argument){.value = (argument)})
long takeover_call(const struct takeover *takeover, pid_t thread, long number,
	const struct takeover_argument arguments[4]);
/* openat(2); what was opened is closed again, and 0 the answer. */
long takeover_open(
	const struct takeover *takeover, pid_t thread, int dir_fd, const char *path, int flags);
