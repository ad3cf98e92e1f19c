/* history.sqlite: attempts, events, metrics. Written only by the supervisor's database thread; its
 * loss costs history, never training. WAL, synchronous=NORMAL. The door of SQLite for it. */
#pragma once

#include "base/clock.h"
#include "base/error.h"
#include "proto/json.h"
#include "proto/progress.h"

#include <stdbool.h>
#include <stdint.h>

struct history; /* one connection; used by one thread */

/* Opens; creates or migrates (only under the run lock). A database that is not one is moved aside
 * (history.sqlite.broken-N) and a new one made: *ret_was_lost. */
int history_open(const char *run_dir, int run_fd, struct history **ret, bool *ret_was_lost,
	struct error *err);
void history_close(struct history *history);

struct history_attempt {
	int64_t id; /* filled in by begin */
	char role[16];
	int64_t pid;
	nsec_t begun_wall_ns, ended_wall_ns;
	uint32_t rung;
	uint64_t step_begun, step_ended;
	char from[16];  /* memory | checkpoint | scratch */
	char cause[64]; /* "killed by SIGKILL", "hang", "stopped", ... */
	char phase[24];
	char sentence[256]; /* the obituary */
	char stderr_tail[2048];
	bool planned;
};
int history_attempt_begin(
	struct history *history, struct history_attempt *attempt, struct error *err);
int history_attempt_end(
	struct history *history, const struct history_attempt *attempt, struct error *err);

int history_event(struct history *history, nsec_t wall_ns, const char *kind, const char *level,
	uint64_t step, const char *text, struct error *err);
/* One transaction; key (branch, step, kind), replays replace; older than 100,000 steps thinned
 * 1:100 now and then. */
int history_metrics(
	struct history *history, const struct metric *metrics, uint32_t count, struct error *err);

/* Answers for the methods: arrays of objects as in the varlink interface, oldest first; new
 * references. Events: the newest `limit` of those after this id. Metrics: when there are more than
 * `limit`, every n-th, always with the newest; of one step the newest branch. The last
 * event of a kind and the last death are null when there was none. */
int history_events_json(
	struct history *history, int64_t after, uint32_t limit, json_t **ret, struct error *err);
int history_metrics_json(struct history *history, uint64_t after_step, const char *kind,
	uint32_t limit, json_t **ret, struct error *err);
int history_last_event_json(
	struct history *history, const char *kind, json_t **ret, struct error *err);
int history_last_death_json(struct history *history, json_t **ret, struct error *err);
