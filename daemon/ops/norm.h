/* GroupNorm over a list of sources, with SiLU: groups may straddle the seam of a concatenation, and
 * the result is one tensor whose spans follow each other. y = (x - mean) / sqrt(var + eps) * w + b
 * with the biased variance over (C/G) H W values of an image and group.
 *
 * Sums are taken per (image, channel) row by row in fp32 about the channel's first value, then in
 * double; the norm is applied as one scale and shift per (image, column). silu(norm(x)) is not
 * kept for backward but computed again from the state. */
#pragma once

#include "daemon/ops/tensor.h"

/* Of one source. */
#define CHANNELS_MAX 8192
/* Tasks that an image is cut into at most. */
#define NORM_PARTS_MAX 16

struct group_norm {
	uint32_t groups, channels, width; /* width: of all spans */
	uint32_t span_count;
	struct channel_span spans[SPANS_MAX];
	float eps;
	bool silu;
	uint32_t part_count;
	uint32_t part_groups[NORM_PARTS_MAX + 1]; /* part i: groups [i], to [i + 1] */
	const float *weight, *bias;               /* [channels], bound by the owner */
};

void group_norm_init(struct group_norm *norm, const struct channel_span *spans, uint32_t span_count,
	uint32_t groups, float eps, bool silu);
/* Floats of the state that forward leaves, and of the sums that backward uses. */
size_t group_norm_state_elems(const struct group_norm *norm, uint32_t batch);
size_t group_norm_sums_elems(const struct group_norm *norm, uint32_t batch);

/* sources[i]: span i. out: norm->width wide, in the sources' layout or the dense one of equal size.
 */
void group_norm_forward(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, float *state, const struct tensor *out);
/* The same values again, from the state. */
void group_norm_apply(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, const float *state, const struct tensor *out);

struct group_norm_backward {
	uint32_t n;
	const struct tensor *const *sources;
	const float *state;
	float *sums;
	const struct tensor *dout;                /* gradient of out; overwritten */
	const struct tensor *dsources[SPANS_MAX]; /* may be dout when shapes agree and not
						     accumulate */
	bool accumulate[SPANS_MAX];
	const struct tensor *residual; /* added to dsources[0]: the gradient of an identity beside;
					  or NULL */
	float *dweight, *dbias;        /* [channels] */
	bool accumulate_params;
};
void group_norm_backward(const struct group_norm *norm, const struct group_norm_backward *call);
