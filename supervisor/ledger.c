/* The thread of ledger.h. It must never know what a job is about. Invariants: every job that was
 * taken is answered exactly once, on the loop; the mutex is never held during work or done. */
#include "supervisor/ledger.h"

#include "base/panic.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>

static struct ledger_job *take_job(struct ledger *ledger)
{
	struct ledger_job *job;

	uv_mutex_lock(&ledger->mutex);
	while (!ledger->first && !ledger->closing)
		uv_cond_wait(&ledger->wake, &ledger->mutex);
	job = ledger->first;
	if (job) {
		ledger->first = job->next;
		if (!ledger->first)
			ledger->last = NULL;
		job->next = NULL;
	}
	uv_mutex_unlock(&ledger->mutex);
	return job;
}

static void post_answer(struct ledger *ledger, struct ledger_job *job)
{
	uv_mutex_lock(&ledger->mutex);
	if (ledger->done_last)
		ledger->done_last->next = job;
	else
		ledger->done_first = job;
	ledger->done_last = job;
	CHECK(ledger->queued > 0);
	ledger->queued--;
	uv_mutex_unlock(&ledger->mutex);
	uv_async_send(&ledger->async);
}

static void run_thread(void *context)
{
	struct ledger *ledger = context;
	struct ledger_job *job;
	sigset_t all;

	/* Signals are the loop's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while ((job = take_job(ledger))) {
		job->work(job, ledger->room);
		post_answer(ledger, job);
	}
	ledger->room_fini(ledger->room);
}

static void answer_all(struct ledger *ledger)
{
	uv_mutex_lock(&ledger->mutex);
	struct ledger_job *job = ledger->done_first;

	ledger->done_first = NULL;
	ledger->done_last = NULL;
	uv_mutex_unlock(&ledger->mutex);
	while (job) {
		struct ledger_job *next = job->next;

		CHECK(ledger->outstanding > 0);
		ledger->outstanding--;
		job->next = NULL;
		job->done(job);
		job = next;
	}
}

static void on_async(uv_async_t *async)
{
	answer_all(async->data);
}

int ledger_init(struct ledger *ledger, uv_loop_t *loop, void *room, void (*room_fini)(void *room))
{
	*ledger = (struct ledger){.room = room, .room_fini = room_fini};
	CHECK(room_fini);
	int code = uv_async_init(loop, &ledger->async, on_async);

	if (code < 0)
		return code;
	ledger->async.data = ledger;
	CHECK(uv_mutex_init(&ledger->mutex) == 0);
	CHECK(uv_cond_init(&ledger->wake) == 0);
	code = uv_thread_create(&ledger->thread, run_thread, ledger);
	CHECK(code == 0);
	ledger->open = true;
	return 0;
}

int ledger_give(struct ledger *ledger, struct ledger_job *job)
{
	uint32_t limit = job->droppable ? LEDGER_JOBS_MAX / 2 : LEDGER_JOBS_MAX;
	int code = 0;

	CHECK(job->work && job->done && !job->next);
	if (!ledger->open)
		return -ECANCELED;
	uv_mutex_lock(&ledger->mutex);
	if (ledger->queued >= limit) {
		code = -ENOBUFS;
	} else {
		if (ledger->last)
			ledger->last->next = job;
		else
			ledger->first = job;
		ledger->last = job;
		ledger->queued++;
		uv_cond_signal(&ledger->wake);
	}
	uv_mutex_unlock(&ledger->mutex);
	if (code == 0)
		ledger->outstanding++;
	else if (job->droppable)
		ledger->dropped++;
	return code;
}

void ledger_fini(struct ledger *ledger)
{
	if (!ledger->open)
		return;
	ledger->open = false;
	uv_mutex_lock(&ledger->mutex);
	ledger->closing = true;
	uv_cond_signal(&ledger->wake);
	uv_mutex_unlock(&ledger->mutex);
	CHECK(uv_thread_join(&ledger->thread) == 0);
	answer_all(ledger);
	CHECK(ledger->outstanding == 0);
	uv_close((uv_handle_t *)&ledger->async, NULL);
	uv_cond_destroy(&ledger->wake);
	uv_mutex_destroy(&ledger->mutex);
}
