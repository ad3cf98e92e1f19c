/* The role `mirror`, and what a start takes from a mirror. The role is one pass that brings to the
 * mirror what is missing there. It may hang with the mirror's disk, so it holds nothing that others
 * need: not the run's lock, and the catalog for single rows only. */
#include "base/priority.h"
#include "daemon/worker.h"
#include "store/mirror.h"

#include <errno.h>

static int say_mirrored(struct worker *worker, const struct mirror_outcome *outcome)
{
	return worker_link_send(&worker->link,
		json_pack("{s:{s:I,s:I,s:I,s:s}}", "mirrored", "copied",
			(json_int_t)outcome->copied, "removed", (json_int_t)outcome->removed,
			"behind", (json_int_t)outcome->behind, "newest", outcome->newest));
}

int worker_mirror(struct worker *worker)
{
	struct mirror_outcome outcome;
	struct run run = {0};
	struct error err;
	int r = worker->trust_code;

	priority_idle_io();
	if (r < 0)
		return worker_fail(worker, LINK_EXIT_TRANSIENT, "%s", worker->trust_text);
	r = run_load(worker->run_fd, &run, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err);
	const struct mirror_pass pass = {.run_dir = worker->start.run_dir,
		.run_fd = worker->run_fd,
		.run = &run,
		.config = &worker->start.config,
		.threads = 1,
		.report = worker_report,
		.context = worker};

	r = mirror_update(&pass, &outcome, &err);
	run_fini(&run);
	if (say_mirrored(worker, &outcome) < 0)
		return LINK_EXIT_FAILED;
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err) : LINK_EXIT_DONE;
}

int worker_fetch_newest(struct worker *worker, const struct run *run, const int64_t *have)
{
	const struct mirror_pass pass = {.run_dir = worker->start.run_dir,
		.run_fd = worker->run_fd,
		.run = run,
		.config = &worker->start.config,
		.threads = worker->start.threads,
		.report = worker_report,
		.context = worker};
	struct error err;
	int r;

	if (worker->start.config.mirror[0] == '\0')
		return 0;
	r = mirror_fetch_newest(&pass, have, &err);
	if (r < 0 && r != -ENOENT)
		worker_event(&worker->link, "mirror", "warning", 0, "%s", err.text);
	return r > 0;
}
