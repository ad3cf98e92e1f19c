/* The safetensors header, strictly: every rule of the format's reference reader, plus duplicate
 * keys refused. Parses from memory; touches no file. */
#pragma once

#include "base/error.h"
#include "base/tensor_table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_HEADER_MAX UINT64_C(100000000)
#define SAFETENSORS_DIMS_MAX 8

struct st_tensor {
	const char *name; /* owned by the header */
	const char *dtype;
	uint32_t bits; /* of one element */
	uint32_t dim_count;
	uint64_t shape[SAFETENSORS_DIMS_MAX];
	uint64_t begin, end; /* bytes, relative to the data */
};

struct st_header {
	void *json; /* owner of all strings */
	uint32_t tensor_count;
	struct st_tensor *tensors; /* in order of begin */
	uint64_t data_bytes;
};

/* json: the header_bytes after the 8-byte length; data_bytes: file size - 8 - header_bytes.
 * -EBADMSG with the broken rule in err. */
int st_header_parse(const char *json, size_t header_bytes, uint64_t data_bytes,
	struct st_header *ret, struct error *err);
void st_header_fini(struct st_header *header);
const struct st_tensor *st_header_find(const struct st_header *header, const char *name);
/* A value of __metadata__, NULL when missing. */
const char *st_header_metadata(const struct st_header *header, const char *key);

/* A plain file of fp32 tensors (the export): names and shapes from the table (without prefix),
 * data from section; metadata {"format":"pt"}. Written durably under dir_fd/name. */
int st_write_section(int dir_fd, const char *name, const struct tensor_table *table,
	const float *section, struct error *err);
/* Reads a plain file into section by name; F32, F16, BF16 are converted. rename maps a file's name
 * to the table's (NULL result = not known); missing, unexpected, misshapen are errors, all named
 * (up to the room in err). */
int st_read_section(int dir_fd, const char *name, const struct tensor_table *table, float *section,
	const char *(*rename)(const char *file_name, char buffer[TENSOR_NAME_MAX]),
	struct error *err);
