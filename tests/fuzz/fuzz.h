/* What the fuzz targets share. A target is one LLVMFuzzerTestOneInput that hands bytes from outside
 * to a parser; where the parser accepts them, something that must hold is CHECKed. Sums and digests
 * in front of a parser are made right first, or no input would get behind them. */
#pragma once

#include "base/panic.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A folder of this process in memory, made on first use and removed at its end: its descriptor. */
int fuzz_dir(const char **ret_path);
/* The whole content of name there. */
void fuzz_write(const char *name, const void *data, size_t size);
/* data with a NUL behind it; malloc'ed. */
char *fuzz_text(const uint8_t *data, size_t size);
/* JSON of any kind with the "check" that run.json and branch files carry, written as name; false
 * when data are no JSON object. */
bool fuzz_write_sealed(const char *name, const uint8_t *data, size_t size);
