/* The policy of store/retention.h. Rows come in any order, so ranks are counted, not sorted: a run
 * has some tens of files. Must never do I/O, and never give up one of the newest two verified. */
#include "store/retention.h"

#include <stddef.h>

#define VERIFIED_MIN 2

static bool newer(const struct retention_item *a, const struct retention_item *b)
{
	return a->step != b->step ? a->step > b->step : a->branch > b->branch;
}

enum group { GROUP_LINE, GROUP_ABANDONED, GROUP_CORRUPT };

static enum group group_of(const struct retention_item *item)
{
	if (item->corrupt)
		return GROUP_CORRUPT;
	return item->on_line ? GROUP_LINE : GROUP_ABANDONED;
}

static bool counts(const struct retention_item *item)
{
	return item->verified && group_of(item) == GROUP_LINE;
}

/* How many verified ones on the line are newer than this one. */
static uint32_t verified_newer(
	const struct retention_item *items, uint32_t count, const struct retention_item *than)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < count; i++)
		n += counts(&items[i]) && newer(&items[i], than);
	return n;
}

static uint32_t group_newer(
	const struct retention_item *items, uint32_t count, const struct retention_item *than)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < count; i++)
		n += group_of(&items[i]) == group_of(than) && newer(&items[i], than);
	return n;
}

/* The first verified one at or after each multiple. */
static bool is_milestone(const struct retention_item *items, uint32_t count,
	const struct retention_item *item, uint64_t every)
{
	if (every == 0 || !counts(item) || item->step < every)
		return false;
	for (uint32_t i = 0; i < count; i++)
		if (counts(&items[i]) && items[i].step / every == item->step / every &&
			newer(item, &items[i]))
			return false;
	return true;
}

static bool keeps(const struct retention_item *items, uint32_t count,
	const struct retention_item *item, const struct retention_policy *policy)
{
	uint32_t keep_last = policy->keep_last > VERIFIED_MIN ? policy->keep_last
							      : (uint32_t)VERIFIED_MIN;

	if (item->keep)
		return true;
	switch (group_of(item)) {
	case GROUP_CORRUPT:
		return group_newer(items, count, item) < policy->corrupt_last;
	case GROUP_ABANDONED:
		return group_newer(items, count, item) < policy->abandoned_last;
	case GROUP_LINE:
		break;
	}
	return verified_newer(items, count, item) < keep_last ||
		is_milestone(items, count, item, policy->keep_every);
}

void retention_decide(
	struct retention_item *items, uint32_t count, const struct retention_policy *policy)
{
	for (uint32_t i = 0; i < count; i++)
		items[i].remove = !keeps(items, count, &items[i], policy);
}

bool retention_make_room(struct retention_item *items, uint32_t count)
{
	struct retention_item *oldest[3] = {NULL, NULL, NULL};

	for (uint32_t i = 0; i < count; i++) {
		struct retention_item *item = &items[i];
		struct retention_item **slot = &oldest[group_of(item)];

		if (item->remove || item->keep)
			continue;
		if (group_of(item) == GROUP_LINE &&
			verified_newer(items, count, item) < VERIFIED_MIN)
			continue;
		if (*slot == NULL || newer(*slot, item))
			*slot = item;
	}
	for (int group = GROUP_CORRUPT; group >= GROUP_LINE; group--) {
		if (oldest[group] != NULL) {
			oldest[group]->remove = true;
			return true;
		}
	}
	return false;
}
