/* P8: a run's folder of version 1 goes on with this version, whatever happens on the way. */
#include "tests/unit/store_fixture.h"

/* The files of tests/golden, as version 1 left them: a kept, verified checkpoint and its catalog.
 */
static void lay_version_1(struct fixture *fx)
{
	const char *name = "step-000004711-b0002.safetensors";
	size_t size = fixture_golden(fx->fd, "checkpoint-v1.header", name);
	struct checkpoint_info info;
	int fd;

	fixture_truncate(fx->fd, name, size + CHECKPOINT_CHUNK_BYTES);
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	PASS(fd);
	close(fd);
	memcpy(fx->run.id, info.record.run_id, RUN_ID_SIZE);
	fixture_keep(fx, &info.root);
	checkpoint_info_fini(&info);
	fixture_golden(fx->run_fd, "catalog-v1.sqlite", "catalog.sqlite");
}

static void expect_migrated(struct fixture *fx)
{
	static const struct {
		uint64_t step;
		uint32_t branch;
		enum checkpoint_state state;
	} rows[] = {{4711, 2, CHECKPOINT_VERIFIED}, {4600, 2, CHECKPOINT_MISSING},
		{4500, 2, CHECKPOINT_MISSING}, {4000, 1, CHECKPOINT_DELETED}};
	struct catalog_row row;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		assert_int_equal(
			fixture_row_state(fx, rows[i].branch, rows[i].step), (int)rows[i].state);
	assert_true(fixture_row(fx, "step-000004711-b0002", &row));
	assert_true(row.keep && row.loss == 0.03125);
	assert_string_equal(row.readback, "direct");
	assert_string_equal(row.verified_at, "2026-11-23T04:31:05.123Z");
	assert_string_equal(row.signer, "");
	assert_string_equal(row.mirrored_at, "");
}

static void p8_catalog_of_version_1_is_brought_over_by_a_start(void **state)
{
	struct fixture *fx = *state;

	lay_version_1(fx);
	assert_string_equal(fixture_prepare(fx).catalog, "migrated");
	assert_true(fixture_told(fx, "brought from version 1 to version 2: 4 rows, none lost"));
	expect_migrated(fx);
	/* The old one is still there to look at. */
	assert_true(fixture_exists(fx->run_fd, "catalog.sqlite.broken-1"));
	fx->log[0] = '\0';
	assert_string_equal(fixture_prepare(fx).catalog, "ok");
	assert_false(fixture_told(fx, "the catalog"));
	expect_migrated(fx);
}

static void prepare_once(struct fixture *fx)
{
	struct recovery_summary summary;
	struct error err;

	recovery_prepare(fx->dir, fx->run_fd, &fx->run, NULL, NULL, &summary, &err);
}

/* Killed anywhere, the next start goes on, also between the two renames, when there is no catalog
 * but the new one under its first name. */
static void p8_bringing_it_over_may_end_anywhere(void **state)
{
	static const char *const points[] = {"open", "unlink", "fsync", "rename"};
	uint32_t ended = 0, between = 0;

	for (size_t p = 0; p < sizeof(points) / sizeof(points[0]); p++)
		for (int n = 1; n <= 12; n++) {
			struct fixture *fx;
			char plan[32];

			fixture_setup_small(state);
			fx = *state;
			lay_version_1(fx);
			snprintf(plan, sizeof(plan), "%s:%d:kill", points[p], n);
			ended += fixture_dies(fx, plan, prepare_once);
			between += !fixture_exists(fx->run_fd, "catalog.sqlite");
			fixture_prepare(fx);
			expect_migrated(fx);
			assert_string_equal(fixture_prepare(fx).catalog, "ok");
			assert_false(fixture_exists(fx->run_fd, "catalog.new"));
			fixture_teardown(state);
		}
	assert_true(ended > 10 && between > 0);
}

/* What a replacement that was cut short left behind must not speak later. */
static void p8_leftover_replacement_is_forgotten(void **state)
{
	struct fixture *fx = *state;
	struct catalog_row *rows;
	uint32_t count, bad;

	lay_version_1(fx);
	fixture_prepare(fx);
	fixture_golden(fx->run_fd, "catalog-v1.sqlite", "catalog.new");
	fixture_prepare(fx);
	assert_false(fixture_exists(fx->run_fd, "catalog.new"));
	assert_int_equal(catalog_list_unplaced(fx->dir, &rows, &count, &bad, &fx->err), -ENOENT);
	expect_migrated(fx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(p8_catalog_of_version_1_is_brought_over_by_a_start,
			fixture_setup_small, fixture_teardown),
		cmocka_unit_test(p8_bringing_it_over_may_end_anywhere),
		cmocka_unit_test_setup_teardown(p8_leftover_replacement_is_forgotten,
			fixture_setup_small, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
