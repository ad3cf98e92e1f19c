/* Walks the legal crash states of a trace (tests/crash/model.h says which are legal) and holds the
 * promises against what a start makes of each.
 *
 * Points: just before every sync and every event, and the end. What a crash between can leave is
 * left by one of these too, by losing what came after it. At a point with few volatile operations
 * every subset is taken; else none, all, each prefix, each one lost, each one kept, and seeded
 * samples; then torn writes: cut at the front, at the end, one block missing, any blocks, and the
 * size alone. A state is a number k at a point, so (trace, mutation, point, k) repeats it. */
#pragma once

#include "tests/crash/check.h"

struct effort {
	uint32_t exhaustive; /* volatile operations of which all subsets are taken */
	uint32_t subsets;    /* samples beyond */
	uint32_t tears;      /* of each write */
	uint32_t mixed;      /* samples of everything at once */
	uint32_t nested;     /* crashes during recovery: of every so manieth new state; 0 none */
	uint32_t repaired;   /* fsck with a repair: the same */
};

struct exploration {
	struct checker *checker;
	const struct effort *effort;
	struct promise base;  /* what had been promised before the trace */
	const char *what;     /* scenario, for the line that repeats a state */
	uint32_t parts, part; /* only states of this part (several processes); 1, 0: all */
	bool stop_at_first;
	uint32_t only_point, only_k; /* UINT32_MAX: all */
	/* Results. */
	uint64_t states, unique, nested_unique, repaired, violations;
	uint32_t points, capped;       /* points where samples were taken */
	char first[2 * VIOLATION_MAX]; /* violation, with what repeats it */
};

void explore(struct exploration *exploration, const struct trace *trace,
	const struct mutation *mutation);
