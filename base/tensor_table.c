/* The order of tensors in a section. */
#include "base/tensor_table.h"

#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TENSOR_ALIGN 64

const char *section_prefix(enum section section)
{
	static const char *const names[SECTION_COUNT] = {
		[SECTION_WEIGHTS] = "unet",
		[SECTION_EMA] = "ema",
		[SECTION_EXP_AVG] = "exp_avg",
		[SECTION_EXP_AVG_SQ] = "exp_avg_sq",
	};

	CHECK(section < SECTION_COUNT);
	return names[section];
}

const char *section_pad_name(enum section section)
{
	return section == SECTION_WEIGHTS ? "weights" : section_prefix(section);
}

void tensor_table_init(struct tensor_table *table)
{
	*table = (struct tensor_table){0};
}

void tensor_table_fini(struct tensor_table *table)
{
	free(table->specs);
	*table = (struct tensor_table){0};
}

static int grow(struct tensor_table *table)
{
	uint32_t capacity = table->capacity ? table->capacity * 2 : 64;
	struct tensor_spec *specs = realloc(table->specs, capacity * sizeof(*specs));

	if (!specs)
		return -ENOMEM;
	table->specs = specs;
	table->capacity = capacity;
	return 0;
}

int tensor_table_add(
	struct tensor_table *table, const char *name, uint32_t dim_count, const uint32_t *shape)
{
	size_t length = strnlen(name, TENSOR_NAME_MAX);
	uint64_t elem_count = 1;

	if (length == 0 || length == TENSOR_NAME_MAX || dim_count > TENSOR_DIMS_MAX)
		return -EINVAL;
	if (table->count == TENSOR_COUNT_MAX)
		return -EOVERFLOW;
	for (uint32_t i = 0; i < dim_count; i++) {
		if (shape[i] == 0)
			return -EINVAL;
		if (__builtin_mul_overflow(elem_count, (uint64_t)shape[i], &elem_count) ||
			elem_count > UINT64_C(1) << 40)
			return -EOVERFLOW;
	}
	if (table->count == table->capacity) {
		int code = grow(table);

		if (code < 0)
			return code;
	}
	struct tensor_spec *spec = &table->specs[table->count++];
	*spec = (struct tensor_spec){.dim_count = dim_count, .elem_count = elem_count};
	memcpy(spec->name, name, length + 1);
	memcpy(spec->shape, shape, dim_count * sizeof(*shape));
	return 0;
}

static int compare_specs(const void *a, const void *b)
{
	const struct tensor_spec *left = a, *right = b;
	int left_odd = left->elem_count * 4 % TENSOR_ALIGN != 0;
	int right_odd = right->elem_count * 4 % TENSOR_ALIGN != 0;

	if (left_odd != right_odd)
		return left_odd - right_odd;
	return strcmp(left->name, right->name);
}

int tensor_table_layout(struct tensor_table *table, struct error *err)
{
	uint64_t offset = 0;

	if (table->count == 0)
		return error_set(err, -EINVAL, "a model without tensors");
	qsort(table->specs, table->count, sizeof(*table->specs), compare_specs);
	table->param_count = 0;
	for (uint32_t i = 0; i < table->count; i++) {
		struct tensor_spec *spec = &table->specs[i];

		if (tensor_table_find(table, spec->name) != spec)
			return error_set(err, -EINVAL, "tensor %s stands twice", spec->name);
		spec->offset = offset;
		offset += spec->elem_count * 4;
		table->param_count += spec->elem_count;
	}
	table->tensor_bytes = offset;
	table->section_bytes = (offset + SECTION_ALIGN - 1) / SECTION_ALIGN * SECTION_ALIGN;
	return 0;
}

const struct tensor_spec *tensor_table_find(const struct tensor_table *table, const char *name)
{
	for (uint32_t i = 0; i < table->count; i++)
		if (strcmp(table->specs[i].name, name) == 0)
			return &table->specs[i];
	return NULL;
}

struct digest tensor_table_digest(const struct tensor_table *table)
{
	struct digest_stream stream;

	digest_begin(&stream);
	digest_add(&stream, "ckptd tensor table 1", 20);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct tensor_spec *spec = &table->specs[i];

		digest_add(&stream, spec->name, strlen(spec->name) + 1);
		digest_add(&stream, &spec->dim_count, sizeof(spec->dim_count));
		digest_add(&stream, spec->shape, sizeof(spec->shape));
		digest_add(&stream, &spec->offset, sizeof(spec->offset));
	}
	digest_add(&stream, &table->section_bytes, sizeof(table->section_bytes));
	return digest_end(&stream);
}
