/* From a death to the next start. It must never start a worker on an older checkpoint before that
 * choice is durable. Invariants: one start is pending at most; what could not be done now is tried
 * again for ever, with growing waits. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"

#include "base/log.h"
#include "base/panic.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SAVE_POLL_NS (100 * NSEC_PER_MSEC)
#define FORK_RETRY_NS (5 * NSEC_PER_SEC)
#define FORK_RETRY_MAX_NS (300 * NSEC_PER_SEC)
#define FORK_FAILURES_MAX 10 /* then on without the branch: about half an hour */
#define INTERVAL_STEPS_DEFAULT 100

uint64_t interval_steps(const struct supervisor *sup)
{
	const struct config *config = &sup->config;
	double steps = INTERVAL_STEPS_DEFAULT;

	if (saver_interval_ns(sup) > 0 && sup->shown.step_ns > 0)
		steps = (double)saver_interval_ns(sup) / sup->shown.step_ns;
	if (config->interval_steps > 0 && (double)config->interval_steps < steps)
		steps = (double)config->interval_steps;
	return steps < 1 ? 1 : steps > 1e12 ? UINT64_C(1000000000000) : (uint64_t)steps;
}

static uint32_t random_word(void)
{
	uint32_t word;

	digest_random_id((uint8_t *)&word, sizeof(word));
	return word;
}

/* -- the decision -- */

static void supply_fill(const struct supervisor *sup, struct restart_supply *ret)
{
	const struct newest *newest = &sup->newest;
	const struct survey *survey = &sup->survey;
	struct state_record record;
	/* The newest may have no row yet: then only a trainer that looks finds it. */
	bool unread = survey->unread ||
		(newest->known && (survey->count == 0 || survey->steps[0] < newest->step));

	*ret = (struct restart_supply){.memory = memory_newest(sup, &record) == 0,
		.count = survey->count,
		.left_behind = survey->left_behind,
		.unread = unread,
		.scratch = run_may_begin(sup) && !unread,
		.safe_already = strcmp(sup->shown.engine, "openblas") == 0 &&
			sup->trainer_threads == 1,
		.random = random_word()};
	CHECK(ret->count <= RESTART_STEPS_MAX);
	memcpy(ret->steps, survey->steps, sizeof(ret->steps));
}

static void tell_decision(struct supervisor *sup, const struct restart_decision *decision)
{
	char delay[CLOCK_TEXT_SIZE] = "at once";

	if (decision->delay_ns > 0)
		clock_format_duration(decision->delay_ns, delay);
	for (uint32_t rung = 0; rung <= LADDER_RUNG_MAX; rung++)
		if (decision->not_applicable & (1u << rung))
			sup_event(sup, "info", "rung", "rung %u: not applicable", rung);
	if (decision->withdrawn)
		sup_event(sup, "info", "suspicion-withdrawn",
			"an older checkpoint died at the same step: the newer one was not the "
			"cause");
	sup_event(sup, decision->rung >= 2 ? "warning" : "info", "restart",
		"rung %u: restart %s, %s%s%s", decision->rung, restart_from_text(decision->from),
		decision->delay_ns > 0 ? "after " : "", delay,
		decision->safe_engine ? ", on the safe engine" : "");
}

void recover_decide(struct supervisor *sup, const struct obituary *obituary, bool stepped)
{
	struct death death = {.kind = obituary->kind,
		.cause = obituary->cause_number,
		.step = sup->death_step,
		.images = sup->death_images,
		.stepped = stepped};
	struct restart_supply supply;

	CHECK(!child_alive(&sup->trainer) && sup->state == FSM_TRAINING);
	CHECK(!obituary->planned && !obituary->person);
	supply_fill(sup, &supply);
	ladder_progress(&sup->ladder, sup->death_step, interval_steps(sup));
	sup->decision = ladder_decide(&sup->ladder, &death, &supply);
	memory_keep_ladder(sup);
	sup->start_delay_ns = sup->decision.delay_ns;
	sup->resume_disk = sup->decision.from != RESTART_MEMORY;
	sup->fork_pending = restart_forks(sup->decision.from);
	sup->fork_retry_ns = clock_monotonic_ns();
	sup->fork_failures = 0;
	sup->restarts++;
	sup->revision++;
	tell_decision(sup, &sup->decision);
	/* It may have found that what is on the line is bad. */
	if (death.kind == DEATH_TRANSIENT)
		survey_start(sup);
}

/* -- the ladder's branch -- */

static void add_intervention(
	struct fork_job *fork, uint64_t step, enum intervention_kind kind, const char *value)
{
	struct intervention *intervention = &fork->interventions[fork->intervention_count++];

	CHECK(fork->intervention_count <= LINE_INTERVENTIONS_MAX);
	intervention->step = step;
	intervention->kind = kind;
	snprintf(intervention->value, sizeof(intervention->value), "%s", value);
}

/* The data of the fatal step, or of all updates in a row that were skipped, times `times`. */
static void skip_window(struct supervisor *sup, struct fork_job *fork, uint32_t times)
{
	uint64_t window = sup->death_skipped_in_row > 0 ? sup->death_skipped_in_row : 1;
	char value[32];

	if (window > sup->death_step)
		window = 1;
	CHECK(window >= 1 && times >= 1 && sup->config.batch_size >= 1);
	snprintf(value, sizeof(value), "%llu",
		(unsigned long long)(times * window * (uint64_t)sup->config.batch_size));
	add_intervention(fork,
		sup->death_skipped_in_row > 0 ? sup->death_step - window : sup->death_step,
		INTERVENTION_SKIP_WINDOW, value);
}

static void on_ladder_forked(struct ledger_job *job)
{
	struct fork_job *fork = (struct fork_job *)job;
	struct supervisor *sup = fork->head.owner;
	int code = job->result;

	CHECK(sup->forking);
	sup->forking = false;
	if (code == 0) {
		survey_take(sup, &fork->survey);
		storage_note(sup, true, "");
		if (fork->which == FORK_LEFT_BEHIND) {
			sup->ladder.left_step = fork->branch.fork_step;
			memory_keep_ladder(sup);
		}
		if (sup->decision.from == RESTART_FORK_START && fork->branch.fork_step > 0)
			sup->decision.from = RESTART_FORK_NEWEST;
		sup_event(sup, "warning", "branch", "branch %u begins at %s: %s",
			fork->branch.branch, fork->id, fork->why);
	} else if (code == -ENOENT) {
		sup_event(sup, "warning", "branch", "no new branch: %s", job->error.text);
	} else if (code != -ECANCELED) {
		storage_note(sup, false, job->error.text);
		sup->fork_retry_ns = clock_monotonic_ns() +
			backoff_ns(FORK_RETRY_NS, FORK_RETRY_MAX_NS, sup->fork_failures++, 0);
	}
	free(job);
	if (code == -ECANCELED ||
		(code != 0 && code != -ENOENT && sup->fork_failures < FORK_FAILURES_MAX))
		return;
	sup->fork_pending = false;
	if (sup->state == FSM_RESTARTING)
		schedule_start(sup);
}

bool fork_is_from_start(const struct supervisor *sup)
{
	return sup->forking && sup->fork_pending && sup->decision.from == RESTART_FORK_START;
}

static void ladder_fork(struct supervisor *sup)
{
	const struct restart_decision *decision = &sup->decision;

	CHECK(sup->fork_pending && !sup->forking && !child_alive(&sup->trainer));
	/* A branch from step 0 is for a run without a checkpoint: the save in flight may be about
	 * to make the first one, which would not be on it. */
	if (decision->from == RESTART_FORK_START && sup->saver.in_flight) {
		sup->fork_retry_ns = clock_monotonic_ns() + FIRST_SAVE_POLL_NS;
		return;
	}
	struct fork_job *fork = books_job(sizeof(*fork), books_fork_work, on_ladder_forked, sup);
	sup->fork_retry_ns = 0;
	sup->forking = true;
	/* Of a first checkpoint that was verified since, the catalog may not know. */
	fork->which = decision->from == RESTART_FORK_LEFT ? FORK_LEFT_BEHIND
		: decision->from != RESTART_FORK_START    ? FORK_STEP
		: run_may_begin(sup)                      ? FORK_START
							  : FORK_NEWEST;
	fork->step = fork->which == FORK_LEFT_BEHIND ? sup->ladder.left_step : decision->step;
	fork->suspect = decision->from == RESTART_FORK_OLDER;
	fork->carry = true;
	if (decision->skip_window > 0)
		skip_window(sup, fork, decision->skip_window);
	if (decision->safe_engine && strcmp(sup->shown.engine, "openblas") != 0)
		add_intervention(fork, decision->step, INTERVENTION_ENGINE, "openblas");
	snprintf(fork->why, sizeof(fork->why),
		"rung %u after %u death%s without progress at step %llu", decision->rung,
		sup->ladder.counted, sup->ladder.counted == 1 ? "" : "s",
		(unsigned long long)sup->death_step);
	books_give(&sup->ledger, fork);
}

/* -- the start -- */

static void on_start_timer(uv_timer_t *timer)
{
	struct supervisor *sup = timer->data;

	if (sup->state == FSM_RESTARTING)
		sup_dispatch(sup, FSM_START);
}

/* Nothing left to train from where the next start would go on. */
static bool is_complete(const struct supervisor *sup)
{
	struct state_record record;
	uint64_t step = sup->newest.known ? sup->newest.step : 0;

	if (!sup->resume_disk && memory_newest(sup, &record) == 0)
		step = record.step;
	return step >= (uint64_t)sup->config.steps_total;
}

void schedule_start(struct supervisor *sup)
{
	CHECK(sup->state == FSM_RESTARTING && sup->prepared.known);
	CHECK(!child_alive(&sup->trainer));
	if (sup->forking)
		return;
	if (sup->fork_pending) {
		if (sup->fork_retry_ns > 0 && clock_monotonic_ns() >= sup->fork_retry_ns)
			ladder_fork(sup);
		return;
	}
	if (is_complete(sup)) {
		memory_drop_ahead(sup);
		sup_dispatch(sup, FSM_COMPLETE);
		return;
	}
	/* A save that is told to drop its slot must be over before the slots are emptied. */
	if (sup->memory_suspect || !memory_ensure(sup))
		return;
	uint64_t delay_ms = (uint64_t)(sup->start_delay_ns / NSEC_PER_MSEC);

	uv_timer_start(&sup->start_timer, on_start_timer, delay_ms, 0);
}

void schedule_cancel(struct supervisor *sup)
{
	uv_timer_stop(&sup->start_timer);
	sup->poll_ns = sup->retry_ns = sup->memory_retry_ns = 0;
}

void recover_tick(struct supervisor *sup, nsec_t now_ns)
{
	if (sup->memory_suspect && !sup->saver.in_flight && !child_alive(&sup->trainer)) {
		memory_empty(sup);
		sup->memory_suspect = false;
		if (sup->state == FSM_RESTARTING)
			schedule_start(sup);
	}
	if (sup->state != FSM_RESTARTING)
		return;
	if (sup->fork_pending && !sup->forking && sup->fork_retry_ns > 0 &&
		now_ns >= sup->fork_retry_ns)
		ladder_fork(sup);
	if (sup->memory_retry_ns > 0 && now_ns >= sup->memory_retry_ns)
		schedule_start(sup);
}

/* -- a rollback by a person -- */

static void take_rollback(struct supervisor *sup, struct fork_job *fork, const char *kind)
{
	struct call *call = fork->call;

	survey_take(sup, &fork->survey);
	ladder_init(&sup->ladder);
	sup->ladder.furthest_step = sup->ladder.climb_step = fork->branch.fork_step;
	memory_keep_ladder(sup);
	outages_went_back(sup, fork->branch.fork_step);
	sup->resume_disk = true;
	sup->fork_pending = false;
	sup->start_delay_ns = 0;
	if (fork->which == FORK_SCRATCH)
		sup->shown.loss = sup->shown.holdout_loss = NAN;
	sup_event(sup, "warning", kind, "branch %u begins at %s: %s", fork->branch.branch, fork->id,
		fork->why);
	call->answer = json_pack("{s:I, s:I}", "branch", (json_int_t)fork->branch.branch, "step",
		(json_int_t)fork->branch.fork_step);
}

static void on_rollback_forked(struct ledger_job *job)
{
	struct fork_job *fork = (struct fork_job *)job;
	struct supervisor *sup = fork->head.owner;
	struct call *call = fork->call;
	bool good = job->result == 0, scratch = fork->which == FORK_SCRATCH;
	const char *kind = scratch ? "from-scratch" : "rollback";

	CHECK(call && sup->forking);
	sup->forking = false;
	if (good) {
		take_rollback(sup, fork, kind);
	} else {
		sup_event(sup, "error", kind, "%s", job->error.text);
		call_error(call, job->result == -ENOENT ? "NotFound" : "Failed", "%s",
			job->error.text);
	}
	free(job);
	sup_dispatch(sup, FSM_FORKED);
	/* Who begins again wants the run; who goes back may want to look first. */
	if (good && scratch)
		request_resume(sup, call, false);
	else if (good)
		call_reply(call, json_incref(call->answer));
}

static void name_rollback(struct fork_job *fork, const char *id)
{
	fork->which = !id ? FORK_SCRATCH : *id ? FORK_ID : FORK_BEFORE_NEWEST;
	snprintf(fork->id, sizeof(fork->id), "%s", id ? id : "");
}

void rollback_fork(struct supervisor *sup)
{
	struct fork_job *fork = books_job(sizeof(*fork), books_fork_work, on_rollback_forked, sup);

	CHECK(sup->rollback_call && !child_alive(&sup->trainer) && !sup->forking);
	name_rollback(fork, sup->rollback_scratch ? NULL : sup->rollback_id);
	snprintf(fork->why, sizeof(fork->why), "%s by uid %u",
		sup->rollback_scratch ? "restart from scratch" : "rollback",
		(unsigned)sup->rollback_call->uid);
	fork->call = sup->rollback_call;
	sup->rollback_call = NULL;
	sup->forking = true;
	books_give(&sup->ledger, fork);
}

static void on_rollback_looked(struct ledger_job *job)
{
	struct fork_job *fork = (struct fork_job *)job;
	struct supervisor *sup = fork->head.owner;
	struct call *call = fork->call;

	if (job->result < 0)
		call_error(call, job->result == -ENOENT ? "NotFound" : "Failed", "%s",
			job->error.text);
	else if (!rollback_may_begin(sup))
		call_error(call, "Busy", "the service is %s: try again in a moment",
			fsm_state_name(sup->state));
	else {
		sup->rollback_call = call;
		sup->rollback_scratch = fork->which == FORK_SCRATCH;
		snprintf(sup->rollback_id, sizeof(sup->rollback_id), "%s",
			fork->which == FORK_ID ? fork->id : "");
		sup_dispatch(sup, FSM_ROLLBACK);
	}
	free(job);
}

bool rollback_may_begin(const struct supervisor *sup)
{
	return !sup->rollback_call && !sup->forking && fsm_next(sup->state, FSM_ROLLBACK).taken;
}

void rollback_look(struct supervisor *sup, struct call *call, const char *id)
{
	struct fork_job *fork = books_job(
		sizeof(*fork), books_fork_look_work, on_rollback_looked, sup);

	name_rollback(fork, id);
	fork->call = call;
	books_give(&sup->ledger, fork);
}
