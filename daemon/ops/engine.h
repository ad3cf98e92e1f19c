/* The seam of the engines: products over positions, and nothing else. An engine owns the form of
 * its packed weights; activations, gradients, biases and weight gradients are plain fp32.
 *
 * A tap is one shifted product: out[p, :] += in[p + offset, :] * W. A convolution is a list of
 * taps, by data is the list with offsets negated and weights transposed, and by weights is one
 * product for each tap. Outputs are split among threads, sums never: bits do not depend on the
 * number of threads. */
#pragma once

#include "daemon/ops/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tap {
	const float *in; /* position 0 of its source */
	uint32_t width;  /* floats of a position of the source; the rows of W */
	int32_t offset;  /* positions */
	const void *packed;
};
#define TAPS_MAX 16

/* out [p][out_width] = sum of taps (+ out when accumulate) + bias + per_image + residual, at
 * positions of images < n; zero at all others of the active blocks. The caller zeroes the edges. */
struct conv_call {
	const struct layout *layout;
	uint32_t n;
	uint32_t tap_count;
	struct tap taps[TAPS_MAX];
	float *out;
	uint32_t out_width;
	bool accumulate;
	const float *bias[2];   /* [out_width], or NULL */
	const float *per_image; /* [n][per_image_stride], or NULL */
	uint32_t per_image_stride;
	const float *residual; /* as out, or NULL */
};

/* For each tap i: dw[i] [dout_width][tap.width] = sum over p of dout[p]^T in[p + offset]. Pads of
 * dout are zero, so pads need no mask. */
struct conv_weights_call {
	const struct layout *layout;
	uint32_t n;
	uint32_t tap_count;
	struct tap taps[TAPS_MAX]; /* packed unused */
	float *dw[TAPS_MAX];
	const float *dout[TAPS_MAX]; /* position 0 */
	uint32_t dout_width;
};

/* C [m][n] = alpha op(A) op(B) + beta C, row-major, on the calling thread. */
struct matmul {
	bool transpose_a, transpose_b;
	uint32_t m, n, k;
	float alpha, beta;
	const float *a, *b;
	float *c;
	uint32_t lda, ldb, ldc;
};

struct engine {
	const char *name;
	/* Bytes of one packed tap with in_width rows and out_width columns. */
	size_t (*packed_bytes)(uint32_t in_width, uint32_t out_width);
	/* matrix [out_width][in_width], or, when transposed, [in_width][out_width]; both widths
	 * are multiples of CHANNEL_ALIGN. */
	void (*pack)(void *packed, uint32_t in_width, uint32_t out_width, const float *matrix,
		bool transposed);
	void (*conv)(const struct conv_call *call);
	void (*conv_weights)(const struct conv_weights_call *call);
	void (*matmul)(const struct matmul *call);
	/* "OpenBLAS 0.3.21 SkylakeX": library, version and core, for the fingerprint. */
	const char *(*library)(void);
};

/* The engine that runs on any CPU and is the reference of the others. Prepares the library on the
 * first call; not thread-safe then. */
const struct engine *engine_openblas(void);

const char *ops_engine_name(void);
const char *ops_engine_library(void);
