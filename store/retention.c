/* The policy of store/retention.h. Rows come in any order, so ranks are counted, not sorted: a run
 * has some tens of files. Must never do I/O, and never give up one of the newest two verified. */
#include "store/retention.h"

#include <math.h>
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

/* Which ones the long-term rules choose among. They are asked twice, for the verified ones and for
 * all that may be good: after the catalog was lost all are only `found` until they are read again,
 * and none of what was kept for long may go because of that. */
enum among { AMONG_VERIFIED, AMONG_FOUND, AMONG_COUNT };

static bool is_among(const struct retention_item *item, enum among among)
{
	return counts(item) ||
		(among == AMONG_FOUND && item->found && group_of(item) == GROUP_LINE);
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

/* The first one at or after each multiple. */
static bool is_milestone(const struct retention_item *items, uint32_t count,
	const struct retention_item *item, enum among among, uint64_t every)
{
	if (every == 0 || !is_among(item, among) || item->step < every)
		return false;
	for (uint32_t i = 0; i < count; i++)
		if (is_among(&items[i], among) && items[i].step / every == item->step / every &&
			newer(item, &items[i]))
			return false;
	return true;
}

/* The lowest losses; of equal ones the newer. What is not finite is never best. */
static bool is_best(const struct retention_item *items, uint32_t count,
	const struct retention_item *item, enum among among, uint32_t best)
{
	uint32_t better = 0;

	if (!is_among(item, among) || !isfinite(item->loss))
		return false;
	for (uint32_t i = 0; i < count; i++)
		better += is_among(&items[i], among) && isfinite(items[i].loss) &&
			(items[i].loss < item->loss ||
				(items[i].loss == item->loss && newer(&items[i], item)));
	return better < best;
}

/* -- the tail -- */

/* than NULL: the newest. */
static struct retention_item *next_older(struct retention_item *items, uint32_t count,
	enum among among, const struct retention_item *than)
{
	struct retention_item *next = NULL;

	for (uint32_t i = 0; i < count; i++)
		if (is_among(&items[i], among) && (than == NULL || newer(than, &items[i])) &&
			(next == NULL || newer(&items[i], next)))
			next = &items[i];
	return next;
}

static uint64_t age_of(const struct retention_item *item, const struct retention_item *newest)
{
	return newest->trained_seconds > item->trained_seconds
		? newest->trained_seconds - item->trained_seconds
		: 0;
}

/* From new to old, each goes whose older neighbour is at most twice as old as the last one that
 * stayed. So what a removal leaves is never a gap of more than the factor 2, and such a gap only
 * closes as both its ends grow older by the same: applied after each save, none ever grows beyond.
 * Of three neighbours that stay the oldest is more than twice as old as the newest, so their number
 * grows with the logarithm of the age. The oldest of all stays. Other rules do not count here: what
 * they keep today they may give up tomorrow. */
static void choose_tail(
	struct retention_item *items, uint32_t count, enum among among, uint32_t keep_last)
{
	const struct retention_item *newest = next_older(items, count, among, NULL),
				    *stays = newest;
	struct retention_item *item, *older;

	for (uint32_t n = 1; n < keep_last && stays != NULL; n++)
		stays = next_older(items, count, among, stays);
	if (stays == NULL)
		return;
	for (item = next_older(items, count, among, stays); item != NULL; item = older) {
		uint64_t age = age_of(stays, newest), older_age;

		older = next_older(items, count, among, item);
		older_age = older != NULL ? age_of(older, newest) : 0;
		if (older != NULL && (older_age <= age || older_age - age <= age))
			continue;
		item->in_tail = true;
		stays = item;
	}
}

/* -- all of it -- */

static uint32_t last_of(const struct retention_policy *policy)
{
	return policy->keep_last > VERIFIED_MIN ? policy->keep_last : (uint32_t)VERIFIED_MIN;
}

static bool keeps(const struct retention_item *items, uint32_t count,
	const struct retention_item *item, const struct retention_policy *policy)
{
	if (item->keep || item->busy)
		return true;
	switch (group_of(item)) {
	case GROUP_CORRUPT:
		return group_newer(items, count, item) < policy->corrupt_last;
	case GROUP_ABANDONED:
		return group_newer(items, count, item) < policy->abandoned_last;
	case GROUP_LINE:
		break;
	}
	if (item->in_tail || verified_newer(items, count, item) < last_of(policy))
		return true;
	for (enum among among = AMONG_VERIFIED; among < AMONG_COUNT; among++)
		if (is_milestone(items, count, item, among, policy->keep_every) ||
			is_best(items, count, item, among, policy->keep_best))
			return true;
	return false;
}

uint64_t retention_bytes(const struct retention_item *items, uint32_t count)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < count; i++)
		bytes += items[i].remove ? 0 : items[i].file_bytes;
	return bytes;
}

uint64_t retention_decide(
	struct retention_item *items, uint32_t count, const struct retention_policy *policy)
{
	uint64_t bytes;

	for (uint32_t i = 0; i < count; i++)
		items[i].in_tail = false;
	for (enum among among = AMONG_VERIFIED; policy->keep_tail && among < AMONG_COUNT; among++)
		choose_tail(items, count, among, last_of(policy));
	for (uint32_t i = 0; i < count; i++)
		items[i].remove = !keeps(items, count, &items[i], policy);
	if (policy->keep_bytes == 0)
		return 0;
	while ((bytes = retention_bytes(items, count)) > policy->keep_bytes)
		if (!retention_make_room(items, count))
			return bytes - policy->keep_bytes;
	return 0;
}

bool retention_make_room(struct retention_item *items, uint32_t count)
{
	struct retention_item *oldest[3] = {NULL, NULL, NULL}, *second;

	/* What is not older than the second newest verified one stays. */
	second = next_older(items, count, AMONG_VERIFIED, NULL);
	if (second != NULL)
		second = next_older(items, count, AMONG_VERIFIED, second);
	for (uint32_t i = 0; i < count; i++) {
		struct retention_item *item = &items[i];
		struct retention_item **slot = &oldest[group_of(item)];

		if (item->remove || item->keep || item->busy)
			continue;
		if (group_of(item) == GROUP_LINE && (second == NULL || !newer(second, item)))
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
