/* What a test needs and this machine does not give: a failure where everything must run (CI is
 * set), a skip with its reason elsewhere. Include after cmocka.h. */
#pragma once

#include <stdlib.h>

/* Does not return. */
static inline void test_lacks(const char *what)
{
	const char *ci = getenv("CI");

	if (ci && *ci)
		fail_msg("not here: %s", what);
	print_message("# skipped: %s\n", what);
	skip();
}
