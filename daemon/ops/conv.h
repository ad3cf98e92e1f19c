/* Convolutions as tap lists. A kernel of weights [out, in, kh, kw] becomes blocks, each the sum of
 * some kernel positions (a bit mask), read at one constant offset:
 *
 *     CONV_1X1     1 block
 *     CONV_SUM     1x1 over a tensor given as two summands (phases 0 and 1)
 *     CONV_3X3     9 blocks of one kernel position
 *     CONV_DOWN_1  3x3, stride 2, pad 1: 9 blocks, each reads one of the input's four phases
 *     CONV_DOWN_0  the same with zeros right and bottom only
 *     CONV_UP      nearest x2, then 3x3: 4 output phases of 2x2 blocks with summed weights
 *
 * Input channels may come as spans (a concatenation): one tensor whose spans follow each other, or
 * (split) one tensor for each span. Phases are tensors of their own (layout_split_phases). */
#pragma once

#include "daemon/ops/engine.h"

enum conv_kind { CONV_1X1, CONV_SUM, CONV_3X3, CONV_DOWN_1, CONV_DOWN_0, CONV_UP, CONV_KIND_COUNT };

struct conv_block {
	uint16_t kernel_mask; /* bit 3 ky + kx */
	int8_t dy, dx;        /* input position minus output position */
	uint8_t in_phase, out_phase;
};

struct conv {
	const struct engine *engine;
	enum conv_kind kind;
	bool split;
	uint32_t span_count;
	struct channel_span spans[SPANS_MAX];
	uint32_t in_channels, out_channels;
	uint32_t in_width, out_width; /* in_width: of all spans */
	uint32_t kernel_elems;        /* kh * kw */
	uint32_t block_count;
	const struct conv_block *blocks;
	/* Packed taps, block-major, then by source; bound by the owner. backward NULL: inference.
	 */
	uint8_t *forward, *backward;
};

void conv_init(struct conv *conv, const struct engine *engine, enum conv_kind kind,
	const struct channel_span *spans, uint32_t span_count, bool split, uint32_t out_channels);
/* Bytes of conv->forward, and of conv->backward. */
size_t conv_packed_bytes(const struct conv *conv);
/* Floats of the raw gradients, and bytes of the scratch, of conv_weights_gradient. */
size_t conv_raw_elems(const struct conv *conv);
size_t conv_scratch_bytes(const struct conv *conv, const struct layout *layout);
/* weights: [out, in, kh, kw] of the section. */
void conv_pack(struct conv *conv, const float *weights);

/* Appends the taps of one output phase to call. sources: the tensors of this input; with phases,
 * sources[phase]. */
void conv_add_taps(const struct conv *conv, uint32_t out_phase, const struct tensor *const *sources,
	struct conv_call *call);
/* By data: the taps that give the gradient of one source (a span when split, a phase when strided)
 * from dout; with CONV_UP dout[phase], else dout[0]. */
void conv_add_data_taps(const struct conv *conv, uint32_t source, const struct tensor *const *dout,
	struct conv_call *call);
/* By weights: dw [out, in, kh, kw] is written or added to. */
void conv_weights_gradient(const struct conv *conv, uint32_t n, const struct tensor *const *sources,
	const struct tensor *const *dout, float *raw, void *scratch, float *dw, bool accumulate);
