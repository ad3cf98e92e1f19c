/* Any picture to a square of the training size: centre crop, then area average (down) or bicubic
 * (up). Pure, without libm: the weights are integers (down) or fixed fp32 expressions (up), so the
 * bytes are the same on every machine. They are part of a run's identity. */
#include "daemon/image/image.h"
#include "base/panic.h"

#include <string.h>

/* The square inside the picture that is kept. */
struct crop {
	const uint8_t *rgb; /* its first pixel */
	size_t pitch;       /* bytes from row to row */
	uint32_t side;
};

/* The source pixels under an output pixel. Output pixel o covers [o side, (o + 1) side) in units of
 * 1/size source pixel, source pixel j [j size, (j + 1) size): the overlaps are exact integers that
 * sum to side; all but the first and the last are size. */
struct span {
	uint32_t first, last; /* first < last, because side > size */
	uint32_t first_weight, last_weight;
};

static struct span span_of(uint32_t o, uint32_t side, uint32_t size)
{
	uint64_t begin = (uint64_t)o * side, end = begin + side;
	struct span span = {
		.first = (uint32_t)(begin / size), .last = (uint32_t)((end - 1) / size)};

	span.first_weight = (uint32_t)(((uint64_t)span.first + 1) * size - begin);
	span.last_weight = (uint32_t)(end - (uint64_t)span.last * size);
	return span;
}

/* The weighted sum of a row's pixels under columns: at most 255 side, which fits. */
static void add_row(const uint8_t *row, const struct span *columns, uint32_t size, uint64_t weight,
	uint64_t sum[3])
{
	uint32_t inner[3] = {0};
	const uint8_t *first = row + (size_t)3 * columns->first;
	const uint8_t *last = row + (size_t)3 * columns->last;

	for (const uint8_t *pixel = first + 3; pixel < last; pixel += 3)
		for (unsigned c = 0; c < 3; c++)
			inner[c] += pixel[c];
	for (unsigned c = 0; c < 3; c++)
		sum[c] += weight *
			(inner[c] * size + first[c] * columns->first_weight +
				last[c] * columns->last_weight);
}

static void average(const struct crop *crop, uint32_t size, uint32_t ox, uint32_t oy, uint8_t *out)
{
	struct span columns = span_of(ox, crop->side, size), rows = span_of(oy, crop->side, size);
	uint64_t area = (uint64_t)crop->side * crop->side, sum[3] = {0};

	for (uint32_t y = rows.first; y <= rows.last; y++) {
		uint32_t weight = y == rows.first ? rows.first_weight
			: y == rows.last          ? rows.last_weight
						  : size;
		add_row(crop->rgb + y * crop->pitch, &columns, size, weight, sum);
	}
	for (unsigned c = 0; c < 3; c++)
		out[c] = (uint8_t)((sum[c] + area / 2) / area);
}

/* Keys' cubic convolution kernel, a = -1/2, at distance x (Keys 1981, eq. 15). */
static float cubic(float x)
{
	x = x < 0.0f ? -x : x;
	if (x < 1.0f)
		return (1.5f * x - 2.5f) * x * x + 1.0f;
	if (x < 2.0f)
		return ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
	return 0.0f;
}

/* The four source positions (clamped to the edge) and weights of output position o. */
static void taps(uint32_t o, uint32_t side, uint32_t size, uint32_t position[4], float weight[4])
{
	int64_t twice = (int64_t)(2 * o + 1) * side - size; /* centre * 2 size */
	int64_t first = (twice + 2 * (int64_t)size) / (2 * (int64_t)size) - 1;
	float fraction = (float)(twice - first * 2 * (int64_t)size) / (float)(2 * (int64_t)size);

	for (int k = 0; k < 4; k++) {
		int64_t at = first + k - 1;
		position[k] = (uint32_t)(at < 0 ? 0 : at >= side ? side - 1 : at);
		weight[k] = cubic(fraction - (float)(k - 1));
	}
}

static void interpolate(
	const struct crop *crop, uint32_t size, uint32_t ox, uint32_t oy, uint8_t *out)
{
	uint32_t x[4], y[4];
	float x_weight[4], y_weight[4];

	taps(ox, crop->side, size, x, x_weight);
	taps(oy, crop->side, size, y, y_weight);
	for (unsigned c = 0; c < 3; c++) {
		float sum = 0.5f;
		for (unsigned j = 0; j < 4; j++) {
			const uint8_t *row = crop->rgb + y[j] * crop->pitch + c;
			float row_sum = 0.0f;
			for (unsigned i = 0; i < 4; i++)
				row_sum += x_weight[i] * (float)row[3 * x[i]];
			sum += y_weight[j] * row_sum;
		}
		out[c] = (uint8_t)(sum < 0.0f ? 0.0f : sum > 255.0f ? 255.0f : sum);
	}
}

void image_square(const struct image *image, uint32_t size, uint8_t *out)
{
	uint32_t side = image->width < image->height ? image->width : image->height;
	struct crop crop = {.pitch = (size_t)image->width * 3, .side = side};

	CHECK(side > 0 && side <= IMAGE_SIDE_MAX && size > 0 && size <= IMAGE_SIDE_MAX);
	crop.rgb = image->rgb + (image->height - side) / 2 * crop.pitch +
		(size_t)((image->width - side) / 2) * 3;
	for (uint32_t oy = 0; oy < size; oy++) {
		uint8_t *row = out + (size_t)oy * size * 3;
		if (side == size) {
			memcpy(row, crop.rgb + oy * crop.pitch, (size_t)size * 3);
			continue;
		}
		for (uint32_t ox = 0; ox < size; ox++) {
			if (side > size)
				average(&crop, size, ox, oy, row + (size_t)ox * 3);
			else
				interpolate(&crop, size, ox, oy, row + (size_t)ox * 3);
		}
	}
}
