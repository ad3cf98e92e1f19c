/* What a run's folder goes through, recorded with what clients were told on the way. */
#pragma once

#include "tests/crash/check.h"
#include "tests/unit/store_fixture.h"

struct play {
	struct fixture *fx;
	struct trace trace;
	struct promise base; /* what stood before it was recorded */
	struct known known[KNOWN_MAX];
	uint32_t known_count;
};

struct scenario {
	const char *name;
	void (*make)(struct play *play); /* before */
	void (*run)(struct play *play);  /* recorded; what fails is not told to anybody */
	const char *faults;              /* its own; ends in a comma */
};

extern const struct scenario scenarios[];
extern const uint32_t scenario_count;

/* fault: one more, or NULL. */
void play_begin(struct play *play, const struct scenario *scenario, const char *fault);
void play_end(struct play *play);
