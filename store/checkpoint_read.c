/* Reading data: every byte passes its chunk's digest before it counts. Some threads more than hash
 * wait for the disk, so that it works ahead of the hashing; of those that have their chunk, no more
 * than asked for hash at a time. Memory is bounded by one chunk a thread when the block has nowhere
 * to go. */
#include "store/checkpoint.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/seal.h"
#include "store/chunk_flow.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct reading {
	int fd;
	const struct checkpoint_info *info;
	void *block; /* NULL: verified only, or a section */
	uint64_t *sums;
	_Atomic uint64_t *moves;
	/* A section of it: these bytes of the block go to data. */
	uint64_t begin, end;
	uint8_t *data;
	sem_t hashing;                      /* permits */
	int flags;                          /* of fd, as it came */
	const struct checkpoint_gate *gate; /* NULL: open */
	pthread_mutex_t gate_mutex;
	/* Whoever gets each chunk. */
	checkpoint_take *take;
	void *context;
	struct chunk_error error;
};

/* The descriptor is ours alone, so its mode may change while others read: a read has the mode it
 * began with. */
static void set_direct(const struct reading *reading, bool direct)
{
	(void)fcntl(reading->fd, F_SETFL, reading->flags | (direct ? O_DIRECT : 0));
}

/* From the device itself where the file system takes that; else through the cache, for good. */
static int read_bytes(const struct reading *reading, uint8_t *data, off_t offset)
{
	int rc = file_read_exact(reading->fd, data, CHECKPOINT_CHUNK_BYTES, offset);

	if (rc != -EINVAL)
		return rc;
	set_direct(reading, false);
	return file_read_exact(reading->fd, data, CHECKPOINT_CHUNK_BYTES, offset);
}

static int read_matching(struct reading *reading, uint32_t chunk, uint8_t *data, uint64_t sums[])
{
	const struct checkpoint_info *info = reading->info;
	off_t offset = (off_t)(info->data_offset + (uint64_t)chunk * CHECKPOINT_CHUNK_BYTES);
	int rc = read_bytes(reading, data, offset);
	struct digest digest;

	if (rc < 0)
		return rc == -ENODATA ? -EBADMSG : rc;
	while (sem_wait(&reading->hashing) < 0)
		CHECK(errno == EINTR);
	digest = chunk_digest(data, sums);
	sem_post(&reading->hashing);
	return digest_equal(&digest, &info->chunks[chunk]) ? 0 : -EBADMSG;
}

static int pass_gate(struct reading *reading)
{
	int rc;

	if (reading->gate == NULL)
		return 0;
	CHECK(pthread_mutex_lock(&reading->gate_mutex) == 0);
	rc = reading->gate->pass(reading->gate->context, CHECKPOINT_CHUNK_BYTES);
	CHECK(pthread_mutex_unlock(&reading->gate_mutex) == 0);
	return rc;
}

/* A verdict about bytes is asked for twice, the second time past the cache: the fault may have been
 * in the reading. */
static int read_chunk(struct reading *reading, uint32_t chunk, uint8_t *data)
{
	uint64_t sums[CHUNK_SEALS];
	int rc = pass_gate(reading);

	if (rc < 0)
		return rc;
	rc = read_matching(reading, chunk, data, sums);

	if (rc == -EBADMSG) {
		posix_fadvise(reading->fd, 0, 0, POSIX_FADV_DONTNEED);
		rc = read_matching(reading, chunk, data, sums);
	}
	if (rc < 0)
		return rc;
	if (reading->sums != NULL)
		memcpy(reading->sums + chunk * CHUNK_SEALS, sums, sizeof(sums));
	if (reading->moves != NULL)
		atomic_fetch_add_explicit(reading->moves, CHUNK_SEALS, memory_order_relaxed);
	return reading->take != NULL ? reading->take(reading->context, chunk, data, sums) : 0;
}

static int explain(struct reading *reading, struct error *err)
{
	uint32_t chunk;
	int error = chunk_error_get(&reading->error, &chunk);
	unsigned long long offset = reading->info->data_offset + chunk * CHECKPOINT_CHUNK_BYTES;

	if (error == 0)
		return 0;
	if (error == -EBADMSG)
		return error_set(err, -EBADMSG,
			"%s: chunk %u of %u (at byte %llu) does not match its digest",
			reading->info->id, chunk, reading->info->chunk_count, offset);
	return error_set(err, error, "%s: cannot read chunk %u of %u (at byte %llu): %s",
		reading->info->id, chunk, reading->info->chunk_count, offset, strerror(-error));
}

/* Chunks from first to last, each by work. */
static int read_chunks(struct reading *reading,
	int (*work)(void *context, uint32_t chunk, uint8_t *buffer), uint32_t first, uint32_t last,
	uint32_t threads, struct error *err)
{
	struct chunk_flow flow = {.work = work,
		.context = reading,
		.error = &reading->error,
		.buffer_bytes = reading->block == NULL ? CHECKPOINT_CHUNK_BYTES : 0,
		.end = last + 1,
		.next = first};
	uint32_t hash_threads = threads > 0 ? threads : (uint32_t)omp_get_max_threads();

	CHECK(sem_init(&reading->hashing, 0, hash_threads) == 0);
	CHECK(pthread_mutex_init(&reading->gate_mutex, NULL) == 0);
	reading->flags = fcntl(reading->fd, F_GETFL);
	set_direct(reading, (uintptr_t)reading->block % CHECKPOINT_DATA_ALIGN == 0);
	chunk_flow_start(&flow, hash_threads + CHUNK_IO_DEPTH - 1);
	chunk_flow_finish(&flow);
	set_direct(reading, false);
	pthread_mutex_destroy(&reading->gate_mutex);
	sem_destroy(&reading->hashing);
	return explain(reading, err);
}

static int read_whole(void *context, uint32_t chunk, uint8_t *buffer)
{
	struct reading *reading = context;

	if (reading->block != NULL)
		buffer = (uint8_t *)reading->block + chunk * CHECKPOINT_CHUNK_BYTES;
	return read_chunk(reading, chunk, buffer);
}

int checkpoint_read(int fd, const struct checkpoint_info *info, void *block, uint64_t *sums,
	uint32_t threads, _Atomic uint64_t *moves, struct error *err)
{
	struct reading reading = {
		.fd = fd, .info = info, .block = block, .sums = sums, .moves = moves};

	CHECK(info->chunk_count > 0);
	/* To verify is to ask the device, not the cache: also where direct I/O is refused. */
	if (block == NULL)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return read_chunks(&reading, read_whole, 0, info->chunk_count - 1, threads, err);
}

int checkpoint_check_sums(
	const struct checkpoint_info *info, const uint64_t *sums, struct error *err)
{
	uint64_t count = info->block_bytes / SEAL_CHUNK_BYTES;
	struct digest digest = digest_of(sums, count * sizeof(uint64_t)), weights;

	if (!digest_equal(&digest, &info->record.sums_digest))
		return error_set(
			err, -EBADMSG, "%s: its data are not those of its record", info->id);
	weights = checkpoint_weights_digest(&info->table, sums);
	if (info->has_weights_digest && !digest_equal(&weights, &info->weights_digest))
		return error_set(
			err, -EBADMSG, "%s: its weights are not those of its header", info->id);
	return 0;
}

int checkpoint_verify(int fd, const struct checkpoint_info *info, uint32_t threads,
	const struct checkpoint_gate *gate, struct error *err)
{
	uint64_t *sums = calloc(info->chunk_count, CHUNK_SEALS * sizeof(uint64_t));
	struct reading reading = {.fd = fd, .info = info, .sums = sums, .gate = gate};
	int rc;

	CHECK(info->chunk_count > 0);
	if (sums == NULL)
		return error_set(err, -ENOMEM, "no memory for the sums of %s", info->id);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	rc = read_chunks(&reading, read_whole, 0, info->chunk_count - 1, threads, err);
	if (rc == 0)
		rc = checkpoint_check_sums(info, sums, err);
	free(sums);
	return rc;
}

int checkpoint_read_each(int fd, const struct checkpoint_info *info, checkpoint_take *take,
	void *context, uint32_t threads, _Atomic uint64_t *moves, struct error *err)
{
	struct reading reading = {
		.fd = fd, .info = info, .take = take, .context = context, .moves = moves};

	CHECK(info->chunk_count > 0 && take != NULL);
	return read_chunks(&reading, read_whole, 0, info->chunk_count - 1, threads, err);
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

static int read_part(void *context, uint32_t chunk, uint8_t *buffer)
{
	struct reading *reading = context;
	int rc = read_chunk(reading, chunk, buffer);

	if (rc == 0)
		copy_overlap(buffer, chunk * CHECKPOINT_CHUNK_BYTES, reading->begin, reading->end,
			reading->data);
	return rc;
}

int checkpoint_read_section(int fd, const struct checkpoint_info *info, enum section section,
	float *data, uint32_t threads, struct error *err)
{
	struct reading reading = {.fd = fd, .info = info, .data = (uint8_t *)data};
	uint32_t first, last;

	reading.begin = (uint64_t)section * info->section_bytes;
	reading.end = reading.begin + info->section_bytes;
	first = (uint32_t)(reading.begin / CHECKPOINT_CHUNK_BYTES);
	last = (uint32_t)((reading.end - 1) / CHECKPOINT_CHUNK_BYTES);
	CHECK(section < SECTION_COUNT && last < info->chunk_count);
	return read_chunks(&reading, read_part, first, last, threads, err);
}
