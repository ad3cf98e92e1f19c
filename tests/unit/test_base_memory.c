/* The arena, and the sums that seal a slot. */
#include "base/arena.h"
#include "base/seal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void lay_out(struct arena *arena, uint8_t *blocks[3])
{
	blocks[0] = arena_alloc(arena, 1);
	blocks[1] = arena_alloc(arena, 4096);
	blocks[2] = arena_alloc(arena, 65);
}

static void test_the_plan_is_the_size(void **unused)
{
	struct arena plan, arena;
	uint8_t *blocks[3];

	arena_plan_init(&plan);
	lay_out(&plan, blocks);
	assert_null(blocks[0]);
	assert_true(plan.used == 64 + 4096 + 128);
	assert_int_equal(arena_init(&arena, plan.used), 0);
	lay_out(&arena, blocks);
	assert_true(arena.used == plan.used);
	for (int i = 0; i < 3; i++)
		assert_true((uintptr_t)blocks[i] % 64 == 0);
	for (size_t i = 0; i < arena.size; i++)
		assert_int_equal(arena.base[i], 0);
	memset(blocks[1], 0xff, 4096);
	assert_int_equal(blocks[0][0] | blocks[2][0], 0);
	arena_fini(&arena);
	arena_fini(&arena);
	arena_fini(&plan);
}

static void test_too_much_is_an_error(void **unused)
{
	struct arena arena;

	assert_int_equal(arena_init(&arena, (size_t)1 << 60), -ENOMEM);
	arena_fini(&arena);
}

/* A wrong plan is a bug of ours: the process ends with the place, before memory is overwritten. */
static void test_a_wrong_plan_panics(void **unused)
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		struct arena arena;

		close(STDERR_FILENO);
		if (arena_init(&arena, 128) == 0) {
			arena_alloc(&arena, 128);
			arena_alloc(&arena, 1);
		}
		_exit(0);
	}
	assert_true(waitpid(child, &status, 0) == child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static uint32_t *make_chunks(size_t count)
{
	uint32_t *words = malloc(count * SEAL_CHUNK_BYTES);
	uint32_t x = 1;

	assert_non_null(words);
	for (size_t i = 0; i < count * SEAL_CHUNK_BYTES / 4; i++)
		words[i] = x = x * 1664525u + 1013904223u;
	return words;
}

static void test_seals_match_the_formula(void **unused)
{
	uint32_t *words = make_chunks(2);
	uint64_t sums[2];

	seal_sums(words, 2 * SEAL_CHUNK_BYTES, sums);
	for (uint64_t chunk = 0; chunk < 2; chunk++) {
		uint64_t sum = 0;

		for (uint64_t i = 0; i < SEAL_CHUNK_BYTES / 4; i++)
			sum += words[chunk * SEAL_CHUNK_BYTES / 4 + i] * (2 * i + 1);
		assert_true(sum == sums[chunk]);
	}
	free(words);
}

/* P2: threads may sum the parts in any order. */
static void test_p2_seals_add_up_from_parts(void **unused)
{
	uint32_t *words = make_chunks(1);
	size_t count = SEAL_CHUNK_BYTES / 4, cut = 1000;
	uint64_t whole;

	seal_sums(words, SEAL_CHUNK_BYTES, &whole);
	uint64_t back = seal_sum(words + cut, cut, count - cut);
	assert_true(back + seal_sum(words, 0, cut) == whole);
	free(words);
}

/* P1: each single flip, and the same flip in two words, is seen. */
static void test_p1_flips_change_the_seal(void **unused)
{
	uint32_t *words = make_chunks(1);
	uint64_t whole, flipped;

	seal_sums(words, SEAL_CHUNK_BYTES, &whole);
	for (unsigned bit = 0; bit < 32; bit++) {
		words[77] ^= 1u << bit;
		seal_sums(words, SEAL_CHUNK_BYTES, &flipped);
		assert_true(flipped != whole);
		words[78] ^= 1u << bit;
		seal_sums(words, SEAL_CHUNK_BYTES, &flipped);
		assert_true(flipped != whole);
		words[77] ^= 1u << bit;
		words[78] ^= 1u << bit;
	}
	uint32_t first = words[0];
	words[0] = words[1];
	words[1] = first;
	seal_sums(words, SEAL_CHUNK_BYTES, &flipped);
	assert_true(flipped != whole);
	free(words);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_plan_is_the_size),
		cmocka_unit_test(test_too_much_is_an_error),
		cmocka_unit_test(test_a_wrong_plan_panics),
		cmocka_unit_test(test_seals_match_the_formula),
		cmocka_unit_test(test_p2_seals_add_up_from_parts),
		cmocka_unit_test(test_p1_flips_change_the_seal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
