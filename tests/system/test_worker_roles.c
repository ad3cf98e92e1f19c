/* The worker's roles, each as the real program, with this test as the supervisor: socketpair, state
 * memory and progress page as in proto/link.h. Shows P2 (same bits from memory, from disk, at any
 * number of threads), P3 (the next step after SIGKILL) and the exits that the supervisor decides
 * by. */
#include "base/file.h"
#include "store/catalog.h"
#include "store/checkpoint.h"
#include "store/line.h"
#include "tests/system/play.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define STEPS 24

/* One undisturbed run of the tiny configuration, computed once. */
static struct digest reference(void)
{
	static struct digest digest;
	static bool known;
	struct config config = play_tiny_config();
	struct play play;

	if (known)
		return digest;
	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	digest = play_digest(&play);
	known = true;
	play_close(&play);
	return digest;
}

/* -- tests -- */

static void p2_other_thread_counts_and_slots_give_the_same_bits(void **unused)
{
	struct config config = play_tiny_config();
	struct digest expected = reference(), digest;
	struct play play;

	for (uint32_t slots = 1; slots <= 2; slots++) {
		config.threads = slots == 1 ? 1 : 3;
		play_begin(&play, &config, slots);
		play_to_end(&play, "disk", "scratch");
		digest = play_digest(&play);
		assert_same_bits(&expected, &digest);
		play_close(&play);
	}
}

static void p2_previews_and_holdout_do_not_touch_the_bits(void **unused)
{
	struct config config = play_tiny_config();
	struct digest expected = reference(), digest;
	struct play play;

	config.preview_every = 0;
	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	digest = play_digest(&play);
	assert_same_bits(&expected, &digest);
	play_close(&play);
}

static void p2_p3_killed_at_random_it_goes_on_at_the_next_step_to_the_same_bits(void **unused)
{
	struct config config = play_tiny_config();
	struct digest expected = reference(), digest;
	const char *resume = "disk", *from = "scratch";
	uint64_t reached = 0, step;
	unsigned seed = 20261123;
	struct play play;

	print_message("# seed %u\n", seed);
	play_begin(&play, &config, 3);
	for (int kill_count = 0; kill_count < 8; kill_count++) {
		struct child child = play_trainer(&play, resume, from, &step);
		struct state_record record;

		assert_int_equal(step, reached);
		play_wait_step(&play, reached + (uint64_t)(rand_r(&seed) % 3));
		usleep((useconds_t)(rand_r(&seed) % 3000));
		play_kill(&play, &child);
		assert_int_equal(state_newest_record(&play.state, &record), 0);
		assert_true(record.step >= atomic_load(&play.progress->step));
		reached = record.step;
		resume = "memory";
		from = "memory";
	}
	play_to_end(&play, resume, from);
	digest = play_digest(&play);
	assert_same_bits(&expected, &digest);
	play_close(&play);
}

static void p2_saved_and_resumed_from_disk_gives_the_same_bits(void **unused)
{
	struct config config = play_tiny_config();
	struct digest expected = reference(), digest;
	struct child child;
	struct play play;
	uint64_t step;

	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 5);
	{
		AUTO_JSON saved = play_save(&play); /* while it trains */

		assert_true(json_get_int(saved, "step", 0) >= 5);
		assert_true(json_get_bool(saved, "catalogued", false));
		play_kill(&play, &child);
		play_drop_memory(&play);
		play_prepare(&play);
		play_make_memory(&play, 3);
		child = play_trainer(&play, "memory", "checkpoint", &step);
		assert_int_equal(step, json_get_int(saved, "step", 0));
	}
	{
		AUTO_JSON finished = child_frame(&child, "finished");

		assert_non_null(finished);
	}
	child_expect_end(&child, LINK_EXIT_DONE);
	digest = play_digest(&play);
	assert_same_bits(&expected, &digest);
	play_close(&play);
}

static void stop_ends_after_the_step_and_previews_are_written(void **unused)
{
	struct config config = play_tiny_config();
	AUTO_JSON stop = json_pack("{s:{}}", "stop");
	struct child child;
	struct play play;
	char path[128];

	config.steps_total = 100000;
	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	{
		AUTO_JSON preview = child_frame(&child, "preview");

		assert_int_equal(json_get_int(preview, "step", -1), 10);
		snprintf(path, sizeof(path), "%s/previews/step-000000010.png", play.dir);
		assert_string_equal(json_get_text(preview, "path", ""), path);
		assert_int_equal(access(path, R_OK), 0);
	}
	assert_int_equal(frame_send(child.link, stop, 0), 0);
	child_expect_end(&child, LINK_EXIT_DONE);
	assert_int_equal(atomic_load(&play.progress->phase), PHASE_DONE);
	{
		struct metric rows[256];
		uint64_t cursor = 0, lost = 0;
		uint32_t count = progress_drain(play.progress, &cursor, rows, 256, &lost),
			 holdouts = 0;

		for (uint32_t i = 0; i < count; i++)
			holdouts += rows[i].kind == METRIC_HOLDOUT;
		assert_true(holdouts >= 1);
		assert_true(count > 10);
	}
	play_close(&play);
}

static void p2_a_nonfinite_update_is_skipped_alike_after_kills(void **unused)
{
	struct config config = play_tiny_config();
	struct digest digests[2], normal = reference();

	setenv("CKPTD_FAULT", "train.nonfinite@9:*:EIO", 1);
	for (int killed = 0; killed < 2; killed++) {
		struct state_record record;
		struct play play;

		play_begin(&play, &config, 3);
		if (killed) {
			struct child child = play_trainer(&play, "disk", "scratch", NULL);

			play_wait_step(&play, 8);
			play_kill(&play, &child);
		}
		play_to_end(&play, "memory", killed ? "memory" : "scratch");
		assert_int_equal(state_newest_record(&play.state, &record), 0);
		assert_int_equal(record.skipped_count, 1);
		assert_int_equal(record.update_count, STEPS - 1);
		digests[killed] = play_digest(&play);
		play_close(&play);
	}
	unsetenv("CKPTD_FAULT");
	assert_same_bits(&digests[0], &digests[1]);
	assert_false(digest_equal(&digests[0], &normal));
}

static void nonfinite_updates_in_a_row_end_the_trainer(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record record;
	struct child child;
	struct play play;

	config.nonfinite_limit = 3;
	setenv("CKPTD_FAULT", "train.nonfinite:*:EIO", 1);
	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	child_expect_end(&child, LINK_EXIT_NONFINITE);
	unsetenv("CKPTD_FAULT");
	assert_non_null(strstr(child.failed, "3 updates in a row"));
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	assert_int_equal(record.step, 3);
	assert_int_equal(record.update_count, 0);
	play_close(&play);
}

static void flip(struct play *play, size_t offset)
{
	struct state_record record;

	assert_int_equal(state_newest_record(&play->state, &record), 0);
	((uint8_t *)state_section(&play->state, record.slot, 0))[offset] ^= 4;
}

/* The worker is still on its way up: both come to it at once. */
static void a_stop_right_behind_the_start_is_heard(void **unused)
{
	struct config config = play_tiny_config();
	AUTO_JSON stop = json_pack("{s:{}}", "stop");
	struct play play;

	config.steps_total = 100000;
	play_begin(&play, &config, 3);
	struct child child = play_start(&play, "train", "disk", NULL);

	assert_int_equal(frame_send(child.link, stop, 0), 0);
	child_expect_end(&child, LINK_EXIT_DONE);
	play_close(&play);
}

static void p1_memory_that_does_not_match_its_sums_is_not_resumed(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record record;
	struct child child;
	struct play play;

	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 3);
	json_decref(play_save(&play));
	play_kill(&play, &child);
	flip(&play, play.section_bytes + 12345);

	child = play_start(&play, "train", "memory", NULL);
	child_expect_end(&child, LINK_EXIT_MEMORY_CORRUPT);
	assert_non_null(strstr(child.failed, "memory corrupt"));
	assert_int_equal(state_newest_record(&play.state, &record), -ENOENT);
	play_to_end(&play, "memory", "checkpoint");
	play_close(&play);
}

static void p1_memory_that_changes_under_training_is_never_committed(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record record;
	struct child child;
	struct play play;

	config.steps_total = 1000000;
	play_begin(&play, &config, 1); /* in place: the flip cannot land in a free slot */
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 3);
	for (int i = 0; i < 1000 && atomic_load(&play.progress->phase) != PHASE_DONE &&
		kill(child.pid, 0) == 0 && state_newest_record(&play.state, &record) == 0;
		i++) {
		((uint8_t *)state_section(&play.state, 0, SECTION_EMA))[4096 + i] ^= 1;
		usleep(1000);
	}
	child_expect_end(&child, LINK_EXIT_MEMORY_CORRUPT);
	assert_int_equal(state_newest_record(&play.state, &record), -ENOENT);
	play_close(&play);
}

static void p1_a_corrupt_slot_is_not_saved(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record pinned;
	struct child child;
	struct play play;

	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	flip(&play, 777);
	assert_int_equal(state_pin_newest(&play.state, &pinned), 0);
	child = play_start(&play, "save", "disk", NULL);
	child_expect_end(&child, LINK_EXIT_MEMORY_CORRUPT);
	play_close(&play);
}

static void a_single_slot_waits_for_the_save_and_goes_on(void **unused)
{
	struct config config = play_tiny_config();
	struct digest expected = reference(), digest;
	struct state_record pinned;
	struct child child;
	struct play play;

	play_begin(&play, &config, 1);
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 4);
	while (state_pin_newest(&play.state, &pinned) < 0)
		usleep(200);
	while (atomic_load(&play.progress->phase) != PHASE_WAIT)
		usleep(200);
	assert_int_equal(atomic_load(&play.progress->step), pinned.step);
	state_unpin_all(&play.state);
	{
		AUTO_JSON finished = child_frame(&child, "finished");

		assert_non_null(finished);
	}
	child_expect_end(&child, LINK_EXIT_DONE);
	digest = play_digest(&play);
	assert_same_bits(&expected, &digest);
	play_close(&play);
}

static void a_changed_schedule_key_is_recorded_once_at_its_step(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record record;
	uint32_t count = 0;
	struct child child;
	struct play play;

	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 4);
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	play.config.learning_rate = 0.0005;
	for (int i = 0; i < 2; i++) {
		child = play_trainer(&play, "memory", "memory", NULL);
		play_kill(&play, &child);
	}
	{
		uint64_t changed_at = record.step;

		assert_int_equal(state_newest_record(&play.state, &record), 0);
		for (uint32_t i = 0; i < record.intervention_count; i++) {
			const struct intervention *entry = &record.interventions[i];

			if (entry->step == 0 || strncmp(entry->value, "learning_rate=", 14) != 0)
				continue;
			assert_int_equal(entry->kind, INTERVENTION_CONFIG);
			assert_int_equal(entry->step, changed_at);
			count++;
		}
	}
	assert_int_equal(count, 1);
	play_close(&play);
}

static void p1_a_fork_is_resumed_on_its_branch_and_skips_its_window(void **unused)
{
	struct config config = play_tiny_config();
	struct line line;
	struct line_branch branch = {.fork_step = 0, .why = "test"};
	struct state_record record;
	struct error err;
	struct play play;
	uint64_t step;
	char root[DIGEST_HEX_SIZE];
	int dir;

	config.steps_total = 6;
	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	{
		AUTO_JSON saved = play_save(&play);

		snprintf(root, sizeof(root), "%s", json_get_text(saved, "root", ""));
	}
	dir = file_open_dir(play.run_fd, "checkpoints", 0750);
	assert_int_equal(line_load(dir, &line, &err), 0);
	branch.fork_step = 6;
	branch.intervention_count = 1;
	branch.interventions[0] = (struct intervention){
		.step = 8, .kind = INTERVENTION_SKIP_WINDOW, .value = "40"};
	assert_int_equal(digest_from_hex(root, 64, &branch.fork_root), 0);
	if (line_fork(dir, &line, &branch, &err) < 0)
		fail_msg("%s", err.text);
	line_fini(&line);
	close(dir);

	play.config.steps_total = 12;
	{
		struct child child = play_trainer(&play, "disk", "checkpoint", &step);

		assert_int_equal(step, 6);
		child_expect_end(&child, LINK_EXIT_DONE);
	}
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	assert_int_equal(record.branch, 2);
	assert_int_equal(record.step, 12);
	assert_int_equal(record.images_seen, 12 * 4 + 40);
	play_close(&play);
}

/* When the catalog says that its data last matched. */
static void last_verified(const struct play *play, const char *id, char text[CLOCK_TEXT_SIZE])
{
	struct catalog *catalog;
	struct catalog_row row;
	struct error err;

	assert_int_equal(catalog_open(play->dir, CATALOG_READ, &catalog, &err), 0);
	assert_int_equal(catalog_get(catalog, id, &row, &err), 0);
	catalog_close(catalog);
	memcpy(text, row.verified_at, CLOCK_TEXT_SIZE);
}

static void verify_and_sample_answer_from_a_checkpoint(void **unused)
{
	struct config config = play_tiny_config();
	struct child child;
	struct play play;
	char path[192], id[CHECKPOINT_ID_SIZE], before[CLOCK_TEXT_SIZE], after[CLOCK_TEXT_SIZE];
	int fd;

	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	{
		AUTO_JSON saved = play_save(&play);

		snprintf(id, sizeof(id), "%s", json_get_text(saved, "id", ""));
		snprintf(path, sizeof(path), "%s", json_get_text(saved, "path", ""));
	}
	child = play_start(&play, "sample", "disk",
		json_pack("{s:s,s:i,s:i,s:i,s:i,s:f,s:s,s:s}", "id", "", "count", 3, "steps", 4,
			"seed", 7, "label", -1, "guidance", 1.0, "sampler", "ddpm", "name",
			"sample-1.png"));
	{
		AUTO_JSON sampled = child_frame(&child, "sampled");

		child_expect_end(&child, LINK_EXIT_DONE);
		assert_string_equal(json_get_text(sampled, "id", ""), id);
		assert_int_equal(access(json_get_text(sampled, "path", ""), R_OK), 0);
	}
	last_verified(&play, id, before);
	for (int damaged = 0; damaged < 2; damaged++) {
		child = play_start(&play, "verify", "disk", json_pack("{s:s}", "id", ""));
		{
			AUTO_JSON verified = child_frame(&child, "verified");

			child_expect_end(&child, LINK_EXIT_DONE);
			assert_string_equal(json_get_text(verified, "id", ""), id);
			assert_int_equal(json_get_bool(verified, "ok", damaged), !damaged);
		}
		last_verified(&play, id, after);
		assert_true(strcmp(before, after) < 0 || damaged);
		fd = open(path, O_RDWR);
		assert_true(fd >= 0);
		assert_int_equal(pwrite(fd, "flip", 4, 1 << 20), 4);
		close(fd);
	}
	play_close(&play);
}

/* What a broken trainer leaves: the next step counts an update, and the weights are the old ones.
 */
static void commit_same_weights(struct play *play, bool counts)
{
	struct state *state = &play->state;
	struct state_record record;
	uint32_t from, to;

	assert_int_equal(state_newest_record(state, &record), 0);
	from = record.slot;
	record.step++;
	record.update_count += counts;
	assert_int_equal(state_begin_write(state, &to), 0);
	memcpy(state_section(state, to, 0), state_section(state, from, 0),
		state->header.block_bytes);
	memcpy(state_sums(state, to), state_sums(state, from),
		state_sum_count(state) * sizeof(uint64_t));
	state_commit(state, to, &record);
}

static void p11_a_save_of_weights_that_stood_still_says_so(void **unused)
{
	struct config config = play_tiny_config();
	struct play play;

	play_begin(&play, &config, 3);
	play_to_end(&play, "disk", "scratch");
	for (int i = 0; i < 4; i++) {
		AUTO_JSON saved = play_save(&play);

		/* A first one; a second save of it; a counted update; one that was skipped. */
		assert_int_equal(json_get_bool(saved, "stale", i != 2), i == 2);
		if (i > 0)
			commit_same_weights(&play, i == 1);
	}
	play_close(&play);
}

static void p9_bad_configuration_data_and_identity_get_one_line_and_exit_78(void **unused)
{
	static const struct {
		const char *key, *value, *says;
		bool after_create; /* the run has the other value */
	} cases[] = {
		{"groups", "5", "groups", false},
		{"data", "folder:/nonexistent/images", "/nonexistent/images", false},
		{"seed", "2", "seed", true},
		{"channels", "16,32", "channels", true},
		{"engine", "amx", "engine = amx cannot run here", false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct config config = play_tiny_config(), changed = config;
		struct child child;
		struct error err;
		struct play play;

		assert_int_equal(
			config_set(&changed, cases[i].key, cases[i].value, "test", &err), 0);
		play_open(&play, cases[i].after_create ? &config : &changed);
		play.config = changed;
		child = play_start(&play, "prepare", "disk", NULL);
		child_expect_end(&child, LINK_EXIT_CONFIG);
		if (!strstr(child.failed, cases[i].says) || strchr(child.failed, '\n'))
			fail_msg("'%s' does not name %s", child.failed, cases[i].says);
		play_close(&play);
	}
}

static void p1_step_0_is_not_begun_where_checkpoints_were(void **unused)
{
	struct config config = play_tiny_config();
	struct child child;
	struct play play;

	play_begin(&play, &config, 3);
	play.created = false;
	child = play_start(&play, "train", "disk", NULL);
	child_expect_end(&child, LINK_EXIT_TRANSIENT);
	assert_non_null(strstr(child.failed, "bring them back"));
	play_close(&play);
}

/* Four classes of drawn cars: the saver must find the classes again, sampling the null class. */
static void a_class_model_is_saved_resumed_and_sampled(void **unused)
{
	struct config config = play_tiny_config();
	struct error err;
	struct child child;
	struct play play;
	uint64_t step;

	assert_int_equal(config_set(&config, "labels", "folders", "test", &err), 0);
	config.steps_total = 12;
	play_begin(&play, &config, 2);
	play_to_end(&play, "disk", "scratch");
	json_decref(play_save(&play));
	play_drop_memory(&play);
	play_prepare(&play);
	play_make_memory(&play, 2);
	play.config.steps_total = 14;
	child = play_trainer(&play, "disk", "checkpoint", &step);
	child_expect_end(&child, LINK_EXIT_DONE);
	assert_int_equal(step, 12);
	for (int label = 3; label <= 4; label++) {
		child = play_start(&play, "sample", "disk",
			json_pack("{s:s,s:i,s:i,s:i,s:i,s:f,s:s,s:s}", "id", "", "count", 2,
				"steps", 2, "seed", 7, "label", label, "guidance", 3.0, "sampler",
				"ddim", "name", "sample-2.png"));
		child_expect_end(&child, label < 4 ? LINK_EXIT_DONE : LINK_EXIT_FAILED);
	}
	assert_non_null(strstr(child.failed, "classes 0 to 3"));
	play_close(&play);
}

/* The newest value of a key among the record's entries, and its step. */
static const char *recorded(const struct state_record *record, const char *key, uint64_t *ret_step)
{
	const char *value = "";

	for (uint32_t i = 0; i < record->intervention_count; i++) {
		const struct intervention *entry = &record->interventions[i];
		size_t length = strlen(key);

		if (strncmp(entry->value, key, length) != 0 || entry->value[length] != '=')
			continue;
		value = entry->value + length + 1;
		*ret_step = entry->step;
	}
	return value;
}

static void a_reload_takes_schedule_keys_between_two_steps(void **unused)
{
	struct config config = play_tiny_config();
	struct state_record record;
	struct child child;
	struct play play;
	uint64_t at = 0, images;

	config.steps_total = 100000;
	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	play_wait_step(&play, 4);
	{
		AUTO_JSON refused = json_pack("{s:{s:{s:s}}}", "reload", "config", "seed", "2");
		AUTO_JSON taken = json_pack("{s:{s:{s:s,s:s,s:s}}}", "reload", "config",
			"batch_size", "6", "micro_batch", "3", "threads", "1");
		AUTO_JSON event = NULL;

		assert_int_equal(frame_send(child.link, refused, 0), 0);
		event = child_frame(&child, "reload_refused");
		assert_non_null(strstr(json_get_text(event, "text", ""), "seed"));
		assert_int_equal(frame_send(child.link, taken, 0), 0);
		json_decref(event);
		event = child_frame(&child, "event");
		assert_string_equal(json_get_text(event, "kind", ""), "intervention");
	}
	play_wait_step(&play, atomic_load(&play.progress->step) + 4);
	play_kill(&play, &child);
	assert_int_equal(state_newest_record(&play.state, &record), 0);
	assert_string_equal(recorded(&record, "batch_size", &at), "6");
	assert_true(at >= 4 && at < record.step);
	images = at * 4 + (record.step - at) * 6;
	assert_int_equal(record.images_seen, images);
	play_close(&play);
}

static void a_confined_trainers_last_words_name_the_signal(void **unused)
{
	struct config config = play_tiny_config();
	struct child child;
	struct play play;
	char tail[TAIL_MAX];

	config.steps_total = 1000000;
	play_begin(&play, &config, 3);
	child = play_trainer(&play, "disk", "scratch", NULL);
	assert_int_equal(process_seccomp(child.pid), 2);
	kill(child.pid, SIGABRT);
	assert_int_equal(child_end(&child, tail), -SIGABRT);
	assert_non_null(strstr(tail, "ckptd-worker train: SIGABRT"));
	assert_non_null(strstr(tail, "ckptd-worker("));
	play_close(&play);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p9_bad_configuration_data_and_identity_get_one_line_and_exit_78),
		cmocka_unit_test(p1_step_0_is_not_begun_where_checkpoints_were),
		cmocka_unit_test(p2_other_thread_counts_and_slots_give_the_same_bits),
		cmocka_unit_test(p2_previews_and_holdout_do_not_touch_the_bits),
		cmocka_unit_test(
			p2_p3_killed_at_random_it_goes_on_at_the_next_step_to_the_same_bits),
		cmocka_unit_test(p2_saved_and_resumed_from_disk_gives_the_same_bits),
		cmocka_unit_test(p2_a_nonfinite_update_is_skipped_alike_after_kills),
		cmocka_unit_test(nonfinite_updates_in_a_row_end_the_trainer),
		cmocka_unit_test(stop_ends_after_the_step_and_previews_are_written),
		cmocka_unit_test(a_stop_right_behind_the_start_is_heard),
		cmocka_unit_test(p1_memory_that_does_not_match_its_sums_is_not_resumed),
		cmocka_unit_test(p1_memory_that_changes_under_training_is_never_committed),
		cmocka_unit_test(p1_a_corrupt_slot_is_not_saved),
		cmocka_unit_test(a_single_slot_waits_for_the_save_and_goes_on),
		cmocka_unit_test(a_changed_schedule_key_is_recorded_once_at_its_step),
		cmocka_unit_test(p1_a_fork_is_resumed_on_its_branch_and_skips_its_window),
		cmocka_unit_test(p11_a_save_of_weights_that_stood_still_says_so),
		cmocka_unit_test(verify_and_sample_answer_from_a_checkpoint),
		cmocka_unit_test(a_class_model_is_saved_resumed_and_sampled),
		cmocka_unit_test(a_reload_takes_schedule_keys_between_two_steps),
		cmocka_unit_test(a_confined_trainers_last_words_name_the_signal),
	};

	setenv("GOMP_SPINCOUNT", "1000", 1);
	return cmocka_run_group_tests_name("worker roles", tests, NULL, NULL);
}
