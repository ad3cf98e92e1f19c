/* A folder of pictures into a packed cache, once. Decoding is threaded in blocks; what is written
 * follows the order of the listing, so the cache's bytes do not depend on threads. A bad file is
 * named, counted and skipped; running out of memory or disk is an error, so that a set is never
 * smaller than the folder for a passing reason. */
#include "base/file.h"
#include "base/seal.h"
#include "base/sys.h"
#include "daemon/data/source.h"
#include "daemon/image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX ((uint64_t)512 << 20)
#define BLOCK_BYTES ((uint64_t)32 << 20)
#define BLOCK_FILES_MAX 256
#define LARGE_PIXELS ((uint64_t)1 << 24) /* decoded one at a time: bounds the memory */
#define HOLDOUT_IMAGES_MIN 64
#define HOLDOUT_SET_MIN 256

struct build {
	const struct data_config *config;
	const char *dir;
	int root_fd;
	struct listing listing;
	struct complaints complaints;
	struct pack_writer writer;
	uint32_t class_count;
	const char **classes; /* sorted; owned, names inside class_text */
	char *class_text;     /* owned: names ended by NUL, in the listing's order */
	uint64_t class_text_size;
	_Atomic uint64_t *moves;
};

/* One name per source and shape: another image size is another cache. */
static void cache_name(const struct data_config *config, const char *dir, char name[64])
{
	char key[256], hex[DIGEST_HEX_SIZE];
	struct digest_stream stream;

	int length = snprintf(key, sizeof(key), "%u %d %.17g ", config->image_size, config->labels,
		config->holdout_percent);
	digest_begin(&stream);
	digest_add(&stream, key, (size_t)length);
	digest_add(&stream, dir, strlen(dir));
	struct digest digest = digest_end(&stream);
	digest_to_hex(&digest, hex);
	snprintf(name, 64, "images-%.16s.pack", hex);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Whether path lies in the first-level folder name. */
static bool in_folder(const char *path, const char *name)
{
	size_t length = strlen(name);

	return strncmp(path, name, length) == 0 && path[length] == '/';
}

/* The class names from the listing, where a folder's files stand together. */
static int find_classes(struct build *build, struct error *err)
{
	const struct listing *listing = &build->listing;
	const char *last = NULL;

	build->class_text = malloc(listing->text_size);
	build->classes = calloc(PACK_CLASSES_MAX, sizeof(*build->classes));
	if (!build->class_text || !build->classes)
		return error_set(err, -ENOMEM, "no memory for the class names");
	for (uint64_t i = 0; i < listing->count; i++) {
		const char *path = listing->text + listing->entries[i].path;
		const char *slash = strchr(path, '/');
		if (!slash)
			return error_set(err, -EINVAL,
				"labels = folders, but '%s' lies directly in %s: put each image "
				"into the sub-folder of its class",
				path, build->dir);
		if (last && in_folder(path, last))
			continue;
		if (build->class_count == PACK_CLASSES_MAX)
			return error_set(err, -EINVAL, "more than %d sub-folders in %s",
				PACK_CLASSES_MAX, build->dir);
		char *name = build->class_text + build->class_text_size;
		size_t length = (size_t)(slash - path);
		memcpy(name, path, length);
		name[length] = '\0';
		build->class_text_size += length + 1;
		build->classes[build->class_count++] = last = name;
	}
	if (build->class_count < 2)
		return error_set(err, -EINVAL,
			"labels = folders, but %s has only one sub-folder with images: at least "
			"two classes are needed, or labels = none",
			build->dir);
	qsort(build->classes, build->class_count, sizeof(*build->classes), compare_names);
	return 0;
}

static int32_t label_of(const struct build *build, const char *path)
{
	char name[NAME_MAX + 1];
	const char *key = name;

	if (!build->class_count)
		return -1;
	snprintf(name, sizeof(name), "%.*s", (int)(strchr(path, '/') - path), path);
	const char **found = bsearch(
		&key, build->classes, build->class_count, sizeof(*build->classes), compare_names);
	return (int32_t)(found - build->classes);
}

/* The names in label order. */
static int class_table(const struct build *build, char **ret, struct error *err)
{
	size_t at = 0;

	*ret = malloc(build->class_text_size + 1);
	if (!*ret)
		return error_set(err, -ENOMEM, "no memory for the class names");
	for (uint32_t i = 0; i < build->class_count; i++) {
		size_t length = strlen(build->classes[i]) + 1;
		memcpy(*ret + at, build->classes[i], length);
		at += length;
	}
	return 0;
}

/* The bytes of one picture file, malloc'ed. */
static int read_picture(
	int root_fd, const char *path, uint8_t **ret, size_t *ret_size, struct error *err)
{
	struct stat st;
	int fd = sys_openat(root_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
	int r = fd < 0 ? fd : sys_fstat(fd, &st);

	*ret = NULL;
	if (r >= 0 && !S_ISREG(st.st_mode))
		r = -EINVAL;
	if (r >= 0 && (uint64_t)st.st_size > FILE_BYTES_MAX)
		r = -EFBIG;
	if (r >= 0) {
		*ret_size = (size_t)st.st_size;
		*ret = malloc(*ret_size + 1);
		r = *ret ? file_read_exact(fd, *ret, *ret_size, 0) : -ENOMEM;
	}
	if (fd >= 0)
		sys_close(fd);
	return r < 0 ? error_set(err, r, "%s", strerror(-r)) : 0;
}

static int decode_bounded(const uint8_t *data, size_t size, struct image *image, struct error *err)
{
	uint32_t width, height;
	int r = image_probe(data, size, &width, &height, err);

	if (r < 0)
		return r;
	if ((uint64_t)width * height <= LARGE_PIXELS)
		return image_decode(data, size, image, err);
#pragma omp critical(large_picture)
	r = image_decode(data, size, image, err);
	return r;
}

/* File i of the listing into pixels [stride] and its sample. */
static int load_sample(const struct build *build, uint64_t i, uint8_t *pixels,
	struct pack_sample *sample, struct error *err)
{
	const char *path = build->listing.text + build->listing.entries[i].path;
	uint32_t size = build->config->image_size;
	struct image image = {0};
	size_t data_size = 0;
	uint8_t *data;

	int r = read_picture(build->root_fd, path, &data, &data_size, err);
	if (r == 0)
		r = decode_bounded(data, data_size, &image, err);
	free(data);
	if (r < 0)
		return r;
	memset(pixels, 0, build->writer.stride);
	image_square(&image, size, pixels);
	image_fini(&image);
	*sample = (struct pack_sample){
		.digest = digest_of(pixels, (size_t)size * size * 3),
		.sum = seal_sum(pixels, 0, build->writer.stride / 4),
		.label = label_of(build, path),
	};
	return 0;
}

/* Failures that say nothing about the file. */
static bool is_passing(int code)
{
	return code == -ENOMEM || code == -EMFILE || code == -ENFILE || code == -EINTR;
}

struct block {
	uint8_t *pixels;             /* [files_max][stride] */
	struct pack_sample *samples; /* [files_max] */
	struct error *errors;
	int *codes;
	uint64_t files_max;
};

/* Decodes files [first, first + count) with all threads, then appends the good ones in order. */
static int build_block(
	struct build *build, struct block *block, uint64_t first, uint64_t count, struct error *err)
{
	uint64_t stride = build->writer.stride, good = 0;

#pragma omp parallel for schedule(dynamic)
	for (uint64_t i = 0; i < count; i++) {
		block->codes[i] = load_sample(build, first + i, block->pixels + i * stride,
			&block->samples[i], &block->errors[i]);
		if (build->moves)
			atomic_fetch_add_explicit(build->moves, 1, memory_order_relaxed);
	}
	for (uint64_t i = 0; i < count; i++) {
		const char *path = build->listing.text + build->listing.entries[first + i].path;
		if (is_passing(block->codes[i]))
			return error_set(err, block->codes[i], "%s/%s: %s", build->dir, path,
				block->errors[i].text);
		if (block->codes[i] < 0) {
			complain(
				&build->complaints, "%s: skipped: %s", path, block->errors[i].text);
			continue;
		}
		memmove(block->pixels + good * stride, block->pixels + i * stride, stride);
		block->samples[good++] = block->samples[i];
	}
	return pack_writer_add(&build->writer, block->pixels, block->samples, good, err);
}

static int build_images(struct build *build, struct error *err)
{
	struct block block = {.files_max = BLOCK_BYTES / build->writer.stride};
	int r = 0;

	if (block.files_max > BLOCK_FILES_MAX)
		block.files_max = BLOCK_FILES_MAX;
	block.pixels = malloc(block.files_max * build->writer.stride);
	block.samples = calloc(block.files_max, sizeof(*block.samples));
	block.errors = calloc(block.files_max, sizeof(*block.errors));
	block.codes = calloc(block.files_max, sizeof(*block.codes));
	if (!block.pixels || !block.samples || !block.errors || !block.codes)
		r = error_set(err, -ENOMEM, "no memory to decode pictures");
	for (uint64_t first = 0; first < build->listing.count && r == 0; first += block.files_max) {
		uint64_t left = build->listing.count - first;
		r = build_block(
			build, &block, first, left < block.files_max ? left : block.files_max, err);
	}
	free(block.pixels);
	free(block.samples);
	free(block.errors);
	free(block.codes);
	return r;
}

static int compare_samples(const void *a, const void *b, void *samples)
{
	const struct pack_sample *table = samples;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int order = memcmp(&table[x].digest, &table[y].digest, sizeof(table[x].digest));

	return order ? order : (x > y) - (x < y);
}

/* Held out are the images with the smallest digests, equal ones together; a group of equals that
 * would more than double the share is passed over. order: training, then held out, both as listed;
 * scratch has room for all. */
static uint64_t split(
	const struct pack_writer *writer, double percent, uint32_t *order, uint32_t *scratch)
{
	uint64_t count = writer->count, taken = 0, trained = 0;
	uint64_t target = (uint64_t)((double)count * percent / 100.0 + 0.5);

	if (percent > 0.0 && count >= HOLDOUT_SET_MIN && target < HOLDOUT_IMAGES_MIN)
		target = HOLDOUT_IMAGES_MIN;
	for (uint64_t i = 0; i < count; i++)
		scratch[i] = (uint32_t)i;
	qsort_r(scratch, count, sizeof(*scratch), compare_samples, writer->samples);
	/* order is a table of flags first: order[image] = held out. */
	memset(order, 0, count * sizeof(*order));
	for (uint64_t i = 0, end; i < count && taken < target; i = end) {
		const struct digest *digest = &writer->samples[scratch[i]].digest;
		end = i + 1;
		while (end < count && digest_equal(digest, &writer->samples[scratch[end]].digest))
			end++;
		if (taken + (end - i) > 2 * target || taken + (end - i) >= count)
			continue;
		taken += end - i;
		for (uint64_t j = i; j < end; j++)
			order[scratch[j]] = 1;
	}
	uint64_t held = count - taken;
	for (uint64_t i = 0; i < count; i++)
		scratch[order[i] ? held++ : trained++] = (uint32_t)i;
	memcpy(order, scratch, count * sizeof(*order));
	return taken;
}

static int build_commit(struct build *build, const char *name, struct error *err)
{
	uint64_t count = build->writer.count;
	uint32_t *order = calloc(count, sizeof(*order));
	uint32_t *scratch = calloc(count, sizeof(*scratch));
	char *classes = NULL;
	int r = class_table(build, &classes, err);

	if (r == 0 && (!order || !scratch))
		r = error_set(err, -ENOMEM, "no memory for the order of images");
	if (r == 0) {
		uint64_t held_out = split(
			&build->writer, build->config->holdout_percent, order, scratch);
		r = pack_writer_commit(&build->writer, name, order, held_out,
			build->complaints.count, build->class_count, classes,
			build->class_text_size, &build->listing, err);
	}
	free(order);
	free(scratch);
	free(classes);
	return r;
}

/* Before the first picture: what its decoder may read. */
static int confine(const struct build *build, struct error *err)
{
	const struct data_config *config = build->config;
	uint64_t count = build->listing.linked_count + 1;
	const char **folders;

	if (!config->confine)
		return 0;
	folders = malloc(count * sizeof(*folders));
	if (!folders)
		return error_set(err, -ENOMEM, "no memory for the picture folders");
	folders[0] = build->dir;
	for (uint64_t i = 1; i < count; i++)
		folders[i] = build->listing.linked[i - 1];
	config->confine(config->confine_context, folders, count);
	free(folders);
	return 0;
}

static int build_pack(struct build *build, const char *name, struct error *err)
{
	const char *dir = build->dir;

	if (build->listing.count == 0)
		return error_set(err, -ENODATA,
			"no .png, .jpg or .jpeg files below %s: put images there, or point 'data' "
			"to "
			"their folder",
			dir);
	int r = build->config->labels ? find_classes(build, err) : 0;
	if (r == 0)
		r = pack_writer_begin(
			&build->writer, build->config->cache_fd, build->config->image_size, err);
	if (r == 0)
		r = confine(build, err);
	if (r == 0)
		r = build_images(build, err);
	complaints_finish(&build->complaints);
	if (r == 0 && build->writer.count == 0)
		r = error_set(err, -ENODATA,
			"none of the %llu picture files below %s can be used; the first: %s",
			(unsigned long long)build->listing.count, dir, build->complaints.first);
	return r < 0 ? r : build_commit(build, name, err);
}

static void say(data_report *report, void *context, const char *level, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static void say(data_report *report, void *context, const char *level, const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX];
	va_list args;

	if (!report)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	report(context, level, text);
}

/* The cached set stays; what is different now is one line. */
static void report_changes(const struct build *build, const struct pack *pack)
{
	struct listing_difference d = listing_compare(&pack->listing, &build->listing);

	if (d.added + d.removed + d.changed)
		say(build->complaints.report, build->complaints.context, "warning",
			"folder %s changed since it was cached: %llu added, %llu removed, %llu "
			"changed; the run goes on with the %llu cached images",
			build->dir, (unsigned long long)d.added, (unsigned long long)d.removed,
			(unsigned long long)d.changed,
			(unsigned long long)pack->header->image_count);
}

static int open_root(const char *dir, struct error *err)
{
	int fd = sys_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	if (fd == -ENOENT)
		return error_set(err, fd,
			"data = folder:%s: no such folder: create it, or change 'data'", dir);
	return fd < 0 ? error_set(err, fd, "data = folder:%s: %s", dir, strerror(-fd)) : fd;
}

/* What lies in the folder now; the run's own folder may be inside it. */
static int list_folder(struct build *build, struct complaints *complaints, struct error *err)
{
	int run_fd = sys_openat(build->config->cache_fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	int r = open_root(build->dir, err);

	build->root_fd = r;
	if (r >= 0)
		r = listing_read(r, run_fd, complaints, &build->listing, err);
	if (run_fd >= 0)
		sys_close(run_fd);
	return r;
}

/* A whole cache stands: is the folder still as it was? Without the folder the run goes on. */
static void compare_with_folder(struct build *build, const struct pack *pack)
{
	struct complaints silent = {0};
	struct error err = {0};

	if (list_folder(build, &silent, &err) < 0)
		say(build->complaints.report, build->complaints.context, "warning",
			"%s; the run goes on with the %llu cached images", err.text,
			(unsigned long long)pack->header->image_count);
	else
		report_changes(build, pack);
}

int folder_prepare(const struct data_config *config, const char *dir, _Atomic uint64_t *moves,
	data_report *report, void *context, struct error *err)
{
	struct build build = {.config = config,
		.dir = dir,
		.root_fd = -1,
		.moves = moves,
		.complaints = {.report = report, .context = context}};
	struct error damage = {0};
	struct pack pack;
	char name[64];

	cache_name(config, dir, name);
	int r = pack_open(config->cache_fd, name, &pack, &damage);
	if (r == 0 && !pack_verify(&pack, moves)) {
		r = error_set(&damage, -EBADMSG, "cache/%s: damaged", name);
	} else if (r == 0) {
		compare_with_folder(&build, &pack);
	}
	pack_close(&pack);
	if (r == -EBADMSG)
		say(report, context, "warning", "%s: built again from %s", damage.text, dir);
	if (r == -EBADMSG || r == -ENOENT) {
		r = list_folder(&build, &build.complaints, err);
		if (r >= 0)
			r = build_pack(&build, name, err);
	} else if (r < 0)
		error_set(err, r, "%s", damage.text);
	if (build.root_fd >= 0)
		sys_close(build.root_fd);
	pack_writer_fini(&build.writer);
	listing_fini(&build.listing);
	free(build.classes);
	free(build.class_text);
	return r;
}

int folder_open(
	const struct data_config *config, const char *dir, struct pack *ret, struct error *err)
{
	char name[64];

	cache_name(config, dir, name);
	int r = pack_open(config->cache_fd, name, ret, err);
	if (r == -ENOENT)
		return error_set(err, r,
			"cache/%s: the image cache of %s is not there: start again", name, dir);
	return r;
}
