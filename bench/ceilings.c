/* Each ceiling is the best of several short trials: what is left when nothing disturbs. Code for
 * CPUs that may lack its instructions carries them as an attribute and is asked for at run time. */
#include "bench/ceilings.h"

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TRIALS 25
#define MIB ((size_t)1 << 20)

const unsigned copy_sizes_mib[COPY_SIZE_COUNT] = {8, 32, 128};

/* One thread's share of a trial. */
typedef void work(void *context);

static double best_seconds(work *run, void *context)
{
	double best = 1e9;

	for (int i = 0; i < TRIALS; i++) {
		nsec_t begun = clock_monotonic_ns();

#pragma omp parallel
		run(context);
		double took = (double)(clock_monotonic_ns() - begun) * 1e-9;
		if (took < best)
			best = took;
	}
	return best;
}

#ifdef __x86_64__

#define SUMS 16 /* independent sums: latency 4, two a cycle, and some to spare */
#define FMA_ROUNDS 1000000

/* Where results go, so that they are computed. */
static volatile float sink;

__attribute__((target("avx512f"))) static void fma_512(void *context)
{
	__m512 sums[SUMS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);

	(void)context;
	for (int i = 0; i < SUMS; i++)
		sums[i] = _mm512_set1_ps((float)i);
	for (int round = 0; round < FMA_ROUNDS; round++)
#pragma GCC unroll 16
		for (int i = 0; i < SUMS; i++)
			sums[i] = _mm512_fmadd_ps(sums[i], a, b);
	for (int i = 1; i < SUMS; i++)
		sums[0] = _mm512_add_ps(sums[0], sums[i]);
	sink = _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx2,fma"))) static void fma_256(void *context)
{
	__m256 sums[SUMS - 4], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);

	(void)context;
	for (int i = 0; i < SUMS - 4; i++)
		sums[i] = _mm256_set1_ps((float)i);
	for (int round = 0; round < FMA_ROUNDS; round++)
#pragma GCC unroll 16
		for (int i = 0; i < SUMS - 4; i++)
			sums[i] = _mm256_fmadd_ps(sums[i], a, b);
	for (int i = 1; i < SUMS - 4; i++)
		sums[0] = _mm256_add_ps(sums[0], sums[i]);
	sink = _mm256_cvtss_f32(sums[0]);
}

static double fma_gflops(void)
{
	double flops = 2.0 * FMA_ROUNDS * omp_get_max_threads();

	if (__builtin_cpu_supports("avx512f"))
		return flops * SUMS * 16 / best_seconds(fma_512, NULL) * 1e-9;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return flops * (SUMS - 4) * 8 / best_seconds(fma_256, NULL) * 1e-9;
	return 0;
}

#define TILE_BYTES 1024
#define TILE_STEPS 8 /* of 32 columns of A and rows of B: 32 KiB of operands */
#define TILE_ROUNDS 20000
#define TILE_PRODUCT_FLOPS (2.0 * 16 * 16 * 32)

/* CPUID 7: EDX bit 22 is AMX-BF16, 24 is AMX-TILE. The kernel gives the tiles' registers to who
 * asks (ARCH_REQ_XCOMP_PERM, component 18). */
static bool has_tiles(void)
{
	unsigned a, b, c, d, want = 1u << 22 | 1u << 24;

	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & want) != want)
		return false;
	return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

__attribute__((target("amx-tile"))) static void configure_tiles(void)
{
	_Alignas(64) struct {
		uint8_t palette, start_row, reserved[14];
		uint16_t row_bytes[16];
		uint8_t rows[16];
	} config = {.palette = 1};

	for (int i = 0; i < 8; i++) {
		config.row_bytes[i] = 64;
		config.rows[i] = 16;
	}
	/* gcc 12 thinks that the instruction reads 8 bytes. */
	__asm__ volatile("" : : "r"(&config) : "memory");
	_tile_loadconfig(&config);
}

/* Squares of 32 x 32, as the engine has them: four products for four loads. */
__attribute__((target("amx-tile,amx-bf16"))) static void multiply_tiles(void *context)
{
	_Alignas(64) uint8_t a[TILE_STEPS * 2 * TILE_BYTES], b[TILE_STEPS * 2 * TILE_BYTES];

	(void)context;
	memset(a, 0x3c, sizeof(a)); /* 0.0115 */
	memset(b, 0x3c, sizeof(b));
	configure_tiles();
	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (int round = 0; round < TILE_ROUNDS; round++)
		for (size_t at = 0; at < sizeof(a); at += (size_t)2 * TILE_BYTES) {
			_tile_loadd(4, a + at, 64);
			_tile_loadd(6, b + at, 64);
			_tile_loadd(7, b + at + TILE_BYTES, 64);
			_tile_dpbf16ps(0, 4, 6);
			_tile_dpbf16ps(1, 4, 7);
			_tile_loadd(5, a + at + TILE_BYTES, 64);
			_tile_dpbf16ps(2, 5, 6);
			_tile_dpbf16ps(3, 5, 7);
		}
	_tile_release();
}

static double tile_gflops(void)
{
	double products = 4.0 * TILE_STEPS * TILE_ROUNDS * omp_get_max_threads();

	if (!has_tiles())
		return 0;
	return products * TILE_PRODUCT_FLOPS / best_seconds(multiply_tiles, NULL) * 1e-9;
}

static void stream(void *dst, const void *src, size_t bytes)
{
	__m128i *to = dst;
	const __m128i *from = src;

	for (size_t i = 0; i < bytes / sizeof(*to); i++)
		_mm_stream_si128(to + i, _mm_load_si128(from + i));
	_mm_sfence();
}

#else

static double fma_gflops(void)
{
	return 0;
}

static double tile_gflops(void)
{
	return 0;
}

static void stream(void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
}

#endif

struct copy {
	uint8_t *dst, *src;
	size_t bytes; /* of all threads */
	unsigned times;
	bool streaming;
};

static void copy_part(void *context)
{
	const struct copy *copy = context;
	size_t threads = (size_t)omp_get_num_threads(), thread = (size_t)omp_get_thread_num();
	size_t part = copy->bytes / threads / 64 * 64, at = thread * part;

	for (unsigned i = 0; i < copy->times; i++)
		if (copy->streaming)
			stream(copy->dst + at, copy->src + at, part);
		else
			memcpy(copy->dst + at, copy->src + at, part);
}

static double copy_gb_s(struct copy *copy, unsigned mib, bool streaming)
{
	copy->bytes = mib * MIB;
	copy->times = 128 / mib;
	copy->streaming = streaming;
	return 2.0 * (double)copy->bytes * copy->times / best_seconds(copy_part, copy) * 1e-9;
}

static void measure_copies(struct ceilings *ret)
{
	size_t largest = copy_sizes_mib[COPY_SIZE_COUNT - 1] * MIB;
	struct copy copy = {
		.dst = aligned_alloc(4096, largest),
		.src = aligned_alloc(4096, largest),
	};

	if (copy.dst && copy.src) {
		memset(copy.dst, 1, largest);
		memset(copy.src, 2, largest);
		for (int i = 0; i < COPY_SIZE_COUNT; i++) {
			ret->plain_gb_s[i] = copy_gb_s(&copy, copy_sizes_mib[i], false);
			ret->stream_gb_s[i] = copy_gb_s(&copy, copy_sizes_mib[i], true);
			if (ret->plain_gb_s[i] > ret->copy_gb_s)
				ret->copy_gb_s = ret->plain_gb_s[i];
			if (ret->stream_gb_s[i] > ret->copy_gb_s)
				ret->copy_gb_s = ret->stream_gb_s[i];
		}
	}
	free(copy.dst);
	free(copy.src);
}

void ceilings_measure(struct ceilings *ret)
{
	*ret = (struct ceilings){.tile_gflops = tile_gflops(), .fma_gflops = fma_gflops()};
	measure_copies(ret);
}
