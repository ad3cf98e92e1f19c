/* The ledger's thread of service.h: what it would have written is looked at and dropped; what it
 * would have read is a small disk without faults. */
#include "tests/fuzz/service.h"

#include "proto/state.h"
#include "supervisor/books_room.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAVED_MAX 64
#define JOB_NS NSEC_PER_MSEC
#define HEAD_PAGES 5 /* of the state memory: all that the supervisor maps */
#define STEP_MAX ((uint64_t)1 << 53)
#define QUERY_LIMIT_MAX 10000

int __real_state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);
int __wrap_state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);

uint32_t ledger_changes;

static struct books room = {.run_fd = -1, .checkpoints_fd = -1};
static uint32_t reloads;
static struct service_saved saved[SAVED_MAX];
static uint32_t saved_count;
static struct line_branch branches[SAVED_MAX];
static uint32_t branch_count;

void ledger_reset(void)
{
	CHECK(ledger_next_ns() == VIRTUAL_NEVER);
	saved_count = reloads = ledger_changes = 0;
	branches[0] = (struct line_branch){.branch = 1};
	branch_count = 1;
}

void ledger_note_saved(uint64_t step, uint32_t branch)
{
	if (saved_count < SAVED_MAX)
		saved[saved_count++] = (struct service_saved){step, branch};
}

/* -- the state memory: made once, and blank for each life -- */

int __wrap_state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err)
{
	static struct digest made_for;
	static uint8_t *blank;
	static int fd = -1;

	CHECK(state_total_bytes(section_bytes, slot_count) > 0); /* checks the sizes */
	if (section_bytes != SERVICE_SECTION_BYTES)
		return error_set(err, -ENOMEM, "no memory for the state");
	if (fd >= 0 && !digest_equal(&made_for, model_digest)) {
		close(fd);
		fd = -1;
	}
	if (fd < 0) {
		fd = __real_state_create(section_bytes, slot_count, run_id, model_digest, err);
		CHECK(fd >= 0);
		made_for = *model_digest;
		free(blank);
		blank = malloc(HEAD_PAGES * STATE_PAGE);
		CHECK(blank && pread(fd, blank, HEAD_PAGES * STATE_PAGE, 0) > 0);
	}
	CHECK(pwrite(fd, blank, HEAD_PAGES * STATE_PAGE, 0) == (ssize_t)(HEAD_PAGES * STATE_PAGE));
	return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

/* -- what is read -- */

static void do_open(struct open_job *open)
{
	open->run_fd = fcntl(service_sup.null_fd, F_DUPFD_CLOEXEC, 3);
	open->lock_fd = fcntl(service_sup.null_fd, F_DUPFD_CLOEXEC, 3);
	CHECK(open->run_fd >= 0 && open->lock_fd >= 0);
	open->outcome = OPEN_DONE;
	open->run = (struct run){.id = {1}, .wanted = WANTED_RUN, .identity = json_object()};
	snprintf(open->run.id_hex, sizeof(open->run.id_hex), "01000000000000000000000000000000");
}

static const struct service_saved *newest_saved(const struct line *line, uint64_t below)
{
	const struct service_saved *newest = NULL;

	for (uint32_t i = 0; i < saved_count; i++)
		if (line_contains(line, saved[i].branch, saved[i].step) && saved[i].step < below &&
			(!newest || saved[i].step > newest->step))
			newest = &saved[i];
	return newest;
}

static void make_line(struct line *line)
{
	*line = (struct line){.count = branch_count,
		.current = branch_count,
		.highest = branch_count,
		.branches = malloc(branch_count * sizeof(branches[0]))};
	CHECK(line->branches);
	memcpy(line->branches, branches, branch_count * sizeof(branches[0]));
}

static void do_survey(struct survey *survey)
{
	struct line *line = &survey->line;

	survey->known = survey->catalog = true;
	make_line(line);
	const struct service_saved *at = newest_saved(line, UINT64_MAX);

	survey->has_newest = at != NULL;
	if (at) {
		survey->newest = (struct catalog_row){
			.step = at->step, .branch = at->branch, .state = CHECKPOINT_VERIFIED};
		checkpoint_id_format(at->step, at->branch, survey->newest.id);
		clock_format_utc(clock_wall_ns(), survey->newest.created);
	}
	for (; at && survey->count < RESTART_STEPS_MAX; at = newest_saved(line, at->step))
		survey->steps[survey->count++] = at->step;
}

static void do_fork(struct fork_job *fork)
{
	const struct service_saved *at;
	struct line line;
	uint64_t below = fork->which == FORK_STEP ? fork->step + 1 : UINT64_MAX;

	make_line(&line);
	at = newest_saved(&line, below);
	if (at && fork->which == FORK_BEFORE_NEWEST)
		at = newest_saved(&line, at->step);
	line_fini(&line);
	if (branch_count == SAVED_MAX || (!at && fork->which != FORK_START)) {
		fork->head.job.result = error_set(
			&fork->head.job.error, -ENOENT, "there is no such checkpoint");
		return;
	}
	fork->branch = (struct line_branch){.branch = branch_count + 1,
		.parent = at ? at->branch : branch_count,
		.fork_step = at ? at->step : 0};
	branches[branch_count++] = fork->branch;
	do_survey(&fork->survey);
}

/* Every other one is refused. */
static void do_reload(struct reload_job *reload)
{
	signing_init(&reload->signing);
	reload->config = service_sup.config;
	reload->config.batch_size = 8 + reloads % 4;
	if (++reloads % 2 == 0)
		reload->head.job.result = error_set(
			&reload->head.job.error, -EINVAL, "ckptd.conf:3: there is no such key");
}

static void do_query(struct query_job *query)
{
	CHECK(query->after >= 0 && memchr(query->kind, '\0', sizeof(query->kind)));
	if (!query->call) {
		query->answer = json_null();
		return;
	}
	CHECK(query->limit >= 1 && query->limit <= QUERY_LIMIT_MAX);
	query->frame = strdup("{\"parameters\":{}}");
	CHECK(query->frame);
	query->frame_size = strlen(query->frame) + 1;
}

static void do_keep(struct keep_job *keep)
{
	uint64_t step;
	uint32_t branch;

	CHECK(memchr(keep->id, '\0', sizeof(keep->id)));
	if (checkpoint_id_parse(keep->id, &step, &branch) < 0)
		keep->head.job.result = error_set(
			&keep->head.job.error, -EINVAL, "%.40s is no id", keep->id);
	else
		snprintf(keep->text, sizeof(keep->text), "%s is kept", keep->id);
}

/* -- what is written: rows of the history -- */

static void look_at_event(const struct event_job *event)
{
	CHECK(text_is_plain(event->text) && text_is_plain(event->kind));
	CHECK(text_is_plain(event->level) && event->step <= STEP_MAX);
}

static void look_at_attempt(const struct history_attempt *attempt)
{
	CHECK(text_is_plain(attempt->role) && text_is_plain(attempt->from));
	CHECK(text_is_plain(attempt->cause) && text_is_plain(attempt->phase));
	CHECK(text_is_plain(attempt->sentence));
	CHECK(attempt->step_begun <= STEP_MAX && attempt->step_ended <= STEP_MAX);
}

static void look_at_outage(const struct history_outage *outage)
{
	CHECK(text_is_plain(outage->cause) && text_is_plain(outage->sentence));
	CHECK(outage->step <= STEP_MAX && outage->steps_redone <= STEP_MAX);
	CHECK(outage->ended_wall_ns == 0 || outage->ended_wall_ns >= outage->begun_wall_ns);
}

static void look_at_metrics(const struct metrics_job *metrics)
{
	CHECK(metrics->count <= BOOKS_METRICS_MAX);
	for (uint32_t i = 0; i < metrics->count; i++)
		CHECK(metrics->rows[i].step <= STEP_MAX);
}

void host_job(struct ledger_job *job)
{
	ledger_changes += job->work == books_fork_work || job->work == books_reload_work ||
		job->work == books_keep_work || job->work == books_fork_look_work;
	if (job->work == books_open_work)
		do_open((struct open_job *)job);
	else if (job->work == books_survey_work)
		do_survey(&((struct survey_job *)job)->survey);
	else if (job->work == books_memory_work)
		job->work(job, &room);
	else if (job->work == books_fork_work)
		do_fork((struct fork_job *)job);
	else if (job->work == books_fork_look_work && saved_count == 0)
		job->result = error_set(&job->error, -ENOENT, "there is no such checkpoint");
	else if (job->work == books_reload_work)
		do_reload((struct reload_job *)job);
	else if (job->work == books_query_work)
		do_query((struct query_job *)job);
	else if (job->work == books_keep_work)
		do_keep((struct keep_job *)job);
	else if (job->work == books_event_work)
		look_at_event((struct event_job *)job);
	else if (job->work == books_attempt_begin_work || job->work == books_attempt_end_work)
		look_at_attempt(&((struct attempt_job *)job)->attempt);
	else if (job->work == books_outage_work)
		look_at_outage(&((struct outage_job *)job)->outage);
	else if (job->work == books_metrics_work)
		look_at_metrics((struct metrics_job *)job);
}

nsec_t host_job_ns(bool idle)
{
	return virtual_now_ns + (idle ? JOB_NS : JOB_NS / 10);
}
