/* The seam of the engines: products over positions, and nothing else. An engine owns the form of
 * activations, of its packed weights and of raw weight gradients; biases, weights and gradients of
 * weights are plain fp32.
 *
 * A tap is one shifted product: out[p, :] += in[p + offset, :] * W. A convolution is a list of
 * taps, by data is the list with offsets negated and weights transposed, and by weights is one
 * product for each tap. Outputs are split among threads, sums never: bits do not depend on the
 * number of threads. */
#pragma once

#include "daemon/ops/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tap {
	const struct tensor *in;
	int32_t offset; /* positions */
	const void *packed;
};
#define TAPS_MAX 16

/* out = sum of taps (+ out when accumulate) + bias + per_image + residual, at positions of images
 * < n; zero at all others of the active blocks. The caller zeroes the edges. out may be fp32 where
 * the engine's form is bf16, in blocks of the same size. */
struct conv_call {
	uint32_t n;
	uint32_t tap_count;
	struct tap taps[TAPS_MAX];
	const struct tensor *out;
	bool accumulate;
	const float *bias[2];   /* [out->width], or NULL */
	const float *per_image; /* [n][per_image_stride], or NULL */
	uint32_t per_image_stride;
	const struct tensor *residual; /* as out, or NULL */
};

/* For each tap i: dw[i] = sum over p of dout[i][p]^T in[p + offset], a raw matrix of
 * [dout width][in width] floats (dw_offset). Pads of dout are zero, so pads need no mask. All dout
 * have one width. */
struct conv_weights_call {
	uint32_t n;
	uint32_t tap_count;
	struct tap taps[TAPS_MAX]; /* packed unused */
	float *dw[TAPS_MAX];
	const struct tensor *dout[TAPS_MAX];
	void *scratch; /* weights_scratch_bytes */
};

/* C [m][n] = alpha op(A) op(B) + beta C, row-major fp32, on the calling thread. */
struct matmul {
	bool transpose_a, transpose_b;
	uint32_t m, n, k;
	float alpha, beta;
	const float *a, *b;
	float *c;
	uint32_t lda, ldb, ldc;
};

/* The side of the squares that weights are packed in. */
#define PACK_SIDE 32
/* Values of a raw gradient that lie side by side in every engine. */
#define RAW_LINE 16

struct attention;

struct engine {
	const char *name;
	struct form form;
	/* Bytes of one packed tap: a matrix [k][n], k the channels that are read. Widths are
	 * multiples of form.align. */
	size_t (*packed_bytes)(uint32_t k_width, uint32_t n_width);
	/* Rows k0.. and columns n0.. of it from one square. transposed: square[n - n0][k - k0],
	 * else square[k - k0][n - n0]; behind the widths it is ignored. Thread-safe for different
	 * squares. */
	void (*pack)(void *packed, uint32_t k_width, uint32_t n_width, uint32_t k0, uint32_t n0,
		const float square[PACK_SIDE][PACK_SIDE], bool transposed);
	void (*conv)(const struct conv_call *call);
	/* For inputs and gradients of these widths (of all different tensors together). */
	size_t (*weights_scratch_bytes)(
		const struct layout *layout, uint32_t in_width, uint32_t dout_width);
	void (*conv_weights)(const struct conv_weights_call *call);
	/* Where in a raw gradient of in_width columns the values of row o and columns i .. i + 15
	 * (RAW_LINE) lie; i is a multiple of 16. */
	size_t (*dw_offset)(uint32_t in_width, uint32_t o, uint32_t i);
	void (*matmul)(const struct matmul *call);
	/* NULL: attention.c's own, made of matmul. See attention.h. */
	size_t (*attention_scratch_bytes)(const struct attention *attention, bool training);
	void (*attention_forward)(const struct attention *attention, uint32_t n,
		const struct tensor *q, const struct tensor *k, const struct tensor *v,
		const struct tensor *o);
	void (*attention_backward)(const struct attention *attention, uint32_t n,
		const struct tensor *const qkv[3], const struct tensor *dout,
		const struct tensor *const dqkv[3]);
	/* "OpenBLAS 0.3.21 SkylakeX": library, version and core, for the fingerprint. */
	const char *(*library)(void);
};

/* The engine that runs on any CPU and is the reference of the others. Prepares the library on the
 * first call; not thread-safe then. */
const struct engine *engine_openblas(void);
/* The others: NULL where they cannot run, with the reason (a static text). They may be asked often;
 * amx asks the kernel for the tiles once. */
const struct engine *engine_avx512(const char **ret_reason);
const struct engine *engine_amx(const char **ret_reason);
/* By name; NULL: unknown, or cannot run here (*ret_reason). */
const struct engine *engine_named(const char *name, const char **ret_reason);
