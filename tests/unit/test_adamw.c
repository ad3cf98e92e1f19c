/* P2: the update is PyTorch's, and neither threads nor "in place" change a bit of it. A seal that
 * does not match is found in the same pass. */
#include "daemon/optim/adamw.h"
#include "base/seal.h"
#include "daemon/optim/lr.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CHUNKS 5
#define CHUNK_ELEMS (SEAL_CHUNK_BYTES / sizeof(float))
#define ELEMS (CHUNKS * CHUNK_ELEMS)
#define SUMS (SECTION_COUNT * CHUNKS)

struct slot {
	float *section[SECTION_COUNT];
	uint64_t sums[SUMS];
};

static float *grads;

static float *section_new(void)
{
	float *section = aligned_alloc(SEAL_CHUNK_BYTES, ELEMS * sizeof(float));

	assert_non_null(section);
	memset(section, 0, ELEMS * sizeof(float));
	return section;
}

static void seal(struct slot *slot)
{
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		seal_sums(slot->section[s], ELEMS * sizeof(float), slot->sums + s * CHUNKS);
}

/* Arbitrary but plausible: moments small, the second one not negative. */
static void slot_init(struct slot *slot)
{
	uint32_t state = 99;

	for (unsigned s = 0; s < SECTION_COUNT; s++) {
		slot->section[s] = section_new();
		for (size_t i = 0; i < ELEMS; i++) {
			state = state * 1664525 + 1013904223;
			float value = (float)(state >> 8) * 0x1p-23f - 1.0f;
			slot->section[s][i] = s == SECTION_EXP_AVG_SQ ? value * value : value;
		}
	}
	seal(slot);
}

static void slot_fini(struct slot *slot)
{
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		free(slot->section[s]);
}

static bool same_slot(const struct slot *a, const struct slot *b)
{
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		if (memcmp(a->section[s], b->section[s], ELEMS * sizeof(float)) != 0)
			return false;
	return memcmp(a->sums, b->sums, sizeof(a->sums)) == 0;
}

static int set_up(void **unused)
{
	uint32_t state = 5;

	grads = section_new();
	for (size_t i = 0; i < ELEMS; i++)
		grads[i] = (float)((state = state * 1664525 + 1013904223) >> 8) * 0x1p-23f - 1.0f;
	return 0;
}

static int tear_down(void **unused)
{
	free(grads);
	return 0;
}

static struct adamw make(uint64_t k)
{
	return (struct adamw){.learning_rate = 1e-3f,
		.beta1 = 0.9f,
		.beta2 = 0.99f,
		.eps = 1e-8f,
		.weight_decay = 1e-4f,
		.bias_correction1 = (float)(1.0 - power_int(0.9, k)),
		.bias_correction2 = (float)(1.0 - power_int(0.99, k)),
		.clip_scale = 0.5f,
		.ema_decay = 0.75f};
}

static void test_golden_steps(void **unused)
{
	static const float gradients[3] = {0.5f, -0.2f, 0.1f};
	static const double golden[3] = {.989000022, .984306872, .979316115};
	struct slot slot;
	float *gradient = section_new();

	for (unsigned s = 0; s < SECTION_COUNT; s++)
		slot.section[s] = section_new();
	slot.section[SECTION_WEIGHTS][0] = 1.0f;
	for (uint64_t k = 1; k <= 3; k++) {
		struct adamw adamw = {.learning_rate = 0.01f,
			.beta1 = 0.95f,
			.beta2 = 0.999f,
			.eps = 1e-8f,
			.weight_decay = 0.1f,
			.bias_correction1 = (float)(1.0 - power_int(0.95, k)),
			.bias_correction2 = (float)(1.0 - power_int(0.999, k)),
			.clip_scale = 1.0f,
			.ema_decay = (float)ema_decay(k, 0.75, 0.999)};
		gradient[0] = gradients[k - 1];
		assert_true(adamw_update(&adamw, gradient, ELEMS, slot.section, slot.section, NULL,
			slot.sums, NULL));
		assert_true(fabs(slot.section[SECTION_WEIGHTS][0] - golden[k - 1]) < 1.2e-7);
	}
	/* Where everything is zero, as in the padding, it stays so to the last bit. */
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		for (size_t i = 1; i < ELEMS; i++)
			assert_true(slot.section[s][i] == 0.0f && !signbit(slot.section[s][i]));
	slot_fini(&slot);
	free(gradient);
}

/* Against the formulas of AdamW and EMAModel in double. */
static void test_every_element_is_the_formula(void **unused)
{
	struct slot before, after;
	struct adamw adamw = make(7);

	slot_init(&before);
	slot_init(&after);
	assert_true(adamw_update(&adamw, grads, ELEMS, before.section, after.section, before.sums,
		after.sums, NULL));
	for (size_t i = 0; i < ELEMS; i += 37) {
		double g = 0.5 * grads[i], w = before.section[SECTION_WEIGHTS][i];
		double m = 0.9 * before.section[SECTION_EXP_AVG][i] + 0.1 * g;
		double v = 0.99 * before.section[SECTION_EXP_AVG_SQ][i] + 0.01 * g * g;
		double step = 1e-3 / (1 - pow(0.9, 7)) * m /
			(sqrt(v) / sqrt(1 - pow(0.99, 7)) + 1e-8);
		double next = w * (1 - 1e-3 * 1e-4) - step;
		double ema = before.section[SECTION_EMA][i];
		ema -= 0.25 * (ema - next);
		assert_true(fabs(after.section[SECTION_EXP_AVG][i] - m) < 3e-7);
		assert_true(fabs(after.section[SECTION_EXP_AVG_SQ][i] - v) < 3e-7);
		assert_true(
			fabs(after.section[SECTION_WEIGHTS][i] - next) < 3e-7 + 1e-6 * fabs(step));
		assert_true(fabs(after.section[SECTION_EMA][i] - ema) < 5e-7);
	}
	slot_fini(&before);
	slot_fini(&after);
}

static void test_threads_and_place_do_not_change_bits(void **unused)
{
	struct slot before, reference, other;
	struct adamw adamw = make(3);

	slot_init(&before);
	slot_init(&reference);
	slot_init(&other);
	omp_set_num_threads(1);
	assert_true(adamw_update(&adamw, grads, ELEMS, before.section, reference.section,
		before.sums, reference.sums, NULL));
	for (int threads = 2; threads <= 5; threads++) {
		omp_set_num_threads(threads);
		assert_true(adamw_update(&adamw, grads, ELEMS, before.section, other.section,
			before.sums, other.sums, NULL));
		assert_true(same_slot(&reference, &other));
	}
	/* In place, the table of sums too. */
	assert_true(adamw_update(&adamw, grads, ELEMS, before.section, before.section, before.sums,
		before.sums, NULL));
	assert_true(same_slot(&reference, &before));
	slot_fini(&before);
	slot_fini(&reference);
	slot_fini(&other);
}

static void test_sums_are_the_seals_of_what_was_written(void **unused)
{
	struct slot before, after;
	struct adamw adamw = make(1);
	_Atomic uint64_t moves = 0;
	uint64_t written[SUMS];

	slot_init(&before);
	slot_init(&after);
	memset(after.sums, 0, sizeof(after.sums));
	assert_true(adamw_update(&adamw, grads, ELEMS, before.section, after.section, before.sums,
		after.sums, &moves));
	memcpy(written, after.sums, sizeof(written));
	seal(&after);
	assert_memory_equal(written, after.sums, sizeof(written));
	assert_int_equal(moves, CHUNKS);
	slot_fini(&before);
	slot_fini(&after);
}

static void test_one_flipped_bit_is_found_in_any_section(void **unused)
{
	struct slot before, after;
	struct adamw adamw = make(1);

	slot_init(&before);
	slot_init(&after);
	for (unsigned s = 0; s < SECTION_COUNT; s++) {
		size_t at = (s + 1) * CHUNK_ELEMS + 12345;
		uint32_t *word = (uint32_t *)(void *)&before.section[s][at];
		*word ^= 1u << (s * 7);
		assert_false(adamw_update(&adamw, grads, ELEMS, before.section, after.section,
			before.sums, after.sums, NULL));
		*word ^= 1u << (s * 7);
	}
	assert_true(adamw_update(&adamw, grads, ELEMS, before.section, after.section, before.sums,
		after.sums, NULL));
	slot_fini(&before);
	slot_fini(&after);
}

static void test_square_sum_has_fixed_bits_and_finds_nan(void **unused)
{
	static const uint64_t counts[] = {0, 1, 15, 16, 17, 65535, 65536, 65537, 200001, ELEMS};

	for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++) {
		double plain = 0.0;
		for (uint64_t i = 0; i < counts[k]; i++)
			plain += (double)grads[i] * grads[i];
		omp_set_num_threads(1);
		double one = adamw_square_sum(grads, counts[k]);
		omp_set_num_threads(3);
		double three = adamw_square_sum(grads, counts[k]);
		assert_memory_equal(&one, &three, sizeof(one));
		assert_true(fabs(one - plain) <= 1e-10 * plain);
	}
	float kept = grads[100000];
	grads[100000] = NAN;
	assert_false(isfinite(adamw_square_sum(grads, ELEMS)));
	grads[100000] = -INFINITY;
	assert_false(isfinite(adamw_square_sum(grads, ELEMS)));
	grads[100000] = 3e38f; /* large is not infinite */
	assert_true(isfinite(adamw_square_sum(grads, ELEMS)));
	grads[100000] = kept;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_steps),
		cmocka_unit_test(test_every_element_is_the_formula),
		cmocka_unit_test(test_threads_and_place_do_not_change_bits),
		cmocka_unit_test(test_sums_are_the_seals_of_what_was_written),
		cmocka_unit_test(test_one_flipped_bit_is_found_in_any_section),
		cmocka_unit_test(test_square_sum_has_fixed_bits_and_finds_nan),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
