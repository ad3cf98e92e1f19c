/* The loss curve: points are merged in pairs when there are too many, and drawn as the mean of what
 * falls on each column of dots. */
#include "ctl/curve.h"

#include "base/panic.h"

#include <math.h>
#include <string.h>

#define WIDTH_MAX 512
#define HEIGHT_MAX 64
#define POINTS_MIN 3

void curve_init(struct curve *curve)
{
	memset(curve, 0, sizeof(*curve));
	curve->stride = 1;
}

static void halve(struct curve *curve)
{
	for (int i = 0; i < curve->count / 2; i++) {
		curve->points[i].step = curve->points[2 * i + 1].step;
		curve->points[i].value =
			(curve->points[2 * i].value + curve->points[2 * i + 1].value) / 2.0;
	}
	curve->count /= 2;
	curve->stride *= 2;
}

void curve_add(struct curve *curve, uint64_t step, double value)
{
	if (!isfinite(value) || (curve->last_step > 0 && step <= curve->last_step))
		return;
	curve->last_step = step;
	curve->pending_sum += value;
	if (++curve->pending < curve->stride)
		return;
	if (curve->count == CURVE_POINTS)
		halve(curve);
	curve->points[curve->count].step = step;
	curve->points[curve->count++].value = curve->pending_sum / (double)curve->pending;
	curve->pending = 0;
	curve->pending_sum = 0.0;
}

/* The mean value of each of columns columns; NaN where nothing falls. */
static void columns_fill(const struct curve *curve, int columns, double *means)
{
	double first = (double)curve->points[0].step;
	double span = (double)curve->points[curve->count - 1].step - first;
	int counts[2 * WIDTH_MAX] = {0};

	for (int i = 0; i < columns; i++)
		means[i] = 0.0;
	for (int i = 0; i < curve->count; i++) {
		double share = span > 0.0 ? ((double)curve->points[i].step - first) / span : 0.0;
		int column = (int)(share * (columns - 1) + 0.5);

		means[column] += curve->points[i].value;
		counts[column]++;
	}
	for (int i = 0; i < columns; i++)
		means[i] = counts[i] > 0 ? means[i] / counts[i] : NAN;
}

/* Fills the gaps between known columns on straight lines. */
static void columns_join(int columns, double *values)
{
	int known = -1;

	for (int i = 0; i < columns; i++) {
		if (isnan(values[i]))
			continue;
		for (int j = known + 1; known >= 0 && j < i; j++)
			values[j] = values[known] +
				(values[i] - values[known]) * (j - known) / (i - known);
		known = i;
	}
}

struct canvas {
	int columns, rows;
	uint8_t dots[4 * HEIGHT_MAX][2 * WIDTH_MAX];
};

static void canvas_plot(struct canvas *canvas, const double *values, double low, double high)
{
	int previous = -1;

	for (int column = 0; column < canvas->columns; column++) {
		double share = high > low ? (values[column] - low) / (high - low) : 0.5;
		int row = (int)((1.0 - share) * (canvas->rows - 1) + 0.5);

		if (isnan(values[column]))
			continue;
		row = row < 0 ? 0 : row >= canvas->rows ? canvas->rows - 1 : row;
		int from = previous < 0 ? row : previous;
		int step = from < row ? 1 : -1;
		for (int i = from; i != row; i += step)
			canvas->dots[i][column] = 1;
		canvas->dots[row][column] = 1;
		previous = row;
	}
}

/* One line of braille cells, 2 x 4 dots each (Unicode: U+2800 plus a bit for each dot). */
static void braille_line(const struct canvas *canvas, int top, int width, char *text)
{
	static const uint8_t bits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};

	for (int cell = 0; cell < width; cell++) {
		unsigned mask = 0;

		for (int y = 0; y < 4; y++)
			for (int x = 0; x < 2; x++)
				if (canvas->dots[top + y][2 * cell + x])
					mask |= bits[y][x];
		*text++ = (char)0xe2;
		*text++ = (char)(0xa0 | mask >> 6);
		*text++ = (char)(0x80 | (mask & 0x3f));
	}
	*text = '\0';
}

bool curve_draw(const struct curve *curve, int width, int height, bool utf8,
	void (*line)(void *context, const char *text), void *context, double *ret_min,
	double *ret_max)
{
	static struct canvas canvas; /* 256 KiB; one thread draws */
	char text[3 * WIDTH_MAX + 1];
	double values[2 * WIDTH_MAX], low = INFINITY, high = -INFINITY;

	CHECK(width > 0 && height > 0);
	width = width > WIDTH_MAX ? WIDTH_MAX : width;
	height = height > HEIGHT_MAX ? HEIGHT_MAX : height;
	if (curve->count < POINTS_MIN)
		return false;
	canvas.columns = utf8 ? 2 * width : width;
	canvas.rows = utf8 ? 4 * height : height;
	memset(canvas.dots, 0, sizeof(canvas.dots));
	columns_fill(curve, canvas.columns, values);
	columns_join(canvas.columns, values);
	for (int i = 0; i < canvas.columns; i++) {
		low = values[i] < low ? values[i] : low;
		high = values[i] > high ? values[i] : high;
	}
	*ret_min = low;
	*ret_max = high;
	bool logarithmic = low > 0.0;
	for (int i = 0; logarithmic && i < canvas.columns; i++)
		values[i] = log(values[i]);
	canvas_plot(&canvas, values, logarithmic ? log(low) : low, logarithmic ? log(high) : high);
	for (int row = 0; row < height; row++) {
		if (utf8) {
			braille_line(&canvas, 4 * row, width, text);
		} else {
			for (int i = 0; i < width; i++)
				text[i] = canvas.dots[row][i] ? '*' : ' ';
			text[width] = '\0';
		}
		line(context, text);
	}
	return true;
}
