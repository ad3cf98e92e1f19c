/* The engine `avx512`: fp32 products in registers of 16 floats, from our own parallel loops.
 *
 * Register blocking. One kernel does all: a tile of up to 6 rows x 64 columns of the output stays
 * in registers while it sums over k,
 *
 *     sum[r][v] += a(row r, k) * b(k, line v)      r < 6, v < 4 lines of 16 floats
 *
 * Each k takes 4 loads, 6 broadcasts and 24 multiply-adds: 24 sums hide the latency of the
 * multiply-adds (2 units, 4 cycles), and the 10 reads fit into the 12 cycles that they take. Edges
 * have fewer rows or lines, always as constants, so that every sum has a register of its own.
 * The rows of a tile are any positions of a list: pads are never multiplied. A sum consists of
 * terms, which are the taps of a convolution: out is read and written once for many taps.
 *
 * Memory. A tap is packed by blocks of 64 output channels, each [k][64] (the last may be
 * narrower), so that b is a stream. One item of work is a block of output channels at one block of
 * positions; the items of a block of output channels follow each other, so that its weights stay
 * in the L2 cache of a core: DEPTH limits what one pass reads. From L2 the stream costs
 * nothing: 256 bytes in 12 cycles. Smaller passes that leave b in L1 were slower, because they
 * read and write out more often.
 *
 * By weights, k runs over the positions of one block: a is dout, gathered into a panel [k][rows] of
 * the positions that are no pads (in place it would fall into few sets of L1: powers of two), b is
 * the input where it lies, read by the list of these positions. One item is some rows and 64
 * columns of dw for many taps, which read almost the same input while it is in L2: the same item
 * for each tap by itself waits for L3.
 *
 * Order of summation: in a convolution bias and the like first, then the passes, each the sum of
 * its taps and channels in order; by weights the blocks, each the sum of its positions in order. It
 * depends on nothing else. */
#include "base/panic.h"
#include "daemon/ops/engine.h"

#ifdef __AVX512F__

#include <immintrin.h>
#include <omp.h>
#include <string.h>

#define LINE 16
#define ROWS 6
#define LINES 4
#define COLUMNS (LINES * LINE)
/* Values of k in one pass: 9 taps of 256 channels, 576 KiB of weights. */
#define DEPTH 2304
/* Rows of dw in one item, at most and at least. */
#define DW_ROWS_MAX 96
#define DW_ROWS_MIN 24
/* Values of k in a panel of matmul. */
#define PANEL 256

/* a(r, k) = a[row[r] * a_row + k * a_step], b(k) = b + at[k] * b_step. */
struct term {
	const float *a, *b;
	size_t a_row, a_step, b_step;
	uint32_t depth;
	const uint32_t *at; /* NULL: 0, 1, 2 .. */
};

/* c(row[r]) = alpha * sum of terms + beta * c(row[r]). beta 0: c is not read. */
struct tile {
	const struct term *terms;
	uint32_t term_count;
	const uint32_t *row;
	float *c;
	size_t c_row;
	float alpha, beta;
	__mmask16 last; /* columns of the last line */
};

static const uint32_t rows_in_order[ROWS] = {0, 1, 2, 3, 4, 5};

/* Of loops whose count is a constant after inlining: their arrays become registers. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE void add_term(
	const struct term *term, const uint32_t *row, __m512 sum[ROWS][LINES], int rows, int lines)
{
	const float *a[ROWS], *b = term->b;
	size_t a_step = term->a_step, b_step = term->b_step, a_at = 0;
	UNROLL
	for (int r = 0; r < rows; r++)
		a[r] = term->a + row[r] * term->a_row;
	for (uint32_t k = 0; k < term->depth; k++) {
		__m512 line[LINES];
		if (term->at)
			b = term->b + term->at[k] * b_step;
		UNROLL
		for (int v = 0; v < lines; v++)
			line[v] = _mm512_loadu_ps(b + v * LINE);
		UNROLL
		for (int r = 0; r < rows; r++) {
			__m512 value = _mm512_set1_ps(a[r][a_at]);
			UNROLL
			for (int v = 0; v < lines; v++)
				sum[r][v] = _mm512_fmadd_ps(value, line[v], sum[r][v]);
		}
		a_at += a_step;
		b += b_step;
	}
}

INLINE void finish_line(const struct tile *tile, float *c, __mmask16 mask, __m512 sum)
{
	__m512 old = _mm512_setzero_ps();
	if (tile->beta != 0.0f)
		old = _mm512_mul_ps(_mm512_set1_ps(tile->beta), _mm512_maskz_loadu_ps(mask, c));
	_mm512_mask_storeu_ps(c, mask, _mm512_fmadd_ps(_mm512_set1_ps(tile->alpha), sum, old));
}

/* rows and lines are constants where this is inlined. */
INLINE void multiply_constant(const struct tile *tile, int rows, int lines)
{
	__m512 sum[ROWS][LINES];
	UNROLL
	for (int r = 0; r < rows; r++) {
		UNROLL
		for (int v = 0; v < lines; v++)
			sum[r][v] = _mm512_setzero_ps();
	}
	for (uint32_t i = 0; i < tile->term_count; i++)
		add_term(&tile->terms[i], tile->row, sum, rows, lines);
	UNROLL
	for (int r = 0; r < rows; r++) {
		float *c = tile->c + tile->row[r] * tile->c_row;
		UNROLL
		for (int v = 0; v < lines; v++)
			finish_line(
				tile, c + v * LINE, v + 1 < lines ? 0xffff : tile->last, sum[r][v]);
	}
}

INLINE void multiply_rows(const struct tile *tile, uint32_t rows, int lines)
{
	if (rows == 1)
		multiply_constant(tile, 1, lines);
	else if (rows == 2)
		multiply_constant(tile, 2, lines);
	else if (rows == 3)
		multiply_constant(tile, 3, lines);
	else if (rows == 4)
		multiply_constant(tile, 4, lines);
	else if (rows == 5)
		multiply_constant(tile, 5, lines);
	else
		multiply_constant(tile, ROWS, lines);
}

static void multiply(const struct tile *tile, uint32_t rows, uint32_t lines)
{
	if (lines == 1)
		multiply_rows(tile, rows, 1);
	else if (lines == 2)
		multiply_rows(tile, rows, 2);
	else if (lines == 3)
		multiply_rows(tile, rows, 3);
	else
		multiply_rows(tile, rows, LINES);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* In 128-bit quarters first, then the quarters. */
INLINE void transpose(const __m512 x[LINE], __m512 ret_y[LINE])
{
	__m512 y[LINE], z[LINE];
	UNROLL
	for (int i = 0; i < LINE; i += 2) {
		y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
		y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
	}
	UNROLL
	for (int i = 0; i < LINE; i++) {
		__m512d low = _mm512_castps_pd(y[i / 4 * 4 + i % 4 / 2]);
		__m512d high = _mm512_castps_pd(y[i / 4 * 4 + i % 4 / 2 + 2]);
		z[i] = _mm512_castpd_ps(
			i % 2 ? _mm512_unpackhi_pd(low, high) : _mm512_unpacklo_pd(low, high));
	}
	/* Quarter q of z[4 g + i] is now column 4 q + i of rows 4 g .. 4 g + 3. */
	UNROLL
	for (int i = 0; i < 4; i++) {
		__m512 even_low = _mm512_shuffle_f32x4(z[i], z[4 + i], 0x88);
		__m512 even_high = _mm512_shuffle_f32x4(z[8 + i], z[12 + i], 0x88);
		__m512 odd_low = _mm512_shuffle_f32x4(z[i], z[4 + i], 0xdd);
		__m512 odd_high = _mm512_shuffle_f32x4(z[8 + i], z[12 + i], 0xdd);
		ret_y[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
		ret_y[4 + i] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
		ret_y[8 + i] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
		ret_y[12 + i] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
	}
}

/* to[k][i] = from[i][k] for up to 16 rows and columns of from; zeros fill a line of to. */
static void copy_transposed(const float *from, size_t from_row, uint32_t rows, uint32_t columns,
	float *to, size_t to_row)
{
	__m512 x[LINE], y[LINE];
	__mmask16 mask = (__mmask16)(0xffff >> (LINE - columns));
	UNROLL
	for (uint32_t i = 0; i < LINE; i++)
		x[i] = _mm512_maskz_loadu_ps(
			i < rows ? mask : 0, from + (i < rows ? i * from_row : 0));
	transpose(x, y);
	UNROLL
	for (uint32_t i = 0; i < LINE; i++)
		if (i < columns)
			_mm512_storeu_ps(to + i * to_row, y[i]);
}

/* to[k][i] = from[k][i] for up to 16 columns of from; zeros fill a line of to. */
static void copy_lines(const float *from, size_t from_row, uint32_t rows, uint32_t columns,
	float *to, size_t to_row)
{
	__mmask16 mask = (__mmask16)(0xffff >> (LINE - columns));
	for (uint32_t k = 0; k < rows; k++)
		_mm512_storeu_ps(to + k * to_row, _mm512_maskz_loadu_ps(mask, from + k * from_row));
}

static size_t packed_bytes(uint32_t k_width, uint32_t n_width)
{
	return (size_t)k_width * n_width * sizeof(float);
}

static void pack(void *packed, uint32_t k_width, uint32_t n_width, uint32_t k0, uint32_t n0,
	const float square[PACK_SIDE][PACK_SIDE], bool transposed)
{
	for (uint32_t n = n0; n < min_u32(n0 + PACK_SIDE, n_width); n += LINE) {
		uint32_t column = n / COLUMNS * COLUMNS;
		uint32_t columns = min_u32(COLUMNS, n_width - column);
		float *block = (float *)packed + (size_t)column * k_width + (n - column);
		for (uint32_t k = k0; k < min_u32(k0 + PACK_SIDE, k_width); k += LINE) {
			float *to = block + (size_t)k * columns;
			if (transposed)
				copy_transposed(&square[n - n0][k - k0], PACK_SIDE, LINE, LINE, to,
					columns);
			else
				copy_lines(&square[k - k0][n - n0], PACK_SIDE, LINE, LINE, to,
					columns);
		}
	}
}

static float *floats_of(const struct tensor *tensor, ptrdiff_t position)
{
	return (float *)tensor->data + position * (ptrdiff_t)tensor->width;
}

/* The positions from first to end that are no pads; at most a block. */
static uint32_t live_positions(const struct layout *layout, uint32_t n, uint32_t first,
	uint32_t end, uint32_t live[POSITION_BLOCK])
{
	uint32_t count = 0;
	for (uint32_t p = first; p < end; p++)
		if (layout->image_of[p] >= 0 && (uint32_t)layout->image_of[p] < n)
			live[count++] = p;
	return count;
}

/* What the sum over taps is added to; zero at pads. */
static void start_position(
	const struct conv_call *call, uint32_t position, uint32_t column, uint32_t columns)
{
	float *out = floats_of(call->out, position) + column;
	int32_t image = call->out->layout->image_of[position];
	if (image < 0 || (uint32_t)image >= call->n) {
		memset(out, 0, columns * sizeof(float));
		return;
	}
	const float *summands[5];
	uint32_t count = 0;
	if (call->accumulate)
		summands[count++] = out;
	for (int i = 0; i < 2; i++)
		if (call->bias[i])
			summands[count++] = call->bias[i] + column;
	if (call->per_image)
		summands[count++] = call->per_image + (size_t)image * call->per_image_stride +
			column;
	if (call->residual)
		summands[count++] = floats_of(call->residual, position) + column;
	for (uint32_t c = 0; c < columns; c += LINE) {
		__m512 sum = _mm512_setzero_ps();
		for (uint32_t i = 0; i < count; i++)
			sum = _mm512_add_ps(sum, _mm512_loadu_ps(summands[i] + c));
		_mm512_storeu_ps(out + c, sum);
	}
}

/* The taps as terms of the sums of one block of output channels. */
static void terms_of(const struct conv_call *call, uint32_t column, uint32_t columns,
	struct term terms[TAPS_MAX])
{
	for (uint32_t i = 0; i < call->tap_count; i++) {
		const struct tap *tap = &call->taps[i];
		uint32_t width = tap->in->width;
		terms[i] = (struct term){
			.a = floats_of(tap->in, tap->offset),
			.a_row = width,
			.a_step = 1,
			.b = (const float *)tap->packed + (size_t)column * width,
			.b_step = columns,
			.depth = width,
		};
	}
}

static void conv_block(const struct conv_call *call, uint32_t first, uint32_t end, uint32_t column,
	uint32_t columns)
{
	uint32_t live[POSITION_BLOCK];
	uint32_t count = live_positions(call->out->layout, call->n, first, end, live);
	struct term terms[TAPS_MAX];
	terms_of(call, column, columns, terms);
	for (uint32_t p = first; p < end; p++)
		start_position(call, p, column, columns);
	for (uint32_t i = 0, pass = 0; i < call->tap_count; i += pass) {
		uint32_t depth = terms[i].depth;
		for (pass = 1; i + pass < call->tap_count; pass++) {
			depth += terms[i + pass].depth;
			if (depth > DEPTH)
				break;
		}
		for (uint32_t j = 0; j < count; j += ROWS) {
			struct tile tile = {
				.terms = terms + i,
				.term_count = pass,
				.row = live + j,
				.c = floats_of(call->out, 0) + column,
				.c_row = call->out->width,
				.alpha = 1.0f,
				.beta = 1.0f,
				.last = 0xffff,
			};
			multiply(&tile, min_u32(ROWS, count - j), columns / LINE);
		}
	}
}

static void conv(const struct conv_call *call)
{
	uint32_t active = layout_active(call->out->layout, call->n), width = call->out->width;
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t column = 0; column < width; column += COLUMNS)
		for (uint32_t first = 0; first < active; first += POSITION_BLOCK)
			conv_block(call, first, min_u32(active, first + POSITION_BLOCK), column,
				min_u32(COLUMNS, width - column));
}

/* Part of the gradients of some taps: rows of dout channels, columns of input channels. */
struct dw_part {
	uint32_t tap, taps;
	uint32_t row, rows;
	uint32_t column;
};

/* to [count][rows]: the rows' channels of dout at these positions. */
static void gather(const struct tensor *dout, const uint32_t *live, uint32_t count, uint32_t row,
	uint32_t rows, float *to)
{
	for (uint32_t j = 0; j < count; j++)
		memcpy(to + (size_t)j * rows, floats_of(dout, live[j]) + row, rows * sizeof(float));
}

/* Adds the sum over one block of positions; the first one is written. */
static void weights_tap(const struct conv_weights_call *call, const struct dw_part *part,
	uint32_t tap, const float *panel, const uint32_t *live, uint32_t count, bool first)
{
	const struct tensor *in = call->taps[tap].in;
	for (uint32_t r = 0; r < part->rows; r += ROWS) {
		struct term term = {
			.a = panel + r,
			.a_row = 1,
			.a_step = part->rows,
			.b = floats_of(in, call->taps[tap].offset) + part->column,
			.b_step = in->width,
			.depth = count,
			.at = live,
		};
		struct tile tile = {
			.terms = &term,
			.term_count = 1,
			.row = rows_in_order,
			.c = call->dw[tap] + (size_t)(part->row + r) * in->width + part->column,
			.c_row = in->width,
			.alpha = 1.0f,
			.beta = first ? 0.0f : 1.0f,
			.last = 0xffff,
		};
		multiply(&tile, min_u32(ROWS, part->rows - r),
			min_u32(COLUMNS, in->width - part->column) / LINE);
	}
}

static void weights_part(const struct conv_weights_call *call, const struct dw_part *part)
{
	_Alignas(64) float panel[POSITION_BLOCK * DW_ROWS_MAX];
	uint32_t live[POSITION_BLOCK];
	const struct layout *layout = call->dout[part->tap]->layout;
	uint32_t end = call->n * layout->image_stride;
	for (uint32_t first = 0; first < end; first += POSITION_BLOCK) {
		uint32_t count = live_positions(
			layout, call->n, first, min_u32(end, first + POSITION_BLOCK), live);
		const struct tensor *gathered = NULL;
		for (uint32_t tap = part->tap; tap < part->tap + part->taps; tap++) {
			if (part->column >= call->taps[tap].in->width)
				continue;
			if (call->dout[tap] != gathered)
				gather(call->dout[tap], live, count, part->row, part->rows, panel);
			gathered = call->dout[tap];
			weights_tap(call, part, tap, panel, live, count, first == 0);
		}
	}
}

static uint32_t parts_of(uint32_t count, uint32_t size)
{
	return (count + size - 1) / size;
}

static void conv_weights(const struct conv_weights_call *call)
{
	uint32_t height = call->dout[0]->width, width = 0;
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
	for (uint32_t i = 0; i < call->tap_count; i++)
		width = width < call->taps[i].in->width ? call->taps[i].in->width : width;
	/* Large parts read less, small ones feed all threads. The sums are the same. */
	uint32_t rows = DW_ROWS_MAX, taps = call->tap_count, columns = parts_of(width, COLUMNS);
	uint32_t wanted = 2 * (uint32_t)omp_get_max_threads();
	while (rows > DW_ROWS_MIN && parts_of(height, rows) * columns < wanted)
		rows /= 2;
	while (taps > 1 &&
		parts_of(height, rows) * columns * parts_of(call->tap_count, taps) < wanted)
		taps = (taps + 1) / 2;
#pragma omp parallel for collapse(3) schedule(dynamic)
	for (uint32_t tap = 0; tap < call->tap_count; tap += taps)
		for (uint32_t row = 0; row < height; row += rows)
			for (uint32_t column = 0; column < width; column += COLUMNS)
				weights_part(call,
					&(struct dw_part){
						.tap = tap,
						.taps = min_u32(taps, call->tap_count - tap),
						.row = row,
						.rows = min_u32(rows, height - row),
						.column = column,
					});
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

/* to [depth][lines of 16]: rows k0.. and columns n0.. of op(B), with zeros behind the columns. */
static void matmul_panel(const struct matmul *call, uint32_t k0, uint32_t depth, uint32_t n0,
	uint32_t columns, float *to)
{
	size_t ldb = call->ldb, to_row = parts_of(columns, LINE) * LINE;
	for (uint32_t n = 0; n < columns; n += LINE) {
		uint32_t count = min_u32(LINE, columns - n);
		if (!call->transpose_b) {
			copy_lines(call->b + k0 * ldb + n0 + n, ldb, depth, count, to + n, to_row);
			continue;
		}
		const float *from = call->b + (n0 + n) * ldb + k0;
		for (uint32_t k = 0; k < depth; k += LINE)
			copy_transposed(from + k, ldb, count, min_u32(LINE, depth - k),
				to + k * to_row + n, to_row);
	}
}

static void matmul_block(const struct matmul *call, uint32_t k0, uint32_t depth, uint32_t n0,
	uint32_t columns, const float *panel)
{
	uint32_t lines = parts_of(columns, LINE);
	size_t a_row = call->transpose_a ? 1 : call->lda;
	size_t a_step = call->transpose_a ? call->lda : 1;
	for (uint32_t i = 0; i < call->m; i += ROWS) {
		struct term term = {
			.a = call->a + i * a_row + k0 * a_step,
			.a_row = a_row,
			.a_step = a_step,
			.b = panel,
			.b_step = lines * LINE,
			.depth = depth,
		};
		struct tile tile = {
			.terms = &term,
			.term_count = 1,
			.row = rows_in_order,
			.c = call->c + (size_t)i * call->ldc + n0,
			.c_row = call->ldc,
			.alpha = call->alpha,
			.beta = k0 ? 1.0f : call->beta,
			.last = (__mmask16)(0xffff >> (lines * LINE - columns)),
		};
		multiply(&tile, min_u32(ROWS, call->m - i), lines);
	}
}

static void matmul(const struct matmul *call)
{
	_Alignas(64) float panel[PANEL * COLUMNS];
	CHECK(call->k > 0);
	for (uint32_t n = 0; n < call->n; n += COLUMNS)
		for (uint32_t k = 0; k < call->k; k += PANEL) {
			uint32_t columns = min_u32(COLUMNS, call->n - n);
			uint32_t depth = min_u32(PANEL, call->k - k);
			matmul_panel(call, k, depth, n, columns, panel);
			matmul_block(call, k, depth, n, columns, panel);
		}
}

static const char *library(void)
{
	return "avx512 kernels";
}

static const struct engine avx512 = {
	.name = "avx512",
	.form = {ELEM_F32, 0, LINE},
	.packed_bytes = packed_bytes,
	.pack = pack,
	.conv = conv,
	.weights_scratch_bytes = weights_scratch_bytes,
	.conv_weights = conv_weights,
	.dw_offset = dw_offset,
	.matmul = matmul,
	.library = library,
};

const struct engine *engine_avx512(const char **ret_reason)
{
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
		__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
		return &avx512;
	*ret_reason = "this CPU has no AVX-512 (F, VL, DQ, BW)";
	return NULL;
}

#else

const struct engine *engine_avx512(const char **ret_reason)
{
	*ret_reason = "compiled without AVX-512 support";
	return NULL;
}

#endif
