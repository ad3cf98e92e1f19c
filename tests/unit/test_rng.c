/* Counter-based random numbers (P2): what a number is depends on nothing but its name. The digests
 * pin the bits for ever: a change there changes every run. */
#include "base/digest.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT ((size_t)1 << 20)

static struct rng rng;
static float values[COUNT];

static int setup(void **unused)
{
	rng_init(&rng, 1);
	return 0;
}

static void assert_digest(const void *data, size_t size, const char *expected)
{
	struct digest digest = digest_of(data, size);
	char hex[DIGEST_HEX_SIZE];

	digest_to_hex(&digest, hex);
	assert_string_equal(hex, expected);
}

static void test_p2_bits_are_pinned(void **unused)
{
	uint8_t bytes[1000];
	uint64_t order[1000];

	rng_bytes(&rng, RNG_DATA, 3, UINT64_C(1) << 40, bytes, sizeof(bytes));
	assert_digest(bytes, sizeof(bytes),
		"1df65bc49e6d140d3f9c23e4b2c6f6db39089a091a555f6e44a7b99705ce3f20");
	rng_normal(&rng, RNG_NOISE, 7, 11, values, 100001);
	assert_digest(values, 100001 * sizeof(float),
		"8be7ef90d9ba4dceae967b421d9a0fc0afae0af7638463d1ea908fa02c9bfd6f");
	rng_uniform(&rng, RNG_INIT, 5, 0, 0.125f, values, 10001);
	assert_digest(values, 10001 * sizeof(float),
		"37c651d7fab73c6a42ed06ad979a7d8c2b35e13e73e9cba993d47be24a16cad1");
	for (uint64_t i = 0; i < 1000; i++)
		order[i] = rng_permute(&rng, 2, 1000, i);
	assert_digest(order, sizeof(order),
		"47a9eb909c6c6c9f1f498bb1bb5bb081c9d98a1c56e705bab6af79dbcd809b1c");
	assert_true(rng_u64(&rng, RNG_TIMESTEP, 9, 4) == UINT64_C(0x40234442baa12e2));
}

static void test_p2_every_part_of_the_name_counts(void **unused)
{
	struct rng other;
	uint64_t first = rng_u64(&rng, RNG_NOISE, 5, 6);

	rng_init(&other, 2);
	assert_true(first == rng_u64(&rng, RNG_NOISE, 5, 6));
	assert_true(first != rng_u64(&other, RNG_NOISE, 5, 6));
	assert_true(first != rng_u64(&rng, RNG_FLIP, 5, 6));
	assert_true(first != rng_u64(&rng, RNG_NOISE, 6, 5));
	assert_true(first != rng_u64(&rng, RNG_NOISE, 5 + (UINT64_C(1) << 32), 6));
	assert_true(first != rng_u64(&rng, RNG_NOISE, 5, 6 + (UINT64_C(1) << 32)));
}

/* A micro-batch, or a thread that makes a part, must get the same numbers. */
static void test_p2_a_value_does_not_depend_on_how_many_are_made(void **unused)
{
	static const size_t counts[] = {1, 2, 3, 511, 512, 513, 1023, 1024, 1025, 4999};
	float part[5000];

	rng_normal(&rng, RNG_NOISE, 1, 1, values, 5000);
	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		part[counts[i]] = 77.0f;
		rng_normal(&rng, RNG_NOISE, 1, 1, part, counts[i]);
		assert_memory_equal(part, values, counts[i] * sizeof(float));
		assert_true(part[counts[i]] == 77.0f); /* nothing beyond */
	}
	rng_uniform(&rng, RNG_INIT, 1, 0, 1.0f, values, 5000);
	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		rng_uniform(&rng, RNG_INIT, 1, 0, 1.0f, part, counts[i]);
		assert_memory_equal(part, values, counts[i] * sizeof(float));
	}
}

/* The bounds are five standard errors wide; the seed is fixed, so the outcome is too. */
static void test_normals_are_normal(void **unused)
{
	double sums[5] = {0}, lag = 0, n = COUNT;
	size_t beyond[6] = {0};

	rng_normal(&rng, RNG_NOISE, 0, 0, values, COUNT);
	for (size_t i = 0; i < COUNT; i++) {
		double x = values[i], power = 1;

		for (int k = 0; k <= 4; k++, power *= x)
			sums[k] += power;
		lag += i > 0 ? x * values[i - 1] : 0;
		for (int k = 1; k < 6; k++)
			beyond[k] += fabs(x) > k;
	}
	assert_true(fabs(sums[1] / n) < 5 / sqrt(n));
	assert_true(fabs(sums[2] / n - 1) < 5 * sqrt(2 / n));
	assert_true(fabs(sums[3] / n) < 5 * sqrt(15 / n));
	assert_true(fabs(sums[4] / n - 3) < 5 * sqrt(96 / n));
	assert_true(fabs(lag / n) < 5 / sqrt(n));
	for (int k = 1; k < 5; k++) {
		double expected = n * erfc(k / sqrt(2.0));

		assert_true(fabs((double)beyond[k] - expected) < 5 * sqrt(expected));
	}
}

static void test_uniforms_are_uniform_and_inside(void **unused)
{
	size_t bins[64] = {0};
	double expected = (double)COUNT / 64, chi_squared = 0;

	rng_uniform(&rng, RNG_INIT, 0, 0, 0.25f, values, COUNT);
	for (size_t i = 0; i < COUNT; i++) {
		assert_true(values[i] >= -0.25f && values[i] < 0.25f);
		bins[(size_t)((values[i] + 0.25f) * 128)]++;
	}
	for (int i = 0; i < 64; i++)
		chi_squared += ((double)bins[i] - expected) * ((double)bins[i] - expected) /
			expected;
	assert_true(chi_squared < 63 + 5 * sqrt(2 * 63.0)); /* 63 degrees of freedom */
}

static void test_below_stays_below(void **unused)
{
	size_t counts[7] = {0};

	for (uint64_t i = 0; i < 70000; i++) {
		uint64_t value = rng_below(&rng, RNG_TIMESTEP, i, 0, 7);

		assert_true(value < 7);
		counts[value]++;
	}
	for (int i = 0; i < 7; i++)
		assert_true(abs((int)counts[i] - 10000) < 500);
	assert_true(rng_below(&rng, RNG_TIMESTEP, 1, 1, 1) == 0);
}

static void test_p2_each_epoch_visits_each_sample_once(void **unused)
{
	static const uint64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 1000, 65537};
	uint8_t *seen = calloc(65537, 1);
	size_t moved = 0;

	assert_non_null(seen);
	for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
		memset(seen, 0, 65537);
		for (uint64_t i = 0; i < sizes[s]; i++) {
			uint64_t at = rng_permute(&rng, 4, sizes[s], i);

			assert_true(at < sizes[s]);
			assert_false(seen[at]);
			seen[at] = 1;
		}
	}
	for (uint64_t i = 0; i < 1000; i++)
		moved += rng_permute(&rng, 0, 1000, i) != rng_permute(&rng, 1, 1000, i);
	assert_true(moved > 980);
	free(seen);
}

/* The largest set: no walk beyond the end, no overflow. */
static void test_order_of_a_huge_set(void **unused)
{
	uint64_t n = UINT64_C(1) << 48;

	for (uint64_t i = 0; i < 100; i++) {
		assert_true(rng_permute(&rng, 1, n, n - 1 - i) < n);
		assert_true(rng_permute(&rng, 1, n / 3, i) < n / 3);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p2_bits_are_pinned),
		cmocka_unit_test(test_p2_every_part_of_the_name_counts),
		cmocka_unit_test(test_p2_a_value_does_not_depend_on_how_many_are_made),
		cmocka_unit_test(test_normals_are_normal),
		cmocka_unit_test(test_uniforms_are_uniform_and_inside),
		cmocka_unit_test(test_below_stays_below),
		cmocka_unit_test(test_p2_each_epoch_visits_each_sample_once),
		cmocka_unit_test(test_order_of_a_huge_set),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
