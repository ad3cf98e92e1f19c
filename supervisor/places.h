/* Who loses his place when a newcomer finds all of them taken. Pure. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct place {
	uid_t uid;
	bool may_change;  /* root, or the service's own user */
	bool idle;        /* no call open, no answer under way */
	bool has_asked;   /* a call, once */
	nsec_t active_ns; /* last heard of */
};

/* First whoever is idle; of these the user with the most places; of his, the one that was silent
 * longest. A crowd that only connects holds no more than half of the places: then one of those. One
 * that is not idle only when its user has more places than the newcomer's (the newcomer counts), or
 * may change nothing while the newcomer may. The index; -1: nobody. */
int places_choose(const struct place *places, uint32_t count, const struct place *newcomer);
