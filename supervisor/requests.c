/* What people (and signals) ask for, turned into events. It must never answer before what it says
 * is durable: a call that changes `wanted` waits for run.json and for the state it asked for.
 * Invariant: a call is in one list, or answered. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/log.h"
#include "base/panic.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Answered by sup_settle. */
static void settle_later(struct supervisor *sup, struct call *call, enum fsm_state state)
{
	if (!call)
		return;
	CHECK(!call->next && (unsigned)state <= FSM_STATE_COUNT);
	call->wants = state;
	call->next = sup->settling;
	sup->settling = call;
}

static void set_wanted(struct supervisor *sup, enum wanted wanted, bool power)
{
	CHECK(sup->has_run);
	if (sup->run.wanted == wanted && sup->run.power_paused == power)
		return;
	sup->run.wanted = wanted;
	sup->run.power_paused = power;
	sup->revision++;
	store_run(sup);
}

void request_pause(struct supervisor *sup, struct call *call, bool power)
{
	if (!sup->has_run)
		return;
	if (sup->state == FSM_FINISHED || sup->state == FSM_FINISHING) {
		if (call)
			call_error(call, "Failed", "the run is finished: nothing to pause");
		return;
	}
	/* A power pause never weakens what a person wants. */
	if (power && sup->run.wanted != WANTED_RUN) {
		saver_request(sup, NULL, true);
		if (call)
			call_reply(call, NULL);
		return;
	}
	if (power) {
		sup_event(sup, "warning", "power-fail", "power fails: saving at once, then paused");
		saver_request(sup, NULL, true);
	} else {
		sup_event(sup, "info", "pause", "pause was asked for");
	}
	sup->power_since_ns = power ? clock_monotonic_ns() : 0;
	set_wanted(sup, WANTED_PAUSED, power);
	settle_later(sup, call, FSM_PAUSED);
	sup_dispatch(sup, FSM_PAUSE);
	sup_settle(sup);
}

void request_resume(struct supervisor *sup, struct call *call, bool only_power)
{
	if (!sup->has_run)
		return;
	if (!only_power || sup->run.power_paused) {
		if (sup->run.wanted != WANTED_RUN)
			sup_event(sup, "info", "resume",
				only_power ? "power is back" : "resume was asked for");
		set_wanted(sup, WANTED_RUN, false);
		sup_dispatch(sup, sup_resume_event(sup));
	}
	settle_later(sup, call, FSM_STATE_COUNT);
	sup_settle(sup);
}

void requests_tick(struct supervisor *sup, nsec_t now_ns)
{
	nsec_t most_ns = sup->config.power_pause_max * NSEC_PER_SEC;

	if (!sup->run.power_paused || sup->power_since_ns == 0 || most_ns == 0 ||
		now_ns - sup->power_since_ns < most_ns)
		return;
	sup->power_since_ns = 0;
	sup_event(sup, "warning", "power-pause-over",
		"nobody said that power is back within power_pause_max: going on");
	request_resume(sup, NULL, true);
}

void request_stop(struct supervisor *sup, struct call *call, bool exit, bool now)
{
	enum fsm_event event = exit ? FSM_EXIT : FSM_STOP;

	CHECK(call && !call->next);
	if (!sup->has_run && !exit) {
		call_error(call, "NoRun", "%s", sup->trouble);
		return;
	}
	/* Where nothing is under way, "now" must not wait for a later end of another kind. */
	if (now && fsm_is_halting(fsm_next(sup->state, event).next)) {
		sup->kill_now = true;
		sup->final.skip = true;
		child_kill(&sup->saver.child, SIGKILL);
		child_kill(&sup->trainer, SIGKILL);
	}
	sup_event(sup, "info", "stop", "stop was asked for%s%s",
		exit ? ", and the end of the daemon" : "", now ? ", without saving" : "");
	if (sup->has_run)
		set_wanted(sup, WANTED_STOPPED, false);
	settle_later(sup, call, exit ? FSM_ENDED : FSM_STOPPED);
	sup_dispatch(sup, event);
	sup_settle(sup);
}

void request_exit(struct supervisor *sup)
{
	bool again = sup->state == FSM_EXITING;

	if (again) {
		log_notice("asked to end once more: ending without saving");
		sup->kill_now = true;
		sup->final.skip = true;
		child_kill(&sup->saver.child, SIGKILL);
		child_kill(&sup->trainer, SIGKILL);
	}
	notify_send(&sup->notify, "STOPPING=1\nSTATUS=saving, then ending");
	sup_dispatch(sup, FSM_EXIT);
	final_save_step(sup);
}

void request_rollback(struct supervisor *sup, struct call *call, const char *id)
{
	uint64_t step;
	uint32_t branch;

	CHECK(call && (!id || strlen(id) < sizeof(sup->rollback_id)));
	CHECK(sup->has_run);
	if (id && *id && checkpoint_id_parse(id, &step, &branch) < 0) {
		call_error(call, "NotFound",
			"%.40s is not a checkpoint's id: they look like step-000012000-b0002", id);
		return;
	}
	if (rollback_may_begin(sup))
		rollback_look(sup, call, id);
	else
		call_error(call, "Busy", "the service is %s: try again in a moment",
			fsm_state_name(sup->state));
}

/* -- keep -- */

static void on_kept(struct ledger_job *job)
{
	struct keep_job *keep = (struct keep_job *)job;
	struct supervisor *sup = keep->head.owner;
	int code = job->result;

	if (code == 0) {
		sup_event(sup, "info", "keep", "%s", keep->text);
		call_reply(keep->call, json_pack("{s:o}", "text", text_json(keep->text)));
	} else {
		call_error(keep->call,
			code == -EINVAL || code == -ENOENT ? "NotFound"
				: code == -ENOBUFS         ? "Busy"
							   : "Failed",
			"%s", job->error.text);
	}
	free(job);
}

void request_keep(struct supervisor *sup, struct call *call, const char *id, bool keep)
{
	struct keep_job *job = books_job(sizeof(*job), books_keep_work, on_kept, sup);

	CHECK(call && strlen(id) < sizeof(job->id));
	snprintf(job->id, sizeof(job->id), "%s", id);
	job->keep = keep;
	job->call = call;
	books_give(&sup->ledger, job);
}

/* -- reload -- */

/* What was refused stays away; the folder and the socket are this process's for life. */
static int accept_config(struct supervisor *sup, struct config *config, struct error *err)
{
	int code = sup->has_run ? run_check_identity(&sup->run, config, err) : 0;

	if (code < 0)
		return code;
	memcpy(config->state_dir, sup->config.state_dir, sizeof(config->state_dir));
	memcpy(config->socket, sup->config.socket, sizeof(config->socket));
	return 0;
}

static uint32_t count_differences(
	const struct config *a, const struct config *b, enum config_class class)
{
	const struct config_key *key = NULL;
	uint32_t count = 0;

	while ((key = config_next_difference(a, b, class, key)))
		count++;
	return count;
}

void reload_refused(struct supervisor *sup, const char *why)
{
	/* Only once: without another reload there is nothing to go back to. */
	if (sup->config_replaced.steps_total == 0)
		return;
	sup->config = sup->config_replaced;
	sup->config_replaced.steps_total = 0;
	sup->config_last_good = true;
	snprintf(sup->config_text, sizeof(sup->config_text), "%s", why);
	store_last_good(sup);
	trainer_forget_pace(sup);
	sup_event(sup, "error", "reload", "reload refused, all stays as it was: %s", why);
}

static void apply_config(
	struct supervisor *sup, const struct config *config, char *text, size_t size)
{
	uint32_t schedule = count_differences(&sup->config, config, CONFIG_SCHEDULE);
	uint32_t free_keys = count_differences(&sup->config, config, CONFIG_FREE);
	bool longer = config->steps_total > sup->config.steps_total;
	enum log_level level;

	CHECK(config->steps_total > 0 && config->hang_timeout > 0);
	sup->config_replaced = sup->config;
	sup->config = *config;
	sup->config_last_good = sup->config_refused_at_start = false;
	sup->config_text[0] = '\0';
	if (log_level_parse(config->log_level, &level) == 0)
		log_set_level(level);
	trainer_forget_pace(sup);
	if (child_alive(&sup->trainer))
		child_send(&sup->trainer,
			json_pack("{s:{s:o}}", "reload", "config", json_from_config(config)));
	store_last_good(sup);
	snprintf(text, size, "%u schedule and %u free keys changed", schedule, free_keys);
	sup_event(sup, "info", "reload", "configuration read again: %s", text);
	if (sup->state == FSM_FAILED || (sup->state == FSM_FINISHED && longer))
		sup_dispatch(sup, FSM_RETRY);
}

static void on_reloaded(struct ledger_job *job)
{
	struct reload_job *reload = (struct reload_job *)job;
	struct supervisor *sup = reload->head.owner;
	struct call *call = reload->call;
	struct error error = job->error;
	char text[128];
	int code = job->result;

	if (code == 0)
		code = accept_config(sup, &reload->config, &error);
	if (code == 0) {
		signing_fini(&sup->signing);
		sup->signing = reload->signing;
		signing_init(&reload->signing);
		apply_config(sup, &reload->config, text, sizeof(text));
		sup->mirror.failures = 0;
		mirror_want(sup);
		if (call)
			call_reply(call, json_pack("{s:s}", "text", text));
	} else {
		sup_event(sup, "error", "reload", "configuration refused: %s", error.text);
		if (call)
			call_error(call, "Failed", "%s", error.text);
	}
	notify_send(&sup->notify, "READY=1");
	signing_fini(&reload->signing);
	free(job);
}

void request_reload(struct supervisor *sup, struct call *call)
{
	struct reload_job *reload = books_job(sizeof(*reload), books_reload_work, on_reloaded, sup);

	CHECK(!call || !call->next);
	notify_send(&sup->notify, "RELOADING=1\nMONOTONIC_USEC=%lld",
		(long long)(clock_monotonic_ns() / NSEC_PER_USEC));
	reload->source = sup->options.source;
	signing_init(&reload->signing);
	reload->call = call;
	books_give(&sup->ledger, reload);
}
