/* P8, P11: no flipped bit of the catalog is believed. Each bit of each column of a row: the row is
 * not given out, and a start makes it anew from its file. Bits of the database file and of its log
 * as they lie on disk: a start either sees the damage or reads the same rows, and in both cases
 * every checkpoint is there afterwards and the newest one loads. */
#include "tests/unit/store_fixture.h"

#include <sqlite3.h>
#include <sys/mman.h>

#include "tests/disk/damage.h"

/* No id becomes another by one bit. */
static const uint64_t steps[] = {10, 20, 50};
#define COUNT (int)(sizeof(steps) / sizeof(*steps))
#define NEWEST 50

static void id_of(uint64_t step, char id[CHECKPOINT_ID_SIZE])
{
	checkpoint_id_format(step, 1, id);
}

/* The row of step 20 gets a value that is worth a flip in each column. */
static void fill_row(struct fixture *fx)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog *catalog;
	struct catalog_row row;

	id_of(20, id);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_get(catalog, id, &row, &fx->err));
	row.state = CHECKPOINT_VERIFIED;
	row.keep = true;
	strcpy(row.readback, "direct");
	snprintf(row.verified_at, sizeof(row.verified_at), "%s", row.created);
	memset(row.signer, 'a', sizeof(row.signer) - 1);
	snprintf(row.text, sizeof(row.text), "@ a word about it");
	snprintf(row.mirrored_at, sizeof(row.mirrored_at), "%s", row.created);
	PASS(catalog_put(catalog, &row, &fx->err));
	catalog_close(catalog);
}

static void save_three(struct fixture *fx)
{
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	for (int i = 0; i < COUNT; i++)
		fixture_save(fx, 1, steps[i]);
	fx->log[0] = '\0';
}

/* -- columns -- */

static sqlite3 *open_raw(struct fixture *fx)
{
	char path[300];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/catalog.sqlite", fx->dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "PRAGMA synchronous=OFF", NULL, NULL, NULL), SQLITE_OK);
	return db;
}

/* One column's value, as bytes. */
struct value {
	char name[64];
	int type;
	size_t size;
	uint8_t bytes[256];
};

static bool read_value(sqlite3 *db, int column, struct value *ret)
{
	sqlite3_stmt *statement;
	bool is_there;

	assert_int_equal(
		sqlite3_prepare_v2(db, "SELECT * FROM checkpoint WHERE step = 20 ORDER BY rowid",
			-1, &statement, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
	memset(ret, 0, sizeof(*ret));
	is_there = column < sqlite3_column_count(statement);
	if (is_there) {
		int type = sqlite3_column_type(statement, column);
		int64_t integer = sqlite3_column_int64(statement, column);
		double real = sqlite3_column_double(statement, column);
		const char *text = (const char *)sqlite3_column_text(statement, column);

		snprintf(
			ret->name, sizeof(ret->name), "%s", sqlite3_column_name(statement, column));
		ret->type = type;
		ret->size = sizeof(int64_t);
		memcpy(ret->bytes, &integer, sizeof(integer));
		if (strcmp(ret->name, "loss") == 0) {
			ret->type = SQLITE_FLOAT;
			memcpy(ret->bytes, &real, sizeof(real));
		} else if (ret->type == SQLITE_TEXT) {
			ret->size = (size_t)sqlite3_column_bytes(statement, column);
			assert_in_range(ret->size, 1, sizeof(ret->bytes));
			memcpy(ret->bytes, text, ret->size);
		}
	}
	sqlite3_finalize(statement);
	return is_there;
}

static void write_value(sqlite3 *db, sqlite3_int64 rowid, const struct value *value)
{
	char sql[160];
	sqlite3_stmt *statement;
	int64_t integer;
	double real;

	snprintf(sql, sizeof(sql), "UPDATE checkpoint SET %s = ?1 WHERE rowid = ?2", value->name);
	assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
	memcpy(&integer, value->bytes, sizeof(integer));
	memcpy(&real, value->bytes, sizeof(real));
	if (value->type == SQLITE_INTEGER)
		sqlite3_bind_int64(statement, 1, integer);
	else if (value->type == SQLITE_FLOAT)
		sqlite3_bind_double(statement, 1, real);
	else
		sqlite3_bind_text(statement, 1, (const char *)value->bytes, (int)value->size,
			SQLITE_TRANSIENT);
	sqlite3_bind_int64(statement, 2, rowid);
	assert_int_equal(sqlite3_step(statement), SQLITE_DONE);
	sqlite3_finalize(statement);
}

static sqlite3_int64 rowid_of(sqlite3 *db)
{
	sqlite3_stmt *statement;
	sqlite3_int64 rowid;

	assert_int_equal(sqlite3_prepare_v2(db, "SELECT rowid FROM checkpoint WHERE step = 20", -1,
				 &statement, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
	rowid = sqlite3_column_int64(statement, 0);
	sqlite3_finalize(statement);
	return rowid;
}

static void expect_not_believed(
	struct fixture *fx, struct catalog *catalog, const struct value *value, uint64_t bit)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog_row *rows, row;
	uint32_t count, bad;
	int rc;

	PASS(catalog_list(catalog, &rows, &count, &bad, &fx->err));
	free(rows);
	id_of(20, id);
	rc = catalog_get(catalog, id, &row, &fx->err);
	if (count != COUNT - 1 || bad != 1 ||
		rc != (strcmp(value->name, "id") == 0 ? -ENOENT : -EBADMSG))
		fail_msg("bit %" PRIu64 " of %s: %u rows, %u bad, the row itself %d", bit,
			value->name, count, bad, rc);
}

static void expect_made_anew(struct fixture *fx, const struct value *value, uint64_t bit)
{
	struct recovery_summary summary = fixture_prepare(fx);

	if (strcmp(summary.catalog, "rebuilt") != 0 || summary.on_line_count != COUNT)
		fail_msg("bit %" PRIu64 " of %s: %s", bit, value->name, summary.catalog);
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_FOUND);
	assert_int_equal(fixture_row_state(fx, 1, NEWEST), CHECKPOINT_VERIFIED);
}

static void flip_column(
	struct fixture *fx, struct catalog *catalog, sqlite3 *db, const struct value *value)
{
	sqlite3_int64 rowid = rowid_of(db);

	for (uint64_t bit = 0; bit < value->size * 8; bit++) {
		struct value flipped = *value;

		damage_flip(flipped.bytes, bit);
		write_value(db, rowid, &flipped);
		expect_not_believed(fx, catalog, value, bit);
		write_value(db, rowid, value);
	}
}

static void p11_every_bit_of_a_row_is_found(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog;
	struct value value;
	int column = 0;
	sqlite3 *db;

	save_three(fx);
	fill_row(fx);
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	db = open_raw(fx);
	for (; read_value(db, column, &value); column++)
		flip_column(fx, catalog, db, &value);
	assert_true(column >= 14);
	sqlite3_close(db);
	catalog_close(catalog);
}

static void p8_a_damaged_row_is_made_anew_from_its_file(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed();
	struct value value;

	save_three(fx);
	for (int column = 0;; column++) {
		uint64_t bit;
		sqlite3 *db;

		fill_row(fx);
		db = open_raw(fx);
		if (!read_value(db, column, &value)) {
			sqlite3_close(db);
			break;
		}
		bit = damage_next(&random) % (value.size * 8);
		damage_flip(value.bytes, bit);
		write_value(db, rowid_of(db), &value);
		sqlite3_close(db);
		expect_made_anew(fx, &value, bit);
		fixture_expect_load(fx, 1, NEWEST);
	}
}

/* -- bytes of the files -- */

/* The catalog as it lies on disk, to be put back after each flip. */
struct image {
	char *bytes[2]; /* catalog.sqlite, and its log or NULL */
	size_t size[2];
	struct catalog_row rows[COUNT];
};

static const char *const image_names[2] = {"catalog.sqlite", "catalog.sqlite-wal"};

static void take_rows(struct fixture *fx, struct catalog_row rows[COUNT])
{
	struct catalog_row *listed;
	struct catalog *catalog;
	uint32_t count, bad;

	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_list(catalog, &listed, &count, &bad, &fx->err));
	if (count != COUNT || bad != 0)
		fail_msg("%u rows, %u bad", count, bad);
	memcpy(rows, listed, COUNT * sizeof(*rows));
	free(listed);
	/* Also by the other index. */
	for (int i = 0; i < COUNT; i++) {
		struct catalog_row row;

		PASS(catalog_get(catalog, rows[i].id, &row, &fx->err));
		assert_memory_equal(&row, &rows[i], sizeof(row));
	}
	catalog_close(catalog);
}

static void take_image(struct fixture *fx, struct image *image)
{
	for (int i = 0; i < 2; i++) {
		image->bytes[i] = NULL;
		image->size[i] = 0;
		if (fixture_exists(fx->run_fd, image_names[i]))
			assert_int_equal(file_read_all(fx->run_fd, image_names[i], 1 << 24,
						 &image->bytes[i], &image->size[i]),
				0);
	}
}

static void put_image(struct fixture *fx, const struct image *image, int file, uint64_t bit)
{
	unlinkat(fx->run_fd, "catalog.sqlite-shm", 0);
	unlinkat(fx->run_fd, "catalog.sqlite-wal", 0);
	unlinkat(fx->run_fd, "catalog.sqlite.broken-1", 0);
	for (int i = 0; i < 2; i++) {
		if (image->bytes[i] == NULL)
			continue;
		if (i == file)
			damage_flip((uint8_t *)image->bytes[i], bit);
		fixture_write(fx->run_fd, image_names[i], image->bytes[i], image->size[i]);
		if (i == file)
			damage_flip((uint8_t *)image->bytes[i], bit);
	}
}

/* Each row is as it was, or as a start makes it that knows only the file: false when any is. */
static bool expect_rows(struct fixture *fx, const struct image *image, const char *where)
{
	struct catalog_row rows[COUNT];
	bool same = true;

	take_rows(fx, rows);
	for (int i = 0; i < COUNT; i++) {
		if (memcmp(&rows[i], &image->rows[i], sizeof(rows[i])) == 0)
			continue;
		same = false;
		if (rows[i].state != CHECKPOINT_FOUND ||
			strcmp(rows[i].id, image->rows[i].id) != 0 ||
			!digest_equal(&rows[i].root, &image->rows[i].root))
			fail_msg("%s: %s is %s", where, rows[i].id,
				checkpoint_state_name(rows[i].state));
	}
	return same;
}

/* The next save will want to write its row. */
static void expect_writable(struct fixture *fx, const char *where)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog *catalog;

	id_of(NEWEST, id);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	if (catalog_set_state(catalog, id, CHECKPOINT_VERIFIED, "", &fx->err) < 0)
		fail_msg("%s: the catalog cannot be written: %s", where, fx->err.text);
	catalog_close(catalog);
}

/* Returns whether the damage was seen. */
static bool start_on(struct fixture *fx, const struct image *image, int file, uint64_t bit)
{
	struct recovery_summary summary;
	char where[64];
	bool seen;

	snprintf(where, sizeof(where), "bit %" PRIu64 " of %s", bit, image_names[file]);
	put_image(fx, image, file, bit);
	fx->log[0] = '\0';
	if (recovery_prepare(
		    fx->dir, fx->run_fd, &fx->run, fixture_report, fx, &summary, &fx->err) < 0)
		fail_msg("%s: a start gives up: %s", where, fx->err.text);
	if (summary.on_line_count != COUNT || summary.newest.step != NEWEST)
		fail_msg("%s: %u on the line", where, summary.on_line_count);
	seen = !expect_rows(fx, image, where) || strcmp(summary.catalog, "ok") != 0;
	expect_writable(fx, where);
	return seen;
}

/* Ordinary: each bit of what tells SQLite how to open the file, and some of the rest; full: one bit
 * of each byte. */
static void flip_file(struct fixture *fx, const struct image *image, int file, uint32_t count)
{
	uint64_t random = damage_seed(), bits = image->size[file] * 8, step;
	uint32_t seen = 0, flips = 0;

	for (uint64_t bit = 0; bit < bits; bit += step, flips++) {
		seen += start_on(fx, image, file, bit);
		step = 1;
		if (bit >= (uint64_t)24 * 8)
			step = damage_is_full() ? 1 + damage_next(&random) % 15
						: 1 + damage_next(&random) % (2 * bits / count);
	}
	put_image(fx, image, -1, 0);
	fixture_expect_load(fx, 1, NEWEST);
	print_message("# %s: %u bits flipped, %u seen\n", image_names[file], flips, seen);
	assert_true(seen > 0);
}

static void p8_flips_in_the_database_file_lose_nothing(void **state)
{
	struct fixture *fx = *state;
	struct image image;

	save_three(fx);
	take_rows(fx, image.rows);
	take_image(fx, &image);
	assert_null(image.bytes[1]);
	flip_file(fx, &image, 0, 100);
	free(image.bytes[0]);
}

/* The saver was killed: the newest rows stand only in the log. */
static void p8_flips_in_the_log_lose_nothing(void **state)
{
	struct fixture *fx = *state;
	struct catalog *reader;
	struct image image;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	/* Whoever closes last folds the log in; here another one is still there. */
	PASS(catalog_open(fx->dir, CATALOG_READ, &reader, &fx->err));
	for (int i = 0; i < COUNT; i++)
		fixture_save(fx, 1, steps[i]);
	take_rows(fx, image.rows);
	take_image(fx, &image);
	catalog_close(reader);
	assert_true(image.size[1] > 0);
	flip_file(fx, &image, 1, 100);
	free(image.bytes[0]);
	free(image.bytes[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p11_every_bit_of_a_row_is_found),
		TEST(p8_a_damaged_row_is_made_anew_from_its_file),
		TEST(p8_flips_in_the_database_file_lose_nothing),
		TEST(p8_flips_in_the_log_lose_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
