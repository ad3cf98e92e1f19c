/* P1, P7: retention never takes a kept checkpoint nor one of the newest two verified on the line,
 * whatever the rows say. */
#include "store/retention.h"

#include "base/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED UINT64_C(20240611)
#define ROUNDS 20000
#define ITEMS_MAX 24

static uint64_t next_random(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *state >> 33;
}

static struct retention_item good(uint64_t step)
{
	return (struct retention_item){
		.step = step, .branch = 1, .verified = true, .on_line = true};
}

static void newest_and_milestones_stay(void **state)
{
	struct retention_policy policy = {.keep_last = 3, .keep_every = 100};
	struct retention_item items[10];
	/* 30..300 by 30: milestones 120 (of 100), 210 (of 200), 300; newest three 240 270 300. */
	static const bool removed[10] = {
		true, true, true, false, true, true, false, false, false, false};

	for (uint32_t i = 0; i < 10; i++)
		items[i] = good((i + 1) * 30);
	retention_decide(items, 10, &policy);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(items[i].remove, removed[i]);
}

static void what_is_not_verified_does_not_count(void **state)
{
	struct retention_policy policy = {.keep_last = 2, .corrupt_last = 1, .abandoned_last = 1};
	struct retention_item items[8];

	for (uint32_t i = 0; i < 8; i++)
		items[i] = good(i + 1);
	items[7].verified = false; /* found, newest: stays, and does not count */
	items[6].verified = false, items[6].corrupt = true;
	items[5].verified = false, items[5].corrupt = true; /* the second corrupt one goes */
	items[4].on_line = false;                           /* abandoned: the newest stays */
	items[3].on_line = false;
	items[0].verified = false; /* found, older than two verified: goes */
	/* Verified on the line: 2 and 3 (steps 3, 2). */
	retention_decide(items, 8, &policy);
	assert_false(items[7].remove);
	assert_false(items[6].remove);
	assert_true(items[5].remove);
	assert_false(items[4].remove);
	assert_true(items[3].remove);
	assert_false(items[2].remove);
	assert_false(items[1].remove);
	assert_true(items[0].remove);
}

static void room_is_made_from_the_least_worthy(void **state)
{
	/* corrupt, then abandoned oldest first, then the line's oldest, then no more. */
	struct retention_item items[7];
	static const uint32_t order[] = {4, 5, 6, 0, 1};

	for (uint32_t i = 0; i < 7; i++)
		items[i] = good(i + 1);
	items[4].corrupt = true;
	items[5].on_line = false;
	items[6].on_line = false;
	for (size_t n = 0; n < 5; n++) {
		assert_true(retention_make_room(items, 7));
		for (uint32_t i = 0; i < 7; i++) {
			bool gone = false;

			for (size_t k = 0; k <= n; k++)
				gone = gone || order[k] == i;
			assert_int_equal(items[i].remove, gone);
		}
	}
	assert_false(retention_make_room(items, 7));
}

static uint32_t random_items(uint64_t *random, struct retention_item *items)
{
	uint32_t count = (uint32_t)(next_random(random) % (ITEMS_MAX + 1));

	for (uint32_t i = 0; i < count; i++) {
		uint64_t bits = next_random(random);

		items[i] = (struct retention_item){
			.step = next_random(random) % 200,
			.branch = 1 + bits % 3,
			.verified = bits >> 4 & 1,
			.on_line = (bits >> 5 & 3) != 0,
			.keep = (bits >> 7 & 7) == 0,
			.corrupt = (bits >> 10 & 7) == 0,
		};
	}
	return count;
}

static bool precious(const struct retention_item *items, uint32_t count, uint32_t which)
{
	const struct retention_item *item = &items[which];
	uint32_t newer = 0;

	if (item->keep)
		return true;
	if (!item->verified || !item->on_line || item->corrupt)
		return false;
	for (uint32_t i = 0; i < count; i++)
		newer += items[i].verified && items[i].on_line && !items[i].corrupt &&
			(items[i].step > item->step ||
				(items[i].step == item->step && items[i].branch > item->branch));
	return newer < 2;
}

static void p1_kept_and_newest_two_always_stay(void **state)
{
	uint64_t random = SEED, removed = 0;
	struct retention_item items[ITEMS_MAX];

	print_message("# seed %llu\n", (unsigned long long)SEED);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		uint32_t count = random_items(&random, items);
		struct retention_policy policy = {
			.keep_last = (uint32_t)(next_random(&random) % 6),
			.keep_every = next_random(&random) % 50,
			.abandoned_last = (uint32_t)(next_random(&random) % 3),
			.corrupt_last = (uint32_t)(next_random(&random) % 3),
		};

		retention_decide(items, count, &policy);
		for (uint32_t i = 0; i < count; i++) {
			removed += items[i].remove;
			if (items[i].remove && precious(items, count, i))
				fail_msg("round %u: retention takes item %u", round, i);
		}
		for (uint32_t i = 0; i < count; i++)
			items[i].remove = false;
		while (retention_make_room(items, count)) {
		}
		for (uint32_t i = 0; i < count; i++)
			if (items[i].remove && precious(items, count, i))
				fail_msg("round %u: making room takes item %u", round, i);
	}
	assert_true(removed > ROUNDS); /* it did remove things */
}

/* Deciding again after the removal removes no more, and rows in another order get the same. */
static void decisions_are_stable(void **state)
{
	uint64_t random = SEED + 1;
	struct retention_item items[ITEMS_MAX], again[ITEMS_MAX];

	for (uint32_t round = 0; round < 2000; round++) {
		struct retention_policy policy = {
			.keep_last = 3, .keep_every = 20, .abandoned_last = 1, .corrupt_last = 1};
		uint32_t count = random_items(&random, items), left = 0;

		for (uint32_t i = 0; i < count; i++)
			items[i].step = i * 7 + round % 7; /* one of each step */
		for (uint32_t i = 0; i < count; i++)
			again[count - 1 - i] = items[i];
		retention_decide(items, count, &policy);
		retention_decide(again, count, &policy);
		for (uint32_t i = 0; i < count; i++)
			assert_int_equal(items[i].remove, again[count - 1 - i].remove);
		for (uint32_t i = 0; i < count; i++)
			if (!items[i].remove)
				again[left++] = items[i];
		retention_decide(again, left, &policy);
		for (uint32_t i = 0; i < left; i++)
			assert_false(again[i].remove);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(newest_and_milestones_stay),
		cmocka_unit_test(what_is_not_verified_does_not_count),
		cmocka_unit_test(room_is_made_from_the_least_worthy),
		cmocka_unit_test(p1_kept_and_newest_two_always_stay),
		cmocka_unit_test(decisions_are_stable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
