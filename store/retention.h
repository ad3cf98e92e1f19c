/* Which checkpoints go. Pure: rows in, decision out. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct retention_item {
	uint64_t step;
	uint32_t branch;
	uint64_t file_bytes;
	uint64_t trained_seconds;
	double loss; /* NaN: unknown */
	bool verified, on_line, keep, corrupt;
	bool found;   /* not verified, and nothing speaks against it: not read yet, or not readable
			 now */
	bool busy;    /* somebody reads it */
	bool in_tail; /* set by retention_decide */
	bool remove;  /* the decision */
};

struct retention_policy {
	uint32_t keep_last;      /* newest verified on the line */
	uint64_t keep_every;     /* first verified at or after each multiple; 0 none */
	bool keep_tail;          /* beyond keep_last, one for each doubling of the trained age */
	uint32_t keep_best;      /* verified on the line with the lowest loss */
	uint64_t keep_bytes;     /* budget of all files; 0 none */
	uint32_t abandoned_last; /* newest abandoned ones that stay for a while */
	uint32_t corrupt_last;   /* corrupt files kept for inspection */
};

/* items in any order. Never removes: kept ones, busy ones, the newest two verified on the line.
 * Returns by how many bytes the budget is missed all the same. */
uint64_t retention_decide(
	struct retention_item *items, uint32_t count, const struct retention_policy *policy);
/* For a full disk: marks the next single item to give up (corrupt first, then abandoned, then the
 * oldest on the line beyond two verified); false when nothing may go. */
bool retention_make_room(struct retention_item *items, uint32_t count);
/* What stays, in bytes. */
uint64_t retention_bytes(const struct retention_item *items, uint32_t count);
