/* The door of SQLite for the catalog. An index only: whatever is wrong with it, recovery builds a
 * new one from the files, so nothing here repairs. Statements are prepared once, at open, which is
 * also the check of the schema. Later opens never create a database.
 *
 * Invariant: a row is believed only when its digest matches its columns. */
#include "store/catalog.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/catalog_row.h"
#include "store/database.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CATALOG_NAME "catalog.sqlite"
#define CATALOG_NEW "catalog.new"
#define BUSY_MS 5000
#define BROKEN_MAX 99
#define PATH_SIZE 4096

static const char schema[] =
	"CREATE TABLE checkpoint("
	" id TEXT PRIMARY KEY NOT NULL, step INTEGER NOT NULL, branch INTEGER NOT NULL,"
	" state TEXT NOT NULL, root TEXT NOT NULL, parent_root TEXT NOT NULL,"
	" file_bytes INTEGER NOT NULL, loss REAL, trained_seconds INTEGER NOT NULL,"
	" keep INTEGER NOT NULL, created TEXT NOT NULL, readback TEXT NOT NULL,"
	" text TEXT NOT NULL, verified_at TEXT NOT NULL, signer TEXT NOT NULL,"
	" mirrored_at TEXT NOT NULL, row_digest TEXT NOT NULL) STRICT;"
	"CREATE INDEX checkpoint_by_step ON checkpoint(step, branch);"
	"PRAGMA application_id = 1668985972;" /* "ckpt" */
	"PRAGMA user_version = 2;";

#define LIST_FROM " FROM checkpoint ORDER BY step DESC, branch DESC"

enum statement { PUT, GET, LIST, BEGIN, COMMIT, ROLLBACK, STATEMENT_COUNT };

static const char *const statement_sql[STATEMENT_COUNT] = {
	[PUT] = "INSERT OR REPLACE INTO checkpoint(" CATALOG_COLUMNS
		") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
	[GET] = "SELECT " CATALOG_COLUMNS " FROM checkpoint WHERE id = ?1",
	[LIST] = "SELECT " CATALOG_COLUMNS LIST_FROM,
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
};
/* All that is done with a database of version 1. */
static const char *const statement_sql_1[STATEMENT_COUNT] = {
	[LIST] = "SELECT " CATALOG_COLUMNS_1 LIST_FROM,
};

struct catalog {
	sqlite3 *db;
	int version;
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

static int check_integrity(struct catalog *catalog, struct error *err)
{
	sqlite3_stmt *statement = NULL;
	const char *text = NULL;
	int rc;

	if (sqlite3_prepare_v2(catalog->db, "PRAGMA integrity_check(1)", -1, &statement, NULL) !=
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
	if (version == catalog->version)
		return 0;
	if (version == 1)
		return error_set(err, -ESTALE,
			"catalog: it is of version 1 still; a start of ckptd brings it to version "
			"%d",
			CATALOG_VERSION);
	return error_set(err, -EBADMSG, "catalog: it has no schema of ours");
}

static int prepare_statements(struct catalog *catalog, struct error *err)
{
	const char *const *sql = catalog->version == 1 ? statement_sql_1 : statement_sql;

	for (int i = 0; i < STATEMENT_COUNT; i++) {
		if (sql[i] != NULL &&
			sqlite3_prepare_v3(catalog->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
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
	(*ret)->version = CATALOG_VERSION;
	rc = sqlite3_open_v2(path, &(*ret)->db, flags | SQLITE_OPEN_NOMUTEX, database_vfs());
	if (rc == SQLITE_OK)
		return 0;
	rc = (*ret)->db != NULL ? fail(*ret, err, "open it") : -ENOMEM;
	catalog_close(*ret);
	*ret = NULL;
	return rc;
}

/* SQLite quietly takes what it can only read, and the error would come at each save: when the file
 * could not be opened for writing, and (whole: it was read) when its header asks for a later way of
 * writing. */
static int check_writable(struct catalog *catalog, bool whole, struct error *err)
{
	if (sqlite3_db_readonly(catalog->db, "main") != 1)
		return 0;
	if (whole)
		return error_set(
			err, -EBADMSG, "catalog: it is damaged: its header forbids writing");
	if (access(sqlite3_db_filename(catalog->db, "main"), W_OK) < 0)
		return error_set(err, -EACCES, "catalog: cannot write it: %s", strerror(errno));
	return error_set(err, -EIO, "catalog: it cannot be opened for writing now");
}

static int check_exists(const char *run_dir, const char *name, struct error *err)
{
	char path[PATH_SIZE];
	struct stat stat;
	int rc;

	snprintf(path, sizeof(path), "%s/%s", run_dir, name);
	rc = sys_fstatat(AT_FDCWD, path, &stat);
	if (rc < 0)
		return error_set(err, rc, "catalog: %s", strerror(-rc));
	if (!S_ISREG(stat.st_mode))
		return error_set(err, -EBADMSG, "catalog: it is not a regular file");
	return 0;
}

static const char for_reading[] = "PRAGMA query_only=ON; PRAGMA mmap_size=0";
static const char for_writing[] =
	"PRAGMA synchronous=FULL; PRAGMA mmap_size=0; PRAGMA cell_size_check=ON";
/* The index of the log in our own memory, for a moment alone: its file would want room. */
static const char for_reading_alone[] =
	"PRAGMA locking_mode=EXCLUSIVE; PRAGMA query_only=ON; PRAGMA mmap_size=0";

/* Which database, and for what. */
struct opening {
	const char *name;
	int version;
	enum catalog_mode mode;
	const char *pragmas;
};

static int open_checked(
	const char *run_dir, const struct opening *opening, struct catalog **ret, struct error *err)
{
	bool writes = opening->mode == CATALOG_WRITE;
	struct catalog *catalog;
	int rc;

	*ret = NULL;
	rc = check_exists(run_dir, opening->name, err);
	if (rc == 0)
		rc = open_database(run_dir, opening->name, SQLITE_OPEN_READWRITE, &catalog, err);
	if (rc < 0)
		return rc;
	catalog->version = opening->version;
	rc = writes ? check_writable(catalog, false, err) : 0;
	if (rc == 0)
		rc = configure(catalog, opening->pragmas, err);
	if (rc == 0)
		rc = check_version(catalog, err);
	if (rc == 0)
		rc = check_integrity(catalog, err);
	if (rc == 0 && writes)
		rc = check_writable(catalog, true, err);
	if (rc == 0)
		rc = prepare_statements(catalog, err);
	if (rc < 0) {
		catalog_close(catalog);
		return rc;
	}
	*ret = catalog;
	return 0;
}

int catalog_open(
	const char *run_dir, enum catalog_mode mode, struct catalog **ret, struct error *err)
{
	struct opening opening = {CATALOG_NAME, CATALOG_VERSION, mode,
		mode == CATALOG_READ ? for_reading : for_writing};
	int rc = open_checked(run_dir, &opening, ret, err);

	/* A full disk looks the same from inside SQLite. A writer gives up the reserve; who only
	 * looks must still be told what is there. */
	if (mode == CATALOG_READ && (rc == -EIO || rc == -ENOSPC || rc == -EDQUOT)) {
		opening.pragmas = for_reading_alone;
		rc = open_checked(run_dir, &opening, ret, err);
	}
	return rc;
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
	catalog_row_bind(catalog->statements[PUT], row);
	return run_statement(catalog, PUT, err, "write a row");
}

int catalog_get(struct catalog *catalog, const char *id, struct catalog_row *ret, struct error *err)
{
	sqlite3_stmt *statement = catalog->statements[GET];
	int rc;

	sqlite3_bind_text(statement, 1, id, -1, SQLITE_TRANSIENT);
	rc = sqlite3_step(statement);
	if (rc == SQLITE_ROW)
		rc = catalog_row_read(statement, catalog->version, ret) == 0
			? 0
			: error_set(err, -EBADMSG, "catalog: the row of %s is damaged", id);
	else if (rc == SQLITE_DONE)
		rc = error_set(err, -ENOENT, "there is no checkpoint %s in the catalog", id);
	else
		rc = fail(catalog, err, "read a row");
	sqlite3_reset(statement);
	return rc;
}

void catalog_row_verified_now(struct catalog_row *row)
{
	memset(row->verified_at, 0, sizeof(row->verified_at));
	clock_format_utc(clock_wall_ns(), row->verified_at);
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
		if (state == CHECKPOINT_VERIFIED)
			catalog_row_verified_now(&row);
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
		else if (catalog_row_read(statement, catalog->version, &row) < 0)
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

static int list_once(const char *run_dir, const struct opening *opening, struct catalog_row **ret,
	uint32_t *ret_count, uint32_t *ret_bad, struct error *err)
{
	struct catalog *catalog;
	int rc = open_checked(run_dir, opening, &catalog, err);

	if (rc < 0)
		return rc;
	rc = catalog_list(catalog, ret, ret_count, ret_bad, err);
	catalog_close(catalog);
	return rc;
}

int catalog_list_version_1(const char *run_dir, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err)
{
	const struct opening opening = {CATALOG_NAME, 1, CATALOG_READ, for_reading};
	int rc = list_once(run_dir, &opening, ret, ret_count, ret_bad, err);

	for (uint32_t i = 0; rc == 0 && i < *ret_count; i++) {
		struct catalog_row *row = &(*ret)[i];

		/* Saved under this row: it was read back just before. */
		if (row->state == CHECKPOINT_VERIFIED && row->readback[0] != '\0')
			memcpy(row->verified_at, row->created, sizeof(row->verified_at));
	}
	return rc;
}

int catalog_list_unplaced(const char *run_dir, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err)
{
	const struct opening opening = {CATALOG_NEW, CATALOG_VERSION, CATALOG_READ, for_reading};

	return list_once(run_dir, &opening, ret, ret_count, ret_bad, err);
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

void catalog_forget_unplaced(int run_fd)
{
	struct stat stat;

	if (sys_fstatat(run_fd, CATALOG_NEW, &stat) == 0)
		unlink_with_companions(run_fd, CATALOG_NEW, true);
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
	rc = check_writable(catalog, false, err);
	if (rc == 0)
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
	struct stat stat;

	if (rc == 0) {
		rc = put_in_place(run_fd);
		if (rc < 0)
			error_set(
				err, rc, "cannot put the new catalog in place: %s", strerror(-rc));
	}
	/* Without the old one its rows are all there is: catalog_list_unplaced finds them. */
	if (rc < 0 && sys_fstatat(run_fd, CATALOG_NAME, &stat) != -ENOENT)
		unlink_with_companions(run_fd, CATALOG_NEW, true);
	return rc;
}
