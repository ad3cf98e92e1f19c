/* Attention of the amx engine, forward beside backward. A unit is what one task takes: one head of
 * an image, or, when heads are narrower than a square, the 32 channels that several heads share:
 * each head then runs with the other heads' columns masked to zero, and the results add up to the
 * concatenation.
 *
 *     S = Q K^T, P = softmax(S / sqrt(d)), O = P V              32 queries at a time
 *     dP = dO V^T, dS = P (dP - rowsum(P dP)) / sqrt(d), dQ = dS K
 *     dV = P^T dO, dK = dS^T Q                                  GROUP queries at a time
 *
 * Only P and dS of one group exist, in bf16. Scores, softmax and sums are fp32.
 *
 * Letters: T tokens, rounded up to squares; w squares of a unit's channels. */
#include "daemon/ops/attention.h"

#include "base/panic.h"
#include "daemon/ops/amx.h"
#include "daemon/ops/lanes.h"

#include <math.h>
#include <omp.h>

#define GROUP 256
#define SUMS_ELEMS (SQUARE * SQUARE) /* floats of a stored square */

/* The sizes of one unit. */
struct shape {
	uint32_t tokens, token_squares; /* T / 32 */
	uint32_t group_squares;         /* of a group's queries */
	uint32_t squares;               /* w */
	uint32_t heads;                 /* of a unit */
	float scale;
};

/* One thread's scratch. _columns: packed for sums over channels, _rows: over tokens. */
struct room {
	float *scores, *dscores;                       /* [32][T] */
	bf16 *p, *ds;                                  /* [32][T] */
	bf16 *p_turned, *ds_turned;                    /* [T / 16][group / 32] tiles */
	bf16 *k_columns, *v_columns;                   /* [T / 32][w] squares */
	bf16 *k_rows, *v_rows;                         /* [w][T / 32] squares */
	bf16 *q_rows, *dout_rows;                      /* [w][group / 32] squares */
	float *out_sums, *dq_sums, *dk_sums, *dv_sums; /* [tokens / 32][w] squares */
};

static struct shape shape_of(const struct attention *attention)
{
	uint32_t width = attention->head_dim > SQUARE ? attention->head_dim : SQUARE;
	uint32_t squares = (attention->tokens + SQUARE - 1) / SQUARE;
	CHECK(width % attention->head_dim == 0 && width % SQUARE == 0);
	return (struct shape){
		.tokens = attention->tokens,
		.token_squares = squares,
		.group_squares = squares < GROUP / SQUARE ? squares : GROUP / SQUARE,
		.squares = width / SQUARE,
		.heads = width / attention->head_dim,
		.scale = 1.0f / sqrtf((float)attention->head_dim),
	};
}

/* Takes bytes from *at; with a NULL base only counts. */
static void *take(uint8_t *base, size_t *at, size_t bytes)
{
	void *taken = base ? base + *at : NULL;
	*at += (bytes + 63) / 64 * 64;
	return taken;
}

/* Lays out one thread's scratch; returns its bytes. */
static size_t room_init(struct room *room, const struct shape *shape, bool training, uint8_t *base)
{
	size_t at = 0, t = shape->token_squares * SQUARE, w = shape->squares;
	size_t square = SQUARE_ELEMS * sizeof(bf16), sums = SUMS_ELEMS * sizeof(float);
	size_t all = shape->token_squares * w, group = shape->group_squares * w;
	*room = (struct room){0};
	room->scores = take(base, &at, SQUARE * t * sizeof(float));
	room->p = take(base, &at, SQUARE * t * sizeof(bf16));
	room->k_columns = take(base, &at, all * square);
	if (!training) {
		room->v_rows = take(base, &at, all * square);
		room->out_sums = take(base, &at, group * sums);
		return at;
	}
	room->dscores = take(base, &at, SQUARE * t * sizeof(float));
	room->ds = take(base, &at, SQUARE * t * sizeof(bf16));
	size_t turned = shape->token_squares * shape->group_squares * square;
	room->p_turned = take(base, &at, turned);
	room->ds_turned = take(base, &at, turned);
	room->k_rows = take(base, &at, all * square);
	room->v_columns = take(base, &at, all * square);
	room->q_rows = take(base, &at, group * square);
	room->dout_rows = take(base, &at, group * square);
	room->dq_sums = take(base, &at, group * sums);
	room->dk_sums = take(base, &at, all * sums);
	room->dv_sums = take(base, &at, all * sums);
	return at;
}

size_t amx_attention_scratch_bytes(const struct attention *attention, bool training)
{
	struct shape shape = shape_of(attention);
	struct room room;
	return attention->thread_count * room_init(&room, &shape, training, NULL);
}

static struct room thread_room(
	const struct attention *attention, const struct shape *shape, bool training)
{
	struct room room;
	size_t bytes = room_init(&room, shape, training, NULL);
	room_init(&room, shape, training,
		(uint8_t *)attention->scratch + (size_t)omp_get_thread_num() * bytes);
	return room;
}

/* A tensor as one task sees it: the unit's first square of channels at token 0 of the image. */
struct slice {
	bf16 *at;
	size_t plane;
};

static struct slice slice_of(
	const struct tensor *tensor, const struct shape *shape, uint32_t image, uint32_t unit)
{
	size_t plane = tensor->plane;
	return (struct slice){(bf16 *)tensor->data + unit * shape->squares * plane +
			(size_t)image * shape->tokens * SQUARE,
		plane};
}

static const bf16 *slice_rows(struct slice slice, uint32_t square, uint32_t token)
{
	return slice.at + square * slice.plane + (size_t)token * SQUARE;
}

/* How many of a square's 32 tokens exist. */
static uint32_t rows_left(const struct shape *shape, uint32_t token)
{
	uint32_t left = shape->tokens > token ? shape->tokens - token : 0;
	return left < SQUARE ? left : SQUARE;
}

/* The columns of a head inside a square. */
static __mmask32 head_mask(const struct shape *shape, uint32_t head)
{
	uint32_t d = SQUARE / shape->heads;
	if (shape->heads == 1)
		return ALL_COLUMNS;
	return ((1u << d) - 1) << (head * d);
}

static void pack_slice_columns(
	const struct shape *shape, struct slice slice, __mmask32 mask, bf16 *to)
{
	for (uint32_t t = 0; t < shape->token_squares * SQUARE; t += SQUARE)
		for (uint32_t square = 0; square < shape->squares; square++, to += SQUARE_ELEMS) {
			const bf16 *rows = slice_rows(slice, square, t);
			uint32_t left = rows_left(shape, t);
			pack_columns(rows, SQUARE, left, mask, to);
			pack_columns(rows + 16 * SQUARE, SQUARE, left > 16 ? left - 16 : 0, mask,
				to + TILE_ELEMS);
		}
}

/* Tokens first .. first + 32 squares - 1. */
static void pack_slice_rows(const struct shape *shape, struct slice slice, uint32_t first,
	uint32_t squares, __mmask32 mask, bf16 *to)
{
	for (uint32_t square = 0; square < shape->squares; square++)
		for (uint32_t i = 0; i < squares; i++, to += SQUARE_ELEMS) {
			uint32_t t = first + i * SQUARE;
			pack_rows(slice_rows(slice, square, t), SQUARE, rows_left(shape, t), mask,
				to, to + TILE_ELEMS);
		}
}

/* scores [32][T] = 32 rows of a slice times packed columns. */
static void scores_of(const struct shape *shape, struct slice slice, uint32_t token,
	const bf16 *columns, float *scores)
{
	size_t step = shape->token_squares * SQUARE;
	for (uint32_t t = 0; t < shape->token_squares; t++, scores += SQUARE) {
		square_zero();
		for (uint32_t square = 0; square < shape->squares; square++) {
			const bf16 *rows = slice_rows(slice, square, token);
			square_add(rows, rows + TILE_ELEMS, 64, columns, columns + TILE_ELEMS);
			columns += SQUARE_ELEMS;
		}
		_tile_stored(0, scores, step * sizeof(float));
		_tile_stored(1, scores + 16, step * sizeof(float));
		_tile_stored(2, scores + 16 * step, step * sizeof(float));
		_tile_stored(3, scores + 16 * step + 16, step * sizeof(float));
	}
}

/* The lanes of 16 tokens that exist. */
static __mmask16 tokens_mask(const struct shape *shape, uint32_t token)
{
	uint32_t left = shape->tokens > token ? shape->tokens - token : 0;
	return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* scores becomes the probabilities, zero behind the last token; p the same in bf16. */
static void softmax_row(const struct shape *shape, float *scores, bf16 *p)
{
	uint32_t count = shape->token_squares * SQUARE;
	const __m512 lowest = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(shape->scale);
	__m512 max = lowest, sum = _mm512_setzero_ps();
	for (uint32_t i = 0; i < count; i += 16)
		max = _mm512_max_ps(
			max, _mm512_mask_loadu_ps(lowest, tokens_mask(shape, i), scores + i));
	max = _mm512_set1_ps(_mm512_reduce_max_ps(max));
	for (uint32_t i = 0; i < count; i += 16) {
		__m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + i), max);
		__m512 e = _mm512_maskz_mov_ps(
			tokens_mask(shape, i), lanes_exp(_mm512_mul_ps(x, scale)));
		sum = _mm512_add_ps(sum, e);
		_mm512_storeu_ps(scores + i, e);
	}
	__m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
	for (uint32_t i = 0; i < count; i += SQUARE) {
		__m512 left = _mm512_mul_ps(_mm512_loadu_ps(scores + i), share);
		__m512 right = _mm512_mul_ps(_mm512_loadu_ps(scores + i + 16), share);
		_mm512_storeu_ps(scores + i, left);
		_mm512_storeu_ps(scores + i + 16, right);
		_mm512_storeu_si512(p + i, round_line(left, right));
	}
}

/* ds = p (dp - sum of p dp) scale, in bf16. */
static void softmax_backward_row(
	const struct shape *shape, const float *p, const float *dp, bf16 *ds)
{
	uint32_t count = shape->token_squares * SQUARE;
	__m512 sum = _mm512_setzero_ps(), scale = _mm512_set1_ps(shape->scale);
	for (uint32_t i = 0; i < count; i += 16)
		sum = _mm512_fmadd_ps(_mm512_loadu_ps(p + i), _mm512_loadu_ps(dp + i), sum);
	sum = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
	for (uint32_t i = 0; i < count; i += SQUARE) {
		__m512 half[2];
		for (int j = 0; j < 2; j++) {
			__m512 d = _mm512_sub_ps(_mm512_loadu_ps(dp + i + 16 * j), sum);
			half[j] = _mm512_mul_ps(
				_mm512_mul_ps(_mm512_loadu_ps(p + i + 16 * j), d), scale);
		}
		_mm512_storeu_si512(ds + i, round_line(half[0], half[1]));
	}
}

/* P of 32 queries, in scores (fp32) and p; rows of queries that do not exist are zero. */
static void probabilities(
	const struct shape *shape, const struct room *room, struct slice q, uint32_t token)
{
	size_t step = shape->token_squares * SQUARE;
	uint32_t rows = rows_left(shape, token);
	scores_of(shape, q, token, room->k_columns, room->scores);
	for (uint32_t i = 0; i < rows; i++)
		softmax_row(shape, room->scores + i * step, room->p + i * step);
	memset(room->scores + rows * step, 0, (SQUARE - rows) * step * sizeof(float));
	memset(room->p + rows * step, 0, (SQUARE - rows) * step * sizeof(bf16));
}

/* sums [w squares] (+)= 32 rows of [32][T] bf16 times packed rows [w][T / 32]. */
static void rows_times(
	const struct shape *shape, const bf16 *rows, const bf16 *packed, bool first, float *sums)
{
	size_t step = shape->token_squares * SQUARE;
	for (uint32_t square = 0; square < shape->squares; square++, sums += SUMS_ELEMS) {
		if (first)
			square_zero();
		else
			square_load(sums);
		for (uint32_t t = 0; t < shape->token_squares; t++, packed += SQUARE_ELEMS)
			square_add(rows + t * SQUARE, rows + 16 * step + t * SQUARE,
				step * sizeof(bf16), packed, packed + TILE_ELEMS);
		square_store(sums);
	}
}

/* sums [T / 32][w] (+)= turned tiles times packed rows [w][group]. */
static void turned_times(const struct shape *shape, const bf16 *turned, const bf16 *packed,
	uint32_t group, bool first, float *sums)
{
	for (uint32_t t = 0; t < shape->token_squares; t++) {
		const bf16 *top = turned + (size_t)2 * t * shape->group_squares * TILE_ELEMS;
		const bf16 *bottom = top + shape->group_squares * TILE_ELEMS;
		for (uint32_t square = 0; square < shape->squares; square++, sums += SUMS_ELEMS) {
			const bf16 *b = packed + (size_t)square * group * SQUARE_ELEMS;
			if (first)
				square_zero();
			else
				square_load(sums);
			for (uint32_t i = 0; i < group; i++, b += SQUARE_ELEMS)
				square_add(top + i * TILE_ELEMS, bottom + i * TILE_ELEMS, 64, b,
					b + TILE_ELEMS);
			square_store(sums);
		}
	}
}

/* Rounds sums [squares of tokens][w] into a slice, from `first` on. */
static void store_sums(const struct shape *shape, const float *sums, struct slice slice,
	uint32_t first, uint32_t token_squares)
{
	for (uint32_t t = 0; t < token_squares; t++)
		for (uint32_t square = 0; square < shape->squares; square++, sums += SUMS_ELEMS) {
			uint32_t token = first + t * SQUARE, rows = rows_left(shape, token);
			bf16 *to = slice.at + square * slice.plane + (size_t)token * SQUARE;
			for (uint32_t r = 0; r < rows; r++, to += SQUARE) {
				const float *sum = square_row(sums, r);
				_mm512_storeu_si512(to,
					round_line(_mm512_load_ps(sum), _mm512_load_ps(sum + 256)));
			}
		}
}

/* The squares of a group of queries. */
static uint32_t group_size(const struct shape *shape, uint32_t first)
{
	uint32_t left = shape->token_squares - first;
	return left < shape->group_squares ? left : shape->group_squares;
}

/* O of one group of queries (squares from `first` on). */
static void forward_group(const struct shape *shape, const struct room *room, uint32_t first,
	struct slice q, struct slice k, struct slice v, struct slice o)
{
	uint32_t group = group_size(shape, first);
	for (uint32_t head = 0; head < shape->heads; head++) {
		__mmask32 mask = head_mask(shape, head);
		pack_slice_columns(shape, k, mask, room->k_columns);
		pack_slice_rows(shape, v, 0, shape->token_squares, mask, room->v_rows);
		for (uint32_t i = 0; i < group; i++) {
			probabilities(shape, room, q, (first + i) * SQUARE);
			rows_times(shape, room->p, room->v_rows, head == 0,
				room->out_sums + (size_t)i * shape->squares * SUMS_ELEMS);
		}
	}
	store_sums(shape, room->out_sums, o, first * SQUARE, group);
}

void amx_attention_forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o)
{
	struct shape shape = shape_of(attention);
	uint32_t units = attention->heads / shape.heads;
	uint32_t groups = (shape.token_squares + shape.group_squares - 1) / shape.group_squares;
#pragma omp parallel num_threads(attention_threads(attention))
	{
		struct room room = thread_room(attention, &shape, false);
		amx_begin();
#pragma omp for collapse(3) schedule(dynamic)
		for (uint32_t image = 0; image < n; image++)
			for (uint32_t unit = 0; unit < units; unit++)
				for (uint32_t group = 0; group < groups; group++)
					forward_group(&shape, &room, group * shape.group_squares,
						slice_of(q, &shape, image, unit),
						slice_of(k, &shape, image, unit),
						slice_of(v, &shape, image, unit),
						slice_of(o, &shape, image, unit));
		amx_end();
	}
}

/* The slices of one backward task. */
struct slices {
	struct slice q, k, v, dout, dq, dk, dv;
};

/* P and dS of 32 queries: dQ at once, P and dS turned for the sums over queries. */
static void backward_queries(const struct shape *shape, const struct room *room,
	const struct slices *at, uint32_t first, uint32_t i, bool first_head)
{
	size_t step = shape->token_squares * SQUARE;
	uint32_t token = (first + i) * SQUARE;
	probabilities(shape, room, at->q, token);
	scores_of(shape, at->dout, token, room->v_columns, room->dscores);
	uint32_t rows = rows_left(shape, token);
	for (uint32_t r = 0; r < rows; r++)
		softmax_backward_row(shape, room->scores + r * step, room->dscores + r * step,
			room->ds + r * step);
	memset(room->ds + rows * step, 0, (SQUARE - rows) * step * sizeof(bf16));
	rows_times(shape, room->ds, room->k_rows, first_head,
		room->dq_sums + (size_t)i * shape->squares * SUMS_ELEMS);
	for (uint32_t t = 0; t < shape->token_squares; t++) {
		size_t tile = ((size_t)2 * t * shape->group_squares + i) * TILE_ELEMS;
		size_t next = tile + shape->group_squares * TILE_ELEMS;
		transpose_square(
			room->p + t * SQUARE, step, room->p_turned + tile, room->p_turned + next);
		transpose_square(room->ds + t * SQUARE, step, room->ds_turned + tile,
			room->ds_turned + next);
	}
}

static void backward_head(const struct shape *shape, const struct room *room,
	const struct slices *at, uint32_t first, uint32_t head)
{
	uint32_t group = group_size(shape, first);
	__mmask32 mask = head_mask(shape, head);
	bool sums_begin = first == 0 && head == 0;
	pack_slice_columns(shape, at->k, mask, room->k_columns);
	pack_slice_columns(shape, at->v, mask, room->v_columns);
	pack_slice_rows(shape, at->k, 0, shape->token_squares, mask, room->k_rows);
	pack_slice_rows(shape, at->q, first * SQUARE, group, mask, room->q_rows);
	pack_slice_rows(shape, at->dout, first * SQUARE, group, mask, room->dout_rows);
	for (uint32_t i = 0; i < group; i++)
		backward_queries(shape, room, at, first, i, head == 0);
	turned_times(shape, room->p_turned, room->dout_rows, group, sums_begin, room->dv_sums);
	turned_times(shape, room->ds_turned, room->q_rows, group, sums_begin, room->dk_sums);
}

static void backward_unit(
	const struct shape *shape, const struct room *room, const struct slices *at)
{
	for (uint32_t first = 0; first < shape->token_squares; first += shape->group_squares) {
		for (uint32_t head = 0; head < shape->heads; head++)
			backward_head(shape, room, at, first, head);
		store_sums(shape, room->dq_sums, at->dq, first * SQUARE, group_size(shape, first));
	}
	store_sums(shape, room->dk_sums, at->dk, 0, shape->token_squares);
	store_sums(shape, room->dv_sums, at->dv, 0, shape->token_squares);
}

void amx_attention_backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3])
{
	struct shape shape = shape_of(attention);
	uint32_t units = attention->heads / shape.heads;
#pragma omp parallel num_threads(attention_threads(attention))
	{
		struct room room = thread_room(attention, &shape, true);
		amx_begin();
#pragma omp for collapse(2) schedule(dynamic)
		for (uint32_t image = 0; image < n; image++)
			for (uint32_t unit = 0; unit < units; unit++) {
				struct slices at = {
					slice_of(qkv[0], &shape, image, unit),
					slice_of(qkv[1], &shape, image, unit),
					slice_of(qkv[2], &shape, image, unit),
					slice_of(dout, &shape, image, unit),
					slice_of(dqkv[0], &shape, image, unit),
					slice_of(dqkv[1], &shape, image, unit),
					slice_of(dqkv[2], &shape, image, unit),
				};
				backward_unit(&shape, &room, &at);
			}
		amx_end();
	}
}
