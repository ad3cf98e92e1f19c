/* The packed cache of a picture folder: one file, written once, then mapped read-only.
 *
 *     header   4096 bytes, struct pack_header, little endian
 *     images   image_count times stride bytes: size * size RGB pixels, zero up to a multiple of 64
 *     tables   samples [image_count], order [image_count], classes (names ended by NUL),
 *              listing entries [listing_count], listing text
 *
 * order holds image numbers: the training images first, then the held-out ones. The header holds
 * the digest of the tables and of itself; each sample's sum guards its pixels. Published by rename
 * after fsync: a file under its name is whole. Its set digest (sizes, classes, pixels, labels,
 * order) is part of a run's identity; where and when the pictures were read is not. */
#pragma once

#include "base/digest.h"
#include "base/error.h"
#include "daemon/data/listing.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACK_HEADER_SIZE 4096
#define PACK_IMAGE_SIZE_MAX 1024
#define PACK_CLASSES_MAX 65536

struct pack_header {
	char magic[8]; /* PACK_MAGIC */
	uint32_t image_size, class_count;
	uint64_t stride;
	uint64_t image_count, holdout_count, skipped_count;
	uint64_t classes_size, listing_count, listing_text_size; /* bytes, entries, bytes */
	struct digest set, tables;
	struct digest header; /* of this page with this field zero */
};

struct pack_sample {
	struct digest digest; /* of the pixels */
	uint64_t sum;         /* seal_sum of the stride */
	int32_t label;        /* -1: no classes */
	uint32_t reserved;
};

struct pack {
	const uint8_t *map;
	size_t map_size;
	const struct pack_header *header;
	const uint8_t *images;
	const struct pack_sample *samples;
	const uint32_t *order;
	const char *classes;
	struct listing listing; /* points into the map: never listing_fini */
};

/* Maps and checks header and tables, not the pixels. -ENOENT; -EBADMSG for anything that is not a
 * whole pack. */
int pack_open(int dir_fd, const char *name, struct pack *ret, struct error *err);
void pack_close(struct pack *pack);
/* Reads every pixel and compares the sums, with all threads; moves counts images. */
bool pack_verify(const struct pack *pack, _Atomic uint64_t *moves);
/* Pixels of entry index of the order; panics when they do not match their sum (the page cache or
 * the disk lied: the restart verifies and rebuilds). */
const uint8_t *pack_pixels(const struct pack *pack, uint64_t index, int32_t *ret_label);

uint64_t pack_stride(uint32_t image_size);

/* A pack being written under a temporary name. Zero-initialised it is closed. */
struct pack_writer {
	int dir_fd, fd; /* fd is valid when temporary[0] */
	char temporary[64];
	uint32_t image_size;
	uint64_t stride;
	struct pack_sample *samples; /* owned */
	uint64_t count, capacity;
};
int pack_writer_begin(
	struct pack_writer *writer, int dir_fd, uint32_t image_size, struct error *err);
/* Appends count images, stride bytes each (their padding zero), with their samples. */
int pack_writer_add(struct pack_writer *writer, const void *pixels,
	const struct pack_sample *samples, uint64_t count, struct error *err);
/* Tables, header, fsync, rename to name, fsync of the folder. order: see above. */
int pack_writer_commit(struct pack_writer *writer, const char *name, const uint32_t *order,
	uint64_t holdout_count, uint64_t skipped_count, uint32_t class_count, const char *classes,
	uint64_t classes_size, const struct listing *listing, struct error *err);
/* Removes what was not committed. */
void pack_writer_fini(struct pack_writer *writer);
