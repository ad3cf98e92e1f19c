/* A leak is growth beyond what the first steps took. */
#include "supervisor/resources.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)

static void the_first_steps_may_take_what_they_need(void **unused)
{
	struct growth growth = {0};

	for (uint64_t step = 0; step < GROWTH_SETTLE_STEPS; step++)
		assert_false(growth_exceeds(&growth, step, step * 1000 * MIB, MIB));
	assert_true(growth.base_bytes == (GROWTH_SETTLE_STEPS - 1) * 1000 * MIB);
}

static void growth_beyond_the_limit_is_a_leak(void **unused)
{
	struct growth growth = {0};

	assert_false(growth_exceeds(&growth, 1, 100 * MIB, 10 * MIB));
	assert_false(growth_exceeds(&growth, 100, 110 * MIB, 10 * MIB));
	assert_true(growth_exceeds(&growth, 101, 110 * MIB + 1, 10 * MIB));
	/* Given back: no leak. */
	assert_false(growth_exceeds(&growth, 102, 90 * MIB, 10 * MIB));
	assert_false(growth_exceeds(&growth, 103, 9000 * MIB, 0));
}

/* Read for the first time only when many steps are done. */
static void the_first_reading_is_the_base(void **unused)
{
	struct growth growth = {0};

	assert_false(growth_exceeds(&growth, 1000, 500 * MIB, MIB));
	assert_true(growth_exceeds(&growth, 1001, 502 * MIB, MIB));
}

static void a_process_has_private_memory(void **unused)
{
	assert_true(resources_private_bytes(getpid()) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_steps_may_take_what_they_need),
		cmocka_unit_test(growth_beyond_the_limit_is_a_leak),
		cmocka_unit_test(the_first_reading_is_the_base),
		cmocka_unit_test(a_process_has_private_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
