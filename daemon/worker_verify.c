/* The roles `verify` (on request, as fast as it goes) and `scrub` (all that is kept, at a pace, the
 * oldest first): checkpoints are read whole and compared with their digests. What is found goes
 * into the catalog and to the supervisor. `stop` ends both between two chunks. */
#include "base/priority.h"
#include "daemon/worker.h"
#include "store/scrub.h"

#include <errno.h>
#include <string.h>

#define MIB 1048576.0
#define PROGRESS_NS (500 * NSEC_PER_MSEC)

struct reading {
	struct worker *worker;
	struct scrub_pace pace;
	char id[CHECKPOINT_ID_SIZE];
	uint64_t done_bytes, total_bytes; /* before this one */
	uint64_t read_bytes;              /* of this one */
	nsec_t told_ns;
};

static int tell_progress(struct reading *reading)
{
	reading->told_ns = clock_monotonic_ns();
	return worker_link_send(&reading->worker->link,
		json_pack("{s:{s:s,s:I,s:I}}", "scrub", "id", reading->id, "bytes_done",
			(json_int_t)(reading->done_bytes + reading->read_bytes), "bytes_total",
			(json_int_t)reading->total_bytes));
}

static void begin(void *context, const char *id, uint64_t done_bytes, uint64_t total_bytes)
{
	struct reading *reading = context;

	memset(reading->id, 0, sizeof(reading->id));
	strncpy(reading->id, id, sizeof(reading->id) - 1);
	reading->done_bytes = done_bytes;
	reading->total_bytes = total_bytes;
	reading->read_bytes = 0;
	(void)tell_progress(reading);
}

/* Waits for its turn with an ear on the link. */
static int pass(void *context, uint64_t bytes)
{
	struct reading *reading = context;
	struct worker_link *link = &reading->worker->link;
	nsec_t now_ns = clock_monotonic_ns();
	nsec_t until_ns = now_ns + scrub_pace_wait_ns(&reading->pace, now_ns, bytes);
	struct error err;

	do {
		int wait_ms = (int)((until_ns - now_ns) / NSEC_PER_MSEC);

		if (worker_link_poll(link, wait_ms, &err) < 0 || link->stop)
			return -ECANCELED;
		now_ns = clock_monotonic_ns();
	} while (now_ns + NSEC_PER_MSEC < until_ns);
	reading->read_bytes += bytes;
	if (now_ns - reading->told_ns >= PROGRESS_NS && tell_progress(reading) < 0)
		return -ECANCELED;
	return 0;
}

static int result(void *context, const struct scrub_result *result)
{
	struct reading *reading = context;
	bool ok = result->state == CHECKPOINT_VERIFIED;

	/* A supervisor that is gone takes the worker with it. */
	return worker_link_send(&reading->worker->link,
		json_pack("{s:{s:s,s:b,s:s,s:s,s:I}}", "verified", "id", result->id, "ok", ok,
			"state", checkpoint_state_name(result->state), "text",
			ok ? "every byte matches its digest" : result->text, "bytes",
			(json_int_t)result->bytes));
}

static void report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	struct reading *reading = context;

	worker_report(reading->worker, kind, level, step, text);
}

static int read_all(struct worker *worker, double rate_mib)
{
	struct reading reading = {
		.worker = worker, .pace = {.rate_bytes = (uint64_t)(rate_mib * MIB)}};
	const struct checkpoint_gate gate = {pass, &reading};
	const struct scrub_options options = {.id = worker->start.id,
		.threads = worker->start.threads,
		.gate = &gate,
		.begin = begin,
		.result = result,
		.report = report,
		.context = &reading};
	struct error err;
	int r;

	/* Without the keys all would be refused, and none of them for what it is. */
	if (worker->trust_code < 0)
		return worker_fail(worker, LINK_EXIT_TRANSIENT, "%s", worker->trust_text);
	r = scrub_run(worker->start.run_dir, worker->run_fd, worker->start.run_id, &options, &err);

	if (r == -ECANCELED)
		return worker_fail(worker, LINK_EXIT_FAILED, "stopped before all were read");
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err) : 0;
}

int worker_verify(struct worker *worker)
{
	return read_all(worker, 0);
}

int worker_scrub(struct worker *worker)
{
	priority_idle_io();
	return read_all(worker, worker->start.config.scrub_rate);
}
