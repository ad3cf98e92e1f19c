/* P10: each refused call is told, a flood of them in few words. */
#include "supervisor/refusals.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define NOW (1000 * NSEC_PER_SEC)

static void p10_the_first_is_told_at_once_and_the_rest_in_one(void **unused)
{
	struct refusals refusals = {0};
	struct refusal told;

	assert_true(refusals_note(&refusals, 1000, NOW));
	assert_true(refusals_note(&refusals, 1001, NOW));
	for (int i = 1; i <= 500; i++)
		assert_false(refusals_note(&refusals, 1000, NOW + i));
	assert_false(refusals_take(&refusals, NOW + REFUSALS_NS - 1, &told));
	assert_true(refusals_take(&refusals, NOW + REFUSALS_NS, &told));
	assert_int_equal(told.uid, 1000);
	assert_int_equal(told.untold, 500);
	/* uid 1001 has nothing that was not told. */
	assert_false(refusals_take(&refusals, NOW + REFUSALS_NS, &told));
	assert_true(refusals_note(&refusals, 1000, NOW + REFUSALS_NS));
}

static void p10_more_users_than_there_is_room_for_are_told_each(void **unused)
{
	struct refusals refusals = {0};
	struct refusal told;

	for (uid_t uid = 1; uid <= REFUSALS_USERS; uid++)
		assert_true(refusals_note(&refusals, uid, NOW));
	assert_true(refusals_note(&refusals, 5000, NOW));
	assert_true(refusals_note(&refusals, 5000, NOW));
	assert_false(refusals_take(&refusals, NOW + REFUSALS_NS, &told));
	assert_true(refusals_note(&refusals, 5000, NOW + REFUSALS_NS));
	assert_false(refusals_note(&refusals, 5000, NOW + REFUSALS_NS));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p10_the_first_is_told_at_once_and_the_rest_in_one),
		cmocka_unit_test(p10_more_users_than_there_is_room_for_are_told_each),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
