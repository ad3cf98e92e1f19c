/* The time-embedding path, forward beside backward. */
#include "daemon/ops/embed.h"

#include "base/fmath.h"
#include "daemon/ops/sums.h"

void timestep_embedding(uint32_t n, uint32_t dim, bool flip_sin_to_cos, uint32_t freq_shift,
	const float *timesteps, float *out)
{
	uint32_t half = dim / 2;
	uint32_t sin_at = flip_sin_to_cos ? half : 0, cos_at = flip_sin_to_cos ? 0 : half;
	const float minus_ln_period = -9.210340371976184f; /* -ln(10000) */
	for (uint32_t image = 0; image < n; image++) {
		float *row = out + (size_t)image * dim;
		for (uint32_t k = 0; k < half; k++) {
			/* In fp32, as PyTorch does it. */
			float exponent = minus_ln_period * (float)k / (float)(half - freq_shift);
			float angle = timesteps[image] * (float)fm_exp_d((double)exponent);
			double sine, cosine;
			fm_sincos_d((double)angle, &sine, &cosine);
			row[sin_at + k] = (float)sine;
			row[cos_at + k] = (float)cosine;
		}
		if (dim % 2)
			row[dim - 1] = 0.0f;
	}
}

void silu_forward(size_t count, const float *x, float *y)
{
#pragma omp simd
	for (size_t i = 0; i < count; i++)
		y[i] = x[i] * fm_sigmoid(x[i]);
}

void silu_backward(size_t count, const float *x, const float *dy, float *dx)
{
#pragma omp simd
	for (size_t i = 0; i < count; i++) {
		float s = fm_sigmoid(x[i]);
		dx[i] = dy[i] * (s * (1.0f + x[i] * (1.0f - s)));
	}
}

void linear_forward(const struct engine *engine, const struct linear *linear, uint32_t rows,
	const float *x, float *y, uint32_t stride_y)
{
	for (uint32_t row = 0; row < rows; row++)
		for (uint32_t o = 0; o < linear->out; o++)
			y[(size_t)row * stride_y + o] = linear->bias[o];
	engine->matmul(&(struct matmul){
		.transpose_b = true,
		.m = rows,
		.n = linear->out,
		.k = linear->in,
		.alpha = 1.0f,
		.beta = 1.0f,
		.a = x,
		.lda = linear->in,
		.b = linear->weight,
		.ldb = linear->in,
		.c = y,
		.ldc = stride_y,
	});
}

void linear_weights_gradient(const struct engine *engine, const struct linear *linear,
	uint32_t rows, const float *x, const float *dy, uint32_t stride_dy, float *dweight,
	float *dbias, bool accumulate)
{
	engine->matmul(&(struct matmul){
		.transpose_a = true,
		.m = linear->out,
		.n = linear->in,
		.k = rows,
		.alpha = 1.0f,
		.beta = accumulate ? 1.0f : 0.0f,
		.a = dy,
		.lda = stride_dy,
		.b = x,
		.ldb = linear->in,
		.c = dweight,
		.ldc = linear->in,
	});
	sums_over_rows(rows, dy, stride_dy, linear->out, dbias, accumulate);
}

void linear_data_gradient(const struct engine *engine, const struct linear *linear, uint32_t rows,
	const float *dy, uint32_t stride_dy, uint32_t first, uint32_t count, float *dx,
	bool accumulate)
{
	engine->matmul(&(struct matmul){
		.m = rows,
		.n = count,
		.k = linear->out,
		.alpha = 1.0f,
		.beta = accumulate ? 1.0f : 0.0f,
		.a = dy,
		.lda = stride_dy,
		.b = linear->weight + first,
		.ldb = linear->in,
		.c = dx + first,
		.ldc = linear->in,
	});
}
