/* P1: a start takes the newest state on the line whose bytes match, whatever was done to the newest
 * file. P8: the catalog may be lost in any way; no checkpoint, branch or keep mark goes with it.
 * P7: a save killed anywhere costs that save. */
#include "tests/unit/store_fixture.h"

#define NEWEST "step-000000030-b0001.safetensors"
#define OLDER "step-000000020-b0001.safetensors"

static void save_three(struct fixture *fx)
{
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	for (uint64_t step = 10; step <= 30; step += 10)
		fixture_save(fx, 1, step);
	fx->log[0] = '\0';
}

/* -- P1: damage to the newest -- */

static void cut_to_nothing(struct fixture *fx)
{
	fixture_truncate(fx->fd, NEWEST, 0);
}

static void cut_in_the_length(struct fixture *fx)
{
	fixture_truncate(fx->fd, NEWEST, 5);
}

static void cut_in_the_header(struct fixture *fx)
{
	fixture_truncate(fx->fd, NEWEST, 3000);
}

static void cut_after_the_header(struct fixture *fx)
{
	fixture_truncate(fx->fd, NEWEST, fixture_file_bytes(fx->fd, NEWEST) - fx->block_bytes);
}

static void cut_by_a_byte(struct fixture *fx)
{
	fixture_truncate(fx->fd, NEWEST, fixture_file_bytes(fx->fd, NEWEST) - 1);
}

static void flip_in_the_length(struct fixture *fx)
{
	fixture_flip(fx->fd, NEWEST, 1);
}

static void flip_in_the_header(struct fixture *fx)
{
	fixture_flip(fx->fd, NEWEST, 2000);
}

static void flip_in_the_first_data(struct fixture *fx)
{
	fixture_flip(fx->fd, NEWEST, fixture_file_bytes(fx->fd, NEWEST) - fx->block_bytes);
}

static void flip_in_the_last_data(struct fixture *fx)
{
	fixture_flip(fx->fd, NEWEST, fixture_file_bytes(fx->fd, NEWEST) - 1);
}

static void overwrite_with_zeros(struct fixture *fx)
{
	uint64_t size = fixture_file_bytes(fx->fd, NEWEST);

	fixture_truncate(fx->fd, NEWEST, 0);
	fixture_truncate(fx->fd, NEWEST, size);
}

static void replace_by_the_older(struct fixture *fx)
{
	uint64_t size = fixture_file_bytes(fx->fd, OLDER);
	uint8_t *copy = malloc(size);
	int fd = openat(fx->fd, OLDER, O_RDONLY | O_CLOEXEC);

	assert_int_equal(file_read_exact(fd, copy, size, 0), 0);
	close(fd);
	fixture_write(fx->fd, NEWEST, copy, size);
	free(copy);
}

static void delete_it(struct fixture *fx)
{
	assert_int_equal(unlinkat(fx->fd, NEWEST, 0), 0);
}

static const struct {
	void (*damage)(struct fixture *fx);
	int state;
} damages[] = {
	{cut_to_nothing, CHECKPOINT_CORRUPT},
	{cut_in_the_length, CHECKPOINT_CORRUPT},
	{cut_in_the_header, CHECKPOINT_CORRUPT},
	{cut_after_the_header, CHECKPOINT_CORRUPT},
	{cut_by_a_byte, CHECKPOINT_CORRUPT},
	{flip_in_the_length, CHECKPOINT_CORRUPT},
	{flip_in_the_header, CHECKPOINT_CORRUPT},
	{flip_in_the_first_data, CHECKPOINT_CORRUPT},
	{flip_in_the_last_data, CHECKPOINT_CORRUPT},
	{overwrite_with_zeros, CHECKPOINT_CORRUPT},
	{replace_by_the_older, CHECKPOINT_CORRUPT},
	{delete_it, CHECKPOINT_MISSING},
};

/* With prepare before (a start of the service) and without (a restart of the trainer). */
static void p1_damaged_newest_gives_way_to_the_one_before(void **state)
{
	for (size_t i = 0; i < 2 * sizeof(damages) / sizeof(damages[0]); i++) {
		struct fixture *fx;
		bool prepared = i % 2 == 0;

		fixture_setup_small(state);
		fx = *state;
		save_three(fx);
		damages[i / 2].damage(fx);
		if (prepared)
			fixture_prepare(fx);
		fixture_expect_load(fx, 1, 20);
		if (damages[i / 2].state == CHECKPOINT_CORRUPT &&
			(!fixture_told(fx, NEWEST " is corrupt") ||
				!fixture_told(fx, "trying the one before it, " OLDER)))
			fail_msg("damage %zu was told so:\n%s", i / 2, fx->log);
		if (prepared && damages[i / 2].state == CHECKPOINT_MISSING)
			assert_true(fixture_told(fx, "its file is gone"));
		if (prepared || damages[i / 2].state == CHECKPOINT_CORRUPT)
			assert_int_equal(fixture_row_state(fx, 1, 30), damages[i / 2].state);
		assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
		/* The next save of this step is not answered with the damaged one. */
		fixture_save(fx, 1, 30);
		fixture_expect_load(fx, 1, 30);
		fixture_teardown(state);
	}
}

static void p1_as_many_as_are_damaged_are_passed_over(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;

	save_three(fx);
	fixture_truncate(fx->fd, NEWEST, 100);
	fixture_flip(fx->fd, OLDER, fixture_file_bytes(fx->fd, OLDER) - 1);
	fixture_expect_load(fx, 1, 10);
	assert_true(fixture_told(fx, "trying the one before it, step-000000010-b0001"));
	fixture_truncate(fx->fd, "step-000000010-b0001.safetensors", 0);
	assert_int_equal(fixture_try_load(fx, &info), -EBADMSG);
	assert_true(fixture_told(fx, "there is no older one on the line"));
	/* A verdict is asked anew at each start: the fault may have been in the reading. */
	fixture_flip(fx->fd, OLDER, fixture_file_bytes(fx->fd, OLDER) - 1);
	fixture_expect_load(fx, 1, 20);
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
}

static void nothing_is_not_the_same_as_nothing_readable(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;

	fixture_prepare(fx);
	assert_int_equal(fixture_try_load(fx, &info), -ENOENT);
	assert_int_equal(symlinkat("/dev/null", fx->fd, NEWEST), 0);
	assert_int_equal(fixture_try_load(fx, &info), -EAGAIN);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_UNREADABLE);
}

/* An I/O error is tried again before an older one is; out of descriptors is nobody's verdict. */
static void p1_errors_that_pass_cost_nothing(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;

	save_three(fx);
	assert_int_equal(sys_fault_plan("pread:2:EIO,fstat:2:EIO"), 0);
	fixture_expect_load(fx, 1, 30);
	assert_int_equal(fx->log[0], '\0');
	assert_int_equal(sys_fault_plan("pread:1:EIO,pread:2:EIO,pread:3:EIO"), 0);
	fixture_expect_load(fx, 1, 20);
	assert_true(fixture_told(fx, NEWEST " is unreadable"));
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_UNREADABLE);
	assert_int_equal(sys_fault_plan("pread:*:ENOMEM"), 0);
	assert_int_equal(fixture_try_load(fx, &info), -ENOMEM);
	sys_fault_plan(NULL);
	fixture_prepare(fx);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_FOUND);
	fixture_expect_load(fx, 1, 30);
}

static void p10_foreign_files_are_refused_and_left_alone(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;
	uint8_t own = fx->run.id[0];

	save_three(fx);
	fx->run.id[0] ^= 0xff;
	assert_int_equal(fixture_try_load(fx, &info), -EAGAIN);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_REFUSED);
	fixture_prepare(fx);
	/* None of ours: retention must not touch them, however many. */
	fx->config.keep_last = 2;
	for (uint64_t step = 40; step < 44; step++)
		fixture_save(fx, 1, step);
	assert_true(fixture_exists(fx->fd, NEWEST) && fixture_exists(fx->fd, OLDER));
	assert_false(fixture_exists(fx->fd, "step-000000041-b0001.safetensors"));
	fx->run.id[0] = own;
	fixture_prepare(fx);
	fixture_expect_load(fx, 1, 30);
}

static void other_model_is_refused(void **state)
{
	const uint32_t shape[] = {3};
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct tensor_table own = fx->table;

	save_three(fx);
	tensor_table_init(&fx->table);
	assert_int_equal(tensor_table_add(&fx->table, "other", 1, shape), 0);
	assert_int_equal(tensor_table_layout(&fx->table, &fx->err), 0);
	assert_int_equal(fixture_try_load(fx, &info), -EAGAIN);
	assert_true(fixture_told(fx, "not those of the configured model"));
	tensor_table_fini(&fx->table);
	fx->table = own;
}

/* -- P8: the catalog -- */

static void spoil_catalog(struct fixture *fx, int how)
{
	static char noise[20000];
	char *log = NULL;
	size_t size = 0;
	struct catalog *writer;
	struct catalog_row row = {.loss = 1};

	memset(noise, 'n', sizeof(noise));
	switch (how) {
	case 0:
		assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
		break;
	case 1:
		fixture_truncate(fx->run_fd, "catalog.sqlite", 0);
		break;
	case 2:
		fixture_truncate(fx->run_fd, "catalog.sqlite", 5000);
		break;
	case 3:
		fixture_write(fx->run_fd, "catalog.sqlite", noise, sizeof(noise));
		break;
	case 4: /* beside the log of another life, whose rows must not come back */
		PASS(catalog_open(fx->dir, CATALOG_WRITE, &writer, &fx->err));
		checkpoint_id_format(99, 1, row.id);
		row.step = 99;
		row.branch = 1;
		PASS(catalog_put(writer, &row, &fx->err));
		assert_int_equal(
			file_read_all(fx->run_fd, "catalog.sqlite-wal", 1 << 24, &log, &size), 0);
		catalog_close(writer);
		assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
		fixture_write(fx->run_fd, "catalog.sqlite-wal", log, size);
		free(log);
		break;
	case 5:
		fixture_flip(fx->run_fd, "catalog.sqlite", 30);
		fixture_flip(fx->run_fd, "catalog.sqlite", 4096 + 3);
		break;
	}
}

static void p8_lost_catalog_loses_nothing(void **state)
{
	for (int how = 0; how <= 5; how++) {
		struct fixture *fx;
		struct recovery_summary summary;
		struct line_branch branch = {.fork_step = 20, .why = "test"};
		struct checkpoint_saved first;
		struct catalog *catalog;
		struct catalog_row row;
		struct line line;

		fixture_setup_small(state);
		fx = *state;
		PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
		first = fixture_save(fx, 1, 10);
		fixture_keep(fx, &first.root);
		fixture_save(fx, 1, 20);
		fixture_save(fx, 1, 30);
		PASS(line_load(fx->fd, &line, &fx->err));
		PASS(line_fork(fx->fd, &line, &branch, &fx->err));
		line_fini(&line);
		spoil_catalog(fx, how);
		summary = fixture_prepare(fx);
		assert_string_equal(summary.catalog, "rebuilt");
		assert_int_equal(summary.branch, 2);
		assert_int_equal(summary.on_line_count, 2);
		assert_true(summary.has_newest);
		assert_string_equal(summary.newest.id, "step-000000020-b0001");
		for (uint64_t step = 10; step <= 30; step += 10)
			assert_int_equal(fixture_row_state(fx, 1, step), CHECKPOINT_FOUND);
		assert_int_equal(fixture_row_state(fx, 1, 99), -1);
		PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
		PASS(catalog_get(catalog, first.id, &row, &fx->err));
		assert_true(row.keep);
		catalog_close(catalog);
		/* The branch stands: 30 of branch 1 was left behind. */
		fixture_expect_load(fx, 1, 20);
		fixture_save(fx, 2, 21);
		fixture_expect_load(fx, 2, 21);
		assert_true(fixture_exists(fx->fd, NEWEST));
		fixture_teardown(state);
	}
}

static void p8_rows_that_can_be_believed_survive(void **state)
{
	struct fixture *fx = *state;
	struct catalog *catalog;
	struct catalog_row row, again;

	save_three(fx);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_get(catalog, "step-000000020-b0001", &row, &fx->err));
	catalog_close(catalog);
	/* A row whose digest does not match: the row of 30 with the digest of another. */
	int fd = openat(fx->run_fd, "catalog.sqlite", O_RDWR | O_CLOEXEC);
	static uint8_t bytes[1 << 17];
	ssize_t size = pread(fd, bytes, sizeof(bytes), 0);
	uint8_t *hit = memmem(bytes, (size_t)size, "step-000000030-b0001", 20);

	/* Its text follows in the row: the state `verified`. */
	hit = memmem(hit, 60, "verified", 8);
	assert_non_null(hit);
	assert_int_equal(pwrite(fd, "verifieD", 8, hit - bytes), 8);
	close(fd);
	assert_string_equal(fixture_prepare(fx).catalog, "rebuilt");
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_FOUND);
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_get(catalog, "step-000000020-b0001", &again, &fx->err));
	assert_memory_equal(&row, &again, sizeof(row));
	catalog_close(catalog);
}

static void first_start_creates_the_catalog(void **state)
{
	struct fixture *fx = *state;
	struct recovery_summary summary = fixture_prepare(fx);

	assert_string_equal(summary.catalog, "created");
	assert_false(summary.has_newest);
	assert_int_equal(summary.branch, 1);
	assert_int_equal(fx->log[0], '\0');
	assert_string_equal(fixture_prepare(fx).catalog, "ok");
}

static void prepare_twice_changes_nothing(void **state)
{
	struct fixture *fx = *state;
	struct catalog_row *first, *second;
	struct catalog *catalog;
	uint32_t count[2], bad;

	save_three(fx);
	fixture_truncate(fx->fd, NEWEST, 50);
	assert_int_equal(unlinkat(fx->fd, "step-000000010-b0001.safetensors", 0), 0);
	fixture_write(fx->fd, ".step-000000040-b0001.partial-3", "x", 1);
	fixture_write(fx->fd, ".branch-0002.json.tmp-77", "x", 1);
	fixture_prepare(fx);
	assert_true(fixture_told(fx, "corrupt: step-000000030-b0001 is corrupt"));
	assert_true(fixture_told(fx, "missing: step-000000010-b0001"));
	assert_true(fixture_told(fx, "leftover: removed .step-000000040"));
	assert_false(fixture_exists(fx->fd, ".branch-0002.json.tmp-77"));
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_list(catalog, &first, &count[0], &bad, &fx->err));
	catalog_close(catalog);
	fx->log[0] = '\0';
	fixture_prepare(fx);
	assert_int_equal(fx->log[0], '\0');
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_list(catalog, &second, &count[1], &bad, &fx->err));
	catalog_close(catalog);
	assert_int_equal(count[0], count[1]);
	assert_memory_equal(first, second, count[0] * sizeof(*first));
	free(first);
	free(second);
	/* The missing one comes back. */
	fixture_try_save(fx, 1, 10, &(struct checkpoint_saved){0});
	fixture_prepare(fx);
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_FOUND);
}

static void p8_lost_branch_file_is_told(void **state)
{
	struct fixture *fx = *state;
	struct line_branch branch = {.fork_step = 20, .why = "test"};
	struct line line;

	save_three(fx);
	PASS(line_load(fx->fd, &line, &fx->err));
	PASS(line_fork(fx->fd, &line, &branch, &fx->err));
	line_fini(&line);
	fixture_save(fx, 2, 25);
	assert_int_equal(unlinkat(fx->fd, "branch-0002.json", 0), 0);
	fixture_prepare(fx);
	assert_true(fixture_told(fx, "no branch-0002.json"));
	fixture_expect_load(fx, 1, 30);
	assert_true(fixture_exists(fx->fd, "step-000000025-b0002.safetensors"));
}

/* -- P7: killed saves -- */

static void save_forty(struct fixture *fx)
{
	fixture_save(fx, 1, 40);
}

static void p7_save_killed_anywhere_costs_that_save(void **state)
{
	static const struct {
		const char *plan;
		bool published;
	} kills[] = {{"save.reserved:1:kill", false}, {"pwrite:1:kill", false},
		{"pwrite:2:kill", false}, {"save.written:1:kill", false}, {"fsync:1:kill", false},
		{"save.synced:1:kill", false}, {"pread:1:kill", false},
		{"save.readback:1:kill", false}, {"rename:1:kill", false},
		{"save.renamed:1:kill", true}, {"save.published:1:kill", true},
		{"save.catalogued:1:kill", true}, {"unlink:1:kill", true}, {"fsync:3:kill", true},
		{"save.retained:1:kill", true}};

	for (size_t i = 0; i < sizeof(kills) / sizeof(kills[0]); i++) {
		struct fixture *fx;

		fixture_setup_small(state);
		fx = *state;
		save_three(fx);
		fx->config.keep_last = 3;
		if (!fixture_dies(fx, kills[i].plan, save_forty))
			fail_msg("%s was never met", kills[i].plan);
		fixture_prepare(fx);
		fixture_expect_load(fx, 1, kills[i].published ? 40 : 30);
		assert_int_equal(fixture_row_state(fx, 1, 40),
			kills[i].published ? CHECKPOINT_VERIFIED : -1);
		assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
		assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_VERIFIED);
		assert_false(fixture_exists(fx->fd, ".step-000000040-b0001.partial-1"));
		/* No row promises a file that is gone; no file is left whose row says so. */
		assert_int_equal(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"),
			fixture_row_state(fx, 1, 10) == CHECKPOINT_VERIFIED);
		fx->log[0] = '\0';
		fixture_prepare(fx);
		assert_int_equal(fx->log[0], '\0');
		/* The next save succeeds, under the same attempt number. */
		fixture_save(fx, 1, 50);
		fixture_expect_load(fx, 1, 50);
		fixture_teardown(state);
	}
}

/* First the row, then the file: a row that says `deleted` is a promise to be kept later. */
static void p7_failed_unlink_is_completed_at_the_next_start(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	save_three(fx);
	fx->config.keep_last = 3;
	PASS(fixture_try_save(fx, 1, 40, &saved));
	source = fixture_source(fx);
	assert_int_equal(sys_fault_plan("unlink:1:EIO"), 0);
	assert_int_equal(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
				 &fx->outcome, fixture_report, fx, &fx->err),
		-EIO);
	sys_fault_plan(NULL);
	assert_true(fx->outcome.catalogued);
	assert_true(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_DELETED);
	fixture_prepare(fx);
	assert_false(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"));
	fixture_expect_load(fx, 1, 40);
}

static void later_file_of_a_deleted_name_stays(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	struct catalog *catalog;

	save_three(fx);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_set_state(
		catalog, "step-000000030-b0001", CHECKPOINT_DELETED, "by retention", &fx->err));
	PASS(catalog_set_state(
		catalog, "step-000000010-b0001", CHECKPOINT_DELETED, "by retention", &fx->err));
	catalog_close(catalog);
	/* 30 is saved anew after its deletion, and the saver dies before the row. */
	assert_int_equal(unlinkat(fx->fd, NEWEST, 0), 0);
	PASS(fixture_try_save(fx, 1, 30, &saved));
	fixture_prepare(fx);
	assert_false(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_DELETED);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_FOUND);
	fixture_expect_load(fx, 1, 30);
}

/* When step's data were last read and matched; "" unknown. */
static const char *verified_at(struct fixture *fx, uint64_t step)
{
	static struct catalog_row row;
	struct catalog *catalog;
	char id[CHECKPOINT_ID_SIZE];

	checkpoint_id_format(step, 1, id);
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_get(catalog, id, &row, &fx->err));
	catalog_close(catalog);
	return row.verified_at;
}

static void p7_checkpoint_stands_without_its_row(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	save_three(fx);
	fx->config.keep_last = 2;
	fixture_write(fx->run_fd, "catalog.sqlite", "garbage", 7);
	PASS(fixture_try_save(fx, 1, 40, &saved));
	source = fixture_source(fx);
	assert_true(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
			    &fx->outcome, fixture_report, fx, &fx->err) < 0);
	assert_false(fx->outcome.catalogued);
	assert_true(fx->err.text[0] != '\0');
	/* Nothing is deleted while it is not known what is verified. */
	assert_true(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"));
	fixture_expect_load(fx, 1, 40);
	fixture_prepare(fx);
	assert_int_equal(fixture_row_state(fx, 1, 40), CHECKPOINT_FOUND);
	assert_string_equal(verified_at(fx, 40), "");
	fixture_expect_load(fx, 1, 40);
	assert_int_equal(fixture_row_state(fx, 1, 40), CHECKPOINT_VERIFIED);
	assert_string_not_equal(verified_at(fx, 40), "");
}

/* What keeps the row away may pass: the next save writes it too. */
static void p7_missing_row_is_written_by_the_next_save(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	save_three(fx);
	PASS(fixture_try_save(fx, 1, 40, &saved));
	source = fixture_source(fx);
	assert_int_equal(sys_fault_plan("fstatat:*:EACCES"), 0);
	assert_true(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
			    &fx->outcome, fixture_report, fx, &fx->err) < 0);
	sys_fault_plan(NULL);
	assert_false(fx->outcome.catalogued);
	assert_int_equal(fixture_row_state(fx, 1, 40), -1);
	fixture_save(fx, 1, 50);
	assert_int_equal(fixture_row_state(fx, 1, 40), CHECKPOINT_FOUND);
	assert_int_equal(fixture_row_state(fx, 1, 50), CHECKPOINT_VERIFIED);
}

/* -- one to look into -- */

static void pick_takes_the_newest_or_the_asked(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct catalog *catalog;
	int fd;

	assert_int_equal(recovery_pick(fx->dir, fx->run_fd, NULL, &info, &fd, &fx->err), -ENOENT);
	save_three(fx);
	PASS(recovery_pick(fx->dir, fx->run_fd, NULL, &info, &fd, &fx->err));
	assert_string_equal(info.id, "step-000000030-b0001");
	close(fd);
	checkpoint_info_fini(&info);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_set_state(
		catalog, "step-000000030-b0001", CHECKPOINT_CORRUPT, "chunk 0", &fx->err));
	catalog_close(catalog);
	PASS(recovery_pick(fx->dir, fx->run_fd, "", &info, &fd, &fx->err));
	assert_string_equal(info.id, "step-000000020-b0001");
	close(fd);
	checkpoint_info_fini(&info);
	PASS(recovery_pick(fx->dir, fx->run_fd, "step-000000010-b0001", &info, &fd, &fx->err));
	assert_int_equal(info.record.step, 10);
	close(fd);
	checkpoint_info_fini(&info);
	assert_int_equal(
		recovery_pick(fx->dir, fx->run_fd, "step-000000011-b0001", &info, &fd, &fx->err),
		-ENOENT);
	assert_int_equal(recovery_pick(fx->dir, fx->run_fd, "../x", &info, &fd, &fx->err), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p1_damaged_newest_gives_way_to_the_one_before),
		TEST(p1_as_many_as_are_damaged_are_passed_over),
		TEST(nothing_is_not_the_same_as_nothing_readable),
		TEST(p1_errors_that_pass_cost_nothing),
		TEST(p10_foreign_files_are_refused_and_left_alone),
		TEST(other_model_is_refused),
		cmocka_unit_test(p8_lost_catalog_loses_nothing),
		TEST(p8_rows_that_can_be_believed_survive),
		TEST(first_start_creates_the_catalog),
		TEST(prepare_twice_changes_nothing),
		TEST(p8_lost_branch_file_is_told),
		cmocka_unit_test(p7_save_killed_anywhere_costs_that_save),
		TEST(p7_failed_unlink_is_completed_at_the_next_start),
		TEST(later_file_of_a_deleted_name_stays),
		TEST(p7_checkpoint_stands_without_its_row),
		TEST(p7_missing_row_is_written_by_the_next_save),
		TEST(pick_takes_the_newest_or_the_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
