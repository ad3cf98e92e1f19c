/* The thread's side of books.h for the line and the catalog: surveys, new branches, and answers. It
 * must never read a checkpoint's data. Invariant: a branch is only begun at a checkpoint that the
 * catalog says is verified. */
#include "supervisor/books.h"

#include "base/panic.h"
#include "base/sys.h"
#include "proto/frame.h"
#include "store/recovery.h"
#include "supervisor/books_room.h"
#include "supervisor/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The rows, newest step first, and the line they lie on. After an error the line may still be
 * there: view_fini is always due. */
struct view {
	struct line line;
	struct catalog_row *rows; /* owned */
	uint32_t count;
};

static void view_fini(struct view *view)
{
	line_fini(&view->line);
	free(view->rows);
	*view = (struct view){0};
}

static int view_load(struct books *books, struct view *ret, struct error *err)
{
	struct catalog *catalog = NULL;
	uint32_t bad;

	*ret = (struct view){0};
	if (books->checkpoints_fd < 0)
		return error_set(err, -ENOENT, "no run here");
	int code = line_load(books->checkpoints_fd, &ret->line, err);

	if (code < 0)
		return code;
	code = catalog_open(books->run_dir, CATALOG_READ, &catalog, err);
	if (code == 0)
		code = catalog_list(catalog, &ret->rows, &ret->count, &bad, err);
	if (catalog)
		catalog_close(catalog);
	return code;
}

static bool row_verified(const struct catalog_row *row)
{
	return row->state == CHECKPOINT_VERIFIED;
}

/* Not read yet, or not now. */
static bool row_may_be_good(const struct catalog_row *row)
{
	return row->state == CHECKPOINT_FOUND || row->state == CHECKPOINT_UNREADABLE ||
		row->state == CHECKPOINT_REFUSED;
}

static bool row_on_line(const struct view *view, const struct catalog_row *row)
{
	return line_contains(&view->line, row->branch, row->step);
}

/* By the ladder, on the way from where the line begins: what a person left who went back to step 0
 * is no way out for the ladder. */
static bool row_left_behind(const struct view *view, const struct catalog_row *row)
{
	const struct line *line = &view->line;

	return line_is_suspect(line, row->branch, row->step) &&
		line_beginning(line, row->branch) == line_beginning(line, line->current);
}

/* Takes the line out of the view. */
static void make_survey(struct view *view, struct survey *ret)
{
	*ret = (struct survey){.known = true};
	for (uint32_t i = 0; i < view->count; i++) {
		const struct catalog_row *row = &view->rows[i];

		scrub_age_add(&ret->age, row);
		if (row_may_be_good(row) && row_on_line(view, row))
			ret->unread = true;
		if (!row_verified(row))
			continue;
		if (!row_on_line(view, row)) {
			if (row_left_behind(view, row))
				ret->left_behind = true;
			continue;
		}
		if (!ret->has_newest || row->step > ret->newest.step) {
			CHECK(!ret->has_newest);
			ret->has_newest = true;
			ret->newest = *row;
		}
		/* The list is in order; two of one step differ in branch only. */
		if (ret->count < RESTART_STEPS_MAX &&
			(ret->count == 0 || row->step < ret->steps[ret->count - 1]))
			ret->steps[ret->count++] = row->step;
	}
	ret->line = view->line;
	view->line = (struct line){0};
}

/* Looks into the header of the newest one. A root that is known is not read again: after a save a
 * survey follows, and headers are long. */
static void count_newest(struct books *books, struct survey *survey)
{
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)];
	struct checkpoint_info info;
	struct error ignored;

	if (!survey->has_newest)
		return;
	if (!digest_equal(&books->counted_root, &survey->newest.root)) {
		snprintf(name, sizeof(name), "%s%s", survey->newest.id, CHECKPOINT_SUFFIX);
		int fd = checkpoint_open(books->checkpoints_fd, name, &info, &ignored);

		if (fd < 0)
			return;
		books->counted_root = info.root;
		books->counts = (struct survey_counts){.images_seen = info.record.images_seen,
			.skipped_count = info.record.skipped_count};
		checkpoint_info_fini(&info);
		sys_close(fd);
	}
	survey->counted = digest_equal(&books->counted_root, &survey->newest.root);
	survey->counts = books->counts;
}

void books_survey_work(struct ledger_job *job, void *room)
{
	struct survey_job *survey = (struct survey_job *)job;
	struct view view;

	job->result = view_load(room, &view, &job->error);
	/* The line alone says which memory may be resumed. */
	if (job->result < 0 && view.line.count == 0)
		return;
	make_survey(&view, &survey->survey);
	count_newest(room, &survey->survey);
	survey->survey.catalog = job->result == 0;
	view_fini(&view);
}

/* -- a new branch -- */

static const struct catalog_row *find_row(const struct view *view, const struct fork_job *fork)
{
	bool passed_newest = false;

	for (uint32_t i = 0; i < view->count; i++) {
		const struct catalog_row *row = &view->rows[i];
		bool on_line = row_on_line(view, row);

		if (!row_verified(row))
			continue;
		switch (fork->which) {
		case FORK_STEP:
			if (on_line && row->step == fork->step)
				return row;
			break;
		case FORK_ID:
			if (strcmp(row->id, fork->id) == 0)
				return row;
			break;
		case FORK_BEFORE_NEWEST:
			if (on_line && passed_newest)
				return row;
			passed_newest = passed_newest || on_line;
			break;
		case FORK_NEWEST:
		case FORK_START: /* a first one that the supervisor has not heard of yet */
			if (on_line)
				return row;
			break;
		case FORK_SCRATCH:
			return NULL;
		case FORK_LEFT_BEHIND:
			if ((fork->step == 0 || row->step < fork->step) &&
				row_left_behind(view, row))
				return row;
			break;
		}
	}
	return NULL;
}

static bool has_intervention(const struct fork_job *fork, const struct intervention *intervention)
{
	for (uint32_t i = 0; i < fork->intervention_count; i++)
		if (fork->interventions[i].step == intervention->step &&
			fork->interventions[i].kind == intervention->kind)
			return true;
	return false;
}

/* What the ladder has learned about steps that come again (a window that kills, an engine that
 * does) goes with it to the new branch: unlearned, two faults would lead in a circle for ever. */
static void carry_interventions(const struct line *line, struct fork_job *fork, uint64_t fork_step)
{
	const struct line_branch *at = line_find(line, line->current);

	CHECK(at);
	for (; at; at = line_before(line, at))
		for (uint32_t i = 0; i < at->intervention_count; i++)
			if (at->interventions[i].step >= fork_step &&
				fork->intervention_count < LINE_INTERVENTIONS_MAX &&
				!has_intervention(fork, &at->interventions[i]))
				fork->interventions[fork->intervention_count++] =
					at->interventions[i];
}

static int find_beginning(const struct view *view, const struct fork_job *fork,
	const struct catalog_row **ret_row, struct error *err)
{
	static const struct catalog_row start = {.id = "step 0"};

	*ret_row = find_row(view, fork);
	if (!*ret_row && (fork->which == FORK_START || fork->which == FORK_SCRATCH))
		*ret_row = &start;
	if (!*ret_row && fork->which == FORK_ID)
		return error_set(err, -ENOENT,
			"there is no verified checkpoint %s: see `ckptctl checkpoints`", fork->id);
	if (!*ret_row)
		return error_set(err, -ENOENT, "there is no verified checkpoint to go back to");
	return 0;
}

static int begin_branch(
	struct books *books, struct view *view, struct fork_job *fork, struct error *err)
{
	const struct catalog_row *row;

	/* All were returned to: from the newest again. */
	if (fork->which == FORK_LEFT_BEHIND && !find_row(view, fork))
		fork->step = 0;
	int r = find_beginning(view, fork, &row, err);

	if (r < 0)
		return r;
	if (fork->carry)
		carry_interventions(&view->line, fork, row->step);
	fork->branch = (struct line_branch){.parent = row->branch,
		.fork_step = row->step,
		.fork_root = row->root,
		.suspect = fork->suspect,
		.intervention_count = fork->intervention_count};
	CHECK(fork->intervention_count <= LINE_INTERVENTIONS_MAX);
	memcpy(fork->branch.interventions, fork->interventions, sizeof(fork->interventions));
	snprintf(fork->branch.why, sizeof(fork->branch.why), "%s", fork->why);
	snprintf(fork->id, sizeof(fork->id), "%s", row->id);
	return line_fork(books->checkpoints_fd, &view->line, &fork->branch, err);
}

void books_fork_work(struct ledger_job *job, void *room)
{
	struct fork_job *fork = (struct fork_job *)job;
	struct view view;

	job->result = view_load(room, &view, &job->error);
	if (job->result == 0)
		job->result = begin_branch(room, &view, fork, &job->error);
	if (job->result == 0) {
		make_survey(&view, &fork->survey);
		count_newest(room, &fork->survey);
		fork->survey.catalog = true;
	}
	view_fini(&view);
}

void books_fork_look_work(struct ledger_job *job, void *room)
{
	struct fork_job *fork = (struct fork_job *)job;
	const struct catalog_row *row;
	struct view view;

	job->result = view_load(room, &view, &job->error);
	if (job->result == 0)
		job->result = find_beginning(&view, fork, &row, &job->error);
	view_fini(&view);
}

void books_keep_work(struct ledger_job *job, void *room)
{
	struct keep_job *keep = (struct keep_job *)job;
	struct books *books = room;

	if (books->run_fd < 0)
		job->result = error_set(&job->error, -ENOENT, "no run here");
	else
		job->result = recovery_keep(books->run_dir, books->run_fd, keep->id, keep->keep,
			keep->text, sizeof(keep->text), &job->error);
}

/* -- answers -- */

/* The interface's word for a row: what the line says goes before what the file says. */
static const char *row_word(const struct view *view, const struct catalog_row *row)
{
	if (!row_verified(row) || row_on_line(view, row))
		return checkpoint_state_name(row->state);
	return line_is_suspect(&view->line, row->branch, row->step) ? "suspect" : "abandoned";
}

static json_t *row_json(
	const struct books *books, const struct view *view, const struct catalog_row *row)
{
	char root[DIGEST_HEX_SIZE], path[PATH_MAX + 64];

	digest_to_hex(&row->root, root);
	snprintf(path, sizeof(path), "%s/checkpoints/%s%s", books->run_dir, row->id,
		CHECKPOINT_SUFFIX);
	json_t *object = json_pack(
		"{s:o, s:I, s:I, s:s, s:s, s:o, s:I, s:o, s:o, s:b, s:b, s:o, s:o, s:o, s:o}", "id",
		text_json(row->id), "step", (json_int_t)row->step, "branch",
		(json_int_t)row->branch, "state", row_word(view, row), "root", root, "path",
		text_json(path), "bytes", (json_int_t)row->file_bytes, "loss",
		json_finite(row->loss), "created", text_json(row->created), "keep", row->keep,
		"on_line", row_on_line(view, row), "verified_at", text_json(row->verified_at),
		"signer", text_json(row->signer), "mirrored_at", text_json(row->mirrored_at),
		"text", text_json(row->text));

	CHECK(object);
	return object;
}

static int answer_checkpoints(struct books *books, struct query_job *query, struct error *err)
{
	struct view view;
	int code = view_load(books, &view, err);

	if (code < 0) {
		view_fini(&view);
		return code;
	}
	query->answer = json_array();
	CHECK(query->answer);
	for (uint32_t i = 0; i < view.count; i++) {
		const struct catalog_row *row = &view.rows[i];
		bool gone = row->state == CHECKPOINT_DELETED || row->state == CHECKPOINT_MISSING;

		if ((gone && !query->all) || json_array_size(query->answer) >= query->limit)
			continue;
		json_array_append_new(query->answer, row_json(books, &view, row));
	}
	view_fini(&view);
	return 0;
}

static int answer_metrics(struct history *history, struct query_job *query, struct error *err)
{
	const struct history_metrics_query metrics = {.after_step = (uint64_t)query->after,
		.kind = query->kind[0] ? query->kind : NULL,
		.limit = query->limit,
		.branch = query->branch,
		.step = query->step};

	return history_metrics_json(history, &metrics, &query->answer, err);
}

static int answer_from(struct history *history, struct query_job *query, struct error *err)
{
	switch (query->query) {
	case QUERY_EVENTS:
		return history_events_json(
			history, query->after, query->limit, &query->answer, err);
	case QUERY_METRICS:
		return answer_metrics(history, query, err);
	case QUERY_OUTAGES:
		return history_outages_json(
			history, query->limit, clock_wall_ns(), &query->answer, err);
	case QUERY_LAST_DEATH:
		return history_last_death_json(history, &query->answer, err);
	case QUERY_LAST_EVENT:
		return history_last_event_json(history, query->kind, &query->answer, err);
	case QUERY_CHECKPOINTS:
		break;
	}
	PANIC("answered above");
}

static int answer_query(struct books *books, struct query_job *query, struct error *err)
{
	struct history *history;
	int code = -EIO;

	if (query->query == QUERY_CHECKPOINTS)
		return answer_checkpoints(books, query, err);
	/* It may be the first to meet damage: then it asks the one that is begun anew. */
	for (int try = 0; try < 2; try++) {
		history = books_history(books);
		if (!history)
			return error_set(err, -ENOTCONN, "history.sqlite cannot be opened");
		code = answer_from(history, query, err);
		if (code == 0 || !history_is_broken(history))
			break;
	}
	return code;
}

/* Thousands of rows take longer to write out than the loop may be held up. */
static int encode_answer(struct query_job *query)
{
	static const char *const names[] = {[QUERY_CHECKPOINTS] = "checkpoints",
		[QUERY_EVENTS] = "events",
		[QUERY_METRICS] = "metrics"};

	/* What is an array has a name; an object has names of its own. */
	json_t *frame = json_is_object(query->answer)
		? json_pack("{s:o}", "parameters", query->answer)
		: json_pack("{s:{s:o}}", "parameters", names[query->query], query->answer);

	CHECK(frame);
	query->answer = NULL;
	int code = frame_encode(frame, &query->frame, &query->frame_size);

	json_decref(frame);
	return code;
}

void books_query_work(struct ledger_job *job, void *room)
{
	struct query_job *query = (struct query_job *)job;

	job->result = answer_query(room, query, &job->error);
	if (job->result == 0 && query->call)
		job->result = encode_answer(query);
}
