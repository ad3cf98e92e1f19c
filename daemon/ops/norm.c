/* GroupNorm with SiLU, forward beside backward. Work is split by (image, part), a part being whole
 * groups of about 64 channels, so one thread takes sums and applies them while the data is cached.
 * A run is the piece of a part that lies in one source. */
#include "daemon/ops/norm.h"

#include "base/fmath.h"
#include "base/panic.h"

#include <math.h>
#include <string.h>

#define PART_CHANNELS 64

struct run {
	uint32_t span;
	uint32_t channel; /* in the concatenation */
	uint32_t offset;  /* inside the source */
	uint32_t column;  /* inside the result */
	uint32_t count;
};

/* One image's rows of a run in a source, and in the result or its gradient. */
struct view {
	uint32_t height, columns;
	size_t row_step, step; /* floats from row to row, position to position */
};

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
	CHECK(norm->channels / groups <= GROUP_CHANNELS_MAX);
}

enum { STATE_MEAN, STATE_RSTD, STATE_SCALE, STATE_SHIFT, STATE_COUNT };
enum { SUM_DOUT, SUM_DOUT_XHAT, SUM_COUNT };

size_t group_norm_state_elems(const struct group_norm *norm, uint32_t batch)
{
	return (size_t)STATE_COUNT * batch * norm->channels;
}

size_t group_norm_sums_elems(const struct group_norm *norm, uint32_t batch)
{
	return (size_t)SUM_COUNT * batch * norm->channels;
}

/* Where the values of an image begin: [batch][kind][channels]. */
static size_t state_at(const struct group_norm *norm, uint32_t image, uint32_t kind)
{
	return ((size_t)image * STATE_COUNT + kind) * norm->channels;
}

static size_t sums_at(const struct group_norm *norm, uint32_t image, uint32_t kind)
{
	return ((size_t)image * SUM_COUNT + kind) * norm->channels;
}

static uint32_t groups_per_part(const struct group_norm *norm)
{
	uint32_t per_group = norm->channels / norm->groups;
	return per_group >= PART_CHANNELS ? 1 : PART_CHANNELS / per_group;
}

static uint32_t part_count(const struct group_norm *norm)
{
	uint32_t per_part = groups_per_part(norm);
	return (norm->groups + per_part - 1) / per_part;
}

/* The runs of channels [first, end). */
static uint32_t runs_of(
	const struct group_norm *norm, uint32_t first, uint32_t end, struct run runs[SPANS_MAX])
{
	uint32_t count = 0, channel = 0, column = 0;
	for (uint32_t i = 0; i < norm->span_count; i++) {
		uint32_t span_end = channel + norm->spans[i].channels;
		uint32_t from = first > channel ? first : channel;
		uint32_t to = end < span_end ? end : span_end;
		if (from < to)
			runs[count++] = (struct run){
				i, from, from - channel, column + from - channel, to - from};
		channel = span_end;
		column += norm->spans[i].width;
	}
	return count;
}

static struct view view_of(const struct layout *layout, uint32_t width)
{
	return (struct view){layout->height, layout->width, (size_t)layout->pitch * width, width};
}

/* At most PART_CHANNELS channels: sums of x - pivot and its square over the image. */
static void channel_sums(struct view view, const float *src, uint32_t count, const float *pivot,
	double *sum, double *square_sum)
{
	for (uint32_t y = 0; y < view.height; y++) {
		float row_sum[PART_CHANNELS] = {0}, row_square[PART_CHANNELS] = {0};
		for (uint32_t x = 0; x < view.columns; x++) {
			const float *in = src + y * view.row_step + x * view.step;
#pragma omp simd
			for (uint32_t c = 0; c < count; c++) {
				float d = in[c] - pivot[c];
				row_sum[c] += d;
				row_square[c] += d * d;
			}
		}
		for (uint32_t c = 0; c < count; c++) {
			sum[c] += (double)row_sum[c];
			square_sum[c] += (double)row_square[c];
		}
	}
}

/* mean[channel] and the sum of squares about it, of each channel of the run. */
static void run_moments(
	struct view view, const float *src, uint32_t count, float *mean, double *square)
{
	double pixels = (double)view.height * view.columns;
	for (uint32_t first = 0; first < count; first += PART_CHANNELS) {
		uint32_t block = count - first < PART_CHANNELS ? count - first : PART_CHANNELS;
		double sum[PART_CHANNELS] = {0}, square_sum[PART_CHANNELS] = {0};
		const float *pivot = src + first;
		channel_sums(view, src + first, block, pivot, sum, square_sum);
		for (uint32_t c = 0; c < block; c++) {
			mean[first + c] = (float)((double)pivot[c] + sum[c] / pixels);
			square[first + c] = square_sum[c] - sum[c] * sum[c] / pixels;
		}
	}
}

/* Combines the channels of one group: scale and shift from mean and variance. */
static void finish_group(const struct group_norm *norm, double pixels, uint32_t first,
	const float *means, const double *squares, float *state)
{
	uint32_t per_group = norm->channels / norm->groups;
	double mean = 0.0, square = 0.0;
	for (uint32_t c = 0; c < per_group; c++)
		mean += (double)means[c];
	mean /= per_group;
	for (uint32_t c = 0; c < per_group; c++) {
		double d = (double)means[c] - mean;
		square += squares[c] + pixels * d * d;
	}
	double variance = square / (pixels * per_group);
	if (variance < 0.0) /* rounding; a NaN stays one */
		variance = 0.0;
	double rstd = 1.0 / sqrt(variance + (double)norm->eps);
	for (uint32_t c = first; c < first + per_group; c++) {
		double scale = rstd * (double)norm->weight[c];
		state[STATE_MEAN * norm->channels + c] = (float)mean;
		state[STATE_RSTD * norm->channels + c] = (float)rstd;
		state[STATE_SCALE * norm->channels + c] = (float)scale;
		state[STATE_SHIFT * norm->channels + c] = (float)((double)norm->bias[c] -
			mean * scale);
	}
}

/* Statistics of the groups [first, end) of one image, group by group. */
static void part_statistics(const struct group_norm *norm, const struct layout *layout,
	uint32_t image, const float *const *sources, uint32_t first, uint32_t end, float *state)
{
	uint32_t per_group = norm->channels / norm->groups;
	float means[GROUP_CHANNELS_MAX];
	double squares[GROUP_CHANNELS_MAX];
	struct run runs[SPANS_MAX];
	uint32_t channel = first * per_group;
	uint32_t run_count = runs_of(norm, channel, end * per_group, runs);
	for (uint32_t i = 0; i < run_count; i++) {
		uint32_t width = norm->spans[runs[i].span].width;
		const float *src = sources[runs[i].span] + layout_row(layout, image, 0) * width +
			runs[i].offset;
		uint32_t at = runs[i].channel - channel;
		run_moments(view_of(layout, width), src, runs[i].count, means + at, squares + at);
	}
	double pixels = (double)layout->height * layout->width;
	for (uint32_t group = first; group < end; group++) {
		uint32_t at = (group - first) * per_group;
		finish_group(norm, pixels, group * per_group, means + at, squares + at, state);
	}
}

static void apply_rows(struct view in_view, struct view out_view, const float *src,
	const float *scale, const float *shift, uint32_t count, bool silu, float *dst)
{
	for (uint32_t y = 0; y < in_view.height; y++)
		for (uint32_t x = 0; x < in_view.columns; x++) {
			const float *in = src + y * in_view.row_step + x * in_view.step;
			float *out = dst + y * out_view.row_step + x * out_view.step;
			if (silu) {
#pragma omp simd
				for (uint32_t c = 0; c < count; c++) {
					float v = in[c] * scale[c] + shift[c];
					out[c] = v * fm_sigmoid(v);
				}
			} else {
#pragma omp simd
				for (uint32_t c = 0; c < count; c++)
					out[c] = in[c] * scale[c] + shift[c];
			}
		}
}

/* Zeroes what no run writes: pads, and the columns between a span's channels and its width. */
static void zero_unwritten(const struct layout *layout, uint32_t image, float *data,
	const struct channel_span *spans, uint32_t span_count)
{
	uint32_t width = 0, column = 0;
	for (uint32_t i = 0; i < span_count; i++)
		width += spans[i].width;
	for (uint32_t i = 0; i < span_count; i++, column += spans[i - 1].width) {
		uint32_t gap = spans[i].width - spans[i].channels;
		for (uint32_t y = 0; gap && y < layout->height; y++)
			for (uint32_t x = 0; x < layout->width; x++)
				memset(data + (layout_row(layout, image, y) + x) * width + column +
						spans[i].channels,
					0, gap * sizeof(float));
	}
	layout_zero_image_pads(layout, image, data, width);
}

static void part_apply(const struct group_norm *norm, const struct layout *layout, uint32_t image,
	const float *const *sources, uint32_t first, uint32_t end, const float *state,
	const struct layout *out_layout, float *out)
{
	uint32_t per_group = norm->channels / norm->groups;
	struct run runs[SPANS_MAX];
	uint32_t run_count = runs_of(norm, first * per_group, end * per_group, runs);
	for (uint32_t i = 0; i < run_count; i++) {
		uint32_t width = norm->spans[runs[i].span].width;
		apply_rows(view_of(layout, width), view_of(out_layout, norm->width),
			sources[runs[i].span] + layout_row(layout, image, 0) * width +
				runs[i].offset,
			state + STATE_SCALE * norm->channels + runs[i].channel,
			state + STATE_SHIFT * norm->channels + runs[i].channel, runs[i].count,
			norm->silu,
			out + layout_row(out_layout, image, 0) * norm->width + runs[i].column);
	}
	if (first == 0)
		zero_unwritten(out_layout, image, out, norm->spans, norm->span_count);
}

void group_norm_forward(const struct group_norm *norm, const struct layout *layout, uint32_t n,
	const float *const *sources, float *state, const struct layout *out_layout, float *out)
{
	uint32_t parts = part_count(norm), per_part = groups_per_part(norm);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t part = 0; part < parts; part++) {
			uint32_t first = part * per_part, end = first + per_part;
			float *image_state = state + state_at(norm, image, 0);
			end = end < norm->groups ? end : norm->groups;
			part_statistics(norm, layout, image, sources, first, end, image_state);
			part_apply(norm, layout, image, sources, first, end, image_state,
				out_layout, out);
		}
	layout_zero_edges(out_layout, n, out, norm->width);
}

void group_norm_apply(const struct group_norm *norm, const struct layout *layout, uint32_t n,
	const float *const *sources, const float *state, const struct layout *out_layout,
	float *out)
{
	uint32_t parts = part_count(norm), per_part = groups_per_part(norm);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t part = 0; part < parts; part++) {
			uint32_t first = part * per_part, end = first + per_part;
			end = end < norm->groups ? end : norm->groups;
			part_apply(norm, layout, image, sources, first, end,
				state + state_at(norm, image, 0), out_layout, out);
		}
	layout_zero_edges(out_layout, n, out, norm->width);
}

/* The gradient of v silu(v) sits in dout afterwards when silu; its sums are taken on the way:
 * sum of dv, and of dv xhat. */
struct backward_rows {
	struct view in_view, out_view;
	const float *src, *mean, *rstd, *scale, *shift;
	float *dout;
	bool silu;
};

static void backward_sums(const struct backward_rows *rows, uint32_t first, uint32_t count,
	double *sum, double *xhat_sum)
{
	const float *mean = rows->mean + first, *rstd = rows->rstd + first;
	const float *scale = rows->scale + first, *shift = rows->shift + first;
	for (uint32_t y = 0; y < rows->in_view.height; y++) {
		float row_sum[PART_CHANNELS] = {0}, row_xhat[PART_CHANNELS] = {0};
		for (uint32_t x = 0; x < rows->in_view.columns; x++) {
			const float *in = rows->src + y * rows->in_view.row_step +
				x * rows->in_view.step + first;
			float *dout = rows->dout + y * rows->out_view.row_step +
				x * rows->out_view.step + first;
			if (rows->silu) {
#pragma omp simd
				for (uint32_t c = 0; c < count; c++) {
					float v = in[c] * scale[c] + shift[c];
					float s = fm_sigmoid(v);
					dout[c] = dout[c] * (s * (1.0f + v * (1.0f - s)));
				}
			}
#pragma omp simd
			for (uint32_t c = 0; c < count; c++) {
				row_sum[c] += dout[c];
				row_xhat[c] += dout[c] * ((in[c] - mean[c]) * rstd[c]);
			}
		}
		for (uint32_t c = 0; c < count; c++) {
			sum[c] += (double)row_sum[c];
			xhat_sum[c] += (double)row_xhat[c];
		}
	}
}

/* dx = dv scale + x slope + level, with the two group terms folded into slope and level. */
static void backward_apply(const struct backward_rows *rows, const float *slope, const float *level,
	uint32_t count, float *dx, const float *residual, bool accumulate)
{
	const float *scale = rows->scale;
	for (uint32_t y = 0; y < rows->in_view.height; y++)
		for (uint32_t x = 0; x < rows->in_view.columns; x++) {
			size_t at = y * rows->in_view.row_step + x * rows->in_view.step;
			const float *in = rows->src + at, *other = residual ? residual + at : NULL;
			const float *dout = rows->dout + y * rows->out_view.row_step +
				x * rows->out_view.step;
			float *out = dx + at;
			if (other) {
#pragma omp simd
				for (uint32_t c = 0; c < count; c++) {
					float d = dout[c] * scale[c] +
						(in[c] * slope[c] + level[c]);
					out[c] = (accumulate ? out[c] : 0.0f) + (d + other[c]);
				}
			} else {
#pragma omp simd
				for (uint32_t c = 0; c < count; c++) {
					float d = dout[c] * scale[c] +
						(in[c] * slope[c] + level[c]);
					out[c] = (accumulate ? out[c] : 0.0f) + d;
				}
			}
		}
}

/* Slope and level of a group's channels from the sums of all its channels. */
static void group_terms(const struct group_norm *norm, double pixels, uint32_t first,
	const float *state, const double *sum, const double *xhat_sum, float *slope, float *level)
{
	uint32_t per_group = norm->channels / norm->groups;
	double a = 0.0, b = 0.0, count = pixels * per_group;
	for (uint32_t c = 0; c < per_group; c++) {
		a += (double)norm->weight[first + c] * sum[c];
		b += (double)norm->weight[first + c] * xhat_sum[c];
	}
	double rstd = (double)state[STATE_RSTD * norm->channels + first];
	double mean = (double)state[STATE_MEAN * norm->channels + first];
	for (uint32_t c = 0; c < per_group; c++) {
		slope[c] = (float)(-rstd * rstd * b / count);
		level[c] = (float)(-rstd * a / count + mean * rstd * rstd * b / count);
	}
}

static struct backward_rows rows_of(const struct group_norm *norm,
	const struct group_norm_backward *call, uint32_t image, const struct run *run)
{
	uint32_t width = norm->spans[run->span].width;
	const float *state = call->state + state_at(norm, image, 0) + run->channel;
	return (struct backward_rows){
		.in_view = view_of(call->layout, width),
		.out_view = view_of(call->out_layout, norm->width),
		.src = call->sources[run->span] + layout_row(call->layout, image, 0) * width +
			run->offset,
		.mean = state + STATE_MEAN * norm->channels,
		.rstd = state + STATE_RSTD * norm->channels,
		.scale = state + STATE_SCALE * norm->channels,
		.shift = state + STATE_SHIFT * norm->channels,
		.dout = call->dout + layout_row(call->out_layout, image, 0) * norm->width +
			run->column,
		.silu = norm->silu,
	};
}

static void part_backward(const struct group_norm *norm, const struct group_norm_backward *call,
	uint32_t image, uint32_t first, uint32_t end)
{
	uint32_t per_group = norm->channels / norm->groups, channel = first * per_group;
	double sum[GROUP_CHANNELS_MAX] = {0}, xhat_sum[GROUP_CHANNELS_MAX] = {0};
	float slope[GROUP_CHANNELS_MAX], level[GROUP_CHANNELS_MAX];
	struct run runs[SPANS_MAX];
	uint32_t run_count = runs_of(norm, channel, end * per_group, runs);
	for (uint32_t i = 0; i < run_count; i++) {
		struct backward_rows rows = rows_of(norm, call, image, &runs[i]);
		uint32_t at = runs[i].channel - channel;
		for (uint32_t c = 0; c < runs[i].count; c += PART_CHANNELS) {
			uint32_t left = runs[i].count - c;
			backward_sums(&rows, c, left < PART_CHANNELS ? left : PART_CHANNELS,
				sum + at + c, xhat_sum + at + c);
		}
	}
	for (uint32_t c = 0; c < (end - first) * per_group; c++) {
		call->sums[sums_at(norm, image, SUM_DOUT) + channel + c] = (float)sum[c];
		call->sums[sums_at(norm, image, SUM_DOUT_XHAT) + channel + c] = (float)xhat_sum[c];
	}
	double pixels = (double)call->layout->height * call->layout->width;
	const float *state = call->state + state_at(norm, image, 0);
	for (uint32_t group = first; group < end; group++) {
		uint32_t at = (group - first) * per_group;
		group_terms(norm, pixels, group * per_group, state, sum + at, xhat_sum + at,
			slope + at, level + at);
	}
	for (uint32_t i = 0; i < run_count; i++) {
		struct backward_rows rows = rows_of(norm, call, image, &runs[i]);
		uint32_t at = runs[i].channel - channel, span = runs[i].span;
		size_t begin = layout_row(call->layout, image, 0) * norm->spans[span].width +
			runs[i].offset;
		backward_apply(&rows, slope + at, level + at, runs[i].count,
			call->dsources[span] + begin,
			call->residual && span == 0 ? call->residual + begin : NULL,
			call->accumulate[span]);
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
	uint32_t parts = part_count(norm), per_part = groups_per_part(norm);
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < call->n; image++)
		for (uint32_t part = 0; part < parts; part++) {
			uint32_t first = part * per_part, end = first + per_part;
			part_backward(
				norm, call, image, first, end < norm->groups ? end : norm->groups);
		}
	for (uint32_t i = 0; i < norm->span_count; i++) {
		if (call->accumulate[i])
			continue;
		for (uint32_t image = 0; image < call->n; image++)
			zero_unwritten(call->layout, image, call->dsources[i], &norm->spans[i], 1);
		layout_zero_edges(call->layout, call->n, call->dsources[i], norm->spans[i].width);
	}
	parameter_gradients(norm, call);
}
