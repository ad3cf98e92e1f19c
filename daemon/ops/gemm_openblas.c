/* The engine `openblas`: single-thread cblas_sgemm called from our own parallel loops over blocks
 * of positions, all taps on a block while it is in cache. The only file that knows cblas. OpenBLAS
 * never runs threads of its own, so any build of it works and bits do not depend on threads.
 *
 * Packed form of a tap: the plain matrix [in_width][out_width]. */
#include "base/panic.h"
#include "daemon/ops/engine.h"

#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

/* The OpenMP build of OpenBLAS ignores openblas_set_num_threads: it takes omp_get_max_threads()
 * threads wherever no parallel region is active, also inside a region of one thread. */
static void sgemm(const struct matmul *call)
{
	int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
	if (threads > 1)
		omp_set_num_threads(1);
	cblas_sgemm(CblasRowMajor, call->transpose_a ? CblasTrans : CblasNoTrans,
		call->transpose_b ? CblasTrans : CblasNoTrans, (blasint)call->m, (blasint)call->n,
		(blasint)call->k, call->alpha, call->a, (blasint)call->lda, call->b,
		(blasint)call->ldb, call->beta, call->c, (blasint)call->ldc);
	if (threads > 1)
		omp_set_num_threads(threads);
}

/* Output channels handled at a time, so that small levels still feed all threads. */
#define OUT_BLOCK 128
/* Rows of a weight gradient handled at a time. */
#define DW_BLOCK 64

static size_t packed_bytes(uint32_t k_width, uint32_t n_width)
{
	return (size_t)k_width * n_width * sizeof(float);
}

static void pack(void *packed, uint32_t k_width, uint32_t n_width, uint32_t k0, uint32_t n0,
	const float square[PACK_SIDE][PACK_SIDE], bool transposed)
{
	float *rows = packed;
	for (uint32_t k = k0; k < k0 + PACK_SIDE && k < k_width; k++)
		for (uint32_t n = n0; n < n0 + PACK_SIDE && n < n_width; n++)
			rows[(size_t)k * n_width + n] = transposed ? square[n - n0][k - k0]
								   : square[k - k0][n - n0];
}

static void add_into(float *restrict dst, const float *restrict src, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		dst[i] += src[i];
}

/* Bias, per-image values and residual on one block; zero at pads. */
static void finish_block(const struct conv_call *call, uint32_t first, uint32_t rows,
	uint32_t column, uint32_t columns)
{
	const struct layout *layout = call->out->layout;
	for (uint32_t p = first; p < first + rows; p++) {
		float *out = tensor_at(call->out, column, p);
		int32_t image = layout->image_of[p];
		if (image < 0 || (uint32_t)image >= call->n) {
			memset(out, 0, columns * sizeof(float));
			continue;
		}
		for (int i = 0; i < 2; i++)
			if (call->bias[i])
				add_into(out, call->bias[i] + column, columns);
		if (call->per_image)
			add_into(out,
				call->per_image + (size_t)image * call->per_image_stride + column,
				columns);
		if (call->residual)
			add_into(out, tensor_at(call->residual, column, p), columns);
	}
}

static void conv_block(const struct conv_call *call, uint32_t first, uint32_t rows, uint32_t column,
	uint32_t columns)
{
	for (uint32_t i = 0; i < call->tap_count; i++) {
		const struct tap *tap = &call->taps[i];
		sgemm(&(struct matmul){
			.m = rows,
			.n = columns,
			.k = tap->in->width,
			.alpha = 1.0f,
			.beta = i || call->accumulate ? 1.0f : 0.0f,
			.a = tensor_at(tap->in, 0, (ptrdiff_t)first + tap->offset),
			.lda = tap->in->width,
			.b = (const float *)tap->packed + column,
			.ldb = call->out->width,
			.c = tensor_at(call->out, column, first),
			.ldc = call->out->width,
		});
	}
	finish_block(call, first, rows, column, columns);
}

static void conv(const struct conv_call *call)
{
	uint32_t active = layout_active(call->out->layout, call->n);
	uint32_t padded = call->out->layout->padded, out_width = call->out->width;
	uint32_t blocks = (active + POSITION_BLOCK - 1) / POSITION_BLOCK;
	uint32_t columns = (out_width + OUT_BLOCK - 1) / OUT_BLOCK;
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t block = 0; block < blocks; block++)
		for (uint32_t part = 0; part < columns; part++) {
			uint32_t first = block * POSITION_BLOCK;
			uint32_t rows = padded - first < POSITION_BLOCK ? padded - first
									: POSITION_BLOCK;
			uint32_t column = part * OUT_BLOCK;
			uint32_t width = out_width - column;
			conv_block(
				call, first, rows, column, width < OUT_BLOCK ? width : OUT_BLOCK);
		}
}

static size_t weights_scratch_bytes(
	const struct layout *layout, uint32_t in_width, uint32_t dout_width)
{
	return 0;
}

static size_t dw_offset(uint32_t in_width, uint32_t o, uint32_t i)
{
	return (size_t)o * in_width + i;
}

/* Rows [row, row + rows) of one tap's gradient: the sum over positions in fixed chunks. */
static void weights_block(
	const struct conv_weights_call *call, uint32_t index, uint32_t row, uint32_t rows)
{
	const struct tap *tap = &call->taps[index];
	const struct tensor *dout = call->dout[index];
	uint32_t end = call->n * dout->layout->image_stride, width = tap->in->width;
	for (uint32_t p = 0; p < end; p += POSITION_BLOCK)
		sgemm(&(struct matmul){
			.transpose_a = true,
			.m = rows,
			.n = width,
			.k = end - p < POSITION_BLOCK ? end - p : POSITION_BLOCK,
			.alpha = 1.0f,
			.beta = p ? 1.0f : 0.0f,
			.a = tensor_at(dout, row, p),
			.lda = dout->width,
			.b = tensor_at(tap->in, 0, (ptrdiff_t)p + tap->offset),
			.ldb = width,
			.c = call->dw[index] + (size_t)row * width,
			.ldc = width,
		});
}

static void conv_weights(const struct conv_weights_call *call)
{
	uint32_t dout_width = call->dout[0]->width;
	uint32_t parts = (dout_width + DW_BLOCK - 1) / DW_BLOCK;
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t part = 0; part < parts; part++)
		for (uint32_t i = 0; i < call->tap_count; i++) {
			uint32_t row = part * DW_BLOCK;
			uint32_t rows = dout_width - row;
			weights_block(call, i, row, rows < DW_BLOCK ? rows : DW_BLOCK);
		}
}

/* openblas_get_config() begins "OpenBLAS 0.3.21 ..."; versions before 0.3 lack the first word. */
static const char *library(void)
{
	static char text[96];
	if (!text[0]) {
		char version[48] = "";
		const char *config = openblas_get_config();
		if (sscanf(config, "OpenBLAS %47s", version) != 1)
			snprintf(version, sizeof(version), "(unknown version)");
		snprintf(text, sizeof(text), "OpenBLAS %s %s", version, openblas_get_corename());
	}
	return text;
}

static const struct engine openblas = {
	.name = "openblas",
	.form = {ELEM_F32, .align = 16},
	.packed_bytes = packed_bytes,
	.pack = pack,
	.conv = conv,
	.weights_scratch_bytes = weights_scratch_bytes,
	.conv_weights = conv_weights,
	.dw_offset = dw_offset,
	.matmul = sgemm,
	.library = library,
};

const struct engine *engine_openblas(void)
{
	/* For builds with threads of their own; the OpenMP build changes our number as well. */
	int threads = omp_get_max_threads();
	openblas_set_num_threads(1);
	omp_set_num_threads(threads);
	return &openblas;
}
