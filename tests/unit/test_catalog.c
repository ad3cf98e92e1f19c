/* P8: the catalog's own promises: rows come back as they were put, a changed row is not believed,
 * and a rebuilt database is never read beside the log of an older one. */
#include "tests/unit/store_fixture.h"

#include <sqlite3.h>

static struct catalog_row row_of(uint64_t step, enum checkpoint_state state)
{
	struct catalog_row row = {.step = step,
		.branch = 2,
		.state = state,
		.root = digest_of(&step, sizeof(step)),
		.parent_root = digest_of("parent", 6),
		.file_bytes = UINT64_C(1) << 40,
		.loss = 0.1 * (double)step,
		.trained_seconds = 77,
		.keep = step % 2 == 0,
		.created = "2026-11-23T04:31:05.123Z",
		.readback = "direct",
		.text = "it's \"text\"",
		.verified_at = "2026-11-23T05:00:00.000Z",
		.signer = "ab",
		.mirrored_at = "2026-11-23T06:00:00.000Z"};

	checkpoint_id_format(step, 2, row.id);
	return row;
}

static int fill_three(struct catalog *catalog, void *context, struct error *err)
{
	int rc = 0;

	for (uint64_t step = 1; rc == 0 && step <= 3; step++) {
		struct catalog_row row = row_of(step, CHECKPOINT_VERIFIED);

		rc = catalog_put(catalog, &row, err);
	}
	return rc;
}

static struct catalog *make(struct fixture *fx)
{
	struct catalog *catalog;

	PASS(catalog_replace(fx->dir, fx->run_fd, fill_three, NULL, &fx->err));
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	return catalog;
}

static uint32_t count_rows(struct fixture *fx, struct catalog *catalog, uint32_t *ret_bad)
{
	struct catalog_row *rows;
	uint32_t count;

	PASS(catalog_list(catalog, &rows, &count, ret_bad, &fx->err));
	free(rows);
	return count;
}

static void sql(struct fixture *fx, const char *text)
{
	char path[300];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/catalog.sqlite", fx->dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static void rows_come_back_as_they_were_put(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog = make(fx);
	struct catalog_row row = row_of(9, CHECKPOINT_FOUND), got, *rows;
	uint32_t count, bad;

	row.loss = (double)NAN;
	PASS(catalog_put(catalog, &row, &fx->err));
	PASS(catalog_get(catalog, row.id, &got, &fx->err));
	assert_true(isnan(got.loss));
	assert_memory_equal(&got, &row, sizeof(row));
	PASS(catalog_set_state(catalog, row.id, CHECKPOINT_CORRUPT, "chunk 3", &fx->err));
	PASS(catalog_get(catalog, row.id, &got, &fx->err));
	assert_int_equal(got.state, CHECKPOINT_CORRUPT);
	assert_string_equal(got.text, "chunk 3");
	assert_int_equal(catalog_get(catalog, "step-000000077-b0001", &got, &fx->err), -ENOENT);
	assert_int_equal(
		catalog_set_state(catalog, "none", CHECKPOINT_CORRUPT, "", &fx->err), -ENOENT);
	PASS(catalog_list(catalog, &rows, &count, &bad, &fx->err));
	assert_int_equal(count, 4);
	assert_int_equal(bad, 0);
	assert_int_equal(rows[0].step, 9);
	assert_int_equal(rows[3].step, 1);
	free(rows);
	catalog_close(catalog);
}

static void verified_says_when(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog = make(fx);
	struct catalog_row row = row_of(2, CHECKPOINT_FOUND), got;
	char before[CLOCK_TEXT_SIZE];

	clock_format_utc(clock_wall_ns(), before);
	PASS(catalog_set_state(catalog, row.id, CHECKPOINT_CORRUPT, "chunk 3", &fx->err));
	PASS(catalog_get(catalog, row.id, &got, &fx->err));
	assert_string_equal(got.verified_at, row.verified_at);
	PASS(catalog_set_state(catalog, row.id, CHECKPOINT_VERIFIED, "", &fx->err));
	PASS(catalog_get(catalog, row.id, &got, &fx->err));
	assert_true(strcmp(got.verified_at, before) >= 0);
	catalog_close(catalog);
}

static void transaction_is_all_or_nothing(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog = make(fx);
	struct catalog_row row = row_of(9, CHECKPOINT_FOUND);
	uint32_t bad;

	PASS(catalog_begin(catalog, &fx->err));
	PASS(catalog_put(catalog, &row, &fx->err));
	assert_int_equal(catalog_end(catalog, -EIO, &fx->err), -EIO);
	assert_int_equal(count_rows(fx, catalog, &bad), 3);
	PASS(catalog_begin(catalog, &fx->err));
	PASS(catalog_put(catalog, &row, &fx->err));
	PASS(catalog_end(catalog, 0, &fx->err));
	assert_int_equal(count_rows(fx, catalog, &bad), 4);
	catalog_close(catalog);
}

static void p8_changed_row_is_not_believed(void **state)
{
	static const char *const changes[] = {"step = 4", "branch = 3", "state = 'found'",
		"root = replace(root, substr(root, 1, 1), 'x')", "parent_root = root",
		"file_bytes = 1", "loss = 0.5", "loss = NULL", "trained_seconds = 1",
		"keep = 1 - keep", "created = ''", "readback = 'cache'", "text = ''",
		"verified_at = ''", "signer = ''", "mirrored_at = ''", "row_digest = ''",
		"state = 'verifie'"};
	struct fixture *fx = *state;

	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		struct catalog *catalog = make(fx);
		char text[256];
		uint32_t bad;

		catalog_close(catalog);
		snprintf(text, sizeof(text), "UPDATE checkpoint SET %s WHERE step = 2", changes[i]);
		sql(fx, text);
		PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
		if (count_rows(fx, catalog, &bad) != 2 || bad != 1)
			fail_msg("believed: %s", changes[i]);
		catalog_close(catalog);
	}
}

static void open_never_creates(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog;

	assert_int_equal(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err), -ENOENT);
	assert_false(fixture_exists(fx->run_fd, "catalog.sqlite"));
	fixture_write(fx->run_fd, "catalog.sqlite", "", 0);
	assert_int_equal(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err), -EBADMSG);
	fixture_write(fx->run_fd, "catalog.sqlite", "this is not a database at all ......", 36);
	assert_int_equal(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err), -EBADMSG);
	catalog_close(make(fx));
	sql(fx, "PRAGMA user_version = 99");
	assert_int_equal(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err), -EPROTONOSUPPORT);
	sql(fx, "PRAGMA user_version = 2; ALTER TABLE checkpoint DROP COLUMN readback");
	assert_int_equal(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err), -EBADMSG);
}

static void readers_do_not_write(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog = make(fx), *reader;
	struct catalog_row row = row_of(9, CHECKPOINT_FOUND);
	uint32_t bad;

	PASS(catalog_open(fx->dir, CATALOG_READ, &reader, &fx->err));
	assert_true(catalog_put(reader, &row, &fx->err) < 0);
	/* A reader sees what a writer beside it commits. */
	PASS(catalog_put(catalog, &row, &fx->err));
	assert_int_equal(count_rows(fx, reader, &bad), 4);
	catalog_close(reader);
	catalog_close(catalog);
}

/* tests/golden/catalog-v1.sqlite, which make_catalog_v1.py made. */
static void p8_version_1_is_read_by_a_start_only(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog;
	struct catalog_row *rows;
	uint32_t count, bad;

	fixture_golden(fx->run_fd, "catalog-v1.sqlite", "catalog.sqlite");
	assert_int_equal(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err), -ESTALE);
	assert_non_null(strstr(fx->err.text, "a start of ckptd brings it"));
	PASS(catalog_list_version_1(fx->dir, &rows, &count, &bad, &fx->err));
	assert_int_equal(count, 4);
	assert_int_equal(bad, 0);
	assert_string_equal(rows[0].id, "step-000004711-b0002");
	assert_true(rows[0].keep && rows[0].loss == 0.03125 && rows[0].trained_seconds == 9422);
	assert_string_equal(rows[0].verified_at, rows[0].created);
	assert_true(isnan(rows[1].loss) && rows[1].verified_at[0] == '\0');
	assert_string_equal(rows[2].text, "the file is gone");
	assert_int_equal(rows[3].state, CHECKPOINT_DELETED);
	assert_int_equal(rows[3].file_bytes, UINT64_C(1) << 40);
	free(rows);
	sql(fx, "UPDATE checkpoint SET step = 4712 WHERE step = 4711");
	PASS(catalog_list_version_1(fx->dir, &rows, &count, &bad, &fx->err));
	assert_int_equal(count, 3);
	assert_int_equal(bad, 1);
	free(rows);
	/* What it does not do to another one. */
	catalog_close(make(fx));
	assert_int_equal(catalog_list_version_1(fx->dir, &rows, &count, &bad, &fx->err), -EBADMSG);
}

static int fill_none(struct catalog *catalog, void *context, struct error *err)
{
	return 0;
}

static int fill_fails(struct catalog *catalog, void *context, struct error *err)
{
	return -EIO;
}

/* The trap that was seen: a new database beside the old one's log shows the old rows. */
static void p8_old_log_never_speaks_for_a_new_catalog(void **state)
{
	struct fixture *fx = *state;
	struct catalog *writer = make(fx), *catalog;
	struct catalog_row row = row_of(9, CHECKPOINT_VERIFIED);
	uint32_t bad;
	char *log;
	size_t size;

	/* A log with content, as a killed writer leaves it. */
	PASS(catalog_put(writer, &row, &fx->err));
	assert_int_equal(file_read_all(fx->run_fd, "catalog.sqlite-wal", 1 << 24, &log, &size), 0);
	catalog_close(writer);
	for (int gone = 0; gone < 2; gone++) {
		fixture_write(fx->run_fd, "catalog.sqlite-wal", log, size);
		if (gone)
			assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
		PASS(catalog_replace(fx->dir, fx->run_fd, fill_none, NULL, &fx->err));
		assert_false(fixture_exists(fx->run_fd, "catalog.sqlite-wal"));
		PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
		assert_int_equal(count_rows(fx, catalog, &bad), 0);
		catalog_close(catalog);
	}
	assert_true(fixture_exists(fx->run_fd, "catalog.sqlite.broken-1"));
	free(log);
}

static void replace_once(struct fixture *fx)
{
	struct error err;

	catalog_replace(fx->dir, fx->run_fd, fill_none, NULL, &err);
}

/* Killed or failing at any call, a replacement leaves the old one, none, or the new one: never a
 * new one beside an old log, and never one that half opens. */
static void p8_replacement_may_end_anywhere(void **state)
{
	static const char *const points[] = {"open", "unlink", "fsync", "rename", "fstatat"};
	static const char *const actions[] = {"kill", "EIO"};
	struct fixture *fx = *state;
	uint32_t ended = 0;

	for (size_t p = 0; p < 5; p++)
		for (size_t a = 0; a < 2; a++)
			for (int n = 1; n <= 8; n++) {
				struct catalog *catalog = make(fx);
				uint32_t bad, count;
				bool log;
				char plan[32];
				int rc;

				catalog_close(catalog);
				fixture_write(fx->run_fd, "catalog.sqlite-wal", "old log", 7);
				snprintf(plan, sizeof(plan), "%s:%d:%s", points[p], n, actions[a]);
				ended += fixture_dies(fx, plan, replace_once);
				log = fixture_exists(fx->run_fd, "catalog.sqlite-wal");
				rc = catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err);
				if (rc == -ENOENT)
					continue;
				if (rc < 0)
					fail_msg("%s: %s", plan, fx->err.text);
				count = count_rows(fx, catalog, &bad);
				assert_true(bad == 0 && (count == 3 || (count == 0 && !log)));
				catalog_close(catalog);
			}
	assert_true(ended > 10);
	/* A filler that fails changes nothing. */
	catalog_close(make(fx));
	assert_int_equal(catalog_replace(fx->dir, fx->run_fd, fill_fails, NULL, &fx->err), -EIO);
	assert_false(fixture_exists(fx->run_fd, "catalog.new"));
	struct catalog *catalog;
	uint32_t bad;

	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	assert_int_equal(count_rows(fx, catalog, &bad), 3);
	catalog_close(catalog);
}

static void old_rows_of_gone_files_are_forgotten(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog = make(fx);
	struct catalog_row row;
	uint32_t bad;

	for (uint64_t step = 10; step < 30; step++) {
		row = row_of(step, step % 2 ? CHECKPOINT_DELETED : CHECKPOINT_MISSING);
		PASS(catalog_put(catalog, &row, &fx->err));
	}
	PASS(catalog_prune(catalog, 5, &fx->err));
	assert_int_equal(count_rows(fx, catalog, &bad), 3 + 5);
	row = row_of(25, CHECKPOINT_DELETED);
	PASS(catalog_get(catalog, row.id, &row, &fx->err));
	row = row_of(24, CHECKPOINT_DELETED);
	assert_int_equal(catalog_get(catalog, row.id, &row, &fx->err), -ENOENT);
	catalog_close(catalog);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(rows_come_back_as_they_were_put),
		TEST(verified_says_when),
		TEST(transaction_is_all_or_nothing),
		TEST(p8_changed_row_is_not_believed),
		TEST(open_never_creates),
		TEST(readers_do_not_write),
		TEST(p8_version_1_is_read_by_a_start_only),
		TEST(p8_old_log_never_speaks_for_a_new_catalog),
		TEST(p8_replacement_may_end_anywhere),
		TEST(old_rows_of_gone_files_are_forgotten),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
