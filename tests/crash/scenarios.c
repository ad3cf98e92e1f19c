/* See tests/crash/scenarios.h. */
#include "tests/crash/scenarios.h"

#include <sqlite3.h>

#define OLD_ROWS 40

/* -- what can be done -- */

/* Small: 12 KiB of each section say something, the rest are zeros. */
static void small_table(struct fixture *fx)
{
	tensor_table_fini(&fx->table);
	fixture_table(fx, 3);
}

static uint32_t know(struct play *play, uint32_t branch, uint64_t step)
{
	assert_true(play->known_count < KNOWN_MAX);
	play->known[play->known_count] = (struct known){.branch = branch, .step = step};
	return play->known_count++;
}

static void seal_state(struct play *play, uint32_t branch, uint64_t step)
{
	struct fixture *fx = play->fx;

	fixture_state(fx, branch, step);
	checker_content(&fx->table, branch, step, fx->block);
	seal_sums(fx->block, fx->block_bytes, fx->sums);
	fx->record.sums_digest = digest_of(fx->sums, fx->sum_count * sizeof(uint64_t));
	state_record_seal(&fx->record);
}

/* From operation `begun` on, this one was retention's to take. */
static void retire(struct play *play, uint32_t place, uint32_t begun)
{
	struct trace *trace = &play->trace;
	struct trace_op event;

	play->known[place].saved = false;
	trace_event(trace, EVENT_RETIRING, place);
	event = trace->ops[trace->op_count - 1];
	memmove(&trace->ops[begun + 1], &trace->ops[begun],
		(trace->op_count - 1 - begun) * sizeof(event));
	trace->ops[begun] = event;
}

/* What is gone since. failed: the oldest may go too, since its row may be on the disk whatever its
 * sync said. */
static void mark_retired(struct play *play, uint32_t begun, bool failed)
{
	for (uint32_t i = 0; i < play->known_count; i++) {
		char name[64];

		fixture_name(play->known[i].branch, play->known[i].step, name);
		if (!play->known[i].saved || play->known[i].kept)
			continue;
		if (failed || !fixture_exists(play->fx->fd, name))
			retire(play, i, begun);
		failed = false;
	}
}

static int make_room(struct play *play, bool refused)
{
	struct fixture *fx = play->fx;
	uint32_t begun = play->trace.op_count;
	int rc = recovery_make_room(
		fx->dir, fx->run_fd, fx->block_bytes, refused, NULL, NULL, &fx->err);

	mark_retired(play, begun, rc < 0);
	return rc;
}

static void save(struct play *play, uint32_t branch, uint64_t step)
{
	struct fixture *fx = play->fx;
	uint32_t place = know(play, branch, step), begun;
	struct recovery_outcome outcome;
	struct checkpoint_source source;
	struct checkpoint_saved saved;
	int rc = -ENOSPC;

	seal_state(play, branch, step);
	source = fixture_source(fx);
	for (int try = 0; rc == -ENOSPC && try < 3; try++) {
		if (make_room(play, try == 2) < 0)
			return;
		rc = checkpoint_save(fx->fd, &source, &saved, &fx->err);
	}
	if (rc < 0)
		return;
	play->known[place].root = saved.root;
	play->known[place].saved = true;
	trace_event(&play->trace, EVENT_SAVED, place);
	begun = play->trace.op_count;
	rc = recovery_catalog_saved(
		fx->dir, fx->run_fd, &saved, &source, &fx->config, &outcome, NULL, NULL, &fx->err);
	mark_retired(play, begun, rc < 0 && outcome.catalogued);
	if (outcome.catalogued)
		trace_event(&play->trace, EVENT_CATALOGUED, place);
}

static int start(struct play *play)
{
	struct fixture *fx = play->fx;
	struct recovery_summary summary;

	return recovery_prepare(fx->dir, fx->run_fd, &fx->run, NULL, NULL, &summary, &fx->err);
}

static void keep(struct play *play, uint32_t place)
{
	struct fixture *fx = play->fx;
	char id[CHECKPOINT_ID_SIZE], text[256];

	checkpoint_id_format(play->known[place].step, play->known[place].branch, id);
	if (recovery_keep(fx->dir, fx->run_fd, id, true, text, sizeof(text), &fx->err) < 0)
		return;
	play->known[place].kept = true;
	trace_event(&play->trace, EVENT_KEPT, place);
}

static void fork_at(struct play *play, uint64_t step)
{
	struct fixture *fx = play->fx;
	struct line_branch branch = {.fork_step = step, .why = "rollback"};
	struct line line;

	if (line_load(fx->fd, &line, &fx->err) < 0)
		return;
	if (line_fork(fx->fd, &line, &branch, &fx->err) == 0)
		trace_event(&play->trace, EVENT_BRANCH, branch.branch);
	line_fini(&line);
}

static void want(struct play *play, enum wanted wanted)
{
	struct fixture *fx = play->fx;

	fx->run.wanted = wanted;
	trace_event(&play->trace, EVENT_WANTED_ASKED, wanted);
	if (run_store(fx->run_fd, &fx->run, &fx->err) == 0)
		trace_event(&play->trace, EVENT_WANTED, wanted);
}

/* -- before -- */

static void make_nothing(struct play *play)
{
	assert_int_equal(start(play), 0);
}

/* Rows of files that went long ago: full pages have more ways to be torn. */
static void add_old_rows(struct play *play)
{
	struct fixture *fx = play->fx;
	struct catalog *catalog;

	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_begin(catalog, &fx->err));
	for (uint32_t i = 0; i < OLD_ROWS; i++) {
		struct catalog_row row = {.step = i * 17 % 100 * 10000 + 1000000, .branch = 1};

		row.state = CHECKPOINT_DELETED;
		row.root = digest_of(&i, sizeof(i));
		row.parent_root = digest_of(&row.root, sizeof(row.root));
		checkpoint_id_format(row.step, row.branch, row.id);
		snprintf(row.created, sizeof(row.created), "2026-11-23T04:31:05.123Z");
		snprintf(row.text, sizeof(row.text), "by retention");
		PASS(catalog_put(catalog, &row, &fx->err));
	}
	PASS(catalog_end(catalog, 0, &fx->err));
	catalog_close(catalog);
}

static void make_three(struct play *play)
{
	assert_int_equal(start(play), 0);
	add_old_rows(play);
	play->fx->config.keep_last = 3;
	for (uint64_t step = 10; step <= 30; step += 10)
		save(play, 1, step);
	assert_int_equal(start(play), 0);
}

static void make_without_catalog(struct play *play)
{
	make_three(play);
	assert_int_equal(unlinkat(play->fx->run_fd, "catalog.sqlite", 0), 0);
}

static void make_broken_catalog(struct play *play)
{
	make_three(play);
	keep(play, 1);
	fixture_write(play->fx->run_fd, "catalog.sqlite", "nothing of the kind", 19);
}

/* Files without a row, an unlink that was not finished, leftovers. */
static void make_disorder(struct play *play)
{
	struct fixture *fx = play->fx;
	struct checkpoint_source source;
	struct checkpoint_saved saved;
	struct catalog *catalog;

	make_three(play);
	seal_state(play, 1, 40);
	source = fixture_source(fx);
	PASS(checkpoint_save(fx->fd, &source, &saved, &fx->err));
	play->known[know(play, 1, 40)] = (struct known){
		.branch = 1, .step = 40, .root = saved.root, .saved = true};
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_set_state(catalog, "step-000000010-b0001", CHECKPOINT_DELETED, "", &fx->err));
	catalog_close(catalog);
	play->known[0].saved = false;
	fixture_write(fx->fd, ".step-000000050-b0001.partial-2", "x", 1);
}

/* The digest of a row as version 1 had it. */
static void old_digest(const struct catalog_row *row, char hex[DIGEST_HEX_SIZE])
{
	const char *texts[] = {row->created, row->readback, row->text};
	const char *state = checkpoint_state_name(row->state);
	uint64_t length = strlen(row->id), numbers[] = {row->step, row->branch}, loss = 0;
	uint64_t more[] = {row->file_bytes, isnan(row->loss), 0, row->trained_seconds, row->keep};
	struct digest_stream stream;
	struct digest digest;

	if (!isnan(row->loss))
		memcpy(&loss, &row->loss, sizeof(loss));
	more[2] = loss;
	digest_begin(&stream);
	digest_add(&stream, &length, sizeof(length));
	digest_add(&stream, row->id, length);
	digest_add(&stream, numbers, sizeof(numbers));
	length = strlen(state);
	digest_add(&stream, &length, sizeof(length));
	digest_add(&stream, state, length);
	digest_add(&stream, &row->root, sizeof(row->root));
	digest_add(&stream, &row->parent_root, sizeof(row->parent_root));
	digest_add(&stream, more, sizeof(more));
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		length = strlen(texts[i]);
		digest_add(&stream, &length, sizeof(length));
		digest_add(&stream, texts[i], length);
	}
	digest = digest_end(&stream);
	digest_to_hex(&digest, hex);
}

/* The catalog with the columns and digests of version 1. */
static void make_version_1(struct play *play)
{
	struct fixture *fx = play->fx;
	struct catalog *catalog;
	struct catalog_row *rows;
	uint32_t count, bad;
	char path[512], sql[512], hex[DIGEST_HEX_SIZE];
	sqlite3 *db;

	make_three(play);
	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	PASS(catalog_list(catalog, &rows, &count, &bad, &fx->err));
	catalog_close(catalog);
	snprintf(path, sizeof(path), "%s/catalog.sqlite", fx->dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db,
				 "ALTER TABLE checkpoint DROP COLUMN verified_at;"
				 "ALTER TABLE checkpoint DROP COLUMN signer;"
				 "ALTER TABLE checkpoint DROP COLUMN mirrored_at;"
				 "PRAGMA user_version = 1",
				 NULL, NULL, NULL),
		SQLITE_OK);
	for (uint32_t i = 0; i < count; i++) {
		old_digest(&rows[i], hex);
		snprintf(sql, sizeof(sql),
			"UPDATE checkpoint SET row_digest = '%s' WHERE id = '%s'", hex, rows[i].id);
		assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	}
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	free(rows);
}

/* -- what is recorded -- */

static void run_save(struct play *play)
{
	save(play, 1, 40);
}

static void run_first_save(struct play *play)
{
	save(play, 1, 10);
}

static void run_two_saves(struct play *play)
{
	save(play, 1, 40);
	save(play, 1, 50);
}

static void run_start(struct play *play)
{
	start(play);
}

static void run_rollback(struct play *play)
{
	fork_at(play, 20);
	save(play, 2, 25);
	save(play, 2, 35);
}

static void run_keep(struct play *play)
{
	keep(play, 0);
	save(play, 1, 40);
	save(play, 1, 50);
}

static void run_wanted(struct play *play)
{
	want(play, WANTED_PAUSED);
	want(play, WANTED_RUN);
}

static void run_day(struct play *play)
{
	save(play, 1, 40);
	want(play, WANTED_PAUSED);
	keep(play, 2);
	want(play, WANTED_RUN);
	start(play);
	save(play, 1, 50);
	fork_at(play, 40);
	start(play);
	save(play, 2, 45);
	save(play, 2, 55);
	fork_at(play, 45);
	save(play, 3, 50);
	start(play);
	save(play, 3, 60);
	save(play, 3, 70);
}

const struct scenario scenarios[] = {
	{"first_save", make_nothing, run_first_save},
	{"save", make_three, run_save},
	{"two_saves", make_three, run_two_saves},
	{"full_disk", make_three, run_save, "fallocate:1:ENOSPC,fallocate:2:ENOSPC,"},
	{"adopt", make_disorder, run_start},
	{"create_catalog", make_without_catalog, run_start},
	{"rebuild_catalog", make_broken_catalog, run_start},
	{"migrate_catalog", make_version_1, run_start},
	{"rollback", make_three, run_rollback},
	{"keep", make_three, run_keep},
	{"wanted", make_three, run_wanted},
	{"day", make_three, run_day},
};
const uint32_t scenario_count = sizeof(scenarios) / sizeof(scenarios[0]);

/* -- a play -- */

/* Rows that can be believed and say verified. */
static uint32_t verified_rows(struct play *play)
{
	struct fixture *fx = play->fx;
	struct catalog *catalog = NULL;
	struct catalog_row *rows = NULL;
	uint32_t count = 0, bad = 0, mask = 0;
	int rc = catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err);

	if (rc == 0)
		PASS(catalog_list(catalog, &rows, &count, &bad, &fx->err));
	else if (rc == -ESTALE)
		PASS(catalog_list_version_1(fx->dir, &rows, &count, &bad, &fx->err));
	catalog_close(catalog);
	assert_int_equal(bad, 0);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t j = 0; j < play->known_count; j++)
			if (rows[i].step == play->known[j].step &&
				rows[i].branch == play->known[j].branch &&
				rows[i].state == CHECKPOINT_VERIFIED)
				mask |= 1u << j;
	free(rows);
	return mask;
}

/* All that stands now had been promised. */
static void promise_what_stands(struct play *play)
{
	play->base = (struct promise){.branches = 1u << 1,
		.wanted = 1u << play->fx->run.wanted,
		.catalogued = verified_rows(play)};
	for (uint32_t i = 0; i < play->known_count; i++) {
		if (play->known[i].saved)
			play->base.saved |= 1u << i;
		if (play->known[i].kept)
			play->base.kept |= 1u << i;
	}
}

void play_begin(struct play *play, const struct scenario *scenario, const char *fault)
{
	void *fx = NULL;
	char plan[128];

	memset(play, 0, sizeof(*play));
	fixture_setup_small(&fx);
	play->fx = fx;
	small_table(play->fx);
	scenario->make(play);
	promise_what_stands(play);
	trace_fini(&play->trace);
	trace_begin(&play->trace, play->fx->dir);
	snprintf(plan, sizeof(plan), "%s%s", scenario->faults != NULL ? scenario->faults : "",
		fault != NULL ? fault : "");
	assert_int_equal(sys_fault_plan(plan), 0);
	scenario->run(play);
	sys_fault_plan(NULL);
	trace_end();
}

void play_end(struct play *play)
{
	void *fx = play->fx;

	trace_fini(&play->trace);
	fixture_teardown(&fx);
}
