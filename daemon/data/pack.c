/* Writes and maps the packed cache. Everything read from it is checked against its digests and then
 * still bounded; nothing is changed after the rename. See pack.h. */
#include "daemon/data/pack.h"
#include "base/file.h"
#include "base/panic.h"
#include "base/seal.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char pack_magic[8] = "ckptpk01";

_Static_assert(sizeof(struct pack_header) <= PACK_HEADER_SIZE, "the header is one page");
_Static_assert(sizeof(struct pack_sample) == 48, "samples are written as they are");
_Static_assert(sizeof(struct listing_entry) == 24, "entries are written as they are");

uint64_t pack_stride(uint32_t image_size)
{
	return ((uint64_t)image_size * image_size * 3 + 63) / 64 * 64;
}

static struct digest header_digest(const void *page)
{
	uint8_t copy[PACK_HEADER_SIZE];

	memcpy(copy, page, sizeof(copy));
	memset(copy + offsetof(struct pack_header, header), 0, DIGEST_SIZE);
	return digest_of(copy, sizeof(copy));
}

/* Adds count times size to *end; false when a count from the file does not fit limit. */
static bool advance(uint64_t *end, uint64_t count, uint64_t size, uint64_t limit)
{
	if (*end > limit || count > (limit - *end) / size)
		return false;
	*end += count * size;
	return true;
}

/* Names the parts of the map; false when the header's numbers and the file's size disagree. */
static bool locate(struct pack *pack)
{
	const struct pack_header *h = pack->header;
	uint64_t end = PACK_HEADER_SIZE, limit = pack->map_size;

	if (h->image_size == 0 || h->image_size > PACK_IMAGE_SIZE_MAX ||
		h->stride != pack_stride(h->image_size) || h->image_count > LISTING_FILES_MAX ||
		h->holdout_count >= h->image_count || h->class_count > PACK_CLASSES_MAX)
		return false;
	pack->images = pack->map + end;
	if (!advance(&end, h->image_count, h->stride, limit))
		return false;
	pack->samples = (const void *)(pack->map + end);
	if (!advance(&end, h->image_count, sizeof(*pack->samples), limit))
		return false;
	/* Entries of eight bytes come before what is smaller: all stay aligned. */
	pack->listing.entries = (void *)(uintptr_t)(pack->map + end);
	pack->listing.count = h->listing_count;
	if (!advance(&end, h->listing_count, sizeof(*pack->listing.entries), limit))
		return false;
	pack->order = (const void *)(pack->map + end);
	if (!advance(&end, h->image_count, sizeof(*pack->order), limit))
		return false;
	pack->classes = (const void *)(pack->map + end);
	if (!advance(&end, h->classes_size, 1, limit))
		return false;
	pack->listing.text = (void *)(uintptr_t)(pack->map + end);
	pack->listing.text_size = h->listing_text_size;
	return advance(&end, h->listing_text_size, 1, limit) && end == limit;
}

static const uint8_t *tables_of(const struct pack *pack)
{
	return pack->images + pack->header->image_count * pack->header->stride;
}

/* A pack whose digests match was written by this program; what it says is still bounded. */
static bool check_tables(const struct pack *pack)
{
	const struct pack_header *h = pack->header;
	const uint8_t *tables = tables_of(pack);
	struct digest digest = digest_of(tables, (size_t)(pack->map + pack->map_size - tables));

	if (!digest_equal(&digest, &h->tables))
		return false;
	for (uint64_t i = 0; i < h->image_count; i++) {
		int32_t label = pack->samples[i].label;
		bool label_right = h->class_count ? label >= 0 && (uint32_t)label < h->class_count
						  : label == -1;
		if (pack->order[i] >= h->image_count || !label_right)
			return false;
	}
	const struct listing *listing = &pack->listing;
	for (uint64_t i = 0; i < listing->count; i++)
		if (listing->entries[i].path >= listing->text_size)
			return false;
	return listing->text_size == 0 || listing->text[listing->text_size - 1] == '\0';
}

static int pack_map(int fd, const char *name, struct pack *pack, struct error *err)
{
	struct stat st;
	int r = sys_fstat(fd, &st);

	if (r < 0)
		return error_set(err, r, "cache/%s: %s", name, strerror(-r));
	if (!S_ISREG(st.st_mode) || st.st_size < PACK_HEADER_SIZE)
		return error_set(err, -EBADMSG, "cache/%s: too short to be an image cache", name);
	void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return error_set(err, -errno, "cache/%s: mapping it: %s", name, strerror(errno));
	pack->map = map;
	pack->map_size = (size_t)st.st_size;
	pack->header = map;
	return 0;
}

int pack_open(int dir_fd, const char *name, struct pack *ret, struct error *err)
{
	*ret = (struct pack){0};
	int fd = sys_openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, fd, "cache/%s: %s", name, strerror(-fd));
	int r = pack_map(fd, name, ret, err);
	sys_close(fd);
	if (r < 0)
		return r;
	struct digest digest = header_digest(ret->map);
	bool whole = memcmp(ret->header->magic, pack_magic, sizeof(pack_magic)) == 0 &&
		digest_equal(&digest, &ret->header->header) && locate(ret) && check_tables(ret);
	if (!whole) {
		pack_close(ret);
		return error_set(err, -EBADMSG, "cache/%s: damaged", name);
	}
	return 0;
}

void pack_close(struct pack *pack)
{
	if (!pack)
		return;
	if (pack->map)
		munmap((void *)(uintptr_t)pack->map, pack->map_size);
	*pack = (struct pack){0};
}

static bool image_matches(const struct pack *pack, uint64_t image)
{
	uint64_t stride = pack->header->stride;

	return seal_sum(pack->images + image * stride, 0, stride / 4) == pack->samples[image].sum;
}

bool pack_verify(const struct pack *pack, _Atomic uint64_t *moves)
{
	bool right = true;

#pragma omp parallel for schedule(dynamic, 64) reduction(&& : right)
	for (uint64_t i = 0; i < pack->header->image_count; i++) {
		right = image_matches(pack, i) && right;
		if (moves)
			atomic_fetch_add_explicit(moves, 1, memory_order_relaxed);
	}
	return right;
}

const uint8_t *pack_pixels(const struct pack *pack, uint64_t index, int32_t *ret_label)
{
	CHECK(index < pack->header->image_count);
	uint32_t image = pack->order[index];
	if (!image_matches(pack, image))
		PANIC("a cached image does not match its sum");
	*ret_label = pack->samples[image].label;
	return pack->images + image * pack->header->stride;
}

int pack_writer_begin(
	struct pack_writer *writer, int dir_fd, uint32_t image_size, struct error *err)
{
	*writer = (struct pack_writer){
		.dir_fd = dir_fd, .image_size = image_size, .stride = pack_stride(image_size)};
	/* One process builds under the run's lock: an old partial has no owner. */
	const char *name = ".images.partial";
	sys_unlinkat(dir_fd, name);
	writer->fd = sys_openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (writer->fd < 0)
		return error_set(
			err, writer->fd, "creating cache/%s: %s", name, strerror(-writer->fd));
	snprintf(writer->temporary, sizeof(writer->temporary), "%s", name);
	return 0;
}

void pack_writer_fini(struct pack_writer *writer)
{
	if (!writer)
		return;
	free(writer->samples);
	if (writer->temporary[0]) {
		sys_close(writer->fd);
		sys_unlinkat(writer->dir_fd, writer->temporary);
	}
	*writer = (struct pack_writer){0};
}

static int write_part(struct pack_writer *writer, const void *data, uint64_t size, uint64_t *at,
	struct error *err)
{
	int r = size ? file_write_exact(writer->fd, data, size, (off_t)*at) : 0;

	if (r < 0)
		return error_set(err, r, "writing the image cache (%llu MiB so far): %s",
			(unsigned long long)(*at >> 20), strerror(-r));
	*at += size;
	return 0;
}

int pack_writer_add(struct pack_writer *writer, const void *pixels,
	const struct pack_sample *samples, uint64_t count, struct error *err)
{
	uint64_t at = PACK_HEADER_SIZE + writer->count * writer->stride;

	if (count == 0)
		return 0;
	if (writer->capacity - writer->count < count) {
		uint64_t wanted = (writer->count + count) * 2;
		void *bigger = reallocarray(writer->samples, wanted, sizeof(*samples));
		if (!bigger)
			return error_set(err, -ENOMEM, "no memory for the table of images");
		writer->samples = bigger;
		writer->capacity = wanted;
	}
	int r = write_part(writer, pixels, count * writer->stride, &at, err);
	if (r < 0)
		return r;
	memcpy(writer->samples + writer->count, samples, count * sizeof(*samples));
	writer->count += count;
	return 0;
}

/* What a run trains on, and in which order. */
static struct digest set_digest(const struct pack_writer *writer, const struct pack_header *header,
	const char *classes, const uint32_t *order)
{
	struct digest_stream stream;

	digest_begin(&stream);
	digest_add(&stream, pack_magic, sizeof(pack_magic));
	digest_add(&stream, &header->image_size, sizeof(header->image_size));
	digest_add(&stream, &header->image_count, sizeof(header->image_count));
	digest_add(&stream, &header->holdout_count, sizeof(header->holdout_count));
	if (header->classes_size)
		digest_add(&stream, classes, header->classes_size);
	for (uint64_t i = 0; i < header->image_count; i++) {
		const struct pack_sample *sample = &writer->samples[order[i]];
		digest_add(&stream, &sample->digest, sizeof(sample->digest));
		digest_add(&stream, &sample->label, sizeof(sample->label));
	}
	return digest_end(&stream);
}

static int publish(struct pack_writer *writer, const char *name)
{
	int r = sys_fsync(writer->fd);

	if (r == 0)
		r = sys_renameat(writer->dir_fd, writer->temporary, name);
	if (r < 0)
		return r;
	sys_close(writer->fd);
	writer->temporary[0] = '\0';
	return file_sync_dir(writer->dir_fd);
}

int pack_writer_commit(struct pack_writer *writer, const char *name, const uint32_t *order,
	uint64_t holdout_count, uint64_t skipped_count, uint32_t class_count, const char *classes,
	uint64_t classes_size, const struct listing *listing, struct error *err)
{
	const struct {
		const void *data;
		uint64_t size;
	} parts[] = {
		{writer->samples, writer->count * sizeof(*writer->samples)},
		{listing->entries, listing->count * sizeof(*listing->entries)},
		{order, writer->count * sizeof(*order)},
		{classes, classes_size},
		{listing->text, listing->text_size},
	};
	uint64_t at = PACK_HEADER_SIZE + writer->count * writer->stride;
	struct digest_stream stream;
	int r = 0;

	digest_begin(&stream);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && r == 0; i++) {
		if (parts[i].size)
			digest_add(&stream, parts[i].data, parts[i].size);
		r = write_part(writer, parts[i].data, parts[i].size, &at, err);
	}
	if (r < 0)
		return r;

	uint8_t page[PACK_HEADER_SIZE] = {0};
	struct pack_header header = {
		.image_size = writer->image_size,
		.class_count = class_count,
		.stride = writer->stride,
		.image_count = writer->count,
		.holdout_count = holdout_count,
		.skipped_count = skipped_count,
		.classes_size = classes_size,
		.listing_count = listing->count,
		.listing_text_size = listing->text_size,
		.tables = digest_end(&stream),
	};
	memcpy(header.magic, pack_magic, sizeof(pack_magic));
	header.set = set_digest(writer, &header, classes, order);
	memcpy(page, &header, sizeof(header));
	header.header = header_digest(page);
	memcpy(page, &header, sizeof(header));
	at = 0;
	r = write_part(writer, page, sizeof(page), &at, err);
	if (r == 0) {
		r = publish(writer, name);
		if (r < 0)
			return error_set(err, r, "publishing the image cache: %s", strerror(-r));
	}
	return r;
}
