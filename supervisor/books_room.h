/* What the ledger's thread keeps between jobs. Private to books.c and books_line.c. */
#pragma once

#include "base/clock.h"
#include "store/history.h"
#include "supervisor/books.h"

#include <limits.h>

#define BOOKS_ATTEMPTS 16

struct books_attempt {
	uint64_t token;
	int64_t id; /* the row */
};

struct books {
	char run_dir[PATH_MAX];
	int run_fd, checkpoints_fd; /* -1: no run yet */
	struct history *history;    /* NULL: cannot be opened now */
	bool history_was_open;      /* in this life */
	nsec_t history_retry_ns;
	uint64_t outage_token; /* of the row written last */
	int64_t outage_id;
	struct books_attempt attempts[BOOKS_ATTEMPTS];
	struct digest counted_root; /* of the checkpoint whose header said `counts`; 0: none yet */
	struct survey_counts counts;
};

/* The open history; NULL when it cannot be opened now (tried again at most every ten seconds). */
struct history *books_history(struct books *books);
