/* Builds a scene from tables of body plans and paints it row by row: each shape is blended by how
 * much of a pixel it covers, judged from the distance to its edge. See cars.h. */
#include "daemon/data/cars.h"
#include "base/panic.h"

#include <string.h>

/* A corner in the car's own frame: along from tail (0) to nose (1), up from the road, both in car
 * lengths. */
struct corner {
	float along, up;
};

#define OUTLINE_MAX 8
#define WINDOW_CORNERS 4
#define WINDOWS_MAX 3

/* What makes a class. Convex outlines, given clockwise from the tail's lower corner. */
struct body_plan {
	float length; /* of the picture's width */
	float rear_wheel, front_wheel, wheel_radius;
	float tail_light_up, head_light_up;
	uint32_t lower_count, cabin_count, window_count, door_count;
	struct corner lower[OUTLINE_MAX], cabin[OUTLINE_MAX];
	struct corner windows[WINDOWS_MAX][WINDOW_CORNERS];
	float doors[2]; /* seams, along */
	float door_top;
};

enum { SEDAN, HATCHBACK, VAN, PICKUP };

static const struct body_plan plans[CARS_CLASS_COUNT] = {
	[SEDAN] = {.length = 0.90f,
		.rear_wheel = 0.20f,
		.front_wheel = 0.80f,
		.wheel_radius = 0.088f,
		.tail_light_up = 0.170f,
		.head_light_up = 0.150f,
		.lower_count = 8,
		.lower = {{0.02f, 0.07f}, {0.00f, 0.11f}, {0.00f, 0.19f}, {0.05f, 0.215f},
			{0.78f, 0.215f}, {0.96f, 0.180f}, {1.00f, 0.14f}, {0.99f, 0.07f}},
		.cabin_count = 6,
		.cabin = {{0.10f, 0.20f}, {0.26f, 0.325f}, {0.34f, 0.345f}, {0.54f, 0.345f},
			{0.62f, 0.325f}, {0.82f, 0.20f}},
		.window_count = 2,
		.windows = {{{0.20f, 0.225f}, {0.30f, 0.315f}, {0.44f, 0.315f}, {0.44f, 0.225f}},
			{{0.48f, 0.225f}, {0.48f, 0.315f}, {0.585f, 0.315f}, {0.72f, 0.225f}}},
		.door_count = 2,
		.doors = {0.46f, 0.70f},
		.door_top = 0.215f},
	[HATCHBACK] = {.length = 0.76f,
		.rear_wheel = 0.20f,
		.front_wheel = 0.80f,
		.wheel_radius = 0.104f,
		.tail_light_up = 0.230f,
		.head_light_up = 0.185f,
		.lower_count = 8,
		.lower = {{0.02f, 0.08f}, {0.00f, 0.13f}, {0.00f, 0.24f}, {0.05f, 0.265f},
			{0.76f, 0.260f}, {0.95f, 0.220f}, {1.00f, 0.17f}, {0.99f, 0.08f}},
		.cabin_count = 6,
		.cabin = {{0.00f, 0.22f}, {0.06f, 0.39f}, {0.15f, 0.43f}, {0.48f, 0.43f},
			{0.56f, 0.41f}, {0.80f, 0.24f}},
		.window_count = 2,
		.windows = {{{0.08f, 0.275f}, {0.13f, 0.385f}, {0.36f, 0.390f}, {0.36f, 0.275f}},
			{{0.41f, 0.275f}, {0.41f, 0.390f}, {0.51f, 0.385f}, {0.68f, 0.275f}}},
		.door_count = 2,
		.doors = {0.385f, 0.66f},
		.door_top = 0.265f},
	[VAN] = {.length = 0.90f,
		.rear_wheel = 0.19f,
		.front_wheel = 0.80f,
		.wheel_radius = 0.088f,
		.tail_light_up = 0.190f,
		.head_light_up = 0.160f,
		.lower_count = 8,
		.lower = {{0.02f, 0.07f}, {0.00f, 0.11f}, {0.00f, 0.22f}, {0.03f, 0.235f},
			{0.88f, 0.235f}, {0.97f, 0.205f}, {1.00f, 0.15f}, {0.99f, 0.07f}},
		.cabin_count = 6,
		.cabin = {{0.00f, 0.20f}, {0.00f, 0.45f}, {0.03f, 0.48f}, {0.68f, 0.48f},
			{0.75f, 0.455f}, {0.92f, 0.21f}},
		.window_count = 3,
		.windows = {{{0.05f, 0.28f}, {0.05f, 0.42f}, {0.27f, 0.42f}, {0.27f, 0.28f}},
			{{0.32f, 0.28f}, {0.32f, 0.42f}, {0.54f, 0.42f}, {0.54f, 0.28f}},
			{{0.59f, 0.28f}, {0.59f, 0.42f}, {0.72f, 0.42f}, {0.82f, 0.28f}}},
		.door_count = 2,
		.doors = {0.565f, 0.79f},
		.door_top = 0.26f},
	[PICKUP] = {.length = 0.92f,
		.rear_wheel = 0.20f,
		.front_wheel = 0.80f,
		.wheel_radius = 0.096f,
		.tail_light_up = 0.190f,
		.head_light_up = 0.170f,
		.lower_count = 8,
		.lower = {{0.01f, 0.09f}, {0.00f, 0.12f}, {0.00f, 0.225f}, {0.02f, 0.235f},
			{0.82f, 0.230f}, {0.97f, 0.205f}, {1.00f, 0.16f}, {0.99f, 0.09f}},
		.cabin_count = 6,
		.cabin = {{0.40f, 0.21f}, {0.42f, 0.36f}, {0.46f, 0.385f}, {0.62f, 0.385f},
			{0.67f, 0.365f}, {0.81f, 0.21f}},
		.window_count = 1,
		.windows = {{{0.46f, 0.24f}, {0.47f, 0.345f}, {0.625f, 0.345f}, {0.72f, 0.24f}}},
		.door_count = 2,
		.doors = {0.43f, 0.69f},
		.door_top = 0.23f},
};

static const struct car_colour paints[] = {
	{0.80f, 0.10f, 0.10f}, /* red */
	{0.12f, 0.30f, 0.75f}, /* blue */
	{0.95f, 0.75f, 0.12f}, /* yellow */
	{0.10f, 0.50f, 0.25f}, /* green */
	{0.92f, 0.92f, 0.92f}, /* white */
	{0.93f, 0.45f, 0.10f}, /* orange */
	{0.30f, 0.75f, 0.80f}, /* turquoise */
	{0.20f, 0.20f, 0.24f}, /* black */
};

/* Sky at the top, sky at the horizon, the verge. */
static const struct car_colour scenery[][3] = {
	{{0.30f, 0.55f, 0.92f}, {0.78f, 0.89f, 0.98f}, {0.36f, 0.58f, 0.28f}}, /* day */
	{{0.55f, 0.62f, 0.70f}, {0.82f, 0.85f, 0.88f}, {0.42f, 0.50f, 0.34f}}, /* overcast */
	{{0.35f, 0.36f, 0.66f}, {0.98f, 0.72f, 0.50f}, {0.40f, 0.40f, 0.26f}}, /* evening */
	{{0.38f, 0.68f, 0.90f}, {0.93f, 0.90f, 0.78f}, {0.80f, 0.70f, 0.48f}}, /* desert */
};

static const struct car_colour black = {0.0f, 0.0f, 0.0f};
static const struct car_colour tyre = {0.09f, 0.09f, 0.10f};
static const struct car_colour glass_upper = {0.62f, 0.76f, 0.84f};
static const struct car_colour glass_lower = {0.20f, 0.28f, 0.36f};

static struct car_colour mix(struct car_colour a, struct car_colour b, float t)
{
	return (struct car_colour){a.red + (b.red - a.red) * t, a.green + (b.green - a.green) * t,
		a.blue + (b.blue - a.blue) * t};
}

static float clamp_unit(float value)
{
	return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

static struct car_colour scale(struct car_colour c, float by)
{
	return (struct car_colour){
		clamp_unit(c.red * by), clamp_unit(c.green * by), clamp_unit(c.blue * by)};
}

/* The car's frame in the picture, and what is being drawn. */
struct pen {
	struct car_scene *scene;
	float tail_x, road_y, length;
};

static struct car_shape *add_shape(
	struct pen *pen, struct car_colour upper, struct car_colour lower, float opacity)
{
	CHECK(pen->scene->shape_count < CARS_SHAPES_MAX);
	struct car_shape *shape = &pen->scene->shapes[pen->scene->shape_count++];
	*shape = (struct car_shape){.upper = upper, .lower = lower, .opacity = opacity};
	return shape;
}

static void add_ellipse(struct pen *pen, struct corner centre, float radius_along, float radius_up,
	struct car_colour upper, struct car_colour lower, float opacity)
{
	struct car_shape *shape = add_shape(pen, upper, lower, opacity);

	shape->kind = CAR_ELLIPSE;
	shape->centre_x = pen->tail_x + centre.along * pen->length;
	shape->centre_y = pen->road_y - centre.up * pen->length;
	shape->radius_x = radius_along * pen->length;
	shape->radius_y = radius_up * pen->length;
	shape->left = shape->centre_x - shape->radius_x;
	shape->right = shape->centre_x + shape->radius_x;
	shape->top = shape->centre_y - shape->radius_y;
	shape->bottom = shape->centre_y + shape->radius_y;
}

/* Half planes of a convex outline given clockwise on the picture (y down). */
static void add_polygon(struct pen *pen, const struct corner *corners, uint32_t count,
	struct car_colour upper, struct car_colour lower, float opacity)
{
	struct car_shape *shape = add_shape(pen, upper, lower, opacity);

	CHECK(count <= CARS_EDGES_MAX);
	shape->kind = CAR_POLYGON;
	shape->left = shape->top = 2.0f;
	shape->right = shape->bottom = -1.0f;
	for (uint32_t i = 0; i < count; i++) {
		const struct corner *a = &corners[i], *b = &corners[(i + 1) % count];
		float x = pen->tail_x + a->along * pen->length;
		float y = pen->road_y - a->up * pen->length;
		float dx = (b->along - a->along) * pen->length;
		float dy = (a->up - b->up) * pen->length;
		float length = __builtin_sqrtf(dx * dx + dy * dy);
		if (length > 0.0f) {
			uint32_t e = shape->edge_count++;
			shape->normal_x[e] = dy / length;
			shape->normal_y[e] = -dx / length;
			shape->offset[e] = shape->normal_x[e] * x + shape->normal_y[e] * y;
		}
		shape->left = x < shape->left ? x : shape->left;
		shape->right = x > shape->right ? x : shape->right;
		shape->top = y < shape->top ? y : shape->top;
		shape->bottom = y > shape->bottom ? y : shape->bottom;
	}
}

/* The same with each corner cut once (Chaikin 1974): twice as many corners. */
static void add_smooth_polygon(struct pen *pen, const struct corner *corners, uint32_t count,
	struct car_colour upper, struct car_colour lower, float opacity)
{
	struct corner cut[CARS_EDGES_MAX];

	CHECK(2 * count <= CARS_EDGES_MAX);
	for (uint32_t i = 0; i < count; i++) {
		const struct corner *a = &corners[i], *b = &corners[(i + 1) % count];
		cut[2 * i] = (struct corner){
			0.85f * a->along + 0.15f * b->along, 0.85f * a->up + 0.15f * b->up};
		cut[2 * i + 1] = (struct corner){
			0.15f * a->along + 0.85f * b->along, 0.15f * a->up + 0.85f * b->up};
	}
	add_polygon(pen, cut, 2 * count, upper, lower, opacity);
}

static void add_box(struct pen *pen, float along, float up, float width, float height,
	struct car_colour colour, float opacity)
{
	struct corner corners[4] = {{along, up}, {along, up + height}, {along + width, up + height},
		{along + width, up}};

	add_polygon(pen, corners, 4, colour, colour, opacity);
}

static void draw_wheel(struct pen *pen, float along, float radius, struct car_colour rim)
{
	struct corner centre = {along, radius};

	add_ellipse(pen, centre, radius * 1.22f, radius * 1.22f, scale(tyre, 0.6f), black, 0.9f);
	add_ellipse(pen, centre, radius, radius, tyre, tyre, 1.0f);
	add_ellipse(pen, centre, radius * 0.60f, radius * 0.60f, rim, scale(rim, 0.75f), 1.0f);
	add_ellipse(pen, centre, radius * 0.20f, radius * 0.20f, scale(rim, 0.4f), scale(rim, 0.4f),
		1.0f);
}

static void draw_body(struct pen *pen, const struct body_plan *plan, struct car_colour paint)
{
	struct car_colour bright = mix(paint, (struct car_colour){1.0f, 1.0f, 1.0f}, 0.22f);
	struct car_colour shade = scale(paint, 0.62f);

	add_ellipse(pen, (struct corner){0.5f, 0.004f}, 0.54f, 0.036f, black, black, 0.5f);
	add_smooth_polygon(pen, plan->cabin, plan->cabin_count, bright, paint, 1.0f);
	add_smooth_polygon(pen, plan->lower, plan->lower_count, bright, shade, 1.0f);
	for (uint32_t i = 0; i < plan->window_count; i++)
		add_polygon(pen, plan->windows[i], WINDOW_CORNERS, glass_upper, glass_lower, 1.0f);
	for (uint32_t i = 0; i < plan->door_count; i++) {
		add_box(pen, plan->doors[i] - 0.004f, 0.10f, 0.008f, plan->door_top - 0.10f, black,
			0.35f);
		add_box(pen, plan->doors[i] - 0.06f, plan->door_top - 0.035f, 0.035f, 0.010f, black,
			0.5f);
	}
	add_box(pen, 0.03f, 0.085f, 0.94f, 0.016f, black, 0.35f);
	add_ellipse(pen, (struct corner){0.020f, plan->tail_light_up}, 0.020f, 0.024f,
		(struct car_colour){0.95f, 0.15f, 0.10f}, (struct car_colour){0.60f, 0.02f, 0.02f},
		1.0f);
	add_ellipse(pen, (struct corner){0.960f, plan->head_light_up}, 0.028f, 0.024f,
		(struct car_colour){1.0f, 0.98f, 0.80f}, (struct car_colour){0.95f, 0.85f, 0.45f},
		1.0f);
}

/* Sixteen numbers in [0, 1), each from two bytes of the image's own stream. */
enum draw {
	DRAW_CLASS,
	DRAW_PAINT,
	DRAW_PAINT_SHADE,
	DRAW_SCENERY,
	DRAW_SKY,
	DRAW_HORIZON,
	DRAW_ROAD,
	DRAW_LENGTH,
	DRAW_ALONG,
	DRAW_UP,
	DRAW_RIM,
	DRAW_STRIPE,
	DRAW_COUNT
};

static float between(float low, float high, float t)
{
	return low + (high - low) * t;
}

static void draw_backdrop(struct pen *pen, const float draws[DRAW_COUNT])
{
	struct car_scene *scene = pen->scene;
	const size_t count = sizeof(scenery) / sizeof(scenery[0]);
	const struct car_colour *colours = scenery[(size_t)(draws[DRAW_SCENERY] * (float)count)];
	float light = between(0.92f, 1.06f, draws[DRAW_SKY]);
	float grey = between(0.30f, 0.44f, draws[DRAW_ROAD]);
	struct car_colour asphalt = {grey, grey, grey * 1.04f};

	scene->horizon = between(0.48f, 0.54f, draws[DRAW_HORIZON]);
	scene->zenith = scale(colours[0], light);
	scene->haze = scale(colours[1], light);
	scene->road_far = scale(asphalt, 1.15f);
	scene->road_near = scale(asphalt, 0.85f);
	/* The verge, and a painted line on the road: boxes in the picture's own frame. */
	struct pen picture = {.scene = scene, .road_y = 1.0f, .length = 1.0f};
	add_box(&picture, -0.1f, 1.0f - scene->horizon - 0.11f, 1.2f, 0.11f,
		scale(colours[2], light), 1.0f);
	float phase = draws[DRAW_STRIPE] * 0.5f;
	for (int i = 0; i < 3; i++)
		add_box(&picture, phase - 0.5f + 0.5f * (float)i, 0.075f, 0.28f, 0.028f,
			(struct car_colour){0.92f, 0.92f, 0.86f}, 0.85f);
}

void cars_scene(const struct rng *rng, uint64_t index, struct car_scene *ret)
{
	const size_t paint_count = sizeof(paints) / sizeof(paints[0]);
	uint8_t bytes[2 * DRAW_COUNT];
	float draws[DRAW_COUNT];

	rng_bytes(rng, RNG_DATA, 0, index, bytes, sizeof(bytes));
	for (unsigned i = 0; i < DRAW_COUNT; i++)
		draws[i] = (float)(bytes[2 * i] | bytes[2 * i + 1] << 8) * (1.0f / 65536.0f);

	ret->shape_count = 0;
	ret->class = (int32_t)(draws[DRAW_CLASS] * CARS_CLASS_COUNT);
	const struct body_plan *plan = &plans[ret->class];
	struct pen pen = {.scene = ret};
	pen.length = plan->length * between(0.92f, 1.0f, draws[DRAW_LENGTH]);
	pen.tail_x = 0.5f - 0.5f * pen.length + between(-0.03f, 0.03f, draws[DRAW_ALONG]);
	pen.road_y = between(0.76f, 0.81f, draws[DRAW_UP]);

	draw_backdrop(&pen, draws);
	struct car_colour paint = scale(paints[(size_t)(draws[DRAW_PAINT] * (float)paint_count)],
		between(0.85f, 1.08f, draws[DRAW_PAINT_SHADE]));
	draw_body(&pen, plan, paint);
	float silver = between(0.65f, 0.95f, draws[DRAW_RIM]);
	struct car_colour rim = {silver, silver, silver};
	draw_wheel(&pen, plan->rear_wheel, plan->wheel_radius, rim);
	draw_wheel(&pen, plan->front_wheel, plan->wheel_radius, rim);
}

/* Signed distance from the edge, negative inside; exact far from corners. */
static float shape_distance(const struct car_shape *shape, float x, float y)
{
	if (shape->kind == CAR_ELLIPSE) {
		float dx = (x - shape->centre_x) / shape->radius_x;
		float dy = (y - shape->centre_y) / shape->radius_y;
		float least = shape->radius_x < shape->radius_y ? shape->radius_x : shape->radius_y;
		return (__builtin_sqrtf(dx * dx + dy * dy) - 1.0f) * least;
	}
	float distance = -1.0f;
	for (uint32_t e = 0; e < shape->edge_count; e++) {
		float d = shape->normal_x[e] * x + shape->normal_y[e] * y - shape->offset[e];
		distance = d > distance ? d : distance;
	}
	return distance;
}

static void blend_shape(
	const struct car_shape *shape, float size, float y, uint32_t width, struct car_colour *row)
{
	float pixel = 1.0f / size;

	if (y < shape->top - pixel || y > shape->bottom + pixel)
		return;
	float first = (shape->left - pixel) * size, last = (shape->right + pixel) * size;
	uint32_t begin = first > 0.0f ? (uint32_t)first : 0;
	uint32_t end = last < size ? (uint32_t)(last > 0.0f ? last : 0.0f) : width;
	float height = shape->bottom - shape->top;
	struct car_colour colour = mix(shape->upper, shape->lower,
		clamp_unit(height > 0.0f ? (y - shape->top) / height : 0.0f));

	for (uint32_t i = begin; i < end; i++) {
		float distance = shape_distance(shape, ((float)i + 0.5f) * pixel, y);
		float cover = clamp_unit(0.5f - distance * size) * shape->opacity;
		row[i] = mix(row[i], colour, cover);
	}
}

static uint8_t to_byte(float value)
{
	return (uint8_t)(clamp_unit(value) * 255.0f + 0.5f);
}

void cars_row(const struct car_scene *scene, uint32_t size, uint32_t row, uint8_t *rgb)
{
	struct car_colour pixels[CARS_SIZE_MAX];

	CHECK(size <= CARS_SIZE_MAX && row < size);
	float y = ((float)row + 0.5f) / (float)size;
	struct car_colour backdrop = mix(scene->zenith, scene->haze, y / scene->horizon);
	if (y >= scene->horizon)
		backdrop = mix(scene->road_far, scene->road_near,
			(y - scene->horizon) / (1.0f - scene->horizon));
	for (uint32_t i = 0; i < size; i++)
		pixels[i] = backdrop;
	for (uint32_t s = 0; s < scene->shape_count; s++)
		blend_shape(&scene->shapes[s], (float)size, y, size, pixels);
	for (uint32_t i = 0; i < size; i++) {
		rgb[3 * i] = to_byte(pixels[i].red);
		rgb[3 * i + 1] = to_byte(pixels[i].green);
		rgb[3 * i + 2] = to_byte(pixels[i].blue);
	}
}
