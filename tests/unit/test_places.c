/* P10: who loses his place to a newcomer. */
#include "supervisor/places.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define PLACES 8

enum { SERVICE = 100, GUEST = 200, OTHER = 300 };

static const struct place guest = {.uid = GUEST, .active_ns = 1000};
static const struct place service = {.uid = SERVICE, .may_change = true, .active_ns = 1000};

static void fill(struct place places[PLACES], const struct place *place)
{
	for (int i = 0; i < PLACES; i++) {
		places[i] = *place;
		places[i].active_ns = 10 + i;
	}
}

static void the_one_that_was_silent_longest_goes(void **state)
{
	struct place places[PLACES];

	fill(places, &(struct place){.uid = GUEST, .idle = true, .has_asked = true});
	places[3].active_ns = 1;
	assert_int_equal(places_choose(places, PLACES, &guest), 3);
	places[3].idle = false;
	assert_int_equal(places_choose(places, PLACES, &guest), 0);
}

static void the_user_with_most_places_gives_one_up(void **state)
{
	struct place places[PLACES];

	fill(places, &(struct place){.uid = GUEST, .idle = true, .has_asked = true});
	places[0].uid = OTHER;
	assert_int_equal(places_choose(places, PLACES, &guest), 1);
	assert_int_equal(places_choose(places, PLACES, &service), 1);
	/* With the newcomer's own place counted. */
	for (int i = 0; i < PLACES / 2; i++)
		places[i].uid = OTHER;
	assert_int_equal(places_choose(places, PLACES, &guest), PLACES / 2);
}

static void a_crowd_that_never_asks_has_half_of_the_places(void **state)
{
	struct place places[PLACES];

	fill(places, &(struct place){.uid = GUEST, .idle = true, .has_asked = true});
	for (int i = PLACES / 2; i < PLACES; i++)
		places[i].has_asked = false;
	assert_int_equal(places_choose(places, PLACES, &guest), 0);
	places[PLACES / 2 - 1].has_asked = false;
	places[PLACES - 1].active_ns = 2;
	assert_int_equal(places_choose(places, PLACES, &guest), PLACES - 1);
	/* Places that were once used shut nobody out. */
	fill(places, &(struct place){.uid = GUEST, .idle = true, .has_asked = true});
	places[7].has_asked = false;
	assert_int_equal(places_choose(places, PLACES, &guest), 0);
}

static void open_calls_are_ended_only_for_those_with_fewer_places_or_more_rights(void **state)
{
	struct place places[PLACES];

	fill(places, &guest);
	assert_int_equal(places_choose(places, PLACES, &guest), -1);
	assert_int_equal(places_choose(places, PLACES, &service), 0);
	assert_int_equal(places_choose(places, PLACES, &(struct place){.uid = OTHER}), 0);
	fill(places, &service);
	assert_int_equal(places_choose(places, PLACES, &service), -1);
	/* Another user's idle place goes before any open call, however many its user holds. */
	places[5] = (struct place){.uid = OTHER, .idle = true, .active_ns = 500};
	assert_int_equal(places_choose(places, PLACES, &guest), 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_one_that_was_silent_longest_goes),
		cmocka_unit_test(the_user_with_most_places_gives_one_up),
		cmocka_unit_test(a_crowd_that_never_asks_has_half_of_the_places),
		cmocka_unit_test(
			open_calls_are_ended_only_for_those_with_fewer_places_or_more_rights),
	};

	return cmocka_run_group_tests_name("places", tests, NULL, NULL);
}
