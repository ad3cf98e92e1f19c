/* The commit of one checkpoint, steps 1 to 6 of docs/CHECKPOINT_FORMAT.md. The source is the pinned
 * slot: what is hashed, written and compared is that memory itself, never a copy. Some threads
 * write its chunks while others hash them, so its seals are checked twice: before a chunk is
 * hashed, and of the bytes that the device gave back. A bit that flipped in memory at any time,
 * also between hash and write, is not published as truth.
 *
 * Whatever fails, both names this save may have made are gone when it returns: nothing is
 * published half. After an error of fsync the file is dead: it is unlinked and never synced again,
 * because the kernel has forgotten which pages it lost. */
#include "store/checkpoint.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/seal.h"
#include "base/sys.h"
#include "store/checkpoint_copy.h"
#include "store/checkpoint_header.h"
#include "store/chunk_flow.h"
#include "store/partial.h"
#include "store/scan.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct save {
	int folder_fd;
	const struct checkpoint_source *source;
	struct checkpoint_header header;
	struct digest *chunks;
	char partial[SCAN_NAME_MAX], published[SCAN_NAME_MAX];
	const char *made; /* the name that is on disk now and must go on error */
	struct partial file;
	uint64_t block_bytes;
	struct error *err;
	/* Set by threads. */
	struct chunk_error error;
	atomic_bool cached;
};

/* That hash, the caller among them. */
static uint32_t hash_threads(const struct save *save)
{
	return save->source->threads > 0 ? save->source->threads : (uint32_t)omp_get_max_threads();
}

static const uint8_t *chunk_data(const struct save *save, uint32_t chunk)
{
	return (const uint8_t *)save->source->block + chunk * CHECKPOINT_CHUNK_BYTES;
}

static bool still_valid(const struct checkpoint_source *source)
{
	return source->still_valid == NULL || source->still_valid(source->context);
}

/* -- an older file under this name -- */

static bool same_state(const struct state_record *a, const struct state_record *b)
{
	return memcmp(a->run_id, b->run_id, sizeof(a->run_id)) == 0 && a->branch == b->branch &&
		a->step == b->step && digest_equal(&a->model_digest, &b->model_digest);
}

static void answer(struct save *save, const struct checkpoint_info *info, const struct digest *root,
	struct checkpoint_saved *ret)
{
	checkpoint_id_format(save->source->record->step, save->source->record->branch, ret->id);
	ret->root = *root;
	snprintf(ret->created, sizeof(ret->created), "%s", info->created);
	ret->file_bytes = info->file_bytes;
	if (info->is_signed)
		sign_public_hex(&info->signer, ret->signer);
}

/* 1 and the answer when this (branch, step) stands already and its bytes still verify: a (branch,
 * step) is written once. 0 when the name is free, or was held by a file that is proven corrupt. */
static int check_published(struct save *save, struct checkpoint_saved *ret)
{
	struct checkpoint_info info;
	int fd, rc;

	fd = checkpoint_open(save->folder_fd, save->published, &info, save->err);
	if (fd == -ENOENT)
		return 0;
	if (fd == -EBADMSG)
		return checkpoint_move_aside(save->folder_fd, save->published, save->err);
	if (fd < 0)
		return fd;
	if (!same_state(&info.record, save->source->record)) {
		rc = error_set(save->err, -EEXIST,
			"%s is there and belongs to another run or model", save->published);
	} else {
		rc = checkpoint_read(fd, &info, NULL, NULL, save->source->threads, NULL, save->err);
		if (rc == 0)
			answer(save, &info, &info.root, ret);
	}
	sys_close(fd);
	checkpoint_info_fini(&info);
	if (rc == -EBADMSG)
		return checkpoint_move_aside(save->folder_fd, save->published, save->err);
	ret->already = rc == 0;
	return rc < 0 ? rc : 1;
}

/* -- step 1: reserve -- */

static int reserve(struct save *save)
{
	uint64_t bytes = save->header.size + save->block_bytes;
	int rc = partial_create(save->folder_fd, save->partial,
		(uintptr_t)save->source->block % CHECKPOINT_DATA_ALIGN == 0, &save->file);

	if (rc < 0)
		return error_set(
			save->err, rc, "cannot create %s: %s", save->partial, strerror(-rc));
	save->made = save->partial;
	rc = sys_fallocate(save->file.fd, (off_t)bytes);
	if (rc < 0 && rc != -EOPNOTSUPP)
		return error_set(save->err, rc, "cannot reserve %llu MiB for %s: %s",
			(unsigned long long)(bytes >> 20), save->published, strerror(-rc));
	return sys_fault("save.reserved");
}

/* -- step 2: hash and write -- */

static int compare_seals(const struct save *save, uint32_t chunk, const uint64_t *sums)
{
	const uint64_t *sealed = save->source->sums + chunk * CHUNK_SEALS;

	return memcmp(sums, sealed, CHUNK_SEALS * sizeof(*sums)) == 0 ? 0 : -EUCLEAN;
}

/* The bytes of a chunk, wherever they are, against its seals. */
static int check_seals(const struct save *save, uint32_t chunk, const uint8_t *data)
{
	uint64_t sums[CHUNK_SEALS];

	seal_sums(data, CHECKPOINT_CHUNK_BYTES, sums);
	return compare_seals(save, chunk, sums);
}

static int hash_chunk(void *context, uint32_t chunk, uint8_t *unused)
{
	struct save *save = context;
	uint64_t sums[CHUNK_SEALS];

	(void)unused;
	save->chunks[chunk] = chunk_digest(chunk_data(save, chunk), sums);
	return compare_seals(save, chunk, sums);
}

static int write_chunk(void *context, uint32_t chunk, uint8_t *unused)
{
	struct save *save = context;
	off_t offset = (off_t)(save->header.size + chunk * CHECKPOINT_CHUNK_BYTES);

	(void)unused;
	return partial_write(&save->file, chunk_data(save, chunk), offset);
}

/* 0, or the first error of the threads in words. */
static int explain(struct save *save, const char *doing)
{
	uint32_t chunk;
	int error = chunk_error_get(&save->error, &chunk);

	switch (error) {
	case 0:
		return 0;
	case -EUCLEAN:
		return error_set(save->err, -EUCLEAN,
			"memory corrupt: the state of %s does not match its seal near MiB %llu",
			save->published, (unsigned long long)(chunk * CHUNK_SEALS));
	case -EILSEQ:
		return error_set(save->err, -EIO,
			"the device gave back other bytes than were written to %s (chunk %u)",
			save->published, chunk);
	case -ESTALE:
		return error_set(save->err, -ESTALE, "the pinned state changed during the save");
	default:
		return error_set(save->err, error, "cannot %s %s: %s", doing, save->published,
			strerror(-error));
	}
}

/* The disk and the processors at work at once, over the same chunks. */
static int write_data(struct save *save, struct digest *ret_root)
{
	struct chunk_flow writing = {.work = write_chunk,
		.context = save,
		.error = &save->error,
		.end = save->header.chunk_count};
	struct chunk_flow hashing = writing;
	int rc;

	hashing.work = hash_chunk;
	chunk_flow_start(&writing, CHUNK_IO_DEPTH);
	chunk_flow_start(&hashing, hash_threads(save) - 1);
	chunk_flow_finish(&hashing);
	chunk_flow_finish(&writing);
	rc = explain(save, "write");
	if (rc < 0)
		return rc;
	checkpoint_header_finish(&save->header, save->chunks, ret_root);
	rc = file_write_exact(save->file.fd, save->header.bytes, save->header.size, 0);
	if (rc < 0)
		return error_set(
			save->err, rc, "cannot write %s: %s", save->published, strerror(-rc));
	return sys_fault("save.written");
}

/* -- step 3: fsync -- */

static int sync_file(struct save *save)
{
	int rc = sys_fsync(save->file.fd);

	if (rc < 0)
		return error_set(save->err, rc,
			"cannot sync %s: %s; the file is given up, a new save writes a new one",
			save->published, strerror(-rc));
	return sys_fault("save.synced");
}

/* -- step 4: read back -- */

/* size bytes at offset into an aligned buffer: from the device, or through a dropped cache. */
static int read_device(struct save *save, void *buffer, size_t size, uint64_t offset)
{
	if (save->file.direct >= 0) {
		int rc = file_read_exact(save->file.direct, buffer, size, (off_t)offset);

		if (rc != -EINVAL)
			return rc;
	}
	atomic_store(&save->cached, true);
	posix_fadvise(save->file.fd, (off_t)offset, (off_t)size, POSIX_FADV_DONTNEED);
	return file_read_exact(save->file.fd, buffer, size, (off_t)offset);
}

static int compare_chunk(void *context, uint32_t chunk, uint8_t *buffer)
{
	struct save *save = context;
	uint64_t offset = save->header.size + chunk * CHECKPOINT_CHUNK_BYTES;
	int rc = read_device(save, buffer, CHECKPOINT_CHUNK_BYTES, offset);

	if (rc < 0)
		return rc;
	if (memcmp(buffer, chunk_data(save, chunk), CHECKPOINT_CHUNK_BYTES) == 0)
		return check_seals(save, chunk, buffer);
	/* Which side changed? The memory has its own witnesses. */
	if (!still_valid(save->source))
		return -ESTALE;
	rc = check_seals(save, chunk, chunk_data(save, chunk));
	return rc < 0 ? rc : -EILSEQ;
}

static int compare_header(struct save *save)
{
	uint8_t *buffer = aligned_alloc(CHECKPOINT_DATA_ALIGN, save->header.size);
	int rc = buffer != NULL ? 0 : -ENOMEM;

	if (rc == 0)
		rc = read_device(save, buffer, save->header.size, 0);
	if (rc == 0 && memcmp(buffer, save->header.bytes, save->header.size) != 0)
		rc = -EILSEQ;
	free(buffer);
	return rc;
}

static int read_back(struct save *save)
{
	struct chunk_flow reading = {.work = compare_chunk,
		.context = save,
		.error = &save->error,
		.buffer_bytes = CHECKPOINT_CHUNK_BYTES,
		.end = save->header.chunk_count};
	int rc = compare_header(save);

	if (rc < 0)
		chunk_error_record(&save->error, 0, rc);
	chunk_flow_start(&reading, CHUNK_IO_DEPTH - 1);
	chunk_flow_finish(&reading);
	rc = explain(save, "read back");
	if (rc < 0)
		return rc;
	return sys_fault("save.readback");
}

/* -- steps 5 and 6: rename, fsync the folder -- */

static int publish(struct save *save)
{
	int rc;

	if (!still_valid(save->source)) {
		chunk_error_record(&save->error, 0, -ESTALE);
		return explain(save, "publish");
	}
	rc = sys_renameat_noreplace(save->folder_fd, save->partial, save->published);
	if (rc < 0)
		return error_set(
			save->err, rc, "cannot publish %s: %s", save->published, strerror(-rc));
	save->made = save->published;
	rc = sys_fault("save.renamed");
	if (rc == 0)
		rc = file_sync_dir(save->folder_fd);
	if (rc < 0)
		return error_set(save->err, rc, "cannot sync the folder of %s: %s", save->published,
			strerror(-rc));
	return sys_fault("save.published");
}

/* -- all of it -- */

static int save_init(struct save *save, const char *created)
{
	const struct checkpoint_source *source = save->source;
	struct digest sums;
	char id[CHECKPOINT_ID_SIZE];

	checkpoint_id_format(source->record->step, source->record->branch, id);
	snprintf(save->published, sizeof(save->published), "%s%s", id, CHECKPOINT_SUFFIX);
	snprintf(save->partial, sizeof(save->partial), ".%s.partial-%u", id, source->attempt);
	save->block_bytes = SECTION_COUNT * source->table->section_bytes;
	sums = digest_of(source->sums, save->block_bytes / SEAL_CHUNK_BYTES * sizeof(uint64_t));
	if (!state_record_valid(source->record) ||
		!digest_equal(&sums, &source->record->sums_digest))
		return error_set(save->err, -EUCLEAN,
			"memory corrupt: the record of %s does not match its own sums", id);
	save->chunks = calloc(save->block_bytes / CHECKPOINT_CHUNK_BYTES, sizeof(*save->chunks));
	if (save->chunks == NULL)
		return error_set(save->err, -ENOMEM, "no memory for the digests");
	return checkpoint_header_build(source, created, &save->header, save->err);
}

static void save_fini(struct save *save)
{
	partial_close(&save->file);
	if (save->made != NULL)
		sys_unlinkat(save->folder_fd, save->made);
	checkpoint_header_fini(&save->header);
	free(save->chunks);
}

/* A named fault point gives a bare code. */
static int told(struct save *save, int rc)
{
	if (rc < 0 && save->err != NULL && save->err->text[0] == '\0')
		error_set(save->err, rc, "cannot save %s: %s", save->published, strerror(-rc));
	return rc;
}

static int commit(struct save *save, const char *created, struct checkpoint_saved *ret)
{
	struct checkpoint_info info = {.file_bytes = save->header.size + save->block_bytes};
	struct digest root;
	nsec_t begun = clock_monotonic_ns(), synced;
	int rc;

	rc = reserve(save);
	if (rc == 0)
		rc = write_data(save, &root);
	if (rc == 0)
		rc = sync_file(save);
	if (rc < 0)
		return told(save, rc);
	synced = clock_monotonic_ns();
	rc = read_back(save);
	ret->readback_ns = clock_monotonic_ns() - synced;
	if (rc == 0)
		rc = publish(save);
	if (rc < 0)
		return told(save, rc);
	save->made = NULL;
	snprintf(info.created, sizeof(info.created), "%s", created);
	info.is_signed = save->source->key != NULL;
	if (info.is_signed)
		info.signer = save->source->key->public;
	answer(save, &info, &root, ret);
	ret->direct = !atomic_load(&save->cached);
	ret->write_ns = synced - begun;
	return 0;
}

int checkpoint_save(int checkpoints_fd, const struct checkpoint_source *source,
	struct checkpoint_saved *ret, struct error *err)
{
	struct save save = {
		.folder_fd = checkpoints_fd, .source = source, .file = {-1, -1}, .err = err};
	char created[CLOCK_TEXT_SIZE];
	nsec_t begun = clock_monotonic_ns();
	int rc;

	memset(ret, 0, sizeof(*ret));
	if (err != NULL)
		err->text[0] = '\0';
	clock_format_utc(clock_wall_ns(), created);
	rc = save_init(&save, created);
	if (rc == 0)
		rc = check_published(&save, ret);
	if (err != NULL && rc == 0)
		err->text[0] = '\0'; /* what is not there is no error */
	if (rc == 0)
		rc = commit(&save, created, ret);
	save_fini(&save);
	ret->total_ns = clock_monotonic_ns() - begun;
	return rc < 0 ? rc : 0;
}
