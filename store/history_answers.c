/* What the history answers: rows as the interface shows them. */
#include "store/history_private.h"

#include <errno.h>
#include <string.h>

json_t *history_column_text(sqlite3_stmt *statement, int column)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);
	json_t *json = json_string(text != NULL ? text : "");

	/* A worker's last words may be any bytes. */
	return json != NULL ? json : json_string("(not UTF-8)");
}

json_t *history_column_number(sqlite3_stmt *statement, int column)
{
	return json_integer(sqlite3_column_int64(statement, column));
}

static json_t *column_real(sqlite3_stmt *statement, int column)
{
	return sqlite3_column_type(statement, column) == SQLITE_NULL
		? json_null()
		: json_finite(sqlite3_column_double(statement, column));
}

json_t *history_column_time(sqlite3_stmt *statement, int column)
{
	char text[CLOCK_TEXT_SIZE];

	clock_format_utc(sqlite3_column_int64(statement, column), text);
	return json_string(text);
}

static json_t *event_json(sqlite3_stmt *row)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "id", history_column_number(row, 0),
		"time", history_column_time(row, 1), "kind", history_column_text(row, 2), "level",
		history_column_text(row, 3), "step", history_column_number(row, 4), "text",
		history_column_text(row, 5));
}

static json_t *metric_json(sqlite3_stmt *row)
{
	const char *kind = sqlite3_column_int64(row, 1) == METRIC_HOLDOUT ? "holdout" : "train";

	return json_pack("{s:o, s:s, s:o, s:o, s:[o,o,o,o], s:o, s:o, s:o, s:b}", "step",
		history_column_number(row, 0), "kind", kind, "branch",
		history_column_number(row, 2), "loss", column_real(row, 3), "loss_quartile",
		column_real(row, 4), column_real(row, 5), column_real(row, 6), column_real(row, 7),
		"grad_norm", column_real(row, 8), "learning_rate", column_real(row, 9), "step_ms",
		column_real(row, 10), "skipped", (int)(sqlite3_column_int64(row, 11) != 0));
}

static json_t *death_json(sqlite3_stmt *row)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "time", history_column_time(row, 0),
		"role", history_column_text(row, 1), "cause", history_column_text(row, 2), "phase",
		history_column_text(row, 3), "step", history_column_number(row, 4), "sentence",
		history_column_text(row, 5), "stderr_tail", history_column_text(row, 6));
}

/* All rows of a bound statement as an array; the statement is reset. */
int history_rows(struct history *history, enum statement which,
	json_t *(*row_json)(sqlite3_stmt *row), json_t **ret, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	json_t *rows = json_array();
	int rc = rows != NULL ? 0 : -ENOMEM, step;

	while (rc == 0 && (step = sqlite3_step(statement)) != SQLITE_DONE) {
		if (step != SQLITE_ROW)
			rc = history_fail(history, err, "read");
		else if (json_array_append_new(rows, row_json(statement)) < 0)
			rc = error_set(err, -ENOMEM, "no memory for an answer");
	}
	sqlite3_reset(statement);
	sqlite3_clear_bindings(statement);
	if (rc == 0)
		*ret = rows;
	else
		json_decref(rows);
	return rc;
}

int history_events_json(
	struct history *history, int64_t after, uint32_t limit, json_t **ret, struct error *err)
{
	sqlite3_stmt *statement = history->statements[EVENT_LIST];

	sqlite3_bind_int64(statement, 1, after);
	sqlite3_bind_int64(statement, 2, limit);
	return history_rows(history, EVENT_LIST, event_json, ret, err);
}

static int kind_number(const char *kind, int *ret, struct error *err)
{
	*ret = 0;
	if (kind == NULL || kind[0] == '\0')
		return 0;
	if (strcmp(kind, "train") == 0)
		*ret = METRIC_TRAIN;
	else if (strcmp(kind, "holdout") == 0)
		*ret = METRIC_HOLDOUT;
	else
		return error_set(
			err, -EINVAL, "'%.32s' is no kind of metric; use train or holdout", kind);
	return 0;
}

static void bind_metrics(
	sqlite3_stmt *statement, const struct history_metrics_query *query, int kind)
{
	history_bind_number(statement, 1, query->after_step);
	sqlite3_bind_int(statement, 2, kind);
	sqlite3_bind_int64(statement, 3, query->branch);
	history_bind_number(statement, 4, query->step);
}

int history_metrics_json(struct history *history, const struct history_metrics_query *query,
	json_t **ret, struct error *err)
{
	uint32_t limit = query->limit > 0 ? query->limit : 1;
	sqlite3_stmt *count_rows = history->statements[METRIC_COUNT];
	sqlite3_stmt *list = history->statements[METRIC_LIST];
	int64_t count = 0;
	int number;
	int rc = kind_number(query->kind, &number, err);

	if (rc < 0)
		return rc;
	bind_metrics(count_rows, query, number);
	rc = history_number(history, METRIC_COUNT, &count, err);
	if (rc < 0)
		return rc;
	bind_metrics(list, query, number);
	sqlite3_bind_int64(list, 5, count <= limit ? 1 : (count + limit - 1) / limit);
	return history_rows(history, METRIC_LIST, metric_json, ret, err);
}

/* The only row, or null. */
static int row_json(struct history *history, enum statement statement,
	json_t *(*make)(sqlite3_stmt *statement), json_t **ret, struct error *err)
{
	AUTO_JSON rows = NULL;
	int rc = history_rows(history, statement, make, &rows, err);

	if (rc < 0)
		return rc;
	*ret = json_array_size(rows) > 0 ? json_incref(json_array_get(rows, 0)) : json_null();
	return 0;
}

int history_last_event_json(
	struct history *history, const char *kind, json_t **ret, struct error *err)
{
	sqlite3_bind_text(history->statements[LAST_EVENT], 1, kind, -1, SQLITE_TRANSIENT);
	return row_json(history, LAST_EVENT, event_json, ret, err);
}

int history_last_death_json(struct history *history, json_t **ret, struct error *err)
{
	return row_json(history, LAST_DEATH, death_json, ret, err);
}
