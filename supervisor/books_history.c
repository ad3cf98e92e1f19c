/* The thread's side of books.h for the history. Invariant: a history that is lost costs history,
 * nothing else. */
#include "supervisor/books.h"

#include "base/panic.h"
#include "supervisor/books_room.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HISTORY_RETRY_NS (10 * NSEC_PER_SEC)
#define HISTORY_REOPEN_NS NSEC_PER_SEC /* of one that breaks again */
#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"

/* "" where the kernel does not say. */
static void read_boot_id(char text[HISTORY_BOOT_ID_SIZE])
{
	int fd = open(BOOT_ID_PATH, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, text, HISTORY_BOOT_ID_SIZE - 1);

	if (fd >= 0)
		close(fd);
	text[size > 0 ? size : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
}

/* What was written of this life is gone, or in a file that nobody reads: rows begin anew. */
static void begin_anew(struct books *books)
{
	struct history_life life = {.begun_wall_ns = clock_wall_ns()}, before;
	struct error ignored;

	life.seen_wall_ns = life.begun_wall_ns;
	memset(books->attempts, 0, sizeof(books->attempts));
	books->outage_token = 0;
	read_boot_id(life.boot_id);
	history_life_begin(books->history, &life, &before, &ignored);
}

struct history *books_history(struct books *books)
{
	nsec_t now_ns = clock_monotonic_ns();
	struct error error;
	bool lost = false, gone = false;

	if (books->history) {
		gone = history_is_gone(books->history, books->run_fd);
		if (!gone && !history_is_broken(books->history))
			return books->history;
		history_close(books->history);
		books->history = NULL;
	}
	if (books->run_fd < 0 || now_ns < books->history_retry_ns)
		return NULL;
	books->history_retry_ns = now_ns + HISTORY_RETRY_NS;
	if (history_open(books->run_dir, books->run_fd, &books->history, &lost, &error) < 0) {
		books->history = NULL;
		return NULL;
	}
	books->history_retry_ns = books->history_was_open ? now_ns + HISTORY_REOPEN_NS : 0;
	if (books->history_was_open && (gone || lost))
		begin_anew(books);
	books->history_was_open = true;
	if (gone || lost)
		history_event(books->history, clock_wall_ns(), "history-lost", "warning", 0,
			lost ? "history.sqlite was not readable: set aside, a new one begins"
			     : "history.sqlite was taken away: a new one begins",
			&error);
	return books->history;
}

/* -ENOTCONN when there is no history now: costs history, nothing else. */
static struct history *need_history(struct books *books, struct ledger_job *job)
{
	struct history *history = books_history(books);

	if (!history)
		job->result = error_set(&job->error, -ENOTCONN, "history.sqlite cannot be opened");
	return history;
}

void books_attempt_begin_work(struct ledger_job *job, void *room)
{
	struct attempt_job *begin = (struct attempt_job *)job;
	struct books *books = room;
	struct history *history = need_history(books, job);

	if (!history)
		return;
	job->result = history_attempt_begin(history, &begin->attempt, &job->error);
	if (job->result < 0)
		return;
	struct books_attempt *slot = &books->attempts[begin->token % BOOKS_ATTEMPTS];

	slot->token = begin->token;
	slot->id = begin->attempt.id;
}

void books_attempt_end_work(struct ledger_job *job, void *room)
{
	struct attempt_job *end = (struct attempt_job *)job;
	struct books *books = room;
	struct history *history = need_history(books, job);
	struct books_attempt *slot = &books->attempts[end->token % BOOKS_ATTEMPTS];

	if (!history)
		return;
	if (slot->token == end->token && slot->id > 0) {
		end->attempt.id = slot->id;
	} else {
		/* Its beginning was not written down. */
		job->result = history_attempt_begin(history, &end->attempt, &job->error);
		if (job->result < 0)
			return;
	}
	job->result = history_attempt_end(history, &end->attempt, &job->error);
}

void books_event_work(struct ledger_job *job, void *room)
{
	struct event_job *event = (struct event_job *)job;
	struct history *history = need_history(room, job);

	if (!history)
		return;
	job->result = history_event(history, event->wall_ns, event->kind, event->level, event->step,
		event->text, &job->error);
	/* It may have been the first to meet the damage. */
	if (job->result < 0 && history_is_broken(history) && (history = need_history(room, job)))
		job->result = history_event(history, event->wall_ns, event->kind, event->level,
			event->step, event->text, &job->error);
}

void books_metrics_work(struct ledger_job *job, void *room)
{
	struct metrics_job *metrics = (struct metrics_job *)job;
	struct history *history = need_history(room, job);

	CHECK(metrics->count <= BOOKS_METRICS_MAX);
	if (history)
		job->result = history_metrics(history, metrics->rows, metrics->count, &job->error);
}

void books_life_begin_work(struct ledger_job *job, void *room)
{
	struct life_job *begin = (struct life_job *)job;
	struct books *books = room;
	struct history *history = need_history(books, job);
	struct error error;

	if (!history)
		return;
	read_boot_id(begin->life.boot_id);
	begin->has_open = history_outage_open(history, &begin->open, &error) == 0;
	if (begin->has_open) {
		books->outage_token = begin->token;
		books->outage_id = begin->open.id;
	}
	job->result = history_life_begin(history, &begin->life, &begin->last, &job->error);
	if (job->result == 0)
		job->result = history_memory_losses(
			history, &begin->memory_losses, &begin->since_wall_ns, &job->error);
}

void books_life_seen_work(struct ledger_job *job, void *room)
{
	struct life_job *seen = (struct life_job *)job;
	struct history *history = need_history(room, job);

	if (history)
		job->result = history_life_seen(history, &seen->life, &job->error);
}

void books_outage_work(struct ledger_job *job, void *room)
{
	struct outage_job *put = (struct outage_job *)job;
	struct books *books = room;
	struct history *history = need_history(books, job);

	if (!history)
		return;
	put->outage.id = books->outage_token == put->token ? books->outage_id : 0;
	job->result = history_outage_put(history, &put->outage, &job->error);
	if (job->result < 0)
		return;
	books->outage_token = put->token;
	books->outage_id = put->outage.id;
}
