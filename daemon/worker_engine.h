/* Which engine a process computes with. A run keeps the one that `auto` chose at its first step, as
 * long as it runs here: another engine gives other bits, so each change is an intervention. */
#pragma once

#include "base/error.h"
#include "daemon/model/unet.h"
#include "daemon/ops/engine.h"
#include "daemon/worker_record.h"
#include "proto/progress.h"

#include <stdbool.h>

struct engine_choice {
	const struct engine *engine;
	enum engine_by by;
	bool replaced; /* the one that auto chose for this run cannot run here */
	char reason[PROGRESS_TEXT_MAX];
};

/* For training. forced: by the ladder ("": not). wanted: the key `engine`. record: of the state
 * that the run goes on from, NULL for a new run. -ENOTSUP: a named engine cannot run here. */
int engine_choose(const struct unet_config *net, const char *forced, const char *wanted,
	const struct state_record *record, struct engine_choice *ret, struct error *err);
/* For drawing from a checkpoint: the engine that computed it, where it runs, else the fastest. */
const struct engine *engine_for_record(
	const struct unet_config *net, const struct state_record *record);
