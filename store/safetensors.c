/* The strict reader of safetensors headers. Every rule of the format's reference reader is one
 * check below, each with its own sentence; beyond it duplicate keys are refused. It sees only
 * memory, trusts no number in it, and keeps the parsed JSON as the owner of all names.
 *
 * Invariant of a parsed header: tensors in order of begin cover [0, data_bytes) without gap or
 * overlap, and each one's size is its shape times its type. */
#include "store/safetensors.h"

#include "base/panic.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	uint32_t bits;
} dtypes[] = {
	{"F32", 32},
	{"F16", 16},
	{"BF16", 16},
	{"F64", 64},
	{"BOOL", 8},
	{"U8", 8},
	{"I8", 8},
	{"I16", 16},
	{"U16", 16},
	{"I32", 32},
	{"U32", 32},
	{"I64", 64},
	{"U64", 64},
	{"C64", 64},
	{"F8_E5M2", 8},
	{"F8_E4M3", 8},
	{"F8_E8M0", 8},
	{"F8_E4M3FNUZ", 8},
	{"F8_E5M2FNUZ", 8},
	{"F6_E2M3", 6},
	{"F6_E3M2", 6},
	{"F4", 4},
};

static uint32_t dtype_bits(const char *name)
{
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
		if (strcmp(dtypes[i].name, name) == 0)
			return dtypes[i].bits;
	return 0;
}

/* A JSON integer that is not negative; jansson has refused what does not fit into 64 bits. */
static int read_size(const json_t *value, uint64_t *ret)
{
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return -EBADMSG;
	*ret = (uint64_t)json_integer_value(value);
	return 0;
}

static int check_metadata(const json_t *metadata, struct error *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata))
		return error_set(err, -EBADMSG, "__metadata__ is not an object");
	json_object_foreach((json_t *)metadata, key, value)
	{
		if (!json_is_string(value))
			return error_set(
				err, -EBADMSG, "__metadata__ key '%.64s' is not a string", key);
	}
	return 0;
}

static int read_shape(const json_t *shape, struct st_tensor *tensor, struct error *err)
{
	if (!json_is_array(shape))
		return error_set(err, -EBADMSG, "tensor '%.96s' has no shape", tensor->name);
	if (json_array_size(shape) > SAFETENSORS_DIMS_MAX)
		return error_set(err, -EBADMSG, "tensor '%.96s' has more than %d dimensions",
			tensor->name, SAFETENSORS_DIMS_MAX);
	tensor->dim_count = (uint32_t)json_array_size(shape);
	for (uint32_t i = 0; i < tensor->dim_count; i++) {
		if (read_size(json_array_get(shape, i), &tensor->shape[i]) < 0)
			return error_set(err, -EBADMSG,
				"tensor '%.96s': dimension %u is not a whole number from 0 up",
				tensor->name, i);
	}
	return 0;
}

/* end - begin must be what shape and type say; every product is checked for overflow. */
static int check_tensor_size(const struct st_tensor *tensor, struct error *err)
{
	uint64_t bits = 1;

	for (uint32_t i = 0; i < tensor->dim_count; i++)
		if (__builtin_mul_overflow(bits, tensor->shape[i], &bits))
			return error_set(
				err, -EBADMSG, "tensor '%.96s': its shape overflows", tensor->name);
	if (__builtin_mul_overflow(bits, (uint64_t)tensor->bits, &bits))
		return error_set(err, -EBADMSG, "tensor '%.96s': its size overflows", tensor->name);
	if (bits % 8 != 0)
		return error_set(
			err, -EBADMSG, "tensor '%.96s' does not end at a whole byte", tensor->name);
	if (tensor->end < tensor->begin)
		return error_set(
			err, -EBADMSG, "tensor '%.96s' ends before it begins", tensor->name);
	if (tensor->end - tensor->begin != bits / 8)
		return error_set(err, -EBADMSG,
			"tensor '%.96s' has %llu bytes, its shape and type need %llu", tensor->name,
			(unsigned long long)(tensor->end - tensor->begin),
			(unsigned long long)(bits / 8));
	return 0;
}

static int read_tensor(
	const char *name, const json_t *entry, struct st_tensor *ret, struct error *err)
{
	const json_t *dtype, *offsets;
	int rc;

	ret->name = name;
	if (!json_is_object(entry))
		return error_set(err, -EBADMSG, "tensor '%.96s' is not an object", name);
	dtype = json_object_get(entry, "dtype");
	if (!json_is_string(dtype))
		return error_set(err, -EBADMSG, "tensor '%.96s' has no dtype", name);
	ret->dtype = json_string_value(dtype);
	ret->bits = dtype_bits(ret->dtype);
	if (ret->bits == 0)
		return error_set(err, -EBADMSG, "tensor '%.96s' has the unknown dtype '%.32s'",
			name, ret->dtype);
	rc = read_shape(json_object_get(entry, "shape"), ret, err);
	if (rc < 0)
		return rc;
	offsets = json_object_get(entry, "data_offsets");
	if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
		read_size(json_array_get(offsets, 0), &ret->begin) < 0 ||
		read_size(json_array_get(offsets, 1), &ret->end) < 0)
		return error_set(err, -EBADMSG,
			"tensor '%.96s': data_offsets is not two whole numbers", name);
	return check_tensor_size(ret, err);
}

static int compare_begin(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	if (x->end != y->end)
		return x->end < y->end ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int check_cover(const struct st_header *header, struct error *err)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < header->tensor_count; i++) {
		const struct st_tensor *tensor = &header->tensors[i];

		if (tensor->begin != at)
			return error_set(err, -EBADMSG,
				"tensor '%.96s' begins at %llu, the one before it ends at %llu",
				tensor->name, (unsigned long long)tensor->begin,
				(unsigned long long)at);
		at = tensor->end;
	}
	if (at != header->data_bytes)
		return error_set(err, -EBADMSG,
			"the tensors need %llu bytes of data, the file has %llu",
			(unsigned long long)at, (unsigned long long)header->data_bytes);
	return 0;
}

static int read_tensors(json_t *root, struct st_header *ret, struct error *err)
{
	const char *key;
	json_t *value;
	int rc;

	ret->tensors = calloc(json_object_size(root) + 1, sizeof(*ret->tensors));
	if (ret->tensors == NULL)
		return error_set(err, -ENOMEM, "no memory for the list of tensors");
	json_object_foreach(root, key, value)
	{
		if (strcmp(key, "__metadata__") == 0) {
			rc = check_metadata(value, err);
		} else {
			rc = read_tensor(key, value, &ret->tensors[ret->tensor_count], err);
			ret->tensor_count++;
		}
		if (rc < 0)
			return rc;
	}
	qsort(ret->tensors, ret->tensor_count, sizeof(*ret->tensors), compare_begin);
	return check_cover(ret, err);
}

int st_header_parse(const char *json, size_t header_bytes, uint64_t data_bytes,
	struct st_header *ret, struct error *err)
{
	json_error_t where;
	json_t *root;
	int rc;

	memset(ret, 0, sizeof(*ret));
	if (header_bytes > SAFETENSORS_HEADER_MAX)
		return error_set(err, -EBADMSG, "the header has %zu bytes, more than %llu",
			header_bytes, (unsigned long long)SAFETENSORS_HEADER_MAX);
	if (header_bytes == 0 || json[0] != '{')
		return error_set(err, -EBADMSG, "the header does not begin with '{'");
	root = json_loadb(json, header_bytes, JSON_REJECT_DUPLICATES, &where);
	if (root == NULL) {
		if (json_error_code(&where) == json_error_out_of_memory)
			return error_set(err, -ENOMEM, "no memory for the header");
		return error_set(err, -EBADMSG, "the header is not valid JSON: %s at byte %d",
			where.text, where.position);
	}
	ret->json = root;
	ret->data_bytes = data_bytes;
	rc = read_tensors(root, ret, err);
	if (rc < 0)
		st_header_fini(ret);
	return rc;
}

void st_header_fini(struct st_header *header)
{
	free(header->tensors);
	json_decref(header->json);
	memset(header, 0, sizeof(*header));
}

const struct st_tensor *st_header_find(const struct st_header *header, const char *name)
{
	for (uint32_t i = 0; i < header->tensor_count; i++)
		if (strcmp(header->tensors[i].name, name) == 0)
			return &header->tensors[i];
	return NULL;
}

const char *st_header_metadata(const struct st_header *header, const char *key)
{
	const json_t *metadata = json_object_get(header->json, "__metadata__");

	return json_string_value(json_object_get(metadata, key));
}
