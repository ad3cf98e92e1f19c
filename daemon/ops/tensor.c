/* Tensors and the passes that move values into and out of them. Nothing here does arithmetic but
 * the sums of the accumulating passes and the rounding to bf16. */
#include "daemon/ops/tensor.h"

#include "base/panic.h"
#include "daemon/ops/lanes.h"

#include <string.h>

struct tensor tensor_of(
	const struct layout *layout, uint32_t channels, uint32_t width, const struct form *form)
{
	CHECK(channels <= width && width % form->align == 0);
	uint32_t block = form->block ? form->block : width;
	return (struct tensor){
		.layout = layout,
		.channels = channels,
		.width = width,
		.elem = form->elem,
		.block = block,
		.plane = layout_positions(layout) * block,
	};
}

size_t tensor_bytes(const struct tensor *tensor)
{
	return tensor->width / tensor->block * tensor->plane * elem_bytes(tensor->elem);
}

void tensor_bind(struct tensor *tensor, void *memory)
{
	tensor->data = (uint8_t *)memory + tensor->layout->head * tensor_step(tensor);
}

void tensor_zero_edges(const struct tensor *tensor, uint32_t n)
{
	const struct layout *layout = tensor->layout;
	size_t end = (size_t)n * layout->image_stride, step = tensor_step(tensor);
	size_t zeros = layout_active(layout, n) - end + layout->tail;
	for (uint32_t c = 0; c < tensor->width; c += tensor->block) {
		memset(tensor_at(tensor, c, -(ptrdiff_t)layout->head), 0, layout->head * step);
		memset(tensor_at(tensor, c, (ptrdiff_t)end), 0, zeros * step);
	}
}

static bool bytes_are_zero(const uint8_t *bytes, size_t count)
{
	static const uint8_t zeros[STRIP * sizeof(float)];
	for (size_t i = 0; i < count; i += sizeof(zeros)) {
		size_t part = count - i < sizeof(zeros) ? count - i : sizeof(zeros);
		if (memcmp(bytes + i, zeros, part))
			return false;
	}
	return true;
}

bool tensor_is_clean(const struct tensor *tensor, uint32_t n)
{
	const struct layout *layout = tensor->layout;
	ptrdiff_t begin = -(ptrdiff_t)layout->head, active = layout_active(layout, n);
	size_t size = elem_bytes(tensor->elem);
	for (uint32_t c = 0; c < tensor->width; c += tensor->block)
		for (ptrdiff_t p = begin; p < active + (ptrdiff_t)layout->tail; p++) {
			int32_t image = p < 0 || p >= active ? -1 : layout->image_of[p];
			bool pad = image < 0 || (uint32_t)image >= n;
			uint32_t used = tensor->channels > c ? tensor->channels - c : 0;
			uint32_t from = pad ? 0 : used < tensor->block ? used : tensor->block;
			const uint8_t *at = tensor_at(tensor, c, p);
			if (!bytes_are_zero(at + from * size, (tensor->block - from) * size))
				return false;
		}
	return true;
}

bool tensor_pads_are_zero(const struct tensor *tensor, uint32_t n)
{
	struct tensor whole = *tensor;
	whole.channels = whole.width;
	return tensor_is_clean(&whole, n);
}

/* The pads behind row y of an image, and after the last row the pad row, in one block. */
static void zero_row_pads(const struct tensor *tensor, uint32_t column, uint32_t image, uint32_t y)
{
	const struct layout *layout = tensor->layout;
	if (layout->dense)
		return;
	size_t pads = y + 1 == layout->height ? 1 + (size_t)layout->pitch : 1;
	ptrdiff_t at = (ptrdiff_t)layout_row(layout, image, y) + layout->width;
	memset(tensor_at(tensor, column, at), 0, pads * tensor_step(tensor));
}

/* One value, rounded as lanes_store does. */
static float store_value(uint8_t *at, float value, enum elem elem)
{
	if (elem == ELEM_F32) {
		memcpy(at, &value, sizeof(value));
		return value;
	}
	uint16_t half = bf16_of(value);
	memcpy(at, &half, sizeof(half));
	return float_of_bf16(half);
}

static float load_value(const uint8_t *at, enum elem elem)
{
	float value;
	uint16_t half;
	if (elem == ELEM_F32) {
		memcpy(&value, at, sizeof(value));
		return value;
	}
	memcpy(&half, at, sizeof(half));
	return float_of_bf16(half);
}

/* Zeroes the pixels of row y in every block. */
static void zero_row(const struct tensor *tensor, uint32_t image, uint32_t y)
{
	const struct layout *layout = tensor->layout;
	ptrdiff_t at = (ptrdiff_t)layout_row(layout, image, y);
	for (uint32_t c = 0; c < tensor->width; c += tensor->block) {
		memset(tensor_at(tensor, c, at), 0, layout->width * tensor_step(tensor));
		zero_row_pads(tensor, c, image, y);
	}
}

void tensor_scatter_image(uint32_t n, const float *src, const struct tensor *dst)
{
	const struct layout *layout = dst->layout;
	uint32_t height = layout->height, width = layout->width, channels = dst->channels;
	size_t plane = (size_t)height * width, step = tensor_step(dst);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			const float *in = src + image * channels * plane + (size_t)y * width;
			ptrdiff_t row = (ptrdiff_t)layout_row(layout, image, y);
			zero_row(dst, image, y);
			for (uint32_t c = 0; c < channels; c++)
				for (uint32_t x = 0; x < width; x++)
					store_value((uint8_t *)tensor_at(dst, c, row) + x * step,
						in[c * plane + x], dst->elem);
		}
	tensor_zero_edges(dst, n);
}

void tensor_gather_image(uint32_t n, const struct tensor *src, float *dst)
{
	const struct layout *layout = src->layout;
	uint32_t height = layout->height, width = layout->width, channels = src->channels;
	size_t plane = (size_t)height * width, step = tensor_step(src);
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			float *out = dst + image * channels * plane + (size_t)y * width;
			ptrdiff_t row = (ptrdiff_t)layout_row(layout, image, y);
			for (uint32_t c = 0; c < channels; c++)
				for (uint32_t x = 0; x < width; x++)
					out[c * plane + x] = load_value(
						(const uint8_t *)tensor_at(src, c, row) + x * step,
						src->elem);
		}
}

/* One patch: the 3x3 pixels around (y, x) of each channel, zero outside the image. */
static void scatter_patch(const struct layout *layout, const float *planes, uint32_t channels,
	int64_t y, int64_t x, ptrdiff_t position, const struct tensor *dst,
	const struct tensor *rest)
{
	int64_t height = layout->height, width = layout->width;
	for (uint32_t c = 0; c < channels; c++)
		for (int64_t k = 0; k < 9; k++) {
			int64_t in_y = y + k / 3 - 1, in_x = x + k % 3 - 1;
			uint32_t column = 9 * c + (uint32_t)k;
			if (in_y < 0 || in_y >= height || in_x < 0 || in_x >= width)
				continue;
			float value = planes[(c * height + in_y) * width + in_x];
			float kept = store_value(
				tensor_at(dst, column, position), value, dst->elem);
			if (rest)
				store_value(tensor_at(rest, column, position), value - kept,
					rest->elem);
		}
}

void tensor_scatter_patches(uint32_t n, const float *src, uint32_t channels,
	const struct tensor *dst, const struct tensor *rest)
{
	const struct layout *layout = dst->layout;
	uint32_t height = layout->height, width = layout->width;
	size_t image_elems = (size_t)channels * height * width;
	CHECK(dst->width >= 9 * channels && (!rest || rest->width == dst->width));
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t y = 0; y < height; y++) {
			ptrdiff_t row = (ptrdiff_t)layout_row(layout, image, y);
			zero_row(dst, image, y);
			if (rest)
				zero_row(rest, image, y);
			for (uint32_t x = 0; x < width; x++)
				scatter_patch(layout, src + image * image_elems, channels, y, x,
					row + x, dst, rest);
		}
	tensor_zero_edges(dst, n);
	if (rest)
		tensor_zero_edges(rest, n);
}

void tensor_split_phases(
	uint32_t n, const struct tensor *large, const struct tensor *const phases[4])
{
	const struct layout *from = large->layout, *to = phases[0]->layout;
	uint32_t height = to->height, width = to->width, blocks = large->width / large->block;
	size_t step = tensor_step(large);
	CHECK(from->height == 2 * height && from->width == 2 * width);
#pragma omp parallel for collapse(3) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t block = 0; block < blocks; block++)
			for (uint32_t y = 0; y < 2 * height; y++) {
				uint32_t c = block * large->block;
				const uint8_t *in = tensor_at(
					large, c, (ptrdiff_t)layout_row(from, image, y));
				for (uint32_t odd = 0; odd < 2; odd++) {
					const struct tensor *phase = phases[y % 2 * 2 + odd];
					uint8_t *out = tensor_at(
						phase, c, (ptrdiff_t)layout_row(to, image, y / 2));
					for (uint32_t x = 0; x < width; x++)
						memcpy(out + x * step, in + (2 * x + odd) * step,
							step);
					zero_row_pads(phase, c, image, y / 2);
				}
			}
	for (uint32_t phase = 0; phase < 4; phase++)
		tensor_zero_edges(phases[phase], n);
}

/* dst [count bytes] += src. */
static void add_bytes(uint8_t *dst, const uint8_t *src, size_t bytes, enum elem elem)
{
	for (size_t i = 0; i < bytes; i += LANES * elem_bytes(elem))
		lanes_store(dst + i,
			lanes_add(lanes_load(dst + i, elem), lanes_load(src + i, elem)), elem);
}

void tensor_merge_phases(uint32_t n, const struct tensor *const phases[4],
	const struct tensor *large, bool accumulate)
{
	const struct layout *to = large->layout, *from = phases[0]->layout;
	uint32_t height = to->height, width = to->width, blocks = large->width / large->block;
	size_t step = tensor_step(large);
	CHECK(height == 2 * from->height && width == 2 * from->width);
#pragma omp parallel for collapse(3) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t block = 0; block < blocks; block++)
			for (uint32_t y = 0; y < height; y++) {
				uint32_t c = block * large->block;
				ptrdiff_t row = (ptrdiff_t)layout_row(from, image, y / 2);
				uint8_t *out = tensor_at(
					large, c, (ptrdiff_t)layout_row(to, image, y));
				for (uint32_t x = 0; x < width; x++) {
					const uint8_t *in = tensor_at(
						phases[y % 2 * 2 + x % 2], c, row + x / 2);
					if (accumulate)
						add_bytes(out + x * step, in, step, large->elem);
					else
						memcpy(out + x * step, in, step);
				}
				if (!accumulate)
					zero_row_pads(large, c, image, y);
			}
	if (!accumulate)
		tensor_zero_edges(large, n);
}

void tensor_scatter_tokens(
	uint32_t n, const struct tensor *tokens, const struct tensor *add, const struct tensor *dst)
{
	const struct layout *from = tokens->layout, *to = dst->layout;
	uint32_t height = to->height, blocks = dst->width / dst->block;
	size_t bytes = to->width * tensor_step(dst);
#pragma omp parallel for collapse(3) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t block = 0; block < blocks; block++)
			for (uint32_t y = 0; y < height; y++) {
				uint32_t c = block * dst->block;
				ptrdiff_t row = (ptrdiff_t)layout_row(to, image, y);
				uint8_t *out = tensor_at(dst, c, row);
				memcpy(out,
					tensor_at(tokens, c, (ptrdiff_t)layout_row(from, image, y)),
					bytes);
				if (add)
					add_bytes(out, tensor_at(add, c, row), bytes, dst->elem);
				zero_row_pads(dst, c, image, y);
			}
	tensor_zero_edges(dst, n);
}

void tensor_gather_tokens(uint32_t n, const struct tensor *src, const struct tensor *tokens)
{
	const struct layout *from = src->layout, *to = tokens->layout;
	uint32_t height = from->height, blocks = src->width / src->block;
	size_t bytes = from->width * tensor_step(src);
#pragma omp parallel for collapse(3) schedule(dynamic, 8)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t block = 0; block < blocks; block++)
			for (uint32_t y = 0; y < height; y++) {
				uint32_t c = block * src->block;
				memcpy(tensor_at(tokens, c, (ptrdiff_t)layout_row(to, image, y)),
					tensor_at(src, c, (ptrdiff_t)layout_row(from, image, y)),
					bytes);
			}
	tensor_zero_edges(tokens, n);
}
