/* The one thread that may wait for a disk: it does the supervisor's database work and its small
 * durable files. A second one makes the state memory, for which no row has to wait. Jobs are done
 * one at a time, in the order they were given, so a job that follows another sees what it wrote;
 * their answers come back on the loop.
 *
 * The queue is bounded. Metrics may fill half of it, then they are dropped and counted: losing them
 * costs a curve, never training. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#define LEDGER_JOBS_MAX 256

struct ledger_job {
	/* On the thread. room is what books.c keeps there. */
	void (*work)(struct ledger_job *job, void *room);
	/* On the loop, always, also for jobs that were never started (result -ECANCELED). It owns
	 * the job and frees it. */
	void (*done)(struct ledger_job *job);
	bool droppable; /* metrics */
	int result;
	struct error error;
	struct ledger_job *next;
};

struct ledger {
	uv_thread_t thread;
	uv_mutex_t mutex; /* guards everything to the empty line */
	uv_cond_t wake;
	struct ledger_job *first, *last; /* to do */
	struct ledger_job *done_first, *done_last;
	uint32_t queued;
	bool closing;

	uv_async_t async; /* the loop's */
	void *room;       /* the thread's */
	void (*room_fini)(void *room);
	uint64_t dropped;     /* the loop's: metrics that found no room */
	uint32_t outstanding; /* the loop's: given and not yet answered */
	bool open;
};

/* room belongs to the thread from here on; room_fini is its last act. */
int ledger_init(struct ledger *ledger, uv_loop_t *loop, void *room, void (*room_fini)(void *room));
/* -ENOBUFS when the queue is full, -ECANCELED after ledger_fini: the job is still the caller's. */
int ledger_give(struct ledger *ledger, struct ledger_job *job);
/* Lets the thread finish what is queued, joins it, answers everything, closes the handle: after it
 * the loop must still turn once for the close. */
void ledger_fini(struct ledger *ledger);
