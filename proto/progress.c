/* The progress page. The trainer writes without ever waiting; the supervisor reads without asking
 * and believes nothing: a row counts only when its sequence is the expected one before and after it
 * was copied. Rows move as 64-bit words, so that a torn row is only ever a lost one. */
#include "proto/progress.h"

#include "base/panic.h"
#include "proto/memfd.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define METRIC_WORDS (sizeof(struct metric) / sizeof(uint64_t))
_Static_assert(sizeof(struct metric) == 64, "a row is one cache line");
_Static_assert(offsetof(struct metric, sequence) == 0, "word 0 is the sequence");

const char *phase_name(enum phase phase)
{
	static const char *const names[PHASE_COUNT] = {
		[PHASE_NONE] = "none",
		[PHASE_START] = "start",
		[PHASE_DATA] = "data",
		[PHASE_RECOVER] = "recover",
		[PHASE_INIT] = "init",
		[PHASE_LOAD] = "load",
		[PHASE_FORWARD] = "forward",
		[PHASE_BACKWARD] = "backward",
		[PHASE_UPDATE] = "update",
		[PHASE_PREVIEW] = "preview",
		[PHASE_HOLDOUT] = "holdout",
		[PHASE_WAIT] = "wait",
		[PHASE_DONE] = "done",
	};

	return (unsigned)phase < PHASE_COUNT ? names[phase] : "unknown";
}

int progress_create(struct progress **ret, int *ret_fd, struct error *err)
{
	static const struct {
		uint64_t magic;
		uint32_t version, reserved;
	} head = {PROGRESS_MAGIC, PROGRESS_VERSION, 0};
	int fd = memfd_create_sized("ckptd-progress", sizeof(struct progress),
		sizeof(struct progress), &head, sizeof(head), err);

	if (fd < 0)
		return fd;
	int r = progress_map(fd, ret, err);
	if (r < 0) {
		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

int progress_map(int fd, struct progress **ret, struct error *err)
{
	struct stat st;

	*ret = NULL;
	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "progress page: cannot stat: %s", strerror(errno));
	if (st.st_size != (off_t)sizeof(struct progress))
		return error_set(err, -EINVAL, "progress page: %jd bytes instead of %zu",
			(intmax_t)st.st_size, sizeof(struct progress));
	if (!memfd_size_sealed(fd))
		return error_set(err, -EINVAL, "progress page: its size is not sealed");
	struct progress *progress = mmap(
		NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (progress == MAP_FAILED)
		return error_set(err, -errno, "progress page: cannot map: %s", strerror(errno));
	if (progress->magic != PROGRESS_MAGIC || progress->version != PROGRESS_VERSION) {
		progress_unmap(progress);
		return error_set(
			err, -EPROTONOSUPPORT, "progress page: it is of another kind or version");
	}
	*ret = progress;
	return 0;
}

void progress_unmap(struct progress *progress)
{
	if (progress != NULL)
		munmap(progress, sizeof(*progress));
}

void progress_phase(struct progress *progress, enum phase phase)
{
	CHECK((unsigned)phase < PHASE_COUNT);
	atomic_store_explicit(&progress->phase, phase, memory_order_relaxed);
	progress_move(progress);
}

static _Atomic uint64_t *row_words(struct progress *progress, uint64_t index)
{
	return (_Atomic uint64_t *)&progress->ring[index % PROGRESS_RING];
}

void progress_stall(struct progress *progress, uint64_t waited_ns, bool refused)
{
	if (waited_ns > atomic_load(&progress->stall_max_ns))
		atomic_store(&progress->stall_max_ns, waited_ns);
	if (!refused)
		return;
	atomic_store(&progress->stall_last_ns, waited_ns);
	atomic_fetch_add(&progress->stall_total_ns, waited_ns);
	atomic_fetch_add(&progress->stall_count, 1);
}

void progress_metric(struct progress *progress, const struct metric *metric)
{
	uint64_t head = atomic_load_explicit(&progress->ring_head, memory_order_relaxed);
	_Atomic uint64_t *words = row_words(progress, head);
	uint64_t copy[METRIC_WORDS];

	memcpy(copy, metric, sizeof(copy));
	atomic_store_explicit(&words[0], 0, memory_order_relaxed);
	/* Release each: whoever sees one of them also sees the zero before it. */
	for (size_t i = 1; i < METRIC_WORDS; i++)
		atomic_store_explicit(&words[i], copy[i], memory_order_release);
	atomic_store_explicit(&words[0], head + 1, memory_order_release);
	atomic_store_explicit(&progress->ring_head, head + 1, memory_order_release);
}

/* False when the row is not (or no longer) the one after index rows. */
static bool row_read(struct progress *progress, uint64_t index, struct metric *ret)
{
	_Atomic uint64_t *words = row_words(progress, index);
	uint64_t copy[METRIC_WORDS];

	copy[0] = atomic_load_explicit(&words[0], memory_order_acquire);
	if (copy[0] != index + 1)
		return false;
	for (size_t i = 1; i < METRIC_WORDS; i++)
		copy[i] = atomic_load_explicit(&words[i], memory_order_acquire);
	if (atomic_load_explicit(&words[0], memory_order_relaxed) != copy[0])
		return false;
	memcpy(ret, copy, sizeof(*ret));
	return (ret->kind == METRIC_TRAIN || ret->kind == METRIC_HOLDOUT) &&
		ret->step <= PROGRESS_STEP_MAX && ret->skipped <= 1;
}

uint32_t progress_drain(struct progress *progress, uint64_t *cursor, struct metric *rows,
	uint32_t max, uint64_t *lost)
{
	uint64_t head = atomic_load_explicit(&progress->ring_head, memory_order_acquire);
	uint32_t count = 0;

	/* Only a mad writer goes back, or writes so many rows between two looks. */
	if (head < *cursor || head - *cursor > UINT32_MAX)
		*cursor = head;
	if (head - *cursor > PROGRESS_RING) {
		*lost += head - *cursor - PROGRESS_RING;
		*cursor = head - PROGRESS_RING;
	}
	for (; *cursor < head && count < max; (*cursor)++) {
		if (row_read(progress, *cursor, &rows[count]))
			count++;
		else
			(*lost)++;
	}
	return count;
}
