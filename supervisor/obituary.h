/* What is said about a process that ended: cause, kind of death, one sentence. Pure. */
#pragma once

#include "supervisor/restart.h"

#include <stdbool.h>
#include <stdint.h>

#define OBITUARY_HANG 1000u /* cause numbers: signals, 256 + exit codes, and these */
#define OBITUARY_PROTOCOL 1001u
#define OBITUARY_CORRUPT 1002u

struct ending {
	const char *role; /* "train" */
	int exit_status;  /* when term_signal is 0 */
	int term_signal;
	bool asked;             /* it was told to end */
	bool hang;              /* killed by us for not moving */
	bool protocol_broken;   /* killed by us for what it sent */
	bool memory_corrupt;    /* killed by us: the saver found a seal that does not match */
	bool out_of_memory;     /* the kernel's killer was at work */
	const char *phase;      /* the last one seen */
	uint64_t step;          /* finished steps */
	const char *last_words; /* of its `failed` message, "" when there was none */
};

struct obituary {
	enum death_kind kind;
	uint32_t cause_number; /* equal for equal causes */
	bool planned;          /* no death at all */
	bool person;           /* LINK_EXIT_CONFIG: a person must act */
	char cause[64];
	const char *detected; /* by what it was noticed; static */
	char sentence[256];
};

void obituary_write(const struct ending *ending, struct obituary *ret);
/* "SIGSEGV" */
const char *signal_name(int number);
