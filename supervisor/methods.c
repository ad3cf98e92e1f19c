/* The table of methods.h. It must never do the work itself: it checks who asks and what for, then
 * hands the call on. Invariant: every call is answered by whoever it was handed to. */
#include "supervisor/methods.h"
#include "supervisor/supervisor.h"

#include "base/panic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LIMIT_DEFAULT 100
#define LIMIT_MAX 10000
#define QUERIES_MAX 8
#define STREAM_MS_MIN 100
#define STATUS_FRESH_NS (2 * NSEC_PER_MSEC)
#define STREAM_MS_MAX 3600000
#define SAMPLE_COUNT_MAX 256
#define SAMPLE_STEPS_MAX 1000

struct method {
	const char *name;
	bool changes;   /* only root and the service's user */
	bool needs_run; /* NoRun without one */
	void (*handle)(struct supervisor *sup, struct call *call);
};

/* A bounded integer parameter; false after InvalidParameter was answered. */
static bool take_int(struct call *call, const char *name, int64_t fallback, int64_t min,
	int64_t max, int64_t *ret)
{
	json_t *value = json_object_get(call->parameters, name);

	CHECK(fallback <= max);
	*ret = fallback;
	if (!value || json_is_null(value))
		return true;
	if (json_is_integer(value) && json_integer_value(value) >= min &&
		json_integer_value(value) <= max) {
		*ret = json_integer_value(value);
		return true;
	}
	call_service_error(call, "InvalidParameter", "parameter", name);
	return false;
}

static bool take_text(struct call *call, const char *name, const char *fallback, size_t size_max,
	const char **ret)
{
	json_t *value = json_object_get(call->parameters, name);

	*ret = fallback;
	if (!value || json_is_null(value))
		return true;
	if (json_is_string(value) && json_string_length(value) < size_max) {
		*ret = json_string_value(value);
		return true;
	}
	call_service_error(call, "InvalidParameter", "parameter", name);
	return false;
}

static bool take_bool(struct call *call, const char *name, bool *ret)
{
	json_t *value = json_object_get(call->parameters, name);

	*ret = json_is_true(value);
	if (!value || json_is_null(value) || json_is_boolean(value))
		return true;
	call_service_error(call, "InvalidParameter", "parameter", name);
	return false;
}

/* -- looking -- */

/* A crowd that asks in the same instant gets the same answer. */
static json_t *fresh_status(struct supervisor *sup)
{
	nsec_t now_ns = clock_monotonic_ns();

	if (!sup->status || sup->status_revision != sup->revision ||
		now_ns - sup->status_ns >= STATUS_FRESH_NS) {
		status_refresh(sup);
		json_decref(sup->status);
		sup->status = json_pack("{s:o}", "status", status_json(sup));
		sup->status_revision = sup->revision;
		sup->status_ns = now_ns;
	}
	return json_incref(sup->status);
}

static void method_status(struct supervisor *sup, struct call *call)
{
	int64_t interval_ms;

	if (!take_int(call, "interval_ms", 1000, STREAM_MS_MIN, STREAM_MS_MAX, &interval_ms))
		return;
	if (call->more && !call->oneway)
		call_stream(call, (uint64_t)interval_ms);
	else
		call_reply(call, fresh_status(sup));
}

json_t *methods_stream(void *owner, uint64_t *revision)
{
	struct supervisor *sup = owner;

	if (*revision == sup->revision)
		return NULL;
	*revision = sup->revision;
	return fresh_status(sup);
}

static void on_answer(struct ledger_job *job)
{
	struct query_job *query = (struct query_job *)job;
	struct supervisor *sup = query->head.owner;

	CHECK(query->call && sup->queries > 0);
	sup->queries--;
	if (job->result == -ENOBUFS)
		call_error(query->call, "Busy", "%s", job->error.text);
	else if (job->result < 0)
		call_error(query->call, "Failed", "%s", job->error.text);
	else
		call_reply_frame(query->call, query->frame, query->frame_size);
	free(job);
}

/* NULL after Busy was answered: questions must not hold up the thread's own work. */
static struct query_job *new_query(struct supervisor *sup, struct call *call, int what)
{
	CHECK(call && what != QUERY_LAST_DEATH);
	if (sup->queries >= QUERIES_MAX) {
		call_error(call, "Busy",
			"%d questions to the database are being answered: again "
			"in a moment",
			QUERIES_MAX);
		return NULL;
	}
	sup->queries++;
	struct query_job *query = books_job(sizeof(*query), books_query_work, on_answer, sup);

	query->query = what;
	query->call = call;
	query->limit = LIMIT_MAX;
	return query;
}

static void method_checkpoints(struct supervisor *sup, struct call *call)
{
	bool all;

	if (!take_bool(call, "all", &all))
		return;
	struct query_job *query = new_query(sup, call, QUERY_CHECKPOINTS);

	if (!query)
		return;
	query->all = all;
	books_give(&sup->ledger, query);
}

static void method_events(struct supervisor *sup, struct call *call)
{
	int64_t limit, after;

	if (!take_int(call, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX, &limit) ||
		!take_int(call, "after", 0, 0, INT64_MAX, &after))
		return;
	struct query_job *query = new_query(sup, call, QUERY_EVENTS);

	if (!query)
		return;
	query->limit = (uint32_t)limit;
	query->after = after;
	books_give(&sup->ledger, query);
}

static void method_metrics(struct supervisor *sup, struct call *call)
{
	int64_t limit, after;
	const char *kind;

	if (!take_int(call, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX, &limit) ||
		!take_int(call, "after_step", 0, 0, INT64_MAX, &after) ||
		!take_text(call, "kind", "", sizeof(((struct query_job *)0)->kind), &kind))
		return;
	struct query_job *query = new_query(sup, call, QUERY_METRICS);

	if (!query)
		return;
	query->limit = (uint32_t)limit;
	query->after = after;
	query->branch = sup->survey.known ? sup->survey.line.current : 0;
	query->step = sup_step(sup);
	snprintf(query->kind, sizeof(query->kind), "%s", kind);
	books_give(&sup->ledger, query);
}

static void method_outages(struct supervisor *sup, struct call *call)
{
	int64_t limit;

	if (!take_int(call, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX, &limit))
		return;
	struct query_job *query = new_query(sup, call, QUERY_OUTAGES);

	if (!query)
		return;
	query->limit = (uint32_t)limit;
	books_give(&sup->ledger, query);
}

static void method_config(struct supervisor *sup, struct call *call)
{
	call_reply(call, json_pack("{s:o}", "config", json_from_config(&sup->config)));
}

/* -- changing -- */

static void method_save(struct supervisor *sup, struct call *call)
{
	bool wait;

	if (!take_bool(call, "wait", &wait))
		return;
	saver_request(sup, call, wait);
}

static void method_pause(struct supervisor *sup, struct call *call)
{
	request_pause(sup, call, false);
}

static void method_resume(struct supervisor *sup, struct call *call)
{
	request_resume(sup, call, false);
}

static void method_stop(struct supervisor *sup, struct call *call)
{
	bool exit, now;

	if (take_bool(call, "exit", &exit) && take_bool(call, "now", &now))
		request_stop(sup, call, exit, now);
}

static void method_rollback(struct supervisor *sup, struct call *call)
{
	const char *id;

	if (take_text(call, "id", "", CHECKPOINT_ID_SIZE, &id))
		request_rollback(sup, call, id);
}

/* There is no other way to begin again: what goes on is resumed, what goes back is rolled back. */
static void method_restart(struct supervisor *sup, struct call *call)
{
	if (json_is_true(json_object_get(call->parameters, "from_scratch")))
		request_rollback(sup, call, NULL);
	else
		call_service_error(call, "InvalidParameter", "parameter", "from_scratch");
}

static void method_verify(struct supervisor *sup, struct call *call)
{
	const char *id;

	if (take_text(call, "id", "", CHECKPOINT_ID_SIZE, &id))
		verify_start(sup, call, id);
}

static void method_scrub(struct supervisor *sup, struct call *call)
{
	bool wait;

	if (take_bool(call, "wait", &wait))
		scrub_request(sup, call, wait);
}

static void method_keep(struct supervisor *sup, struct call *call)
{
	const char *id;
	bool keep;

	if (!json_is_boolean(json_object_get(call->parameters, "keep")))
		call_service_error(call, "InvalidParameter", "parameter", "keep");
	else if (take_text(call, "id", "", CHECKPOINT_ID_SIZE, &id) &&
		take_bool(call, "keep", &keep))
		request_keep(sup, call, id, keep);
}

/* A name no other sample has: the time and a count. */
static void sample_name(char *name, size_t size)
{
	static unsigned count;
	struct timespec now;
	struct tm parts;
	char time_text[32];

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &parts);
	strftime(time_text, sizeof(time_text), "%Y%m%d-%H%M%S", &parts);
	CHECK(size > sizeof("sample-.png") + sizeof(time_text));
	snprintf(name, size, "sample-%s-%u.png", time_text, ++count);
}

static void method_sample(struct supervisor *sup, struct call *call)
{
	int64_t count, steps, seed, label;
	const char *sampler, *id;
	json_t *guidance = json_object_get(call->parameters, "guidance");
	char name[64];

	if (!take_int(call, "count", 16, 1, SAMPLE_COUNT_MAX, &count) ||
		!take_int(call, "steps", sup->config.preview_steps, 1, SAMPLE_STEPS_MAX, &steps) ||
		!take_int(call, "seed", 0, 0, INT64_C(9007199254740991), &seed) ||
		!take_int(call, "label", -1, -1, 1000000, &label) ||
		!take_text(call, "id", "", CHECKPOINT_ID_SIZE, &id) ||
		!take_text(call, "sampler", "ddim", 16, &sampler))
		return;
	if (strcmp(sampler, "ddim") != 0 && strcmp(sampler, "ddpm") != 0) {
		call_service_error(call, "InvalidParameter", "parameter", "sampler");
		return;
	}
	if (guidance && !json_is_null(guidance) && !json_is_number(guidance)) {
		call_service_error(call, "InvalidParameter", "parameter", "guidance");
		return;
	}
	sample_name(name, sizeof(name));
	sample_start(sup, call,
		json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:s, s:s}", "id", id, "count",
			(json_int_t)count, "steps", (json_int_t)steps, "seed", (json_int_t)seed,
			"label", (json_int_t)label, "guidance",
			json_is_number(guidance) ? json_number_value(guidance) : 1.0, "sampler",
			sampler, "name", name));
}

static void method_reload(struct supervisor *sup, struct call *call)
{
	request_reload(sup, call);
}

static void method_power_fail(struct supervisor *sup, struct call *call)
{
	request_pause(sup, call, true);
}

static void method_power_ok(struct supervisor *sup, struct call *call)
{
	request_resume(sup, call, true);
}

static const struct method methods[] = {
	{"Status", false, false, method_status},
	{"Checkpoints", false, true, method_checkpoints},
	{"Events", false, true, method_events},
	{"Metrics", false, true, method_metrics},
	{"Outages", false, true, method_outages},
	{"Config", false, false, method_config},
	{"Save", true, true, method_save},
	{"Pause", true, true, method_pause},
	{"Resume", true, true, method_resume},
	{"Stop", true, false, method_stop},
	{"Rollback", true, true, method_rollback},
	{"Restart", true, true, method_restart},
	{"Keep", true, true, method_keep},
	{"Verify", true, true, method_verify},
	{"Scrub", true, true, method_scrub},
	{"Sample", true, true, method_sample},
	{"Reload", true, false, method_reload},
	{"PowerFail", true, true, method_power_fail},
	{"PowerOk", true, true, method_power_ok},
};

static void refuse(struct supervisor *sup, struct call *call)
{
	if (refusals_note(&sup->refusals, call->uid, clock_monotonic_ns()))
		sup_event(sup, "warning", "refused",
			"uid %u (process %d) may not call %s: it is neither root nor this "
			"service's user",
			(unsigned)call->uid, (int)call->pid, call->method);
	call_service_error(call, "PermissionDenied", NULL, NULL);
}

void methods_tick(struct supervisor *sup, nsec_t now_ns)
{
	struct refusal refusal;

	while (refusals_take(&sup->refusals, now_ns, &refusal))
		sup_event(sup, "warning", "refused",
			"uid %u was refused %u more calls within a minute", (unsigned)refusal.uid,
			refusal.untold);
}

void methods_handle(void *owner, struct call *call)
{
	struct supervisor *sup = owner;
	const struct method *method = NULL;

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (strcmp(methods[i].name, call->method) == 0)
			method = &methods[i];
	CHECK(call->parameters && call->method);
	CHECK(call->client && !call->next);
	if (!method)
		call_service_error(call, "MethodNotFound", "method", call->method);
	else if (method->changes && !call->may_change)
		refuse(sup, call);
	else if (call->more && method->handle != method_status)
		call_service_error(call, "InvalidParameter", "parameter", "more");
	else if (method->changes && sup->state == FSM_ENDED)
		call_error(call, "Busy", "the service ends");
	else if (method->needs_run && !sup->has_run)
		call_error(call, "NoRun", "%s",
			*sup->trouble ? sup->trouble : "the run is not open yet: try again");
	else
		method->handle(sup, call);
}
