/* The interventions of a record: a restart must know from it alone what was in force (P2). */
#include "daemon/worker_engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char told[8][160];
static uint32_t told_count;

static void tell(void *context, const char *text)
{
	snprintf(told[told_count++ % 8], sizeof(told[0]), "%s", text);
}

static struct state_record begun(const struct config *config)
{
	struct state_record record = {.branch = 1};

	told_count = 0;
	record_begin(&record, config);
	return record;
}

static void set(struct config *config, const char *key, const char *value)
{
	struct error err;

	if (config_set(config, key, value, "test", &err) < 0)
		fail_msg("%s", err.text);
}

static void assert_same_schedule(const struct config *a, const struct config *b)
{
	const struct config_key *key = config_next_difference(a, b, CONFIG_SCHEDULE, NULL);

	if (key)
		fail_msg("%s differs", key->key);
}

static void a_record_alone_gives_back_the_schedule(void **unused)
{
	struct config config, base, found;
	struct state_record record;
	struct error err;

	config_defaults(&config);
	config_defaults(&base);
	set(&config, "learning_rate", "0.00012345678901234567");
	set(&config, "beta2", "0.99899999999999999");
	set(&config, "lr_schedule", "constant");
	set(&config, "steps_total", "1000000000");
	record = begun(&config);
	assert_int_equal(record_config(&record, &base, &found, &err), 0);
	assert_same_schedule(&config, &found);
}

static void a_change_is_entered_once_and_told(void **unused)
{
	struct config before, after, found;
	struct state_record record;
	struct error err;
	uint32_t count;

	config_defaults(&before);
	after = before;
	record = begun(&before);
	count = record.intervention_count;
	set(&after, "learning_rate", "0.0003");
	set(&after, "threads", "7"); /* free: changes no bits */
	record.step = 120;
	record.usual.updates = 99;
	assert_int_equal(record_changes(&record, &before, &after, tell, NULL), 1);
	assert_int_equal(record.usual.updates, 0);
	assert_int_equal(record.intervention_count, count + 1);
	assert_int_equal(record.interventions[count].step, 120);
	assert_non_null(strstr(told[0], "learning_rate: 0.001 -> "));
	assert_int_equal(record_config(&record, &before, &found, &err), 0);
	record.usual.updates = 7;
	assert_int_equal(record_changes(&record, &found, &after, tell, NULL), 0);
	assert_int_equal(record.usual.updates, 7);
	assert_int_equal(record_config(&record, &after, &found, &err), 0);
	assert_same_schedule(&after, &found);
}

/* A hundred changes do not fit: the superseded ones are folded, the last ones stay in force. */
static void a_full_record_folds_what_is_superseded(void **unused)
{
	struct config before, after, found;
	struct state_record record;
	char value[32], folded[48] = "";
	struct error err;

	config_defaults(&before);
	record = begun(&before);
	for (uint64_t step = 1; step <= 100; step++) {
		after = before;
		snprintf(value, sizeof(value), "%g", 1e-5 * (double)step);
		set(&after, step % 2 ? "learning_rate" : "weight_decay", value);
		record.step = step;
		assert_int_equal(record_changes(&record, &before, &after, tell, NULL), 1);
		assert_true(record.intervention_count <= STATE_INTERVENTIONS_MAX);
		before = after;
	}
	assert_int_equal(record.interventions[0].kind, INTERVENTION_FOLDED);
	assert_int_equal(strlen(record.interventions[0].value), 32);
	strcpy(folded, record.interventions[0].value);
	for (uint32_t i = 1; i < record.intervention_count; i++)
		assert_int_not_equal(record.interventions[i].kind, INTERVENTION_FOLDED);
	config_defaults(&found);
	assert_int_equal(record_config(&record, &found, &found, &err), 0);
	assert_same_schedule(&after, &found);

	/* Windows go when nothing else is left to fold, never a key that is in force. */
	for (uint64_t step = 101; step <= 200; step++) {
		record.step = step;
		record_add(&record, INTERVENTION_SKIP_WINDOW, step, "64");
	}
	assert_int_equal(record.intervention_count, STATE_INTERVENTIONS_MAX);
	assert_string_not_equal(record.interventions[0].value, folded);
	config_defaults(&found);
	assert_int_equal(record_config(&record, &found, &found, &err), 0);
	assert_same_schedule(&after, &found);
	state_record_seal(&record);
	assert_true(state_record_valid(&record));
}

static const struct line_branch window_at_50 = {.branch = 2,
	.parent = 1,
	.fork_step = 10,
	.intervention_count = 1,
	.interventions = {{.step = 50, .kind = INTERVENTION_SKIP_WINDOW, .value = "16"}}};

/* Branch 2 asks for a window at 50, branch 3 (forked from 2 at 20) for one at 30. */
static void a_branch_window_is_applied_at_its_step_also_on_later_branches(void **unused)
{
	struct line_branch branches[3] = {
		{.branch = 1},
		window_at_50,
		{.branch = 3,
			.parent = 2,
			.fork_step = 20,
			.intervention_count = 2,
			.interventions = {{.step = 30,
						  .kind = INTERVENTION_SKIP_WINDOW,
						  .value = "8"},
				{.step = 30, .kind = INTERVENTION_ENGINE, .value = "openblas"}}},
	};
	struct line line = {.count = 3, .branches = branches, .current = 3};
	struct config config;
	struct state_record record;
	uint32_t applied = 0;

	config_defaults(&config);
	record = begun(&config);
	record.branch = 3;
	for (record.step = 20; record.step < 60; record.step++) {
		applied += record_apply_branch(&record, &line, tell, NULL);
		/* As after a death: the same step begins again. */
		assert_int_equal(record_apply_branch(&record, &line, tell, NULL), 0);
		record.images_seen += 4;
	}
	/* The engine there is for people: the record names what computes, and nothing else. */
	assert_int_equal(applied, 2);
	assert_int_equal(record.images_seen, 40 * 4 + 8 + 16);
}

/* Branch 3 began at step 0: what branch 2 had learned is left with it. */
static void a_branch_from_step_0_skips_nothing_of_before(void **unused)
{
	struct line_branch branches[3] = {
		{.branch = 1},
		window_at_50,
		{.branch = 3, .parent = 2},
	};
	struct line line = {.count = 3, .branches = branches, .current = 3};
	struct config config;
	struct state_record record;

	config_defaults(&config);
	record = begun(&config);
	record.branch = 3;
	record.step = 50;
	assert_int_equal(record_apply_branch(&record, &line, tell, NULL), 0);
	record.branch = 2;
	assert_int_equal(record_apply_branch(&record, &line, tell, NULL), 1);
}

/* -- engines -- */

static const struct unet_config wide = {
	.level_count = 2,
	.channels = {32, 64},
	.head_dim = 32,
};
static const struct unet_config narrow = {
	.level_count = 2,
	.channels = {16, 48},
	.head_dim = 16,
};

static struct engine_choice choose(const struct unet_config *net, const char *forced,
	const char *wanted, const struct state_record *record)
{
	struct engine_choice choice;
	struct error err;

	if (engine_choose(net, forced, wanted, record, &choice, &err) < 0)
		fail_msg("%s", err.text);
	return choice;
}

/* A start of a trainer with this configuration, at the record's step. */
static struct engine_choice start(struct state_record *record, const struct unet_config *net,
	const char *forced, struct config *config, const char *wanted)
{
	struct engine_choice choice = choose(net, forced, wanted, record);
	struct config before = *config;

	set(config, "engine", wanted);
	record_changes(record, &before, config, tell, NULL);
	record_set_engine(record, choice.engine->name, choice.by, tell, NULL);
	return choice;
}

static void assert_entry(const struct state_record *record, uint32_t back, const char *value)
{
	const struct intervention *entry =
		&record->interventions[record->intervention_count - 1 - back];

	assert_int_equal(entry->kind, INTERVENTION_ENGINE);
	assert_string_equal(entry->value, value);
}

static void p2_the_record_alone_says_which_engine_computed_from_which_step(void **unused)
{
	struct config config;
	struct state_record record;
	struct engine_entry entry;
	struct engine_choice choice;
	char value[48];

	config_defaults(&config);
	record = begun(&config);
	assert_false(record_engine(&record, &entry));
	choice = choose(&wide, "", "auto", NULL);
	assert_true(record_set_engine(&record, choice.engine->name, choice.by, tell, NULL));
	assert_int_equal(told_count, 0); /* a beginning is no change */
	snprintf(value, sizeof(value), "%s (auto)", choice.engine->name);
	assert_entry(&record, 0, value);
	assert_true(record_engine(&record, &entry));
	assert_int_equal(entry.step, 0);
	assert_int_equal(entry.by, ENGINE_BY_AUTO);
	assert_string_equal(entry.name, choice.engine->name);

	record.step = 50; /* the same again enters nothing */
	assert_false(record_set_engine(&record, choice.engine->name, choice.by, tell, NULL));
	assert_true(record_set_engine(&record, "other", ENGINE_BY_CONFIG, tell, NULL));
	assert_true(record_engine(&record, &entry));
	assert_int_equal(entry.step, 50);
	assert_string_equal(entry.name, "other");
	assert_int_equal(told_count, 1);
	assert_non_null(strstr(told[0], "other computes from step 50"));
}

/* A record whose auto chose name at step 7. */
static struct state_record chosen(struct config *config, const char *name)
{
	struct state_record record;

	config_defaults(config);
	record = begun(config);
	record.step = 7;
	record_set_engine(&record, name, ENGINE_BY_AUTO, tell, NULL);
	record.step = 100;
	return record;
}

static void p2_auto_keeps_the_engine_of_the_run(void **unused)
{
	struct config config;
	struct state_record record = chosen(&config, "openblas");
	uint32_t count = record.intervention_count;
	struct engine_choice fastest = choose(&wide, "", "auto", NULL);
	struct engine_choice choice = start(&record, &wide, "", &config, "auto");

	assert_string_equal(choice.engine->name, "openblas");
	assert_false(choice.replaced);
	assert_int_equal(record.intervention_count, count);
	if (fastest.engine != choice.engine) {
		assert_non_null(strstr(choice.reason, "kept since step 7"));
		assert_non_null(strstr(choice.reason, fastest.engine->name));
	}
	/* A person who changes the key is heard: auto chooses anew. */
	record.step = 101;
	start(&record, &wide, "", &config, "openblas");
	record.step = 102;
	choice = start(&record, &wide, "", &config, "auto");
	assert_ptr_equal(choice.engine, fastest.engine);
	record.step = 103;
	count = record.intervention_count;
	choice = start(&record, &wide, "", &config, "auto");
	assert_ptr_equal(choice.engine, fastest.engine);
	assert_string_equal(choice.reason, fastest.reason);
	assert_int_equal(record.intervention_count, count);
}

static void p2_an_engine_that_cannot_run_any_more_is_replaced_and_named(void **unused)
{
	struct config config;
	struct state_record record = chosen(&config, "amx");
	struct engine_choice fastest = choose(&narrow, "", "auto", NULL);
	struct engine_choice choice = start(&record, &narrow, "", &config, "auto");
	char value[48];

	assert_ptr_equal(choice.engine, fastest.engine);
	assert_true(choice.replaced);
	assert_non_null(strstr(choice.reason, "amx of the run cannot run here: "));
	assert_non_null(strstr(choice.reason, "divisible by 32, not 16"));
	snprintf(value, sizeof(value), "%s (auto)", choice.engine->name);
	assert_entry(&record, 0, value);
	assert_int_equal(record.interventions[record.intervention_count - 1].step, 100);
	/* From then on it is the run's. */
	choice = start(&record, &narrow, "", &config, "auto");
	assert_ptr_equal(choice.engine, fastest.engine);
	assert_false(choice.replaced);
}

static void the_ladders_engine_is_taken_back_when_it_is_no_longer_forced(void **unused)
{
	struct config config;
	struct state_record record;
	struct engine_choice of_run = choose(&wide, "", "auto", NULL), choice;
	char value[48];

	record = chosen(&config, of_run.engine->name);
	choice = start(&record, &wide, "openblas", &config, "auto");
	assert_string_equal(choice.engine->name, "openblas");
	assert_non_null(strstr(choice.reason, "the safe engine"));
	assert_entry(&record, 0, "openblas (ladder)");
	record.step = 200;
	choice = start(&record, &wide, "", &config, "auto");
	assert_ptr_equal(choice.engine, of_run.engine);
	assert_string_equal(choice.reason, of_run.reason);
	snprintf(value, sizeof(value), "%s (auto)", of_run.engine->name);
	assert_entry(&record, 0, value);
}

static void p9_a_named_engine_that_cannot_run_is_refused_in_one_line(void **unused)
{
	struct engine_choice choice;
	struct error err;

	assert_int_equal(engine_choose(&narrow, "", "amx", NULL, &choice, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "engine = amx cannot run here"));
	assert_non_null(strstr(err.text, "engine = auto"));
	assert_null(strchr(err.text, '\n'));
}

static void a_checkpoint_is_drawn_from_with_its_own_engine_where_that_runs(void **unused)
{
	struct config config;
	struct state_record record = chosen(&config, "openblas");
	struct engine_choice fastest = choose(&narrow, "", "auto", NULL);

	assert_string_equal(engine_for_record(&narrow, &record)->name, "openblas");
	record_set_engine(&record, "amx", ENGINE_BY_CONFIG, tell, NULL);
	assert_ptr_equal(engine_for_record(&narrow, &record), fastest.engine);
	record.intervention_count = 0;
	assert_ptr_equal(engine_for_record(&narrow, &record), fastest.engine);
}

/* The engine in force, and the one to go back to, are never folded away. */
static void a_full_record_keeps_its_engines(void **unused)
{
	struct config config;
	struct state_record record = chosen(&config, "amx");
	struct engine_entry entry;

	for (uint64_t step = 101; step <= 250; step++) {
		record.step = step;
		record_set_engine(&record, "openblas",
			step % 2 ? ENGINE_BY_LADDER : ENGINE_BY_CONFIG, tell, NULL);
		record_add(&record, INTERVENTION_SKIP_WINDOW, step, "64");
	}
	assert_int_equal(record.intervention_count, STATE_INTERVENTIONS_MAX);
	assert_true(record_auto_engine(&record, &entry));
	assert_string_equal(entry.name, "amx");
	assert_int_equal(entry.step, 7);
	assert_true(record_engine(&record, &entry));
	assert_string_equal(entry.name, "openblas");
	assert_int_equal(entry.step, 250);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_record_alone_gives_back_the_schedule),
		cmocka_unit_test(a_change_is_entered_once_and_told),
		cmocka_unit_test(a_full_record_folds_what_is_superseded),
		cmocka_unit_test(a_branch_window_is_applied_at_its_step_also_on_later_branches),
		cmocka_unit_test(a_branch_from_step_0_skips_nothing_of_before),
		cmocka_unit_test(p2_the_record_alone_says_which_engine_computed_from_which_step),
		cmocka_unit_test(p2_auto_keeps_the_engine_of_the_run),
		cmocka_unit_test(p2_an_engine_that_cannot_run_any_more_is_replaced_and_named),
		cmocka_unit_test(the_ladders_engine_is_taken_back_when_it_is_no_longer_forced),
		cmocka_unit_test(p9_a_named_engine_that_cannot_run_is_refused_in_one_line),
		cmocka_unit_test(a_checkpoint_is_drawn_from_with_its_own_engine_where_that_runs),
		cmocka_unit_test(a_full_record_keeps_its_engines),
	};

	return cmocka_run_group_tests_name("interventions", tests, NULL, NULL);
}
