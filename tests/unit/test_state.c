/* P3: at every instant a whole state. The state memory's slot machine: every order of begin,
 * commit, skip, pin and kill, with the kill placed after every single store of a commit; torn
 * records; refusals of foreign memory; readers and a writer at the same time. */
#include "tests/unit/state_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define WORDS (STATE_PAGE / sizeof(uint64_t))
#define DESTROYED UINT64_MAX

/* What a slot holds is one number here, in the first and last word of each section. */
static void content_set(struct state *state, uint32_t slot, uint64_t content)
{
	for (uint32_t section = 0; section < SECTION_COUNT; section++) {
		uint64_t *words = (uint64_t *)state_section(state, slot, section);

		words[0] = content;
		words[SECTION / sizeof(uint64_t) - 1] = content;
	}
	state_sums(state, slot)[0] = content;
}

static uint64_t content_get(const struct state *state, uint32_t slot)
{
	uint64_t content = state_sums(state, slot)[0];

	for (uint32_t section = 0; section < SECTION_COUNT; section++) {
		const uint64_t *words = (const uint64_t *)state_section(state, slot, section);

		if (words[0] != content || words[SECTION / sizeof(uint64_t) - 1] != content)
			return DESTROYED;
	}
	return content;
}

static struct state_record record_of(uint64_t step, uint64_t update_count)
{
	struct state_record record = {.branch = 1, .step = step, .update_count = update_count};

	memcpy(record.run_id, run_id, sizeof(record.run_id));
	return record;
}

/* -- a model of what must hold -- */

struct walk {
	struct state *state;
	uint32_t slots;
	uint64_t rand;
	uint64_t step, updates; /* of the last commit */
	uint64_t floor;         /* the step that a death now may fall back to; 0: to none at all */
	bool begun;
	uint32_t slot;
	bool pinned;
	struct state_record pin;
};

static uint64_t next_random(uint64_t *rand)
{
	uint64_t z = *rand += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* The newest state is between floor and step, and whole: its slot holds what its record says. */
static void check_newest(const struct walk *walk)
{
	struct state_record record;
	int r = state_newest_record(walk->state, &record);

	if (r == -ENOENT) {
		assert_int_equal(walk->floor, 0);
		return;
	}
	assert_int_equal(r, 0);
	assert_true(state_record_valid(&record));
	assert_int_equal(content_get(walk->state, record.slot), record.update_count);
	assert_in_range(record.step, walk->floor, walk->step);
}

static void check_pin(const struct walk *walk)
{
	struct state_record record;

	if (!walk->pinned) {
		assert_int_equal(state_pinned_record(walk->state, &record), -ENOENT);
		return;
	}
	assert_int_equal(state_pinned_record(walk->state, &record), 0);
	assert_memory_equal(&record, &walk->pin, sizeof(record));
	assert_true(state_still_pinned(walk->state, &record));
	assert_int_equal(content_get(walk->state, record.slot), record.update_count);
}

/* Replays a commit store by store (first the slot's word, then the record's words in order) and
 * looks at what a death after each of them would leave. */
static void check_every_store(const struct walk *walk, const uint8_t *before)
{
	static uint8_t after[5 * STATE_PAGE];
	uint8_t *map = walk->state->map;

	memcpy(after, map, sizeof(after));
	memcpy(map, before, sizeof(after));
	check_newest(walk);
	memcpy(map + 4 * STATE_PAGE, after + 4 * STATE_PAGE, STATE_PAGE);
	check_newest(walk);
	for (size_t page = 1; page <= 2; page++) {
		uint64_t *to = (uint64_t *)(map + page * STATE_PAGE);
		const uint64_t *from = (const uint64_t *)(after + page * STATE_PAGE);

		for (size_t i = 0; i < WORDS; i++) {
			if (to[i] == from[i])
				continue;
			to[i] = from[i];
			check_newest(walk);
		}
	}
	assert_memory_equal(map, after, sizeof(after));
}

static void walk_begin(struct walk *walk)
{
	struct state_record newest;
	bool some = state_newest_record(walk->state, &newest) == 0;
	int r = state_begin_write(walk->state, &walk->slot);

	if (walk->slots == 1 && walk->pinned) {
		assert_int_equal(r, -EBUSY);
		return;
	}
	assert_int_equal(r, 0);
	assert_in_range(walk->slot, 0, walk->slots - 1);
	walk->begun = true;
	if (walk->pinned)
		assert_int_not_equal(walk->slot, walk->pin.slot);
	if (some && walk->slot == newest.slot) { /* in place: only where the contract says so */
		assert_true(walk->slots == 1 || (walk->slots == 2 && walk->pinned));
		walk->floor = walk->slots == 1 ? 0 : walk->pin.step;
	}
	content_set(walk->state, walk->slot, DESTROYED);
	check_newest(walk);
}

static void walk_commit(struct walk *walk)
{
	static uint8_t before[5 * STATE_PAGE];
	struct state_record record;

	memcpy(before, walk->state->map, sizeof(before));
	walk->updates++;
	walk->step++;
	content_set(walk->state, walk->slot, walk->updates);
	record = record_of(walk->step, walk->updates);
	state_commit(walk->state, walk->slot, &record);
	if (walk->step % 7 == 0)
		check_every_store(walk, before);
	walk->begun = false;
	walk->floor = walk->step;
	check_newest(walk);
}

/* A skipped update: a new record for the same slot. */
static void walk_skip(struct walk *walk)
{
	static uint8_t before[5 * STATE_PAGE];
	struct state_record record;

	if (state_newest_record(walk->state, &record) < 0)
		return;
	memcpy(before, walk->state->map, sizeof(before));
	record.step = ++walk->step;
	record.skipped_count++;
	state_commit_record(walk->state, &record);
	if (walk->step % 5 == 0)
		check_every_store(walk, before);
	walk->floor = walk->step;
	check_newest(walk);
}

/* SIGKILL of the trainer, waitpid, and the next trainer goes on from what there is. */
static void walk_kill(struct walk *walk)
{
	struct state_record record;

	state_clear_writing(walk->state);
	check_newest(walk);
	if (state_newest_record(walk->state, &record) < 0)
		record = record_of(0, 0);
	if (walk->slots == 3 || !walk->begun)
		assert_int_equal(record.step, walk->step);
	walk->step = walk->floor = record.step;
	walk->updates = record.update_count;
	walk->begun = false;
	for (uint32_t slot = 0; slot < walk->slots; slot++)
		assert_int_not_equal(state_slot_state(walk->state, slot, NULL, NULL), SLOT_WRITING);
}

static void walk_pin(struct walk *walk)
{
	struct state_record record;
	int r = state_pin_newest(walk->state, &record);

	if (walk->pinned) {
		assert_int_equal(r, -EBUSY);
	} else if (r == -ENOENT) {
		assert_int_equal(walk->floor, 0);
	} else {
		assert_int_equal(r, 0);
		walk->pinned = true;
		walk->pin = record;
	}
}

static void walk_run(uint32_t slots, uint64_t seed)
{
	struct state state;
	struct walk walk = {.state = &state, .slots = slots, .rand = seed};

	print_message("# slots %u seed %ju\n", slots, (uintmax_t)seed);
	make(&state, slots);
	for (int i = 0; i < 1500; i++) {
		uint64_t choice = next_random(&walk.rand) % 16;

		if (choice < 9) {
			if (walk.begun)
				walk_commit(&walk);
			else
				walk_begin(&walk);
		} else if (choice < 11) {
			if (!walk.begun)
				walk_skip(&walk);
		} else if (choice < 12) {
			walk_kill(&walk);
		} else if (choice < 14) {
			walk_pin(&walk);
		} else {
			state_unpin_all(&state);
			walk.pinned = false;
		}
		check_pin(&walk);
	}
	assert_true(walk.updates > 0);
	drop(&state);
}

static void test_p3_three_slots(void **unused)
{
	for (uint64_t seed = 1; seed <= 4; seed++)
		walk_run(3, seed);
}

static void test_p3_two_slots(void **unused)
{
	for (uint64_t seed = 1; seed <= 4; seed++)
		walk_run(2, seed);
}

static void test_p3_one_slot(void **unused)
{
	for (uint64_t seed = 1; seed <= 4; seed++)
		walk_run(1, seed);
}

static void commit_step(struct state *state, uint64_t step)
{
	struct state_record record = record_of(step, step);
	uint32_t slot;

	assert_int_equal(state_begin_write(state, &slot), 0);
	content_set(state, slot, step);
	state_commit(state, slot, &record);
}

/* Two slots, the other one pinned: the current one is rewritten; a death in it falls back to the
 * pin, also when skipped updates had overwritten the copy that spoke of the pinned slot. */
static void test_p3_two_slots_in_place(void **unused)
{
	struct state state;
	struct state_record pin, record;
	uint32_t slot;

	make(&state, 2);
	commit_step(&state, 1);
	assert_int_equal(state_pin_newest(&state, &pin), 0);
	commit_step(&state, 2);
	for (uint64_t step = 3; step <= 4; step++) {
		assert_int_equal(state_newest_record(&state, &record), 0);
		record.step = step;
		state_commit_record(&state, &record);
	}
	assert_int_equal(state_begin_write(&state, &slot), 0);
	assert_int_not_equal(slot, pin.slot);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_memory_equal(&record, &pin, sizeof(record));
	state_clear_writing(&state);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(record.step, 1);
	commit_step(&state, 2);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(record.step, 2);
	drop(&state);
}

static void test_one_slot_waits_for_the_pin(void **unused)
{
	struct state state;
	struct state_record pin;
	uint32_t slot;

	make(&state, 1);
	commit_step(&state, 1);
	assert_int_equal(state_pin_newest(&state, &pin), 0);
	assert_int_equal(state_begin_write(&state, &slot), -EBUSY);
	assert_int_equal(content_get(&state, 0), 1);
	state_unpin_all(&state);
	commit_step(&state, 2);
	drop(&state);
}

/* A slot left in writing by a dead trainer is no reason to destroy the current one. */
static void test_p3_a_slot_in_writing_is_not_free(void **unused)
{
	struct state state;
	struct state_record record;
	uint32_t slot;

	make(&state, 2);
	commit_step(&state, 1);
	assert_int_equal(state_begin_write(&state, &slot), 0);
	assert_int_equal(state_begin_write(&state, &slot), -EBUSY);
	state_clear_writing(&state);
	assert_int_equal(state_begin_write(&state, &slot), 0);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(content_get(&state, record.slot), 1);
	drop(&state);
}

static void test_abort_gives_the_slot_back(void **unused)
{
	struct state state;
	struct state_record record;
	uint32_t slot;

	make(&state, 3);
	commit_step(&state, 1);
	assert_int_equal(state_begin_write(&state, &slot), 0);
	state_abort_write(&state, slot);
	assert_int_equal(state_slot_state(&state, slot, NULL, NULL), SLOT_EMPTY);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(record.step, 1);
	drop(&state);
}

/* Memory corrupt: nothing may be resumed, and a save in flight must notice. */
static void test_p11_empty_all_voids_everything(void **unused)
{
	struct state state;
	struct state_record pin, record;

	make(&state, 3);
	commit_step(&state, 1);
	commit_step(&state, 2);
	assert_int_equal(state_pin_newest(&state, &pin), 0);
	state_empty_all(&state);
	assert_int_equal(state_newest_record(&state, &record), -ENOENT);
	assert_int_equal(state_pinned_record(&state, &record), -ENOENT);
	assert_false(state_still_pinned(&state, &pin));
	state_unpin_all(&state);
	commit_step(&state, 9);
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(record.step, 9);
	/* Sequences went on: the old record can never match the slot's new content. */
	assert_true(record.slot_sequence > pin.slot_sequence);
	drop(&state);
}

/* -- records -- */

static void test_p3_torn_and_foreign_records_do_not_count(void **unused)
{
	struct state state;
	struct state_record good, record;

	make(&state, 3);
	commit_step(&state, 1);
	commit_step(&state, 2);
	assert_int_equal(state_newest_record(&state, &good), 0);
	assert_int_equal(good.step, 2);
	/* Any flipped byte of the newest copy: the one before it wins. */
	for (uint32_t page = 1; page <= 2; page++) {
		uint8_t *bytes = state.map + page * STATE_PAGE;

		if (memcmp(bytes, &good, sizeof(good)) != 0)
			continue;
		for (size_t i = 0; i < STATE_PAGE; i += 61) {
			bytes[i] ^= 0x10;
			assert_int_equal(state_newest_record(&state, &record), 0);
			assert_int_equal(record.step, 1);
			bytes[i] ^= 0x10;
		}
		/* A whole record that speaks of a slot which moved on. */
		record = good;
		record.slot_sequence += 5;
		record.sequence += 5;
		state_record_seal(&record);
		memcpy(bytes, &record, sizeof(record));
		assert_int_equal(state_newest_record(&state, &record), 0);
		assert_int_equal(record.step, 1);
		/* And of a slot that does not exist. */
		record = good;
		record.slot = STATE_SLOTS_MAX;
		state_record_seal(&record);
		memcpy(bytes, &record, sizeof(record));
		assert_int_equal(state_newest_record(&state, &record), 0);
		assert_int_equal(record.step, 1);
	}
	drop(&state);
}

static void test_record_bounds(void **unused)
{
	struct state_record good = record_of(10, 9), record;

	good.intervention_count = 1;
	good.interventions[0] = (struct intervention){.step = 3, .kind = INTERVENTION_CONFIG};
	state_record_seal(&good);
	assert_true(state_record_valid(&good));
#define REFUSED(change)                                                                            \
	do {                                                                                       \
		record = good;                                                                     \
		change;                                                                            \
		state_record_seal(&record);                                                        \
		assert_false(state_record_valid(&record));                                         \
	} while (0)
	REFUSED(record.branch = 0);
	REFUSED(record.branch = 10000);
	REFUSED(record.update_count = 11);
	REFUSED(record.step = STATE_COUNT_MAX + 1);
	REFUSED(record.images_seen = STATE_COUNT_MAX + 1);
	REFUSED(record.skipped_count = STATE_COUNT_MAX + 1);
	REFUSED(record.intervention_count = STATE_INTERVENTIONS_MAX + 1);
	REFUSED(record.interventions[0].kind = 0);
	REFUSED(record.interventions[0].kind = INTERVENTION_FOLDED + 1);
	REFUSED(memset(record.interventions[0].value, 'x', sizeof(record.interventions[0].value)));
#undef REFUSED
	memset(&record, 0, sizeof(record));
	assert_false(state_record_valid(&record));
}

/* -- at the same time -- */

#define COMMITS 3000

struct race {
	struct state *state;
	_Atomic bool done;
	uint64_t saves, bad;
};

static void *trainer_thread(void *context)
{
	struct race *race = context;

	for (uint64_t step = 1; step <= COMMITS; step++) {
		struct state_record record = record_of(step, step);
		uint32_t slot;

		if (state_begin_write(race->state, &slot) != 0)
			abort(); /* with three slots there is always one */
		content_set(race->state, slot, DESTROYED);
		content_set(race->state, slot, step);
		state_commit(race->state, slot, &record);
	}
	atomic_store(&race->done, true);
	return NULL;
}

static void *supervisor_thread(void *context)
{
	struct race *race = context;

	for (bool last = false; !last;) {
		struct state_record pin, record;

		last = atomic_load(&race->done);
		if (state_pin_newest(race->state, &pin) < 0)
			continue;
		if (content_get(race->state, pin.slot) != pin.step ||
			state_pinned_record(race->state, &record) < 0 ||
			memcmp(&record, &pin, sizeof(pin)) != 0 ||
			!state_still_pinned(race->state, &pin))
			race->bad++;
		race->saves++;
		state_unpin_all(race->state);
	}
	return NULL;
}

/* Saves need no step boundary and never see a half-written slot (P3, P4). */
static void test_p3_saver_against_trainer(void **unused)
{
	struct state state;
	struct race race = {.state = &state};
	pthread_t trainer, supervisor;
	uint64_t seen = 0;

	make(&state, 3);
	assert_int_equal(pthread_create(&trainer, NULL, trainer_thread, &race), 0);
	assert_int_equal(pthread_create(&supervisor, NULL, supervisor_thread, &race), 0);
	while (!atomic_load(&race.done)) {
		struct state_record record;

		if (state_newest_record(&state, &record) < 0) {
			assert_int_equal(seen, 0);
			continue;
		}
		assert_true(state_record_valid(&record));
		assert_true(record.step >= seen); /* no finished step is ever unseen again */
		seen = record.step;
	}
	pthread_join(trainer, NULL);
	pthread_join(supervisor, NULL);
	assert_int_equal(race.bad, 0);
	assert_true(race.saves > 0);
	struct state_record record;
	assert_int_equal(state_newest_record(&state, &record), 0);
	assert_int_equal(record.step, COMMITS);
	drop(&state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p3_three_slots),
		cmocka_unit_test(test_p3_two_slots),
		cmocka_unit_test(test_p3_one_slot),
		cmocka_unit_test(test_p3_two_slots_in_place),
		cmocka_unit_test(test_one_slot_waits_for_the_pin),
		cmocka_unit_test(test_p3_a_slot_in_writing_is_not_free),
		cmocka_unit_test(test_abort_gives_the_slot_back),
		cmocka_unit_test(test_p11_empty_all_voids_everything),
		cmocka_unit_test(test_p3_torn_and_foreign_records_do_not_count),
		cmocka_unit_test(test_record_bounds),
		cmocka_unit_test(test_p3_saver_against_trainer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
