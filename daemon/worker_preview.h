/* What a trainer shows every preview_every steps: a grid of images drawn from the EMA weights, and
 * the held-out loss. Made between two steps in the trainer's own plan; the training weights are
 * packed again afterwards, so the bits of the run do not know whether previews were made. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct trainer;
struct preview;

/* Allocates everything. *ret is NULL when the configuration asks for neither. */
int preview_new(struct trainer *trainer, struct preview **ret, struct error *err);
void preview_free(struct preview *preview);
/* True when one is due after the step that just finished. */
bool preview_is_due(const struct trainer *trainer);
/* True when this step's picture is there already (of an earlier process). */
bool preview_exists(const struct trainer *trainer);
/* Makes both. Failures are events: no picture is worth a step. Ends early when `stop` has come. */
void preview_make(struct trainer *trainer);
uint64_t preview_bytes(const struct preview *preview);
