/* The amx engine by weights: dw[tap] [o][i] = sum over p of dout[p][o] in[p + offset][i].
 *
 * The sum runs over positions, so A is dout transposed (never shifted) and B is the input with its
 * positions in pairs. A shift by an even offset moves whole lines of B; for odd offsets there is a
 * second copy whose pairs begin at odd positions. Both are made for a window of WINDOW positions at
 * a time, in parallel, and used while they are in the caches:
 *
 *     A: [o / 16][p / 32] tiles          B: [i / 16][parity] lines of [16 channels][2 positions]
 *
 * A task (an input tensor and its gradient, some squares of 32 outputs x 32 inputs) takes CHUNK
 * positions at a time. Of those, one parity of B for 32 inputs (20 KiB) stays in the first cache
 * while all outputs (16 KiB of A each) and all taps of that parity pass; for each tap 4 KiB of sums
 * are loaded and stored. Windows, chunks and taps come in a fixed order for each square, so bits do
 * not depend on threads.
 *
 *     operations: CHUNK / 32 x 64 cycles a tap       second cache: 8 KiB of sums in that time
 *
 * Raw gradients are squares [o / 32][i / 32] of four tiles. */
#include "base/panic.h"
#include "daemon/ops/amx.h"

#include <omp.h>

#define WINDOW 2048
#define CHUNK 256
/* Squares that a task takes: its sums stay in the second cache. */
#define GROUP_OUT 8
#define GROUP_IN 2

/* Lines (pairs of positions) of a block of 16 channels and one parity, with the halo. */
static uint32_t lines_of(const struct layout *layout)
{
	return (WINDOW + 2 * (layout->pitch + 2) + 2) / 2;
}

size_t amx_weights_scratch_bytes(
	const struct layout *layout, uint32_t in_width, uint32_t dout_width)
{
	return (size_t)in_width / 16 * 2 * lines_of(layout) * TILE_LINE * sizeof(bf16) +
		(size_t)dout_width * WINDOW * sizeof(bf16);
}

size_t amx_dw_offset(uint32_t in_width, uint32_t o, uint32_t i)
{
	size_t square = (size_t)(o / SQUARE) * (in_width / SQUARE) + i / SQUARE;
	return square * SQUARE * SQUARE + (o % SQUARE / 16 * 2 + i % SQUARE / 16) * 256 +
		o % 16 * 16;
}

/* Taps that read one input for one gradient. */
struct pairing {
	const struct tensor *in, *dout;
	const bf16 *b, *a;                        /* in the scratch */
	uint32_t taps[2][TAPS_MAX], tap_count[2]; /* by parity of the offset */
	uint32_t first_task;
};

/* A tensor arranged in the scratch. */
struct arranged {
	const struct tensor *tensor;
	bf16 *at;
	uint32_t first_task;
};

struct work {
	const struct conv_weights_call *call;
	const struct layout *layout;
	uint32_t lines;
	int32_t reach; /* positions before a window that B holds, even */
	struct arranged inputs[TAPS_MAX], douts[TAPS_MAX];
	uint32_t input_count, dout_count, arrange_tasks;
	struct pairing pairings[TAPS_MAX];
	uint32_t pairing_count, sum_tasks;
	uint32_t group; /* input squares of a task */
};

static struct arranged *find_or_add(
	struct arranged *list, uint32_t *count, const struct tensor *tensor)
{
	for (uint32_t i = 0; i < *count; i++)
		if (list[i].tensor == tensor)
			return &list[i];
	list[*count].tensor = tensor;
	return &list[(*count)++];
}

static void add_tap(struct work *work, uint32_t tap)
{
	const struct tensor *in = work->call->taps[tap].in, *dout = work->call->dout[tap];
	struct pairing *pairing = work->pairings;
	for (; pairing < work->pairings + work->pairing_count; pairing++)
		if (pairing->in == in && pairing->dout == dout)
			break;
	if (pairing == work->pairings + work->pairing_count) {
		*pairing = (struct pairing){.in = in, .dout = dout};
		work->pairing_count++;
	}
	uint32_t parity = work->call->taps[tap].offset & 1;
	pairing->taps[parity][pairing->tap_count[parity]++] = tap;
	find_or_add(work->inputs, &work->input_count, in);
	find_or_add(work->douts, &work->dout_count, dout);
}

/* Groups of GROUP_OUT x group squares: smaller ones where that would leave threads idle. */
static void cut_tasks(struct work *work)
{
	uint32_t threads = (uint32_t)omp_get_max_threads();
	for (work->group = GROUP_IN; work->group; work->group /= 2) {
		work->sum_tasks = 0;
		for (uint32_t i = 0; i < work->pairing_count; i++) {
			struct pairing *pairing = &work->pairings[i];
			uint32_t inputs = pairing->in->width / SQUARE;
			uint32_t outputs = pairing->dout->width / SQUARE;
			pairing->first_task = work->sum_tasks;
			work->sum_tasks += (inputs + work->group - 1) / work->group *
				((outputs + GROUP_OUT - 1) / GROUP_OUT);
		}
		if (work->sum_tasks >= 2 * threads || work->group == 1)
			return;
	}
}

static void work_init(struct work *work, const struct conv_weights_call *call)
{
	const struct layout *layout = call->dout[0]->layout;
	bf16 *scratch = call->scratch;
	*work = (struct work){.call = call,
		.layout = layout,
		.lines = lines_of(layout),
		.reach = (int32_t)(layout->pitch + 2) / 2 * 2};
	for (uint32_t i = 0; i < call->tap_count; i++)
		add_tap(work, i);
	for (uint32_t i = 0; i < work->input_count; i++) {
		struct arranged *input = &work->inputs[i];
		input->at = scratch;
		input->first_task = work->arrange_tasks;
		work->arrange_tasks += input->tensor->width / SQUARE;
		scratch += (size_t)input->tensor->width / 16 * 2 * work->lines * TILE_LINE;
	}
	for (uint32_t i = 0; i < work->dout_count; i++) {
		struct arranged *dout = &work->douts[i];
		dout->at = scratch;
		dout->first_task = work->arrange_tasks;
		work->arrange_tasks += dout->tensor->width / SQUARE;
		scratch += (size_t)dout->tensor->width * WINDOW;
	}
	for (uint32_t i = 0; i < work->pairing_count; i++) {
		struct pairing *pairing = &work->pairings[i];
		pairing->b = find_or_add(work->inputs, &work->input_count, pairing->in)->at;
		pairing->a = find_or_add(work->douts, &work->dout_count, pairing->dout)->at;
	}
	cut_tasks(work);
}

/* Where B of block `block` of 16 channels begins, for even or odd first positions. */
static size_t b_offset(const struct work *work, uint32_t block, uint32_t parity)
{
	return ((size_t)block * 2 + parity) * work->lines * TILE_LINE;
}

/* One block of 32 channels: line i of B holds the positions first - reach + parity + 2 i and the
 * next. Positions that the tensor does not have count as zero. */
static void arrange_input(const struct work *work, const struct arranged *input, uint32_t square,
	uint32_t first, uint32_t count)
{
	const struct layout *layout = work->layout;
	const bf16 *plane = (const bf16 *)input->tensor->data + square * input->tensor->plane;
	ptrdiff_t begin = -(ptrdiff_t)layout->head;
	ptrdiff_t end = (ptrdiff_t)layout->padded + layout->tail;
	ptrdiff_t p = (ptrdiff_t)first - work->reach;
	bf16 *even = input->at + b_offset(work, 2 * square, 0);
	size_t odd = (size_t)work->lines * TILE_LINE, next = 2 * odd;
	uint32_t lines = (count + 2 * (uint32_t)work->reach) / 2 + 1;
	__m512i zero = _mm512_setzero_si512(), here = zero;
	lines = lines < work->lines ? lines : work->lines;
	if (p >= begin && p < end)
		here = _mm512_loadu_si512(plane + p * SQUARE);
	for (uint32_t i = 0; i < lines; i++, p += 2, even += TILE_LINE) {
		__m512i one = zero, two = zero;
		if (p + 1 >= begin && p + 1 < end)
			one = _mm512_loadu_si512(plane + (p + 1) * SQUARE);
		if (p + 2 >= begin && p + 2 < end)
			two = _mm512_loadu_si512(plane + (p + 2) * SQUARE);
		_mm512_storeu_si512(even, pairs_low(here, one));
		_mm512_storeu_si512(even + next, pairs_high(here, one));
		_mm512_storeu_si512(even + odd, pairs_low(one, two));
		_mm512_storeu_si512(even + next + odd, pairs_high(one, two));
		here = two;
	}
}

/* One block of 32 channels of dout, transposed: whole squares (behind the last image it is zero).
 */
static void arrange_dout(
	const struct arranged *dout, uint32_t square, uint32_t first, uint32_t count)
{
	const bf16 *plane = (const bf16 *)dout->tensor->data + square * dout->tensor->plane;
	bf16 *left = dout->at + (size_t)square * SQUARE * WINDOW, *right = left + 16 * WINDOW;
	for (uint32_t p = 0; p < count; p += SQUARE) {
		transpose_square(plane + (size_t)(first + p) * SQUARE, SQUARE, left, right);
		left += TILE_ELEMS;
		right += TILE_ELEMS;
	}
}

static void arrange(const struct work *work, uint32_t task, uint32_t first, uint32_t count)
{
	for (uint32_t i = work->dout_count; i-- > 0;)
		if (task >= work->douts[i].first_task) {
			arrange_dout(
				&work->douts[i], task - work->douts[i].first_task, first, count);
			return;
		}
	for (uint32_t i = work->input_count; i-- > 0;)
		if (task >= work->inputs[i].first_task) {
			arrange_input(work, &work->inputs[i], task - work->inputs[i].first_task,
				first, count);
			return;
		}
}

/* The share of the next tap's sums that one product has time to fetch. */
static inline void prefetch_sums(const float *sums)
{
	for (int i = 0; i < SQUARE * SQUARE * SQUARE / CHUNK; i += 16)
		_mm_prefetch((const char *)(sums + i), _MM_HINT_T0);
}

/* The square (o, i) of all taps of one parity, over positions [chunk, end) of the window. */
static void sum_square(const struct work *work, const struct pairing *pairing, uint32_t parity,
	uint32_t o, uint32_t i, uint32_t chunk, uint32_t end, bool first)
{
	size_t square = ((size_t)o * (pairing->in->width / SQUARE) + i) * SQUARE * SQUARE;
	size_t next = 2 * (size_t)work->lines * TILE_LINE;
	const bf16 *a = pairing->a + (size_t)o * SQUARE * WINDOW;
	const bf16 *lines = pairing->b + b_offset(work, 2 * i, parity);
	uint32_t count = pairing->tap_count[parity];
	for (uint32_t t = 0; t < count; t++) {
		uint32_t tap = pairing->taps[parity][t];
		uint32_t later = pairing->taps[parity][t + 1 < count ? t + 1 : t];
		int32_t from = work->call->taps[tap].offset + work->reach;
		const bf16 *b = lines + (size_t)(from >> 1) * TILE_LINE;
		if (first)
			square_zero();
		else
			square_load(work->call->dw[tap] + square);
		for (uint32_t p = chunk; p < end; p += SQUARE) {
			prefetch_sums(work->call->dw[later] + square +
				(p - chunk) * SQUARE * SQUARE / CHUNK);
			square_add(a + p * 16, a + 16 * WINDOW + p * 16, 64, b + p * 16,
				b + next + p * 16);
		}
		square_store(work->call->dw[tap] + square);
	}
}

static void sum_task(const struct work *work, uint32_t task, uint32_t first, uint32_t count)
{
	uint32_t at = work->pairing_count - 1;
	while (task < work->pairings[at].first_task)
		at--;
	const struct pairing *pairing = &work->pairings[at];
	uint32_t inputs = pairing->in->width / SQUARE, outputs = pairing->dout->width / SQUARE;
	uint32_t across = (inputs + work->group - 1) / work->group;
	task -= pairing->first_task;
	uint32_t i0 = task % across * work->group, o0 = task / across * GROUP_OUT;
	uint32_t i_end = least(i0 + work->group, inputs);
	uint32_t o_end = least(o0 + GROUP_OUT, outputs);
	for (uint32_t chunk = 0; chunk < count; chunk += CHUNK) {
		uint32_t end = least(chunk + CHUNK, count);
		for (uint32_t i = i0; i < i_end; i++)
			for (uint32_t parity = 0; parity < 2; parity++)
				for (uint32_t o = o0; o < o_end; o++)
					sum_square(work, pairing, parity, o, i, chunk, end,
						first + chunk == 0);
	}
}

void amx_conv_weights(const struct conv_weights_call *call)
{
	struct work work;
	CHECK(call->tap_count >= 1 && call->tap_count <= TAPS_MAX);
	work_init(&work, call);
	uint32_t end = call->n * work.layout->image_stride;
#pragma omp parallel
	{
		amx_begin();
		for (uint32_t first = 0; first < end; first += WINDOW) {
			uint32_t left = (end - first + SQUARE - 1) / SQUARE * SQUARE;
			uint32_t count = left < WINDOW ? left : WINDOW;
#pragma omp for schedule(dynamic)
			for (uint32_t task = 0; task < work.arrange_tasks; task++)
				arrange(&work, task, first, count);
#pragma omp for schedule(dynamic)
			for (uint32_t task = 0; task < work.sum_tasks; task++)
				sum_task(&work, task, first, count);
		}
		amx_end();
	}
}
