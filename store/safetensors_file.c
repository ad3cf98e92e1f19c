/* Plain safetensors files of one section: the export, and weights to start from. The writer
 * streams (no second copy of the section in memory) and publishes durably; the reader names every
 * tensor that is missing, unexpected or misshapen, because a wrong folder is a person's mistake
 * that one line should settle. */
#include "store/safetensors.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_ALIGN 8
#define PIECE_BYTES ((size_t)4 << 20)

/* -- writing -- */

static json_t *tensor_entry(const struct tensor_spec *spec)
{
	json_t *shape = json_array();

	for (uint32_t i = 0; i < spec->dim_count; i++)
		json_array_append_new(shape, json_integer(spec->shape[i]));
	return json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", shape, "data_offsets",
		(json_int_t)spec->offset, (json_int_t)(spec->offset + spec->elem_count * 4));
}

/* The 8 bytes of length and the padded header, malloc'ed. */
static char *section_header(const struct tensor_table *table, size_t *ret_bytes)
{
	json_t *root = json_object();
	char *text, *bytes = NULL;
	size_t length, padded;

	json_object_set_new(root, "__metadata__", json_pack("{s:s}", "format", "pt"));
	for (uint32_t i = 0; i < table->count; i++)
		json_object_set_new(root, table->specs[i].name, tensor_entry(&table->specs[i]));
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (text == NULL)
		return NULL;
	length = strlen(text);
	padded = (length + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;
	bytes = malloc(8 + padded);
	if (bytes != NULL) {
		for (int i = 0; i < 8; i++)
			bytes[i] = (char)((uint64_t)padded >> (8 * i));
		memcpy(bytes + 8, text, length);
		memset(bytes + 8 + length, ' ', padded - length);
		*ret_bytes = 8 + padded;
	}
	free(text);
	return bytes;
}

static int write_all(int fd, const char *header, size_t header_bytes, const void *data, size_t size)
{
	int rc = file_write_exact(fd, header, header_bytes, 0);

	if (rc == 0)
		rc = file_write_exact(fd, data, size, (off_t)header_bytes);
	if (rc == 0)
		rc = sys_fsync(fd);
	return rc;
}

int st_write_section(int dir_fd, const char *name, const struct tensor_table *table,
	const float *section, struct error *err)
{
	char temporary[256];
	char *header;
	size_t header_bytes = 0;
	int fd, rc;

	if (snprintf(temporary, sizeof(temporary), ".%s.partial", name) >= (int)sizeof(temporary))
		return error_set(err, -ENAMETOOLONG, "the file name %.64s... is too long", name);
	header = section_header(table, &header_bytes);
	if (header == NULL)
		return error_set(err, -ENOMEM, "no memory for the header of %s", name);
	fd = sys_openat(
		dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0) {
		free(header);
		return error_set(err, fd, "cannot create %s: %s", temporary, strerror(-fd));
	}
	rc = write_all(fd, header, header_bytes, section, table->tensor_bytes);
	free(header);
	if (sys_close(fd) < 0 && rc == 0)
		rc = -EIO;
	if (rc == 0)
		rc = sys_renameat(dir_fd, temporary, name);
	if (rc < 0) {
		sys_unlinkat(dir_fd, temporary);
		return error_set(err, rc, "cannot write %s: %s", name, strerror(-rc));
	}
	rc = file_sync_dir(dir_fd);
	if (rc < 0)
		return error_set(err, rc, "cannot sync the folder of %s: %s", name, strerror(-rc));
	return 0;
}

/* -- reading -- */

struct plain_file {
	int fd;
	uint64_t data_offset;
	struct st_header header;
	char *text;
};

static void plain_close(struct plain_file *file)
{
	st_header_fini(&file->header);
	free(file->text);
	if (file->fd >= 0)
		sys_close(file->fd);
}

static int plain_read_header(struct plain_file *file, const struct stat *stat, struct error *err)
{
	uint8_t length_bytes[8];
	uint64_t length = 0, size = (uint64_t)stat->st_size;
	int rc;

	if (size < 8)
		return error_set(err, -EBADMSG, "only %llu bytes", (unsigned long long)size);
	rc = file_read_exact(file->fd, length_bytes, 8, 0);
	if (rc < 0)
		return error_set(err, rc, "%s", strerror(-rc));
	for (int i = 7; i >= 0; i--)
		length = length << 8 | length_bytes[i];
	if (length > SAFETENSORS_HEADER_MAX || length > size - 8)
		return error_set(err, -EBADMSG, "a header of %llu bytes does not fit",
			(unsigned long long)length);
	file->text = malloc(length + 1);
	if (file->text == NULL)
		return error_set(err, -ENOMEM, "no memory for the header");
	rc = file_read_exact(file->fd, file->text, length, 8);
	if (rc < 0)
		return error_set(err, rc, "%s", strerror(-rc));
	file->data_offset = 8 + length;
	return st_header_parse(file->text, length, size - 8 - length, &file->header, err);
}

/* Links are followed: the hub's cache is made of them, and the caller's rights are its own. */
static int plain_open(int dir_fd, const char *name, struct plain_file *ret, struct error *err)
{
	struct stat stat;
	int rc;

	memset(ret, 0, sizeof(*ret));
	ret->fd = sys_openat(dir_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (ret->fd < 0)
		return error_set(err, ret->fd, "cannot open %s: %s", name, strerror(-ret->fd));
	rc = sys_fstat(ret->fd, &stat);
	if (rc == 0 && !S_ISREG(stat.st_mode))
		rc = error_set(err, -EBADMSG, "%s is not a regular file", name);
	else if (rc == 0)
		rc = plain_read_header(ret, &stat, err);
	if (rc < 0) {
		error_prefix(err, rc, "%s", name);
		plain_close(ret);
	}
	return rc;
}

/* All that is wrong, named up to the room in the line. */
struct complaints {
	uint32_t count;
	size_t length;
	char text[ERROR_TEXT_MAX - 128];
};

static void complain(struct complaints *all, const char *what, const char *name)
{
	size_t room = sizeof(all->text) - all->length;
	int length = snprintf(all->text + all->length, room, "%s%s %.96s",
		all->count > 0 ? ", " : "", what, name);

	all->count++;
	if (length > 0 && (size_t)length < room)
		all->length += (size_t)length;
	else
		all->text[all->length] = '\0';
}

static bool same_shape(const struct st_tensor *tensor, const struct tensor_spec *spec)
{
	if (tensor->dim_count != spec->dim_count)
		return false;
	for (uint32_t i = 0; i < spec->dim_count; i++)
		if (tensor->shape[i] != spec->shape[i])
			return false;
	return true;
}

static uint32_t half_to_float_bits(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16;
	uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;

	if (exponent == 0x1f)
		return sign | 0x7f800000 | mantissa << 13;
	if (exponent != 0)
		return sign | (exponent + 112) << 23 | mantissa << 13;
	if (mantissa == 0)
		return sign;
	exponent = 113;
	while ((mantissa & 0x400) == 0) {
		mantissa <<= 1;
		exponent--;
	}
	return sign | exponent << 23 | (mantissa & 0x3ff) << 13;
}

/* Reads count 16-bit values in pieces and widens them. */
static int read_half(int fd, uint64_t offset, bool bfloat, float *values, uint64_t count)
{
	uint16_t *piece = malloc(PIECE_BYTES);
	uint64_t piece_count = PIECE_BYTES / 2;
	int rc = piece != NULL ? 0 : -ENOMEM;

	for (uint64_t at = 0; rc == 0 && at < count; at += piece_count) {
		uint64_t n = count - at < piece_count ? count - at : piece_count;

		rc = file_read_exact(fd, piece, n * 2, (off_t)(offset + at * 2));
		for (uint64_t i = 0; rc == 0 && i < n; i++) {
			uint32_t bits = bfloat ? (uint32_t)piece[i] << 16
					       : half_to_float_bits(piece[i]);

			memcpy(&values[at + i], &bits, 4);
		}
	}
	free(piece);
	return rc;
}

static int read_values(const struct plain_file *file, const struct st_tensor *tensor, float *values)
{
	uint64_t offset = file->data_offset + tensor->begin;
	uint64_t size = tensor->end - tensor->begin;

	if (strcmp(tensor->dtype, "F32") == 0)
		return file_read_exact(file->fd, values, size, (off_t)offset);
	return read_half(file->fd, offset, strcmp(tensor->dtype, "BF16") == 0, values, size / 2);
}

static bool all_finite(const float *values, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (!isfinite(values[i]))
			return false;
	return true;
}

static int read_known(const struct plain_file *file, const struct st_tensor *tensor,
	const struct tensor_spec *spec, float *section, struct complaints *all, struct error *err)
{
	float *values = section + spec->offset / 4;
	int rc;

	if (strcmp(tensor->dtype, "F32") != 0 && strcmp(tensor->dtype, "F16") != 0 &&
		strcmp(tensor->dtype, "BF16") != 0) {
		complain(all, "not F32, F16 or BF16:", tensor->name);
		return 0;
	}
	if (!same_shape(tensor, spec)) {
		complain(all, "other shape:", tensor->name);
		return 0;
	}
	rc = read_values(file, tensor, values);
	if (rc < 0)
		return error_set(err, rc, "cannot read %.96s: %s", tensor->name, strerror(-rc));
	if (!all_finite(values, spec->elem_count))
		complain(all, "not finite:", tensor->name);
	return 0;
}

static int read_all(const struct plain_file *file, const struct tensor_table *table, float *section,
	const char *(*rename)(const char *, char *), bool *seen, struct error *err)
{
	struct complaints all = {0};

	for (uint32_t i = 0; i < file->header.tensor_count; i++) {
		const struct st_tensor *tensor = &file->header.tensors[i];
		char buffer[TENSOR_NAME_MAX];
		const char *name = rename != NULL ? rename(tensor->name, buffer) : tensor->name;
		const struct tensor_spec *spec = name != NULL ? tensor_table_find(table, name)
							      : NULL;
		int rc;

		if (spec == NULL || seen[spec - table->specs]) {
			complain(&all, spec == NULL ? "unexpected" : "twice", tensor->name);
			continue;
		}
		seen[spec - table->specs] = true;
		rc = read_known(file, tensor, spec, section, &all, err);
		if (rc < 0)
			return rc;
	}
	for (uint32_t i = 0; i < table->count; i++)
		if (!seen[i])
			complain(&all, "missing", table->specs[i].name);
	if (all.count > 0)
		return error_set(
			err, -EINVAL, "%u tensors do not fit the model: %s", all.count, all.text);
	return 0;
}

int st_read_section(int dir_fd, const char *name, const struct tensor_table *table, float *section,
	const char *(*rename)(const char *file_name, char buffer[TENSOR_NAME_MAX]),
	struct error *err)
{
	struct plain_file file;
	bool *seen;
	int rc;

	rc = plain_open(dir_fd, name, &file, err);
	if (rc < 0)
		return rc;
	memset(section, 0, table->section_bytes);
	seen = calloc(table->count + 1, sizeof(*seen));
	if (seen == NULL)
		rc = error_set(err, -ENOMEM, "no memory");
	else
		rc = read_all(&file, table, section, rename, seen, err);
	if (rc < 0)
		error_prefix(err, rc, "%s", name);
	free(seen);
	plain_close(&file);
	return rc;
}
