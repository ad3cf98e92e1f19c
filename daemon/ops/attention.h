/* Self-attention of one level on dense tokens: o = softmax(q k^T / sqrt(d)) v for each image and
 * head; head h owns channels h d .. (h+1) d - 1. The probabilities are not kept: backward computes
 * them again, a block of queries at a time. */
#pragma once

#include "daemon/ops/engine.h"

struct attention {
	const struct engine *engine;
	uint32_t tokens; /* H W of an image */
	uint32_t heads, head_dim;
	uint32_t thread_count; /* for how many there is scratch */
	void *scratch;
};

/* Bytes of scratch for all threads. */
size_t attention_scratch_bytes(const struct attention *attention, bool training);

/* As many as run now, if there is scratch for them. */
int attention_threads(const struct attention *attention);

/* q, k, v, o: tokens of equal width. Channels behind the heads, and the edges of o, become zero. */
void attention_forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o);
/* qkv: as forward read them; dout: gradient of o; dqkv: written. */
void attention_backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3]);
