/* Saves: when, one at a time, and what to tell those who wait. A saver reads the pinned slot in its
 * own process. It must never fail training: what a save costs at most is that checkpoint.
 * Invariants: a pin exists only while a saver process does; every call that joined is answered when
 * its save is over. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/log.h"
#include "base/panic.h"
#include "proto/link.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAVER_NICE 10
#define RETRY_NS (5 * NSEC_PER_SEC)
#define RETRY_MAX_NS (300 * NSEC_PER_SEC)
#define MS_MAX 1e12
#define COST_SMOOTHING 0.3
#define COST_SECONDS_MAX 3600.0
#define LIMIT_HANGS 2 /* times hang_timeout, and a second for each 4 MiB */
#define LIMIT_BYTES_PER_SECOND ((uint64_t)4 << 20)

void storage_note(struct supervisor *sup, bool good, const char *text)
{
	bool was_bad = sup->storage_bad;

	CHECK(good || *text);
	sup->storage_bad = !good;
	snprintf(sup->storage_text, sizeof(sup->storage_text), "%s", good ? "" : text);
	sup->revision++;
	if (!good && !was_bad)
		sup_event(sup, "error", "storage", "%s; training goes on, saving is retried", text);
	else if (good && was_bad)
		sup_event(sup, "info", "storage-ok", "the disk takes checkpoints again");
}

/* -- calls -- */

static void push_call(struct call **list, struct call *call)
{
	CHECK(!call->next);
	call->next = *list;
	*list = call;
}

static void answer_saved(struct supervisor *sup, struct call *call, bool already)
{
	const struct newest *newest = &sup->newest;

	CHECK(newest->known);
	call_reply(call,
		json_pack("{s:o, s:I, s:o, s:o, s:b}", "id", text_json(newest->id), "step",
			(json_int_t)newest->step, "root", text_json(newest->root), "path",
			text_json(newest->path), "already", already));
}

static void answer_joined(struct supervisor *sup, bool good, bool already)
{
	struct call *call = sup->saver.joined;

	sup->saver.joined = NULL;
	while (call) {
		struct call *next = call->next;

		call->next = NULL;
		if (sup->saver.off_line)
			call_error(call, "Failed",
				"step %llu of branch %u is saved, but the run went back meanwhile",
				(unsigned long long)sup->saver.record.step,
				sup->saver.record.branch);
		else if (good && sup->newest.known)
			answer_saved(sup, call, already);
		else if (good)
			call_error(call, "Failed", "what was saved is lost already");
		else
			call_error(call, "Failed", "%s", sup->saver.last_error);
		call = next;
	}
}

/* -- start -- */

/* What saves have cost the training loop in all. */
static double stalled_ms(const struct supervisor *sup)
{
	return (double)atomic_load(&sup->progress->stall_total_ns) * 1e-6;
}

/* Both are on the line, and a line has one state at each step. */
static bool is_saved(const struct supervisor *sup, const struct state_record *record)
{
	return sup->newest.known && sup->newest.step == record->step;
}

static int saver_start(struct supervisor *sup, bool foreground)
{
	struct saver *saver = &sup->saver;
	struct child_options options;
	bool alone = !child_alive(&sup->trainer);

	CHECK(!saver->in_flight && !child_alive(&saver->child) && !saver->joined);
	CHECK(sup->has_run && sup->state != FSM_ENDED);
	if (memory_newest(sup, &saver->record) < 0)
		return -ENOENT;
	memory_restore_header(sup);
	int code = state_pin_newest(&sup->memory, &saver->record);

	if (code < 0)
		return code;
	saver->in_flight = true;
	saver->got_saved = saver->off_line = saver->wanted = false;
	saver->foreground = foreground || alone;
	saver->joined = saver->next;
	saver->next = NULL;
	saver->attempt++;
	saver->stalled_ms = stalled_ms(sup);
	worker_options(sup, &options);
	options.state_fd = sup->memory.fd;
	options.key_fd = worker_signing(sup)->fd;
	options.nice = saver->foreground ? 0 : SAVER_NICE;
	options.threads = alone ? (uint32_t)sup->config.threads : 1;
	child_spawn(&saver->child, &sup->loop, &options);
	start_frame_send(sup, &saver->child,
		json_pack("{s:i, s:b, s:b, s:i}", "attempt", (int)saver->attempt, "foreground",
			saver->foreground, "copy", !alone && sup->memory.header.slot_count == 1,
			"threads", (int)options.threads));
	sup->revision++;
	return 0;
}

static void raise_priority(struct supervisor *sup)
{
	struct saver *saver = &sup->saver;

	if (saver->foreground)
		return;
	saver->foreground = true;
	child_set_nice(&saver->child, 0);
}

/* With one slot there is no whole state while the trainer rewrites it. */
static bool state_comes(const struct supervisor *sup)
{
	return sup->has_memory && sup->memory.header.slot_count == 1 && child_alive(&sup->trainer);
}

/* The newest state, while one may still be saved: SIGPWR may come while the loop is wound up. A
 * first checkpoint beside a branch that begins at step 0 would not be on it. */
static int state_to_save(const struct supervisor *sup, struct state_record *ret)
{
	if (sup->state == FSM_ENDED)
		return -ECANCELED;
	return fork_is_from_start(sup) ? -ENOENT : memory_newest(sup, ret);
}

/* The calls that ask for a state newer than the one that was being saved, or was there at all. */
static void serve_next(struct supervisor *sup)
{
	struct saver *saver = &sup->saver;
	struct state_record record;
	int code;

	if (!saver->next || saver->in_flight)
		return;
	code = state_to_save(sup, &record);
	if (code == 0 && !is_saved(sup, &record))
		code = saver_start(sup, true);
	else if (code != -ECANCELED && state_comes(sup))
		return;
	if (saver->in_flight)
		return;
	saver->joined = saver->next;
	saver->next = NULL;
	saver->off_line = false;
	if (code < 0)
		snprintf(saver->last_error, sizeof(saver->last_error),
			"there is no state to save: %s", strerror(-code));
	answer_joined(sup, code == 0, true);
}

void saver_request(struct supervisor *sup, struct call *call, bool foreground)
{
	struct saver *saver = &sup->saver;
	struct state_record record;
	int code = state_to_save(sup, &record);

	if (code == -ECANCELED) {
		if (call)
			call_error(call, "Busy", "the service ends");
		return;
	}
	if (code < 0 && !saver->in_flight && state_comes(sup)) {
		saver->wanted = true;
		saver->retry_ns = 0;
		if (call)
			push_call(&saver->next, call);
		return;
	}
	if (code < 0 || (is_saved(sup, &record) && !saver->in_flight)) {
		if (!call)
			return;
		if (sup->newest.known && !saver->in_flight)
			answer_saved(sup, call, true);
		else
			call_error(call, "Failed", "there is nothing to save yet");
		return;
	}
	if (saver->in_flight) {
		if (foreground)
			raise_priority(sup);
		if (saver->record.step == record.step && saver->record.branch == record.branch) {
			if (call)
				push_call(&saver->joined, call);
			return;
		}
		saver->wanted = true;
		saver->retry_ns = 0;
		if (call)
			push_call(&saver->next, call);
		return;
	}
	code = saver_start(sup, foreground);
	if (code == 0 && call)
		push_call(&saver->joined, call);
	else if (call)
		call_error(call, "Failed", "the state could not be pinned: %s", strerror(-code));
}

/* -- messages and end -- */

/* Beyond keep_bytes, and nothing more may go: told once, and in the status until it is over. */
static void note_over(struct supervisor *sup, uint64_t over_bytes)
{
	if (over_bytes > 0 && sup->over_bytes == 0)
		sup_event(sup, "warning", "keep-bytes",
			"the checkpoints take %llu MiB more than keep_bytes allows: what is left "
			"is "
			"kept, in use, or the newest two",
			(unsigned long long)(over_bytes >> 20) + 1);
	sup->over_bytes = over_bytes;
}

static void note_stale(struct supervisor *sup, bool stale)
{
	const struct state_record *record = &sup->saver.record;

	sup->stale_weights = stale;
	if (stale)
		sup_event(sup, "error", "stale-weights",
			"stale weights: step %llu of branch %u has the very weights of the "
			"checkpoint before it, though it counts %llu updates: what trains is not "
			"what is saved",
			(unsigned long long)record->step, record->branch,
			(unsigned long long)record->update_count);
}

/* A processor that saves does not train; a slot that is held may make training wait. */
static void learn_cost(struct supervisor *sup, double cpu_ms, double stall_ms)
{
	struct saver *saver = &sup->saver;
	double threads = resources_threads((uint32_t)sup->config.threads);
	double cost = (cpu_ms / threads + stall_ms) / 1e3;
	double watched = sup->outage.since_wall_ns > 0
		? (double)(clock_wall_ns() - sup->outage.since_wall_ns) / 1e9
		: 0;

	if (!(cost > 0) || cost > COST_SECONDS_MAX)
		return;
	if (saver->cost_seconds > 0)
		cost = saver->cost_seconds + COST_SMOOTHING * (cost - saver->cost_seconds);
	saver->cost_seconds = cost;
	struct interval_facts facts = {.cost_seconds = cost,
		.watched_seconds = watched,
		.losses = sup->outage.memory_losses,
		.save_bytes = sup->memory.header.block_bytes,
		.budget_gb_per_day = sup->config.write_budget};

	saver->auto_ns = interval_auto_ns(&facts);
	sup->revision++;
}

/* There is only one thing that it can have saved, and it says so once. */
static bool is_what_was_asked(const struct saver *saver, const json_t *body, const char *id)
{
	return !saver->got_saved && strcmp(json_get_text(body, "id", ""), id) == 0 &&
		json_get_int(body, "step", -1) == (int64_t)saver->record.step &&
		json_get_int(body, "branch", -1) == (int64_t)saver->record.branch;
}

static void take_saved(struct supervisor *sup, const json_t *body)
{
	struct saver *saver = &sup->saver;
	struct newest *newest = &sup->newest;
	char id[CHECKPOINT_ID_SIZE];

	CHECK(saver->in_flight && sup->has_memory);
	checkpoint_id_format(saver->record.step, saver->record.branch, id);
	if (!is_what_was_asked(saver, body, id)) {
		child_refuse(&saver->child, "it has saved what it was not asked for");
		return;
	}
	/* A branch may have begun since: then it is verified, but not the newest of this line. */
	if (sup->survey.known &&
		!line_contains(&sup->survey.line, saver->record.branch, saver->record.step)) {
		saver->got_saved = saver->off_line = true;
		return;
	}
	saver->got_saved = true;
	saver->already = json_get_bool(body, "already", false);
	double ms = json_get_real(body, "ms_total", 0);

	saver->last_ms = ms >= 0 && ms <= MS_MAX ? (int64_t)ms : 0;
	if (!saver->already)
		learn_cost(
			sup, json_get_real(body, "ms_cpu", 0), stalled_ms(sup) - saver->stalled_ms);
	newest->known = true;
	newest->step = saver->record.step;
	newest->branch = saver->record.branch;
	snprintf(newest->id, sizeof(newest->id), "%s", id);
	text_take(newest->root, sizeof(newest->root), body, "root");
	snprintf(newest->path, sizeof(newest->path), "%s/checkpoints/%s%s", sup->run_dir, id,
		CHECKPOINT_SUFFIX);
	newest->wall_ns = clock_wall_ns();
	newest->counts = (struct survey_counts){.images_seen = saver->record.images_seen,
		.skipped_count = saver->record.skipped_count};
	/* A reload may have changed the key. */
	text_take(sup->prepared.signer, sizeof(sup->prepared.signer), body, "signer");
	note_over(sup, count_take(body, "over_bytes"));
	if (!saver->already)
		note_stale(sup, json_get_bool(body, "stale", false));
	if (!json_get_bool(body, "catalogued", true))
		sup_event(sup, "warning", "not-catalogued",
			"%s is verified, but its row could not be written", newest->id);
	else
		survey_start(sup);
}

static void on_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;

	if (strcmp(name, "saved") == 0)
		take_saved(sup, body);
	else if (strcmp(name, "copied") == 0)
		state_unpin_all(&sup->memory);
	else if (strcmp(name, "event") == 0)
		worker_event(sup, body);
}

static void note_saved(struct supervisor *sup)
{
	struct saver *saver = &sup->saver;

	CHECK(!saver->in_flight && saver->got_saved);
	saver->failures = 0;
	saver->retry_ns = 0;
	saver->last_error[0] = '\0';
	saver->last_end_ns = clock_monotonic_ns();
	storage_note(sup, true, "");
	mirror_want(sup);
	sup_event(sup, "info", "saved", "step %llu of branch %u is verified (%lld ms)",
		(unsigned long long)saver->record.step, saver->record.branch,
		(long long)saver->last_ms);
	run_note_verified(sup, saver->record.branch);
}

/* A seal that does not match: the slots are not to be trusted, the trainer's work neither. */
static void note_corrupt(struct supervisor *sup)
{
	if (child_alive(&sup->trainer)) {
		sup->trainer.memory_corrupt = true;
		child_kill(&sup->trainer, SIGKILL);
		return;
	}
	CHECK(!sup->saver.in_flight);
	memory_empty(sup);
	sup->resume_disk = true;
}

static void note_failed(struct supervisor *sup, const struct child *child)
{
	struct saver *saver = &sup->saver;
	struct ending ending = {.role = "saver",
		.exit_status = child->exit_status,
		.term_signal = child->term_signal,
		.hang = child->hang,
		.protocol_broken = child->protocol_broken,
		.phase = "saving",
		.step = saver->record.step,
		.last_words = child->last_words};
	struct obituary obituary;
	nsec_t wait_ns = backoff_ns(RETRY_NS, RETRY_MAX_NS, saver->failures, 0);

	CHECK(!saver->in_flight);
	obituary_write(&ending, &obituary);
	/* A saver that was shot is tried again at once, once. */
	if (child->term_signal && saver->failures == 0)
		wait_ns = 0;
	saver->failures++;
	saver->retry_ns = clock_monotonic_ns() + wait_ns;
	snprintf(saver->last_error, sizeof(saver->last_error), "%s",
		*child->last_words ? child->last_words : obituary.sentence);
	if (sup->kill_now)
		return;
	if (obituary.kind == DEATH_STORAGE)
		storage_note(sup, false, saver->last_error);
	sup_event(sup, "warning", "save-failed", "%s", obituary.sentence);
	if (obituary.kind == DEATH_MEMORY_CORRUPT)
		note_corrupt(sup);
}

static void on_ended(struct child *child)
{
	struct supervisor *sup = child->owner;
	struct saver *saver = &sup->saver;
	bool good = saver->got_saved && !child->protocol_broken;

	CHECK(saver->in_flight && sup->has_memory);
	saver->in_flight = false;
	sup->revision++;
	state_unpin_all(&sup->memory);
	if (good) {
		note_saved(sup);
	} else {
		note_failed(sup, child);
		survey_start(sup); /* it may have got further than its word */
	}
	answer_joined(sup, good, saver->already);
	serve_next(sup);
	final_save_step(sup);
}

static void on_stuck(struct child *child)
{
	sup_event(child->owner, "error", "stuck",
		"saver %d does not end by SIGKILL: waiting for it", (int)child->pid);
}

const struct child_handlers saver_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = on_stuck,
};

/* -- when -- */

nsec_t saver_interval_ns(const struct supervisor *sup)
{
	return sup->config.interval == CONFIG_AUTO ? sup->saver.auto_ns
						   : sup->config.interval * NSEC_PER_SEC;
}

double saver_next_seconds(const struct supervisor *sup, nsec_t now_ns)
{
	const struct saver *saver = &sup->saver;
	nsec_t due_ns = saver->last_end_ns + saver_interval_ns(sup);

	if (saver->failures > 0)
		due_ns = saver->retry_ns;
	else if (saver_interval_ns(sup) == 0 || sup->state != FSM_TRAINING)
		return -1;
	return due_ns > now_ns ? (double)(due_ns - now_ns) / 1e9 : 0;
}

/* Nothing on the disk is good any more: without a checkpoint of it the ladder has no branch. */
static bool memory_is_all(const struct supervisor *sup)
{
	return sup->state == FSM_RESTARTING && sup->decision.from == RESTART_MEMORY &&
		!run_may_begin(sup) && sup->survey.known && sup->survey.count == 0 &&
		!sup->survey.unread;
}

/* Between a death and the next start nothing is saved unasked: that state is under suspicion. */
static bool may_save(const struct supervisor *sup)
{
	return memory_is_all(sup) || (sup->state == FSM_TRAINING && sup->trainer_ready) ||
		sup->state == FSM_PAUSED || sup->state == FSM_STOPPED || sup->state == FSM_FAILED;
}

static bool is_due(const struct supervisor *sup, nsec_t now_ns)
{
	const struct saver *saver = &sup->saver;
	const struct config *config = &sup->config;
	uint64_t base = sup->newest.known ? sup->newest.step : 0;
	uint64_t step = atomic_load(&sup->progress->step);
	struct state_record record;
	bool by_time = saver_interval_ns(sup) > 0 &&
		now_ns - saver->last_end_ns >= saver_interval_ns(sup);
	bool by_steps = config->interval_steps > 0 && sup->trainer_ready && step > base &&
		step - base >= (uint64_t)config->interval_steps;

	if (now_ns < saver->retry_ns || !may_save(sup))
		return false;
	if (!saver->wanted && saver->failures == 0 && !by_time && !by_steps && !memory_is_all(sup))
		return false;
	return state_to_save(sup, &record) == 0 && (record.step > 0 || memory_is_all(sup)) &&
		!is_saved(sup, &record);
}

static void watch_saver(struct supervisor *sup, nsec_t now_ns)
{
	struct saver *saver = &sup->saver;
	nsec_t age_ns = now_ns - saver->child.begun_ns;
	nsec_t limit_ns = LIMIT_HANGS * sup->config.hang_timeout * NSEC_PER_SEC +
		(nsec_t)(sup->memory.header.block_bytes / LIMIT_BYTES_PER_SECOND) * NSEC_PER_SEC;

	CHECK(saver->in_flight && child_alive(&saver->child));
	if (saver_interval_ns(sup) > 0 && age_ns > saver_interval_ns(sup) / 2)
		raise_priority(sup);
	if (age_ns > limit_ns && !saver->child.hang) {
		saver->child.hang = true;
		child_kill(&saver->child, SIGKILL);
	}
}

void saver_hurry(struct supervisor *sup)
{
	if (sup->saver.in_flight)
		raise_priority(sup);
}

void saver_tick(struct supervisor *sup, nsec_t now_ns)
{
	if (sup->saver.in_flight) {
		watch_saver(sup, now_ns);
		return;
	}
	serve_next(sup);
	if (sup->saver.in_flight)
		return;
	if (sup->final.active)
		final_save_step(sup);
	else if (is_due(sup, now_ns))
		saver_start(sup, false);
}

/* -- the last one -- */

void final_save_limit(struct supervisor *sup)
{
	if (sup->final.deadline_ns == 0)
		sup->final.deadline_ns = clock_monotonic_ns() +
			sup->config.stop_timeout * NSEC_PER_SEC;
}

void final_save_begin(struct supervisor *sup)
{
	CHECK(!child_alive(&sup->trainer));
	sup->final.active = true;
	sup->final.failures_begun = sup->saver.failures;
	sup->saver.retry_ns = 0;
	serve_next(sup);
	final_save_step(sup);
}

static void final_save_over(struct supervisor *sup)
{
	CHECK(sup->final.active && !sup->saver.in_flight);
	sup->final = (struct final_save){0};
	sup->kill_now = false;
	sup_dispatch(sup, FSM_SAVE_OVER);
}

/* Paused and stopped keep the state in memory, so one failure is enough; the end of the daemon
 * keeps nothing, so it tries until its time is over; the end of the run tries for ever. */
static bool gives_up(const struct supervisor *sup, nsec_t now_ns)
{
	if (sup->state == FSM_FINISHING || sup->saver.failures <= sup->final.failures_begun)
		return false;
	return sup->state != FSM_EXITING ||
		(sup->final.deadline_ns > 0 && now_ns >= sup->final.deadline_ns);
}

void final_save_step(struct supervisor *sup)
{
	nsec_t now_ns = clock_monotonic_ns();
	struct state_record record;

	if (!sup->final.active || sup->saver.in_flight)
		return;
	CHECK(!child_alive(&sup->trainer));
	if (sup->final.skip || state_to_save(sup, &record) < 0 || record.step == 0 ||
		is_saved(sup, &record)) {
		final_save_over(sup);
	} else if (gives_up(sup, now_ns)) {
		sup_event(sup, "error", "not-saved", "step %llu is not saved: %s",
			(unsigned long long)record.step, sup->saver.last_error);
		if (sup->state == FSM_EXITING)
			sup->exit_code = 1;
		final_save_over(sup);
	} else if (now_ns >= sup->saver.retry_ns) {
		if (saver_start(sup, true) < 0)
			final_save_over(sup);
	}
}
