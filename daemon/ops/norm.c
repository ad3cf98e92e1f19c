/* GroupNorm with SiLU, forward beside backward. Work is split by (image, part), a part being whole
 * groups that fill whole strips of 32 columns, so one thread takes sums and applies them while the
 * data is cached. A strip is what the loops over pixels see: one or two vectors of lanes, whose
 * scale and shift stay in registers for a whole image.
 *
 * Columns are those of the result, channels those of the parameters: between the spans of a
 * concatenation there may be columns without a channel, whose scale and shift are zero. */
#include "daemon/ops/norm.h"

#include "base/panic.h"
#include "daemon/ops/lanes.h"

#include <math.h>
#include <string.h>

#define PART_COLUMNS_MIN 64
#define COLUMNS_MAX (2 * CHANNELS_MAX + 2 * STRIP)

/* The columns [first, end) of one span that belong to a part. */
struct run {
	uint32_t span;
	uint32_t first, end; /* inside the span */
	uint32_t column;     /* of `first` in the result */
};

/* Columns before a span in the result, and channels. */
static uint32_t columns_before(const struct group_norm *norm, uint32_t span)
{
	return span ? norm->spans[0].width : 0;
}

static uint32_t channels_before(const struct group_norm *norm, uint32_t span)
{
	return span ? norm->spans[0].channels : 0;
}

static uint32_t column_of(const struct group_norm *norm, uint32_t channel)
{
	uint32_t span = channel >= norm->spans[0].channels;
	return channel - channels_before(norm, span) + columns_before(norm, span);
}

/* Whether a part may end before this channel. */
static bool strip_begins(const struct group_norm *norm, uint32_t channel)
{
	if (channel == norm->channels || channel == norm->spans[0].channels)
		return true;
	uint32_t span = channel > norm->spans[0].channels;
	return (channel - channels_before(norm, span)) % STRIP == 0;
}

static void cut_parts(struct group_norm *norm)
{
	uint32_t per_group = norm->channels / norm->groups, first = 0;
	uint32_t least = norm->channels / NORM_PARTS_MAX;
	least = least > PART_COLUMNS_MIN ? least : PART_COLUMNS_MIN;
	for (uint32_t group = 1; group <= norm->groups; group++) {
		bool whole = strip_begins(norm, group * per_group) &&
			(group - first) * per_group >= least &&
			norm->part_count + 1 < NORM_PARTS_MAX;
		if (!whole && group < norm->groups)
			continue;
		norm->part_groups[norm->part_count++] = first;
		first = group;
	}
	norm->part_groups[norm->part_count] = norm->groups;
}

void group_norm_init(struct group_norm *norm, const struct channel_span *spans, uint32_t span_count,
	uint32_t groups, float eps, bool silu)
{
	CHECK(span_count >= 1 && span_count <= SPANS_MAX);
	*norm = (struct group_norm){
		.groups = groups,
		.span_count = span_count,
		.eps = eps,
		.silu = silu,
	};
	for (uint32_t i = 0; i < span_count; i++) {
		norm->spans[i] = spans[i];
		norm->channels += spans[i].channels;
		norm->width += spans[i].width;
	}
	CHECK(groups && norm->channels % groups == 0);
	CHECK(norm->width <= COLUMNS_MAX);
	cut_parts(norm);
}

enum { STATE_MEAN, STATE_RSTD, STATE_SCALE, STATE_SHIFT, STATE_COUNT };
enum { SUM_DOUT, SUM_DOUT_XHAT, SUM_COUNT };

size_t group_norm_state_elems(const struct group_norm *norm, uint32_t batch)
{
	return (size_t)STATE_COUNT * batch * norm->width;
}

size_t group_norm_sums_elems(const struct group_norm *norm, uint32_t batch)
{
	return (size_t)SUM_COUNT * batch * norm->channels;
}

/* Where the values of an image begin: [batch][kind][width]. */
static size_t state_at(const struct group_norm *norm, uint32_t image)
{
	return (size_t)image * STATE_COUNT * norm->width;
}

static size_t sums_at(const struct group_norm *norm, uint32_t image, uint32_t kind)
{
	return ((size_t)image * SUM_COUNT + kind) * norm->channels;
}

static uint32_t runs_of(const struct group_norm *norm, uint32_t part, struct run runs[SPANS_MAX])
{
	uint32_t per_group = norm->channels / norm->groups, count = 0;
	uint32_t from = norm->part_groups[part] * per_group;
	uint32_t to = norm->part_groups[part + 1] * per_group;
	for (uint32_t i = 0; i < norm->span_count; i++) {
		uint32_t begin = channels_before(norm, i), end = begin + norm->spans[i].channels;
		if (from >= end || to <= begin)
			continue;
		struct run run = {
			.span = i,
			.first = from > begin ? from - begin : 0,
			.end = to >= end ? norm->spans[i].width : to - begin,
		};
		run.column = columns_before(norm, i) + run.first;
		runs[count++] = run;
	}
	return count;
}

/* One or two vectors of a strip; a constant in every loop below. */
static unsigned vectors_of(const struct run *run, uint32_t first)
{
	return run->end - first >= STRIP ? 2 : 1;
}

/* The sums of x - pivot and its square over an image. */
LANES_INLINE void strip_sums(const struct tensor *src, uint32_t first, uint32_t image,
	unsigned vectors, enum elem elem, double *sum, double *square_sum)
{
	const struct layout *layout = src->layout;
	size_t step = tensor_step(src), half = LANES * elem_bytes(elem);
	const uint8_t *at = tensor_at(src, first, (ptrdiff_t)layout_row(layout, image, 0));
	lanes pivot[2];
	for (unsigned v = 0; v < vectors; v++)
		pivot[v] = lanes_load(at + v * half, elem);
	for (uint32_t y = 0; y < layout->height; y++) {
		lanes row_sum[2] = {lanes_of(0.0f), lanes_of(0.0f)};
		lanes row_square[2] = {lanes_of(0.0f), lanes_of(0.0f)};
		const uint8_t *in = at + y * layout->pitch * step;
		for (uint32_t x = 0; x < layout->width; x++, in += step)
			for (unsigned v = 0; v < vectors; v++) {
				lanes d = lanes_sub(lanes_load(in + v * half, elem), pivot[v]);
				row_sum[v] = lanes_add(row_sum[v], d);
				row_square[v] = lanes_fma(d, d, row_square[v]);
			}
		for (unsigned v = 0; v < vectors; v++) {
			lanes_add_to(sum + v * LANES, row_sum[v]);
			lanes_add_to(square_sum + v * LANES, row_square[v]);
		}
	}
}

/* mean, and the sum of squares about it, of each column of a strip. */
static void strip_moments(const struct tensor *src, uint32_t first, uint32_t image,
	unsigned vectors, double *mean, double *square)
{
	const struct layout *layout = src->layout;
	double sum[STRIP] = {0}, square_sum[STRIP] = {0};
	double pixels = (double)layout->height * layout->width;
	float pivot[STRIP] = {0};
	if (src->elem == ELEM_BF16)
		strip_sums(src, first, image, 2, ELEM_BF16, sum, square_sum);
	else if (vectors == 2)
		strip_sums(src, first, image, 2, ELEM_F32, sum, square_sum);
	else
		strip_sums(src, first, image, 1, ELEM_F32, sum, square_sum);
	const uint8_t *at = tensor_at(src, first, (ptrdiff_t)layout_row(layout, image, 0));
	for (unsigned v = 0; v < vectors; v++)
		lanes_store(pivot + v * LANES,
			lanes_load(at + v * LANES * elem_bytes(src->elem), src->elem), ELEM_F32);
	for (uint32_t c = 0; c < vectors * LANES; c++) {
		mean[c] = (double)pivot[c] + sum[c] / pixels;
		square[c] = square_sum[c] - sum[c] * sum[c] / pixels;
	}
}

/* Scale and shift of one group from the moments of its columns. */
static void finish_group(const struct group_norm *norm, double pixels, uint32_t group,
	const double *means, const double *squares, uint32_t base, float *state)
{
	uint32_t per_group = norm->channels / norm->groups, first = group * per_group;
	double mean = 0.0, square = 0.0;
	for (uint32_t c = first; c < first + per_group; c++)
		mean += means[column_of(norm, c) - base];
	mean /= per_group;
	for (uint32_t c = first; c < first + per_group; c++) {
		double d = means[column_of(norm, c) - base] - mean;
		square += squares[column_of(norm, c) - base] + pixels * d * d;
	}
	double variance = square / (pixels * per_group);
	if (variance < 0.0) /* rounding; a NaN stays one */
		variance = 0.0;
	double rstd = 1.0 / sqrt(variance + (double)norm->eps);
	for (uint32_t c = first; c < first + per_group; c++) {
		uint32_t column = column_of(norm, c);
		double scale = rstd * (double)norm->weight[c];
		state[STATE_MEAN * norm->width + column] = (float)mean;
		state[STATE_RSTD * norm->width + column] = (float)rstd;
		state[STATE_SCALE * norm->width + column] = (float)scale;
		state[STATE_SHIFT * norm->width + column] = (float)((double)norm->bias[c] -
			mean * scale);
	}
}

static void part_statistics(const struct group_norm *norm, uint32_t part, uint32_t image,
	const struct tensor *const *sources, float *state)
{
	double means[COLUMNS_MAX], squares[COLUMNS_MAX];
	struct run runs[SPANS_MAX];
	uint32_t count = runs_of(norm, part, runs), base = runs[0].column;
	for (uint32_t i = 0; i < count; i++) {
		const struct run *run = &runs[i];
		for (int kind = 0; kind < STATE_COUNT; kind++)
			memset(state + kind * norm->width + run->column, 0,
				(run->end - run->first) * sizeof(float));
		for (uint32_t c = run->first; c < run->end; c += STRIP) {
			uint32_t at = run->column + (c - run->first) - base;
			strip_moments(sources[run->span], c, image, vectors_of(run, c), means + at,
				squares + at);
		}
	}
	const struct layout *layout = sources[0]->layout;
	double pixels = (double)layout->height * layout->width;
	for (uint32_t group = norm->part_groups[part]; group < norm->part_groups[part + 1]; group++)
		finish_group(norm, pixels, group, means, squares, base, state);
}

/* Zeroes the pads behind the rows of one image in one strip. */
static void zero_pads(const struct tensor *tensor, uint32_t column, uint32_t image, size_t bytes)
{
	const struct layout *layout = tensor->layout;
	for (uint32_t y = 0; !layout->dense && y < layout->height; y++) {
		uint32_t pads = y + 1 == layout->height ? 1 + layout->pitch : 1;
		ptrdiff_t at = (ptrdiff_t)layout_row(layout, image, y) + layout->width;
		for (uint32_t i = 0; i < pads; i++)
			memset(tensor_at(tensor, column, at + i), 0, bytes);
	}
}

/* Strip `first` of a source, strip `column` of the result. */
struct apply {
	const struct tensor *src, *out;
	uint32_t first, column, image;
	const float *scale, *shift;
};

LANES_INLINE void apply_strip(
	const struct apply *apply, unsigned vectors, enum elem elem, bool silu)
{
	const struct layout *from = apply->src->layout, *to = apply->out->layout;
	size_t half = LANES * elem_bytes(elem);
	size_t in_step = tensor_step(apply->src), out_step = tensor_step(apply->out);
	lanes scale[2], shift[2];
	for (unsigned v = 0; v < vectors; v++) {
		scale[v] = lanes_load(apply->scale + v * LANES, ELEM_F32);
		shift[v] = lanes_load(apply->shift + v * LANES, ELEM_F32);
	}
	for (uint32_t y = 0; y < from->height; y++) {
		const uint8_t *in = tensor_at(
			apply->src, apply->first, (ptrdiff_t)layout_row(from, apply->image, y));
		uint8_t *out = tensor_at(
			apply->out, apply->column, (ptrdiff_t)layout_row(to, apply->image, y));
		for (uint32_t x = 0; x < from->width; x++, in += in_step, out += out_step)
			for (unsigned v = 0; v < vectors; v++) {
				lanes u = lanes_fma(
					lanes_load(in + v * half, elem), scale[v], shift[v]);
				if (silu)
					u = lanes_mul(u, lanes_sigmoid_for(u, elem));
				lanes_store(out + v * half, u, elem);
			}
	}
	zero_pads(apply->out, apply->column, apply->image, vectors * half);
}

static void apply_strip_of(const struct apply *apply, unsigned vectors, bool silu)
{
	if (apply->src->elem == ELEM_BF16 && silu)
		apply_strip(apply, 2, ELEM_BF16, true);
	else if (apply->src->elem == ELEM_BF16)
		apply_strip(apply, 2, ELEM_BF16, false);
	else if (vectors == 2 && silu)
		apply_strip(apply, 2, ELEM_F32, true);
	else if (vectors == 2)
		apply_strip(apply, 2, ELEM_F32, false);
	else
		apply_strip(apply, 1, ELEM_F32, silu);
}

static void part_apply(const struct group_norm *norm, uint32_t part, uint32_t image,
	const struct tensor *const *sources, const float *state, const struct tensor *out)
{
	struct run runs[SPANS_MAX];
	uint32_t count = runs_of(norm, part, runs);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t c = runs[i].first; c < runs[i].end; c += STRIP) {
			uint32_t column = runs[i].column + (c - runs[i].first);
			struct apply apply = {
				.src = sources[runs[i].span],
				.out = out,
				.first = c,
				.column = column,
				.image = image,
				.scale = state + STATE_SCALE * norm->width + column,
				.shift = state + STATE_SHIFT * norm->width + column,
			};
			apply_strip_of(&apply, vectors_of(&runs[i], c), norm->silu);
		}
}

void group_norm_forward(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, float *state, const struct tensor *out)
{
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t part = 0; part < norm->part_count; part++) {
			float *image_state = state + state_at(norm, image);
			part_statistics(norm, part, image, sources, image_state);
			part_apply(norm, part, image, sources, image_state, out);
		}
	tensor_zero_edges(out, n);
}

void group_norm_apply(const struct group_norm *norm, uint32_t n,
	const struct tensor *const *sources, const float *state, const struct tensor *out)
{
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t part = 0; part < norm->part_count; part++)
			part_apply(norm, part, image, sources, state + state_at(norm, image), out);
	tensor_zero_edges(out, n);
}

/* One strip of backward: the gradient of silu, if any, sits in dout after the first pass. */
struct back {
	const struct tensor *src, *dout, *dsource, *residual;
	uint32_t first, column, image;
	const float *mean, *scale, *shift; /* of the state */
	const float *slope, *level;
	bool accumulate;
};

/* sum of dv, and of dv (x - mean), where v = x scale + shift and dv = dout silu'(v). */
LANES_INLINE void back_sums(const struct back *back, unsigned vectors, enum elem elem, bool silu,
	double *sum, double *centred_sum)
{
	const struct layout *from = back->src->layout, *to = back->dout->layout;
	size_t half = LANES * elem_bytes(elem);
	size_t in_step = tensor_step(back->src), dout_step = tensor_step(back->dout);
	lanes mean[2], scale[2], shift[2], one = lanes_of(1.0f);
	for (unsigned v = 0; v < vectors; v++) {
		mean[v] = lanes_load(back->mean + v * LANES, ELEM_F32);
		scale[v] = lanes_load(back->scale + v * LANES, ELEM_F32);
		shift[v] = lanes_load(back->shift + v * LANES, ELEM_F32);
	}
	for (uint32_t y = 0; y < from->height; y++) {
		lanes row_sum[2] = {lanes_of(0.0f), lanes_of(0.0f)};
		lanes row_centred[2] = {lanes_of(0.0f), lanes_of(0.0f)};
		const uint8_t *in = tensor_at(
			back->src, back->first, (ptrdiff_t)layout_row(from, back->image, y));
		uint8_t *dout = tensor_at(
			back->dout, back->column, (ptrdiff_t)layout_row(to, back->image, y));
		for (uint32_t x = 0; x < from->width; x++, in += in_step, dout += dout_step)
			for (unsigned v = 0; v < vectors; v++) {
				lanes value = lanes_load(in + v * half, elem);
				lanes d = lanes_load(dout + v * half, elem);
				if (silu) {
					lanes u = lanes_fma(value, scale[v], shift[v]);
					lanes s = lanes_sigmoid_for(u, elem);
					lanes slope = lanes_fma(u, lanes_sub(one, s), one);
					d = lanes_mul(d, lanes_mul(s, slope));
					lanes_store(dout + v * half, d, elem);
				}
				row_sum[v] = lanes_add(row_sum[v], d);
				row_centred[v] = lanes_fma(
					d, lanes_sub(value, mean[v]), row_centred[v]);
			}
		for (unsigned v = 0; v < vectors; v++) {
			lanes_add_to(sum + v * LANES, row_sum[v]);
			lanes_add_to(centred_sum + v * LANES, row_centred[v]);
		}
	}
}

static void back_sums_of(
	const struct back *back, unsigned vectors, bool silu, double *sum, double *centred_sum)
{
	if (back->src->elem == ELEM_BF16 && silu)
		back_sums(back, 2, ELEM_BF16, true, sum, centred_sum);
	else if (back->src->elem == ELEM_BF16)
		back_sums(back, 2, ELEM_BF16, false, sum, centred_sum);
	else if (vectors == 2 && silu)
		back_sums(back, 2, ELEM_F32, true, sum, centred_sum);
	else if (vectors == 2)
		back_sums(back, 2, ELEM_F32, false, sum, centred_sum);
	else
		back_sums(back, 1, ELEM_F32, silu, sum, centred_sum);
}

/* dx = dv scale + x slope + level (+ residual) (+ dx), the two group terms being folded into slope
 * and level. */
LANES_INLINE void back_apply(
	const struct back *back, unsigned vectors, enum elem elem, bool residual, bool accumulate)
{
	const struct layout *from = back->src->layout, *to = back->dout->layout;
	size_t half = LANES * elem_bytes(elem);
	size_t in_step = tensor_step(back->src), dout_step = tensor_step(back->dout);
	size_t dx_step = tensor_step(back->dsource);
	lanes scale[2], slope[2], level[2];
	for (unsigned v = 0; v < vectors; v++) {
		scale[v] = lanes_load(back->scale + v * LANES, ELEM_F32);
		slope[v] = lanes_load(back->slope + v * LANES, ELEM_F32);
		level[v] = lanes_load(back->level + v * LANES, ELEM_F32);
	}
	for (uint32_t y = 0; y < from->height; y++) {
		ptrdiff_t row = (ptrdiff_t)layout_row(from, back->image, y);
		const uint8_t *in = tensor_at(back->src, back->first, row);
		const uint8_t *other = residual ? tensor_at(back->residual, back->first, row) : in;
		const uint8_t *dout = tensor_at(
			back->dout, back->column, (ptrdiff_t)layout_row(to, back->image, y));
		uint8_t *dx = tensor_at(back->dsource, back->first, row);
		for (uint32_t x = 0; x < from->width; x++) {
			for (unsigned v = 0; v < vectors; v++) {
				lanes value = lanes_load(in + v * half, elem);
				lanes d = lanes_load(dout + v * half, elem);
				d = lanes_fma(d, scale[v], lanes_fma(value, slope[v], level[v]));
				if (residual)
					d = lanes_add(d, lanes_load(other + v * half, elem));
				if (accumulate)
					d = lanes_add(d, lanes_load(dx + v * half, elem));
				lanes_store(dx + v * half, d, elem);
			}
			in += in_step;
			other += in_step;
			dout += dout_step;
			dx += dx_step;
		}
	}
	if (!accumulate)
		zero_pads(back->dsource, back->first, back->image, vectors * half);
}

LANES_INLINE void back_apply_elem(const struct back *back, unsigned vectors, enum elem elem)
{
	if (back->residual && back->accumulate)
		back_apply(back, vectors, elem, true, true);
	else if (back->residual)
		back_apply(back, vectors, elem, true, false);
	else if (back->accumulate)
		back_apply(back, vectors, elem, false, true);
	else
		back_apply(back, vectors, elem, false, false);
}

static void back_apply_of(const struct back *back, unsigned vectors)
{
	if (back->src->elem == ELEM_BF16)
		back_apply_elem(back, 2, ELEM_BF16);
	else if (vectors == 2)
		back_apply_elem(back, 2, ELEM_F32);
	else
		back_apply_elem(back, 1, ELEM_F32);
}

/* Slope and level of a group's columns from the sums of all its channels, which are left for the
 * parameters' gradients. */
static void group_terms(const struct group_norm *norm, const struct group_norm_backward *call,
	uint32_t image, uint32_t group, const double *sum, const double *centred_sum, uint32_t base,
	float *slope, float *level)
{
	uint32_t per_group = norm->channels / norm->groups, first = group * per_group;
	const float *state = call->state + state_at(norm, image);
	const struct layout *layout = call->sources[0]->layout;
	double count = (double)layout->height * layout->width * per_group, a = 0.0, b = 0.0;
	double rstd = (double)state[STATE_RSTD * norm->width + column_of(norm, first)];
	double mean = (double)state[STATE_MEAN * norm->width + column_of(norm, first)];
	for (uint32_t c = first; c < first + per_group; c++) {
		uint32_t at = column_of(norm, c) - base;
		double xhat_sum = centred_sum[at] * rstd;
		a += (double)norm->weight[c] * sum[at];
		b += (double)norm->weight[c] * xhat_sum;
		call->sums[sums_at(norm, image, SUM_DOUT) + c] = (float)sum[at];
		call->sums[sums_at(norm, image, SUM_DOUT_XHAT) + c] = (float)xhat_sum;
	}
	for (uint32_t c = first; c < first + per_group; c++) {
		uint32_t at = column_of(norm, c) - base;
		slope[at] = (float)(-rstd * rstd * b / count);
		level[at] = (float)(-rstd * a / count + mean * rstd * rstd * b / count);
	}
}

static struct back back_of(const struct group_norm *norm, const struct group_norm_backward *call,
	uint32_t image, const struct run *run, uint32_t first)
{
	uint32_t column = run->column + (first - run->first);
	const float *state = call->state + state_at(norm, image) + column;
	return (struct back){
		.src = call->sources[run->span],
		.dout = call->dout,
		.dsource = call->dsources[run->span],
		.residual = run->span == 0 ? call->residual : NULL,
		.first = first,
		.column = column,
		.image = image,
		.mean = state + STATE_MEAN * norm->width,
		.scale = state + STATE_SCALE * norm->width,
		.shift = state + STATE_SHIFT * norm->width,
		.accumulate = call->accumulate[run->span],
	};
}

static void part_backward(const struct group_norm *norm, const struct group_norm_backward *call,
	uint32_t part, uint32_t image)
{
	double sum[COLUMNS_MAX], centred_sum[COLUMNS_MAX];
	float slope[COLUMNS_MAX], level[COLUMNS_MAX];
	struct run runs[SPANS_MAX];
	uint32_t count = runs_of(norm, part, runs), base = runs[0].column;
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t c = runs[i].first; c < runs[i].end; c += STRIP) {
			struct back back = back_of(norm, call, image, &runs[i], c);
			unsigned vectors = vectors_of(&runs[i], c);
			uint32_t at = back.column - base;
			for (uint32_t j = at; j < at + vectors * LANES; j++) {
				sum[j] = centred_sum[j] = 0.0;
				slope[j] = level[j] = 0.0f;
			}
			back_sums_of(&back, vectors, norm->silu, sum + at, centred_sum + at);
		}
	for (uint32_t group = norm->part_groups[part]; group < norm->part_groups[part + 1]; group++)
		group_terms(norm, call, image, group, sum, centred_sum, base, slope, level);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t c = runs[i].first; c < runs[i].end; c += STRIP) {
			struct back back = back_of(norm, call, image, &runs[i], c);
			back.slope = slope + back.column - base;
			back.level = level + back.column - base;
			back_apply_of(&back, vectors_of(&runs[i], c));
		}
}

/* dweight and dbias: the images' sums, in order. */
static void parameter_gradients(
	const struct group_norm *norm, const struct group_norm_backward *call)
{
	for (uint32_t c = 0; c < norm->channels; c++) {
		double dweight = 0.0, dbias = 0.0;
		for (uint32_t image = 0; image < call->n; image++) {
			dweight += (double)call->sums[sums_at(norm, image, SUM_DOUT_XHAT) + c];
			dbias += (double)call->sums[sums_at(norm, image, SUM_DOUT) + c];
		}
		call->dweight[c] = (call->accumulate_params ? call->dweight[c] : 0.0f) +
			(float)dweight;
		call->dbias[c] = (call->accumulate_params ? call->dbias[c] : 0.0f) + (float)dbias;
	}
}

void group_norm_backward(const struct group_norm *norm, const struct group_norm_backward *call)
{
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < call->n; image++)
		for (uint32_t part = 0; part < norm->part_count; part++)
			part_backward(norm, call, part, image);
	for (uint32_t i = 0; i < norm->span_count; i++)
		if (!call->accumulate[i])
			tensor_zero_edges(call->dsources[i], call->n);
	parameter_gradients(norm, call);
}
