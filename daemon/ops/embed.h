/* The time-embedding path: small dense products, one row an image, always with the rows of the
 * whole plan, so that the bits of an image do not depend on n. */
#pragma once

#include "daemon/ops/engine.h"

/* diffusers' get_timestep_embedding: half = dim / 2, f_k = exp(-ln(10000) k / (half - freq_shift)),
 * out [n][dim] = sin(t f) | cos(t f), halves swapped when flip; the last value of an odd dim is 0.
 */
void timestep_embedding(uint32_t n, uint32_t dim, bool flip_sin_to_cos, uint32_t freq_shift,
	const float *timesteps, float *out);

void silu_forward(size_t count, const float *x, float *y);
/* dx = dy silu'(x). */
void silu_backward(size_t count, const float *x, const float *dy, float *dx);

/* y [rows][stride_y] = x [rows][in] W^T + b, W [out][in]; on the calling thread. */
struct linear {
	uint32_t in, out;
	const float *weight, *bias;
};
void linear_forward(const struct engine *engine, const struct linear *linear, uint32_t rows,
	const float *x, float *y, uint32_t stride_y);
/* dW [out][in] and db, written or added to, from dy [rows][stride_dy]. */
void linear_weights_gradient(const struct engine *engine, const struct linear *linear,
	uint32_t rows, const float *x, const float *dy, uint32_t stride_dy, float *dweight,
	float *dbias, bool accumulate);
/* dx [rows][in] = dy W (+ dx when accumulate), columns [first, first + count). */
void linear_data_gradient(const struct engine *engine, const struct linear *linear, uint32_t rows,
	const float *dy, uint32_t stride_dy, uint32_t first, uint32_t count, float *dx,
	bool accumulate);
