/* The door of SQLite for the history: attempts, events, metrics. One connection, used by the
 * supervisor's database thread alone. Losing it loses no training, so a file that cannot be used is
 * set aside and a new one begun; it is bounded: old events, attempts and metrics give way a little
 * with each write, never in one long pause. */
#include "store/history_private.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/database.h"

#include <errno.h>
#include <fcntl.h>
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
	"CREATE TABLE life("
	" id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, begun_ns INTEGER NOT NULL,"
	" seen_ns INTEGER NOT NULL, step INTEGER NOT NULL, ended INTEGER NOT NULL) STRICT;"
	"CREATE TABLE outage("
	" id INTEGER PRIMARY KEY, begun_ns INTEGER NOT NULL, resumed_ns INTEGER, ended_ns INTEGER,"
	" cause TEXT NOT NULL, detected TEXT NOT NULL, sentence TEXT NOT NULL,"
	" planned INTEGER NOT NULL, step INTEGER NOT NULL, steps_redone INTEGER NOT NULL,"
	" restarts INTEGER NOT NULL, memory_lost INTEGER NOT NULL) STRICT;",
};
#define HISTORY_VERSION ((int)(sizeof(migrations) / sizeof(migrations[0])))

/* Of each (step, kind) the row of the greatest branch: bare columns follow max() in SQLite. What an
 * older branch did beyond the step that the current one is at was left behind. */
#define METRIC_NEWEST_BRANCH                                                                       \
	"SELECT step, kind, max(branch) AS branch, loss, quartile_1, quartile_2, quartile_3,"      \
	" quartile_4, grad_norm, learning_rate, step_ms, skipped FROM metric"                      \
	" WHERE step > ?1 AND (?2 = 0 OR kind = ?2) AND (branch >= ?3 OR step <= ?4)"              \
	" GROUP BY step, kind"

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
			" AS place FROM (" METRIC_NEWEST_BRANCH ")) WHERE place % ?5 = 0"
			" ORDER BY step, kind",
	[LAST_EVENT] = "SELECT id, wall_ns, kind, level, step, text FROM event WHERE kind = ?1"
		       " ORDER BY id DESC LIMIT 1",
	[LAST_DEATH] = "SELECT ended_ns, role, cause, phase, step_ended, sentence, stderr_tail"
		       " FROM attempt WHERE ended_ns IS NOT NULL AND planned = 0"
		       " ORDER BY id DESC LIMIT 1",
	[LIFE_BEGIN] = "INSERT INTO life(boot_id, begun_ns, seen_ns, step, ended)"
		       " VALUES(?1, ?2, ?3, ?4, 0)",
	[LIFE_LAST] = "SELECT boot_id, begun_ns, seen_ns, step, ended FROM life"
		      " ORDER BY id DESC LIMIT 1",
	[LIFE_SEEN] = "UPDATE life SET seen_ns = ?1, step = ?2, ended = ?3"
		      " WHERE id = (SELECT max(id) FROM life)",
	/* The first one says since when. */
	[LIFE_TRIM] = "DELETE FROM life WHERE id > 1 AND id <= ?1",
	[OUTAGE_BEGIN] = "INSERT INTO outage(begun_ns, cause, detected, sentence, planned, step,"
			 " steps_redone, restarts, memory_lost) VALUES(?1,?2,?3,?4,?5,?6,0,0,0)",
	[OUTAGE_SET] = "UPDATE outage SET resumed_ns = ?2, ended_ns = ?3, steps_redone = ?4,"
		       " restarts = ?5, memory_lost = ?6 WHERE id = ?1",
	[OUTAGE_TRIM] = "DELETE FROM outage WHERE id <= ?1",
	[OUTAGE_OPEN] = "SELECT id, begun_ns, cause, detected, sentence, planned, step, restarts,"
			" memory_lost, steps_redone, resumed_ns FROM outage WHERE ended_ns IS NULL "
			"ORDER BY id DESC LIMIT 1",
	[OUTAGE_LIST] = "SELECT * FROM (SELECT id, begun_ns, ended_ns, cause, detected, sentence,"
			" planned, step, steps_redone, restarts, memory_lost, resumed_ns"
			" FROM outage ORDER BY id DESC LIMIT ?1) ORDER BY id",
	/* Wall clocks jump: no time is negative. A finished run is no outage, and no time of it
	 * counts.
	 */
	[OUTAGE_TOTALS] =
		"WITH o AS (SELECT max(0, coalesce(ended_ns, ?1) - begun_ns) AS lost,"
		" max(0, coalesce(resumed_ns, ?1) - begun_ns) AS down,"
		" planned, steps_redone, memory_lost, cause = 'finished' AS finished FROM outage)"
		" SELECT (SELECT min(begun_ns) FROM life), count(*) FILTER (WHERE NOT planned),"
		" count(*) FILTER (WHERE memory_lost AND NOT planned),"
		" coalesce(sum(lost) FILTER (WHERE NOT planned), 0),"
		" coalesce(sum(lost) FILTER (WHERE planned AND NOT finished), 0),"
		" coalesce(sum(down) FILTER (WHERE NOT finished), 0),"
		" coalesce(sum(steps_redone), 0),"
		" coalesce(sum(lost) FILTER (WHERE finished), 0) FROM o",
};

int history_fail(struct history *history, struct error *err, const char *doing)
{
	int code = sqlite3_extended_errcode(history->db);
	int rc = (code & 0xff) == SQLITE_FULL  ? -ENOSPC
		: (code & 0xff) == SQLITE_BUSY ? -EBUSY
					       : -EIO;

	history->broken = history->broken || (rc == -EIO && (code & 0xff) != SQLITE_NOMEM);
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
		return history_fail(history, err, "open it");
	return -EBADMSG;
}

static int open_file(const char *run_dir, int run_fd, struct history **ret, struct error *err)
{
	char path[PATH_SIZE];
	struct history *history;
	struct stat stat;
	int fd, rc;

	if (snprintf(path, sizeof(path), "%s/%s", run_dir, HISTORY_NAME) >= (int)sizeof(path))
		return error_set(err, -ENAMETOOLONG, "the run's path is too long");
	/* Created here for its mode; SQLite gives its companions the same one. */
	fd = sys_openat(run_fd, HISTORY_NAME, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
	if (fd == -ELOOP || fd == -EISDIR)
		return -EBADMSG;
	if (fd < 0)
		return error_set(err, fd, "history: cannot open it: %s", strerror(-fd));
	rc = sys_fstat(fd, &stat);
	sys_close(fd);
	if (rc < 0)
		return error_set(err, rc, "history: cannot open it: %s", strerror(-rc));
	history = calloc(1, sizeof(*history));
	if (history == NULL)
		return error_set(err, -ENOMEM, "no memory for the history");
	history->inode = stat.st_ino;
	if (sqlite3_open_v2(path, &history->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
		    database_vfs()) == SQLITE_OK)
		rc = use(history, err);
	else
		rc = history->db != NULL ? history_fail(history, err, "open it") : -ENOMEM;
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

bool history_is_broken(const struct history *history)
{
	return history->broken;
}

bool history_is_gone(const struct history *history, int run_fd)
{
	struct stat stat;
	int rc = sys_fstatat(run_fd, HISTORY_NAME, &stat);

	return rc == -ENOENT || (rc == 0 && stat.st_ino != history->inode);
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

void history_bind_text(sqlite3_stmt *statement, int index, const char *text)
{
	sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

void history_bind_number(sqlite3_stmt *statement, int index, uint64_t number)
{
	sqlite3_bind_int64(statement, index, (sqlite3_int64)number);
}

int history_run(struct history *history, enum statement which, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	int rc = sqlite3_step(statement) == SQLITE_DONE ? 0 : history_fail(history, err, "write");

	sqlite3_reset(statement);
	sqlite3_clear_bindings(statement);
	return rc;
}

int history_trim(struct history *history, enum statement which, int64_t kept, struct error *err)
{
	int64_t newest = sqlite3_last_insert_rowid(history->db);

	if (newest <= kept)
		return 0;
	sqlite3_bind_int64(history->statements[which], 1, newest - kept);
	return history_run(history, which, err);
}

int history_attempt_begin(
	struct history *history, struct history_attempt *attempt, struct error *err)
{
	sqlite3_stmt *statement = history->statements[ATTEMPT_BEGIN];
	int rc;

	history_bind_text(statement, 1, attempt->role);
	sqlite3_bind_int64(statement, 2, attempt->pid);
	sqlite3_bind_int64(statement, 3, attempt->begun_wall_ns);
	history_bind_number(statement, 4, attempt->rung);
	history_bind_number(statement, 5, attempt->step_begun);
	history_bind_text(statement, 6, attempt->from);
	rc = history_run(history, ATTEMPT_BEGIN, err);
	if (rc < 0)
		return rc;
	attempt->id = sqlite3_last_insert_rowid(history->db);
	return history_trim(history, ATTEMPT_TRIM, ATTEMPTS_KEPT, err);
}

int history_attempt_end(
	struct history *history, const struct history_attempt *attempt, struct error *err)
{
	sqlite3_stmt *statement = history->statements[ATTEMPT_END];

	sqlite3_bind_int64(statement, 1, attempt->id);
	sqlite3_bind_int64(statement, 2, attempt->ended_wall_ns);
	history_bind_number(statement, 3, attempt->step_ended);
	history_bind_text(statement, 4, attempt->cause);
	history_bind_text(statement, 5, attempt->phase);
	history_bind_text(statement, 6, attempt->sentence);
	history_bind_text(statement, 7, attempt->stderr_tail);
	history_bind_number(statement, 8, attempt->planned);
	return history_run(history, ATTEMPT_END, err);
}

int history_event(struct history *history, nsec_t wall_ns, const char *kind, const char *level,
	uint64_t step, const char *text, struct error *err)
{
	sqlite3_stmt *statement = history->statements[EVENT_ADD];
	int rc;

	sqlite3_bind_int64(statement, 1, wall_ns);
	history_bind_text(statement, 2, kind);
	history_bind_text(statement, 3, level);
	history_bind_number(statement, 4, step);
	history_bind_text(statement, 5, text);
	rc = history_run(history, EVENT_ADD, err);
	return rc < 0 ? rc : history_trim(history, EVENT_TRIM, EVENTS_KEPT, err);
}

static int put_metric(struct history *history, const struct metric *metric, struct error *err)
{
	sqlite3_stmt *statement = history->statements[METRIC_PUT];

	history_bind_number(statement, 1, metric->step);
	history_bind_number(statement, 2, metric->kind);
	history_bind_number(statement, 3, metric->branch);
	/* NaN becomes NULL. */
	sqlite3_bind_double(statement, 4, (double)metric->loss);
	for (int i = 0; i < 4; i++)
		sqlite3_bind_double(statement, 5 + i, (double)metric->loss_quartile[i]);
	sqlite3_bind_double(statement, 9, (double)metric->grad_norm);
	sqlite3_bind_double(statement, 10, (double)metric->learning_rate);
	sqlite3_bind_double(statement, 11, (double)metric->step_ms);
	history_bind_number(statement, 12, metric->images);
	history_bind_number(statement, 13, metric->skipped);
	return history_run(history, METRIC_PUT, err);
}

int history_number(struct history *history, enum statement which, int64_t *ret, struct error *err)
{
	sqlite3_stmt *statement = history->statements[which];
	int rc = sqlite3_step(statement) == SQLITE_ROW ? 0 : history_fail(history, err, "read");

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
	int rc = history_number(history, METRIC_NEWEST, &newest, err);

	if (rc < 0 || newest < METRICS_FULL_STEPS)
		return rc;
	if (end > (uint64_t)newest - METRICS_FULL_STEPS)
		end = (uint64_t)newest - METRICS_FULL_STEPS;
	if (end <= history->thinned_to)
		return 0;
	history_bind_number(statement, 1, history->thinned_to);
	history_bind_number(statement, 2, end);
	history_bind_number(statement, 3, METRICS_THINNED_TO);
	rc = history_run(history, METRIC_THIN, err);
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
	int rc = history_run(history, BEGIN, err);

	if (rc < 0)
		return rc;
	rc = put_metrics(history, metrics, count, err);
	if (rc == 0)
		rc = history_run(history, COMMIT, err);
	if (rc < 0 && !sqlite3_get_autocommit(history->db))
		history_run(history, ROLLBACK, NULL);
	return rc;
}
