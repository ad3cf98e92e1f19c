/* GroupNorm over a list of sources, with SiLU: groups may straddle the seam of a concatenation, and
 * the result is one tensor whose spans follow each other. y = (x - mean) / sqrt(var + eps) * w + b
 * with the biased variance over (C/G) H W values of an image and group.
 *
 * Sums are taken per (image, channel) row by row in fp32 about the channel's first value, then in
 * double; the norm is applied as one scale and shift per (image, channel). silu(norm(x)) is not
 * kept for backward but computed again from the state. */
#pragma once

#include "daemon/ops/layout.h"

/* Of one group. */
#define GROUP_CHANNELS_MAX 8192

struct group_norm {
	uint32_t groups, channels, width; /* width: of all spans */
	uint32_t span_count;
	struct channel_span spans[SPANS_MAX];
	float eps;
	bool silu;
	const float *weight, *bias; /* [channels], bound by the owner */
};

void group_norm_init(struct group_norm *norm, const struct channel_span *spans, uint32_t span_count,
	uint32_t groups, float eps, bool silu);
/* Floats of the state that forward leaves, and of the sums that backward uses. */
size_t group_norm_state_elems(const struct group_norm *norm, uint32_t batch);
size_t group_norm_sums_elems(const struct group_norm *norm, uint32_t batch);

/* sources[i]: position 0 of span i, in layout. out: position 0, norm->width wide, in out_layout
 * (the same, or the dense one of equal size). */
void group_norm_forward(const struct group_norm *norm, const struct layout *layout, uint32_t n,
	const float *const *sources, float *state, const struct layout *out_layout, float *out);
/* The same values again, from the state. */
void group_norm_apply(const struct group_norm *norm, const struct layout *layout, uint32_t n,
	const float *const *sources, const float *state, const struct layout *out_layout,
	float *out);

struct group_norm_backward {
	const struct layout *layout, *out_layout;
	uint32_t n;
	const float *const *sources;
	const float *state;
	float *sums;
	float *dout;                /* gradient of out; overwritten */
	float *dsources[SPANS_MAX]; /* in layout; may be dout when shapes agree and not accumulate
				     */
	bool accumulate[SPANS_MAX];
	const float
		*residual; /* added to dsources[0]: the gradient of an identity beside; or NULL */
	float *dweight, *dbias; /* [channels] */
	bool accumulate_params;
};
void group_norm_backward(const struct group_norm *norm, const struct group_norm_backward *call);
