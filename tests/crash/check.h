/* What a start makes of one state of the disk: it is written to a folder in memory, recovered twice
 * and loaded. The outcome depends on the state alone, so each is looked at once, whatever trace led
 * to it; what had been promised by then is held against it afterwards. */
#pragma once

#include "tests/crash/model.h"

#include "base/config.h"
#include "base/digest.h"
#include "base/tensor_table.h"

#define KNOWN_MAX 32
#define VIOLATION_MAX 320

/* A checkpoint that a scenario may save: its place is its bit in all masks. */
struct known {
	uint32_t branch;
	uint64_t step;
	struct digest root; /* of a saved one */
	bool saved, kept;
};

struct outcome {
	uint64_t hash;
	char violation[VIOLATION_MAX]; /* of what holds always; "" none */
	uint32_t whole;                /* known ones there, with their bytes */
	uint32_t on_line, rows, kept;  /* known ones: on the line; row `verified`; marked */
	uint32_t branches, wanted;
	int load; /* result of recovery_load */
	uint32_t branch;
	uint64_t step;
};

/* What clients had been told when the power went. */
struct promise {
	uint32_t saved, catalogued, retired, kept, branches;
	uint32_t wanted; /* those that may be found; 0: any */
};

struct load_memo {
	uint64_t key;
	int load;
	bool other_bytes;
	uint32_t branch;
	uint64_t step;
};

struct verdict_memo {
	uint64_t key;
	bool whole;
	uint32_t branch;
	uint64_t step;
};

struct checker {
	char base[128], dir[160]; /* the state lies in dir */
	const struct tensor_table *table;
	const struct known *known;
	const uint32_t *known_count;
	bool lenient; /* a sync of the database was told to have failed: rows may be made anew */
	uint8_t *block, *expected;
	uint64_t *sums;
	struct outcome *outcomes; /* by hash, open addressing */
	uint32_t outcome_count, outcome_room;
	struct load_memo *loads;
	uint32_t load_count, load_room;
	struct verdict_memo verdicts[4096];
};

void checker_init(struct checker *checker, const struct tensor_table *table,
	const struct known *known, const uint32_t *known_count);
void checker_fini(struct checker *checker);
/* The known content of (branch, step). */
void checker_content(const struct tensor_table *table, uint32_t branch, uint64_t step, void *block);
/* *ret_new: it was not seen before. */
const struct outcome *checker_look(
	struct checker *checker, const struct model_state *state, bool *ret_new);
/* Writes a state to checker->dir. */
void checker_lay(struct checker *checker, const struct model_state *state);
/* fsck with a repair, and one that only looks: "" when nothing is left that a
 * person need not decide, and nothing found. */
void checker_repair(
	struct checker *checker, const struct model_state *state, char violation[VIOLATION_MAX]);
/* A start: prepare and load. -errno and text. */
int checker_start(struct checker *checker, char text[VIOLATION_MAX]);
/* "" when all that was promised is there. */
void checker_hold(const struct checker *checker, const struct outcome *outcome,
	const struct promise *promise, char violation[VIOLATION_MAX]);
