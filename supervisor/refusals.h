/* Refused calls, so that each is in an event and a flood of them is not a flood of events: the
 * first of a user is told at once, those that follow within a minute in one more. Pure. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define REFUSALS_USERS 16
#define REFUSALS_NS (60 * NSEC_PER_SEC)

struct refusal {
	uid_t uid;
	nsec_t since_ns; /* 0: free */
	uint32_t untold;
};

struct refusals {
	struct refusal users[REFUSALS_USERS];
};

/* True: tell this one now. */
bool refusals_note(struct refusals *refusals, uid_t uid, nsec_t now_ns);
/* True: *ret has a minute that is over, with calls that were not told; until there is none. */
bool refusals_take(struct refusals *refusals, nsec_t now_ns, struct refusal *ret);
