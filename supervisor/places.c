/* See supervisor/places.h. */
#include "supervisor/places.h"

/* Who was silent longest: of all, and of those that have never asked anything. */
struct oldest {
	int any, never_asked; /* -1: none */
	uint32_t never_asked_count;
};

static void oldest_add(struct oldest *oldest, const struct place *places, int index)
{
	nsec_t active_ns = places[index].active_ns;

	if (oldest->any < 0 || active_ns < places[oldest->any].active_ns)
		oldest->any = index;
	if (places[index].has_asked)
		return;
	oldest->never_asked_count++;
	if (oldest->never_asked < 0 || active_ns < places[oldest->never_asked].active_ns)
		oldest->never_asked = index;
}

static uint32_t count_of(const struct place *places, uint32_t count, uid_t uid)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < count; i++)
		found += places[i].uid == uid;
	return found;
}

int places_choose(const struct place *places, uint32_t count, const struct place *newcomer)
{
	uint32_t own = count_of(places, count, newcomer->uid) + 1, most = 0;
	struct oldest oldest = {-1, -1, 0};
	bool idle_found = false;

	for (uint32_t i = 0; i < count; i++) {
		const struct place *place = &places[i];

		if (idle_found && !place->idle)
			continue;
		uint32_t held = count_of(places, count, place->uid) + (place->uid == newcomer->uid);

		if (!place->idle && held <= own && !(newcomer->may_change && !place->may_change))
			continue;
		if ((place->idle && !idle_found) || held > most) {
			idle_found = place->idle;
			oldest = (struct oldest){-1, -1, 0};
			most = held;
		}
		if (held == most)
			oldest_add(&oldest, places, (int)i);
	}
	return oldest.never_asked_count > count / 2 ? oldest.never_asked : oldest.any;
}
