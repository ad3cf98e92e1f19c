/* The sequence of positions and the passes that move values into and out of it. Nothing here does
 * arithmetic but the sum in the two accumulating passes. */
#include "daemon/ops/layout.h"

#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define POSITIONS_MAX (UINT32_C(1) << 30)

int layout_init(struct layout *layout, uint32_t batch, uint32_t height, uint32_t width, bool dense)
{
	*layout = (struct layout){
		.batch = batch,
		.height = height,
		.width = width,
		.dense = dense,
		.pitch = dense ? width : width + 1,
		.head = dense ? 0 : width + 2,
		.tail = dense ? 0 : width + 2,
	};
	uint64_t stride = (uint64_t)layout->pitch * (dense ? height : height + 1);
	if (stride > POSITIONS_MAX || stride * batch > POSITIONS_MAX)
		return -EOVERFLOW;
	layout->image_stride = (uint32_t)stride;
	uint32_t count = batch * layout->image_stride;
	layout->padded = (count + 31) / 32 * 32;
	layout->image_of = malloc(layout->padded * sizeof(*layout->image_of));
	if (!layout->image_of)
		return -ENOMEM;
	for (uint32_t p = 0; p < layout->padded; p++) {
		uint32_t in_image = p % layout->image_stride;
		bool pad = p >= count || in_image % layout->pitch >= width ||
			in_image / layout->pitch >= height;
		layout->image_of[p] = pad ? -1 : (int32_t)(p / layout->image_stride);
	}
	return 0;
}

void layout_fini(struct layout *layout)
{
	free(layout->image_of);
	*layout = (struct layout){0};
}

size_t layout_elems(const struct layout *layout, uint32_t width)
{
	return ((size_t)layout->head + layout->padded + layout->tail) * width;
}

uint32_t layout_active(const struct layout *layout, uint32_t n)
{
	CHECK(n <= layout->batch);
	uint32_t end = (n * layout->image_stride + POSITION_BLOCK - 1) / POSITION_BLOCK *
		POSITION_BLOCK;
	return end < layout->padded ? end : layout->padded;
}

void layout_zero_edges(const struct layout *layout, uint32_t n, float *data, uint32_t width)
{
	size_t end = (size_t)n * layout->image_stride;
	size_t zeros = layout_active(layout, n) - end + layout->tail;
	memset(data - (size_t)layout->head * width, 0,
		(size_t)layout->head * width * sizeof(float));
	memset(data + end * width, 0, zeros * width * sizeof(float));
}

static bool floats_are_zero(const float *data, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (data[i] != 0.0f)
			return false;
	return true;
}

bool layout_pads_are_zero(const struct layout *layout, uint32_t n, const float *data,
	uint32_t channels, uint32_t width)
{
	uint32_t active = layout_active(layout, n);
	if (!floats_are_zero(data - (size_t)layout->head * width, (size_t)layout->head * width))
		return false;
	if (!floats_are_zero(data + (size_t)active * width, (size_t)layout->tail * width))
		return false;
	for (uint32_t p = 0; p < active; p++) {
		const float *row = data + (size_t)p * width;
		int32_t image = layout->image_of[p];
		uint32_t from = image < 0 || (uint32_t)image >= n ? 0 : channels;
		if (!floats_are_zero(row + from, width - from))
			return false;
	}
	return true;
}

/* Zeroes the pad column of row y of an image, and after the last row the pad row. */
static void zero_row_pads(const struct layout *layout, uint32_t y, float *row, uint32_t width)
{
	if (layout->dense)
		return;
	size_t pads = y + 1 == layout->height ? 1 + (size_t)layout->pitch : 1;
	memset(row + (size_t)layout->width * width, 0, pads * width * sizeof(float));
}

void layout_zero_image_pads(
	const struct layout *layout, uint32_t image, float *data, uint32_t width)
{
	for (uint32_t y = 0; y < layout->height; y++)
		zero_row_pads(layout, y, data + layout_row(layout, image, y) * width, width);
}

static float *row_at(
	const struct layout *layout, float *data, uint32_t image, uint32_t y, uint32_t width)
{
	return data + layout_row(layout, image, y) * width;
}

static const float *const_row_at(
	const struct layout *layout, const float *data, uint32_t image, uint32_t y, uint32_t width)
{
	return data + layout_row(layout, image, y) * width;
}

void layout_scatter_image(const struct layout *layout, uint32_t n, const float *src,
	uint32_t channels, float *dst, uint32_t width)
{
	uint32_t height = layout->height, columns = layout->width;
	size_t plane = (size_t)height * columns;
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			float *row = row_at(layout, dst, image, y, width);
			const float *in = src + image * channels * plane + (size_t)y * columns;
			memset(row, 0, (size_t)columns * width * sizeof(float));
			for (uint32_t x = 0; x < columns; x++)
				for (uint32_t c = 0; c < channels; c++)
					row[(size_t)x * width + c] = in[c * plane + x];
			zero_row_pads(layout, y, row, width);
		}
	layout_zero_edges(layout, n, dst, width);
}

void layout_gather_image(const struct layout *layout, uint32_t n, const float *src, uint32_t width,
	uint32_t channels, float *dst)
{
	uint32_t height = layout->height, columns = layout->width;
	size_t plane = (size_t)height * columns;
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			const float *row = const_row_at(layout, src, image, y, width);
			float *out = dst + image * channels * plane + (size_t)y * columns;
			for (uint32_t c = 0; c < channels; c++)
				for (uint32_t x = 0; x < columns; x++)
					out[c * plane + x] = row[(size_t)x * width + c];
		}
}

/* One patch: the 3x3 pixels around (y, x) of each channel, zero outside the image. */
static void copy_patch(const float *planes, uint32_t channels, int64_t height, int64_t columns,
	int64_t y, int64_t x, float *dst)
{
	for (uint32_t c = 0; c < channels; c++)
		for (int64_t k = 0; k < 9; k++) {
			int64_t in_y = y + k / 3 - 1, in_x = x + k % 3 - 1;
			bool inside = in_y >= 0 && in_y < height && in_x >= 0 && in_x < columns;
			dst[9 * c + k] = inside ? planes[(c * height + in_y) * columns + in_x]
						: 0.0f;
		}
}

void layout_scatter_patches(const struct layout *layout, uint32_t n, const float *src,
	uint32_t channels, float *dst, uint32_t width)
{
	uint32_t height = layout->height, columns = layout->width;
	size_t image_elems = (size_t)channels * height * columns;
	CHECK(width >= 9 * channels);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			float *row = row_at(layout, dst, image, y, width);
			memset(row, 0, (size_t)columns * width * sizeof(float));
			for (uint32_t x = 0; x < columns; x++)
				copy_patch(src + image * image_elems, channels, height, columns, y,
					x, row + (size_t)x * width);
			zero_row_pads(layout, y, row, width);
		}
	layout_zero_edges(layout, n, dst, width);
}

void layout_split_phases(const struct layout *large, const struct layout *small, uint32_t n,
	const float *src, float *const phases[4], uint32_t width)
{
	uint32_t height = small->height, columns = small->width;
	CHECK(large->height == 2 * height && large->width == 2 * columns);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++)
			for (uint32_t phase = 0; phase < 4; phase++) {
				const float *in = const_row_at(large, src, image, 2 * y + phase / 2,
							  width) +
					(size_t)(phase % 2) * width;
				float *row = row_at(small, phases[phase], image, y, width);
				for (uint32_t x = 0; x < columns; x++)
					memcpy(row + (size_t)x * width, in + 2 * (size_t)x * width,
						width * sizeof(float));
				zero_row_pads(small, y, row, width);
			}
	for (uint32_t phase = 0; phase < 4; phase++)
		layout_zero_edges(small, n, phases[phase], width);
}

static void add_row(float *dst, const float *src, size_t count)
{
	for (size_t i = 0; i < count; i++)
		dst[i] += src[i];
}

void layout_merge_phases(const struct layout *large, const struct layout *small, uint32_t n,
	const float *const phases[4], float *dst, uint32_t width, bool accumulate)
{
	uint32_t height = large->height, columns = large->width;
	CHECK(height == 2 * small->height && columns == 2 * small->width);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			float *row = row_at(large, dst, image, y, width);
			for (uint32_t x = 0; x < columns; x++) {
				const float *in = const_row_at(small, phases[y % 2 * 2 + x % 2],
							  image, y / 2, width) +
					(size_t)(x / 2) * width;
				if (accumulate)
					add_row(row + (size_t)x * width, in, width);
				else
					memcpy(row + (size_t)x * width, in, width * sizeof(float));
			}
			if (!accumulate)
				zero_row_pads(large, y, row, width);
		}
	if (!accumulate)
		layout_zero_edges(large, n, dst, width);
}

void layout_scatter_tokens(const struct layout *positions, const struct layout *tokens, uint32_t n,
	const float *src, const float *add, float *dst, uint32_t width)
{
	uint32_t height = positions->height;
	size_t count = (size_t)positions->width * width;
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			float *row = row_at(positions, dst, image, y, width);
			const float *in = const_row_at(tokens, src, image, y, width);
			const float *other = add ? const_row_at(positions, add, image, y, width)
						 : NULL;
			for (size_t i = 0; i < count; i++)
				row[i] = in[i] + (other ? other[i] : 0.0f);
			zero_row_pads(positions, y, row, width);
		}
	layout_zero_edges(positions, n, dst, width);
}

void layout_gather_tokens(const struct layout *positions, const struct layout *tokens, uint32_t n,
	const float *src, float *dst, uint32_t width)
{
	uint32_t height = positions->height;
	size_t bytes = (size_t)positions->width * width * sizeof(float);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++)
			memcpy(row_at(tokens, dst, image, y, width),
				const_row_at(positions, src, image, y, width), bytes);
	layout_zero_edges(tokens, n, dst, width);
}
