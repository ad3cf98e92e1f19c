/* Workers on request: sample and verify, one of each at a time, at low priority. It must never
 * touch the state memory: these roles read checkpoint files. Invariant: a task's call is answered
 * exactly once, by the end of its process. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TASK_NICE 10
#define RESULTS_MAX 10000

static void spawn_task(struct supervisor *sup, struct task *task, struct call *call, json_t *more)
{
	struct child_options options;

	CHECK(!child_alive(&task->child) && !task->call && !task->answer);
	task->call = call;
	worker_options(sup, &options);
	options.nice = TASK_NICE;
	options.threads = child_alive(&sup->trainer) ? 1 : (uint32_t)sup->config.threads;
	json_object_set_new(more, "threads", json_integer(options.threads));
	child_spawn(&task->child, &sup->loop, &options);
	start_frame_send(sup, &task->child, more);
}

void sample_start(struct supervisor *sup, struct call *call, json_t *more)
{
	if (child_alive(&sup->sample.child)) {
		json_decref(more);
		call_error(call, "Busy", "another sample is being made");
		return;
	}
	spawn_task(sup, &sup->sample, call, more);
}

void verify_start(struct supervisor *sup, struct call *call, const char *id)
{
	if (child_alive(&sup->verify.child)) {
		call_error(call, "Busy", "another verification is running");
		return;
	}
	spawn_task(sup, &sup->verify, call, json_pack("{s:s}", "id", id));
	sup->verify.answer = json_array();
	CHECK(sup->verify.answer);
}

static void on_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;

	if (strcmp(name, "event") == 0) {
		worker_event(sup, body);
	} else if (strcmp(name, "sampled") == 0 && child == &sup->sample.child) {
		json_decref(sup->sample.answer);
		sup->sample.answer = json_pack("{s:o, s:o, s:I}", "path",
			text_take_json(body, "path"), "id", text_take_json(body, "id"), "step",
			(json_int_t)count_take(body, "step"));
	} else if (strcmp(name, "verified") == 0 && child == &sup->verify.child &&
		json_array_size(sup->verify.answer) < RESULTS_MAX) {
		bool ok = json_get_bool(body, "ok", false);

		json_array_append_new(sup->verify.answer,
			json_pack("{s:o, s:b, s:o, s:o}", "id", text_take_json(body, "id"), "ok",
				ok, "state", text_take_json(body, "state"), "text",
				text_take_json(body, "text")));
		if (!ok)
			scrub_found_bad(sup, json_get_text(body, "id", ""),
				json_get_text(body, "state", ""));
	}
}

static void on_ended(struct child *child)
{
	struct supervisor *sup = child->owner;
	struct task *task = child == &sup->sample.child ? &sup->sample : &sup->verify;
	bool verify = task == &sup->verify;
	struct call *call = task->call;
	json_t *answer = task->answer;
	bool good = !child->term_signal && !child->protocol_broken &&
		(child->exit_status == 0 || (verify && json_array_size(answer) > 0));
	char text[TEXT_MAX];

	CHECK(call && !child_alive(child));
	task->call = NULL;
	task->answer = NULL;
	if (!answer || !good) {
		json_decref(answer);
		child_reason(child, text, sizeof(text));
		call_error(call, "Failed", "%s", text);
	} else {
		call_reply(call, verify ? json_pack("{s:o}", "results", answer) : answer);
	}
	if (verify)
		survey_start(sup);
}

const struct child_handlers sample_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = sup_on_stuck,
};

const struct child_handlers verify_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = sup_on_stuck,
};
