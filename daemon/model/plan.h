/* All memory of a plan: every tensor says at which steps of the call list it is alive, and those
 * that are never alive together share bytes. Step i is the forward call of entry i; step
 * 2 count - 1 - i its backward call. */
#pragma once

#include "daemon/ops/tensor.h"

/* More than a model of TENSOR_COUNT_MAX tensors needs. */
#define PLAN_TENSORS_MAX 32768

struct plan {
	struct tensor *tensors; /* owned; they do not move */
	uint32_t count;
};

/* -ENOMEM. */
int plan_init(struct plan *plan);
void plan_fini(struct plan *plan);
/* Tensors are owned by the plan. */
struct tensor *plan_tensor(
	struct plan *plan, const struct form *form, const struct layout *layout, uint32_t channels);
struct tensor *plan_wide_tensor(struct plan *plan, const struct form *form,
	const struct layout *layout, uint32_t channels, uint32_t width);
/* Plain memory: data is an array. */
struct tensor *plan_array(struct plan *plan, size_t bytes);
/* The tensor is alive at this step. NULL is ignored. */
void plan_use(struct tensor *tensor, uint32_t step);
/* Gives offsets; *ret_bytes is what plan_bind needs. -ENOMEM. */
int plan_assign(struct plan *plan, size_t *ret_bytes);
/* memory: aligned to 64. */
void plan_bind(struct plan *plan, uint8_t *memory);
