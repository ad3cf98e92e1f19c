/* Named fault points that can be aimed at one step: "train.step" counts the hits of a process,
 * "train.step@40" is step 40 in whichever process computes it (tests of P2 need that). */
#pragma once

#include "base/sys.h"

#include <inttypes.h>
#include <stdio.h>

/* 0, or the negative errno that the plan asks for. */
static inline int fault_at(const char *point, uint64_t number)
{
	char aimed[64];

	if (!sys_fault_planned())
		return 0;
	int r = sys_fault(point);

	if (r < 0)
		return r;
	snprintf(aimed, sizeof(aimed), "%s@%" PRIu64, point, number);
	return sys_fault(aimed);
}
