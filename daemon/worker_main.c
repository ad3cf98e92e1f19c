/* See worker_main.h and worker.h. */
#include "daemon/worker_main.h"

#include "base/log.h"
#include "base/panic.h"
#include "daemon/worker.h"
#include "daemon/worker_confine.h"
#include "daemon/worker_fingerprint.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define START_TIMEOUT_NS (60 * NSEC_PER_SEC)

static const struct {
	const char *name;
	int (*run)(struct worker *worker);
} roles[] = {
	{"prepare", worker_prepare},
	{"train", worker_train},
	{"save", worker_save},
	{"sample", worker_sample},
	{"verify", worker_verify},
	{"scrub", worker_scrub},
	{"mirror", worker_mirror},
};
#define ROLE_COUNT (sizeof(roles) / sizeof(roles[0]))

int worker_fail(struct worker *worker, enum link_exit code, const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX];
	va_list args;

	CHECK(code != LINK_EXIT_DONE);
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (worker_link_send(&worker->link, json_pack("{s:{s:s}}", "failed", "text", text)) < 0)
		log_error("%s", text);
	return code;
}

int worker_fail_errno(
	struct worker *worker, int r, enum link_exit otherwise, const struct error *err)
{
	switch (-r) {
	case ENOSPC:
	case EDQUOT:
	case EIO:
	case EROFS:
	case EFBIG:
		return worker_fail(worker, LINK_EXIT_STORAGE, "%s", err->text);
	case ENOMEM:
	case EAGAIN:
	case EMFILE:
	case ENFILE:
	case EPROTONOSUPPORT:
		return worker_fail(worker, LINK_EXIT_TRANSIENT, "%s", err->text);
	case EUCLEAN:
		return worker_fail(worker, LINK_EXIT_MEMORY_CORRUPT, "%s", err->text);
	default:
		return worker_fail(worker, otherwise, "%s", err->text);
	}
}

void worker_report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	struct worker *worker = context;

	worker_event(&worker->link, kind, level, step, "%s", text);
}

void worker_set_threads(const struct worker *worker)
{
	int64_t threads = worker->start.threads;

	if (threads == 0)
		threads = worker->start.config.threads;
	omp_set_num_threads(threads > 0 ? (int)threads : omp_get_num_procs());
}

static int open_run(struct worker *worker)
{
	struct error err;
	int r = run_open_dir(worker->start.run_dir, false, &err);

	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err);
	worker->run_fd = r;
	return 0;
}

/* What cannot be read makes nothing trusted; whether that is an error is the role's affair. */
static void set_trust(struct worker *worker)
{
	const struct worker_start *start = &worker->start;
	struct error err;

	worker->trust_code = trust_gather(
		&start->config, start->has_signer ? &start->signer : NULL, &worker->trust, &err);
	if (start->config.signing_key[0] != '\0' && !start->has_signer)
		worker->trust_code = error_set(&err, -ENOKEY, "%s", start->signer_error);
	snprintf(worker->trust_text, sizeof(worker->trust_text), "%s",
		worker->trust_code < 0 ? err.text : "");
	trust_set(&worker->trust);
}

static int say_hello(struct worker *worker)
{
	char hex[DIGEST_HEX_SIZE];
	struct error err;
	int r = worker_fingerprint(&worker->fingerprint, worker->fingerprint_text,
		sizeof(worker->fingerprint_text), &err);

	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	digest_to_hex(&worker->fingerprint, hex);
	r = worker_link_send(&worker->link,
		json_pack("{s:{s:s,s:i,s:s,s:s,s:s}}", "hello", "role", worker->start.role, "pid",
			(int)getpid(), "version", CKPTD_VERSION, "fingerprint", hex,
			"fingerprint_text", worker->fingerprint_text));
	return r < 0 ? LINK_EXIT_FAILED : 0;
}

static int take_orders(struct worker *worker, const char *role)
{
	AUTO_JSON frame = NULL;
	struct error err;
	enum log_level level;
	int r = frame_receive(LINK_FD, &worker->link.reader,
		clock_monotonic_ns() + START_TIMEOUT_NS, &frame, &err);

	if (r < 0) {
		log_error("no start frame: %s", err.text);
		return LINK_EXIT_FAILED;
	}
	r = worker_start_parse(frame, role, &worker->start, &err);
	if (r < 0)
		return worker_fail(worker, LINK_EXIT_FAILED, "%s", err.text);
	if (log_level_parse(worker->start.config.log_level, &level) == 0)
		log_set_level(level);
	/* PR_SET_PDEATHSIG was set after the fork: a parent that died before it is seen here. */
	if (getppid() != worker->start.parent_pid)
		return worker_fail(worker, LINK_EXIT_FAILED, "started by pid %d, which is gone",
			(int)worker->start.parent_pid);
	return 0;
}

int worker_main(const char *role)
{
	static struct worker worker;
	struct stat link;
	size_t i = 0;
	int r;

	log_open("ckptd-worker", LOG_LEVEL_INFO);
	while (i < ROLE_COUNT && strcmp(roles[i].name, role) != 0)
		i++;
	if (i == ROLE_COUNT || fstat(LINK_FD, &link) < 0 || !S_ISSOCK(link.st_mode)) {
		log_error("%s",
			i == ROLE_COUNT ? "no such role: ckptd starts this program"
					: "no link: ckptd starts this program");
		return LINK_EXIT_FAILED;
	}
	worker_link_init(&worker.link, LINK_FD);
	r = take_orders(&worker, role);
	if (r == 0)
		r = open_run(&worker);
	if (r == 0)
		r = say_hello(&worker);
	if (r == 0) {
		worker_set_threads(&worker);
		set_trust(&worker);
		worker_confine_calls(&worker);
		r = roles[i].run(&worker);
	}
	worker_link_fini(&worker.link);
	return r;
}
