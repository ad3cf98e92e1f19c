/* A small state memory, made and dropped: for the tests of proto/state. */
#pragma once

#include "base/tensor_table.h"
#include "proto/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#define SECTION SECTION_ALIGN

static const uint8_t run_id[STATE_RUN_ID_SIZE] = "0123456789abcde";

static inline struct digest model_digest(void)
{
	return digest_of("model", 5);
}

static inline void make(struct state *state, uint32_t slots)
{
	struct digest model = model_digest();
	struct error err;
	int fd = state_create(SECTION, slots, run_id, &model, &err);

	if (fd < 0)
		fail_msg("%s", err.text);
	if (state_map(state, fd, true, &err) < 0)
		fail_msg("%s", err.text);
}

static inline void drop(struct state *state)
{
	int fd = state->fd;

	state_unmap(state);
	close(fd);
}
