/* The interventions of a record: what a person or the ladder changed, and at which step. At step 0
 * every schedule key is entered, so the record alone says with which settings any step was
 * computed: a restart from memory, which has no configuration file beside it, finds out what was
 * changed since; and a checkpoint carries the settings of its own step, not of the moment of its
 * save.
 *
 * The key `engine` is what was wished for. Which engine computed, from which step on, is in the
 * ENGINE entries alone: "amx (auto)", the engine and who chose it. */
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
 * tells the caller "key: old -> new"; what was usual is forgotten then. Returns how many. */
uint32_t record_changes(struct state_record *record, const struct config *before,
	const struct config *after, void (*tell)(void *context, const char *text), void *context);

enum engine_by { ENGINE_BY_CONFIG, ENGINE_BY_AUTO, ENGINE_BY_LADDER };

struct engine_entry {
	uint64_t step;
	enum engine_by by;
	char name[16];
};

/* The engine that computes after the last entry. False when there is none. */
bool record_engine(const struct state_record *record, struct engine_entry *ret);
/* The one that auto chose, if it has chosen since the key `engine` was changed last. */
bool record_auto_engine(const struct state_record *record, struct engine_entry *ret);
/* Enters this engine at record->step, unless it is what the last entry says. tell (may be NULL)
 * hears of another name than before. Returns whether it was entered. */
bool record_set_engine(struct state_record *record, const char *name, enum engine_by by,
	void (*tell)(void *context, const char *text), void *context);

/* Branch files carry interventions for steps to come: applies those whose step is record->step and
 * that the record does not have yet (a window moves images_seen), and tells the caller. An engine
 * there is only for people: the ladder forces it with the start frame. */
uint32_t record_apply_branch(struct state_record *record, const struct line *line,
	void (*tell)(void *context, const char *text), void *context);
