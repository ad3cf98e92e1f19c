/* The trainer's own things, shared by worker_train (the loop), worker_resume (where it begins) and
 * worker_preview (what it shows). */
#pragma once

#include "daemon/train/step.h"
#include "daemon/worker.h"
#include "daemon/worker_ahead.h"
#include "daemon/worker_engine.h"
#include "daemon/worker_plan.h"
#include "daemon/worker_preview.h"
#include "proto/progress.h"
#include "proto/state.h"
#include "store/line.h"
#include "store/run.h"

#include <stdbool.h>
#include <stdint.h>

struct trainer {
	struct worker *worker;
	struct config config; /* in force */
	struct run run;
	struct line line;
	struct data data;
	struct model model;
	struct schedule schedule;
	struct rng rng;
	struct state state;
	struct progress *progress;
	struct engine_choice engine;
	struct ahead ahead;
	struct train *train;
	struct preview *preview;
	uint64_t *sums_copy; /* of the source slot, for updates in place */

	struct state_record record; /* of the last finished step */
	bool record_changed;        /* since it was committed */
};

struct resume {
	const char *from;    /* "memory", "checkpoint" or "scratch" */
	char checkpoint[64]; /* its id, or "" */
};

/* Finds the newest whole state and leaves it sealed in a slot, its record in trainer->record, and
 * the engine that goes on from it in trainer->engine. Returns 0, an exit code (told), or -ECANCELED
 * when `stop` came first. */
int trainer_resume(struct trainer *trainer, struct resume *ret);

/* For these settings, going on from record (NULL: a new run). -ENOTSUP. */
int trainer_choose_engine(const struct trainer *trainer, const struct config *config,
	const struct state_record *record, struct engine_choice *ret, struct error *err);
/* Makes it the trainer's, from the record's step on. Returns whether the record changed. */
bool trainer_set_engine(struct trainer *trainer, const struct engine_choice *choice);

/* Mean and quartile means into a metric row. */
void trainer_metric_loss(struct metric *metric, const struct loss *loss);
/* Sends an event of kind "intervention"; context is the trainer. */
void trainer_tell(void *context, const char *text);
/* Takes a slot for writing; while none is free (one slot and a save in flight) waits, polling the
 * link. Returns 0, an exit code (told), or -ECANCELED when `stop` has come. */
int trainer_begin_write(struct trainer *trainer, uint32_t *ret_slot);
