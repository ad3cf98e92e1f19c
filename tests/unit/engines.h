/* Tests with a row for each engine: the state of a row is the engine's name. Include after
 * cmocka.h. */
#pragma once

#include "daemon/ops/engine.h"

#define ON_ENGINE(test, engine)                                                                    \
	(struct CMUnitTest)                                                                        \
	{                                                                                          \
		.name = #test " on " engine, .test_func = test, .initial_state = (void *)engine    \
	}
#define ON_EACH_ENGINE(test)                                                                       \
	ON_ENGINE(test, "openblas"), ON_ENGINE(test, "avx512"), ON_ENGINE(test, "amx")

/* The engine of this row; skips the test with the reason where it cannot run. */
static inline const struct engine *check_engine(void **state)
{
	const char *reason;
	const struct engine *engine = engine_named(*state, &reason);
	if (!engine) {
		print_message("# skipped: %s\n", reason);
		skip();
	}
	return engine;
}
