/* The door of SQLite for the history: attempts, events, metrics. One connection, used by the
 * supervisor's database thread alone. Losing it loses no training, so a file that cannot be used is
 * set aside and a new one begun; it is bounded: old events, attempts and metrics give way a little
 * with each write, never in one long pause. */
#include "store/history.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/database.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HISTORY_NAME "history.sqlite"
#define BUSY_MS 5000
#define BROKEN_MAX 99
#define PATH_SIZE 4096

#define ATTEMPTS_KEPT 10000
#define EVENTS_KEPT 100000
#define METRICS_FULL_STEPS 100000 /* behind the newest step */
#define METRICS_THINNED_TO 100
#define THIN_WINDOW_STEPS 10000 /* looked at in one call */

/* migrations[i] leads from user_version i to i + 1. Once released, none changes. */
static const char *const migrations[] = {
	"CREATE TABLE attempt("
	" id INTEGER PRIMARY KEY, role TEXT NOT NULL, pid INTEGER NOT NULL,"
	" begun_ns INTEGER NOT NULL, ended_ns INTEGER, rung INTEGER NOT NULL,"
	" step_begun INTEGER NOT NULL, step_ended INTEGER, resumed_from TEXT NOT NULL,"
	" cause TEXT, phase TEXT, sentence TEXT, stderr_tail TEXT, planned INTEGER) STRICT;"
	"CREATE TABLE event("
	" id INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, kind TEXT NOT NULL,"
	" level TEXT NOT NULL, step INTEGER NOT NULL, text TEXT NOT NULL) STRICT;"
	"CREATE TABLE metric("
	" step INTEGER NOT NULL, kind INTEGER NOT NULL, branch INTEGER NOT NULL,"
	" loss REAL, quartile_1 REAL, quartile_2 REAL, quartile_3 REAL, quartile_4 REAL,"
	" grad_norm REAL, learning_rate REAL, step_ms REAL, images INTEGER NOT NULL,"
	" skipped INTEGER NOT NULL, PRIMARY KEY(step, kind, branch)) STRICT, WITHOUT ROWID;"
	"PRAGMA application_id = 1668985960;", /* "ckph" */
};
#define HISTORY_VERSION ((int)(sizeof(migrations) / sizeof(migrations[0])))

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
	STATEMENT_COUNT
};

/* Of each (step, kind) the row of the greatest branch: bare columns follow max() in SQLite. */
#define METRIC_NEWEST_BRANCH                                                                       \
	"SELECT step, kind, max(branch) AS branch, loss, quartile_1, quartile_2, quartile_3,"      \
	" quartile_4, grad_norm, learning_rate, step_ms, skipped FROM metric"                      \
	" WHERE step > ?1 AND (?2 = 0 OR kind = ?2) GROUP BY step, kind"

static const char *const statement_sql[STATEMENT_COUNT] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
	[ATTEMPT_BEGIN] = "INSERT INTO attempt(role, pid, begun_ns, rung, step_begun, resumed_from)"
			  " VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
	[ATTEMPT_END] = "UPDATE attempt SET ended_ns = ?2, step_ended = ?3, cause = ?4, phase = ?5,"
			" sentence = ?6, stderr_tail = ?7, planned = ?8 WHERE id = ?1",
	[ATTEMPT_TRIM] = "DELETE FROM attempt WHERE id <= ?1",
	[EVENT_ADD] = "INSERT INTO event(wall_ns, kind, level, step, text) VALUES(?1,?2,?3,?4,?5)",
	[EVENT_TRIM] = "DELETE FROM event WHERE id <= ?1",
	[METRIC_PUT] = "INSERT OR REPLACE INTO metric VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,"
		       "?12,?13)",
	[METRIC_NEWEST] = "SELECT max(step) FROM metric",
	[METRIC_THIN] = "DELETE FROM metric WHERE step >= ?1 AND step < ?2 AND kind = 1"
			" AND step % ?3 <> 0",
	[EVENT_LIST] = "SELECT * FROM (SELECT id, wall_ns, kind, level, step, text FROM event"
		       " WHERE id > ?1 ORDER BY id DESC LIMIT ?2) ORDER BY id",
	[METRIC_COUNT] = "SELECT count(*) FROM (" METRIC_NEWEST_BRANCH ")",
	[METRIC_LIST] = "SELECT * FROM (SELECT *, row_number() OVER (ORDER BY step DESC, kind) - 1"
			" AS place FROM (" METRIC_NEWEST_BRANCH ")) WHERE place % ?3 = 0"
			" ORDER BY step, kind",
	[LAST_EVENT] = "SELECT id, wall_ns, kind, level, step, text FROM event WHERE kind = ?1"
		       " ORDER BY id DESC LIMIT 1",
	[LAST_DEATH] = "SELECT ended_ns, role, cause, phase, step_ended, sentence, stderr_tail"
		       " FROM attempt WHERE ended_ns IS NOT NULL AND planned = 0"
		       " ORDER BY id DESC LIMIT 1",
};

struct history {
	sqlite3 *db;
	sqlite3_stmt *statements[STATEMENT_COUNT];
	uint64_t thinned_to; /* below this step all is thinned; starts over at each open */
};

static int fail(struct history *history, struct error *err, const char *doing)
{
	int code = sqlite3_extended_errcode(history->db);
	int rc = (code & 0xff) == SQLITE_FULL  ? -ENOSPC
		: (code & 0xff) == SQLITE_BUSY ? -EBUSY
					       : -EIO;

	return error_set(
		err, rc, "history: cannot %s: %s (%d)", doing, sqlite3_errmsg(history->db), code);
}

/* -- open -- */

static int64_t user_version(struct history *history)
{
	sqlite3_stmt *statement = NULL;
	int64_t version = -1;

	if (sqlite3_prepare_v2(history->db, "PRAGMA user_version", -1, &statement, NULL) ==
			SQLITE_OK &&
		sqlite3_step(statement) == SQLITE_ROW)
		version = sqlite3_column_int64(statement, 0);
	sqlite3_finalize(statement);
	return version;
}

static bool quick_check(struct history *history)
{
	sqlite3_stmt *statement = NULL;
	const char *text = NULL;
	bool ok;

	if (sqlite3_prepare_v2(history->db, "PRAGMA quick_check(1)", -1, &statement, NULL) ==
			SQLITE_OK &&
		sqlite3_step(statement) == SQLITE_ROW)
		text = (const char *)sqlite3_column_text(statement, 0);
	ok = text != NULL && strcmp(text, "ok") == 0;
	sqlite3_finalize(statement);
	return ok;
}

static int migrate(struct history *history)
{
	int64_t version = user_version(history);
	char pragma[64];

	if (version < 0 || version > HISTORY_VERSION)
		return -EBADMSG;
	for (; version < HISTORY_VERSION; version++) {
		snprintf(pragma, sizeof(pragma), "PRAGMA user_version = %d; COMMIT",
			(int)version + 1);
		if (sqlite3_exec(history->db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK ||
			sqlite3_exec(history->db, migrations[version], NULL, NULL, NULL) !=
				SQLITE_OK ||
			sqlite3_exec(history->db, pragma, NULL, NULL, NULL) != SQLITE_OK)
			return -EBADMSG;
	}
	return 0;
}

static int prepare_statements(struct history *history)
{
	for (int i = 0; i < STATEMENT_COUNT; i++)
		if (sqlite3_prepare_v3(history->db, statement_sql[i], -1, SQLITE_PREPARE_PERSISTENT,
			    &history->statements[i], NULL) != SQLITE_OK)
			return -EBADMSG;
	return 0;
}

/* -EBADMSG: this file is no history of ours; others: it is out of reach. */
static int use(struct history *history, struct error *err)
{
	const char *pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
			      "PRAGMA mmap_size=0; PRAGMA cell_size_check=ON";
	int code;

	sqlite3_extended_result_codes(history->db, 1);
	sqlite3_busy_timeout(history->db, BUSY_MS);
	sqlite3_db_config(history->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(history->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	if (sqlite3_exec(history->db, pragmas, NULL, NULL, NULL) == SQLITE_OK &&
		quick_check(history) && migrate(history) == 0 && prepare_statements(history) == 0)
		return 0;
	code = sqlite3_errcode(history->db);
	if (code == SQLITE_BUSY || code == SQLITE_FULL || code == SQLITE_IOERR ||
		code == SQLITE_NOMEM || code == SQLITE_READONLY || code == SQLITE_CANTOPEN)
		return fail(history, err, "open it");
	return -EBADMSG;
}

static int open_file(const char *run_dir, int run_fd, struct history **ret, struct error *err)
{
	char path[PATH_SIZE];
	struct history *history;
	int fd, rc;

	if (snprintf(path, sizeof(path), "%s/%s", run_dir, HISTORY_NAME) >= (int)sizeof(path))
		return error_set(err, -ENAMETOOLONG, "the run's path is too long");
	/* Created here for its mode; SQLite gives its companions the same one. */
	fd = sys_openat(run_fd, HISTORY_NAME, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
	if (fd == -ELOOP || fd == -EISDIR)
		return -EBADMSG;
	if (fd < 0)
		return error_set(err, fd, "history: cannot open it: %s", strerror(-fd));
	sys_close(fd);
	history = calloc(1, sizeof(*history));
	if (history == NULL)
		return error_set(err, -ENOMEM, "no memory for the history");
	if (sqlite3_open_v2(path, &history->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
		    database_vfs()) == SQLITE_OK)
		rc = use(history, err);
	else
		rc = history->db != NULL ? fail(history, err, "open it") : -ENOMEM;
	if (rc < 0) {
		history_close(history);
		return rc;
	}
	*ret = history;
	return 0;
}

static int remove_log(int run_fd)
{
	int rc = sys_unlinkat(run_fd, HISTORY_NAME "-wal");

	if (rc == 0 || rc == -ENOENT)
		rc = sys_unlinkat(run_fd, HISTORY_NAME "-shm");
	return rc == -ENOENT ? 0 : rc;
}

static int set_aside(int run_fd)
{
	char aside[64];
	int rc = -EEXIST;

	for (int n = 1; rc == -EEXIST && n <= BROKEN_MAX; n++) {
		snprintf(aside, sizeof(aside), "%s.broken-%d", HISTORY_NAME, n);
		rc = sys_renameat_noreplace(run_fd, HISTORY_NAME, aside);
	}
	if (rc == -EEXIST)
		rc = sys_renameat(run_fd, HISTORY_NAME, aside);
	if (rc == 0)
		rc = remove_log(run_fd);
	return rc == 0 ? file_sync_dir(run_fd) : rc;
}

int history_open(const char *run_dir, int run_fd, struct history **ret, bool *ret_was_lost,
	struct error *err)
{
	struct stat stat;
	int rc = 0;

	*ret = NULL;
	*ret_was_lost = false;
	/* A log without its database must not speak for a new one. */
	if (sys_fstatat(run_fd, HISTORY_NAME, &stat) == -ENOENT)
		rc = remove_log(run_fd);
	if (rc == 0)
		rc = open_file(run_dir, run_fd, ret, err);
	if (rc != -EBADMSG)
		return rc;
	*ret_was_lost = true;
	rc = set_aside(run_fd);
	if (rc < 0)
		return error_set(
			err, rc, "history: cannot set the broken one aside: %s", strerror(-rc));
	rc = open_file(run_dir, run_fd, ret, err);
	return rc == -EBADMSG ? error_set(err, rc, "history: cannot create a new one") : rc;
}

void history_close(struct history *history)
{
	if (history == NULL)
		return;
	for (int i = 0; i < STATEMENT_COUNT; i++)
		sqlite3_finalize(history->statements[i]);
	CHECK(sqlite3_close(history->db) == SQLITE_OK);
	free(history);
}

/* -- writing -- */

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
	sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

static void bind_number(sqlite3_stmt *statement, int index, uint64_t number)
{
	sqlite3_bind_int64(statement, index, (sqlite3_int64)number);
}

static int run_statement(struct history *history, enum statement which, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	int rc = sqlite3_step(statement) == SQLITE_DONE ? 0 : fail(history, err, "write");

	sqlite3_reset(statement);
	sqlite3_clear_bindings(statement);
	return rc;
}

/* Ids only grow, so what is too old is below one number. */
static int trim(struct history *history, enum statement which, int64_t kept, struct error *err)
{
	int64_t newest = sqlite3_last_insert_rowid(history->db);

	if (newest <= kept)
		return 0;
	sqlite3_bind_int64(history->statements[which], 1, newest - kept);
	return run_statement(history, which, err);
}

int history_attempt_begin(
	struct history *history, struct history_attempt *attempt, struct error *err)
{
	sqlite3_stmt *statement = history->statements[ATTEMPT_BEGIN];
	int rc;

	bind_text(statement, 1, attempt->role);
	sqlite3_bind_int64(statement, 2, attempt->pid);
	sqlite3_bind_int64(statement, 3, attempt->begun_wall_ns);
	bind_number(statement, 4, attempt->rung);
	bind_number(statement, 5, attempt->step_begun);
	bind_text(statement, 6, attempt->from);
	rc = run_statement(history, ATTEMPT_BEGIN, err);
	if (rc < 0)
		return rc;
	attempt->id = sqlite3_last_insert_rowid(history->db);
	return trim(history, ATTEMPT_TRIM, ATTEMPTS_KEPT, err);
}

int history_attempt_end(
	struct history *history, const struct history_attempt *attempt, struct error *err)
{
	sqlite3_stmt *statement = history->statements[ATTEMPT_END];

	sqlite3_bind_int64(statement, 1, attempt->id);
	sqlite3_bind_int64(statement, 2, attempt->ended_wall_ns);
	bind_number(statement, 3, attempt->step_ended);
	bind_text(statement, 4, attempt->cause);
	bind_text(statement, 5, attempt->phase);
	bind_text(statement, 6, attempt->sentence);
	bind_text(statement, 7, attempt->stderr_tail);
	bind_number(statement, 8, attempt->planned);
	return run_statement(history, ATTEMPT_END, err);
}

int history_event(struct history *history, nsec_t wall_ns, const char *kind, const char *level,
	uint64_t step, const char *text, struct error *err)
{
	sqlite3_stmt *statement = history->statements[EVENT_ADD];
	int rc;

	sqlite3_bind_int64(statement, 1, wall_ns);
	bind_text(statement, 2, kind);
	bind_text(statement, 3, level);
	bind_number(statement, 4, step);
	bind_text(statement, 5, text);
	rc = run_statement(history, EVENT_ADD, err);
	return rc < 0 ? rc : trim(history, EVENT_TRIM, EVENTS_KEPT, err);
}

static int put_metric(struct history *history, const struct metric *metric, struct error *err)
{
	sqlite3_stmt *statement = history->statements[METRIC_PUT];

	bind_number(statement, 1, metric->step);
	bind_number(statement, 2, metric->kind);
	bind_number(statement, 3, metric->branch);
	/* NaN becomes NULL. */
	sqlite3_bind_double(statement, 4, (double)metric->loss);
	for (int i = 0; i < 4; i++)
		sqlite3_bind_double(statement, 5 + i, (double)metric->loss_quartile[i]);
	sqlite3_bind_double(statement, 9, (double)metric->grad_norm);
	sqlite3_bind_double(statement, 10, (double)metric->learning_rate);
	sqlite3_bind_double(statement, 11, (double)metric->step_ms);
	bind_number(statement, 12, metric->images);
	bind_number(statement, 13, metric->skipped);
	return run_statement(history, METRIC_PUT, err);
}

static int query_number(
	struct history *history, enum statement which, int64_t *ret, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	int rc = sqlite3_step(statement) == SQLITE_ROW ? 0 : fail(history, err, "read");

	if (rc == 0)
		*ret = sqlite3_column_int64(statement, 0);
	sqlite3_reset(statement);
	return rc;
}

/* One window a call, from the oldest step up to METRICS_FULL_STEPS behind the newest. */
static int thin(struct history *history, struct error *err)
{
	sqlite3_stmt *statement = history->statements[METRIC_THIN];
	uint64_t end = history->thinned_to + THIN_WINDOW_STEPS;
	int64_t newest = 0;
	int rc = query_number(history, METRIC_NEWEST, &newest, err);

	if (rc < 0 || newest < METRICS_FULL_STEPS)
		return rc;
	if (end > (uint64_t)newest - METRICS_FULL_STEPS)
		end = (uint64_t)newest - METRICS_FULL_STEPS;
	if (end <= history->thinned_to)
		return 0;
	bind_number(statement, 1, history->thinned_to);
	bind_number(statement, 2, end);
	bind_number(statement, 3, METRICS_THINNED_TO);
	rc = run_statement(history, METRIC_THIN, err);
	if (rc == 0)
		history->thinned_to = end;
	return rc;
}

static int put_metrics(
	struct history *history, const struct metric *metrics, uint32_t count, struct error *err)
{
	for (uint32_t i = 0; i < count; i++) {
		int rc = put_metric(history, &metrics[i], err);

		if (rc < 0)
			return rc;
		/* A replay from far behind: what it writes again must be thinned again. */
		if (metrics[i].step < history->thinned_to)
			history->thinned_to = metrics[i].step;
	}
	return thin(history, err);
}

int history_metrics(
	struct history *history, const struct metric *metrics, uint32_t count, struct error *err)
{
	int rc = run_statement(history, BEGIN, err);

	if (rc < 0)
		return rc;
	rc = put_metrics(history, metrics, count, err);
	if (rc == 0)
		rc = run_statement(history, COMMIT, err);
	if (rc < 0 && !sqlite3_get_autocommit(history->db))
		run_statement(history, ROLLBACK, NULL);
	return rc;
}

/* -- answers -- */

static json_t *column_text(sqlite3_stmt *statement, int column)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);
	json_t *json = json_string(text != NULL ? text : "");

	/* A worker's last words may be any bytes. */
	return json != NULL ? json : json_string("(not UTF-8)");
}

static json_t *column_number(sqlite3_stmt *statement, int column)
{
	return json_integer(sqlite3_column_int64(statement, column));
}

static json_t *column_real(sqlite3_stmt *statement, int column)
{
	return sqlite3_column_type(statement, column) == SQLITE_NULL
		? json_null()
		: json_finite(sqlite3_column_double(statement, column));
}

static json_t *column_time(sqlite3_stmt *statement, int column)
{
	char text[CLOCK_TEXT_SIZE];

	clock_format_utc(sqlite3_column_int64(statement, column), text);
	return json_string(text);
}

static json_t *event_json(sqlite3_stmt *row)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "id", column_number(row, 0), "time",
		column_time(row, 1), "kind", column_text(row, 2), "level", column_text(row, 3),
		"step", column_number(row, 4), "text", column_text(row, 5));
}

static json_t *metric_json(sqlite3_stmt *row)
{
	const char *kind = sqlite3_column_int64(row, 1) == METRIC_HOLDOUT ? "holdout" : "train";

	return json_pack("{s:o, s:s, s:o, s:o, s:[o,o,o,o], s:o, s:o, s:o, s:b}", "step",
		column_number(row, 0), "kind", kind, "branch", column_number(row, 2), "loss",
		column_real(row, 3), "loss_quartile", column_real(row, 4), column_real(row, 5),
		column_real(row, 6), column_real(row, 7), "grad_norm", column_real(row, 8),
		"learning_rate", column_real(row, 9), "step_ms", column_real(row, 10), "skipped",
		(int)(sqlite3_column_int64(row, 11) != 0));
}

static json_t *death_json(sqlite3_stmt *row)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "time", column_time(row, 0), "role",
		column_text(row, 1), "cause", column_text(row, 2), "phase", column_text(row, 3),
		"step", column_number(row, 4), "sentence", column_text(row, 5), "stderr_tail",
		column_text(row, 6));
}

/* All rows of a bound statement as an array; the statement is reset. */
static int rows_json(struct history *history, enum statement which,
	json_t *(*row_json)(sqlite3_stmt *row), json_t **ret, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	json_t *rows = json_array();
	int rc = rows != NULL ? 0 : -ENOMEM, step;

	while (rc == 0 && (step = sqlite3_step(statement)) != SQLITE_DONE) {
		if (step != SQLITE_ROW)
			rc = fail(history, err, "read");
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
	return rows_json(history, EVENT_LIST, event_json, ret, err);
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

int history_metrics_json(struct history *history, uint64_t after_step, const char *kind,
	uint32_t limit, json_t **ret, struct error *err)
{
	sqlite3_stmt *count_rows = history->statements[METRIC_COUNT];
	sqlite3_stmt *list = history->statements[METRIC_LIST];
	int64_t count = 0;
	int number;
	int rc = kind_number(kind, &number, err);

	if (rc < 0)
		return rc;
	if (limit == 0)
		limit = 1;
	bind_number(count_rows, 1, after_step);
	sqlite3_bind_int(count_rows, 2, number);
	rc = query_number(history, METRIC_COUNT, &count, err);
	if (rc < 0)
		return rc;
	bind_number(list, 1, after_step);
	sqlite3_bind_int(list, 2, number);
	sqlite3_bind_int64(list, 3, count <= limit ? 1 : (count + limit - 1) / limit);
	return rows_json(history, METRIC_LIST, metric_json, ret, err);
}

/* The only row, or null. */
static int row_json(struct history *history, enum statement statement,
	json_t *(*make)(sqlite3_stmt *statement), json_t **ret, struct error *err)
{
	AUTO_JSON rows = NULL;
	int rc = rows_json(history, statement, make, &rows, err);

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
