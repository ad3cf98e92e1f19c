/* The start frame (proto/link.h), read once and checked. */
#pragma once

#include "base/config.h"
#include "base/error.h"
#include "base/sign.h"
#include "proto/json.h"
#include "store/run.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct worker_start {
	char role[16];
	pid_t parent_pid;
	char run_dir[PATH_MAX];
	struct config config;
	uint8_t run_id[RUN_ID_SIZE];
	bool run_created;   /* step 0 is allowed */
	bool resume_memory; /* else from disk */
	uint32_t threads;   /* 0: as configured */
	char engine[32];    /* forced by the ladder; "" none */
	bool has_signer;    /* public half of signing_key ... */
	struct sign_public signer;
	char signer_error[ERROR_TEXT_MAX]; /* ... or why there is none */
	/* save */
	uint32_t attempt;
	bool foreground, copy;
	/* verify, sample */
	char id[64];
	/* sample */
	uint32_t count, steps;
	uint64_t seed;
	int32_t label; /* -1 none */
	float guidance;
	char sampler[8];
	char name[NAME_MAX + 1];
};

/* frame: the whole object with its "start" member. role: what the command line says. -EINVAL. */
int worker_start_parse(
	const json_t *frame, const char *role, struct worker_start *ret, struct error *err);
