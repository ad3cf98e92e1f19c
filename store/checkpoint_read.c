/* Reading data: every byte passes its chunk's digest before it counts. Chunks are shared out to
 * threads; memory is bounded by one chunk a thread when the block has nowhere to go. */
#include "store/checkpoint.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

struct reading {
	int fd;
	const struct checkpoint_info *info;
	uint64_t *sums;
	_Atomic uint64_t *moves;
	/* The first chunk that failed, by position: the message is the same at any thread count. */
	int error;
	uint32_t error_chunk;
	atomic_bool failed;
};

static void record_error(struct reading *reading, uint32_t chunk, int error)
{
#pragma omp critical(checkpoint_read)
	{
		if (reading->error == 0 || chunk < reading->error_chunk) {
			reading->error = error;
			reading->error_chunk = chunk;
		}
	}
	atomic_store(&reading->failed, true);
}

static int read_matching(const struct reading *reading, uint32_t chunk, uint8_t *data)
{
	const struct checkpoint_info *info = reading->info;
	off_t offset = (off_t)(info->data_offset + (uint64_t)chunk * CHECKPOINT_CHUNK_BYTES);
	int rc = file_read_exact(reading->fd, data, CHECKPOINT_CHUNK_BYTES, offset);
	struct digest digest;

	if (rc < 0)
		return rc == -ENODATA ? -EBADMSG : rc;
	digest = digest_of(data, CHECKPOINT_CHUNK_BYTES);
	return digest_equal(&digest, &info->chunks[chunk]) ? 0 : -EBADMSG;
}

/* A verdict about bytes is asked for twice, the second time past the cache: the fault may have been
 * in the reading. */
static int read_chunk(struct reading *reading, uint32_t chunk, uint8_t *data)
{
	uint64_t seals = CHECKPOINT_CHUNK_BYTES / SEAL_CHUNK_BYTES;
	int rc = read_matching(reading, chunk, data);

	if (rc == -EBADMSG) {
		posix_fadvise(reading->fd, 0, 0, POSIX_FADV_DONTNEED);
		rc = read_matching(reading, chunk, data);
	}
	if (rc < 0)
		return rc;
	if (reading->sums != NULL)
		seal_sums(data, CHECKPOINT_CHUNK_BYTES, reading->sums + chunk * seals);
	if (reading->moves != NULL)
		atomic_fetch_add_explicit(reading->moves, seals, memory_order_relaxed);
	return 0;
}

static int finish(const struct reading *reading, struct error *err)
{
	unsigned long long offset = reading->info->data_offset +
		reading->error_chunk * CHECKPOINT_CHUNK_BYTES;

	if (reading->error == 0)
		return 0;
	if (reading->error == -EBADMSG)
		return error_set(err, -EBADMSG,
			"%s: chunk %u of %u (at byte %llu) does not match its digest",
			reading->info->id, reading->error_chunk, reading->info->chunk_count,
			offset);
	return error_set(err, reading->error, "%s: cannot read chunk %u of %u (at byte %llu): %s",
		reading->info->id, reading->error_chunk, reading->info->chunk_count, offset,
		strerror(-reading->error));
}

static int thread_count(uint32_t threads)
{
	return threads > 0 ? (int)threads : omp_get_max_threads();
}

int checkpoint_read(int fd, const struct checkpoint_info *info, void *block, uint64_t *sums,
	uint32_t threads, _Atomic uint64_t *moves, struct error *err)
{
	struct reading reading = {.fd = fd, .info = info, .sums = sums, .moves = moves};

	/* To verify is to ask the device, not the cache. */
	if (block == NULL)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
#pragma omp parallel num_threads(thread_count(threads))
	{
		uint8_t *own = block == NULL ? malloc(CHECKPOINT_CHUNK_BYTES) : NULL;

#pragma omp for schedule(dynamic)
		for (uint32_t chunk = 0; chunk < info->chunk_count; chunk++) {
			uint8_t *data = own;
			int rc = -ENOMEM;

			if (atomic_load(&reading.failed))
				continue;
			if (block != NULL)
				data = (uint8_t *)block + chunk * CHECKPOINT_CHUNK_BYTES;
			if (data != NULL)
				rc = read_chunk(&reading, chunk, data);
			if (rc < 0)
				record_error(&reading, chunk, rc);
		}
		free(own);
	}
	return finish(&reading, err);
}

/* The part of the chunk that lies in [begin, end) goes to data, which stands for begin. */
static void copy_overlap(
	const uint8_t *chunk, uint64_t offset, uint64_t begin, uint64_t end, uint8_t *data)
{
	uint64_t from = offset > begin ? offset : begin;
	uint64_t to = offset + CHECKPOINT_CHUNK_BYTES < end ? offset + CHECKPOINT_CHUNK_BYTES : end;

	CHECK(from < to);
	memcpy(data + (from - begin), chunk + (from - offset), to - from);
}

int checkpoint_read_section(int fd, const struct checkpoint_info *info, enum section section,
	float *data, uint32_t threads, struct error *err)
{
	struct reading reading = {.fd = fd, .info = info};
	uint64_t begin = (uint64_t)section * info->section_bytes;
	uint64_t end = begin + info->section_bytes;
	uint32_t first = (uint32_t)(begin / CHECKPOINT_CHUNK_BYTES);
	uint32_t last = (uint32_t)((end - 1) / CHECKPOINT_CHUNK_BYTES);

	CHECK(section < SECTION_COUNT && last < info->chunk_count);
#pragma omp parallel num_threads(thread_count(threads))
	{
		uint8_t *own = malloc(CHECKPOINT_CHUNK_BYTES);

#pragma omp for schedule(dynamic)
		for (uint32_t chunk = first; chunk <= last; chunk++) {
			int rc = -ENOMEM;

			if (atomic_load(&reading.failed))
				continue;
			if (own != NULL)
				rc = read_chunk(&reading, chunk, own);
			if (rc < 0)
				record_error(&reading, chunk, rc);
			else
				copy_overlap(own, chunk * CHECKPOINT_CHUNK_BYTES, begin, end,
					(uint8_t *)data);
		}
		free(own);
	}
	return finish(&reading, err);
}
