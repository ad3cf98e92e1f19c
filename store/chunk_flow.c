/* Threads over chunks. They inherit the priorities of the one that starts them, so a saver that
 * stepped back stays back. */
#include "store/chunk_flow.h"

#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <stdlib.h>

#define BUFFER_ALIGN 4096

/* MiB by MiB: what was hashed is still in the cache when it is summed. */
struct digest chunk_digest(const uint8_t *data, uint64_t sums[])
{
	struct digest_stream stream;

	digest_begin(&stream);
	for (size_t i = 0; i < CHUNK_SEALS; i++) {
		digest_add(&stream, data + i * SEAL_CHUNK_BYTES, SEAL_CHUNK_BYTES);
		seal_sums(data + i * SEAL_CHUNK_BYTES, SEAL_CHUNK_BYTES, &sums[i]);
	}
	return digest_end(&stream);
}

void chunk_error_record(struct chunk_error *error, uint32_t chunk, int code)
{
	uint64_t mine = (uint64_t)chunk << 32 | (uint32_t)-code;
	uint64_t first = atomic_load(&error->first);

	CHECK(code < 0);
	while (first == 0 || chunk < first >> 32)
		if (atomic_compare_exchange_weak(&error->first, &first, mine))
			return;
}

int chunk_error_get(struct chunk_error *error, uint32_t *ret_chunk)
{
	uint64_t first = atomic_load(&error->first);

	*ret_chunk = (uint32_t)(first >> 32);
	return -(int)(uint32_t)first;
}

static void take_part(struct chunk_flow *flow)
{
	uint8_t *buffer = NULL;

	if (flow->buffer_bytes > 0)
		buffer = aligned_alloc(BUFFER_ALIGN, flow->buffer_bytes);
	while (!chunk_error_seen(flow->error)) {
		uint32_t chunk = atomic_fetch_add(&flow->next, 1);
		int rc = buffer == NULL && flow->buffer_bytes > 0 ? -ENOMEM : 0;

		if (chunk >= flow->end)
			break;
		if (rc == 0)
			rc = flow->work(flow->context, chunk, buffer);
		if (rc < 0)
			chunk_error_record(flow->error, chunk, rc);
	}
	free(buffer);
}

static void *thread_main(void *context)
{
	take_part(context);
	return NULL;
}

void chunk_flow_start(struct chunk_flow *flow, uint32_t thread_count)
{
	uint32_t max = thread_count < CHUNK_THREADS_MAX ? thread_count : CHUNK_THREADS_MAX;

	CHECK(flow->buffer_bytes % BUFFER_ALIGN == 0);
	flow->thread_count = 0;
	while (flow->thread_count < max && sys_fault("thread") == 0 &&
		pthread_create(&flow->threads[flow->thread_count], NULL, thread_main, flow) == 0)
		flow->thread_count++;
}

void chunk_flow_finish(struct chunk_flow *flow)
{
	take_part(flow);
	for (uint32_t i = 0; i < flow->thread_count; i++)
		CHECK(pthread_join(flow->threads[i], NULL) == 0);
}
