/* Slot words and records: the state machine that makes every finished step survive a kill at any
 * instruction. Nothing here allocates, blocks or trusts what the other side wrote.
 *
 * A commit is: seal the slot (compare-and-swap), then write the record into the copy that does not
 * hold the newest valid one. Between the two the old record still speaks of a sealed slot; after a
 * torn write its check does not match. With two slots and a pin the current slot itself is
 * rewritten: then the pinned record, in its own page or a copy, is the newest valid one.
 *
 * Slot sequences only grow, also through empty and writing, so a record never matches a later
 * content of its slot. Records move as relaxed 64-bit words: a torn copy is found by its check. */
#include "proto/state.h"

#include "base/panic.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define RECORD_WORDS (sizeof(struct state_record) / sizeof(uint64_t))
#define RECORD_PAGE_FIRST 1u /* A, then B, then the pinned one */
#define RECORD_PAGE_PINNED 3u
#define RECORD_PAGE_LAST 3u
#define WORD_PAGE 4u
#define WORD_SPACING 64u /* one cache line each */

#define WORD_STATE UINT64_C(0xff)
#define WORD_PIN UINT64_C(0x100)
#define WORD_SEQUENCE_SHIFT 16

#define BRANCH_MAX 9999u
#define NO_SLOT UINT32_MAX
#define NO_PAGE 0u /* the header's page is no record */
/* A pass over the records takes some 10 us and steps take milliseconds: one retry is rare. */
#define RETRIES 64

/* -- words -- */

static _Atomic uint64_t *slot_word(const struct state *state, uint32_t slot)
{
	CHECK(slot < state->header.slot_count && slot < STATE_SLOTS_MAX);
	return (_Atomic uint64_t *)(state->map + WORD_PAGE * STATE_PAGE + slot * WORD_SPACING);
}

static uint64_t word_load(const struct state *state, uint32_t slot)
{
	return atomic_load_explicit(slot_word(state, slot), memory_order_acquire);
}

static bool word_swap(struct state *state, uint32_t slot, uint64_t from, uint64_t to)
{
	return atomic_compare_exchange_strong_explicit(
		slot_word(state, slot), &from, to, memory_order_acq_rel, memory_order_acquire);
}

static uint64_t word_make(enum slot_state slot_state, uint64_t sequence)
{
	return sequence << WORD_SEQUENCE_SHIFT | slot_state;
}

static enum slot_state word_state(uint64_t word)
{
	return (enum slot_state)(word & WORD_STATE);
}

static uint64_t word_sequence(uint64_t word)
{
	return word >> WORD_SEQUENCE_SHIFT;
}

/* Sets the state, keeping sequence and pin. */
static void word_force(struct state *state, uint32_t slot, enum slot_state slot_state)
{
	uint64_t word = word_load(state, slot);

	while (!word_swap(state, slot, word, (word & ~WORD_STATE) | slot_state))
		word = word_load(state, slot);
}

enum slot_state state_slot_state(
	const struct state *state, uint32_t slot, uint64_t *ret_sequence, bool *ret_pinned)
{
	uint64_t word = word_load(state, slot);

	if (ret_sequence != NULL)
		*ret_sequence = word_sequence(word);
	if (ret_pinned != NULL)
		*ret_pinned = (word & WORD_PIN) != 0;
	return word_state(word);
}

/* -- records -- */

static uint64_t record_check(const struct state_record *record)
{
	struct digest digest = digest_of(record, offsetof(struct state_record, check));
	uint64_t check;

	memcpy(&check, digest.bytes, sizeof(check));
	return check;
}

void state_record_seal(struct state_record *record)
{
	record->check = record_check(record);
}

bool state_record_valid(const struct state_record *record)
{
	if (record->check != record_check(record))
		return false;
	if (record->slot >= STATE_SLOTS_MAX || record->branch < 1 || record->branch > BRANCH_MAX ||
		record->step > STATE_COUNT_MAX || record->update_count > record->step ||
		record->images_seen > STATE_COUNT_MAX || record->skipped_count > STATE_COUNT_MAX ||
		record->intervention_count > STATE_INTERVENTIONS_MAX)
		return false;
	for (uint32_t i = 0; i < record->intervention_count; i++) {
		const struct intervention *intervention = &record->interventions[i];

		if (intervention->kind < INTERVENTION_CONFIG ||
			intervention->kind > INTERVENTION_FOLDED ||
			memchr(intervention->value, '\0', sizeof(intervention->value)) == NULL)
			return false;
	}
	return true;
}

static _Atomic uint64_t *record_words(const struct state *state, uint32_t page)
{
	CHECK(page >= RECORD_PAGE_FIRST && page <= RECORD_PAGE_LAST);
	return (_Atomic uint64_t *)(state->map + page * STATE_PAGE);
}

static void record_load(const struct state *state, uint32_t page, struct state_record *ret)
{
	_Atomic uint64_t *words = record_words(state, page);
	uint64_t copy[RECORD_WORDS];

	for (size_t i = 0; i < RECORD_WORDS; i++)
		copy[i] = atomic_load_explicit(&words[i], memory_order_relaxed);
	memcpy(ret, copy, sizeof(*ret));
}

static void record_store(struct state *state, uint32_t page, const struct state_record *record)
{
	_Atomic uint64_t *words = record_words(state, page);
	uint64_t copy[RECORD_WORDS];

	memcpy(copy, record, sizeof(copy));
	for (size_t i = 0; i < RECORD_WORDS; i++)
		atomic_store_explicit(&words[i], copy[i], memory_order_relaxed);
}

/* True when the slot that the record speaks of still holds what it speaks of. */
static bool record_holds(const struct state *state, const struct state_record *record)
{
	if (record->slot >= state->header.slot_count)
		return false;
	uint64_t word = word_load(state, record->slot);
	return (word & ~WORD_PIN) == word_make(SLOT_SEALED, record->slot_sequence);
}

/* What moves when anybody commits, takes a slot or pins: equal before and after a pass means that
 * the pass saw one instant. */
struct glance {
	uint64_t words[STATE_SLOTS_MAX];
	uint64_t checks[RECORD_PAGE_LAST + 1];
};

static struct glance glance_take(const struct state *state)
{
	struct glance glance = {0};

	for (uint32_t slot = 0; slot < state->header.slot_count; slot++)
		glance.words[slot] = word_load(state, slot);
	for (uint32_t page = RECORD_PAGE_FIRST; page <= RECORD_PAGE_LAST; page++)
		glance.checks[page] = atomic_load_explicit(
			&record_words(state, page)[RECORD_WORDS - 1], memory_order_acquire);
	return glance;
}

/* The page of the newest valid record, or NO_PAGE. *ret_sequence: the greatest of any record whose
 * check matches, so that the next one is greater. The pinned page counts last: on a tie a copy
 * wins. */
static uint32_t newest_pass(
	const struct state *state, struct state_record *ret, uint64_t *ret_sequence)
{
	uint32_t newest = NO_PAGE;

	*ret_sequence = 0;
	for (uint32_t page = RECORD_PAGE_FIRST; page <= RECORD_PAGE_LAST; page++) {
		struct state_record record;

		record_load(state, page, &record);
		if (!state_record_valid(&record))
			continue;
		if (record.sequence > *ret_sequence)
			*ret_sequence = record.sequence;
		if (record_holds(state, &record) &&
			(newest == NO_PAGE || record.sequence > ret->sequence)) {
			*ret = record;
			newest = page;
		}
	}
	return newest;
}

static uint32_t newest_find(
	const struct state *state, struct state_record *ret, uint64_t *ret_sequence)
{
	uint32_t page = NO_PAGE;

	for (int i = 0; i < RETRIES; i++) {
		struct glance before = glance_take(state);

		page = newest_pass(state, ret, ret_sequence);
		struct glance after = glance_take(state);
		if (memcmp(&before, &after, sizeof(before)) == 0)
			break;
	}
	return page;
}

int state_newest_record(const struct state *state, struct state_record *ret)
{
	uint64_t sequence;

	return newest_find(state, ret, &sequence) == NO_PAGE ? -ENOENT : 0;
}

/* -- trainer -- */

/* Of the slots that are neither current, pinned nor being written: an empty one, else the oldest,
 * so that the state before the current one stays as long as it can. */
static uint32_t free_slot(const struct state *state, uint32_t current, uint64_t *ret_word)
{
	uint32_t best = NO_SLOT;

	for (uint32_t slot = 0; slot < state->header.slot_count; slot++) {
		uint64_t word = word_load(state, slot);

		if (slot == current || (word & WORD_PIN) != 0 ||
			(word_state(word) != SLOT_EMPTY && word_state(word) != SLOT_SEALED))
			continue;
		if (best != NO_SLOT &&
			(word_state(*ret_word) == SLOT_EMPTY ||
				(word_state(word) == SLOT_SEALED &&
					word_sequence(word) > word_sequence(*ret_word))))
			continue;
		best = slot;
		*ret_word = word;
	}
	return best;
}

/* True when the current slot may be rewritten in place: the only one, or the other one is pinned.
 */
static bool in_place_allowed(const struct state *state, uint32_t current)
{
	if (current == NO_SLOT)
		return false;
	if (state->header.slot_count == 1)
		return true;
	return state->header.slot_count == 2 && (word_load(state, 1 - current) & WORD_PIN) != 0;
}

int state_begin_write(struct state *state, uint32_t *ret_slot)
{
	for (int i = 0; i < RETRIES; i++) {
		struct state_record newest;
		uint32_t current = state_newest_record(state, &newest) < 0 ? NO_SLOT : newest.slot;
		uint64_t word = 0;
		uint32_t slot = free_slot(state, current, &word);

		if (slot == NO_SLOT && in_place_allowed(state, current)) {
			slot = current;
			word = word_load(state, slot);
			if (word_state(word) != SLOT_SEALED || (word & WORD_PIN) != 0)
				return -EBUSY;
		}
		if (slot == NO_SLOT)
			return -EBUSY;
		if (word_swap(state, slot, word, word_make(SLOT_WRITING, word_sequence(word)))) {
			*ret_slot = slot;
			return 0;
		}
	}
	return -EBUSY;
}

/* Into the copy that does not hold the newest valid record; with neither, over the older one. */
static void record_publish(struct state *state, struct state_record *record)
{
	struct state_record newest, copy;
	uint32_t page = newest_find(state, &newest, &record->sequence);

	if (page == RECORD_PAGE_FIRST) {
		page = RECORD_PAGE_FIRST + 1;
	} else if (page == RECORD_PAGE_FIRST + 1) {
		page = RECORD_PAGE_FIRST;
	} else {
		record_load(state, RECORD_PAGE_FIRST, &copy);
		page = state_record_valid(&copy) && copy.sequence == record->sequence
			? RECORD_PAGE_FIRST + 1
			: RECORD_PAGE_FIRST;
	}
	record->sequence++;
	state_record_seal(record);
	CHECK(state_record_valid(record));
	record_store(state, page, record);
}

void state_commit(struct state *state, uint32_t slot, struct state_record *record)
{
	uint64_t word = word_load(state, slot), sequence = 0;

	CHECK(word_state(word) == SLOT_WRITING && (word & WORD_PIN) == 0);
	for (uint32_t i = 0; i < state->header.slot_count; i++)
		if (word_sequence(word_load(state, i)) > sequence)
			sequence = word_sequence(word_load(state, i));
	record->slot = slot;
	record->slot_sequence = sequence + 1;
	CHECK(word_swap(state, slot, word, word_make(SLOT_SEALED, sequence + 1)));
	record_publish(state, record);
}

void state_commit_record(struct state *state, struct state_record *record)
{
	/* Not those of the newest record: when that one's page is damaged, they are of an older
	 * state, and this record would speak of it as if it were the current one. */
	CHECK(record_holds(state, record));
	record_publish(state, record);
}

void state_abort_write(struct state *state, uint32_t slot)
{
	CHECK(word_state(word_load(state, slot)) == SLOT_WRITING);
	word_force(state, slot, SLOT_EMPTY);
}

void state_empty_all(struct state *state)
{
	struct state_record none;

	memset(&none, 0, sizeof(none)); /* its check is not that of zeros: void */
	for (uint32_t slot = 0; slot < state->header.slot_count; slot++)
		word_force(state, slot, SLOT_EMPTY);
	for (uint32_t page = RECORD_PAGE_FIRST; page <= RECORD_PAGE_LAST; page++)
		record_store(state, page, &none);
}

/* -- supervisor -- */

static bool any_pinned(const struct state *state, uint32_t *ret_slot)
{
	for (uint32_t slot = 0; slot < state->header.slot_count; slot++)
		if ((word_load(state, slot) & WORD_PIN) != 0) {
			*ret_slot = slot;
			return true;
		}
	return false;
}

int state_pin_newest(struct state *state, struct state_record *ret)
{
	uint32_t slot;

	if (any_pinned(state, &slot))
		return -EBUSY;
	for (int i = 0; i < RETRIES; i++) {
		if (state_newest_record(state, ret) < 0)
			return -ENOENT;
		/* The page first: with two slots the pin lets the trainer destroy the current slot,
		 * and this page may then be the only record of a whole state. */
		record_store(state, RECORD_PAGE_PINNED, ret);
		uint64_t word = word_make(SLOT_SEALED, ret->slot_sequence);
		if (word_swap(state, ret->slot, word, word | WORD_PIN))
			return 0;
	}
	return -EBUSY;
}

void state_unpin_all(struct state *state)
{
	for (uint32_t slot = 0; slot < state->header.slot_count; slot++) {
		uint64_t word = word_load(state, slot);

		while (!word_swap(state, slot, word, word & ~WORD_PIN))
			word = word_load(state, slot);
	}
}

void state_clear_writing(struct state *state)
{
	for (uint32_t slot = 0; slot < state->header.slot_count; slot++)
		if (word_state(word_load(state, slot)) == SLOT_WRITING)
			word_force(state, slot, SLOT_EMPTY);
}

/* -- saver -- */

int state_pinned_record(const struct state *state, struct state_record *ret)
{
	uint32_t slot;

	if (!any_pinned(state, &slot))
		return -ENOENT;
	record_load(state, RECORD_PAGE_PINNED, ret);
	if (!state_record_valid(ret) || ret->slot != slot || !state_still_pinned(state, ret))
		return -ENOENT;
	return 0;
}

bool state_still_pinned(const struct state *state, const struct state_record *record)
{
	if (record->slot >= state->header.slot_count)
		return false;
	return word_load(state, record->slot) ==
		(word_make(SLOT_SEALED, record->slot_sequence) | WORD_PIN);
}
