/* Sums of gradients in a fixed order: the outputs are split among threads, never the sums. */
#include "daemon/ops/sums.h"

#define CHANNEL_BLOCK 64

static void block_sums(
	const struct layout *layout, const float *data, uint32_t width, uint32_t count, float *sums)
{
	double total[CHANNEL_BLOCK] = {0};
	for (uint32_t y = 0; y < layout->height; y++) {
		float row[CHANNEL_BLOCK] = {0};
		for (uint32_t x = 0; x < layout->width; x++) {
			const float *in = data + (layout_row(layout, 0, y) + x) * width;
#pragma omp simd
			for (uint32_t c = 0; c < count; c++)
				row[c] += in[c];
		}
		for (uint32_t c = 0; c < count; c++)
			total[c] += (double)row[c];
	}
	for (uint32_t c = 0; c < count; c++)
		sums[c] = (float)total[c];
}

void sums_per_image(const struct layout *layout, uint32_t n, const float *data, uint32_t channels,
	uint32_t width, float *sums)
{
	uint32_t blocks = (channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (uint32_t image = 0; image < n; image++)
		for (uint32_t block = 0; block < blocks; block++) {
			uint32_t first = block * CHANNEL_BLOCK, left = channels - first;
			block_sums(layout, data + layout_row(layout, image, 0) * width + first,
				width, left < CHANNEL_BLOCK ? left : CHANNEL_BLOCK,
				sums + (size_t)image * channels + first);
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
