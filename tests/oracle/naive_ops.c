/* The operators as their definitions. Slow on purpose. */
#include "tests/oracle/naive_ops.h"

#include <math.h>
#include <stdlib.h>

static double conv_at(const struct naive_conv *conv, uint32_t h, uint32_t w, const double *x,
	const double *weight, uint32_t y, uint32_t column)
{
	double sum = 0.0;
	for (uint32_t c = 0; c < conv->in; c++)
		for (uint32_t ky = 0; ky < conv->k; ky++)
			for (uint32_t kx = 0; kx < conv->k; kx++) {
				int64_t in_y = (int64_t)y * conv->stride + ky - conv->pad_before;
				int64_t in_x = (int64_t)column * conv->stride + kx -
					conv->pad_before;
				if (in_y < 0 || in_y >= h || in_x < 0 || in_x >= w)
					continue;
				sum += x[((size_t)c * h + (size_t)in_y) * w + (size_t)in_x] *
					weight[((size_t)c * conv->k + ky) * conv->k + kx];
			}
	return sum;
}

void naive_conv2d(const struct naive_conv *conv, uint32_t n, uint32_t h, uint32_t w,
	const double *x, const double *weight, const double *bias, double *y)
{
	uint32_t out_h = naive_conv_size(conv, h), out_w = naive_conv_size(conv, w);
	size_t kernel = (size_t)conv->in * conv->k * conv->k;
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t o = 0; o < conv->out; o++)
			for (uint32_t row = 0; row < out_h; row++)
				for (uint32_t column = 0; column < out_w; column++)
					*y++ = bias[o] +
						conv_at(conv, h, w,
							x + (size_t)image * conv->in * h * w,
							weight + o * kernel, row, column);
}

void naive_upsample(uint32_t n, uint32_t c, uint32_t h, uint32_t w, const double *x, double *y)
{
	for (size_t plane = 0; plane < (size_t)n * c; plane++)
		for (uint32_t row = 0; row < 2 * h; row++)
			for (uint32_t column = 0; column < 2 * w; column++)
				*y++ = x[(plane * h + row / 2) * w + column / 2];
}

void naive_group_norm(uint32_t n, uint32_t c, uint32_t pixels, uint32_t groups, double eps,
	const double *weight, const double *bias, const double *x, double *y)
{
	size_t count = (size_t)(c / groups) * pixels;
	for (size_t group = 0; group < (size_t)n * groups; group++) {
		const double *in = x + group * count;
		double mean = 0.0, variance = 0.0;
		for (size_t i = 0; i < count; i++)
			mean += in[i] / (double)count;
		for (size_t i = 0; i < count; i++)
			variance += (in[i] - mean) * (in[i] - mean) / (double)count;
		for (size_t i = 0; i < count; i++) {
			size_t channel = group % groups * (c / groups) + i / pixels;
			y[group * count + i] = (in[i] - mean) / sqrt(variance + eps) *
					weight[channel] +
				bias[channel];
		}
	}
}

double naive_silu(double x)
{
	return x / (1.0 + exp(-x));
}

void naive_linear(uint32_t rows, uint32_t in, uint32_t out, const double *x, const double *weight,
	const double *bias, double *y)
{
	for (uint32_t row = 0; row < rows; row++)
		for (uint32_t o = 0; o < out; o++) {
			double sum = bias[o];
			for (uint32_t i = 0; i < in; i++)
				sum += x[(size_t)row * in + i] * weight[(size_t)o * in + i];
			y[(size_t)row * out + o] = sum;
		}
}

void naive_attention(uint32_t tokens, uint32_t dim, uint32_t stride, const double *q,
	const double *k, const double *v, double *o)
{
	double *p = malloc(tokens * sizeof(*p));
	if (!p)
		abort();
	for (uint32_t i = 0; i < tokens; i++) {
		double max = -INFINITY, sum = 0.0;
		for (uint32_t j = 0; j < tokens; j++) {
			p[j] = 0.0;
			for (uint32_t c = 0; c < dim; c++)
				p[j] += q[i * stride + c] * k[j * stride + c] / sqrt(dim);
			max = fmax(max, p[j]);
		}
		for (uint32_t j = 0; j < tokens; j++)
			sum += p[j] = exp(p[j] - max);
		for (uint32_t c = 0; c < dim; c++) {
			o[i * stride + c] = 0.0;
			for (uint32_t j = 0; j < tokens; j++)
				o[i * stride + c] += p[j] / sum * v[j * stride + c];
		}
	}
	free(p);
}

void naive_timestep_embedding(
	double t, uint32_t dim, bool flip_sin_to_cos, uint32_t freq_shift, double *out)
{
	uint32_t half = dim / 2;
	for (uint32_t k = 0; k < half; k++) {
		double angle = t * exp(-log(10000.0) * k / (half - freq_shift));
		out[flip_sin_to_cos ? half + k : k] = sin(angle);
		out[flip_sin_to_cos ? k : half + k] = cos(angle);
	}
	if (dim % 2)
		out[dim - 1] = 0.0;
}
