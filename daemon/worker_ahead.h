/* What a trainer needs besides its state, made on a thread of its own while that is being read or
 * summed: the kernel clears hundreds of MiB for it, by cores that wait for the disk. */
#pragma once

#include "daemon/train/step.h"
#include "proto/state.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct ahead {
	pthread_t thread;
	bool running;
	int pool;                 /* threads, for which the step is laid out */
	struct train_setup setup; /* engine NULL: no step */
	struct train *train;      /* NULL: it could not be had */
	const struct state *state;
	uint32_t first, end; /* slots */
};

/* Lays out a step for setup (NULL: none), then gives the slots from first to before end their
 * memory, as many as there are. All that it is given stays as it is until ahead_take. Where no
 * thread can be had nothing is made. One at a time. */
void ahead_begin(struct ahead *ahead, const struct train_setup *setup, const struct state *state,
	uint32_t first, uint32_t end);
/* Waits for the thread, if one runs. */
void ahead_wait(struct ahead *ahead);
/* After ahead_wait: the step, the caller's from then on, if it is for this engine; else NULL, and
 * what was made is freed. */
struct train *ahead_take(struct ahead *ahead, const struct engine *engine);
