/* The engine `amx`: bf16 activations in blocks of 32 channels, tile products with fp32 sums.
 *
 * Forward and by data. One square of the result is 32 positions x 32 channels, and its sum over
 * taps and channels runs in tile registers from start to end; 32 x 32 floats then pass once through
 * the first cache on their way to bf16, where bias, time embedding, residual and the gradient that
 * is there already are added. A tap of a block reads 32 lines of 64 bytes that follow each other,
 * at any offset. Order of the sum: chunks of 256 channels, taps, channels, so that the three rows
 * of a chunk's positions are read nine times from the near caches.
 *
 *     operations: 32 x 32 x 2 products of 16 cycles / 4 per k step = 64 cycles for 32 channels
 *     first cache: 4 KiB of tiles in the same time
 *     second cache: the panel of weights (32 columns x taps x channels), 32 bytes a cycle
 *
 * Packed form of a tap: [n / 32][k / 32] squares of B, rows in pairs.
 *
 * A task is a panel of a stretch of positions, whose input stays in the second cache while the
 * panels pass. Threads share out tasks, never sums. */
#include "base/panic.h"
#include "daemon/ops/amx.h"

#include <cpuid.h>
#include <omp.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK_SQUARES 8 /* 256 channels */
/* Of the input of a stretch of positions: 1 MiB of the second cache. */
#define STRETCH_ELEMS (512 * 1024)

static size_t packed_bytes(uint32_t k_width, uint32_t n_width)
{
	return (size_t)k_width * n_width * sizeof(bf16);
}

static void pack(void *packed, uint32_t k_width, uint32_t n_width, uint32_t k0, uint32_t n0,
	const float square[PACK_SIDE][PACK_SIDE], bool transposed)
{
	_Alignas(64) bf16 rows[SQUARE][SQUARE];
	bf16 *to = (bf16 *)packed +
		((size_t)(n0 / SQUARE) * (k_width / SQUARE) + k0 / SQUARE) * SQUARE_ELEMS;
	for (int i = 0; i < SQUARE; i++)
		_mm512_store_si512(rows[i],
			round_line(_mm512_loadu_ps(square[i]), _mm512_loadu_ps(square[i] + 16)));
	if (transposed) {
		pack_columns(rows[0], SQUARE, 16, ALL_COLUMNS, to);
		pack_columns(rows[16], SQUARE, 16, ALL_COLUMNS, to + TILE_ELEMS);
	} else {
		pack_rows(rows[0], SQUARE, SQUARE, ALL_COLUMNS, to, to + TILE_ELEMS);
	}
}

/* The taps' sum for 32 positions and panel `panel`, into tiles 0-3. widest: squares of the widest
 * tap. */
static inline void sum_taps(
	const struct conv_call *call, uint32_t widest, ptrdiff_t position, uint32_t panel)
{
	square_zero();
	for (uint32_t chunk = 0; chunk < widest; chunk += CHUNK_SQUARES)
		for (uint32_t i = 0; i < call->tap_count; i++) {
			const struct tap *tap = &call->taps[i];
			uint32_t squares = tap->in->width / SQUARE, end = chunk + CHUNK_SQUARES;
			const bf16 *a = (const bf16 *)tap->in->data + chunk * tap->in->plane +
				(position + tap->offset) * SQUARE;
			const bf16 *b = (const bf16 *)tap->packed +
				((size_t)panel * squares + chunk) * SQUARE_ELEMS;
			end = end < squares ? end : squares;
			for (uint32_t k = chunk; k < end; k++) {
				square_add(a, a + TILE_ELEMS, 64, b, b + TILE_ELEMS);
				a += tap->in->plane;
				b += SQUARE_ELEMS;
			}
		}
}

/* What is added to every position of a panel: the biases. */
struct panel {
	const struct conv_call *call;
	uint32_t column;
	__m512 bias[2];
};

static inline void panel_init(struct panel *panel, const struct conv_call *call, uint32_t column)
{
	*panel = (struct panel){call, column, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
	for (int i = 0; i < 2; i++)
		for (int half = 0; half < 2 && call->bias[i]; half++)
			panel->bias[half] = _mm512_add_ps(panel->bias[half],
				_mm512_loadu_ps(call->bias[i] + column + 16 * half));
}

/* Columns 16 half .. of one position: the sum, and what else the call adds. */
static inline __m512 finish(
	const struct panel *panel, const float *sum, const float *per_image, ptrdiff_t at, int half)
{
	const struct conv_call *call = panel->call;
	__m512 y = _mm512_add_ps(_mm512_load_ps(sum + 256 * half), panel->bias[half]);
	if (per_image)
		y = _mm512_add_ps(y, _mm512_loadu_ps(per_image + panel->column + 16 * half));
	if (call->residual)
		y = _mm512_add_ps(y, widen((const bf16 *)call->residual->data + at + 16 * half));
	if (call->accumulate)
		y = _mm512_add_ps(y, widen((const bf16 *)call->out->data + at + 16 * half));
	return y;
}

/* 32 positions of a panel from their sums: rounded, zero at pads. */
static void finish_square(const struct panel *panel, uint32_t position, const float *sums)
{
	const struct conv_call *call = panel->call;
	const struct tensor *out = call->out;
	const int32_t *image_of = out->layout->image_of + position;
	size_t plane_at = panel->column / SQUARE * out->plane;
	for (unsigned r = 0; r < SQUARE; r++) {
		ptrdiff_t at = (ptrdiff_t)(plane_at + (position + r) * (size_t)SQUARE);
		const float *sum = square_row(sums, r), *per_image = NULL;
		__m512 left = _mm512_setzero_ps(), right = left;
		if (image_of[r] >= 0 && (uint32_t)image_of[r] < call->n) {
			if (call->per_image)
				per_image = call->per_image +
					(size_t)image_of[r] * call->per_image_stride;
			left = finish(panel, sum, per_image, at, 0);
			right = finish(panel, sum, per_image, at, 1);
		}
		if (out->elem == ELEM_BF16) {
			_mm512_storeu_si512((bf16 *)out->data + at, round_line(left, right));
		} else {
			_mm512_storeu_ps((float *)out->data + at, left);
			_mm512_storeu_ps((float *)out->data + at + 16, right);
		}
	}
}

/* How the result is cut: `stretch` positions whose input fits the second cache, and panels. A
 * thread takes `share` panels of a stretch, so that neither input nor weights are read often from
 * afar. */
struct cut {
	uint32_t active, widest; /* positions; squares of the widest tap */
	uint32_t stretch, stretches, panels;
	int share;
};

static struct cut cut_of(const struct conv_call *call)
{
	uint32_t threads = (uint32_t)omp_get_max_threads(), width = SQUARE;
	struct cut cut = {
		.active = layout_active(call->out->layout, call->n),
		.panels = call->out->width / SQUARE,
	};
	for (uint32_t i = 0; i < call->tap_count; i++)
		if (call->taps[i].in->width > width)
			width = call->taps[i].in->width;
	cut.widest = width / SQUARE;
	cut.stretch = STRETCH_ELEMS / width / SQUARE * SQUARE;
	if (cut.stretch < SQUARE)
		cut.stretch = SQUARE;
	cut.stretches = (cut.active + cut.stretch - 1) / cut.stretch;
	uint32_t share = cut.stretches * cut.panels / (4 * threads);
	cut.share = share < 1 ? 1 : (int)least(share, cut.panels);
	return cut;
}

/* One panel of one stretch. */
static void conv_task(const struct conv_call *call, const struct cut *cut, uint32_t task)
{
	_Alignas(64) float sums[SQUARE * SQUARE];
	uint32_t index = task % cut->panels, first = task / cut->panels * cut->stretch;
	uint32_t end = first + least(cut->stretch, cut->active - first);
	struct panel panel;
	panel_init(&panel, call, index * SQUARE);
	for (uint32_t p = first; p < end; p += SQUARE) {
		sum_taps(call, cut->widest, p, index);
		square_store(sums);
		finish_square(&panel, p, sums);
	}
}

static void conv(const struct conv_call *call)
{
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
	CHECK(call->out->block == SQUARE && (!call->accumulate || call->out->elem == ELEM_BF16));
	struct cut cut = cut_of(call);
#pragma omp parallel
	{
		amx_begin();
#pragma omp for schedule(dynamic, cut.share)
		for (uint32_t task = 0; task < cut.stretches * cut.panels; task++)
			conv_task(call, &cut, task);
		amx_end();
	}
}

static const char *library(void)
{
	return "amx kernels";
}

/* fp32 products outside the convolutions (the time embedding) are avx512's: a CPU with tiles runs
 * it. */
static void matmul(const struct matmul *call)
{
	const char *reason;
	engine_avx512(&reason)->matmul(call);
}

static const struct engine amx = {
	.name = "amx",
	.form = {ELEM_BF16, SQUARE, SQUARE},
	.packed_bytes = packed_bytes,
	.pack = pack,
	.conv = conv,
	.weights_scratch_bytes = amx_weights_scratch_bytes,
	.conv_weights = amx_conv_weights,
	.dw_offset = amx_dw_offset,
	.matmul = matmul,
	.attention_scratch_bytes = amx_attention_scratch_bytes,
	.attention_forward = amx_attention_forward,
	.attention_backward = amx_attention_backward,
	.library = library,
};

/* Bits of CPUID leaf 7, EDX. */
#define CPUID_AMX_BF16 (1u << 22)
#define CPUID_AMX_TILE (1u << 24)
/* Linux: arch/x86/include/uapi/asm/prctl.h; feature 18 is the tiles' data. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static bool cpu_has_amx(void)
{
	unsigned eax, ebx, ecx, edx;
	const char *reason;
	if (!engine_avx512(&reason) || !__builtin_cpu_supports("avx512bf16"))
		return false;
	return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & CPUID_AMX_BF16) &&
		(edx & CPUID_AMX_TILE);
}

const struct engine *engine_amx(const char **ret_reason)
{
	static _Atomic int state; /* 0: not asked yet; 1: works; 2, 3: refused */
	static const char *const reasons[] = {"", "", "this CPU has no AMX with bf16",
		"this kernel or sandbox refuses AMX tiles"};
	int now = atomic_load(&state);
	if (now == 0) {
		now = 1;
		if (!cpu_has_amx())
			now = 2;
		else if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) < 0)
			now = 3;
		atomic_store(&state, now);
	}
	*ret_reason = reasons[now];
	return now == 1 ? &amx : NULL;
}
