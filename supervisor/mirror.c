/* The mirror: a worker brings what was saved to the second disk, one at a time, after each save and
 * again when that failed. That disk may be away, full or hung: it must never hold up training, a
 * save, a stop or a start. Invariant: nothing here touches the mirror itself. */
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/panic.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define MIRROR_NICE 10
#define RETRY_NS (5 * NSEC_PER_SEC)
#define RETRY_MAX_NS (600 * NSEC_PER_SEC)
#define SECONDS_MAX UINT64_C(2592000)
#define LIMIT_NS (900 * NSEC_PER_SEC) /* and a second for each MiB that may have to come */

static bool is_wanted(const struct supervisor *sup)
{
	return sup->has_run && sup->config.mirror[0] != '\0';
}

void mirror_want(struct supervisor *sup)
{
	sup->mirror.pending = true;
	if (sup->mirror.failures == 0)
		sup->mirror.retry_ns = 0;
}

static void spawn(struct supervisor *sup)
{
	struct mirrorer *mirror = &sup->mirror;
	struct child_options options;

	CHECK(!child_alive(&mirror->child) && is_wanted(sup));
	mirror->pending = false;
	worker_options(sup, &options);
	options.nice = MIRROR_NICE;
	options.threads = 1;
	/* It may be left behind where SIGKILL does not reach it: not with the run's lock. */
	options.lock_fd = -1;
	child_spawn(&mirror->child, &sup->loop, &options);
	start_frame_send(sup, &mirror->child, json_pack("{s:i}", "threads", 1));
	sup->revision++;
}

/* -- messages and end -- */

static void on_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;
	struct mirrorer *mirror = &sup->mirror;

	if (strcmp(name, "event") == 0) {
		worker_event(sup, body);
	} else if (strcmp(name, "mirrored") == 0) {
		uint64_t behind = count_take(body, "behind");

		mirror->behind = behind <= INT32_MAX ? (uint32_t)behind : INT32_MAX;
		text_take(mirror->newest, sizeof(mirror->newest), body, "newest");
	}
	sup->revision++;
}

static void note_good(struct supervisor *sup)
{
	struct mirrorer *mirror = &sup->mirror;

	if (mirror->failures > 0)
		sup_event(sup, "info", "mirror-ok", "the mirror takes checkpoints again");
	mirror->failures = 0;
	mirror->retry_ns = 0;
	mirror->last_error[0] = '\0';
}

static void note_failed(struct supervisor *sup, const struct child *child)
{
	struct mirrorer *mirror = &sup->mirror;

	child_reason(child, mirror->last_error, sizeof(mirror->last_error));
	mirror->retry_ns = clock_monotonic_ns() +
		backoff_ns(RETRY_NS, RETRY_MAX_NS, mirror->failures, 0);
	mirror->pending = true;
	if (mirror->failures++ == 0)
		sup_event(sup, "warning", "mirror-failed",
			"%s; training and saving go on, copying is retried", mirror->last_error);
}

static void on_ended(struct child *child)
{
	struct supervisor *sup = child->owner;

	CHECK(!child_alive(child));
	sup->revision++;
	if (!child->term_signal && !child->protocol_broken && child->exit_status == 0)
		note_good(sup);
	else if (child->asked || sup->state == FSM_ENDED)
		sup->mirror.pending = true;
	else
		note_failed(sup, child);
}

/* In the hands of a disk that does not answer. The service ends without it. */
static void on_stuck(struct child *child)
{
	struct supervisor *sup = child->owner;

	sup_event(sup, "error", "stuck", "%s %d does not end by SIGKILL: the mirror hangs",
		child->role, (int)child->pid);
	if (sup->state == FSM_ENDED)
		child_abandon(child);
}

const struct child_handlers mirror_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = on_stuck,
};

/* -- when -- */

void mirror_stop(struct supervisor *sup)
{
	if (!child_alive(&sup->mirror.child))
		return;
	sup->mirror.child.asked = true;
	child_kill(&sup->mirror.child, SIGKILL);
}

static void watch(struct supervisor *sup, nsec_t now_ns)
{
	struct mirrorer *mirror = &sup->mirror;
	uint64_t count = (uint64_t)sup->config.keep_last + (uint64_t)sup->config.mirror_keep_last;
	uint64_t seconds = sup->prepared.section_bytes * SECTION_COUNT / (1 << 20) * count;
	nsec_t limit_ns = LIMIT_NS +
		(nsec_t)(seconds < SECONDS_MAX ? seconds : SECONDS_MAX) * NSEC_PER_SEC;

	if (now_ns - mirror->child.begun_ns < limit_ns || mirror->child.hang)
		return;
	mirror->child.hang = true;
	child_kill(&mirror->child, SIGKILL);
}

void mirror_tick(struct supervisor *sup, nsec_t now_ns)
{
	struct mirrorer *mirror = &sup->mirror;

	if (child_alive(&mirror->child))
		watch(sup, now_ns);
	else if (mirror->pending && is_wanted(sup) && sup_is_quiet(sup) &&
		now_ns >= mirror->retry_ns)
		spawn(sup);
}

/* -- what people are told -- */

static const char *state_of(const struct supervisor *sup)
{
	const struct mirrorer *mirror = &sup->mirror;

	if (!is_wanted(sup))
		return "none";
	if (mirror->failures > 0)
		return "failing";
	if (child_alive(&mirror->child))
		return "copying";
	return mirror->pending || mirror->behind > 0 ? "behind" : "ok";
}

json_t *mirror_json(const struct supervisor *sup)
{
	const struct mirrorer *mirror = &sup->mirror;
	nsec_t wait_ns = mirror->retry_ns - clock_monotonic_ns();

	return json_pack("{s:o, s:s, s:o, s:i, s:o, s:o}", "dir", text_json(sup->config.mirror),
		"state", state_of(sup), "newest", text_json(mirror->newest), "behind",
		(int)mirror->behind, "last_error", text_json(mirror->last_error), "retry_seconds",
		mirror->failures > 0 ? json_real(wait_ns > 0 ? (double)wait_ns / 1e9 : 0)
				     : json_null());
}
