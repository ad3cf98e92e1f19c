/* The interventions of a record: a restart must know from it alone what was in force (P2). */
#include "daemon/worker_record.h"

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
	assert_int_equal(record_changes(&record, &before, &after, tell, NULL), 1);
	assert_int_equal(record.intervention_count, count + 1);
	assert_int_equal(record.interventions[count].step, 120);
	assert_non_null(strstr(told[0], "learning_rate: 0.001 -> "));
	assert_int_equal(record_config(&record, &before, &found, &err), 0);
	assert_int_equal(record_changes(&record, &found, &after, tell, NULL), 0);
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

/* Branch 2 asks for a window at 50, branch 3 (forked from 2 at 20) for one at 30. */
static void a_branch_window_is_applied_at_its_step_also_on_later_branches(void **unused)
{
	struct line_branch branches[3] = {
		{.branch = 1},
		{.branch = 2,
			.parent = 1,
			.fork_step = 10,
			.intervention_count = 1,
			.interventions = {{.step = 50,
				.kind = INTERVENTION_SKIP_WINDOW,
				.value = "16"}}},
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
	assert_int_equal(applied, 3);
	assert_int_equal(record.images_seen, 40 * 4 + 8 + 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_record_alone_gives_back_the_schedule),
		cmocka_unit_test(a_change_is_entered_once_and_told),
		cmocka_unit_test(a_full_record_folds_what_is_superseded),
		cmocka_unit_test(a_branch_window_is_applied_at_its_step_also_on_later_branches),
	};

	return cmocka_run_group_tests_name("interventions", tests, NULL, NULL);
}
