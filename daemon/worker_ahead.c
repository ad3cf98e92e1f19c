/* See worker_ahead.h. */
#include "daemon/worker_ahead.h"

#include "base/panic.h"

#include <omp.h>

static void *make(void *context)
{
	struct ahead *ahead = context;
	struct error ignored; /* the trainer meets it again, and tells */

	if (ahead->setup.engine) {
		/* Of this thread; the pool's own width is not touched. */
		omp_set_num_threads(ahead->pool);
		if (train_new(&ahead->setup, &ahead->train, &ignored) < 0)
			ahead->train = NULL;
	}
	for (uint32_t slot = ahead->first;
		slot < ahead->end && slot < ahead->state->header.slot_count; slot++)
		state_allocate(ahead->state, slot);
	return NULL;
}

void ahead_begin(struct ahead *ahead, const struct train_setup *setup, const struct state *state,
	uint32_t first, uint32_t end)
{
	CHECK(!ahead->running);
	*ahead = (struct ahead){
		.pool = omp_get_max_threads(), .state = state, .first = first, .end = end};
	if (setup)
		ahead->setup = *setup;
	ahead->running = pthread_create(&ahead->thread, NULL, make, ahead) == 0;
}

void ahead_wait(struct ahead *ahead)
{
	if (ahead->running)
		pthread_join(ahead->thread, NULL);
	ahead->running = false;
}

struct train *ahead_take(struct ahead *ahead, const struct engine *engine)
{
	struct train *train;

	ahead_wait(ahead);
	train = ahead->train;
	ahead->train = NULL;
	if (train && ahead->setup.engine != engine) {
		train_free(train);
		train = NULL;
	}
	return train;
}
