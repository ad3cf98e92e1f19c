/* The update in one pass over memory. Each MiB chunk of the sections is one thread's, in tiles that
 * stay in the first cache: read four arrays and the gradient, sum what was read, compute, sum what
 * will stand in the next slot, and stream it there.
 *
 * Every element is a fixed sequence of IEEE operations (no contraction, exact division and root),
 * and the seal sums commute: neither threads nor "in place" change a bit. Streaming stores are
 * fenced by the thread that made them before it meets the others. */
#include "daemon/optim/adamw.h"
#include "base/panic.h"
#include "base/seal.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#define CHUNK_ELEMS (SEAL_CHUNK_BYTES / sizeof(float))
#define TILE_ELEMS ((size_t)512)
#define TILE_BYTES (TILE_ELEMS * sizeof(float))

/* What the elements need, rounded once. */
struct factors {
	float clip_scale, keep; /* 1 - lr wd */
	float beta1, rest1;     /* 1 - beta1 */
	float beta2, rest2;
	float step_size, root_scale, eps; /* lr / correction1, 1 / sqrt(correction2) */
	float ema_rest;                   /* 1 - decay */
};

static struct factors factors_of(const struct adamw *adamw)
{
	return (struct factors){
		.clip_scale = adamw->clip_scale,
		.keep = (float)(1.0 - (double)adamw->learning_rate * (double)adamw->weight_decay),
		.beta1 = adamw->beta1,
		.rest1 = (float)(1.0 - (double)adamw->beta1),
		.beta2 = adamw->beta2,
		.rest2 = (float)(1.0 - (double)adamw->beta2),
		.step_size = (float)((double)adamw->learning_rate /
			(double)adamw->bias_correction1),
		.root_scale = (float)(1.0 / __builtin_sqrt((double)adamw->bias_correction2)),
		.eps = adamw->eps,
		.ema_rest = (float)(1.0 - (double)adamw->ema_decay),
	};
}

typedef uint64_t words_v __attribute__((vector_size(64), may_alias));
#define WORDS_PER_VECTOR 16

/* seal_sum of one tile, without multiplications in the loop. Lane l of vector b holds the words
 * 16 b + 2 l and 16 b + 2 l + 1, whose weights are 32 b + 4 l + 1 and two more. Running sums give
 * sigma (B - b) x[b]; all of it is modulo 2^64, so the order is free. */
static uint64_t seal_sum_tile(const float *values, size_t first)
{
	const words_v *vectors = (const words_v *)(const void *)values;
	const size_t count = TILE_ELEMS / WORDS_PER_VECTOR;
	words_v even = {0}, odd = {0}, prefixes = {0};
	uint64_t sum = 0;

	for (size_t b = 0; b < count; b++) {
		words_v high = vectors[b] >> 32;
		even += vectors[b] & UINT32_MAX;
		odd += high;
		prefixes += even + odd;
	}
	for (size_t lane = 0; lane < WORDS_PER_VECTOR / 2; lane++) {
		uint64_t both = even[lane] + odd[lane];
		uint64_t weighted = (count * both - prefixes[lane]) * 32;
		sum += weighted + both * (2 * first + 4 * lane + 1) + 2 * odd[lane];
	}
	return sum;
}

/* torch.optim.AdamW's order of operations (decay, moments, step), then EMAModel's. */
static void update_tile(const struct factors *f, const float *restrict grad,
	const float *restrict weights, const float *restrict ema, const float *restrict exp_avg,
	const float *restrict exp_avg_sq, float (*restrict next)[TILE_ELEMS])
{
	for (size_t i = 0; i < TILE_ELEMS; i++) {
		float g = grad[i] * f->clip_scale;
		float m = f->beta1 * exp_avg[i] + f->rest1 * g;
		float v = f->beta2 * exp_avg_sq[i] + f->rest2 * (g * g);
		float denominator = __builtin_sqrtf(v) * f->root_scale + f->eps;
		float w = weights[i] * f->keep - f->step_size * (m / denominator);
		next[SECTION_WEIGHTS][i] = w;
		next[SECTION_EMA][i] = ema[i] - f->ema_rest * (ema[i] - w);
		next[SECTION_EXP_AVG][i] = m;
		next[SECTION_EXP_AVG_SQ][i] = v;
	}
}

static void stream_tile(float *restrict to, const float *restrict from)
{
#if defined(__AVX512F__)
	for (size_t i = 0; i < TILE_ELEMS; i += 16)
		_mm512_stream_ps(to + i, _mm512_load_ps(from + i));
#elif defined(__AVX__)
	for (size_t i = 0; i < TILE_ELEMS; i += 8)
		_mm256_stream_ps(to + i, _mm256_load_ps(from + i));
#elif defined(__SSE2__)
	for (size_t i = 0; i < TILE_ELEMS; i += 4)
		_mm_stream_ps(to + i, _mm_load_ps(from + i));
#else
	memcpy(to, from, TILE_BYTES);
#endif
}

static void stream_fence(void)
{
#ifdef __SSE2__
	_mm_sfence();
#else
	atomic_thread_fence(memory_order_release);
#endif
}

/* One chunk of each section. sums: of what was read, and of what was written. */
static void update_chunk(const struct factors *f, const float *grads, uint64_t first,
	float *const src[SECTION_COUNT], float *const dst[SECTION_COUNT],
	uint64_t read_sums[SECTION_COUNT], uint64_t written_sums[SECTION_COUNT])
{
	_Alignas(64) float next[SECTION_COUNT][TILE_ELEMS];

	for (size_t tile = 0; tile < CHUNK_ELEMS; tile += TILE_ELEMS) {
		uint64_t at = first + tile;
		update_tile(f, grads + at, src[SECTION_WEIGHTS] + at, src[SECTION_EMA] + at,
			src[SECTION_EXP_AVG] + at, src[SECTION_EXP_AVG_SQ] + at, next);
		for (unsigned s = 0; s < SECTION_COUNT; s++) {
			read_sums[s] += seal_sum_tile(src[s] + at, tile);
			written_sums[s] += seal_sum_tile(next[s], tile);
			if (dst[s] == src[s])
				memcpy(dst[s] + at, next[s], TILE_BYTES);
			else
				stream_tile(dst[s] + at, next[s]);
		}
	}
}

bool adamw_update(const struct adamw *adamw, const float *grads, uint64_t elems,
	float *const src[SECTION_COUNT], float *const dst[SECTION_COUNT], const uint64_t *src_sums,
	uint64_t *dst_sums, _Atomic uint64_t *moves)
{
	struct factors factors = factors_of(adamw);
	uint64_t chunks = elems / CHUNK_ELEMS;
	bool mismatch = false;

	CHECK(elems % CHUNK_ELEMS == 0);
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		CHECK((uintptr_t)src[s] % 64 == 0 && (uintptr_t)dst[s] % 64 == 0);
#pragma omp parallel reduction(|| : mismatch)
	{
#pragma omp for schedule(dynamic) nowait
		for (uint64_t c = 0; c < chunks; c++) {
			uint64_t read_sums[SECTION_COUNT] = {0}, written_sums[SECTION_COUNT] = {0};
			update_chunk(&factors, grads, c * CHUNK_ELEMS, src, dst, read_sums,
				written_sums);
			for (unsigned s = 0; s < SECTION_COUNT; s++) {
				if (src_sums && src_sums[s * chunks + c] != read_sums[s])
					mismatch = true;
				dst_sums[s * chunks + c] = written_sums[s];
			}
			if (moves)
				atomic_fetch_add_explicit(moves, 1, memory_order_relaxed);
		}
		stream_fence();
	}
	return !mismatch;
}

#define SUM_CHUNK_ELEMS ((uint64_t)65536)
#define SUM_CHUNKS 512 /* at a time: partial sums live on the stack */
#define SUM_LANES 16

/* Squares are exact in double; lanes and their order are fixed. */
static double square_sum_chunk(const float *values, uint64_t count)
{
	double lane[SUM_LANES] = {0}, sum = 0.0;
	uint64_t whole = count - count % SUM_LANES;

	for (uint64_t i = 0; i < whole; i += SUM_LANES)
		for (unsigned j = 0; j < SUM_LANES; j++)
			lane[j] += (double)values[i + j] * (double)values[i + j];
	for (uint64_t i = whole; i < count; i++)
		lane[i - whole] += (double)values[i] * (double)values[i];
	for (unsigned j = 0; j < SUM_LANES; j++)
		sum += lane[j];
	return sum;
}

double adamw_square_sum(const float *grads, uint64_t count)
{
	double partial[SUM_CHUNKS], sum = 0.0;

	for (uint64_t begin = 0; begin < count; begin += SUM_CHUNKS * SUM_CHUNK_ELEMS) {
		uint64_t left = count - begin;
		uint64_t chunks = (left + SUM_CHUNK_ELEMS - 1) / SUM_CHUNK_ELEMS;
		if (chunks > SUM_CHUNKS)
			chunks = SUM_CHUNKS;
#pragma omp parallel for schedule(dynamic) if (chunks > 1)
		for (uint64_t c = 0; c < chunks; c++) {
			uint64_t at = c * SUM_CHUNK_ELEMS;
			uint64_t size = left - at < SUM_CHUNK_ELEMS ? left - at : SUM_CHUNK_ELEMS;
			partial[c] = square_sum_chunk(grads + begin + at, size);
		}
		for (uint64_t c = 0; c < chunks; c++)
			sum += partial[c];
	}
	return sum;
}
