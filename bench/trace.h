/* The operators of a training step, timed where they are called: on the real tensors, with the
 * caches as the step leaves them. Convolutions go through a copy of the engine whose conv is timed;
 * the other operators are functions that the linker is told to wrap (bench/meson.build), so that
 * neither model nor operators know of it. Not thread-safe: operators are called from one thread. */
#pragma once

#include "base/clock.h"
#include "bench/onednn.h"

#include <stdint.h>

struct engine;

#define TRACE_OPS_MAX 256
#define TRACE_STEPS_MAX 100
#define OP_CONVS_MAX 4

/* One operator of one shape. */
struct op {
	char name[112];
	/* In the last step; what the algorithm needs, pads not counted. */
	uint32_t calls;
	double flops, bytes;
	nsec_t step_ns[TRACE_STEPS_MAX];
	/* The same as whole convolutions, for oneDNN; conv_calls calls make one. */
	uint32_t conv_count, conv_calls;
	struct onednn_conv convs[OP_CONVS_MAX];
};

/* The engine for the plan that is traced. */
const struct engine *trace_engine(const struct engine *engine);
/* What is called from now on belongs to this step (0, 1, ...; each once). */
void trace_begin(uint32_t step);
void trace_end(void);
/* For work that is no function of its own: begun until now. */
void trace_other(nsec_t begun, const char *name);
struct op *trace_ops(uint32_t *ret_count);
