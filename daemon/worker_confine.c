/* See worker_confine.h. */
#include "daemon/worker_confine.h"

#include "base/log.h"
#include "base/panic.h"
#include "base/sandbox.h"
#include "daemon/worker.h"

#include <errno.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_confined_role(const char *role)
{
	return strcmp(role, "prepare") == 0 || strcmp(role, "train") == 0 ||
		strcmp(role, "sample") == 0;
}

static const char *reason(int code)
{
	switch (-code) {
	case ENOSYS:
	case EOPNOTSUPP:
		return "this kernel has none";
	case EBUSY:
		return "a thread does not end";
	default:
		return strerror(-code);
	}
}

/* What holds, for the log and the status. */
static void describe(struct worker *worker, int files_code)
{
	int calls_code = worker->calls_code;
	char *text = worker->sandbox;
	size_t size = sizeof(worker->sandbox);

	if (calls_code == 0 && files_code == 0)
		snprintf(text, size, "seccomp+landlock");
	else if (calls_code == 0)
		snprintf(text, size, "seccomp: no Landlock: %s", reason(files_code));
	else if (files_code == 0)
		snprintf(text, size, "landlock: no seccomp: %s", reason(calls_code));
	else
		snprintf(text, size, "none: no seccomp: %s; no Landlock: %s", reason(calls_code),
			reason(files_code));
	if (calls_code < 0 || files_code < 0)
		log_warning("the sandbox of '%s' is not whole: %s", worker->start.role, text);
}

void worker_confine_calls(struct worker *worker)
{
	if (is_confined_role(worker->start.role))
		worker->calls_code = sandbox_enter();
}

void worker_confine_files(
	struct worker *worker, const struct landlock_folder *folders, size_t count)
{
	CHECK(is_confined_role(worker->start.role) && !omp_in_parallel());
	(void)omp_pause_resource_all(omp_pause_hard);
	worker_set_threads(worker);
	describe(worker, landlock_enter(folders, count));
}

void worker_confine_to_previews(struct worker *worker)
{
	char path[PATH_MAX + 16];
	const struct landlock_folder previews = {path, LANDLOCK_WRITE};

	snprintf(path, sizeof(path), "%s/previews", worker->start.run_dir);
	worker_confine_files(worker, &previews, 1);
}
