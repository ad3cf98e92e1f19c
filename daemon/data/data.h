/* Training images by index: deterministic, thread-safe, no decoding while training. `cars` draws
 * them; `folder:DIR` decodes, crops and resizes once into a packed cache that is then mapped. */
#pragma once

#include "base/digest.h"
#include "base/error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Comes once, before the first byte of a picture is decoded: nothing but these folders is read from
 * then on, and nothing is written outside RUN/cache. */
typedef void data_confine(void *context, const char *const *folders, uint64_t count);

struct data_config {
	const char *source; /* "cars", "folder:DIR" */
	uint32_t image_size;
	bool labels; /* classes by sub-folder */
	double holdout_percent;
	uint64_t seed;
	int cache_fd;          /* RUN/cache */
	data_confine *confine; /* may be NULL */
	void *confine_context;
};

struct data {
	uint64_t train_count, holdout_count;
	uint32_t class_count; /* 0: no labels */
	struct digest digest; /* of the packed set: part of the run's identity */
	char text[160];       /* "folder /x: 512 images, 3 skipped, 2 classes" */
	struct data_impl *impl;
};

/* One line for each bad file (named, counted and skipped), up to a bound. */
typedef void data_report(void *context, const char *level, const char *text);

/* Builds the cache when it is missing or damaged (role prepare); reads and checks a whole one, and
 * keeps it whatever the folder has become since: the change is reported, never taken. -ENOENT,
 * -ENODATA, -EINVAL with what, where and what to do. moves counts each image. */
int data_prepare(const struct data_config *config, _Atomic uint64_t *moves, data_report *report,
	void *context, struct error *err);
/* Opens what data_prepare built; decodes nothing. */
int data_open(const struct data_config *config, struct data *ret, struct error *err);
void data_close(struct data *data);

/* Image index of the training or held-out set as RGB bytes [size][size][3], and its class (-1).
 * Panics when a cached image does not match its sum: the restart verifies and rebuilds. */
void data_read(
	const struct data *data, bool holdout, uint64_t index, uint8_t *rgb, int32_t *ret_label);
/* The same as floats u8/127.5 - 1, planar [3][size][size], mirrored when flip. */
void data_read_planar(const struct data *data, bool holdout, uint64_t index, bool flip,
	float *planes, int32_t *ret_label);
