/* The update: global-norm clip, AdamW (decoupled decay, as torch.optim.AdamW), EMA (as diffusers'
 * EMAModel with warm-up), and the seal sums, in one pass from the current slot to the next. */
#pragma once

#include "base/tensor_table.h"

#include <stdbool.h>
#include <stdint.h>

struct adamw {
	float learning_rate, beta1, beta2, eps, weight_decay;
	float bias_correction1, bias_correction2; /* 1 - beta^k, k counts updates from 1 */
	float clip_scale;                         /* min(1, max_norm / (norm + 1e-6)), or 1 */
	float ema_decay;
};

/* Sum of squares of one section's gradients in fixed chunks and order, in double; the finite
 * verdict comes from it: a NaN or Inf anywhere makes it non-finite. threads do not change bits. */
double adamw_square_sum(const float *grads, uint64_t count);

/* src, dst: the four sections of a slot (dst may be src: in place). grads: one section with zero
 * padding. elems: section_bytes / 4. src_sums (NULL: not checked) is compared with what is read,
 * dst_sums is filled in; both are in block order (section major). Returns false when a sum of src
 * did not match: dst is then not to be used. moves counts. Streaming stores are fenced. */
bool adamw_update(const struct adamw *adamw, const float *grads, uint64_t elems,
	float *const src[SECTION_COUNT], float *const dst[SECTION_COUNT], const uint64_t *src_sums,
	uint64_t *dst_sums, _Atomic uint64_t *moves);
