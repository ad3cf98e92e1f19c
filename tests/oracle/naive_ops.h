/* The operators written as their definitions, in double and NCHW: the oracle of the fast ones.
 * Nothing here is shared with daemon/ops. Gradients come from finite differences of these.
 *
 * Letters: n images, c channels, h height, w width, o output channels, k kernel side. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct naive_conv {
	uint32_t in, out, k, stride;
	uint32_t pad_before, pad_after; /* both axes alike */
};

static inline uint32_t naive_conv_size(const struct naive_conv *conv, uint32_t size)
{
	return (size + conv->pad_before + conv->pad_after - conv->k) / conv->stride + 1;
}

/* x [n][in][h][w], weight [out][in][k][k], bias [out] -> y [n][out][h'][w']. */
void naive_conv2d(const struct naive_conv *conv, uint32_t n, uint32_t h, uint32_t w,
	const double *x, const double *weight, const double *bias, double *y);
/* x [n][c][h][w] -> y [n][c][2h][2w] */
void naive_upsample(uint32_t n, uint32_t c, uint32_t h, uint32_t w, const double *x, double *y);
/* x [n][c][pixels] */
void naive_group_norm(uint32_t n, uint32_t c, uint32_t pixels, uint32_t groups, double eps,
	const double *weight, const double *bias, const double *x, double *y);
double naive_silu(double x);
/* x [rows][in], weight [out][in] -> y [rows][out] */
void naive_linear(uint32_t rows, uint32_t in, uint32_t out, const double *x, const double *weight,
	const double *bias, double *y);
/* q, k, v, o [tokens][stride]: one image and head of dim channels. */
void naive_attention(uint32_t tokens, uint32_t dim, uint32_t stride, const double *q,
	const double *k, const double *v, double *o);
/* out [dim] */
void naive_timestep_embedding(
	double t, uint32_t dim, bool flip_sin_to_cos, uint32_t freq_shift, double *out);
