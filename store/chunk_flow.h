/* Chunks of a checkpoint handed out to threads: each chunk once, in order of position, and the
 * first error by position kept, so that a message does not depend on the number of threads.
 *
 * Several flows may run over the same chunks at once and share an error: the saver hashes in one
 * and writes in another. A thread that cannot be made is done without; the caller of
 * chunk_flow_finish takes part, so a flow ends with no thread at all. */
#pragma once

#include "base/digest.h"
#include "base/seal.h"
#include "store/checkpoint.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Direct reads or writes in flight: what keeps a disk busy while one of them is handed over. */
#define CHUNK_IO_DEPTH 4
#define CHUNK_THREADS_MAX 64
#define CHUNK_SEALS (CHECKPOINT_CHUNK_BYTES / SEAL_CHUNK_BYTES)

/* Digest and seal sums (CHUNK_SEALS) of one chunk in one pass over the memory. */
struct digest chunk_digest(const uint8_t *data, uint64_t sums[]);

struct chunk_error {
	_Atomic uint64_t first; /* chunk << 32 | -error; 0: none */
};

static inline bool chunk_error_seen(struct chunk_error *error)
{
	return atomic_load_explicit(&error->first, memory_order_relaxed) != 0;
}
/* Keeps the one with the least chunk. code is negative. */
void chunk_error_record(struct chunk_error *error, uint32_t chunk, int code);
/* 0, or the first error and its chunk. Only after all flows have finished. */
int chunk_error_get(struct chunk_error *error, uint32_t *ret_chunk);

struct chunk_flow {
	/* 0 or -errno. buffer is the thread's own, aligned for direct I/O; NULL when no size was
	 * asked for. */
	int (*work)(void *context, uint32_t chunk, uint8_t *buffer);
	void *context;
	struct chunk_error *error; /* after one, no further chunk is begun */
	size_t buffer_bytes;
	uint32_t end; /* one beyond the last chunk */
	_Atomic uint32_t next;
	pthread_t threads[CHUNK_THREADS_MAX];
	uint32_t thread_count;
};

/* Starts at most thread_count threads; next is where the caller set it. The flow must stay where
 * it is until chunk_flow_finish. */
void chunk_flow_start(struct chunk_flow *flow, uint32_t thread_count);
/* Takes part until no chunk is left, and waits for the threads. */
void chunk_flow_finish(struct chunk_flow *flow);
