/* Sums of gradients in a fixed order: the outputs are split among threads, never the sums. */
#include "daemon/ops/sums.h"

#include "daemon/ops/lanes.h"

LANES_INLINE void strip_sums(const struct tensor *data, uint32_t first, uint32_t image,
	unsigned vectors, enum elem elem, double *total)
{
	const struct layout *layout = data->layout;
	size_t step = tensor_step(data), half = LANES * elem_bytes(elem);
	for (uint32_t y = 0; y < layout->height; y++) {
		lanes row[2] = {lanes_of(0.0f), lanes_of(0.0f)};
		const uint8_t *in = tensor_at(data, first, (ptrdiff_t)layout_row(layout, image, y));
		for (uint32_t x = 0; x < layout->width; x++, in += step)
			for (unsigned v = 0; v < vectors; v++)
				row[v] = lanes_add(row[v], lanes_load(in + v * half, elem));
		for (unsigned v = 0; v < vectors; v++)
			lanes_add_to(total + v * LANES, row[v]);
	}
}

void sums_per_image(uint32_t n, const struct tensor *data, float *sums)
{
	uint32_t strips = (data->width + STRIP - 1) / STRIP;
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t strip = 0; strip < strips; strip++) {
			double total[STRIP] = {0};
			uint32_t first = strip * STRIP;
			if (data->elem == ELEM_BF16)
				strip_sums(data, first, image, 2, ELEM_BF16, total);
			else if (data->width - first >= STRIP)
				strip_sums(data, first, image, 2, ELEM_F32, total);
			else
				strip_sums(data, first, image, 1, ELEM_F32, total);
			for (uint32_t c = first; c < first + STRIP && c < data->channels; c++)
				sums[(size_t)image * data->channels + c] = (float)total[c - first];
		}
}

void sums_over_rows(uint32_t rows, const float *src, uint32_t stride, uint32_t channels, float *dst,
	bool accumulate)
{
	for (uint32_t c = 0; c < channels; c++) {
		double total = 0.0;
		for (uint32_t row = 0; row < rows; row++)
			total += (double)src[(size_t)row * stride + c];
		dst[c] = (accumulate ? dst[c] : 0.0f) + (float)total;
	}
}
