/* What may legally lie on the disk after a crash at a point of a trace: the weakest reading of
 * POSIX, which ext4, xfs and btrfs all keep and no code may count on more than.
 *
 * - fsync of a file makes its data and size durable, never its name; fsync of a folder makes its
 *   entries durable, never what they name. Until then an operation is volatile.
 * - Each volatile operation is kept or lost, whatever becomes of the others: entries before or
 *   after data, a later write without an earlier one. A rename is one operation.
 * - A volatile write may be torn: any of its blocks of 512 or 4096 bytes may be kept, and the size
 *   may have grown without them (zeros).
 * - What an fsync was told to have failed for (EIO) stays volatile for good: the kernel may have
 *   dropped it and no later fsync brings it back. Only writing it again does. */
#pragma once

#include "tests/crash/trace.h"

/* What is done to a trace, to see that the checks notice. */
enum mutation_kind { MUTATE_NOTHING, MUTATE_DROP, MUTATE_MUTE, MUTATE_MOVE };

struct mutation {
	enum mutation_kind kind;
	uint32_t op;     /* of the trace; mute: every sync of files with its file's first name */
	uint32_t before; /* move: to just before this one */
};

struct model_cached {
	bool valid;
	uint32_t ops; /* of the node, applied */
	uint64_t hash;
	struct trace_content content;
};

struct model {
	const struct trace *trace;
	uint32_t *order; /* operations of the trace, as mutated */
	uint32_t count;
	uint32_t *synced_at; /* position of the first sync after each, or UINT32_MAX */
	/* At the point chosen last. */
	uint32_t point;
	uint32_t *volatiles; /* positions */
	uint32_t volatile_count;
	bool *unsettled; /* nodes with volatile data */
	struct model_cached *cached;
};

enum keep_how { LOST, KEPT, TORN };
enum tear_mode { TEAR_NONE, TEAR_PREFIX, TEAR_SUFFIX, TEAR_HOLE, TEAR_RANDOM, TEAR_MODES };

struct keep {
	uint8_t how, mode;
	uint16_t block_bytes;
	bool grown; /* the size is as after the whole write */
	uint32_t at;
	uint64_t seed;
};

struct model_file {
	uint32_t folder;
	char name[TRACE_NAME_MAX];
	bool is_folder;
	uint64_t hash;
	struct trace_content *content;
};

struct model_state {
	uint64_t hash;
	struct model_file *files;
	uint32_t *nodes; /* of the files */
	uint32_t count;
	/* Content that this state owns, by node. */
	struct trace_content *contents;
	bool *has;
	uint32_t node_count;
};

uint64_t model_random(uint64_t *seed);

void model_init(struct model *model, const struct trace *trace, const struct mutation *mutation);
void model_fini(struct model *model);
/* A crash after the first `point` operations: which of them are volatile. */
void model_at(struct model *model, uint32_t point);
/* keeps[i] says what becomes of volatiles[i]. */
void model_state(struct model *model, const struct keep *keeps, struct model_state *ret);
void model_state_fini(struct model_state *state);
