/* P1, P7: retention never takes a kept checkpoint nor one of the newest two verified on the line,
 * whatever the rows say. */
#include "store/retention.h"

#include "base/digest.h"

#include <math.h>
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
		.step = step, .branch = 1, .loss = (double)NAN, .verified = true, .on_line = true};
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

/* P8: the catalog was lost, and all but what was saved since is only found. */
static void p8_what_was_kept_for_long_need_not_be_verified_again(void **state)
{
	struct retention_policy policy = {
		.keep_last = 3, .keep_every = 40, .keep_tail = true, .keep_best = 2};
	struct retention_item items[40], again[20];
	uint32_t left = 0, removed = 0;

	for (uint32_t i = 0; i < 40; i++) {
		items[i] = good((i + 1) * 10);
		items[i].trained_seconds = i * 100;
		items[i].loss = (double)((i * 7) % 40);
	}
	retention_decide(items, 36, &policy);
	for (uint32_t i = 0; i < 36; i++)
		if (!items[i].remove)
			again[left++] = items[i];
	for (uint32_t i = 0; i < left; i++) {
		again[i].verified = false;
		again[i].found = true;
	}
	for (uint32_t i = 36; i < 40; i++)
		again[left++] = items[i];
	retention_decide(again, left, &policy);
	for (uint32_t i = 0; i < left; i++) {
		bool best = again[i].loss <= 1, milestone = again[i].step % 40 == 0;

		removed += again[i].remove;
		if (again[i].remove && (best || milestone))
			fail_msg("step %u goes", (unsigned)again[i].step);
	}
	assert_false(again[0].remove);
	assert_in_range(removed, 1, 6); /* what the newer ones took the place of */
}

static void best_is_the_lowest_finite_loss(void **state)
{
	struct retention_policy policy = {.keep_last = 2, .keep_best = 2};
	static const double losses[8] = {0.5, 0.2, (double)NAN, 0.3, 0.2, -(double)INFINITY, 9, 8};
	struct retention_item items[8];

	for (uint32_t i = 0; i < 8; i++) {
		items[i] = good(i + 1);
		items[i].loss = losses[i];
	}
	items[1].on_line = false; /* an abandoned one is not the best of this line */
	policy.abandoned_last = 1;
	retention_decide(items, 8, &policy);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(items[i].remove, i == 0 || i == 2 || i == 5);
}

static void budget_takes_the_oldest_but_never_the_newest_two(void **state)
{
	struct retention_policy policy = {
		.keep_last = 6, .keep_every = 1, .keep_bytes = 45, .abandoned_last = 2};
	struct retention_item items[6];

	for (uint32_t i = 0; i < 6; i++) {
		items[i] = good(i + 1);
		items[i].file_bytes = 10;
	}
	items[1].keep = true;     /* counts, and stays */
	items[4].on_line = false; /* goes before those of the line */
	assert_int_equal(retention_decide(items, 6, &policy), 0);
	for (uint32_t i = 0; i < 6; i++)
		assert_int_equal(items[i].remove, i == 0 || i == 4);
	policy.keep_bytes = 25;
	assert_int_equal(retention_decide(items, 6, &policy), 5);
	for (uint32_t i = 0; i < 6; i++)
		assert_int_equal(items[i].remove, i != 1 && i != 3 && i != 5);
	items[2].busy = true;
	assert_int_equal(retention_decide(items, 6, &policy), 15);
	assert_false(items[2].remove);
}

/* -- the tail over a whole run -- */

#define HISTORIES 3000
#define SAVES_MAX 160
#define LIVE_MAX 128

struct run_of_saves {
	struct retention_item live[LIVE_MAX]; /* oldest first */
	uint64_t trained[SAVES_MAX];          /* of each save; its step is its index + 1 */
	uint32_t live_count, save_count;
};

static void add_save(struct run_of_saves *run, uint64_t *random, uint32_t kind)
{
	uint64_t last = run->save_count > 0 ? run->trained[run->save_count - 1] : 0;
	uint64_t pause = kind == 0 ? 60
		: kind == 1        ? next_random(random) % 100
				   : UINT64_C(1) << next_random(random) % 12;
	struct retention_item item = good(run->save_count + 1);

	assert_true(run->live_count < LIVE_MAX && run->save_count < SAVES_MAX);
	item.trained_seconds = run->trained[run->save_count++] = last + pause;
	item.loss = (double)(next_random(random) % 50);
	run->live[run->live_count++] = item;
}

static void apply(struct run_of_saves *run, const struct retention_policy *policy)
{
	uint32_t left = 0;

	retention_decide(run->live, run->live_count, policy);
	for (uint32_t i = 0; i < run->live_count; i++)
		if (!run->live[i].remove)
			run->live[left++] = run->live[i];
	run->live_count = left;
	retention_decide(run->live, left, policy);
	for (uint32_t i = 0; i < left; i++)
		assert_false(run->live[i].remove);
}

/* Between two neighbours either nothing was ever saved, or the gap is one doubling at most. */
static bool gaps_hold(const struct run_of_saves *run)
{
	uint64_t newest = run->trained[run->save_count - 1];

	if (run->live[0].step != 1)
		return false;
	for (uint32_t i = 1; i < run->live_count; i++) {
		uint64_t old_age = newest - run->live[i - 1].trained_seconds;
		uint64_t age = newest - run->live[i].trained_seconds;

		if (run->live[i].step != run->live[i - 1].step + 1 && old_age > 2 * age)
			return false;
	}
	return true;
}

static uint32_t doublings(uint64_t age)
{
	uint32_t n = 0;

	for (; age > 0; age >>= 1)
		n++;
	return n;
}

static void p1_tail_stays_logarithmic_without_growing_gaps(void **state)
{
	uint32_t dropped = 0;

	for (uint32_t seed = 1; seed <= HISTORIES; seed++) {
		uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15);
		struct retention_policy policy = {.keep_last = 2 + seed % 5, .keep_tail = true};
		struct run_of_saves run = {.live_count = 0};

		if (seed % 4 == 0)
			policy.keep_best = 3;
		for (uint32_t n = 0; n < SAVES_MAX; n++) {
			uint32_t bound;

			add_save(&run, &random, seed % 3);
			apply(&run, &policy);
			bound = policy.keep_last + policy.keep_best + 2 +
				2 * doublings(run.trained[n] - run.trained[0]);
			if (!gaps_hold(&run) || run.live_count > bound)
				fail_msg("seed %u, save %u: %u left (%u at most), gaps %s", seed, n,
					run.live_count, bound, gaps_hold(&run) ? "hold" : "grew");
		}
		dropped += SAVES_MAX - run.live_count;
	}
	assert_true(dropped > HISTORIES * SAVES_MAX / 2);
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
			.busy = (bits >> 13 & 7) == 0,
			.found = (bits >> 24 & 3) == 0,
			.file_bytes = bits >> 16 & 15,
			.trained_seconds = next_random(random) % 1000,
			.loss = (bits >> 20 & 3) != 0 ? (double)(bits >> 22 & 7) : (double)NAN,
		};
	}
	return count;
}

static bool precious(const struct retention_item *items, uint32_t count, uint32_t which)
{
	const struct retention_item *item = &items[which];
	uint32_t newer = 0;

	if (item->keep || item->busy)
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
			.keep_tail = next_random(&random) % 2 == 0,
			.keep_best = (uint32_t)(next_random(&random) % 4),
			.keep_bytes = next_random(&random) % 60,
			.abandoned_last = (uint32_t)(next_random(&random) % 3),
			.corrupt_last = (uint32_t)(next_random(&random) % 3),
		};

		uint64_t over = retention_decide(items, count, &policy);
		uint64_t bytes = retention_bytes(items, count);

		if (policy.keep_bytes > 0 && bytes > policy.keep_bytes)
			assert_int_equal(over, bytes - policy.keep_bytes);
		else
			assert_int_equal(over, 0);
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
		struct retention_policy policy = {.keep_last = 3,
			.keep_every = 20,
			.keep_tail = round % 2 == 0,
			.keep_best = round % 3,
			.abandoned_last = 1,
			.corrupt_last = 1};
		uint32_t count = random_items(&random, items), left = 0;

		for (uint32_t i = 0; i < count; i++)
			/* One of each step, trained longer the later. */
			items[i].step = i * 7 + round % 7;
		for (uint32_t i = 0; i < count; i++)
			items[i].trained_seconds = items[i].step * 11;
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
		cmocka_unit_test(p8_what_was_kept_for_long_need_not_be_verified_again),
		cmocka_unit_test(best_is_the_lowest_finite_loss),
		cmocka_unit_test(budget_takes_the_oldest_but_never_the_newest_two),
		cmocka_unit_test(p1_tail_stays_logarithmic_without_growing_gaps),
		cmocka_unit_test(p1_kept_and_newest_two_always_stay),
		cmocka_unit_test(decisions_are_stable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
