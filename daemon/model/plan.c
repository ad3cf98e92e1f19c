/* Places tensors in one block of memory: largest first, each at the lowest offset that no tensor
 * alive at the same time holds. */
#include "daemon/model/plan.h"

#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>

#define ALIGN 64

int plan_init(struct plan *plan)
{
	*plan = (struct plan){.tensors = calloc(PLAN_TENSORS_MAX, sizeof(struct tensor))};
	return plan->tensors ? 0 : -ENOMEM;
}

void plan_fini(struct plan *plan)
{
	free(plan->tensors);
	*plan = (struct plan){0};
}

static struct tensor *add(struct plan *plan, struct tensor value)
{
	CHECK(plan->count < PLAN_TENSORS_MAX);
	struct tensor *tensor = &plan->tensors[plan->count++];
	*tensor = value;
	tensor->bytes = (tensor->bytes + ALIGN - 1) / ALIGN * ALIGN;
	tensor->first = UINT32_MAX;
	return tensor;
}

struct tensor *plan_wide_tensor(struct plan *plan, const struct form *form,
	const struct layout *layout, uint32_t channels, uint32_t width)
{
	struct tensor tensor = tensor_of(layout, channels, width, form);
	tensor.bytes = tensor_bytes(&tensor);
	return add(plan, tensor);
}

struct tensor *plan_tensor(
	struct plan *plan, const struct form *form, const struct layout *layout, uint32_t channels)
{
	return plan_wide_tensor(plan, form, layout, channels, round_up_to(channels, form->align));
}

struct tensor *plan_array(struct plan *plan, size_t bytes)
{
	return add(plan, (struct tensor){.bytes = bytes});
}

void plan_use(struct tensor *tensor, uint32_t step)
{
	if (!tensor)
		return;
	if (tensor->first > tensor->last || step < tensor->first)
		tensor->first = step;
	if (step > tensor->last)
		tensor->last = step;
}

static int by_size(const void *a, const void *b)
{
	const struct tensor *left = *(struct tensor *const *)a, *right = *(struct tensor *const *)b;
	if (left->bytes != right->bytes)
		return left->bytes > right->bytes ? -1 : 1;
	return (left->first > right->first) - (left->first < right->first);
}

static int by_offset(const void *a, const void *b)
{
	const struct tensor *left = *(struct tensor *const *)a, *right = *(struct tensor *const *)b;
	return (left->offset > right->offset) - (left->offset < right->offset);
}

/* The lowest offset free of `taken`, which is sorted by offset. */
static size_t lowest_gap(struct tensor *const *taken, uint32_t count, size_t bytes)
{
	size_t end = 0;
	for (uint32_t i = 0; i < count; i++) {
		if (taken[i]->offset >= end + bytes)
			break;
		size_t taken_end = taken[i]->offset + taken[i]->bytes;
		end = taken_end > end ? taken_end : end;
	}
	return end;
}

int plan_assign(struct plan *plan, size_t *ret_bytes)
{
	struct tensor **order = calloc(2 * (size_t)plan->count + 1, sizeof(*order));
	if (!order)
		return -ENOMEM;
	struct tensor **taken = order + plan->count;
	uint32_t count = 0;
	for (uint32_t i = 0; i < plan->count; i++)
		if (plan->tensors[i].first <= plan->tensors[i].last)
			order[count++] = &plan->tensors[i];
	qsort(order, count, sizeof(struct tensor *), by_size);
	*ret_bytes = 0;
	for (uint32_t i = 0; i < count; i++) {
		struct tensor *tensor = order[i];
		uint32_t taken_count = 0;
		for (uint32_t j = 0; j < i; j++)
			if (order[j]->first <= tensor->last && tensor->first <= order[j]->last)
				taken[taken_count++] = order[j];
		qsort(taken, taken_count, sizeof(struct tensor *), by_offset);
		tensor->offset = lowest_gap(taken, taken_count, tensor->bytes);
		size_t end = tensor->offset + tensor->bytes;
		*ret_bytes = end > *ret_bytes ? end : *ret_bytes;
	}
	free(order);
	return 0;
}

void plan_bind(struct plan *plan, uint8_t *memory)
{
	for (uint32_t i = 0; i < plan->count; i++) {
		struct tensor *tensor = &plan->tensors[i];
		if (tensor->first > tensor->last)
			continue;
		if (tensor->layout)
			tensor_bind(tensor, memory + tensor->offset);
		else
			tensor->data = memory + tensor->offset;
	}
}
