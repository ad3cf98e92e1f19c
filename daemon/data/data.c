/* Chooses the source by name and turns its rows into what training reads. Reading takes no lock
 * and no memory. */
#include "daemon/data/data.h"
#include "base/panic.h"
#include "daemon/data/cars.h"
#include "daemon/data/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CARS_TRAIN_COUNT ((uint64_t)1 << 31)
#define CARS_HOLDOUT_COUNT ((uint64_t)1 << 20)

struct data_impl {
	bool cars, labels;
	uint32_t image_size;
	uint64_t train_count;
	struct rng rng;   /* cars */
	struct pack pack; /* folder */
};

/* One image while it is read. */
struct sample {
	const struct data_impl *impl;
	const uint8_t *pixels; /* folder */
	struct car_scene scene;
};

/* The folder's path, or NULL for cars. */
static int parse_source(const struct data_config *config, const char **ret_dir, struct error *err)
{
	const size_t prefix = strlen(FOLDER_PREFIX);

	*ret_dir = NULL;
	if (config->image_size == 0 || config->image_size > PACK_IMAGE_SIZE_MAX)
		return error_set(err, -EINVAL, "image_size = %u: must be 1 to %d",
			config->image_size, PACK_IMAGE_SIZE_MAX);
	if (strcmp(config->source, "cars") == 0)
		return 0;
	if (strncmp(config->source, FOLDER_PREFIX, prefix) != 0 || !config->source[prefix])
		return error_set(err, -EINVAL, "data = %s: unknown source: use cars or folder:DIR",
			config->source);
	*ret_dir = config->source + prefix;
	return 0;
}

int data_prepare(const struct data_config *config, _Atomic uint64_t *moves, data_report *report,
	void *context, struct error *err)
{
	const char *dir;
	int r = parse_source(config, &dir, err);

	return r < 0 || !dir ? r : folder_prepare(config, dir, moves, report, context, err);
}

static void open_cars(const struct data_config *config, struct data *data)
{
	char identity[128];

	rng_init(&data->impl->rng, config->seed);
	data->train_count = CARS_TRAIN_COUNT;
	data->holdout_count = config->holdout_percent > 0.0 ? CARS_HOLDOUT_COUNT : 0;
	data->class_count = config->labels ? CARS_CLASS_COUNT : 0;
	int length = snprintf(identity, sizeof(identity),
		"cars 1 size %u seed %llu labels %d holdout %d", config->image_size,
		(unsigned long long)config->seed, config->labels, data->holdout_count > 0);
	data->digest = digest_of(identity, (size_t)length);
	snprintf(data->text, sizeof(data->text), "drawn cars%s",
		data->class_count ? ", 4 classes" : "");
}

static int open_folder(
	const struct data_config *config, const char *dir, struct data *data, struct error *err)
{
	const struct pack_header *header;
	int r = folder_open(config, dir, &data->impl->pack, err);

	if (r < 0)
		return r;
	header = data->impl->pack.header;
	data->holdout_count = header->holdout_count;
	data->train_count = header->image_count - header->holdout_count;
	data->class_count = header->class_count;
	data->digest = header->set;
	int length = snprintf(data->text, sizeof(data->text),
		"folder %.80s: %llu images, %llu held out, %llu skipped", dir,
		(unsigned long long)header->image_count, (unsigned long long)header->holdout_count,
		(unsigned long long)header->skipped_count);
	if (header->class_count && length < (int)sizeof(data->text))
		snprintf(data->text + length, sizeof(data->text) - (size_t)length, ", %u classes",
			header->class_count);
	return 0;
}

int data_open(const struct data_config *config, struct data *ret, struct error *err)
{
	const char *dir;
	int r = parse_source(config, &dir, err);

	*ret = (struct data){0};
	if (r < 0)
		return r;
	ret->impl = calloc(1, sizeof(*ret->impl));
	if (!ret->impl)
		return error_set(err, -ENOMEM, "no memory to open the data");
	ret->impl->cars = !dir;
	ret->impl->labels = config->labels;
	ret->impl->image_size = config->image_size;
	if (dir)
		r = open_folder(config, dir, ret, err);
	else
		open_cars(config, ret);
	if (r < 0)
		data_close(ret);
	else
		ret->impl->train_count = ret->train_count;
	return r;
}

void data_close(struct data *data)
{
	if (!data)
		return;
	if (data->impl)
		pack_close(&data->impl->pack);
	free(data->impl);
	*data = (struct data){0};
}

static int32_t sample_begin(
	const struct data *data, bool holdout, uint64_t index, struct sample *sample)
{
	const struct data_impl *impl = data->impl;
	int32_t label;

	CHECK(index < (holdout ? data->holdout_count : data->train_count));
	sample->impl = impl;
	if (holdout)
		index += impl->train_count;
	if (impl->cars) {
		cars_scene(&impl->rng, index, &sample->scene);
		label = sample->scene.class;
	} else {
		sample->pixels = pack_pixels(&impl->pack, index, &label);
	}
	return impl->labels ? label : -1;
}

/* Row y as RGB bytes, in scratch or in the cache. */
static const uint8_t *sample_row(const struct sample *sample, uint32_t y, uint8_t *scratch)
{
	const struct data_impl *impl = sample->impl;

	if (!impl->cars)
		return sample->pixels + (size_t)y * impl->image_size * 3;
	cars_row(&sample->scene, impl->image_size, y, scratch);
	return scratch;
}

void data_read(
	const struct data *data, bool holdout, uint64_t index, uint8_t *rgb, int32_t *ret_label)
{
	uint32_t size = data->impl->image_size;
	uint8_t scratch[PACK_IMAGE_SIZE_MAX * 3];
	struct sample sample;

	*ret_label = sample_begin(data, holdout, index, &sample);
	for (uint32_t y = 0; y < size; y++)
		memcpy(rgb + (size_t)y * size * 3, sample_row(&sample, y, scratch),
			(size_t)size * 3);
}

void data_read_planar(const struct data *data, bool holdout, uint64_t index, bool flip,
	float *planes, int32_t *ret_label)
{
	uint32_t size = data->impl->image_size;
	size_t plane = (size_t)size * size;
	uint8_t scratch[PACK_IMAGE_SIZE_MAX * 3];
	struct sample sample;

	*ret_label = sample_begin(data, holdout, index, &sample);
	for (uint32_t y = 0; y < size; y++) {
		const uint8_t *row = sample_row(&sample, y, scratch);
		for (uint32_t x = 0; x < size; x++) {
			const uint8_t *pixel = row + (size_t)3 * (flip ? size - 1 - x : x);
			for (size_t c = 0; c < 3; c++)
				planes[c * plane + (size_t)y * size + x] =
					(float)pixel[c] / 127.5f - 1.0f;
		}
	}
}
