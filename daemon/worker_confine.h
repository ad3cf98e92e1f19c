/* What a worker takes from itself before it reads what others made: the system calls of
 * base/sandbox.h at its beginning, and files (base/landlock.h) as soon as it needs the run's folder
 * no more. A kernel that cannot confine it stops nothing: a line of the log and the status say so.
 */
#pragma once

#include "base/landlock.h"

struct worker;

/* First of all, for the roles that are confined at all. */
void worker_confine_calls(struct worker *worker);
/* From here on nothing but these folders. Outside of parallel code: the threads are let go, and new
 * ones begin confined. */
void worker_confine_files(
	struct worker *worker, const struct landlock_folder *folders, size_t count);
/* Only RUN/previews stays, for writing. */
void worker_confine_to_previews(struct worker *worker);
