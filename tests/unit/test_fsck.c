/* P1, P8: fsck finds each thing that can be wrong with a run's folder, changes nothing unless
 * asked, repairs what a start would put in order, and then finds nothing; what only a person can
 * decide is left and said so. No checkpoint goes but one that retention had given up. */
#include "tests/unit/store_fixture.h"

#include "store/fsck.h"
#include "store/trust.h"

#include <sqlite3.h>

#define TEN "step-000000010-b0001"
#define TWENTY "step-000000020-b0001"
#define READS_TRIED 24

struct told {
	char found[4096], notes[4096], left[4096];
};

static void on_report(void *context, enum fsck_kind kind, const char *text)
{
	struct told *told = context;
	char *list = kind == FSCK_NOTE ? told->notes
		: kind == FSCK_FOUND   ? told->found
				       : told->left;
	size_t used = strlen(list);

	assert_null(strchr(text, '\n'));
	snprintf(list + used, sizeof(told->found) - used, "%s\n", text);
}

static struct fsck_summary fsck(struct fixture *fx, bool repair, struct told *told)
{
	const struct fsck_options options = {
		.repair = repair, .threads = 1, .report = on_report, .context = told};
	struct fsck_summary summary;

	memset(told, 0, sizeof(*told));
	PASS(fsck_run(fx->dir, fx->run_fd, &options, &summary, &fx->err));
	return summary;
}

/* -- damage -- */

static void leave_partial(struct fixture *fx)
{
	fixture_write(fx->fd, ".step-000000030-b0001.partial-7", "x", 1);
}

static void lose_catalog(struct fixture *fx)
{
	assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
}

static void break_catalog(struct fixture *fx)
{
	fixture_write(fx->run_fd, "catalog.sqlite", "nothing of the kind", 19);
}

static void age_catalog(struct fixture *fx)
{
	fixture_golden(fx->run_fd, "catalog-v1.sqlite", "catalog.sqlite");
}

static void damage_row(struct fixture *fx)
{
	char path[320];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/catalog.sqlite", fx->dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "UPDATE checkpoint SET file_bytes = 7 WHERE step = 20",
				 NULL, NULL, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void leave_new_catalog(struct fixture *fx)
{
	fixture_write(fx->run_fd, "catalog.new", "x", 1);
}

static void save_without_row(struct fixture *fx)
{
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, 1, 30, &saved));
}

static void lose_file(struct fixture *fx)
{
	assert_int_equal(unlinkat(fx->fd, TEN CHECKPOINT_SUFFIX, 0), 0);
}

static void change_row(struct fixture *fx, const char *id, void (*change)(struct catalog_row *row))
{
	struct catalog *catalog;
	struct catalog_row row;

	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_get(catalog, id, &row, &fx->err));
	change(&row);
	PASS(catalog_put(catalog, &row, &fx->err));
	catalog_close(catalog);
}

static void be_deleted(struct catalog_row *row)
{
	row->state = CHECKPOINT_DELETED;
}

static void be_corrupt(struct catalog_row *row)
{
	row->state = CHECKPOINT_CORRUPT;
}

static void be_another(struct catalog_row *row)
{
	row->root.bytes[0] ^= 1;
}

static void be_kept(struct catalog_row *row)
{
	row->keep = true;
}

static void interrupt_deletion(struct fixture *fx)
{
	change_row(fx, TEN, be_deleted);
}

static void call_corrupt(struct fixture *fx)
{
	change_row(fx, TEN, be_corrupt);
}

static void exchange_row(struct fixture *fx)
{
	change_row(fx, TEN, be_another);
}

static void call_kept(struct fixture *fx)
{
	change_row(fx, TEN, be_kept);
}

static void keep_behind_its_back(struct fixture *fx)
{
	struct catalog *catalog;
	struct catalog_row row;

	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_get(catalog, TEN, &row, &fx->err));
	catalog_close(catalog);
	fixture_keep(fx, &row.root);
}

static void flip_data(struct fixture *fx)
{
	const char *name = TWENTY CHECKPOINT_SUFFIX;

	fixture_flip(fx->fd, name, fixture_file_bytes(fx->fd, name) - fx->block_bytes + 9);
}

static void flip_header(struct fixture *fx)
{
	fixture_flip(fx->fd, TWENTY CHECKPOINT_SUFFIX, 300);
}

/* As a crash can leave it where a file system keeps no journal. */
static void name_twice(struct fixture *fx, int folder_fd, const char *name)
{
	assert_int_equal(linkat(fx->fd, TWENTY CHECKPOINT_SUFFIX, folder_fd, name, 0), 0);
}

static void name_twice_as_partial(struct fixture *fx)
{
	name_twice(fx, fx->fd, ".step-000000020-b0001.partial-7");
}

static void name_twice_and_flip(struct fixture *fx)
{
	name_twice_as_partial(fx);
	flip_data(fx);
}

/* The log goes only when the new catalog gets its name. */
static void name_twice_as_old_log(struct fixture *fx)
{
	flip_data(fx);
	lose_catalog(fx);
	name_twice(fx, fx->run_fd, "catalog.sqlite-wal");
}

static void lose_run(struct fixture *fx)
{
	assert_int_equal(unlinkat(fx->run_fd, "run.json", 0), 0);
}

static void break_run(struct fixture *fx)
{
	fixture_flip(fx->run_fd, "run.json", 40);
}

static void fork_at_20(struct fixture *fx)
{
	struct line_branch branch = {.fork_step = 20, .why = "test"};
	struct line line;

	PASS(line_load(fx->fd, &line, &fx->err));
	PASS(line_fork(fx->fd, &line, &branch, &fx->err));
	line_fini(&line);
}

static void break_branch(struct fixture *fx)
{
	fork_at_20(fx);
	fixture_flip(fx->fd, "branch-0002.json", 40);
}

static void lose_branch(struct fixture *fx)
{
	fork_at_20(fx);
	fixture_save(fx, 2, 30);
	assert_int_equal(unlinkat(fx->fd, "branch-0002.json", 0), 0);
}

static void two_runs_and_no_name(struct fixture *fx)
{
	struct checkpoint_saved saved;

	fx->run.id[0] ^= 1;
	PASS(fixture_try_save(fx, 1, 30, &saved));
	fx->run.id[0] ^= 1;
	lose_run(fx);
}

static const struct {
	const char *what;
	void (*damage)(struct fixture *fx);
	const char *found; /* one of the lines */
	uint32_t left;     /* after a repair */
	bool goes;         /* step 10 goes */
} cases[] = {
	{"a partial", leave_partial, ".step-000000030-b0001.partial-7: left by", 0, false},
	{"no catalog", lose_catalog, "catalog.sqlite is missing", 0, false},
	{"a broken catalog", break_catalog, "catalog: ", 0, false},
	{"an older catalog", age_catalog, "version 1", 0, false},
	{"a damaged row", damage_row, "1 rows do not match", 0, false},
	{"a replacement cut short", leave_new_catalog, "catalog.new: left by", 0, false},
	{"a file without a row", save_without_row, "it has no row in the catalog", 0, false},
	{"a row without a file", lose_file,
		TEN ": the catalog calls it verified, and its file is gone", 0, true},
	{"a deletion cut short", interrupt_deletion,
		TEN CHECKPOINT_SUFFIX ": its deletion was cut short", 0, true},
	{"a whole one called corrupt", call_corrupt,
		TEN CHECKPOINT_SUFFIX ": it is whole, and the catalog calls it corrupt", 0, false},
	{"a row of another file", exchange_row,
		TEN CHECKPOINT_SUFFIX ": its row speaks of another file", 0, false},
	{"a keep mark that its row does not know", keep_behind_its_back,
		TEN CHECKPOINT_SUFFIX ": the catalog says that it is not kept", 0, false},
	{"a row of a keep mark that is gone", call_kept,
		TEN CHECKPOINT_SUFFIX ": the catalog says that it is kept", 0, false},
	{"a flipped bit of the data", flip_data,
		TWENTY CHECKPOINT_SUFFIX ": corrupt, and the catalog calls it verified: " TWENTY
					 ": chunk 0 of 1",
		0, false},
	{"a flipped bit of the header", flip_header,
		TWENTY CHECKPOINT_SUFFIX ": corrupt, and the catalog calls it verified", 0, false},
	{"a checkpoint that is also a partial", name_twice_as_partial,
		TWENTY CHECKPOINT_SUFFIX ": refused, and the catalog calls it verified", 0, false},
	{"a corrupt one that is also a partial", name_twice_and_flip,
		TWENTY CHECKPOINT_SUFFIX ": refused, and the catalog calls it verified", 0, false},
	{"a corrupt one that is also the log of a lost catalog", name_twice_as_old_log,
		TWENTY CHECKPOINT_SUFFIX ": refused, and the catalog has no row of it", 0, false},
	{"no run.json", lose_run, "run.json is missing", 0, false},
	{"a broken run.json", break_run, "run.json is broken", 0, false},
	{"a broken branch file", break_branch, "branch-0002.json is broken", 1, false},
	{"a lost branch file", lose_branch, "there are checkpoints of branch 2", 1, false},
	{"a fork from another checkpoint", fork_at_20,
		"branch-0002.json: it begins at another " TWENTY, 1, false},
	{"no run.json, and files of two runs", two_runs_and_no_name, "run.json is missing", 2,
		false},
};

static int make(void **state)
{
	fixture_setup_small(state);
	struct fixture *fx = *state;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fx->config.keep_last = 9;
	fixture_save(fx, 1, 10);
	fixture_save(fx, 1, 20);
	fixture_prepare(fx);
	return 0;
}

static void p8_each_thing_is_found_repaired_and_then_clean(void **unused)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fsck_summary summary;
		struct fixture *fx;
		struct told told;
		void *state;

		make(&state);
		fx = state;
		cases[i].damage(fx);
		summary = fsck(fx, false, &told);
		if (strstr(told.found, cases[i].found) == NULL || summary.left != summary.found ||
			told.left[0] != '\0')
			fail_msg("%s: found: %s", cases[i].what, told.found);
		/* It is found again: to look changes nothing. */
		summary = fsck(fx, true, &told);
		if (strstr(told.found, cases[i].found) == NULL || summary.left != cases[i].left)
			fail_msg("%s: left %u: %s", cases[i].what, summary.left, told.left);
		summary = fsck(fx, false, &told);
		if (summary.found != cases[i].left)
			fail_msg("%s: found again: %s", cases[i].what, told.found);
		if (fixture_exists(fx->fd, TEN CHECKPOINT_SUFFIX) == cases[i].goes ||
			!fixture_exists(fx->fd, TWENTY CHECKPOINT_SUFFIX))
			fail_msg("%s: a checkpoint is gone", cases[i].what);
		fixture_teardown(&state);
	}
}

/* What is as it should be though it is bad is a note. */
static void what_the_catalog_says_of_a_bad_file_is_no_finding(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	struct fsck_summary summary;
	struct told told;

	summary = fsck(fx, true, &told);
	assert_int_equal(summary.found, 0);
	assert_int_equal(summary.read_count, 2);
	assert_string_equal(told.notes, "");
	flip_data(fx);
	fx->run.id[0] ^= 1;
	PASS(fixture_try_save(fx, 1, 30, &saved));
	fx->run.id[0] ^= 1;
	fixture_keep(fx, &fx->record.model_digest);
	summary = fsck(fx, true, &told);
	assert_int_equal(summary.found, 2);
	assert_int_equal(summary.left, 0);
	summary = fsck(fx, false, &told);
	assert_int_equal(summary.found, 0);
	assert_non_null(strstr(told.notes, TWENTY CHECKPOINT_SUFFIX ": corrupt, as the catalog"));
	assert_non_null(strstr(told.notes, "step-000000030-b0001.safetensors: refused, as"));
	assert_non_null(strstr(told.notes, "the checkpoint that it keeps is not here"));
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_CORRUPT);
	/* It kept its place, and a start takes the one before it. */
	assert_true(fixture_exists(fx->fd, TWENTY CHECKPOINT_SUFFIX));
	fixture_expect_load(fx, 1, 10);
}

/* Whoever looks without the keys does not overrule who had them. */
static void p10_what_was_refused_for_its_signer_stays_so(void **state)
{
	const struct trust signed_only = {.require = true}, anybody = {0};
	struct fixture *fx = *state;
	struct fsck_summary summary;
	struct told told;

	trust_set(&signed_only);
	summary = fsck(fx, true, &told);
	trust_set(&anybody);
	assert_int_equal(summary.found, 2);
	assert_int_equal(summary.left, 0);
	assert_non_null(strstr(told.found, ": refused, and the catalog calls it verified"));
	summary = fsck(fx, true, &told);
	assert_int_equal(summary.found, 0);
	assert_non_null(strstr(told.notes, ": it is whole, and was refused: "));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_REFUSED);
}

static void what_cannot_be_read_is_left(void **state)
{
	struct fixture *fx = *state;
	struct fsck_summary summary;
	struct told told;

	assert_int_equal(sys_fault_plan("pread:*:EIO"), 0);
	summary = fsck(fx, false, &told);
	sys_fault_plan(NULL);
	assert_int_equal(summary.read_count, 0);
	assert_non_null(strstr(told.found, TEN CHECKPOINT_SUFFIX ": unreadable: "));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
	summary = fsck(fx, true, &told);
	assert_int_equal(summary.found, 0);
}

/* An error that lasts for all tries of one reading, and no longer: wherever it comes, the repair
 * reads again, and the next look finds no trace of it. */
static void what_could_not_be_read_for_a_while_leaves_nothing(void **state)
{
	struct fixture *fx = *state;
	uint32_t seen = 0;

	for (int n = 1; n <= READS_TRIED; n++) {
		struct fsck_summary summary;
		struct told told;
		char plan[96];

		snprintf(plan, sizeof(plan), "pread:%d:EIO,pread:%d:EIO,pread:%d:EIO", n, n + 1,
			n + 2);
		assert_int_equal(sys_fault_plan(plan), 0);
		summary = fsck(fx, true, &told);
		sys_fault_plan(NULL);
		if (strstr(told.found, ": unreadable: ") == NULL)
			continue;
		seen++;
		if (summary.left != 0)
			fail_msg("%s: left: %s", plan, told.left);
		summary = fsck(fx, false, &told);
		if (summary.found != 0)
			fail_msg("%s: found again: %s", plan, told.found);
		assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
		assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
	}
	assert_true(seen >= 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p8_each_thing_is_found_repaired_and_then_clean),
		cmocka_unit_test_setup_teardown(
			what_the_catalog_says_of_a_bad_file_is_no_finding, make, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			p10_what_was_refused_for_its_signer_stays_so, make, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			what_cannot_be_read_is_left, make, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			what_could_not_be_read_for_a_while_leaves_nothing, make, fixture_teardown),
	};

	/* Many folders: where there is memory for them, no disk need suffer. */
	if (access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
