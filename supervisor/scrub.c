/* Scrubs: kept checkpoints are read again in the background, one process at a time, so that one
 * which rots is known while the state in memory can still replace it. When is decided by what the
 * catalog says of the last readings, so it survives restarts. It must never hold up training, a
 * stop or the preparer. Invariant: every call that waits is answered by the end of its scrub. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/panic.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCRUB_NICE 10
#define RETRY_NS (60 * NSEC_PER_SEC)
#define RETRY_MAX_NS (3600 * NSEC_PER_SEC)
#define AGAIN_MAX_NS (3600 * NSEC_PER_SEC) /* rows that could not be written are still due */
#define SILENCE_NS (600 * NSEC_PER_SEC)    /* beyond what the pace explains */
#define CHUNK_MIB 4.0

/* -- start and stop -- */

static bool is_open(const struct supervisor *sup)
{
	switch (sup->state) {
	case FSM_STARTING:
	case FSM_WAITING:
	case FSM_PREPARING:
	case FSM_PAUSING:
	case FSM_STOPPING:
	case FSM_EXITING:
	case FSM_ENDED:
		return false;
	default:
		return sup->has_run;
	}
}

static void spawn(struct supervisor *sup)
{
	struct scrubber *scrub = &sup->scrub;
	struct child_options options;

	CHECK(!child_alive(&scrub->child) && is_open(sup));
	scrub->id[0] = '\0';
	scrub->done_bytes = scrub->total_bytes = scrub->read_bytes = 0;
	scrub->checked = scrub->corrupt = scrub->bad = 0;
	scrub->stopping = false;
	scrub->heard_ns = clock_monotonic_ns();
	worker_options(sup, &options);
	options.nice = SCRUB_NICE;
	options.threads = 1;
	child_spawn(&scrub->child, &sup->loop, &options);
	start_frame_send(sup, &scrub->child, json_pack("{s:i}", "threads", 1));
	sup->revision++;
}

static json_t *counts_json(const struct scrubber *scrub, bool running)
{
	return json_pack("{s:b, s:i, s:i, s:i, s:I}", "running", running, "checked",
		(int)scrub->checked, "corrupt", (int)scrub->corrupt, "bad", (int)scrub->bad,
		"bytes", (json_int_t)scrub->read_bytes);
}

void scrub_request(struct supervisor *sup, struct call *call, bool wait)
{
	CHECK(call && !call->next);
	if (!is_open(sup)) {
		call_error(call, "Busy", "the service is %s: try again in a moment",
			fsm_state_name(sup->state));
		return;
	}
	if (!child_alive(&sup->scrub.child))
		spawn(sup);
	if (!wait) {
		call_reply(call, counts_json(&sup->scrub, true));
		return;
	}
	call->next = sup->scrub.calls;
	sup->scrub.calls = call;
}

void scrub_stop(struct supervisor *sup)
{
	if (!child_alive(&sup->scrub.child) || sup->scrub.stopping)
		return;
	sup->scrub.stopping = true;
	child_send(&sup->scrub.child, json_pack("{s:{}}", "stop"));
}

/* -- what it finds -- */

/* The end of the run may be what is lost: then its last steps are done again. */
static void on_found_survey(struct ledger_job *job)
{
	struct supervisor *sup = ((struct book_job *)job)->owner;

	survey_done(job);
	if (sup->state != FSM_FINISHED || !sup->newest.known || sup->run.wanted != WANTED_RUN ||
		sup->newest.step >= (uint64_t)sup->config.steps_total)
		return;
	sup_event(sup, "warning", "restart",
		"the last checkpoint is lost: the steps after step %llu are trained again",
		(unsigned long long)sup->newest.step);
	sup_dispatch(sup, FSM_RETRY);
}

void scrub_found_bad(struct supervisor *sup, const char *id, const char *state)
{
	struct newest *newest = &sup->newest;

	if (newest->known && strcmp(newest->id, id) == 0) {
		bool save = sup->has_memory;

		newest->known = false; /* until the survey */
		if (save && !sup->saver.in_flight) {
			sup->saver.wanted = true;
			sup->saver.retry_ns = 0;
		}
		sup_event(sup, "error", "newest-lost",
			"%s, the newest verified checkpoint, is %s%s", id, state,
			save ? ": saving at once" : "");
	}
	books_give(&sup->ledger,
		books_job(sizeof(struct survey_job), books_survey_work, on_found_survey, sup));
}

static void take_verified(struct supervisor *sup, const json_t *body)
{
	struct scrubber *scrub = &sup->scrub;
	char state[32], id[CHECKPOINT_ID_SIZE];

	text_take(state, sizeof(state), body, "state");
	text_take(id, sizeof(id), body, "id");
	scrub->checked++;
	scrub->read_bytes += count_take(body, "bytes");
	if (scrub->read_bytes > (uint64_t)COUNT_MAX)
		scrub->read_bytes = COUNT_MAX;
	if (json_get_bool(body, "ok", false))
		return;
	scrub->bad++;
	scrub->corrupt += strcmp(state, "corrupt") == 0;
	scrub_found_bad(sup, id, state);
}

static void on_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;
	struct scrubber *scrub = &sup->scrub;

	scrub->heard_ns = clock_monotonic_ns();
	if (strcmp(name, "event") == 0) {
		worker_event(sup, body);
	} else if (strcmp(name, "verified") == 0) {
		take_verified(sup, body);
	} else if (strcmp(name, "scrub") == 0) {
		text_take(scrub->id, sizeof(scrub->id), body, "id");
		scrub->done_bytes = count_take(body, "bytes_done");
		scrub->total_bytes = count_take(body, "bytes_total");
	}
	sup->revision++;
}

/* -- the end -- */

static void note_finished(struct supervisor *sup)
{
	struct scrubber *scrub = &sup->scrub;
	nsec_t again_ns = sup->config.scrub_interval * NSEC_PER_SEC / 4;
	char found[96] = "every byte matches";

	if (again_ns > AGAIN_MAX_NS)
		again_ns = AGAIN_MAX_NS;
	scrub->failures = 0;
	scrub->retry_ns = clock_monotonic_ns() + again_ns;
	scrub->finished_wall_ns = clock_wall_ns();
	if (scrub->bad > 0)
		snprintf(found, sizeof(found), "%u corrupt, %u missing, unreadable or refused",
			scrub->corrupt, scrub->bad - scrub->corrupt);
	sup_event(sup, scrub->bad > 0 ? "error" : "info", "scrubbed",
		"%u checkpoints (%llu MiB) were read again: %s", scrub->checked,
		(unsigned long long)(scrub->read_bytes >> 20), found);
}

static void note_failed(struct supervisor *sup, const struct child *child, char *text, size_t size)
{
	struct scrubber *scrub = &sup->scrub;

	child_reason(child, text, size);
	scrub->retry_ns = clock_monotonic_ns() +
		(scrub->stopping ? 0 : backoff_ns(RETRY_NS, RETRY_MAX_NS, scrub->failures++, 0));
	if (!scrub->stopping)
		sup_event(sup, "warning", "scrub-failed", "%s; what was read counts", text);
}

static void on_ended(struct child *child)
{
	struct supervisor *sup = child->owner;
	struct scrubber *scrub = &sup->scrub;
	bool good = !child->term_signal && !child->protocol_broken && child->exit_status == 0;
	struct call *call = scrub->calls;
	char text[TEXT_MAX] = "";

	CHECK(!child_alive(child));
	scrub->calls = NULL;
	sup->revision++;
	if (good)
		note_finished(sup);
	else
		note_failed(sup, child, text, sizeof(text));
	while (call) {
		struct call *next = call->next;

		call->next = NULL;
		if (good)
			call_reply(call, counts_json(scrub, false));
		else
			call_error(call, "Failed", "%s", text);
		call = next;
	}
	/* When each was last matched. */
	survey_start(sup);
}

const struct child_handlers scrub_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = sup_on_stuck,
};

/* -- when -- */

static nsec_t due_wall_ns(const struct supervisor *sup, nsec_t wall_ns)
{
	if (!sup->survey.known || !sup->survey.catalog)
		return INT64_MAX;
	return scrub_due_ns(&sup->survey.age, sup->config.scrub_interval * NSEC_PER_SEC, wall_ns);
}

static void watch(struct supervisor *sup, nsec_t now_ns)
{
	struct scrubber *scrub = &sup->scrub;
	double rate = sup->config.scrub_rate;
	nsec_t chunk_ns = rate > 0 ? (nsec_t)(CHUNK_MIB / rate * 1e9) : 0;

	if (now_ns - scrub->heard_ns < SILENCE_NS + 4 * chunk_ns || scrub->child.hang)
		return;
	scrub->child.hang = true;
	child_kill(&scrub->child, SIGKILL);
}

void scrub_tick(struct supervisor *sup, nsec_t now_ns)
{
	nsec_t wall_ns = clock_wall_ns();

	if (child_alive(&sup->scrub.child))
		watch(sup, now_ns);
	else if (sup_is_quiet(sup) && !sup->final.active && now_ns >= sup->scrub.retry_ns &&
		wall_ns >= due_wall_ns(sup, wall_ns))
		spawn(sup);
}

/* -- what people are told -- */

json_t *scrub_json(const struct supervisor *sup)
{
	const struct scrubber *scrub = &sup->scrub;
	bool running = child_alive(&scrub->child);
	nsec_t wall_ns = clock_wall_ns(), due_ns = due_wall_ns(sup, wall_ns);
	char finished[CLOCK_TEXT_SIZE] = "", due[CLOCK_TEXT_SIZE] = "";

	if (scrub->finished_wall_ns > 0)
		clock_format_utc(scrub->finished_wall_ns, finished);
	if (due_ns != INT64_MAX)
		clock_format_utc(due_ns > 0 ? due_ns : wall_ns, due);
	return json_pack("{s:b, s:o, s:I, s:I, s:s, s:i, s:s}", "running", running, "checkpoint",
		text_json(running ? scrub->id : ""), "bytes_done",
		(json_int_t)(running ? scrub->done_bytes : 0), "bytes_total",
		(json_int_t)(running ? scrub->total_bytes : 0), "finished_at", finished, "corrupt",
		(int)sup->survey.age.bad_count, "next_due", due);
}

/* From the history: when the last one was finished. */
static void on_last_scrub(struct ledger_job *job)
{
	struct query_job *query = (struct query_job *)job;
	struct supervisor *sup = query->head.owner;

	if (job->result == 0 && sup->scrub.finished_wall_ns == 0)
		sup->scrub.finished_wall_ns = clock_parse_utc(
			json_get_text(query->answer, "time", ""));
	json_decref(query->answer);
	free(job);
}

void scrub_ask_history(struct supervisor *sup)
{
	struct query_job *query = books_job(sizeof(*query), books_query_work, on_last_scrub, sup);

	query->query = QUERY_LAST_EVENT;
	snprintf(query->kind, sizeof(query->kind), "scrubbed");
	books_give(&sup->ledger, query);
}
