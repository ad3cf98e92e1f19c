/* Opens the references in tests/oracle. The tree is CKPTD_SOURCE (set by meson), or where the test
 * was started. */
#pragma once

#include <stdio.h>
#include <stdlib.h>

/* A file of tests/oracle; ends the test when it is not there. */
static inline FILE *oracle_open(const char *name)
{
	const char *source = getenv("CKPTD_SOURCE");
	char path[4096];

	snprintf(path, sizeof(path), "%s/tests/oracle/%s", source ? source : ".", name);
	FILE *file = fopen(path, "r");
	if (!file) {
		perror(path);
		exit(1);
	}
	return file;
}
