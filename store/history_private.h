/* What the files of the history share: one connection and its prepared statements. Private to
 * store/history*.c. */
#pragma once

#include "store/history.h"

#include <sqlite3.h>

enum statement {
	BEGIN,
	COMMIT,
	ROLLBACK,
	ATTEMPT_BEGIN,
	ATTEMPT_END,
	ATTEMPT_TRIM,
	EVENT_ADD,
	EVENT_TRIM,
	METRIC_PUT,
	METRIC_NEWEST,
	METRIC_THIN,
	EVENT_LIST,
	METRIC_COUNT,
	METRIC_LIST,
	LAST_EVENT,
	LAST_DEATH,
	LIFE_BEGIN,
	LIFE_LAST,
	LIFE_SEEN,
	LIFE_TRIM,
	OUTAGE_BEGIN,
	OUTAGE_SET,
	OUTAGE_TRIM,
	OUTAGE_OPEN,
	OUTAGE_LIST,
	OUTAGE_TOTALS,
	STATEMENT_COUNT
};

struct history {
	sqlite3 *db;
	sqlite3_stmt *statements[STATEMENT_COUNT];
	uint64_t inode; /* of the file that was opened */
	bool broken;    /* an answer was none: only opening it again helps, or setting it aside */
	uint64_t thinned_to; /* below this step all is thinned; starts over at each open */
};

/* What SQLite says is wrong, as an error: -ENOSPC, -EBUSY or -EIO. Notes when it may be the file.
 */
int history_fail(struct history *history, struct error *err, const char *doing);
void history_bind_text(sqlite3_stmt *statement, int index, const char *text);
void history_bind_number(sqlite3_stmt *statement, int index, uint64_t number);
/* Runs a bound statement without an answer, and resets it. */
int history_run(struct history *history, enum statement which, struct error *err);
/* The only column of the only row. */
int history_number(struct history *history, enum statement which, int64_t *ret, struct error *err);
/* Keeps the newest rows: ids only grow, so what is too old is below one number. */
int history_trim(struct history *history, enum statement which, int64_t kept, struct error *err);
/* All rows of a bound statement as an array; the statement is reset. */
int history_rows(struct history *history, enum statement which,
	json_t *(*row_json)(sqlite3_stmt *row), json_t **ret, struct error *err);
/* Columns as values; NULL is null or "". */
json_t *history_column_text(sqlite3_stmt *statement, int column);
json_t *history_column_number(sqlite3_stmt *statement, int column);
json_t *history_column_time(sqlite3_stmt *statement, int column);
