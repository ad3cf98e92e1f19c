/* The interventions of a record: what a person or the ladder changed, and at which step. At step 0
 * every schedule key is entered, so the record alone says with which settings any step was
 * computed: a restart from memory, which has no configuration file beside it, finds out what was
 * changed since; and a checkpoint carries the settings of its own step, not of the moment of its
 * save. */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "proto/state.h"
#include "store/line.h"

#include <stdbool.h>
#include <stdint.h>

/* Appends one. When there is no room, what was superseded is folded into one digest first (an older
 * value of the same key, then the oldest window or engine). */
void record_add(
	struct state_record *record, enum intervention_kind kind, uint64_t step, const char *value);
bool record_has(const struct state_record *record, const struct intervention *intervention);

/* Enters every schedule key, at record->step. */
void record_begin(struct state_record *record, const struct config *config);
/* base with the schedule keys as they were in force at the record's step. -EBADMSG: a value that
 * the configuration does not take. */
int record_config(const struct state_record *record, const struct config *base, struct config *ret,
	struct error *err);
/* Enters each schedule key that differs between before (in force) and after, at record->step, and
 * tells the caller "key: old -> new". Returns how many. */
uint32_t record_changes(struct state_record *record, const struct config *before,
	const struct config *after, void (*tell)(void *context, const char *text), void *context);

/* Branch files carry interventions for steps to come: applies those whose step is record->step and
 * that the record does not have yet (a window moves images_seen), and tells the caller. */
uint32_t record_apply_branch(struct state_record *record, const struct line *line,
	void (*tell)(void *context, const char *text), void *context);
