/* P1, P11: which checkpoint is read next, how fast, when it is due again (in virtual time), and
 * what a scrub does on a real folder: what it finds goes into the catalog at once, a death in the
 * middle loses nothing, and what retention or a save did meanwhile is not undone. */
#include "tests/unit/store_fixture.h"

#include "store/scrub.h"
#include "store/trust.h"

#define DAY (86400 * NSEC_PER_SEC)
#define WEEK (7 * DAY)
#define MIB ((uint64_t)1 << 20)

/* -- order -- */

static struct scrub_item item_of(uint64_t step, const char *verified_at)
{
	struct scrub_item item = {.step = step, .branch = 1, .has_file = true};

	snprintf(item.verified_at, sizeof(item.verified_at), "%s", verified_at);
	return item;
}

static void the_oldest_comes_first_and_the_unknown_before(void **state)
{
	struct scrub_item items[] = {item_of(40, "2026-11-23T04:31:05.123Z"), item_of(10, ""),
		item_of(30, "2025-01-01T00:00:00.000Z"), item_of(20, ""),
		item_of(50, "2026-11-23T04:31:05.122Z")};
	const uint64_t expected[] = {20, 10, 30, 50, 40};

	scrub_order(items, 5);
	for (int i = 0; i < 5; i++)
		assert_int_equal(items[i].step, expected[i]);
	scrub_order(NULL, 0);
}

/* -- pace -- */

/* Reads for so many virtual seconds, each read of 4 MiB taking read_ns: the bytes. */
static uint64_t read_for(uint64_t rate_bytes, nsec_t read_ns, nsec_t duration_ns)
{
	struct scrub_pace pace = {.rate_bytes = rate_bytes};
	uint64_t bytes = 0;
	nsec_t now_ns = 5 * NSEC_PER_SEC, end_ns = now_ns + duration_ns;

	while (now_ns < end_ns) {
		now_ns += scrub_pace_wait_ns(&pace, now_ns, 4 * MIB) + read_ns;
		bytes += 4 * MIB;
	}
	return bytes;
}

static void the_rate_is_kept_and_idle_time_is_not_saved_up(void **state)
{
	struct scrub_pace pace = {.rate_bytes = 8 * MIB};

	/* A fast disk is held to the rate, a slow one reads as fast as it can. */
	assert_in_range(
		read_for(32 * MIB, NSEC_PER_MSEC, 100 * NSEC_PER_SEC), 3200 * MIB, 3208 * MIB);
	assert_in_range(read_for(32 * MIB, NSEC_PER_SEC, 100 * NSEC_PER_SEC), 400 * MIB, 404 * MIB);
	assert_in_range(
		read_for(0, 10 * NSEC_PER_MSEC, 100 * NSEC_PER_SEC), 40000 * MIB, 40008 * MIB);
	assert_in_range(read_for(MIB / 100, 0, 4000 * NSEC_PER_SEC), 40 * MIB, 48 * MIB);
	/* After an hour of nothing one read is free, and not an hour's worth of them. */
	assert_int_equal(scrub_pace_wait_ns(&pace, NSEC_PER_SEC, 4 * MIB), 0);
	assert_int_equal(scrub_pace_wait_ns(&pace, 3600 * NSEC_PER_SEC, 4 * MIB), 0);
	assert_int_equal(scrub_pace_wait_ns(&pace, 3600 * NSEC_PER_SEC, 4 * MIB), NSEC_PER_SEC / 2);
}

/* -- when -- */

static void age_row(struct scrub_age *age, enum checkpoint_state state, nsec_t verified_ns)
{
	struct catalog_row row = {.state = state};

	if (verified_ns >= 0)
		clock_format_utc(verified_ns, row.verified_at);
	scrub_age_add(age, &row);
}

static void the_oldest_that_counts_says_when_it_is_due(void **state)
{
	const nsec_t now = 20000 * DAY;
	struct scrub_age age = {0};

	assert_true(scrub_due_ns(&age, WEEK, now) == INT64_MAX);
	/* What is known to be bad, or gone, makes no scrub due. */
	age_row(&age, CHECKPOINT_CORRUPT, now - 99 * DAY);
	age_row(&age, CHECKPOINT_DELETED, now - 99 * DAY);
	age_row(&age, CHECKPOINT_MISSING, -1);
	assert_true(scrub_due_ns(&age, WEEK, now) == INT64_MAX);
	assert_int_equal(age.bad_count, 1);
	age_row(&age, CHECKPOINT_VERIFIED, now - DAY);
	assert_true(scrub_due_ns(&age, WEEK, now) == now - DAY + WEEK);
	age_row(&age, CHECKPOINT_FOUND, now - 8 * DAY);
	age_row(&age, CHECKPOINT_VERIFIED, now);
	assert_true(scrub_due_ns(&age, WEEK, now) == now - DAY);
	assert_true(scrub_due_ns(&age, 0, now) == INT64_MAX);
	/* A clock that was once ahead must not put it off for years. */
	assert_true(scrub_due_ns(&age, WEEK, now - 30 * DAY) == 0);
	age_row(&age, CHECKPOINT_FOUND, -1);
	assert_true(scrub_due_ns(&age, WEEK, now) == 0);
}

/* A year of saves and restarts in virtual time: whatever is kept for long is matched again once in
 * an interval, never two at a time, and what comes and goes within it makes no scrub. */
static void in_a_year_each_kept_one_is_read_every_week(void **state)
{
	enum { KEPT = 6 };
	nsec_t verified[KEPT], now = 20000 * DAY, end = now + 365 * DAY;
	uint32_t scrubs = 0;

	for (int i = 0; i < KEPT; i++)
		verified[i] = now - i * DAY;
	for (; now < end; now += 3600 * NSEC_PER_SEC) {
		struct scrub_age age = {0};

		verified[0] = now; /* the newest, saved every hour */
		for (int i = 0; i < KEPT; i++) {
			age_row(&age, CHECKPOINT_VERIFIED, verified[i]);
			assert_true(now - verified[i] <= WEEK + 3600 * NSEC_PER_SEC);
		}
		if (now < scrub_due_ns(&age, WEEK, now))
			continue;
		scrubs++;
		for (int i = 0; i < KEPT; i++)
			verified[i] = now;
	}
	assert_in_range(scrubs, 365 / 7 - 1, 365 / 7 + 1);
}

/* -- on a folder -- */

struct seen {
	struct fixture *fx;
	char order[256]; /* "30 verified, 10 corrupt, " */
	uint32_t count, stop_after;
	uint64_t begun_total;
	uint32_t chunks, cancel_after;
	void (*meanwhile)(struct seen *seen);
};

static void on_begin(void *context, const char *id, uint64_t done_bytes, uint64_t total_bytes)
{
	struct seen *seen = context;

	assert_true(done_bytes < total_bytes || total_bytes == 0);
	seen->begun_total = total_bytes;
}

static int on_result(void *context, const struct scrub_result *result)
{
	struct seen *seen = context;
	size_t used = strlen(seen->order);

	snprintf(seen->order + used, sizeof(seen->order) - used, "%lu %s, ",
		strtoul(result->id + 5, NULL, 10), checkpoint_state_name(result->state));
	return ++seen->count == seen->stop_after ? -ECANCELED : 0;
}

static int on_chunk(void *context, uint64_t bytes)
{
	struct seen *seen = context;

	assert_int_equal(bytes, CHECKPOINT_CHUNK_BYTES);
	if (seen->meanwhile != NULL)
		seen->meanwhile(seen);
	return ++seen->chunks == seen->cancel_after ? -ECANCELED : 0;
}

static void on_told(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	struct seen *seen = context;

	fixture_report(seen->fx, kind, level, step, text);
}

static int scrub(struct seen *seen, const char *id)
{
	const struct checkpoint_gate gate = {on_chunk, seen};
	const struct scrub_options options = {.id = id,
		.threads = 1,
		.gate = &gate,
		.begin = on_begin,
		.result = on_result,
		.report = on_told,
		.context = seen};
	struct fixture *fx = seen->fx;

	return scrub_run(fx->dir, fx->run_fd, fx->run.id, &options, &fx->err);
}

static void verified_at(struct fixture *fx, uint64_t step, char text[CLOCK_TEXT_SIZE])
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog_row row;

	checkpoint_id_format(step, 1, id);
	assert_true(fixture_row(fx, id, &row));
	memcpy(text, row.verified_at, CLOCK_TEXT_SIZE);
}

/* Step 10 was matched in the year of this day, step 20 a year later, ... */
static void set_verified_at(struct fixture *fx, uint64_t step, const char *text)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog *catalog;
	struct catalog_row row;

	checkpoint_id_format(step, 1, id);
	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_get(catalog, id, &row, &fx->err));
	memset(row.verified_at, 0, sizeof(row.verified_at));
	snprintf(row.verified_at, sizeof(row.verified_at), "%s", text);
	PASS(catalog_put(catalog, &row, &fx->err));
	catalog_close(catalog);
}

static int setup_three(void **state)
{
	struct fixture *fx;

	fixture_setup_small(state);
	fx = *state;
	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fx->config.keep_last = 9;
	for (uint64_t step = 10; step <= 30; step += 10)
		fixture_save(fx, 1, step);
	set_verified_at(fx, 10, "2024-01-02T00:00:00.000Z");
	set_verified_at(fx, 20, "2024-01-01T00:00:00.000Z");
	set_verified_at(fx, 30, "2024-01-03T00:00:00.000Z");
	return 0;
}

static void p1_all_are_read_the_oldest_first_and_rows_say_when(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};
	char text[CLOCK_TEXT_SIZE];

	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "20 verified, 10 verified, 30 verified, ");
	assert_int_equal(seen.chunks, 3);
	for (uint64_t step = 10; step <= 30; step += 10) {
		verified_at(fx, step, text);
		assert_true(strcmp(text, "2024-02") > 0);
	}
	assert_string_equal(fx->log, "");
}

static void p11_what_is_damaged_is_marked_and_told_once(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};
	const char *name = "step-000000020-b0001.safetensors";
	char text[CLOCK_TEXT_SIZE];

	fixture_flip(fx->fd, name, fixture_file_bytes(fx->fd, name) - fx->block_bytes + 5);
	fixture_flip(fx->fd, "step-000000010-b0001.safetensors", 300);
	assert_int_equal(unlinkat(fx->fd, "step-000000030-b0001.safetensors", 0), 0);
	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "30 missing, 20 corrupt, 10 corrupt, ");
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_CORRUPT);
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_CORRUPT);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_MISSING);
	assert_true(fixture_told(fx, "corrupt: step-000000020-b0001 is corrupt: "));
	assert_true(fixture_told(fx, "chunk 0 of 1"));
	verified_at(fx, 20, text);
	assert_string_equal(text, "2024-01-01T00:00:00.000Z");
	/* Not news any more; and one that is whole after all is believed again. */
	fixture_flip(fx->fd, name, fixture_file_bytes(fx->fd, name) - fx->block_bytes + 5);
	fx->log[0] = seen.order[0] = '\0';
	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "20 verified, 10 corrupt, ");
	assert_string_equal(fx->log, "verified: step-000000020-b0001 is verified\n");
}

static void p1_a_scrub_cut_short_goes_on_with_the_oldest(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx, .stop_after = 1};

	assert_int_equal(scrub(&seen, NULL), -ECANCELED);
	/* In the middle of the second: that reading is lost, and nothing else. */
	seen = (struct seen){.fx = fx, .cancel_after = 1};
	assert_int_equal(scrub(&seen, NULL), -ECANCELED);
	assert_string_equal(seen.order, "");
	seen = (struct seen){.fx = fx};
	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "10 verified, 30 verified, 20 verified, ");
}

static void one_is_read_by_its_id_and_an_unknown_id_is_told(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};

	PASS(scrub(&seen, "step-000000030-b0001"));
	assert_string_equal(seen.order, "30 verified, ");
	assert_int_equal(scrub(&seen, "step-000000031-b0001"), -ENOENT);
	assert_non_null(strstr(fx->err.text, "step-000000031-b0001"));
}

static void p8_without_a_catalog_the_files_are_read_all_the_same(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};

	assert_int_equal(unlinkat(fx->run_fd, "catalog.sqlite", 0), 0);
	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "30 verified, 20 verified, 10 verified, ");
	assert_true(fixture_told(fx, "cannot write down that step-000000030-b0001 is verified"));
}

static void p7_a_file_without_a_row_gets_one_and_a_foreign_one_is_refused(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};
	struct checkpoint_saved saved;
	uint8_t own = fx->run.id[0];

	PASS(fixture_try_save(fx, 1, 40, &saved));
	fx->run.id[0] ^= 1;
	PASS(fixture_try_save(fx, 1, 50, &saved));
	fx->run.id[0] = own;
	PASS(scrub(&seen, NULL));
	assert_string_equal(
		seen.order, "50 refused, 40 verified, 20 verified, 10 verified, 30 verified, ");
	assert_int_equal(fixture_row_state(fx, 1, 40), CHECKPOINT_VERIFIED);
	assert_int_equal(fixture_row_state(fx, 1, 50), CHECKPOINT_REFUSED);
	/* The foreign one was not read: one chunk for each of the others. */
	assert_int_equal(seen.chunks, 4);
}

/* Retention comes while the scrub has its list: what it reads just now stays, the others go. */
static void save_and_retain(struct seen *seen)
{
	if (seen->chunks > 0)
		return;
	seen->fx->config.keep_last = 2;
	fixture_save(seen->fx, 1, 60);
}

static void p7_retention_meanwhile_is_not_undone(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx, .meanwhile = save_and_retain};

	PASS(scrub(&seen, NULL));
	/* 20 was being read; 10 was deleted before its turn. */
	assert_string_equal(seen.order, "20 verified, 30 verified, ");
	assert_true(fixture_told(fx, "step-000000020-b0001.safetensors is being read"));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_DELETED);
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
	assert_true(fixture_exists(fx->fd, "step-000000020-b0001.safetensors"));
	assert_false(fixture_exists(fx->fd, "step-000000010-b0001.safetensors"));
}

/* An interrupted deletion: the row says so, the file is still there. */
static void p7_a_deletion_under_way_is_not_undone(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};
	struct catalog *catalog;

	PASS(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &fx->err));
	PASS(catalog_set_state(
		catalog, "step-000000010-b0001", CHECKPOINT_DELETED, "by retention", &fx->err));
	catalog_close(catalog);
	PASS(scrub(&seen, NULL));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_DELETED);
}

static void p1_one_error_of_the_disk_is_no_verdict(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};

	assert_int_equal(sys_fault_plan("pread:5:EIO"), 0);
	PASS(scrub(&seen, NULL));
	assert_string_equal(seen.order, "20 verified, 10 verified, 30 verified, ");
	assert_int_equal(sys_fault_plan("pread:*:EIO"), 0);
	seen = (struct seen){.fx = fx};
	PASS(scrub(&seen, "step-000000010-b0001"));
	sys_fault_plan(NULL);
	assert_string_equal(seen.order, "10 unreadable, ");
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_UNREADABLE);
	seen = (struct seen){.fx = fx};
	PASS(scrub(&seen, "step-000000010-b0001"));
	assert_int_equal(fixture_row_state(fx, 1, 10), CHECKPOINT_VERIFIED);
}

/* Both readings of a header wrong: a third, before it is written down, is of a whole file. So is it
 * when a save has put another one there meanwhile. */
static void p1_a_header_is_looked_at_once_more_before_it_is_marked(void **state)
{
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};

	assert_int_equal(sys_fault_plan("pread:2:flip,pread:4:flip"), 0);
	PASS(scrub(&seen, "step-000000020-b0001"));
	assert_int_equal(sys_fault_fired(), 2);
	sys_fault_plan(NULL);
	assert_string_equal(seen.order, "20 verified, ");
	assert_int_equal(fixture_row_state(fx, 1, 20), CHECKPOINT_VERIFIED);
	assert_string_equal(fx->log, "");
}

/* What is not trusted is refused unread, and counts again when it is. */
static void p10_who_is_not_trusted_is_refused_by_a_scrub_too(void **state)
{
	const struct trust signed_only = {.require = true}, anybody = {0};
	struct fixture *fx = *state;
	struct seen seen = {.fx = fx};

	trust_set(&signed_only);
	PASS(scrub(&seen, NULL));
	trust_set(&anybody);
	assert_string_equal(seen.order, "20 refused, 10 refused, 30 refused, ");
	assert_int_equal(seen.chunks, 0);
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_REFUSED);
	assert_true(fixture_told(fx, "require_signature"));
	seen = (struct seen){.fx = fx};
	PASS(scrub(&seen, NULL));
	assert_int_equal(fixture_row_state(fx, 1, 30), CHECKPOINT_VERIFIED);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup_three, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_oldest_comes_first_and_the_unknown_before),
		cmocka_unit_test(the_rate_is_kept_and_idle_time_is_not_saved_up),
		cmocka_unit_test(the_oldest_that_counts_says_when_it_is_due),
		cmocka_unit_test(in_a_year_each_kept_one_is_read_every_week),
		TEST(p1_all_are_read_the_oldest_first_and_rows_say_when),
		TEST(p11_what_is_damaged_is_marked_and_told_once),
		TEST(p1_a_scrub_cut_short_goes_on_with_the_oldest),
		TEST(one_is_read_by_its_id_and_an_unknown_id_is_told),
		TEST(p8_without_a_catalog_the_files_are_read_all_the_same),
		TEST(p7_a_file_without_a_row_gets_one_and_a_foreign_one_is_refused),
		TEST(p7_retention_meanwhile_is_not_undone),
		TEST(p7_a_deletion_under_way_is_not_undone),
		TEST(p1_one_error_of_the_disk_is_no_verdict),
		TEST(p1_a_header_is_looked_at_once_more_before_it_is_marked),
		TEST(p10_who_is_not_trusted_is_refused_by_a_scrub_too),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
