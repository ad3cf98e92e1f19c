/* Self-attention of one level on dense tokens: o = softmax(q k^T / sqrt(d)) v for each image and
 * head; head h owns channels h d .. (h+1) d - 1. The probabilities are not kept: backward computes
 * them again, a block of queries at a time. */
#pragma once

#include "daemon/ops/engine.h"

struct attention {
	const struct engine *engine;
	uint32_t tokens; /* H W of an image */
	uint32_t heads, head_dim;
	uint32_t width;        /* floats of a token in q, k, v, o */
	uint32_t thread_count; /* for how many there is scratch */
	float *scratch;
};

/* Floats of scratch for one thread. */
size_t attention_scratch_elems(uint32_t tokens, bool training);

/* q, k, v, o: [n][tokens][width]. Channels from heads * head_dim to width of o become zero. */
void attention_forward(const struct attention *attention, uint32_t n, const float *q,
	const float *k, const float *v, float *o);
/* do: gradient of o. dq, dk, dv are written. */
void attention_backward(const struct attention *attention, uint32_t n, const float *q,
	const float *k, const float *v, const float *dout, float *dq, float *dk, float *dv);
