/* The history: what is told is given back as the interface says it, replays replace, old metrics
 * are thinned, and a file that is no history is set aside, never in the way. */
#include "tests/unit/store_fixture.h"

#include "store/history.h"

static struct history *open_history(struct fixture *fx, bool lost)
{
	struct history *history;
	bool was_lost;

	PASS(history_open(fx->dir, fx->run_fd, &history, &was_lost, &fx->err));
	assert_int_equal(was_lost, lost);
	return history;
}

static struct metric metric_of(uint64_t step, uint32_t branch, float loss)
{
	return (struct metric){.step = step,
		.branch = branch,
		.kind = METRIC_TRAIN,
		.loss = loss,
		.loss_quartile = {0.5f, NAN, 0.25f, 2},
		.grad_norm = INFINITY,
		.learning_rate = 0.5f,
		.step_ms = 12,
		.images = 16};
}

static json_t *metrics(struct fixture *fx, struct history *history, uint64_t after,
	const char *kind, uint32_t limit)
{
	json_t *rows;

	const struct history_metrics_query query = {
		.after_step = after, .kind = kind, .limit = limit};

	PASS(history_metrics_json(history, &query, &rows, &fx->err));
	return rows;
}

static void put_range(struct fixture *fx, struct history *history, uint64_t first, uint64_t count)
{
	struct metric *rows = calloc(count, sizeof(*rows));

	for (uint64_t i = 0; i < count; i++)
		rows[i] = metric_of(first + i, 1, 1);
	PASS(history_metrics(history, rows, (uint32_t)count, &fx->err));
	free(rows);
}

static json_int_t step_at(const json_t *rows, size_t i)
{
	return json_get_int(json_array_get(rows, i), "step", -1);
}

static void deaths_are_told(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	struct history_attempt attempt = {.role = "train",
		.pid = 77,
		.begun_wall_ns = 1,
		.rung = 2,
		.step_begun = 10,
		.from = "memory"};
	AUTO_JSON none = NULL;
	AUTO_JSON death = NULL;

	PASS(history_last_death_json(history, &none, &fx->err));
	assert_true(json_is_null(none));
	PASS(history_attempt_begin(history, &attempt, &fx->err));
	assert_int_equal(attempt.id, 1);
	attempt.ended_wall_ns = INT64_C(1795408265123) * NSEC_PER_MSEC;
	attempt.step_ended = 15;
	strcpy(attempt.cause, "killed by SIGSEGV");
	strcpy(attempt.phase, "forward");
	strcpy(attempt.sentence, "The trainer was killed.");
	strcpy(attempt.stderr_tail, "last \xff words");
	PASS(history_attempt_end(history, &attempt, &fx->err));
	/* A planned end is no death, and one that goes on is none yet. */
	attempt.planned = true;
	PASS(history_attempt_begin(history, &attempt, &fx->err));
	PASS(history_attempt_end(history, &attempt, &fx->err));
	PASS(history_attempt_begin(history, &attempt, &fx->err));
	assert_int_equal(attempt.id, 3);
	history_close(history);
	history = open_history(fx, false);
	PASS(history_last_death_json(history, &death, &fx->err));
	assert_string_equal(json_get_text(death, "time", ""), "2026-11-23T04:31:05.123Z");
	assert_string_equal(json_get_text(death, "role", ""), "train");
	assert_string_equal(json_get_text(death, "cause", ""), "killed by SIGSEGV");
	assert_string_equal(json_get_text(death, "phase", ""), "forward");
	assert_int_equal(json_get_int(death, "step", 0), 15);
	assert_string_equal(json_get_text(death, "sentence", ""), "The trainer was killed.");
	assert_string_equal(json_get_text(death, "stderr_tail", ""), "(not UTF-8)");
	history_close(history);
}

static void events_are_paged(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);

	for (int i = 1; i <= 10; i++)
		PASS(history_event(
			history, i * NSEC_PER_SEC, "kind", "info", (uint64_t)i, "text", &fx->err));
	for (int after = 0; after <= 8; after += 4) {
		AUTO_JSON rows = NULL;

		PASS(history_events_json(history, after, 3, &rows, &fx->err));
		assert_int_equal(json_array_size(rows), after == 8 ? 2 : 3);
		assert_int_equal(step_at(rows, json_array_size(rows) - 1), 10);
		assert_string_equal(json_get_text(json_array_get(rows, 0), "level", ""), "info");
	}
	history_close(history);
}

static void p2_replays_replace(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	struct metric rows[] = {metric_of(1, 1, 1), metric_of(2, 1, 2), metric_of(3, 1, 3),
		metric_of(2, 1, 20), metric_of(3, 2, 30), metric_of(3, 1, NAN)};
	AUTO_JSON all = NULL;
	AUTO_JSON holdout = NULL;

	rows[5].kind = METRIC_HOLDOUT;
	PASS(history_metrics(history, rows, 6, &fx->err));
	all = metrics(fx, history, 0, "train", 100);
	/* Of one step the newest branch. */
	assert_int_equal(json_array_size(all), 3);
	assert_true(json_get_real(json_array_get(all, 1), "loss", 0) == 20);
	assert_true(json_get_real(json_array_get(all, 2), "loss", 0) == 30);
	assert_int_equal(json_get_int(json_array_get(all, 2), "branch", 0), 2);
	/* What is not finite is null. */
	assert_true(json_is_null(json_object_get(json_array_get(all, 0), "grad_norm")));
	assert_true(json_is_null(
		json_array_get(json_object_get(json_array_get(all, 0), "loss_quartile"), 1)));
	holdout = metrics(fx, history, 0, "holdout", 100);
	assert_int_equal(json_array_size(holdout), 1);
	assert_true(json_is_null(json_object_get(json_array_get(holdout, 0), "loss")));
	json_t *none;

	const struct history_metrics_query wrong = {.kind = "x", .limit = 1};

	assert_int_equal(history_metrics_json(history, &wrong, &none, &fx->err), -EINVAL);
	history_close(history);
}

/* Branch 1 came to step 6; the run went back, and is at step 3 of branch 2 now. */
static void what_was_left_behind_is_no_metric(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	const struct metric rows[] = {metric_of(3, 2, 30), metric_of(2, 2, 20)};
	const struct history_metrics_query now = {.limit = 100, .branch = 2, .step = 3},
					   thinned = {.limit = 2, .branch = 2, .step = 3};
	AUTO_JSON all = NULL;
	AUTO_JSON few = NULL;

	put_range(fx, history, 1, 6);
	PASS(history_metrics(history, rows, 2, &fx->err));
	PASS(history_metrics_json(history, &now, &all, &fx->err));
	assert_int_equal(json_array_size(all), 3);
	assert_int_equal(step_at(all, 2), 3);
	assert_int_equal(json_get_int(json_array_get(all, 0), "branch", 0), 1);
	assert_int_equal(json_get_int(json_array_get(all, 1), "branch", 0), 2);
	/* A limit counts only what is answered. */
	PASS(history_metrics_json(history, &thinned, &few, &fx->err));
	assert_int_equal(json_array_size(few), 2);
	assert_int_equal(step_at(few, 1), 3);
	history_close(history);
}

static void a_limit_takes_every_nth(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	AUTO_JSON some = NULL;
	AUTO_JSON rest = NULL;

	put_range(fx, history, 1, 1000);
	some = metrics(fx, history, 0, NULL, 10);
	assert_int_equal(json_array_size(some), 10);
	assert_int_equal(step_at(some, 0), 100);
	assert_int_equal(step_at(some, 9), 1000);
	rest = metrics(fx, history, 997, "", 10);
	assert_int_equal(json_array_size(rest), 3);
	history_close(history);
}

/* 1:100 behind 100,000 steps, one window a call, and again after a replay. */
static void old_metrics_are_thinned(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);

	put_range(fx, history, 1, 20000);
	put_range(fx, history, 118000, 10);
	{
		AUTO_JSON rows = metrics(fx, history, 0, NULL, 100000);

		/* The first window of 10,000 steps is thinned, the next not yet. */
		assert_int_equal(json_array_size(rows), 99 + 10001 + 10);
		assert_int_equal(step_at(rows, 0), 100);
		assert_int_equal(step_at(rows, 99), 10000);
		assert_int_equal(step_at(rows, 100), 10001);
	}
	put_range(fx, history, 118010, 1);
	{
		AUTO_JSON rows = metrics(fx, history, 0, NULL, 100000);

		/* Up to 18,010: 10000, 10100, ..., 18000. */
		assert_int_equal(json_array_size(rows), 99 + 81 + (20000 - 18009) + 11);
	}
	put_range(fx, history, 5001, 50);
	put_range(fx, history, 118011, 1);
	{
		AUTO_JSON rows = metrics(fx, history, 0, NULL, 100000);

		assert_int_equal(json_array_size(rows), 99 + 81 + (20000 - 18010) + 12);
	}
	history_close(history);
}

static void what_is_no_history_is_set_aside(void **state)
{
	struct fixture *fx = *state;
	struct history *history;
	char garbage[5000];

	memset(garbage, 'x', sizeof(garbage));
	fixture_write(fx->run_fd, "history.sqlite", garbage, sizeof(garbage));
	fixture_write(fx->run_fd, "history.sqlite-wal", garbage, sizeof(garbage));
	history = open_history(fx, true);
	put_range(fx, history, 1, 10);
	history_close(history);
	assert_int_equal(fixture_file_bytes(fx->run_fd, "history.sqlite.broken-1"), 5000);
	fixture_truncate(
		fx->run_fd, "history.sqlite", fixture_file_bytes(fx->run_fd, "history.sqlite") / 2);
	history = open_history(fx, true);
	history_close(history);
	assert_true(fixture_exists(fx->run_fd, "history.sqlite.broken-2"));
	/* Deleted, with the log left behind: a new one without the old rows. */
	assert_int_equal(unlinkat(fx->run_fd, "history.sqlite", 0), 0);
	fixture_write(fx->run_fd, "history.sqlite-wal", garbage, sizeof(garbage));
	history = open_history(fx, false);
	AUTO_JSON rows = metrics(fx, history, 0, NULL, 10);

	assert_int_equal(json_array_size(rows), 0);
	history_close(history);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

/* -- outages -- */

#define S NSEC_PER_SEC

static void the_last_life_says_how_it_ended(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	struct history_life life = {.boot_id = "one", .begun_wall_ns = 10, .seen_wall_ns = 10},
			    last;

	PASS(history_life_begin(history, &life, &last, &fx->err));
	assert_true(last.begun_wall_ns == 0);
	life.seen_wall_ns = 20;
	life.step = 7;
	PASS(history_life_seen(history, &life, &fx->err));
	history_close(history);
	history = open_history(fx, false);
	life = (struct history_life){.boot_id = "two", .begun_wall_ns = 30, .seen_wall_ns = 30};
	PASS(history_life_begin(history, &life, &last, &fx->err));
	assert_string_equal(last.boot_id, "one");
	assert_true(last.begun_wall_ns == 10 && last.seen_wall_ns == 20);
	assert_int_equal(last.step, 7);
	assert_false(last.ended);
	life.ended = true;
	PASS(history_life_seen(history, &life, &fx->err));
	PASS(history_life_begin(history, &life, &last, &fx->err));
	assert_true(last.ended);
	history_close(history);
}

static double total(const json_t *answer, const char *name)
{
	return json_get_real(json_object_get(answer, "totals"), name, -1);
}

static void outages_are_added_up(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	struct history_life life = {.boot_id = "b", .begun_wall_ns = 1000 * S}, last;
	struct history_outage crash = {.begun_wall_ns = 1100 * S,
		.cause = "killed by SIGSEGV",
		.detected = "its signal",
		.step = 50,
		.sentence = "why"};
	struct history_outage pause = {
		.begun_wall_ns = 1300 * S, .cause = "pause", .planned = true, .step = 90};
	struct history_outage open;
	AUTO_JSON answer = NULL;
	uint32_t losses;
	nsec_t since;

	PASS(history_life_begin(history, &life, &last, &fx->err));
	assert_int_equal(history_outage_open(history, &open, &fx->err), -ENOENT);
	PASS(history_outage_put(history, &crash, &fx->err));
	PASS(history_outage_open(history, &open, &fx->err));
	assert_int_equal(open.id, crash.id);
	assert_string_equal(open.cause, "killed by SIGSEGV");
	crash.resumed_wall_ns = 1110 * S;
	crash.ended_wall_ns = 1150 * S;
	crash.steps_redone = 12;
	crash.memory_lost = true;
	PASS(history_outage_put(history, &crash, &fx->err));
	assert_int_equal(history_outage_open(history, &open, &fx->err), -ENOENT);
	PASS(history_outage_put(history, &pause, &fx->err));
	/* The pause lasts until now: 400 s in all, 50 lost, 100 paused, 10 + 100 without a trainer.
	 */
	PASS(history_outages_json(history, 10, 1400 * S, &answer, &fx->err));
	assert_int_equal(json_array_size(json_object_get(answer, "outages")), 2);
	assert_true(fabs(total(answer, "wall_seconds") - 400) < 1e-9);
	assert_true(fabs(total(answer, "lost_seconds") - 50) < 1e-9);
	assert_true(fabs(total(answer, "planned_seconds") - 100) < 1e-9);
	assert_true(fabs(total(answer, "uptime") - (1 - 110.0 / 400)) < 1e-9);
	assert_true(fabs(total(answer, "goodput") - (1 - 150.0 / 400)) < 1e-9);
	assert_true(fabs(total(answer, "mean_seconds_between") - 300) < 1e-9);
	assert_int_equal(json_get_int(json_object_get(answer, "totals"), "outages", -1), 1);
	assert_int_equal(json_get_int(json_object_get(answer, "totals"), "steps_redone", -1), 12);
	const json_t *row = json_array_get(json_object_get(answer, "outages"), 0);

	assert_true(fabs(json_get_real(row, "seconds_down", -1) - 10) < 1e-9);
	assert_true(fabs(json_get_real(row, "seconds_lost", -1) - 50) < 1e-9);
	PASS(history_memory_losses(history, &losses, &since, &fx->err));
	assert_int_equal(losses, 1);
	assert_true(since == 1000 * S);
	history_close(history);
}

static void a_finished_run_is_no_outage(void **state)
{
	struct fixture *fx = *state;
	struct history *history = open_history(fx, false);
	struct history_life life = {.boot_id = "b", .begun_wall_ns = 1000 * S}, last;
	struct history_outage end = {
		.begun_wall_ns = 1100 * S, .cause = "finished", .planned = true, .step = 90};
	AUTO_JSON answer = NULL;

	PASS(history_life_begin(history, &life, &last, &fx->err));
	PASS(history_outage_put(history, &end, &fx->err));
	PASS(history_outages_json(history, 10, 9000 * S, &answer, &fx->err));
	assert_true(fabs(total(answer, "wall_seconds") - 100) < 1e-9);
	assert_true(fabs(total(answer, "goodput") - 1) < 1e-9);
	history_close(history);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(deaths_are_told),
		TEST(events_are_paged),
		TEST(p2_replays_replace),
		TEST(what_was_left_behind_is_no_metric),
		TEST(a_limit_takes_every_nth),
		TEST(old_metrics_are_thinned),
		TEST(what_is_no_history_is_set_aside),
		TEST(the_last_life_says_how_it_ended),
		TEST(outages_are_added_up),
		TEST(a_finished_run_is_no_outage),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
