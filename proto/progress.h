/* The progress page: a memfd that the trainer writes and the supervisor reads without asking. It
 * outlives the trainer, so an obituary can name the last phase and step. Trust nothing in it: the
 * reader bounds every value.
 *
 * moves counts every entry of the call list, every MiB loaded or summed, every sample read: no
 * movement within the deadline is a hang. */
#pragma once

#include "base/error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PROGRESS_MAGIC UINT64_C(0x3173736572676f72)
#define PROGRESS_VERSION 2
#define PROGRESS_RING 4096
#define PROGRESS_TEXT_MAX 128
#define PROGRESS_STEP_MAX (UINT64_C(1) << 53) /* a row beyond it is not believed */

enum phase {
	PHASE_NONE,    /* no trainer yet */
	PHASE_START,   /* started, mapping, checking */
	PHASE_DATA,    /* opening or caching the data */
	PHASE_RECOVER, /* reading a checkpoint */
	PHASE_INIT,    /* first weights */
	PHASE_LOAD,    /* reading samples */
	PHASE_FORWARD,
	PHASE_BACKWARD,
	PHASE_UPDATE,
	PHASE_PREVIEW,
	PHASE_HOLDOUT,
	PHASE_WAIT, /* for a free slot */
	PHASE_DONE, /* ending as asked */
	PHASE_COUNT
};
const char *phase_name(enum phase phase); /* "forward"; "unknown" when out of range */

enum metric_kind { METRIC_TRAIN = 1, METRIC_HOLDOUT = 2 };

/* One row of the ring. */
struct metric {
	uint64_t sequence; /* 1, 2, ...: index + 1 in the order written; 0 while being written */
	uint64_t step;     /* finished steps */
	uint32_t branch;
	uint32_t kind;
	float loss;
	float loss_quartile[4]; /* by timestep; NaN when no sample fell there */
	float grad_norm;
	float learning_rate;
	float step_ms;
	uint32_t images;
	uint32_t skipped; /* 1: non-finite, not applied */
};

struct progress {
	uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	_Atomic uint64_t moves;
	_Atomic uint32_t phase;
	_Atomic uint32_t branch;
	_Atomic uint64_t step;       /* finished steps */
	_Atomic uint64_t step_begun; /* the step being computed: step + 1 while one runs */
	_Atomic uint64_t images_seen;
	_Atomic uint64_t step_ns;   /* duration of the last step */
	_Atomic uint32_t loss_bits; /* float */
	_Atomic uint32_t images_per_step;
	_Atomic uint64_t plan_bytes;
	/* What saves cost the loop: waits for a slot that a save held, and the longest wait for a
	 * slot of all, whoever caused it. */
	_Atomic uint64_t stall_count, stall_last_ns, stall_total_ns, stall_max_ns;
	_Atomic uint64_t ring_head;     /* metrics written so far */
	char engine[PROGRESS_TEXT_MAX]; /* written before `ready` is sent */
	char engine_reason[PROGRESS_TEXT_MAX];
	struct metric ring[PROGRESS_RING];
};

/* Creates and maps; the descriptor is close-on-exec. */
int progress_create(struct progress **ret, int *ret_fd, struct error *err);
/* Maps an inherited or stored descriptor after checking its size, seals, magic, version. */
int progress_map(int fd, struct progress **ret, struct error *err);
void progress_unmap(struct progress *progress);

/* -- trainer -- */
static inline void progress_move(struct progress *progress)
{
	atomic_fetch_add_explicit(&progress->moves, 1, memory_order_relaxed);
}
void progress_phase(struct progress *progress, enum phase phase);
/* A wait for a slot has ended. refused: it was not to be had at once. */
void progress_stall(struct progress *progress, uint64_t waited_ns, bool refused);
/* sequence is filled in. */
void progress_metric(struct progress *progress, const struct metric *metric);

/* -- supervisor -- */
/* Copies up to max rows after *cursor (rows already seen), oldest first, and advances the cursor;
 * rows overwritten before they were read are added to *lost. */
uint32_t progress_drain(struct progress *progress, uint64_t *cursor, struct metric *rows,
	uint32_t max, uint64_t *lost);
