/* Drawn cars: a side view of one car on a road, a function of (seed, index) alone, at any size.
 * Four classes: sedan, hatchback, van, pickup. Pure fp32 arithmetic without libm and without
 * contraction, so the bytes are the same on every machine; they are part of a run's identity. */
#pragma once

#include "base/rng.h"

#include <stdint.h>

#define CARS_CLASS_COUNT 4
#define CARS_SIZE_MAX 1024 /* pixels of a row */
#define CARS_SHAPES_MAX 32
#define CARS_EDGES_MAX 16

struct car_colour {
	float red, green, blue; /* 0..1 */
};

enum car_shape_kind { CAR_POLYGON, CAR_ELLIPSE };

/* One filled shape, edges softened over one pixel. The picture is 1 wide and 1 high, y down. */
struct car_shape {
	enum car_shape_kind kind;
	uint32_t edge_count;
	float normal_x[CARS_EDGES_MAX], normal_y[CARS_EDGES_MAX], offset[CARS_EDGES_MAX];
	float centre_x, centre_y, radius_x, radius_y; /* ellipse */
	float left, right, top, bottom;               /* bounds */
	struct car_colour upper, lower;               /* shading from top to bottom */
	float opacity;
};

struct car_scene {
	int32_t class;
	float horizon;
	struct car_colour zenith, haze, road_far, road_near;
	uint32_t shape_count;
	struct car_shape shapes[CARS_SHAPES_MAX]; /* painted in this order */
};

void cars_scene(const struct rng *rng, uint64_t index, struct car_scene *ret);
/* Row y of the picture of size x size pixels: rgb [size][3]. */
void cars_row(const struct car_scene *scene, uint32_t size, uint32_t y, uint8_t *rgb);
