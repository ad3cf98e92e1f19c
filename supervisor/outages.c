/* The ledger of outages: from the last finished step to the first that was never finished before.
 * It must never decide anything. Invariants: at most one outage is open; every change of it, and
 * of what counts as done, is written, in order. */
#include "supervisor/supervisor.h"

#include "base/log.h"
#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEEN_NS (5 * NSEC_PER_SEC)

static void write_row(struct supervisor *sup)
{
	struct outage_job *put = books_job(sizeof(*put), books_outage_work, books_forget, sup);

	CHECK(sup->outage.token > 0);
	put->token = sup->outage.token;
	put->outage = sup->outage.row;
	books_give(&sup->ledger, put);
}

/* What is known to be done: the next life takes up there, with an outage that is open still. */
static struct life_job *life_seen(struct supervisor *sup)
{
	struct life_job *job = books_job(sizeof(*job), books_life_seen_work, books_forget, sup);
	uint64_t step = sup_step(sup);

	job->life.seen_wall_ns = clock_wall_ns();
	job->life.step = step > sup->outage.furthest ? step : sup->outage.furthest;
	return job;
}

static void begin(struct supervisor *sup, const struct history_outage *row)
{
	struct outage_now *outage = &sup->outage;

	if (outage->open)
		return;
	CHECK(row->cause[0] && row->begun_wall_ns > 0);
	outage->open = true;
	outage->token++;
	outage->row = *row;
	if (outage->furthest < row->step)
		outage->furthest = row->step;
	write_row(sup);
	books_give(&sup->ledger, life_seen(sup));
}

/* -- the supervisor's life -- */

/* It did not say that it ends: the machine, or only this process? */
static void tell_last_life(struct supervisor *sup, const struct life_job *job)
{
	const struct history_life *last = &job->last;
	bool same_boot = strcmp(last->boot_id, job->life.boot_id) == 0;
	struct history_outage row = {
		.begun_wall_ns = last->seen_wall_ns, .step = last->step, .planned = last->ended};
	char age[CLOCK_TEXT_SIZE];

	clock_format_duration(job->life.begun_wall_ns - last->seen_wall_ns, age);
	snprintf(row.cause, sizeof(row.cause), "%s",
		last->ended         ? "end of the daemon"
			: same_boot ? "supervisor died"
				    : "power cut");
	snprintf(row.detected, sizeof(row.detected), "%s",
		last->ended         ? "it said so"
			: same_boot ? "no clean end, same boot"
				    : "no clean end, another boot");
	snprintf(row.sentence, sizeof(row.sentence), "%s; last seen at step %llu, %s before",
		row.cause, (unsigned long long)last->step, age);
	if (!last->ended)
		sup_event(sup, "warning", same_boot ? "supervisor-died" : "power-cut", "%s",
			row.sentence);
	begin(sup, &row);
}

static void on_life_begun(struct ledger_job *job)
{
	struct life_job *life = (struct life_job *)job;
	struct supervisor *sup = life->head.owner;
	struct outage_now *outage = &sup->outage;

	if (job->result == 0 && outage->furthest < life->last.step)
		outage->furthest = life->last.step;
	if (job->result == 0) {
		outage->memory_losses += life->memory_losses;
		outage->since_wall_ns = life->since_wall_ns;
	}
	if (life->has_open && !outage->open) {
		outage->open = true;
		outage->row = life->open;
	} else if (job->result == 0 && life->last.begun_wall_ns > 0) {
		tell_last_life(sup, life);
	}
	free(job);
}

void outages_life_begin(struct supervisor *sup)
{
	struct life_job *job = books_job(sizeof(*job), books_life_begin_work, on_life_begun, sup);

	CHECK(sup->has_run && sup->outage.token == 0);
	sup->outage.token = job->token = 1;
	job->life.begun_wall_ns = job->life.seen_wall_ns = clock_wall_ns();
	books_give(&sup->ledger, job);
}

void outages_tick(struct supervisor *sup, nsec_t now_ns)
{
	if (!sup->has_run || now_ns - sup->outage.seen_ns < SEEN_NS)
		return;
	sup->outage.seen_ns = now_ns;
	struct life_job *seen = life_seen(sup);

	seen->head.job.droppable = true;
	books_give(&sup->ledger, seen);
}

void outages_life_end(struct supervisor *sup)
{
	if (!sup->has_run)
		return;
	struct life_job *seen = life_seen(sup);

	seen->life.ended = true;
	books_give(&sup->ledger, seen);
}

/* -- the trainer -- */

/* Why it ended, when somebody wanted it to. */
static const char *planned_cause(const struct supervisor *sup)
{
	switch (sup->state) {
	case FSM_PAUSING:
		return sup->run.power_paused ? "power failure" : "pause";
	case FSM_STOPPING:
		return "stop";
	case FSM_EXITING:
		return "end of the daemon";
	case FSM_ROLLING:
		return sup->rollback_scratch ? "restart from scratch" : "rollback";
	default:
		return sup->trainer_finished ? "finished" : "planned restart";
	}
}

void outages_trainer_ended(struct supervisor *sup, const struct obituary *obituary)
{
	struct outage_now *outage = &sup->outage;
	bool planned = obituary->planned || sup->state != FSM_TRAINING;
	struct history_outage row = {
		.begun_wall_ns = clock_wall_ns(), .planned = planned, .step = sup->death_step};

	CHECK(!child_alive(&sup->trainer));
	if (outage->furthest < sup->death_step)
		outage->furthest = sup->death_step;
	row.step = outage->furthest;
	snprintf(
		row.cause, sizeof(row.cause), "%s", planned ? planned_cause(sup) : obituary->cause);
	snprintf(row.detected, sizeof(row.detected), "%s",
		planned ? "it was asked for" : obituary->detected);
	snprintf(row.sentence, sizeof(row.sentence), "%s", obituary->sentence);
	/* The step that was lost in the middle is lost time too. */
	if (!planned && outage->stepped_wall_ns > sup->trainer_wall_ns)
		row.begun_wall_ns = outage->stepped_wall_ns;
	else if (!planned)
		row.begun_wall_ns = sup->trainer_wall_ns;
	begin(sup, &row);
}

void outages_trainer_started(struct supervisor *sup)
{
	if (sup->outage.open && sup->outage.row.restarts < UINT32_MAX)
		sup->outage.row.restarts++;
}

void outages_trainer_ready(struct supervisor *sup, const char *from, uint64_t step)
{
	struct outage_now *outage = &sup->outage;
	struct history_outage *row = &outage->row;
	uint64_t redone = step < outage->furthest ? outage->furthest - step : 0;
	bool lost = strcmp(from, "memory") != 0;

	if (!outage->open)
		return;
	if (lost && !row->memory_lost && !row->planned)
		outage->memory_losses++;
	row->memory_lost = row->memory_lost || lost;
	if (row->steps_redone < redone)
		row->steps_redone = redone;
	write_row(sup);
}

/* When the step began that has just been seen finished; never before the outage did. */
static nsec_t step_began_wall_ns(const struct history_outage *row, nsec_t now_ns, uint64_t step_ns)
{
	nsec_t at_ns = now_ns - (step_ns < (uint64_t)now_ns ? (nsec_t)step_ns : 0);

	return at_ns > row->begun_wall_ns ? at_ns : row->begun_wall_ns;
}

void outages_stepped(struct supervisor *sup, uint64_t step, uint64_t step_ns)
{
	struct outage_now *outage = &sup->outage;
	struct history_outage *row = &outage->row;
	nsec_t now_ns = clock_wall_ns();

	outage->stepped_wall_ns = now_ns;
	if (outage->open && row->resumed_wall_ns == 0)
		row->resumed_wall_ns = step_began_wall_ns(row, now_ns, step_ns);
	if (step <= outage->furthest)
		return;
	outage->furthest = step;
	if (!outage->open)
		return;
	row->ended_wall_ns = step_began_wall_ns(row, now_ns, step_ns);
	outage->open = false;
	write_row(sup);
}

void outages_went_back(struct supervisor *sup, uint64_t step)
{
	sup->outage.furthest = step;
	books_give(&sup->ledger, life_seen(sup));
}
