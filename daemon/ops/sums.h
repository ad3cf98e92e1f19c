/* Sums of gradients over positions: of biases, and of what was added to every position of an
 * image (the projected time embedding). */
#pragma once

#include "daemon/ops/tensor.h"

/* sums [n][channels] = for each image the sum over its positions, row by row in fp32, then in
 * double. Pads are zero and not read. */
void sums_per_image(uint32_t n, const struct tensor *data, float *sums);
/* dst [channels] = (+ dst when accumulate) sum over rows [rows][stride], in order, in double. */
void sums_over_rows(uint32_t rows, const float *src, uint32_t stride, uint32_t channels, float *dst,
	bool accumulate);
