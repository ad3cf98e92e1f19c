/* The door of SQLite for the catalog. An index only: whatever is wrong with it, recovery builds a
 * new one from the files, so nothing here repairs. Statements are prepared once, at open, which is
 * also the check of the schema. Later opens never create a database.
 *
 * Invariant: a row is believed only when its digest matches its columns. */
#include "store/catalog.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CATALOG_NAME "catalog.sqlite"
#define CATALOG_NEW "catalog.new"
#define CATALOG_VERSION 1
#define BUSY_MS 5000
#define BROKEN_MAX 99
#define PATH_SIZE 4096

static const char schema[] =
	"CREATE TABLE checkpoint("
	" id TEXT PRIMARY KEY NOT NULL, step INTEGER NOT NULL, branch INTEGER NOT NULL,"
	" state TEXT NOT NULL, root TEXT NOT NULL, parent_root TEXT NOT NULL,"
	" file_bytes INTEGER NOT NULL, loss REAL, trained_seconds INTEGER NOT NULL,"
	" keep INTEGER NOT NULL, created TEXT NOT NULL, readback TEXT NOT NULL,"
	" text TEXT NOT NULL, row_digest TEXT NOT NULL) STRICT;"
	"CREATE INDEX checkpoint_by_step ON checkpoint(step, branch);"
	"PRAGMA application_id = 1668985972;" /* "ckpt" */
	"PRAGMA user_version = 1;";

#define COLUMNS                                                                                    \
	"id, step, branch, state, root, parent_root, file_bytes, loss, trained_seconds, keep,"     \
	" created, readback, text, row_digest"

enum statement { PUT, GET, LIST, BEGIN, COMMIT, ROLLBACK, STATEMENT_COUNT };

static const char *const statement_sql[STATEMENT_COUNT] = {
	[PUT] = "INSERT OR REPLACE INTO checkpoint(" COLUMNS
		") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
	[GET] = "SELECT " COLUMNS " FROM checkpoint WHERE id = ?1",
	[LIST] = "SELECT " COLUMNS " FROM checkpoint ORDER BY step DESC, branch DESC",
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
};

struct catalog {
	sqlite3 *db;
	sqlite3_stmt *statements[STATEMENT_COUNT];
};

/* -- errors -- */

/* What recovery must know: broken (-EBADMSG) or only out of reach now. */
static int code_of(int sqlite_code)
{
	switch (sqlite_code & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return 0;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_SCHEMA:
	case SQLITE_ERROR:
	case SQLITE_MISMATCH:
	case SQLITE_CONSTRAINT:
		return -EBADMSG;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_READONLY:
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return -EACCES;
	default:
		return -EIO;
	}
}

static int fail(struct catalog *catalog, struct error *err, const char *doing)
{
	int code = sqlite3_extended_errcode(catalog->db);
	int rc = code_of(code);

	if (rc == -EIO && sqlite3_system_errno(catalog->db) == EDQUOT)
		rc = -EDQUOT;
	return error_set(err, rc != 0 ? rc : -EIO, "catalog: cannot %s: %s (%d)", doing,
		sqlite3_errmsg(catalog->db), code);
}

/* -- open -- */

static int pragma_number(struct catalog *catalog, const char *sql, int64_t *ret)
{
	sqlite3_stmt *statement = NULL;
	int rc = sqlite3_prepare_v2(catalog->db, sql, -1, &statement, NULL);

	if (rc == SQLITE_OK)
		rc = sqlite3_step(statement);
	if (rc == SQLITE_ROW)
		*ret = sqlite3_column_int64(statement, 0);
	sqlite3_finalize(statement);
	return rc == SQLITE_ROW ? 0 : -1;
}

static int quick_check(struct catalog *catalog, struct error *err)
{
	sqlite3_stmt *statement = NULL;
	const char *text = NULL;
	int rc;

	if (sqlite3_prepare_v2(catalog->db, "PRAGMA quick_check(1)", -1, &statement, NULL) !=
		SQLITE_OK) {
		sqlite3_finalize(statement);
		return fail(catalog, err, "check it");
	}
	rc = sqlite3_step(statement);
	if (rc == SQLITE_ROW)
		text = (const char *)sqlite3_column_text(statement, 0);
	if (text != NULL && strcmp(text, "ok") == 0)
		rc = 0;
	else if (text != NULL)
		rc = error_set(err, -EBADMSG, "catalog: it is damaged: %.200s", text);
	else
		rc = fail(catalog, err, "check it");
	sqlite3_finalize(statement);
	return rc;
}

static int check_version(struct catalog *catalog, struct error *err)
{
	int64_t version = 0;

	if (pragma_number(catalog, "PRAGMA user_version", &version) < 0)
		return fail(catalog, err, "read its version");
	if (version > CATALOG_VERSION)
		return error_set(err, -EPROTONOSUPPORT, "catalog: version %lld is newer than %d",
			(long long)version, CATALOG_VERSION);
	if (version != CATALOG_VERSION)
		return error_set(err, -EBADMSG, "catalog: it has no schema of ours");
	return 0;
}

static int prepare_statements(struct catalog *catalog, struct error *err)
{
	for (int i = 0; i < STATEMENT_COUNT; i++) {
		if (sqlite3_prepare_v3(catalog->db, statement_sql[i], -1, SQLITE_PREPARE_PERSISTENT,
			    &catalog->statements[i], NULL) != SQLITE_OK)
			return fail(catalog, err, "use its schema");
	}
	return 0;
}

static int configure(struct catalog *catalog, const char *pragmas, struct error *err)
{
	sqlite3_extended_result_codes(catalog->db, 1);
	sqlite3_busy_timeout(catalog->db, BUSY_MS);
	sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	if (sqlite3_exec(catalog->db, pragmas, NULL, NULL, NULL) != SQLITE_OK)
		return fail(catalog, err, "open it");
	return 0;
}

static int open_database(
	const char *run_dir, const char *name, int flags, struct catalog **ret, struct error *err)
{
	char path[PATH_SIZE];
	int rc;

	if (snprintf(path, sizeof(path), "%s/%s", run_dir, name) >= (int)sizeof(path))
		return error_set(err, -ENAMETOOLONG, "the run's path is too long");
	*ret = calloc(1, sizeof(**ret));
	if (*ret == NULL)
		return error_set(err, -ENOMEM, "no memory for the catalog");
	rc = sqlite3_open_v2(path, &(*ret)->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
	if (rc == SQLITE_OK)
		return 0;
	rc = (*ret)->db != NULL ? fail(*ret, err, "open it") : -ENOMEM;
	catalog_close(*ret);
	*ret = NULL;
	return rc;
}

static int check_exists(const char *run_dir, struct error *err)
{
	char path[PATH_SIZE];
	struct stat stat;
	int rc;

	snprintf(path, sizeof(path), "%s/%s", run_dir, CATALOG_NAME);
	rc = sys_fstatat(AT_FDCWD, path, &stat);
	if (rc < 0)
		return error_set(err, rc, "catalog: %s", strerror(-rc));
	if (!S_ISREG(stat.st_mode))
		return error_set(err, -EBADMSG, "catalog: it is not a regular file");
	return 0;
}

int catalog_open(
	const char *run_dir, enum catalog_mode mode, struct catalog **ret, struct error *err)
{
	struct catalog *catalog;
	int rc;

	*ret = NULL;
	rc = check_exists(run_dir, err);
	if (rc == 0)
		rc = open_database(run_dir, CATALOG_NAME, SQLITE_OPEN_READWRITE, &catalog, err);
	if (rc < 0)
		return rc;
	rc = configure(catalog,
		mode == CATALOG_READ ? "PRAGMA query_only=ON; PRAGMA mmap_size=0"
				     : "PRAGMA synchronous=FULL; PRAGMA mmap_size=0;"
				       "PRAGMA cell_size_check=ON",
		err);
	if (rc == 0)
		rc = check_version(catalog, err);
	if (rc == 0)
		rc = quick_check(catalog, err);
	if (rc == 0)
		rc = prepare_statements(catalog, err);
	if (rc < 0) {
		catalog_close(catalog);
		return rc;
	}
	*ret = catalog;
	return 0;
}

void catalog_close(struct catalog *catalog)
{
	if (catalog == NULL)
		return;
	for (int i = 0; i < STATEMENT_COUNT; i++)
		sqlite3_finalize(catalog->statements[i]);
	CHECK(sqlite3_close(catalog->db) == SQLITE_OK);
	free(catalog);
}

/* -- rows -- */

static void add_text(struct digest_stream *stream, const char *text)
{
	uint64_t length = strlen(text);

	digest_add(stream, &length, sizeof(length));
	digest_add(stream, text, length);
}

static void add_number(struct digest_stream *stream, uint64_t number)
{
	digest_add(stream, &number, sizeof(number));
}

static void row_digest(const struct catalog_row *row, char hex[DIGEST_HEX_SIZE])
{
	struct digest_stream stream;
	struct digest digest;
	uint64_t loss_bits = 0;

	/* SQLite keeps no NaN: all unknown losses are one. */
	if (!isnan(row->loss))
		memcpy(&loss_bits, &row->loss, sizeof(loss_bits));
	digest_begin(&stream);
	add_text(&stream, row->id);
	add_number(&stream, row->step);
	add_number(&stream, row->branch);
	add_text(&stream, checkpoint_state_name(row->state));
	digest_add(&stream, &row->root, sizeof(row->root));
	digest_add(&stream, &row->parent_root, sizeof(row->parent_root));
	add_number(&stream, row->file_bytes);
	add_number(&stream, isnan(row->loss));
	add_number(&stream, loss_bits);
	add_number(&stream, row->trained_seconds);
	add_number(&stream, row->keep);
	add_text(&stream, row->created);
	add_text(&stream, row->readback);
	add_text(&stream, row->text);
	digest = digest_end(&stream);
	digest_to_hex(&digest, hex);
}

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
	sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

static void bind_number(sqlite3_stmt *statement, int index, uint64_t number)
{
	sqlite3_bind_int64(statement, index, (sqlite3_int64)number);
}

static void bind_row(sqlite3_stmt *statement, const struct catalog_row *row)
{
	char root[DIGEST_HEX_SIZE], parent[DIGEST_HEX_SIZE], digest[DIGEST_HEX_SIZE];

	digest_to_hex(&row->root, root);
	digest_to_hex(&row->parent_root, parent);
	row_digest(row, digest);
	bind_text(statement, 1, row->id);
	bind_number(statement, 2, row->step);
	bind_number(statement, 3, row->branch);
	bind_text(statement, 4, checkpoint_state_name(row->state));
	bind_text(statement, 5, root);
	bind_text(statement, 6, parent);
	bind_number(statement, 7, row->file_bytes);
	sqlite3_bind_double(statement, 8, row->loss); /* NaN becomes NULL */
	bind_number(statement, 9, row->trained_seconds);
	bind_number(statement, 10, row->keep);
	bind_text(statement, 11, row->created);
	bind_text(statement, 12, row->readback);
	bind_text(statement, 13, row->text);
	bind_text(statement, 14, digest);
}

static int copy_text(sqlite3_stmt *statement, int column, char *ret, size_t size)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);

	if (text == NULL || strlen(text) >= size)
		return -EBADMSG;
	memcpy(ret, text, strlen(text) + 1);
	return 0;
}

static int copy_digest(sqlite3_stmt *statement, int column, struct digest *ret)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);

	return text != NULL ? digest_from_hex(text, strlen(text), ret) : -EBADMSG;
}

/* -EBADMSG when the row is not what was written. */
static int read_row(sqlite3_stmt *statement, struct catalog_row *ret)
{
	char state[16], said[DIGEST_HEX_SIZE], computed[DIGEST_HEX_SIZE];

	memset(ret, 0, sizeof(*ret));
	if (copy_text(statement, 0, ret->id, sizeof(ret->id)) < 0 ||
		copy_text(statement, 3, state, sizeof(state)) < 0 ||
		checkpoint_state_parse(state, &ret->state) < 0 ||
		copy_digest(statement, 4, &ret->root) < 0 ||
		copy_digest(statement, 5, &ret->parent_root) < 0 ||
		copy_text(statement, 10, ret->created, sizeof(ret->created)) < 0 ||
		copy_text(statement, 11, ret->readback, sizeof(ret->readback)) < 0 ||
		copy_text(statement, 12, ret->text, sizeof(ret->text)) < 0 ||
		copy_text(statement, 13, said, sizeof(said)) < 0)
		return -EBADMSG;
	ret->step = (uint64_t)sqlite3_column_int64(statement, 1);
	ret->branch = (uint32_t)sqlite3_column_int64(statement, 2);
	ret->file_bytes = (uint64_t)sqlite3_column_int64(statement, 6);
	ret->loss = sqlite3_column_type(statement, 7) == SQLITE_NULL
		? (double)NAN
		: sqlite3_column_double(statement, 7);
	ret->trained_seconds = (uint64_t)sqlite3_column_int64(statement, 8);
	ret->keep = sqlite3_column_int64(statement, 9) != 0;
	row_digest(ret, computed);
	return strcmp(said, computed) == 0 ? 0 : -EBADMSG;
}

static int run_statement(
	struct catalog *catalog, enum statement statement, struct error *err, const char *doing)
{
	int rc = sqlite3_step(catalog->statements[statement]) == SQLITE_DONE
		? 0
		: fail(catalog, err, doing);

	sqlite3_reset(catalog->statements[statement]);
	sqlite3_clear_bindings(catalog->statements[statement]);
	return rc;
}

int catalog_put(struct catalog *catalog, const struct catalog_row *row, struct error *err)
{
	bind_row(catalog->statements[PUT], row);
	return run_statement(catalog, PUT, err, "write a row");
}

int catalog_get(struct catalog *catalog, const char *id, struct catalog_row *ret, struct error *err)
{
	sqlite3_stmt *statement = catalog->statements[GET];
	int rc;

	bind_text(statement, 1, id);
	rc = sqlite3_step(statement);
	if (rc == SQLITE_ROW)
		rc = read_row(statement, ret) == 0
			? 0
			: error_set(err, -EBADMSG, "catalog: the row of %s is damaged", id);
	else if (rc == SQLITE_DONE)
		rc = error_set(err, -ENOENT, "there is no checkpoint %s in the catalog", id);
	else
		rc = fail(catalog, err, "read a row");
	sqlite3_reset(statement);
	return rc;
}

/* Read, change, write in one transaction: the digest covers all columns. */
int catalog_set_state(struct catalog *catalog, const char *id, enum checkpoint_state state,
	const char *text, struct error *err)
{
	struct catalog_row row;
	int rc = catalog_begin(catalog, err);

	if (rc < 0)
		return rc;
	rc = catalog_get(catalog, id, &row, err);
	if (rc == 0) {
		row.state = state;
		snprintf(row.text, sizeof(row.text), "%s", text != NULL ? text : "");
		rc = catalog_put(catalog, &row, err);
	}
	return catalog_end(catalog, rc, err);
}

int catalog_begin(struct catalog *catalog, struct error *err)
{
	return run_statement(catalog, BEGIN, err, "begin a transaction");
}

int catalog_end(struct catalog *catalog, int rc, struct error *err)
{
	if (rc == 0)
		rc = run_statement(catalog, COMMIT, err, "commit");
	if (rc < 0 && !sqlite3_get_autocommit(catalog->db))
		run_statement(catalog, ROLLBACK, NULL, "roll back");
	return rc;
}

static int append_row(struct catalog_row **rows, uint32_t *count, uint32_t *capacity,
	const struct catalog_row *row)
{
	if (*count == *capacity) {
		uint32_t grown = *capacity == 0 ? 64 : *capacity * 2;
		struct catalog_row *bigger = realloc(*rows, grown * sizeof(**rows));

		if (bigger == NULL)
			return -ENOMEM;
		*rows = bigger;
		*capacity = grown;
	}
	(*rows)[(*count)++] = *row;
	return 0;
}

int catalog_list(struct catalog *catalog, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err)
{
	sqlite3_stmt *statement = catalog->statements[LIST];
	uint32_t capacity = 0;
	int rc = 0, step;

	*ret = NULL;
	*ret_count = 0;
	*ret_bad = 0;
	while (rc == 0 && (step = sqlite3_step(statement)) != SQLITE_DONE) {
		struct catalog_row row;

		if (step != SQLITE_ROW)
			rc = fail(catalog, err, "list its rows");
		else if (read_row(statement, &row) < 0)
			(*ret_bad)++;
		else if (append_row(ret, ret_count, &capacity, &row) < 0)
			rc = error_set(err, -ENOMEM, "no memory for the catalog's rows");
	}
	sqlite3_reset(statement);
	if (rc < 0) {
		free(*ret);
		*ret = NULL;
		*ret_count = 0;
	}
	return rc;
}

int catalog_prune(struct catalog *catalog, uint32_t keep, struct error *err)
{
	char sql[256];

	snprintf(sql, sizeof(sql),
		"DELETE FROM checkpoint WHERE state IN ('deleted', 'missing') AND id NOT IN ("
		"SELECT id FROM checkpoint WHERE state IN ('deleted', 'missing')"
		" ORDER BY step DESC, branch DESC LIMIT %u)",
		keep);
	if (sqlite3_exec(catalog->db, sql, NULL, NULL, NULL) != SQLITE_OK)
		return fail(catalog, err, "forget old rows");
	return 0;
}

/* -- replace -- */

static int unlink_if_there(int run_fd, const char *name)
{
	int rc = sys_unlinkat(run_fd, name);

	return rc == -ENOENT ? 0 : rc;
}

static int unlink_with_companions(int run_fd, const char *name, bool itself)
{
	static const char *const suffixes[] = {"", "-wal", "-shm", "-journal"};
	char full[64];
	int rc = 0;

	for (size_t i = itself ? 0 : 1; rc == 0 && i < sizeof(suffixes) / sizeof(suffixes[0]);
		i++) {
		snprintf(full, sizeof(full), "%s%s", name, suffixes[i]);
		rc = unlink_if_there(run_fd, full);
	}
	return rc;
}

static int fill_new(struct catalog *catalog,
	int (*fill)(struct catalog *catalog, void *context, struct error *err), void *context,
	struct error *err)
{
	int rc = configure(catalog, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", err);

	if (rc == 0 && sqlite3_exec(catalog->db, schema, NULL, NULL, NULL) != SQLITE_OK)
		rc = fail(catalog, err, "create its schema");
	if (rc == 0)
		rc = prepare_statements(catalog, err);
	if (rc == 0)
		rc = catalog_begin(catalog, err);
	if (rc < 0)
		return rc;
	return catalog_end(catalog, fill != NULL ? fill(catalog, context, err) : 0, err);
}

static int sync_new(int run_fd)
{
	int fd = sys_openat(run_fd, CATALOG_NEW, O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
	int rc;

	if (fd < 0)
		return fd;
	rc = sys_fsync(fd);
	sys_close(fd);
	return rc;
}

static int build_new(const char *run_dir, int run_fd,
	int (*fill)(struct catalog *catalog, void *context, struct error *err), void *context,
	struct error *err)
{
	struct catalog *catalog;
	struct stat stat;
	int fd, rc;

	rc = unlink_with_companions(run_fd, CATALOG_NEW, true);
	if (rc < 0)
		return error_set(
			err, rc, "cannot remove an old %s: %s", CATALOG_NEW, strerror(-rc));
	/* Created here for its mode; SQLite gives its companions the same one. */
	fd = sys_openat(run_fd, CATALOG_NEW, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (fd < 0)
		return error_set(err, fd, "cannot create %s: %s", CATALOG_NEW, strerror(-fd));
	sys_close(fd);
	rc = open_database(run_dir, CATALOG_NEW, SQLITE_OPEN_READWRITE, &catalog, err);
	if (rc < 0)
		return rc;
	rc = fill_new(catalog, fill, context, err);
	catalog_close(catalog);
	if (rc < 0)
		return rc;
	/* Closing folds the log into the file; if it could not, the file alone is not the catalog.
	 */
	if (sys_fstatat(run_fd, CATALOG_NEW "-wal", &stat) != -ENOENT)
		return error_set(
			err, -EIO, "catalog: its log could not be folded into the new file");
	rc = sync_new(run_fd);
	if (rc < 0)
		return error_set(err, rc, "cannot sync %s: %s", CATALOG_NEW, strerror(-rc));
	return 0;
}

/* The old one goes aside, at most BROKEN_MAX of them; then the oldest name is overwritten. */
static int move_old_aside(int run_fd)
{
	char aside[64];
	int rc = -EEXIST;

	for (int n = 1; rc == -EEXIST && n <= BROKEN_MAX; n++) {
		snprintf(aside, sizeof(aside), "%s.broken-%d", CATALOG_NAME, n);
		rc = sys_renameat_noreplace(run_fd, CATALOG_NAME, aside);
	}
	if (rc == -EEXIST)
		rc = sys_renameat(run_fd, CATALOG_NAME, aside);
	return rc == -ENOENT ? 0 : rc;
}

/* The order is the point: the old log is gone for good before a new database has the name beside
 * which SQLite would look for it. */
static int put_in_place(int run_fd)
{
	int rc = move_old_aside(run_fd);

	if (rc == 0)
		rc = unlink_with_companions(run_fd, CATALOG_NAME, false);
	if (rc == 0)
		rc = file_sync_dir(run_fd);
	if (rc == 0)
		rc = sys_renameat(run_fd, CATALOG_NEW, CATALOG_NAME);
	if (rc == 0)
		rc = file_sync_dir(run_fd);
	return rc;
}

int catalog_replace(const char *run_dir, int run_fd,
	int (*fill)(struct catalog *catalog, void *context, struct error *err), void *context,
	struct error *err)
{
	int rc = build_new(run_dir, run_fd, fill, context, err);

	if (rc == 0) {
		rc = put_in_place(run_fd);
		if (rc < 0)
			error_set(
				err, rc, "cannot put the new catalog in place: %s", strerror(-rc));
	}
	if (rc < 0)
		unlink_with_companions(run_fd, CATALOG_NEW, true);
	return rc;
}
