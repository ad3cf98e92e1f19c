/* See tests/virtual/ledger.h. */
#include "tests/virtual/ledger.h"

#include <errno.h>
#include <stdlib.h>

int __wrap_ledger_init(
	struct ledger *ledger, uv_loop_t *loop, void *room, void (*room_fini)(void *room));
int __wrap_ledger_give(struct ledger *ledger, struct ledger_job *job);
void __wrap_ledger_fini(struct ledger *ledger);

static struct ledger_job *jobs, **jobs_end = &jobs;
static uint32_t job_count;
static nsec_t job_ns;

/* The host has a room of its own. */
int __wrap_ledger_init(
	struct ledger *ledger, uv_loop_t *loop, void *unused, void (*room_fini)(void *room))
{
	room_fini(unused);
	ledger->open = true;
	return 0;
}

int __wrap_ledger_give(struct ledger *ledger, struct ledger_job *job)
{
	if (!ledger->open)
		return -ECANCELED;
	if (job_count >= (uint32_t)(job->droppable ? LEDGER_JOBS_MAX / 2 : LEDGER_JOBS_MAX))
		return -ENOBUFS;
	job->next = NULL;
	*jobs_end = job;
	jobs_end = &job->next;
	if (job_count++ == 0)
		job_ns = host_job_ns(true);
	return 0;
}

nsec_t ledger_next_ns(void)
{
	return job_count > 0 ? job_ns : VIRTUAL_NEVER;
}

void ledger_advance(void)
{
	struct ledger_job *job = jobs;

	jobs = job->next;
	if (--job_count == 0)
		jobs_end = &jobs;
	else
		job_ns = host_job_ns(false);
	job->next = NULL;
	host_job(job);
	job->done(job);
}

void __wrap_ledger_fini(struct ledger *ledger)
{
	if (!ledger->open)
		return;
	ledger->open = false;
	while (job_count > 0)
		ledger_advance();
}

void ledger_lose(void)
{
	while (jobs) {
		struct ledger_job *next = jobs->next;

		free(jobs);
		jobs = next;
	}
	jobs_end = &jobs;
	job_count = 0;
}
