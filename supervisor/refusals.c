/* The counts of refusals.h. Invariant: a call is either told at once or in untold. */
#include "supervisor/refusals.h"

#include "base/panic.h"

bool refusals_note(struct refusals *refusals, uid_t uid, nsec_t now_ns)
{
	struct refusal *unused = NULL;

	CHECK(now_ns > 0);
	for (uint32_t i = 0; i < REFUSALS_USERS; i++) {
		struct refusal *user = &refusals->users[i];

		if (user->since_ns > 0 && user->uid == uid) {
			if (user->untold < UINT32_MAX)
				user->untold++;
			return false;
		}
		if (user->since_ns == 0)
			unused = user;
	}
	if (unused)
		*unused = (struct refusal){.uid = uid, .since_ns = now_ns};
	return true;
}

bool refusals_take(struct refusals *refusals, nsec_t now_ns, struct refusal *ret)
{
	for (uint32_t i = 0; i < REFUSALS_USERS; i++) {
		struct refusal *user = &refusals->users[i];

		if (user->since_ns == 0 || now_ns - user->since_ns < REFUSALS_NS)
			continue;
		*ret = *user;
		*user = (struct refusal){0};
		if (ret->untold > 0)
			return true;
	}
	return false;
}
