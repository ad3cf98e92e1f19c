/* What the bits of a run depend on besides its seed, its data and its engine: CPU, this build with
 * all its kernels, OpenBLAS, libc. A resume on another fingerprint works, and says that bits may
 * differ (P2).
 *
 * It is the same for every process of a build on a machine, and made before anything else is known.
 * So it names the library that engines bring along whichever of them computes; the engine itself,
 * which may change in the course of a run, is in the record as an intervention at its step
 * (worker_record.h). */
#pragma once

#include "base/digest.h"
#include "base/error.h"

#include <stddef.h>

int worker_fingerprint(struct digest *ret, char *text, size_t size, struct error *err);
