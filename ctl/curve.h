/* A loss curve in a bounded number of points, drawn with characters. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CURVE_POINTS 2048

struct curve {
	int count;
	uint64_t stride; /* rows behind one point: doubled when it is full */
	uint64_t pending;
	double pending_sum;
	uint64_t last_step;
	struct {
		uint64_t step;
		double value;
	} points[CURVE_POINTS];
};

void curve_init(struct curve *curve);
/* Steps only grow; the same step again replaces nothing and is ignored. Non-finite is ignored. */
void curve_add(struct curve *curve, uint64_t step, double value);

/* Draws width x height cells, top line first, on a logarithmic scale when the values allow it: each
 * line is handed to line(). utf8: braille dots, else one '*' a cell. *ret_min and *ret_max: the
 * ends of the scale. False when there are too few points. */
bool curve_draw(const struct curve *curve, int width, int height, bool utf8,
	void (*line)(void *context, const char *text), void *context, double *ret_min,
	double *ret_max);
