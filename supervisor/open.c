/* The beginning: the run's folder, its lock and configuration, the preparer, surveys. It must never
 * wait: whatever may is a job. Invariant: nothing is spawned before the run's lock is held. */
#include "supervisor/control.h"
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/log.h"
#include "base/panic.h"
#include "proto/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOCK_POLL_NS (200 * NSEC_PER_MSEC)
#define LOCK_REPORT_NS (10 * NSEC_PER_SEC)
#define RUN_POLL_NS (2 * NSEC_PER_SEC)
#define PREPARE_RETRY_NS (1 * NSEC_PER_SEC)
#define PREPARE_RETRY_MAX_NS (300 * NSEC_PER_SEC)

/* -- run.json -- */

static void on_run_stored(struct ledger_job *job)
{
	struct store_run_job *store = (struct store_run_job *)job;
	struct supervisor *sup = store->head.owner;

	CHECK(sup->wanted_pending > 0);
	sup->wanted_pending--;
	sup->wanted_not_durable = job->result < 0;
	if (job->result < 0 && job->result != -ECANCELED)
		sup_event(sup, "error", "storage", "run.json could not be written: %s",
			job->error.text);
	run_fini(&store->run);
	free(job);
	sup_settle(sup);
}

void store_run(struct supervisor *sup)
{
	struct store_run_job *store = books_job(
		sizeof(*store), books_store_run_work, on_run_stored, sup);

	CHECK(sup->has_run);
	store->run = sup->run;
	store->run.identity = json_deep_copy(sup->run.identity);
	sup->wanted_pending++;
	books_give(&sup->ledger, store);
}

void run_note_verified(struct supervisor *sup, uint32_t branch)
{
	CHECK(branch > 0);
	if (branch <= sup->run.verified_branch)
		return;
	sup->run.verified_branch = branch;
	store_run(sup);
}

/* Nothing that is younger than its beginning was ever verified. Before the first survey branch 1 is
 * all there is. */
bool run_may_begin(const struct supervisor *sup)
{
	const struct line *line = &sup->survey.line;

	return sup->run.verified_branch <
		(sup->survey.known ? line_beginning(line, line->current) : 1);
}

/* -- the folder -- */

static void on_last_good(struct ledger_job *job)
{
	struct last_good_job *last_good = (struct last_good_job *)job;

	if (job->result < 0)
		storage_note(last_good->head.owner, false, job->error.text);
	free(job);
}

static void on_last_death(struct ledger_job *job)
{
	struct query_job *query = (struct query_job *)job;
	struct supervisor *sup = query->head.owner;

	if (job->result == 0 && json_is_object(query->answer) && !sup->shown.last_death)
		sup->shown.last_death = json_incref(query->answer);
	json_decref(query->answer);
	free(job);
}

void store_last_good(struct supervisor *sup)
{
	if (!sup->has_run)
		return;
	struct last_good_job *last_good = books_job(
		sizeof(*last_good), books_last_good_work, on_last_good, sup);

	last_good->config = sup->config;
	books_give(&sup->ledger, last_good);
}

static void run_opened(struct supervisor *sup, struct open_job *open)
{
	CHECK(!sup->has_run);
	CHECK(open->run_fd >= 0 && open->lock_fd >= 0);
	sup->has_run = true;
	sup->run = open->run;
	sup->run_fd = open->run_fd;
	sup->lock_fd = open->lock_fd;
	snprintf(sup->run_dir, sizeof(sup->run_dir), "%s", open->run_dir);
	sup->config = open->config;
	sup->config_last_good = open->last_good;
	sup->trouble[0] = '\0';
	if (open->last_good) {
		snprintf(sup->config_text, sizeof(sup->config_text), "%s", open->config_error.text);
		sup_event(sup, "warning", "config-refused", "going on with last-good.conf: %s",
			open->config_error.text);
	} else {
		store_last_good(sup);
	}
	struct query_job *query = books_job(sizeof(*query), books_query_work, on_last_death, sup);

	query->query = QUERY_LAST_DEATH;
	books_give(&sup->ledger, query);
	scrub_ask_history(sup);
	outages_life_begin(sup);
	/* A power pause ends with the next start; in the foreground, a start is what was asked for.
	 */
	if (sup->run.wanted != WANTED_RUN && (sup->options.strict || sup->run.power_paused)) {
		sup->run.wanted = WANTED_RUN;
		sup->run.power_paused = false;
		store_run(sup);
	}
	if (sup->run.wanted == WANTED_RUN)
		memory_begin_ahead(sup);
	sup_event(sup, "info", "start", "run %s in %s", sup->run.id_hex, sup->run_dir);
}

static void run_locked(struct supervisor *sup, const struct open_job *open)
{
	nsec_t now_ns = clock_monotonic_ns();
	bool first = sup->lock_wait_since_ns == 0;

	CHECK(!sup->has_run);
	snprintf(sup->trouble, sizeof(sup->trouble),
		"waiting for process %d, which still works in %.300s", (int)open->owner,
		open->run_dir);
	sup->poll_ns = now_ns + LOCK_POLL_NS;
	if (first)
		sup->lock_wait_since_ns = now_ns;
	else if (now_ns - sup->lock_wait_since_ns > LOCK_REPORT_NS)
		sup->poll_ns = now_ns + RUN_POLL_NS;
	if (first)
		log_notice("%s", sup->trouble);
}

/* Too late, or never begun. */
static void drop_opened(struct open_job *open)
{
	if (open->head.job.result == 0 && open->outcome == OPEN_DONE) {
		run_fini(&open->run);
		close(open->lock_fd);
		close(open->run_fd);
	}
	free(open);
}

static void on_opened(struct ledger_job *job)
{
	struct open_job *open = (struct open_job *)job;
	struct supervisor *sup = open->head.owner;

	sup->opening = false;
	sup->revision++;
	if (job->result == -ENOBUFS || job->result == -ECANCELED || sup->state == FSM_ENDED) {
		sup->poll_ns = clock_monotonic_ns() + RUN_POLL_NS;
		drop_opened(open);
		return;
	}
	switch (open->outcome) {
	case OPEN_DONE:
		run_opened(sup, open);
		sup_dispatch(sup, FSM_RUN_FOUND);
		break;
	case OPEN_NO_RUN:
		snprintf(sup->trouble, sizeof(sup->trouble),
			"no run here (%.200s): not mounted, or `ckptctl init`", open->run_dir);
		if (sup->state == FSM_STARTING)
			log_notice("%s", sup->trouble);
		sup_dispatch(sup, FSM_RUN_MISSING);
		break;
	case OPEN_LOCKED:
		run_locked(sup, open);
		break;
	case OPEN_CONFIG:
	case OPEN_BROKEN:
		snprintf(sup->trouble, sizeof(sup->trouble), "%s", job->error.text);
		log_error("%s", sup->trouble);
		if (open->outcome == OPEN_CONFIG || sup->options.strict) {
			sup->exit_code = LINK_EXIT_CONFIG;
			sup_dispatch(sup, FSM_EXIT);
		} else {
			sup_dispatch(sup, FSM_CONFIG);
		}
		break;
	}
	free(job);
}

void open_run(struct supervisor *sup)
{
	struct open_job *open;

	CHECK(sup->state == FSM_STARTING || sup->state == FSM_WAITING);
	sup->poll_ns = 0;
	if (sup->has_run) {
		sup_dispatch(sup, FSM_RUN_FOUND);
		return;
	}
	if (sup->opening)
		return;
	sup->opening = true;
	open = books_job(sizeof(*open), books_open_work, on_opened, sup);
	snprintf(open->run_dir, sizeof(open->run_dir), "%s", sup->config.state_dir);
	open->strict = sup->options.strict;
	open->config = sup->config;
	open->config_good = !sup->config_refused_at_start;
	snprintf(open->config_error.text, sizeof(open->config_error.text), "%s", sup->config_text);
	books_give(&sup->ledger, open);
}

/* -- workers in general -- */

void worker_options(const struct supervisor *sup, struct child_options *ret)
{
	CHECK(sup->lock_fd >= 0 && sup->null_fd >= 0);
	*ret = (struct child_options){.worker_path = sup->options.worker_path,
		.null_fd = sup->null_fd,
		.state_fd = -1,
		.progress_fd = -1,
		.key_fd = -1,
		.lock_fd = sup->lock_fd,
		.memory_bytes = (uint64_t)sup->config.worker_memory << 20,
		.kill_first = true};
}

/* A reload that the trainer refused brings the key back that was before. */
const struct signing *worker_signing(struct supervisor *sup)
{
	if (strcmp(sup->signing.where, sup->config.signing_key) != 0) {
		signing_fini(&sup->signing);
		signing_read(sup->config.signing_key, &sup->signing);
	}
	return &sup->signing;
}

void start_frame_send(struct supervisor *sup, struct child *child, json_t *more)
{
	const struct signing *signing = worker_signing(sup);
	json_t *body = json_pack("{s:s, s:i, s:s, s:o, s:s, s:b, s:s, s:o}", "role", child->role,
		"parent_pid", (int)getpid(), "run_dir", sup->run_dir, "config",
		json_from_config(&sup->config), "run_id", sup->run.id_hex, "run_created",
		run_may_begin(sup), "signer", signing->signer, "signer_error",
		text_json(signing->error));

	CHECK(body && sup->has_run);
	if (more) {
		json_object_update(body, more);
		json_decref(more);
	}
	child_send(child, json_pack("{s:o}", "start", body));
}

/* -- surveys -- */

/* Without the catalog: what was the newest still is, unless it is off the line. */
static void take_line(struct supervisor *sup, struct survey *survey)
{
	struct newest *newest = &sup->newest;

	sup->survey.known = true;
	sup->survey.line = survey->line;
	newest->known = newest->known && line_contains(&survey->line, newest->branch, newest->step);
	*survey = (struct survey){0};
}

void survey_take(struct supervisor *sup, struct survey *survey)
{
	CHECK(survey->known && survey->line.count > 0);
	CHECK(survey->count <= RESTART_STEPS_MAX);
	sup->revision++;
	line_fini(&sup->survey.line);
	if (!survey->catalog) {
		take_line(sup, survey);
		return;
	}
	sup->survey = *survey;
	*survey = (struct survey){0};
	sup->newest.known = sup->survey.has_newest;
	if (!sup->survey.has_newest)
		return;
	const struct catalog_row *row = &sup->survey.newest;
	struct newest *newest = &sup->newest;

	/* Its saver died before its word, or its row came later: nobody else asks for it. */
	if (!*row->mirrored_at)
		mirror_want(sup);
	snprintf(newest->id, sizeof(newest->id), "%s", row->id);
	newest->step = row->step;
	newest->branch = row->branch;
	digest_to_hex(&row->root, newest->root);
	snprintf(newest->path, sizeof(newest->path), "%s/checkpoints/%s%s", sup->run_dir, row->id,
		CHECKPOINT_SUFFIX);
	newest->wall_ns = clock_parse_utc(row->created);
	if (newest->wall_ns < 0)
		newest->wall_ns = clock_wall_ns();
	newest->counts = sup->survey.counted ? sup->survey.counts : (struct survey_counts){0};
	/* A saver may have died between its row and its word. */
	run_note_verified(sup, row->branch);
}

void survey_done(struct ledger_job *job)
{
	struct survey_job *survey = (struct survey_job *)job;
	struct supervisor *sup = survey->head.owner;

	if (survey->survey.known)
		survey_take(sup, &survey->survey);
	if (job->result < 0 && job->result != -ECANCELED)
		sup_event(sup, "warning", "catalog", "%s", job->error.text);
	free(job);
}

void survey_start(struct supervisor *sup)
{
	books_give(&sup->ledger,
		books_job(sizeof(struct survey_job), books_survey_work, survey_done, sup));
}

/* -- the preparer -- */

void prepare_start(struct supervisor *sup)
{
	struct child_options options;

	CHECK(!child_alive(&sup->preparer) && !child_alive(&sup->trainer));
	CHECK(sup->has_run && sup->state == FSM_PREPARING);
	worker_options(sup, &options);
	options.progress_fd = sup->progress_fd;
	/* Nothing is trained now that a slow disk could hold up. */
	signing_fini(&sup->signing);
	signing_read(sup->config.signing_key, &sup->signing);
	sup->prepared.known = false;
	/* Steps that the page still tells of teach nothing. */
	watchdog_begin(&sup->watchdog, atomic_load(&sup->progress->moves),
		atomic_load(&sup->progress->step));
	child_spawn(&sup->preparer, &sup->loop, &options);
	start_frame_send(
		sup, &sup->preparer, json_pack("{s:i}", "threads", (int)sup->config.threads));
}

static void take_prepared(struct supervisor *sup, const json_t *body)
{
	struct prepared *prepared = &sup->prepared;
	const char *digest = json_get_text(body, "model_digest", "");

	if (prepared->known) {
		child_refuse(&sup->preparer, "it says twice that it has prepared the run");
		return;
	}
	*prepared = (struct prepared){0};
	prepared->section_bytes = count_take(body, "section_bytes");
	prepared->param_count = count_take(body, "param_count");
	prepared->images = count_take(body, "images");
	prepared->classes = count_take(body, "classes");
	text_take(prepared->data_text, sizeof(prepared->data_text), body, "data_text");
	text_take(prepared->signer, sizeof(prepared->signer), body, "signer");
	if (!state_sizes_valid(prepared->section_bytes, 1) ||
		digest_from_hex(digest, strlen(digest), &prepared->model_digest) < 0) {
		child_refuse(&sup->preparer, "it has prepared a state that there cannot be");
		return;
	}
	prepared->known = true;
	if (strcmp(json_get_text(body, "catalog", "ok"), "rebuilt") == 0)
		sup_event(sup, "warning", "catalog-rebuilt",
			"catalog.sqlite was lost or broken: rebuilt from the checkpoint files");
}

static void on_prepare_message(struct child *child, const char *name, json_t *body)
{
	struct supervisor *sup = child->owner;

	if (strcmp(name, "prepared") == 0)
		take_prepared(sup, body);
	else if (strcmp(name, "event") == 0)
		worker_event(sup, body);
}

/* Prepared, and the survey is in: what is there to do? */
static void prepare_done(struct supervisor *sup)
{
	struct state_record record;

	CHECK(sup->prepared.known && !child_alive(&sup->preparer));
	sup->retries = 0;
	memory_adopt_stored(sup);
	sup->resume_disk = memory_newest(sup, &record) < 0;
	sup->start_delay_ns = 0;
	sup_dispatch(sup,
		sup->run.wanted == WANTED_PAUSED            ? FSM_PREPARED_PAUSED
			: sup->run.wanted == WANTED_STOPPED ? FSM_PREPARED_STOPPED
							    : FSM_PREPARED_RUN);
}

static void on_prepare_survey(struct ledger_job *job)
{
	struct supervisor *sup = ((struct book_job *)job)->owner;

	survey_done(job);
	if (sup->state == FSM_PREPARING)
		prepare_done(sup);
}

static void on_prepare_ended(struct child *child)
{
	struct supervisor *sup = child->owner;
	struct ending ending = {.role = child->role,
		.exit_status = child->exit_status,
		.term_signal = child->term_signal,
		.asked = sup->prepared.known,
		.hang = child->hang,
		.protocol_broken = child->protocol_broken,
		.phase = phase_name(atomic_load(&sup->progress->phase)),
		.last_words = child->last_words};
	struct obituary obituary;

	if (sup->state == FSM_EXITING) {
		sup_dispatch(sup, FSM_GONE);
		return;
	}
	CHECK(sup->state == FSM_PREPARING);
	obituary_write(&ending, &obituary);
	if (obituary.planned) {
		books_give(&sup->ledger,
			books_job(sizeof(struct survey_job), books_survey_work, on_prepare_survey,
				sup));
		return;
	}
	sup->prepared.known = false;
	sup_event(sup, "error", "prepare", "%s", obituary.sentence);
	snprintf(sup->trouble, sizeof(sup->trouble), "%s",
		*child->last_words ? child->last_words : obituary.sentence);
	if (obituary.person && sup->options.strict) {
		sup->exit_code = LINK_EXIT_CONFIG;
		log_error("%s", sup->trouble);
		sup_dispatch(sup, FSM_EXIT);
	} else {
		sup_dispatch(sup, obituary.person ? FSM_CONFIG : FSM_DIED);
	}
}

static void on_prepare_stuck(struct child *child)
{
	sup_event(child->owner, "error", "stuck", "%s[%d] does not end by SIGKILL: waiting for it",
		child->role, (int)child->pid);
}

const struct child_handlers prepare_handlers = {
	.message = on_prepare_message,
	.ended = on_prepare_ended,
	.stuck = on_prepare_stuck,
};
