/* What every role of the worker has: its orders (the start frame), the link to the supervisor and
 * the run's folder; and the roles themselves. A role returns an exit code of enum link_exit; every
 * code but DONE goes through worker_fail, so that the supervisor gets exactly one line. */
#pragma once

#include "base/digest.h"
#include "base/error.h"
#include "daemon/worker_link.h"
#include "daemon/worker_start.h"
#include "proto/link.h"
#include "store/trust.h"

#define FINGERPRINT_TEXT_MAX 1024
#define SANDBOX_TEXT_MAX 160

struct worker {
	struct worker_start start;
	struct worker_link link;
	int run_fd;
	struct digest fingerprint;
	char fingerprint_text[FINGERPRINT_TEXT_MAX];
	struct trust trust;
	int trust_code; /* 0, or why not all keys could be read */
	char trust_text[ERROR_TEXT_MAX];
	int calls_code;                 /* of the seccomp filter; 0: it holds */
	char sandbox[SANDBOX_TEXT_MAX]; /* what holds, from the time it is whole */
};

int worker_prepare(struct worker *worker);
int worker_train(struct worker *worker);
int worker_save(struct worker *worker);
int worker_mirror(struct worker *worker);
int worker_sample(struct worker *worker);
int worker_verify(struct worker *worker);
int worker_scrub(struct worker *worker);

/* Says why in a `failed` frame and returns code. */
int worker_fail(struct worker *worker, enum link_exit code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same for a negative errno whose line is err: storage and memory faults keep their own code,
 * everything else gets `otherwise`. */
int worker_fail_errno(
	struct worker *worker, int r, enum link_exit otherwise, const struct error *err);
/* A recovery_report (store/recovery.h) that sends events; context is the worker. */
void worker_report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text);

/* Before a start reads (store/mirror.h): true when a newer checkpoint on the line came back from
 * the mirror than is here (have NULL), or than step *have, -1 for none. A mirror that is away, or
 * does not answer, costs seconds and nothing else. */
int worker_fetch_newest(struct worker *worker, const struct run *run, const int64_t *have);

/* The number of OpenMP threads: of the start frame, else of the configuration, else all. */
void worker_set_threads(const struct worker *worker);
