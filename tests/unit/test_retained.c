/* P1, P7: what retention and making room do to files: never to one that is kept, being read, or one
 * of the newest two verified; and the keep mark, which is told durable only when it is. P8: the
 * row only follows the mark. P11: weights that stand still while updates are counted are noticed.
 */
#include "tests/unit/store_fixture.h"

#include <signal.h>
#include <sys/file.h>

#define FIRST "step-000000010-b0001.safetensors"
#define SECOND "step-000000020-b0001.safetensors"
#define THIRD "step-000000030-b0001.safetensors"

/* Steps 10 to last, by 10. */
static void save_until(struct fixture *fx, uint64_t last)
{
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	for (uint64_t step = 10; step <= last; step += 10)
		fixture_save(fx, 1, step);
	fx->log[0] = '\0';
}

static int open_step(struct fixture *fx, const char *name)
{
	struct checkpoint_info info;
	int fd = checkpoint_open(fx->fd, name, &info, &fx->err);

	PASS(fd);
	checkpoint_info_fini(&info);
	return fd;
}

static void p1_kept_ones_outlive_all(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved first;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fx->config.keep_last = 2;
	fx->config.keep_every = 40;
	first = fixture_save(fx, 1, 10);
	fixture_keep(fx, &first.root);
	for (uint64_t step = 20; step <= 100; step += 10)
		fixture_save(fx, 1, step);
	for (uint64_t step = 10; step <= 100; step += 10) {
		bool stays = step == 10 || step == 40 || step == 80 || step >= 90;
		char name[64];

		fixture_name(1, step, name);
		assert_int_equal(fixture_exists(fx->fd, name), stays);
		assert_int_equal(fixture_row_state(fx, 1, step),
			stays ? CHECKPOINT_VERIFIED : CHECKPOINT_DELETED);
	}
	assert_true(fixture_told(fx, "deleted: step-000000020-b0001 is deleted by retention"));
}

static void p7_room_is_made_down_to_two(void **state)
{
	struct fixture *fx = *state;

	save_until(fx, 40);
	fixture_write(fx->fd, THIRD ".corrupt-1", "x", 1);
	/* Enough is free: nothing happens, not even to the catalog. */
	PASS(recovery_make_room(fx->dir, fx->run_fd, 1, false, fixture_report, fx, &fx->err));
	assert_true(fixture_exists(fx->fd, FIRST));
	assert_int_equal(recovery_make_room(fx->dir, fx->run_fd, UINT64_C(1) << 60, false,
				 fixture_report, fx, &fx->err),
		-ENOSPC);
	assert_non_null(strstr(fx->err.text, "disk full"));
	assert_false(fixture_exists(fx->fd, THIRD ".corrupt-1"));
	assert_false(fixture_exists(fx->fd, FIRST));
	assert_false(fixture_exists(fx->fd, SECOND));
	assert_true(fixture_exists(fx->fd, THIRD));
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_DELETED);
	fixture_expect_load(fx, 1, 40);
	/* What lets the catalog be written on a full disk is there again. */
	assert_int_equal(fixture_file_bytes(fx->run_fd, "reserve"), 1 << 20);
}

/* A quota: the disk says that it has room and takes nothing. */
static void p7_refused_room_is_given_up_all_the_same(void **state)
{
	struct fixture *fx = *state;

	save_until(fx, 40);
	PASS(recovery_make_room(
		fx->dir, fx->run_fd, fx->block_bytes, true, fixture_report, fx, &fx->err));
	assert_false(fixture_exists(fx->fd, FIRST));
	assert_true(fixture_exists(fx->fd, SECOND));
	PASS(recovery_make_room(
		fx->dir, fx->run_fd, fx->block_bytes, true, fixture_report, fx, &fx->err));
	assert_false(fixture_exists(fx->fd, SECOND));
	assert_int_equal(recovery_make_room(fx->dir, fx->run_fd, fx->block_bytes, true,
				 fixture_report, fx, &fx->err),
		-ENOSPC);
	assert_non_null(strstr(fx->err.text, "refuses"));
	assert_true(fixture_exists(fx->fd, THIRD));
}

static void p7_what_is_being_read_stays(void **state)
{
	struct fixture *fx = *state;
	int fd;

	save_until(fx, 30);
	fd = open_step(fx, FIRST);
	fx->config.keep_last = 2;
	fixture_save(fx, 1, 40);
	assert_true(fixture_exists(fx->fd, FIRST));
	assert_false(fixture_exists(fx->fd, SECOND));
	assert_true(fixture_told(fx, "in-use: " FIRST " is being read"));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
	/* A full disk does not take it either. */
	assert_int_equal(recovery_make_room(fx->dir, fx->run_fd, UINT64_C(1) << 60, false,
				 fixture_report, fx, &fx->err),
		-ENOSPC);
	assert_true(fixture_exists(fx->fd, FIRST));
	close(fd);
	fixture_save(fx, 1, 50);
	assert_false(fixture_exists(fx->fd, FIRST));
}

/* The other way round: who comes while it is being deleted is told that it is gone. */
static void p7_what_is_being_deleted_is_not_opened(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;
	int fd;

	save_until(fx, 30);
	fd = openat(fx->fd, THIRD, O_RDONLY | O_CLOEXEC);
	assert_int_equal(sys_flock(fd, LOCK_EX | LOCK_NB), 0);
	assert_int_equal(checkpoint_open(fx->fd, THIRD, &info, &fx->err), -ENOENT);
	fixture_expect_load(fx, 1, 20);
	close(fd);
	fixture_expect_load(fx, 1, 30);
	/* Without such locks, readers read and retention deletes. */
	fx->config.keep_last = 2;
	assert_int_equal(sys_fault_plan("flock:*:EIO"), 0);
	fixture_expect_load(fx, 1, 30);
	fixture_save(fx, 1, 40);
	sys_fault_plan(NULL);
	assert_false(fixture_exists(fx->fd, SECOND));
}

static void p7_budget_holds_or_says_so(void **state)
{
	struct fixture *fx = *state;
	uint64_t file_bytes;

	save_until(fx, 50);
	file_bytes = fixture_file_bytes(fx->fd, FIRST);
	fixture_write(fx->fd, FIRST ".corrupt-1", "xxxx", 4);
	/* Five fit, and four bytes more: what was moved aside goes first. */
	fx->config.keep_last = 100;
	fx->config.keep_bytes = 6.0 * (double)file_bytes / 1073741824.0;
	fixture_save(fx, 1, 60);
	assert_false(fixture_exists(fx->fd, FIRST ".corrupt-1"));
	assert_true(fixture_exists(fx->fd, FIRST));
	assert_int_equal(fx->outcome.over_bytes, 0);
	fixture_save(fx, 1, 70);
	assert_false(fixture_exists(fx->fd, FIRST));
	assert_true(fixture_exists(fx->fd, SECOND));
	fx->config.keep_bytes = 1.0 / 1048576;
	fixture_save(fx, 1, 80);
	assert_false(fixture_exists(fx->fd, "step-000000060-b0001.safetensors"));
	assert_true(fixture_exists(fx->fd, "step-000000070-b0001.safetensors"));
	assert_int_equal(fx->outcome.over_bytes, 2 * file_bytes - 1024);
}

static void p1_tail_and_best_outlive_the_newest(void **state)
{
	struct fixture *fx = *state;
	uint32_t left = 0;
	char name[64];

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fx->config.keep_last = 2;
	fx->config.keep_tail = true;
	for (uint64_t step = 1; step <= 20; step++)
		fixture_save(fx, 1, step);
	for (uint64_t step = 1; step <= 20; step++) {
		fixture_name(1, step, name);
		left += fixture_exists(fx->fd, name);
	}
	fixture_name(1, 1, name);
	assert_true(fixture_exists(fx->fd, name));
	assert_in_range(left, 5, 11);
}

static void p8_lost_catalog_costs_no_milestone(void **state)
{
	struct fixture *fx = *state;

	fx->config.keep_last = 2;
	fx->config.keep_every = 20;
	save_until(fx, 50);
	assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
	fixture_prepare(fx);
	for (uint64_t step = 60; step <= 80; step += 10)
		fixture_save(fx, 1, step);
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_FOUND);
	assert_true(fixture_exists(fx->fd, SECOND));
	assert_true(fixture_exists(fx->fd, "step-000000040-b0001.safetensors"));
	assert_false(fixture_exists(fx->fd, "step-000000050-b0001.safetensors"));
}

/* -- keep -- */

static bool row_keeps(struct fixture *fx, const char *id)
{
	struct catalog_row row;

	assert_true(fixture_row(fx, id, &row));
	return row.keep;
}

static int keep(struct fixture *fx, const char *id, bool on, char text[256])
{
	return recovery_keep(fx->dir, fx->run_fd, id, on, text, 256, &fx->err);
}

static void p1_kept_until_told_otherwise(void **state)
{
	struct fixture *fx = *state;
	char text[256];

	save_until(fx, 20);
	fx->config.keep_last = 2;
	PASS(keep(fx, "step-000000010-b0001", true, text));
	assert_string_equal(text, "step-000000010-b0001 is kept");
	assert_true(row_keeps(fx, "step-000000010-b0001"));
	PASS(keep(fx, "step-000000010-b0001", true, text)); /* again is the same */
	for (uint64_t step = 30; step <= 50; step += 10)
		fixture_save(fx, 1, step);
	assert_true(fixture_exists(fx->fd, FIRST));
	assert_false(fixture_exists(fx->fd, SECOND));
	PASS(keep(fx, "step-000000010-b0001", false, text));
	assert_string_equal(text, "step-000000010-b0001 is no longer kept");
	assert_false(row_keeps(fx, "step-000000010-b0001"));
	fixture_save(fx, 1, 60);
	assert_false(fixture_exists(fx->fd, FIRST));
	assert_int_equal(keep(fx, "step-000000010-b0001", true, text), -ENOENT);
	PASS(keep(fx, "step-000000010-b0001", false, text));
	assert_int_equal(keep(fx, "step-000000011-b0001", false, text), -ENOENT);
	assert_int_equal(keep(fx, "newest", true, text), -EINVAL);
}

/* Its row says `deleted`, its file would not go: whoever keeps it then has it for good. */
static void p1_kept_between_its_row_and_its_unlink(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;
	char text[256];
	int fd;

	save_until(fx, 20);
	fx->config.keep_last = 2;
	for (int catalog = 0; catalog < 2; catalog++) {
		const char *id = catalog ? "step-000000020-b0001" : "step-000000010-b0001";
		struct checkpoint_info info;
		char name[64];

		PASS(fixture_try_save(fx, 1, 30 + 10 * (uint64_t)catalog, &saved));
		source = fixture_source(fx);
		assert_int_equal(sys_fault_plan("unlink:1:EIO"), 0);
		assert_int_equal(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source,
					 &fx->config, &fx->outcome, fixture_report, fx, &fx->err),
			-EIO);
		sys_fault_plan(NULL);
		fixture_name(1, 10 + 10 * (uint64_t)catalog, name);
		assert_int_equal(
			fixture_row_state(fx, 1, 10 + 10 * (uint64_t)catalog), CHECKPOINT_DELETED);
		if (catalog) {
			PASS(keep(fx, id, true, text));
			assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_FOUND);
		} else {
			/* Without the row: as if the catalog could not be written. */
			fd = checkpoint_open(fx->fd, name, &info, &fx->err);
			PASS(fd);
			fixture_keep(fx, &info.root);
			checkpoint_info_fini(&info);
			close(fd);
		}
		fixture_prepare(fx);
		assert_true(fixture_exists(fx->fd, name));
		assert_true(row_keeps(fx, id));
		assert_int_equal(
			fixture_row_state(fx, 1, 10 + 10 * (uint64_t)catalog), CHECKPOINT_FOUND);
	}
}

static void keep_of_what_is_off_the_line_or_damaged(void **state)
{
	struct fixture *fx = *state;
	struct line_branch branch = {.fork_step = 20, .suspect = true, .why = "test"};
	struct line line;
	char text[256];

	save_until(fx, 40);
	PASS(line_load(fx->fd, &line, &fx->err));
	PASS(line_fork(fx->fd, &line, &branch, &fx->err));
	line_fini(&line);
	PASS(keep(fx, "step-000000030-b0001", true, text));
	/* Data damaged: it stays to be looked at, and says so once that is known. */
	fixture_flip(fx->fd, SECOND, fixture_file_bytes(fx->fd, SECOND) - 1);
	fixture_expect_load(fx, 1, 10);
	PASS(keep(fx, "step-000000020-b0001", true, text));
	assert_non_null(strstr(text, "it is corrupt"));
	/* Header damaged: nobody knows what it is. */
	fixture_flip(fx->fd, "step-000000040-b0001.safetensors", 2000);
	assert_int_equal(keep(fx, "step-000000040-b0001", true, text), -EBADMSG);
	assert_non_null(strstr(fx->err.text, "copy the file"));
	fx->config.keep_last = 2;
	fx->config.keep_bytes = 1.0 / 1048576;
	for (uint64_t step = 21; step <= 26; step++)
		fixture_save(fx, 2, step);
	assert_true(fixture_exists(fx->fd, THIRD));
	assert_true(fixture_exists(fx->fd, SECOND));
	assert_false(fixture_exists(fx->fd, FIRST));
}

/* The mark is the truth; a row that could not be written follows at the next start. */
static void p8_keep_stands_without_a_catalog(void **state)
{
	struct fixture *fx = *state;
	char text[256];

	save_until(fx, 20);
	assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
	PASS(keep(fx, "step-000000010-b0001", true, text));
	assert_non_null(strstr(text, "after the next start"));
	fixture_prepare(fx);
	assert_true(row_keeps(fx, "step-000000010-b0001"));
}

static void keep_first(struct fixture *fx)
{
	char text[256];

	if (keep(fx, "step-000000010-b0001", true, text) < 0)
		_exit(1);
}

static void p7_keep_killed_anywhere_is_kept_or_not(void **state)
{
	static const char *const plans[] = {
		"flock:1:kill", "fsync:1:kill", "rename:1:kill", "fsync:2:kill"};
	uint32_t kept = 0;

	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		struct fixture *fx;
		struct checkpoint_info info;
		char mark[80];
		int fd;

		fixture_setup_small(state);
		fx = *state;
		save_until(fx, 20);
		fd = checkpoint_open(fx->fd, FIRST, &info, &fx->err);
		PASS(fd);
		close(fd);
		digest_to_hex(&info.root, mark);
		strcat(mark, ".keep");
		checkpoint_info_fini(&info);
		if (!fixture_dies(fx, plans[i], keep_first))
			fail_msg("%s was never met", plans[i]);
		fixture_prepare(fx);
		assert_int_equal(
			row_keeps(fx, "step-000000010-b0001"), fixture_exists(fx->fd, mark));
		kept += row_keeps(fx, "step-000000010-b0001");
		fixture_teardown(state);
	}
	assert_int_equal(kept, 1); /* killed at the fsync of the folder */
}

/* Not told durable unless it is. */
static void p1_keep_that_fails_says_so(void **state)
{
	static const char *const plans[] = {"fsync:1:EIO", "rename:1:EIO", "fsync:2:EIO"};
	struct fixture *fx = *state;
	char text[256];

	save_until(fx, 10);
	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		if (keep(fx, "step-000000010-b0001", true, text) >= 0)
			fail_msg("%s: %s", plans[i], text);
		sys_fault_plan(NULL);
		assert_non_null(strstr(fx->err.text, "cannot write the keep mark"));
		PASS(keep(fx, "step-000000010-b0001", false, text));
	}
}

/* Retention has read the folder, then somebody asks to keep what it was about to delete. */
static void p1_keep_during_retention_counts(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	char text[256];
	pid_t pid;
	int status;

	save_until(fx, 20);
	fx->config.keep_last = 2;
	PASS(fixture_try_save(fx, 1, 30, &saved));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct checkpoint_source source = fixture_source(fx);

		_exit(sys_fault_plan("flock:1:stop") < 0 ||
			recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config,
				&fx->outcome, NULL, NULL, &fx->err) < 0);
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	PASS(keep(fx, "step-000000010-b0001", true, text));
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_true(fixture_exists(fx->fd, FIRST));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
}

/* -- freshness -- */

static bool is_stale(struct fixture *fx, uint64_t step, uint64_t updates, bool same_weights)
{
	struct checkpoint_source source;
	struct checkpoint_info parent;
	bool stale;
	int fd;

	PASS(recovery_pick(fx->dir, fx->run_fd, NULL, &parent, &fd, &fx->err));
	close(fd);
	fixture_state(fx, 1, same_weights ? parent.record.step : step);
	fx->record.step = step;
	fx->record.update_count = updates;
	source = fixture_source(fx);
	stale = checkpoint_weights_stale(&parent, &source);
	checkpoint_info_fini(&parent);
	return stale;
}

static void p11_weights_that_stand_still_are_noticed(void **state)
{
	struct fixture *fx = *state;

	save_until(fx, 20);
	assert_true(is_stale(fx, 30, 30, true));
	assert_false(is_stale(fx, 30, 30, false));
	/* All updates between were skipped. */
	assert_false(is_stale(fx, 30, 20, true));
	fx->config.learning_rate = 0;
	assert_false(is_stale(fx, 30, 30, true));
}

/* The digest is that of the weights alone: the moments may move. */
static void weights_digest_is_of_the_weights(void **state)
{
	struct fixture *fx = *state;
	struct digest before, after;

	fixture_state(fx, 1, 10);
	before = checkpoint_weights_digest(&fx->table, fx->sums);
	fx->block[SECTION_EXP_AVG * fx->table.section_bytes] ^= 1;
	seal_sums(fx->block, fx->block_bytes, fx->sums);
	after = checkpoint_weights_digest(&fx->table, fx->sums);
	assert_true(digest_equal(&before, &after));
	fx->block[fx->table.tensor_bytes - 1] ^= 1;
	seal_sums(fx->block, fx->block_bytes, fx->sums);
	after = checkpoint_weights_digest(&fx->table, fx->sums);
	assert_false(digest_equal(&before, &after));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p1_kept_ones_outlive_all),
		TEST(p7_room_is_made_down_to_two),
		TEST(p7_refused_room_is_given_up_all_the_same),
		TEST(p7_what_is_being_read_stays),
		TEST(p7_what_is_being_deleted_is_not_opened),
		TEST(p7_budget_holds_or_says_so),
		TEST(p1_tail_and_best_outlive_the_newest),
		TEST(p8_lost_catalog_costs_no_milestone),
		TEST(p1_kept_until_told_otherwise),
		TEST(p1_kept_between_its_row_and_its_unlink),
		TEST(keep_of_what_is_off_the_line_or_damaged),
		TEST(p8_keep_stands_without_a_catalog),
		cmocka_unit_test(p7_keep_killed_anywhere_is_kept_or_not),
		TEST(p1_keep_that_fails_says_so),
		TEST(p1_keep_during_retention_counts),
		TEST(p11_weights_that_stand_still_are_noticed),
		TEST(weights_digest_is_of_the_weights),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
