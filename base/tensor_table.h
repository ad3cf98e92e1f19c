/* The fixed order of a model's tensors inside a section, shared by the model, the state memory and
 * the checkpoint file. A block is four sections of equal size, each the same table.
 *
 * Order: tensors whose size is a multiple of 64 bytes first, then the rest; each group by name in
 * byte order. Offsets follow without gaps. section_bytes is the sum rounded up to SECTION_ALIGN;
 * the bytes between are zero and called padding. */
#pragma once

#include "base/digest.h"
#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define SECTION_ALIGN ((uint64_t)1 << 20)
#define TENSOR_NAME_MAX 96
#define TENSOR_DIMS_MAX 4
#define TENSOR_COUNT_MAX 4096

enum section { SECTION_WEIGHTS, SECTION_EMA, SECTION_EXP_AVG, SECTION_EXP_AVG_SQ, SECTION_COUNT };

/* "unet", "ema", "exp_avg", "exp_avg_sq": the prefix of tensor names in a checkpoint file. */
const char *section_prefix(enum section section);
/* "weights", "ema", "exp_avg", "exp_avg_sq": the filler tensors are "pad.<this>". */
const char *section_pad_name(enum section section);

struct tensor_spec {
	char name[TENSOR_NAME_MAX]; /* diffusers' name, without a section prefix */
	uint32_t dim_count;
	uint32_t shape[TENSOR_DIMS_MAX]; /* row-major: [out, in, kh, kw], [out, in] or [n] */
	uint64_t elem_count;
	uint64_t offset; /* bytes from the start of the section; valid after tensor_table_layout */
};

struct tensor_table {
	uint32_t count, capacity;
	struct tensor_spec *specs; /* owned */
	uint64_t param_count;      /* sum of elem_count */
	uint64_t tensor_bytes;     /* param_count * 4 */
	uint64_t section_bytes;    /* tensor_bytes rounded up to SECTION_ALIGN */
};

void tensor_table_init(struct tensor_table *table);
void tensor_table_fini(struct tensor_table *table);
/* Appends one fp32 tensor. -EINVAL for a bad name or shape, -ENOMEM, -EOVERFLOW. */
int tensor_table_add(
	struct tensor_table *table, const char *name, uint32_t dim_count, const uint32_t *shape);
/* Sorts, gives offsets, and fills the sums. After this the table does not change. */
int tensor_table_layout(struct tensor_table *table, struct error *err);
/* By name, after layout; NULL when missing. */
const struct tensor_spec *tensor_table_find(const struct tensor_table *table, const char *name);
/* Over names, shapes and order: two tables with one digest have the same block layout. */
struct digest tensor_table_digest(const struct tensor_table *table);
