/* The outage ledger and the lives it is drawn from. Wall clocks jump: no time it tells is negative.
 */
#include "store/history_private.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LIVES_KEPT 1000
#define OUTAGES_KEPT 100000

static void copy_text(char *text, size_t size, sqlite3_stmt *row, int column)
{
	const char *found = (const char *)sqlite3_column_text(row, column);

	snprintf(text, size, "%s", found != NULL ? found : "");
}

static void read_life(sqlite3_stmt *row, struct history_life *life)
{
	copy_text(life->boot_id, sizeof(life->boot_id), row, 0);
	life->begun_wall_ns = sqlite3_column_int64(row, 1);
	life->seen_wall_ns = sqlite3_column_int64(row, 2);
	life->step = (uint64_t)sqlite3_column_int64(row, 3);
	life->ended = sqlite3_column_int64(row, 4) != 0;
}

int history_life_begin(struct history *history, const struct history_life *life,
	struct history_life *ret_last, struct error *err)
{
	sqlite3_stmt *last = history->statements[LIFE_LAST];
	sqlite3_stmt *begin = history->statements[LIFE_BEGIN];
	int step = sqlite3_step(last), rc = 0;

	*ret_last = (struct history_life){0};
	if (step == SQLITE_ROW)
		read_life(last, ret_last);
	else if (step != SQLITE_DONE)
		rc = history_fail(history, err, "read");
	sqlite3_reset(last);
	if (rc < 0)
		return rc;
	history_bind_text(begin, 1, life->boot_id);
	sqlite3_bind_int64(begin, 2, life->begun_wall_ns);
	sqlite3_bind_int64(begin, 3, life->seen_wall_ns);
	/* Until it has seen more, it knows what the last one knew. */
	history_bind_number(begin, 4, ret_last->step > life->step ? ret_last->step : life->step);
	rc = history_run(history, LIFE_BEGIN, err);
	return rc < 0 ? rc : history_trim(history, LIFE_TRIM, LIVES_KEPT, err);
}

int history_life_seen(struct history *history, const struct history_life *life, struct error *err)
{
	sqlite3_stmt *statement = history->statements[LIFE_SEEN];

	sqlite3_bind_int64(statement, 1, life->seen_wall_ns);
	history_bind_number(statement, 2, life->step);
	history_bind_number(statement, 3, life->ended);
	return history_run(history, LIFE_SEEN, err);
}

static int begin_outage(struct history *history, struct history_outage *outage, struct error *err)
{
	sqlite3_stmt *statement = history->statements[OUTAGE_BEGIN];

	sqlite3_bind_int64(statement, 1, outage->begun_wall_ns);
	history_bind_text(statement, 2, outage->cause);
	history_bind_text(statement, 3, outage->detected);
	history_bind_text(statement, 4, outage->sentence);
	history_bind_number(statement, 5, outage->planned);
	history_bind_number(statement, 6, outage->step);
	int rc = history_run(history, OUTAGE_BEGIN, err);

	if (rc < 0)
		return rc;
	outage->id = sqlite3_last_insert_rowid(history->db);
	return history_trim(history, OUTAGE_TRIM, OUTAGES_KEPT, err);
}

/* 0 is NULL: not yet. */
static void bind_time(sqlite3_stmt *statement, int index, nsec_t wall_ns)
{
	if (wall_ns > 0)
		sqlite3_bind_int64(statement, index, wall_ns);
}

int history_outage_put(struct history *history, struct history_outage *outage, struct error *err)
{
	sqlite3_stmt *statement = history->statements[OUTAGE_SET];
	int rc = outage->id > 0 ? 0 : begin_outage(history, outage, err);

	if (rc < 0)
		return rc;
	sqlite3_bind_int64(statement, 1, outage->id);
	bind_time(statement, 2, outage->resumed_wall_ns);
	bind_time(statement, 3, outage->ended_wall_ns);
	history_bind_number(statement, 4, outage->steps_redone);
	history_bind_number(statement, 5, outage->restarts);
	history_bind_number(statement, 6, outage->memory_lost);
	return history_run(history, OUTAGE_SET, err);
}

int history_outage_open(struct history *history, struct history_outage *ret, struct error *err)
{
	sqlite3_stmt *row = history->statements[OUTAGE_OPEN];
	int step = sqlite3_step(row), rc = 0;

	*ret = (struct history_outage){0};
	if (step == SQLITE_ROW) {
		ret->id = sqlite3_column_int64(row, 0);
		ret->begun_wall_ns = sqlite3_column_int64(row, 1);
		copy_text(ret->cause, sizeof(ret->cause), row, 2);
		copy_text(ret->detected, sizeof(ret->detected), row, 3);
		copy_text(ret->sentence, sizeof(ret->sentence), row, 4);
		ret->planned = sqlite3_column_int64(row, 5) != 0;
		ret->step = (uint64_t)sqlite3_column_int64(row, 6);
		ret->restarts = (uint32_t)sqlite3_column_int64(row, 7);
		ret->memory_lost = sqlite3_column_int64(row, 8) != 0;
		ret->steps_redone = (uint64_t)sqlite3_column_int64(row, 9);
		ret->resumed_wall_ns = sqlite3_column_int64(row, 10); /* NULL is 0 */
	} else if (step == SQLITE_DONE) {
		rc = error_set(err, -ENOENT, "history: no open outage");
	} else {
		rc = history_fail(history, err, "read");
	}
	sqlite3_reset(row);
	return rc;
}

static json_t *time_or_empty(sqlite3_stmt *row, int column)
{
	return sqlite3_column_type(row, column) == SQLITE_NULL ? json_string("")
							       : history_column_time(row, column);
}

/* Seconds from the beginning to a column; null while that is not known. */
static json_t *seconds_to(sqlite3_stmt *row, int column)
{
	int64_t ns = sqlite3_column_int64(row, column) - sqlite3_column_int64(row, 1);

	if (sqlite3_column_type(row, column) == SQLITE_NULL)
		return json_null();
	return json_real(ns > 0 ? (double)ns / 1e9 : 0.0);
}

static json_t *outage_json(sqlite3_stmt *row)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:b, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", "id",
		history_column_number(row, 0), "begun", history_column_time(row, 1), "ended",
		time_or_empty(row, 2), "cause", history_column_text(row, 3), "detected",
		history_column_text(row, 4), "planned", (int)(sqlite3_column_int64(row, 6) != 0),
		"step", history_column_number(row, 7), "steps_redone",
		history_column_number(row, 8), "restarts", history_column_number(row, 9),
		"seconds_down", seconds_to(row, 11), "seconds_lost", seconds_to(row, 2),
		"memory_lost", (int)(sqlite3_column_int64(row, 10) != 0), "text",
		history_column_text(row, 5));
}

static double share(double part, double whole)
{
	double left = whole > 0 ? 1 - part / whole : 1;

	return left < 0 ? 0 : left;
}

static json_t *totals_of(sqlite3_stmt *row, nsec_t now_wall_ns)
{
	int64_t since_ns = sqlite3_column_int64(row, 0);
	int64_t count = sqlite3_column_int64(row, 1);
	double finished = (double)sqlite3_column_int64(row, 7) / 1e9;
	double wall = since_ns > 0 && now_wall_ns > since_ns
		? (double)(now_wall_ns - since_ns) / 1e9 - finished
		: 0;
	double lost = (double)sqlite3_column_int64(row, 3) / 1e9;
	double planned = (double)sqlite3_column_int64(row, 4) / 1e9;
	double down = (double)sqlite3_column_int64(row, 5) / 1e9;
	double wanted = wall > planned ? wall - planned : 0;

	return json_pack("{s:o, s:f, s:I, s:I, s:f, s:f, s:I, s:f, s:f, s:o, s:o}", "since",
		time_or_empty(row, 0), "wall_seconds", wall, "outages", (json_int_t)count,
		"memory_lost", (json_int_t)sqlite3_column_int64(row, 2), "lost_seconds", lost,
		"planned_seconds", planned, "steps_redone",
		(json_int_t)sqlite3_column_int64(row, 6), "uptime", share(down, wall), "goodput",
		share(lost + planned, wall), "mean_seconds_between",
		count > 0 ? json_real(wanted / (double)count) : json_null(),
		"mean_seconds_to_recover",
		count > 0 ? json_real(lost / (double)count) : json_null());
}

int history_memory_losses(
	struct history *history, uint32_t *ret_count, nsec_t *ret_since_wall_ns, struct error *err)
{
	sqlite3_stmt *row = history->statements[OUTAGE_TOTALS];
	int rc = 0;

	*ret_count = 0;
	*ret_since_wall_ns = 0;
	sqlite3_bind_int64(row, 1, 0);
	if (sqlite3_step(row) == SQLITE_ROW) {
		*ret_since_wall_ns = sqlite3_column_int64(row, 0);
		*ret_count = (uint32_t)sqlite3_column_int64(row, 2);
	} else {
		rc = history_fail(history, err, "read");
	}
	sqlite3_reset(row);
	sqlite3_clear_bindings(row);
	return rc;
}

static int totals_json(struct history *history, nsec_t now_wall_ns, json_t **ret, struct error *err)
{
	sqlite3_stmt *row = history->statements[OUTAGE_TOTALS];
	int rc = 0;

	sqlite3_bind_int64(row, 1, now_wall_ns);
	if (sqlite3_step(row) == SQLITE_ROW)
		*ret = totals_of(row, now_wall_ns);
	else
		rc = history_fail(history, err, "read");
	sqlite3_reset(row);
	sqlite3_clear_bindings(row);
	return rc;
}

int history_outages_json(struct history *history, uint32_t limit, nsec_t now_wall_ns, json_t **ret,
	struct error *err)
{
	AUTO_JSON totals = NULL;
	json_t *rows = NULL;
	int rc = totals_json(history, now_wall_ns, &totals, err);

	if (rc < 0)
		return rc;
	sqlite3_bind_int64(history->statements[OUTAGE_LIST], 1, limit);
	rc = history_rows(history, OUTAGE_LIST, outage_json, &rows, err);
	if (rc == 0)
		*ret = json_pack("{s:o, s:O}", "outages", rows, "totals", totals);
	return rc;
}
