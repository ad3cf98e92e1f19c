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

/* Floats of the probabilities of a block of queries. */
static size_t block_elems(uint32_t tokens)
{
	size_t rows = tokens < QUERY_BLOCK ? tokens : QUERY_BLOCK;
	return rows * tokens;
}

size_t attention_scratch_bytes(const struct attention *attention, bool training)
{
	if (attention->engine->attention_scratch_bytes)
		return attention->engine->attention_scratch_bytes(attention, training);
	return attention->thread_count * block_elems(attention->tokens) * sizeof(float) *
		(training ? 2 : 1);
}

int attention_threads(const struct attention *attention)
{
	int threads = omp_get_max_threads();
	return threads < (int)attention->thread_count ? threads : (int)attention->thread_count;
}

/* This thread's probabilities, and behind them in backward their gradients. */
static float *thread_scratch(const struct attention *attention, bool training)
{
	return (float *)attention->scratch +
		(size_t)omp_get_thread_num() * block_elems(attention->tokens) * (training ? 2 : 1);
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
static void probabilities(const struct attention *attention, uint32_t width, const float *q,
	const float *k, uint32_t rows, float *p)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim;
	attention->engine->matmul(&(struct matmul){
		.transpose_b = true,
		.m = rows,
		.n = tokens,
		.k = d,
		.alpha = 1.0f / sqrtf((float)d),
		.a = q,
		.lda = width,
		.b = k,
		.ldb = width,
		.c = p,
		.ldc = tokens,
	});
	for (uint32_t i = 0; i < rows; i++)
		softmax_row(p + (size_t)i * tokens, tokens);
}

/* Zeroes the columns behind the heads. */
static void zero_gap(const struct attention *attention, uint32_t n, const struct tensor *tensor)
{
	uint32_t used = attention->heads * attention->head_dim;
	for (uint32_t token = 0; used < tensor->width && token < n * attention->tokens; token++)
		memset(tensor_at(tensor, used, token), 0, (tensor->width - used) * sizeof(float));
}

static void forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim, width = q->width;
	uint32_t blocks = (tokens + QUERY_BLOCK - 1) / QUERY_BLOCK;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(attention_threads(attention))
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t head = 0; head < attention->heads; head++)
			for (uint32_t block = 0; block < blocks; block++) {
				uint32_t first = block * QUERY_BLOCK, left = tokens - first;
				uint32_t rows = left < QUERY_BLOCK ? left : QUERY_BLOCK;
				uint32_t begin = image * tokens, column = head * d;
				float *p = thread_scratch(attention, false);
				probabilities(attention, width, tensor_at(q, column, begin + first),
					tensor_at(k, column, begin), rows, p);
				attention->engine->matmul(&(struct matmul){
					.m = rows,
					.n = d,
					.k = tokens,
					.alpha = 1.0f,
					.a = p,
					.lda = tokens,
					.b = tensor_at(v, column, begin),
					.ldb = width,
					.c = tensor_at(o, column, begin + first),
					.ldc = width,
				});
			}
	zero_gap(attention, n, o);
}

void attention_forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o)
{
	if (attention->engine->attention_forward)
		attention->engine->attention_forward(attention, n, q, k, v, o);
	else
		forward(attention, n, q, k, v, o);
	tensor_zero_edges(o, n);
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
static void head_backward(const struct attention *attention, uint32_t width, const float *q,
	const float *k, const float *v, const float *dout, float *dq, float *dk, float *dv)
{
	uint32_t tokens = attention->tokens, d = attention->head_dim;
	float *p = thread_scratch(attention, true);
	float *dp = p + block_elems(tokens);
	float scale = 1.0f / sqrtf((float)d);
	for (uint32_t first = 0; first < tokens; first += QUERY_BLOCK) {
		uint32_t rows = tokens - first < QUERY_BLOCK ? tokens - first : QUERY_BLOCK;
		size_t at = (size_t)first * width;
		float beta = first ? 1.0f : 0.0f;
		probabilities(attention, width, q + at, k, rows, p);
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

static void backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3])
{
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(attention_threads(attention))
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t head = 0; head < attention->heads; head++) {
			uint32_t column = head * attention->head_dim;
			ptrdiff_t at = (ptrdiff_t)image * attention->tokens;
			head_backward(attention, dout->width, tensor_at(qkv[0], column, at),
				tensor_at(qkv[1], column, at), tensor_at(qkv[2], column, at),
				tensor_at(dout, column, at), tensor_at(dqkv[0], column, at),
				tensor_at(dqkv[1], column, at), tensor_at(dqkv[2], column, at));
		}
	for (int i = 0; i < 3; i++)
		zero_gap(attention, n, dqkv[i]);
}

void attention_backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3])
{
	if (attention->engine->attention_backward)
		attention->engine->attention_backward(attention, n, qkv, dout, dqkv);
	else
		backward(attention, n, qkv, dout, dqkv);
	for (int i = 0; i < 3; i++)
		tensor_zero_edges(dqkv[i], n);
}
