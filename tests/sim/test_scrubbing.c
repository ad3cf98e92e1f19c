/* The supervisor and its scrubs: when one begins, what it leaves behind when it is killed, and what
 * follows when the newest checkpoint turns out bad. */
#include "tests/sim/fake_worker.h"
#include "tests/sim/rig.h"

#include "store/catalog.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* So many checkpoints; the last one's id. */
static void train_and_save(struct fixture *fx, int count, char id[64])
{
	sim_set(fx, "interval=0");
	sim_start(fx);
	for (int i = 0; i < count; i++) {
		sim_await_only(fx, "training", sim_number_of(fx, "step") + 1, 0);
		sim_save(fx, id);
	}
}

static void flip(const struct fixture *fx, const char *id)
{
	char path[256];
	struct stat file;
	uint8_t byte;

	snprintf(path, sizeof(path), "%s/checkpoints/%s.safetensors", fx->dir, id);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0 && fstat(fd, &file) == 0);
	assert_int_equal(pread(fd, &byte, 1, file.st_size - FAKE_SECTION_BYTES), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, file.st_size - FAKE_SECTION_BYTES), 1);
	close(fd);
}

/* The catalog says that it was read long ago; only while no daemon runs. */
static void age_rows(const struct fixture *fx)
{
	struct catalog *catalog;
	struct catalog_row *rows;
	struct error error;
	uint32_t count, bad;

	assert_int_equal(catalog_open(fx->dir, CATALOG_WRITE, &catalog, &error), 0);
	assert_int_equal(catalog_list(catalog, &rows, &count, &bad, &error), 0);
	for (uint32_t i = 0; i < count; i++) {
		memset(rows[i].verified_at, 0, sizeof(rows[i].verified_at));
		snprintf(rows[i].verified_at, sizeof(rows[i].verified_at),
			"2024-01-01T00:00:00.000Z");
		assert_int_equal(catalog_put(catalog, &rows[i], &error), 0);
	}
	free(rows);
	catalog_close(catalog);
}

/* How many kept ones were last matched in the year of age_rows; total: of how many. */
static int aged(const struct fixture *fx, int *ret_total)
{
	json_t *reply = sim_call(fx, "Checkpoints", NULL), *row;
	json_t *rows = json_object_get(json_object_get(reply, "parameters"), "checkpoints");
	int count = 0;
	size_t i;

	json_array_foreach(rows, i, row)
		count += strncmp(json_get_text(row, "verified_at", ""), "2024", 4) == 0;
	*ret_total = (int)json_array_size(rows);
	json_decref(reply);
	return count;
}

static int events(const struct fixture *fx, const char *kind)
{
	json_t *reply = sim_call(fx, "Events", json_pack("{s:i}", "limit", 1000)), *event;
	json_t *list = json_object_get(json_object_get(reply, "parameters"), "events");
	int count = 0;
	size_t i;

	json_array_foreach(list, i, event)
		count += strcmp(json_get_text(event, "kind", ""), kind) == 0;
	json_decref(reply);
	return count;
}

static void await_events(const struct fixture *fx, const char *kind, int count)
{
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (events(fx, kind) < count) {
		assert_true(clock_monotonic_ns() < until);
		usleep(20000);
	}
}

static void scrub_text(const struct fixture *fx, const char *key, char text[64])
{
	json_t *now = sim_status(fx);

	snprintf(text, 64, "%s", json_get_text(json_object_get(now, "scrub"), key, ""));
	json_decref(now);
}

static void end(struct fixture *fx)
{
	kill(fx->ckptd, SIGKILL);
	sim_wait_for_end(fx);
}

/* The reply's parameters, or NULL after an error. The caller's. */
static json_t *scrub(const struct fixture *fx)
{
	json_t *reply = sim_call(fx, "Scrub", json_pack("{s:b}", "wait", 1));
	json_t *parameters = json_object_get(reply, "error")
		? NULL
		: json_incref(json_object_get(reply, "parameters"));

	json_decref(reply);
	return parameters;
}

/* -- when -- */

static void a_scrub_begins_when_the_oldest_is_due_and_not_before(void **state)
{
	struct fixture *fx = *state;
	char id[64], finished[64], again[64], due[64];
	int total;

	train_and_save(fx, 3, id);
	scrub_text(fx, "finished_at", finished);
	assert_string_equal(finished, "");
	scrub_text(fx, "next_due", due);
	assert_true(due[0] == '2'); /* in a week */
	end(fx);
	age_rows(fx);
	sim_start(fx);
	await_events(fx, "scrubbed", 1);
	assert_int_equal(aged(fx, &total), 0);
	assert_int_equal(total, 3);
	scrub_text(fx, "finished_at", finished);
	assert_true(finished[0] == '2');
	/* What is known of it survives; all were matched just now, so none follows. */
	end(fx);
	sim_start(fx);
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 20, 0);
	scrub_text(fx, "finished_at", again);
	assert_string_equal(again, finished);
	assert_int_equal(events(fx, "scrubbed"), 1);
}

/* Every second something is due while it trains and saves. */
static void scrubs_go_on_while_it_trains(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "interval=0");
	sim_set(fx, "interval_steps=20");
	sim_set(fx, "keep_every=20");
	sim_set(fx, "scrub_interval=1");
	sim_start(fx);
	await_events(fx, "scrubbed", 1);
	json_t *now = sim_await(fx, "training", 20, 0);

	assert_int_equal(sim_number(now, "restarts"), 0);
	json_decref(now);
	assert_int_equal(events(fx, "scrub-failed"), 0);
}

/* -- what it finds -- */

static void p1_a_corrupt_newest_is_replaced_at_once(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	train_and_save(fx, 2, id);
	int64_t lost_step = strtoll(id + 5, NULL, 10);

	flip(fx, id);
	json_t *reply = scrub(fx);

	assert_non_null(reply);
	assert_int_equal(json_get_int(reply, "checked", 0), 2);
	assert_int_equal(json_get_int(reply, "corrupt", 0), 1);
	json_decref(reply);
	/* Nobody asked for a save and none is due. */
	await_events(fx, "saved", 3);
	json_t *now = sim_status(fx);

	assert_true(sim_newest_step(now) > lost_step);
	assert_int_equal(sim_number(json_object_get(now, "scrub"), "corrupt"), 1);
	assert_int_equal(sim_number(now, "restarts"), 0);
	json_decref(now);
	assert_true(sim_told(fx, "corrupt"));
	assert_true(sim_told(fx, "newest-lost"));
}

static bool has_aside(const struct fixture *fx, const char *id)
{
	char path[256];
	struct stat file;

	snprintf(path, sizeof(path), "%s/checkpoints/%s.safetensors.corrupt-1", fx->dir, id);
	return stat(path, &file) == 0;
}

/* The state is the very one of the file: the file makes way for a second one of its step. */
static void p1_a_corrupt_newest_is_replaced_while_it_rests(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	train_and_save(fx, 1, id);
	sim_call_good(fx, "Pause", NULL);
	json_t *now = sim_await(fx, "paused", 1, 0);
	int64_t step = sim_newest_step(now);

	snprintf(id, sizeof(id), "%s",
		json_get_text(json_object_get(now, "newest_verified"), "id", ""));
	json_decref(now);
	int saved = events(fx, "saved");

	flip(fx, id);
	json_t *reply = sim_call(fx, "Verify", json_pack("{s:s}", "id", id));

	assert_null(json_object_get(reply, "error"));
	json_decref(reply);
	await_events(fx, "saved", saved + 1);
	now = sim_status(fx);
	assert_int_equal(sim_newest_step(now), step);
	json_decref(now);
	assert_true(has_aside(fx, id));
}

static void p1_a_corrupt_last_checkpoint_is_trained_again(void **state)
{
	struct fixture *fx = *state;
	char id[64], set[64];

	train_and_save(fx, 1, id);
	end(fx);
	int64_t total = strtoll(id + 5, NULL, 10) + 20;

	snprintf(set, sizeof(set), "steps_total=%lld", (long long)total);
	sim_set(fx, set);
	sim_start(fx);
	json_t *now = sim_await(fx, "finished", total, 0);

	snprintf(id, sizeof(id), "%s",
		json_get_text(json_object_get(now, "newest_verified"), "id", ""));
	json_decref(now);
	flip(fx, id);
	json_t *reply = scrub(fx);

	assert_non_null(reply);
	assert_int_equal(json_get_int(reply, "corrupt", 0), 1);
	json_decref(reply);
	assert_true(sim_log_says(fx, "are trained again"));
	now = sim_await(fx, "finished", total, 0);
	assert_int_equal(sim_newest_step(now), total);
	json_decref(now);
	assert_true(has_aside(fx, id));
}

/* -- its end -- */

/* Nor does one begin by itself where the interval is 0. */
static void p1_a_killed_scrub_costs_one_reading(void **state)
{
	struct fixture *fx = *state;
	char id[64], due[64];
	int total;

	train_and_save(fx, 4, id);
	end(fx);
	age_rows(fx);
	sim_set(fx, "scrub_interval=0");
	sim_behave(fx, "scrub_kill 1\n");
	sim_start(fx);
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 20, 0);
	scrub_text(fx, "next_due", due);
	assert_string_equal(due, "");
	assert_int_equal(aged(fx, &total), 3); /* the newest was read by the start */
	assert_null(scrub(fx));
	assert_int_equal(aged(fx, &total), 2);
	assert_null(scrub(fx));
	assert_int_equal(aged(fx, &total), 1);
	assert_true(sim_told(fx, "scrub-failed"));
	sim_behave(fx, "");
	json_t *reply = scrub(fx);

	assert_non_null(reply);
	assert_int_equal(json_get_int(reply, "checked", 0), 4);
	assert_int_equal(json_get_int(reply, "bad", -1), 0);
	assert_true(json_get_int(reply, "bytes", 0) > (int64_t)(16 * FAKE_SECTION_BYTES));
	json_decref(reply);
	assert_int_equal(aged(fx, &total), 0);
	json_t *now = sim_status(fx);

	assert_int_equal(sim_number(now, "restarts"), 0);
	json_decref(now);
}

static void a_scrub_never_holds_up_the_end_of_the_daemon(void **state)
{
	struct fixture *fx = *state;
	char id[64], reading[64];

	train_and_save(fx, 1, id);
	sim_behave(fx, "scrub_wait_ms 3600000\n");
	json_t *reply = sim_call(fx, "Scrub", NULL);

	assert_true(json_get_bool(json_object_get(reply, "parameters"), "running", false));
	json_decref(reply);
	do {
		scrub_text(fx, "checkpoint", reading);
	} while (strcmp(reading, id) != 0);
	/* A second request joins it. */
	reply = sim_call(fx, "Scrub", NULL);
	assert_true(json_get_bool(json_object_get(reply, "parameters"), "running", false));
	json_decref(reply);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
}

static void no_scrub_begins_while_a_stop_is_under_way(void **state)
{
	struct fixture *fx = *state;
	char id[64];

	train_and_save(fx, 1, id);
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 1, 0);
	sim_behave(fx, "save_wait_ms 3600000\n");
	kill(fx->ckptd, SIGPWR);
	sim_await_only(fx, "pausing", 1, 0);
	json_t *reply = sim_call(fx, "Scrub", json_pack("{s:b}", "wait", 1));

	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.Busy");
	json_decref(reply);
	json_t *now = sim_status(fx);

	assert_false(json_get_bool(json_object_get(now, "scrub"), "running", true));
	json_decref(now);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(a_scrub_begins_when_the_oldest_is_due_and_not_before),
		SIM_TEST(scrubs_go_on_while_it_trains),
		SIM_TEST(p1_a_corrupt_newest_is_replaced_at_once),
		SIM_TEST(p1_a_corrupt_newest_is_replaced_while_it_rests),
		SIM_TEST(p1_a_corrupt_last_checkpoint_is_trained_again),
		SIM_TEST(p1_a_killed_scrub_costs_one_reading),
		SIM_TEST(a_scrub_never_holds_up_the_end_of_the_daemon),
		SIM_TEST(no_scrub_begins_while_a_stop_is_under_way),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
