/* SQLite on the seam: its calls are made by base/sys.h under points of their own, a tracer hears
 * each write and sync of a database, and a commit is not told before its log was synced (P7, P8:
 * without this no fault test and no crash state of the catalog means anything). */
#include "tests/unit/store_fixture.h"

#define HEARD_MAX 400

struct heard {
	int count;
	enum sys_op_kind kinds[HEARD_MAX];
	uint64_t sizes[HEARD_MAX];
	char files[HEARD_MAX][32]; /* by the open that made fd */
	char by_fd[256][32];
};

static void hear(void *context, const struct sys_op *op)
{
	struct heard *heard = context;
	const char *slash = op->path != NULL ? strrchr(op->path, '/') : NULL;

	assert_true(heard->count < HEARD_MAX && op->fd < 256);
	heard->kinds[heard->count] = op->kind;
	heard->sizes[heard->count] = op->size;
	if (op->kind == SYS_OP_OPEN)
		snprintf(heard->by_fd[op->fd], sizeof(heard->by_fd[0]), "%s",
			slash != NULL ? slash + 1 : op->path);
	snprintf(heard->files[heard->count++], sizeof(heard->files[0]), "%s",
		op->fd > 0 ? heard->by_fd[op->fd] : "");
}

static void put_one(struct fixture *fx)
{
	struct catalog_row row = {.id = "step-000000010-b0001", .step = 10, .branch = 1};
	struct catalog *catalog;

	snprintf(row.created, sizeof(row.created), "2026-01-01T00:00:00.000Z");
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_put(catalog, &row, &fx->err));
	/* Its close would fold the log into the file, and sync once more. */
	sys_trace_set(NULL, NULL);
	catalog_close(catalog);
}

static void p8_a_row_is_told_after_its_log_was_synced(void **state)
{
	struct fixture *fx = *state;
	struct heard heard = {0};
	int written = -1, synced = -1;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	sys_trace_set(hear, &heard);
	put_one(fx);
	for (int i = 0; i < heard.count; i++) {
		if (strcmp(heard.files[i], "catalog.sqlite-wal") != 0)
			continue;
		if (heard.kinds[i] == SYS_OP_WRITE)
			written = i;
		if (heard.kinds[i] == SYS_OP_SYNC)
			synced = i;
	}
	assert_true(written >= 0 && synced > written);
}

static void every_call_of_a_database_can_fail(void **state)
{
	static const char *const points[] = {"db.open", "db.pread", "db.pwrite", "db.fsync"};
	struct fixture *fx = *state;

	for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++) {
		char plan[32];

		PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
		snprintf(plan, sizeof(plan), "%s:*:EIO", points[i]);
		assert_int_equal(sys_fault_plan(plan), 0);
		assert_true(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err) < 0);
		assert_true(sys_fault_fired() > 0);
		sys_fault_plan(NULL);
	}
}

/* Points of other files keep their counts whatever SQLite does. */
static void a_database_hits_no_other_point(void **state)
{
	struct fixture *fx = *state;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	assert_int_equal(sys_fault_plan("open:*:EIO,pread:*:EIO,pwrite:*:EIO,fsync:*:EIO"), 0);
	put_one(fx);
	assert_int_equal(sys_fault_fired(), 0);
	sys_fault_plan(NULL);
}

/* With smaller blocks than pages, one byte a page leaves holes: on a full disk a store into one
 * would end the process. */
static void p7_shared_memory_has_no_holes(void **state)
{
	struct fixture *fx = *state;
	struct heard heard = {0};
	int pages = 0;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	sys_trace_set(hear, &heard);
	put_one(fx);
	for (int i = 0; i < heard.count; i++) {
		if (strcmp(heard.files[i], "catalog.sqlite-shm") != 0 ||
			heard.kinds[i] != SYS_OP_WRITE)
			continue;
		assert_int_equal(heard.sizes[i], 4096);
		pages++;
	}
	assert_true(pages > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(p8_a_row_is_told_after_its_log_was_synced,
			fixture_setup_small, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			every_call_of_a_database_can_fail, fixture_setup_small, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			p7_shared_memory_has_no_holes, fixture_setup_small, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			a_database_hits_no_other_point, fixture_setup_small, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
