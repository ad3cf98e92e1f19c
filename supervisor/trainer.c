/* The trainer's process. It must never trust what the trainer wrote into the progress page: every
 * value is bounded where it is read. Invariants: there is at most one trainer; after its waitpid no
 * slot is `writing`; each end has one obituary. */
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/log.h"
#include "base/panic.h"
#include "proto/link.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEP_NS_MAX (UINT64_C(86400) * NSEC_PER_SEC)
#define SMOOTHING 0.1
#define TOLD_MAX 100 /* events of workers in a second */
#define GROWTH_READ_NS NSEC_PER_SEC
#define RENEW_AFTER_NS (5 * NSEC_PER_SEC) /* a trainer is not replaced sooner */

/* -- start -- */

void trainer_forget_pace(struct supervisor *sup)
{
	uint64_t moves = atomic_load(&sup->progress->moves);
	nsec_t quiet_ns = moves == sup->watchdog.moves ? sup->watchdog.quiet_ns : 0;

	watchdog_init(&sup->watchdog, TICK_NS, sup->config.hang_timeout * NSEC_PER_SEC);
	watchdog_begin(&sup->watchdog, moves, atomic_load(&sup->progress->step));
	sup->watchdog.quiet_ns = quiet_ns; /* what hangs does so under any configuration */
}

static void attempt_begin(struct supervisor *sup)
{
	struct attempt_job *begin = books_job(
		sizeof(*begin), books_attempt_begin_work, books_forget, sup);

	begin->token = ++sup->attempt_token;
	snprintf(begin->attempt.role, sizeof(begin->attempt.role), "train");
	begin->attempt.pid = sup->trainer.pid;
	begin->attempt.begun_wall_ns = sup->trainer_wall_ns;
	begin->attempt.rung = sup->decision.rung;
	begin->attempt.step_begun = sup->trainer_step_begun;
	snprintf(begin->attempt.from, sizeof(begin->attempt.from), "%s", sup->trainer_from);
	books_give(&sup->ledger, begin);
}

void trainer_start(struct supervisor *sup)
{
	struct child_options options;
	struct state_record record;
	bool from_memory = !sup->resume_disk && memory_newest(sup, &record) == 0;

	CHECK(!child_alive(&sup->trainer) && !child_alive(&sup->preparer));
	CHECK(sup->has_memory && sup->prepared.known);
	CHECK(!sup->forking && !sup->fork_pending);
	memory_restore_header(sup);
	worker_options(sup, &options);
	options.state_fd = sup->memory.fd;
	options.progress_fd = sup->progress_fd;
	uint32_t threads = sup->ladder.safe_engine ? 1 : (uint32_t)sup->config.threads;

	if (threads != sup->trainer_threads)
		trainer_forget_pace(sup);
	options.threads = sup->trainer_threads = threads;
	sup->trainer_ready = sup->trainer_finished = false;
	sup->trainer_step_begun = sup_step(sup);
	sup->trainer_wall_ns = clock_wall_ns();
	sup->oom_kills_before = resources_oom_kills();
	snprintf(sup->trainer_from, sizeof(sup->trainer_from), "%s",
		from_memory                 ? "memory"
			: sup->newest.known ? "checkpoint"
					    : "scratch");
	watchdog_begin(&sup->watchdog, atomic_load(&sup->progress->moves),
		atomic_load(&sup->progress->step));
	sup->growth = (struct growth){0};
	outages_trainer_started(sup);
	child_spawn(&sup->trainer, &sup->loop, &options);
	start_frame_send(sup, &sup->trainer,
		json_pack("{s:s, s:i, s:s}", "resume", from_memory ? "memory" : "disk", "threads",
			(int)sup->trainer_threads, "engine",
			sup->ladder.safe_engine ? "openblas" : ""));
	attempt_begin(sup);
	sup->revision++;
}

/* -- messages -- */

/* At the start, and after a reload. */
static void take_plan(struct supervisor *sup, const json_t *body)
{
	struct shown *shown = &sup->shown;

	CHECK(child_alive(&sup->trainer));
	text_take(shown->engine, sizeof(shown->engine), body, "engine");
	text_take(shown->engine_reason, sizeof(shown->engine_reason), body, "engine_reason");
	shown->plan_bytes = count_take(body, "plan_bytes");
}

static void take_ready(struct supervisor *sup, const json_t *body)
{
	uint64_t step = count_take(body, "step");
	const char *from = sup->trainer_from;

	CHECK(child_alive(&sup->trainer) && sup->has_memory);
	if (sup->trainer_ready) {
		child_refuse(&sup->trainer, "it says twice that it is ready");
		return;
	}
	sup->trainer_ready = true;
	sup->config_replaced.steps_total = 0;
	sup->resume_disk = false;
	sup->start_delay_ns = 0;
	sup->trouble[0] = '\0';
	text_take(sup->trainer_from, sizeof(sup->trainer_from), body, "from");
	take_plan(sup, body);
	text_take(sup->shown.sandbox, sizeof(sup->shown.sandbox), body, "sandbox");
	sup->shown.step_seen = sup->trainer_step_begun = step;
	outages_trainer_ready(sup, from, step);
	sup_event(sup, "info", "training", "trainer %d goes on from %s at step %llu on branch %llu",
		(int)sup->trainer.pid, from, (unsigned long long)step,
		(unsigned long long)count_take(body, "branch"));
	/* What it met on the way may have changed the catalog. */
	if (strcmp(from, "memory") != 0)
		survey_start(sup);
}

/* One that says so too early has died: else it would be begun again and again without a delay. It
 * may not have heard of a reload yet. */
static bool is_at_end(const struct supervisor *sup)
{
	int64_t replaced = sup->config_replaced.steps_total;
	uint64_t step = sup_step(sup);

	return step >= (uint64_t)sup->config.steps_total ||
		(replaced > 0 && step >= (uint64_t)replaced);
}

static void on_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;
	char text[TEXT_MAX];

	if (strcmp(name, "ready") == 0) {
		take_ready(sup, body);
	} else if (strcmp(name, "plan") == 0) {
		take_plan(sup, body);
		sup->config_replaced.steps_total = 0;
	} else if (strcmp(name, "reload_refused") == 0) {
		text_take(text, sizeof(text), body, "text");
		reload_refused(sup, text);
	} else if (strcmp(name, "event") == 0) {
		worker_event(sup, body);
	} else if (strcmp(name, "finished") == 0) {
		sup->trainer_finished = is_at_end(sup);
	} else if (strcmp(name, "preview") == 0) {
		sup->shown.preview_step = count_take(body, "step");
		text_take(sup->shown.preview_path, sizeof(sup->shown.preview_path), body, "path");
	}
	sup->revision++;
}

void worker_event(struct supervisor *sup, const json_t *body)
{
	const char *level = json_get_text(body, "level", "info");
	nsec_t now_ns = clock_monotonic_ns();

	if (now_ns - sup->told_since_ns > NSEC_PER_SEC) {
		if (sup->told > TOLD_MAX)
			log_warning(
				"%u more events of workers were not kept", sup->told - TOLD_MAX);
		sup->told_since_ns = now_ns;
		sup->told = 0;
	}
	if (++sup->told > TOLD_MAX)
		return;
	if (strcmp(level, "warning") != 0 && strcmp(level, "error") != 0)
		level = "info";
	sup_event(sup, level, json_get_text(body, "kind", "worker"), "%s",
		json_get_text(body, "text", ""));
}

/* -- numbers -- */

/* Rates as shown: smoothed over about ten steps. */
static void measure(struct supervisor *sup)
{
	struct progress *progress = sup->progress;
	uint64_t step = atomic_load(&progress->step), step_ns = atomic_load(&progress->step_ns);
	uint32_t images = atomic_load(&progress->images_per_step);
	uint32_t bits = atomic_load(&progress->loss_bits);
	struct shown *shown = &sup->shown;

	/* Nobody is asked for a step beyond the end: one that is, is no progress. */
	if (!sup->trainer_ready || step == shown->step_seen ||
		step > (uint64_t)sup->config.steps_total)
		return;
	shown->step_seen = step;
	memcpy(&shown->loss, &bits, sizeof(bits));
	sup->revision++;
	outages_stepped(sup, step, step_ns <= (uint64_t)STEP_NS_MAX ? step_ns : 0);
	if (step_ns == 0 || step_ns > (uint64_t)STEP_NS_MAX || images > 1000000)
		return;
	if (shown->images_per_second <= 0)
		shown->step_ns = (double)step_ns;
	else
		shown->step_ns += SMOOTHING * ((double)step_ns - shown->step_ns);
	shown->images_per_second = images * 1e9 / shown->step_ns;
	bool was_safe = sup->ladder.safe_engine;

	ladder_progress(&sup->ladder, step, interval_steps(sup));
	if (was_safe && !sup->ladder.safe_engine)
		trainer_renew(sup, "it has got on: back to the engine of the run");
}

/* -- a new one between two steps -- */

void trainer_renew(struct supervisor *sup, const char *why)
{
	if (sup->state != FSM_TRAINING || !sup->trainer_ready || sup->trainer.asked ||
		!child_alive(&sup->trainer))
		return;
	sup_event(sup, "info", "renew", "a new trainer between two steps: %s", why);
	sup_dispatch(sup, FSM_RENEW);
}

/* Memory that only grows ends in a kill at a bad time. */
static void watch_growth(struct supervisor *sup, nsec_t now_ns)
{
	uint64_t limit = (uint64_t)sup->config.memory_growth << 20, step = sup_step(sup);
	char text[128];

	if (sup->state != FSM_TRAINING || !sup->trainer_ready ||
		now_ns - sup->growth_read_ns < GROWTH_READ_NS)
		return;
	sup->growth_read_ns = now_ns;
	uint64_t bytes = resources_private_bytes(sup->trainer.pid);
	uint64_t steps = step > sup->trainer_step_begun ? step - sup->trainer_step_begun : 0;

	if (!growth_exceeds(&sup->growth, steps, bytes, limit) ||
		now_ns - sup->trainer.begun_ns < RENEW_AFTER_NS)
		return;
	snprintf(text, sizeof(text), "its memory grew from %llu to %llu MiB",
		(unsigned long long)(sup->growth.base_bytes >> 20),
		(unsigned long long)(bytes >> 20));
	sup_event(sup, "warning", "leak", "the trainer leaks: %s", text);
	trainer_renew(sup, text);
}

/* -- end -- */

static void remember_death(
	struct supervisor *sup, const struct obituary *obituary, const char *phase)
{
	char time[CLOCK_TEXT_SIZE];
	json_t *death;

	clock_format_utc(clock_wall_ns(), time);
	death = json_pack("{s:s, s:s, s:o, s:s, s:I, s:o, s:o}", "time", time, "role", "train",
		"cause", text_json(obituary->cause), "phase", phase, "step",
		(json_int_t)sup->death_step, "sentence", text_json(obituary->sentence),
		"stderr_tail", text_json(sup->trainer.tail));
	CHECK(death);
	json_decref(sup->shown.last_death);
	sup->shown.last_death = death;
}

static void attempt_end(struct supervisor *sup, const struct obituary *obituary, const char *phase)
{
	struct attempt_job *end = books_job(
		sizeof(*end), books_attempt_end_work, books_forget, sup);
	struct history_attempt *attempt = &end->attempt;

	CHECK(sup->attempt_token > 0);
	end->token = sup->attempt_token;
	snprintf(attempt->role, sizeof(attempt->role), "train");
	attempt->pid = sup->trainer.pid;
	attempt->begun_wall_ns = sup->trainer_wall_ns;
	attempt->ended_wall_ns = clock_wall_ns();
	attempt->rung = sup->decision.rung;
	attempt->step_begun = sup->trainer_step_begun;
	attempt->step_ended = sup->death_step;
	snprintf(attempt->from, sizeof(attempt->from), "%s", sup->trainer_from);
	snprintf(attempt->cause, sizeof(attempt->cause), "%s", obituary->cause);
	snprintf(attempt->phase, sizeof(attempt->phase), "%s", phase);
	snprintf(attempt->sentence, sizeof(attempt->sentence), "%s", obituary->sentence);
	snprintf(attempt->stderr_tail, sizeof(attempt->stderr_tail), "%s", sup->trainer.tail);
	attempt->planned = obituary->planned;
	books_give(&sup->ledger, end);
}

/* What an end means for the table. */
static void follow_end(struct supervisor *sup, const struct obituary *obituary, bool stepped)
{
	CHECK(!child_alive(&sup->trainer));
	if (sup->state != FSM_TRAINING) {
		CHECK(sup->trainer.asked || sup->kill_now);
		sup_dispatch(sup, FSM_GONE);
	} else if (sup->trainer_finished && !sup->trainer.term_signal &&
		sup->trainer.exit_status == LINK_EXIT_DONE) {
		sup_dispatch(sup, FSM_FINISHED_STEPS);
	} else if (obituary->person) {
		snprintf(sup->trouble, sizeof(sup->trouble), "%s",
			*sup->trainer.last_words ? sup->trainer.last_words : obituary->sentence);
		if (sup->options.strict) {
			log_error("%s", sup->trouble);
			sup->exit_code = LINK_EXIT_CONFIG;
		} else {
			reload_refused(sup, sup->trouble);
		}
		sup_dispatch(sup, FSM_CONFIG);
		if (sup->options.strict)
			sup_dispatch(sup, FSM_EXIT);
	} else {
		recover_decide(sup, obituary, stepped);
		sup_dispatch(sup, FSM_DIED);
	}
}

static void note_death_step(struct supervisor *sup)
{
	struct state_record record;

	sup->death_step = sup_step(sup);
	sup->death_images = sup->death_skipped_in_row = 0;
	if (memory_newest(sup, &record) < 0)
		return;
	sup->death_images = record.images_seen;
	if (record.skipped_in_row <= record.step)
		sup->death_skipped_in_row = record.skipped_in_row;
}

static void on_ended(struct child *child)
{
	struct supervisor *sup = child->owner;
	const char *phase = phase_name(atomic_load(&sup->progress->phase));
	struct ending ending = {.role = "trainer",
		.exit_status = child->exit_status,
		.term_signal = child->term_signal,
		.asked = child->asked || sup->trainer_finished,
		.hang = child->hang,
		.protocol_broken = child->protocol_broken,
		.memory_corrupt = child->memory_corrupt,
		.phase = phase,
		.last_words = child->last_words};
	struct obituary obituary;

	CHECK(sup->has_memory && !child_alive(child));
	state_clear_writing(&sup->memory);
	note_death_step(sup);
	ending.step = sup->death_step;
	ending.out_of_memory = child->term_signal == SIGKILL &&
		resources_oom_kills() > sup->oom_kills_before;
	obituary_write(&ending, &obituary);
	attempt_end(sup, &obituary, phase);
	/* Its last rows and numbers, which no tick will come for. */
	sup_drain_metrics(sup);
	if (obituary.planned)
		measure(sup);
	outages_trainer_ended(sup, &obituary);
	bool stepped = sup->trainer_ready && sup->death_step > sup->trainer_step_begun;

	if (!obituary.planned && !(child->asked && sup->kill_now)) {
		remember_death(sup, &obituary, phase);
		sup_event(sup, obituary.person ? "error" : "warning", "death", "%s",
			obituary.sentence);
	}
	if (obituary.kind == DEATH_MEMORY_CORRUPT && !obituary.planned) {
		child_kill(&sup->saver.child, SIGKILL);
		sup->memory_suspect = sup->saver.in_flight;
		if (!sup->saver.in_flight)
			memory_empty(sup);
	}
	sup->shown.images_per_second = 0;
	follow_end(sup, &obituary, stepped);
}

static void on_stuck(struct child *child)
{
	sup_event(child->owner, "error", "stuck", "%s[%d] does not end by SIGKILL: waiting for it",
		child->role, (int)child->pid);
}

const struct child_handlers trainer_handlers = {
	.message = on_message,
	.ended = on_ended,
	.stuck = on_stuck,
};

void trainer_halt(struct supervisor *sup)
{
	final_save_limit(sup);
	saver_hurry(sup);
	if (child_alive(&sup->preparer)) {
		child_kill(&sup->preparer, SIGKILL);
	} else if (child_alive(&sup->trainer)) {
		sup->trainer.asked = true;
		if (sup->kill_now)
			child_kill(&sup->trainer, SIGKILL);
		else
			child_send(&sup->trainer, json_pack("{s:{}}", "stop"));
	} else {
		sup_dispatch(sup, FSM_GONE);
	}
}

/* -- time -- */

static enum watchdog_pace pace_now(const struct supervisor *sup)
{
	switch (atomic_load(&sup->progress->phase)) {
	case PHASE_LOAD:
	case PHASE_FORWARD:
	case PHASE_BACKWARD:
	case PHASE_UPDATE:
		return WATCHDOG_STEP;
	case PHASE_WAIT:
		return sup->saver.in_flight ? WATCHDOG_EXCUSED : WATCHDOG_STEP;
	default:
		return WATCHDOG_OTHER;
	}
}

static void watch(struct supervisor *sup, struct child *child, nsec_t elapsed_ns)
{
	struct progress *progress = sup->progress;
	uint64_t moves = atomic_load(&progress->moves), step = atomic_load(&progress->step);
	char quiet[CLOCK_TEXT_SIZE];

	CHECK(child == &sup->trainer || child == &sup->preparer);
	if (child->state != CHILD_RUNNING || child->hang)
		return;
	if (!watchdog_tick(&sup->watchdog, elapsed_ns, moves, step, pace_now(sup)))
		return;
	if (atomic_load(&progress->moves) != moves) /* a verdict needs a second look */
		return;
	watchdog_hung(&sup->watchdog);
	child->hang = true;
	clock_format_duration(sup->watchdog.quiet_ns, quiet);
	sup_event(sup, "error", "hang", "%s[%d] has not moved for %s in phase %s: killing it",
		child->role, (int)child->pid, quiet, phase_name(atomic_load(&progress->phase)));
	child_abort(child);
}

void trainer_tick(struct supervisor *sup, nsec_t now_ns, nsec_t elapsed_ns)
{
	CHECK(elapsed_ns >= 0);
	if (child_alive(&sup->trainer)) {
		uint64_t step = sup->ladder.furthest_step;

		watch(sup, &sup->trainer, elapsed_ns);
		measure(sup);
		watch_growth(sup, now_ns);
		if (sup->ladder.furthest_step != step)
			memory_keep_ladder(sup);
		/* It may use half of the stop time for its last step. */
		if (sup->trainer.asked && sup->final.deadline_ns > 0 &&
			now_ns > sup->final.deadline_ns -
					sup->config.stop_timeout * NSEC_PER_SEC / 2 &&
			sup->trainer.timer_for == CHILD_TIMER_NONE)
			child_kill(&sup->trainer, SIGKILL);
	} else if (child_alive(&sup->preparer)) {
		watch(sup, &sup->preparer, elapsed_ns);
	}
}
