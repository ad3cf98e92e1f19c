/* Attention, forward beside backward. Forward splits (image, head, block of queries); backward
 * splits (image, head) and takes the blocks of queries in order, because dk and dv are sums over
 * queries. */
#include "daemon/ops/attention.h"

#include "base/fmath.h"
#include "base/panic.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define QUERY_BLOCK 128
#define LANES 16

size_t attention_scratch_elems(uint32_t tokens, bool training)
{
	size_t rows = tokens < QUERY_BLOCK ? tokens : QUERY_BLOCK;
	return rows * tokens * (training ? 2 : 1);
}

static int threads_of(const struct attention *attention)
{
	int threads = omp_get_max_threads();
	return threads < (int)attention->thread_count ? threads : (int)attention->thread_count;
}

/* This thread's probabilities, and behind them in backward their gradients. */
static float *thread_scratch(const struct attention *attention, bool training)
{
	return attention->scratch +
		(size_t)omp_get_thread_num() * attention_scratch_elems(attention->tokens, training);
}

/* The largest value; with lanes, because no vectoriser reorders a maximum by itself. */
static float max_of(const float *row, uint32_t count)
{
	float lanes[LANES];
	for (uint32_t j = 0; j < LANES; j++)
		lanes[j] = row[0];
	uint32_t i = 0;
	for (; i + LANES <= count; i += LANES)
		for (uint32_t j = 0; j < LANES; j++)
			lanes[j] = row[i + j] > lanes[j] ? row[i + j] : lanes[j];
	for (; i < count; i++)
		lanes[0] = row[i] > lanes[0] ? row[i] : lanes[0];
	for (uint32_t j = 1; j < LANES; j++)
		lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
	return lanes[0];
}

static void softmax_row(float *row, uint32_t count)
{
	float max = max_of(row, count), sum = 0.0f;
#pragma omp simd reduction(+ : sum)
	for (uint32_t i = 0; i < count; i++) {
		row[i] = fm_exp(row[i] - max);
		sum += row[i];
	}
	float scale = 1.0f / sum;
#pragma omp simd
	for (uint32_t i = 0; i < count; i++)
		row[i] *= scale;
}

/* p [rows][tokens] = softmax(q k^T scale); q and k begin at their first row of one image and head.
 */
static void probabilities(
	const struct attention *attention, const float *q, const float *k, uint32_t rows, float *p)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim;
	attention->engine->matmul(&(struct matmul){
		.transpose_b = true,
		.m = rows,
		.n = tokens,
		.k = d,
		.alpha = 1.0f / sqrtf((float)d),
		.a = q,
		.lda = attention->width,
		.b = k,
		.ldb = attention->width,
		.c = p,
		.ldc = tokens,
	});
	for (uint32_t i = 0; i < rows; i++)
		softmax_row(p + (size_t)i * tokens, tokens);
}

void attention_forward(const struct attention *attention, uint32_t n, const float *q,
	const float *k, const float *v, float *o)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim, width = attention->width;
	uint32_t blocks = (tokens + QUERY_BLOCK - 1) / QUERY_BLOCK;
	size_t gap = width - attention->heads * d;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads_of(attention))
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t head = 0; head < attention->heads; head++)
			for (uint32_t block = 0; block < blocks; block++) {
				uint32_t first = block * QUERY_BLOCK, left = tokens - first;
				uint32_t rows = left < QUERY_BLOCK ? left : QUERY_BLOCK;
				size_t base = (size_t)image * tokens * width + head * d;
				size_t at = base + (size_t)first * width;
				float *p = thread_scratch(attention, false);
				probabilities(attention, q + at, k + base, rows, p);
				attention->engine->matmul(&(struct matmul){
					.m = rows,
					.n = d,
					.k = tokens,
					.alpha = 1.0f,
					.a = p,
					.lda = tokens,
					.b = v + base,
					.ldb = width,
					.c = o + at,
					.ldc = width,
				});
			}
	for (size_t token = 0; gap && token < (size_t)n * tokens; token++)
		memset(o + (token + 1) * width - gap, 0, gap * sizeof(float));
}

/* dp becomes the gradient of q k^T: ds = p (dp - sum of dp p) scale. */
static void softmax_backward_row(const float *p, float *dp, uint32_t count, float scale)
{
	float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
	for (uint32_t i = 0; i < count; i++)
		sum += dp[i] * p[i];
#pragma omp simd
	for (uint32_t i = 0; i < count; i++)
		dp[i] = p[i] * (dp[i] - sum) * scale;
}

/* One image and head; all pointers at its first token and channel. */
static void head_backward(const struct attention *attention, const float *q, const float *k,
	const float *v, const float *dout, float *dq, float *dk, float *dv)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim, width = attention->width;
	float *p = thread_scratch(attention, true);
	float *dp = p + attention_scratch_elems(tokens, false);
	float scale = 1.0f / sqrtf((float)d);
	for (uint32_t first = 0; first < tokens; first += QUERY_BLOCK) {
		uint32_t rows = tokens - first < QUERY_BLOCK ? tokens - first : QUERY_BLOCK;
		size_t at = (size_t)first * width;
		float beta = first ? 1.0f : 0.0f;
		probabilities(attention, q + at, k, rows, p);
		/* dv += p^T do */
		attention->engine->matmul(&(struct matmul){
			.transpose_a = true,
			.m = tokens,
			.n = d,
			.k = rows,
			.alpha = 1.0f,
			.beta = beta,
			.a = p,
			.lda = tokens,
			.b = dout + at,
			.ldb = width,
			.c = dv,
			.ldc = width,
		});
		/* dp = do v^T */
		attention->engine->matmul(&(struct matmul){
			.transpose_b = true,
			.m = rows,
			.n = tokens,
			.k = d,
			.alpha = 1.0f,
			.a = dout + at,
			.lda = width,
			.b = v,
			.ldb = width,
			.c = dp,
			.ldc = tokens,
		});
		for (uint32_t i = 0; i < rows; i++)
			softmax_backward_row(
				p + (size_t)i * tokens, dp + (size_t)i * tokens, tokens, scale);
		/* dq = ds k */
		attention->engine->matmul(&(struct matmul){
			.m = rows,
			.n = d,
			.k = tokens,
			.alpha = 1.0f,
			.a = dp,
			.lda = tokens,
			.b = k,
			.ldb = width,
			.c = dq + at,
			.ldc = width,
		});
		/* dk += ds^T q */
		attention->engine->matmul(&(struct matmul){
			.transpose_a = true,
			.m = tokens,
			.n = d,
			.k = rows,
			.alpha = 1.0f,
			.beta = beta,
			.a = dp,
			.lda = tokens,
			.b = q + at,
			.ldb = width,
			.c = dk,
			.ldc = width,
		});
	}
}

void attention_backward(const struct attention *attention, uint32_t n, const float *q,
	const float *k, const float *v, const float *dout, float *dq, float *dk, float *dv)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim, width = attention->width;
	size_t gap = width - attention->heads * d;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads_of(attention))
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t head = 0; head < attention->heads; head++) {
			size_t at = (size_t)image * tokens * width + head * d;
			head_backward(attention, q + at, k + at, v + at, dout + at, dq + at,
				dk + at, dv + at);
		}
	for (size_t token = 0; gap && token < (size_t)n * tokens; token++) {
		size_t at = (token + 1) * width - gap;
		memset(dq + at, 0, gap * sizeof(float));
		memset(dk + at, 0, gap * sizeof(float));
		memset(dv + at, 0, gap * sizeof(float));
	}
}
