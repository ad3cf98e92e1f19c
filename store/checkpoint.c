/* Opening a checkpoint: names, and every check of the header that needs no data. The header is
 * trusted only after its root has been recomputed; then its content must say one thing everywhere:
 * name, record, tensors and model agree. Must never write. */
#include "store/checkpoint.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/seal.h"
#include "base/sys.h"
#include "proto/json.h"
#include "store/checkpoint_header.h"
#include "store/safetensors.h"
#include "store/trust.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define HEX (DIGEST_HEX_SIZE - 1)

static const char *const state_names[] = {
	[CHECKPOINT_FOUND] = "found",
	[CHECKPOINT_VERIFIED] = "verified",
	[CHECKPOINT_CORRUPT] = "corrupt",
	[CHECKPOINT_UNREADABLE] = "unreadable",
	[CHECKPOINT_REFUSED] = "refused",
	[CHECKPOINT_MISSING] = "missing",
	[CHECKPOINT_DELETED] = "deleted",
};
#define STATE_COUNT (sizeof(state_names) / sizeof(state_names[0]))

const char *checkpoint_state_name(enum checkpoint_state state)
{
	CHECK(state < STATE_COUNT);
	return state_names[state];
}

int checkpoint_state_parse(const char *name, enum checkpoint_state *ret)
{
	for (size_t i = 0; i < STATE_COUNT; i++) {
		if (strcmp(name, state_names[i]) == 0) {
			*ret = (enum checkpoint_state)i;
			return 0;
		}
	}
	return -EINVAL;
}

void checkpoint_id_format(uint64_t step, uint32_t branch, char id[CHECKPOINT_ID_SIZE])
{
	int length = snprintf(id, CHECKPOINT_ID_SIZE, "step-%09llu-b%04u", (unsigned long long)step,
		branch % 10000);

	CHECK(length > 0 && length < CHECKPOINT_ID_SIZE && branch <= 9999);
}

int checkpoint_id_parse(const char *id, uint64_t *ret_step, uint32_t *ret_branch)
{
	char canonical[CHECKPOINT_ID_SIZE];
	unsigned long long step;
	unsigned branch;

	if (strlen(id) >= CHECKPOINT_ID_SIZE || sscanf(id, "step-%20llu-b%4u", &step, &branch) != 2)
		return -EINVAL;
	if (branch < 1 || branch > 9999)
		return -EINVAL;
	/* One spelling only, so that a state has one name. */
	checkpoint_id_format(step, branch, canonical);
	if (strcmp(canonical, id) != 0)
		return -EINVAL;
	*ret_step = step;
	*ret_branch = branch;
	return 0;
}

struct digest checkpoint_weights_digest(const struct tensor_table *table, const uint64_t *sums)
{
	CHECK(table->section_bytes % SEAL_CHUNK_BYTES == 0 && SECTION_WEIGHTS == 0);
	return digest_of(sums, table->section_bytes / SEAL_CHUNK_BYTES * sizeof(*sums));
}

/* A learning rate of 0 is asked for. */
bool checkpoint_weights_stale(
	const struct checkpoint_info *parent, const struct checkpoint_source *source)
{
	struct digest weights = checkpoint_weights_digest(source->table, source->sums);

	return parent->has_weights_digest && digest_equal(&parent->weights_digest, &weights) &&
		parent->record.update_count != source->record->update_count &&
		source->config->learning_rate > 0;
}

void checkpoint_info_fini(struct checkpoint_info *info)
{
	free(info->chunks);
	tensor_table_fini(&info->table);
	info->chunks = NULL;
}

/* -- the file and its header's bytes -- */

/* Who may have written it: ourselves, root, or whoever owns the folder and so the run. The last
 * lets the group look. */
static int check_file(int folder_fd, int fd, struct stat *ret, struct error *err)
{
	struct stat folder;
	int rc = sys_fstat(fd, ret);

	if (rc == 0)
		rc = sys_fstat(folder_fd, &folder);
	if (rc < 0)
		return error_set(err, rc, "%s", strerror(-rc));
	if (!S_ISREG(ret->st_mode))
		return error_set(err, -EPROTONOSUPPORT, "it is not a regular file");
	if (ret->st_nlink != 1)
		return error_set(err, -EPROTONOSUPPORT,
			"it has %lu hard links: another name could change it; copy it instead",
			(unsigned long)ret->st_nlink);
	if (ret->st_uid != geteuid() && ret->st_uid != 0 && ret->st_uid != folder.st_uid)
		return error_set(err, -EPROTONOSUPPORT,
			"it belongs to uid %u, neither to uid %u nor to the folder's owner",
			(unsigned)ret->st_uid, (unsigned)geteuid());
	return 0;
}

static int read_header_bytes(
	int fd, uint64_t file_bytes, char **ret_json, size_t *ret_size, struct error *err)
{
	uint8_t length_bytes[HEADER_LENGTH_BYTES];
	uint64_t size = 0;
	int rc;

	if (file_bytes < HEADER_LENGTH_BYTES)
		return error_set(
			err, -EBADMSG, "it has only %llu bytes", (unsigned long long)file_bytes);
	rc = file_read_exact(fd, length_bytes, sizeof(length_bytes), 0);
	if (rc < 0)
		return error_set(err, rc, "%s", strerror(-rc));
	for (int i = HEADER_LENGTH_BYTES - 1; i >= 0; i--)
		size = size << 8 | length_bytes[i];
	if (size == 0 || size > CHECKPOINT_HEADER_MAX || size > file_bytes - HEADER_LENGTH_BYTES)
		return error_set(err, -EBADMSG,
			"a header of %llu bytes does not fit its %llu bytes",
			(unsigned long long)size, (unsigned long long)file_bytes);
	*ret_json = malloc(size + 1);
	if (*ret_json == NULL)
		return error_set(err, -ENOMEM, "no memory for the header");
	rc = file_read_exact(fd, *ret_json, size, HEADER_LENGTH_BYTES);
	if (rc < 0) {
		free(*ret_json);
		return error_set(err, rc, "%s", strerror(-rc));
	}
	(*ret_json)[size] = '\0';
	*ret_size = size;
	return 0;
}

/* -- its content -- */

static int metadata_number(const struct st_header *header, const char *key, uint64_t *ret)
{
	const char *text = st_header_metadata(header, key);
	char canonical[24];

	if (text == NULL)
		return -EBADMSG;
	*ret = strtoull(text, NULL, 10);
	snprintf(canonical, sizeof(canonical), "%llu", (unsigned long long)*ret);
	return strcmp(canonical, text) == 0 ? 0 : -EBADMSG;
}

static int metadata_digest(const struct st_header *header, const char *key, struct digest *ret)
{
	const char *text = st_header_metadata(header, key);

	return text != NULL && digest_from_hex(text, strlen(text), ret) == 0 ? 0 : -EBADMSG;
}

static int check_version(
	const struct st_header *header, struct checkpoint_info *info, struct error *err)
{
	uint64_t version;

	if (metadata_number(header, "ckptd_format", &version) < 0 || version == 0)
		return error_set(err, -EBADMSG, "it is not a checkpoint of ckptd");
	info->is_signed = version >= CHECKPOINT_FORMAT_SIGNED;
	if (version > CHECKPOINT_FORMAT_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
			"its format is %llu, this program reads up to %d; use the newer program",
			(unsigned long long)version, CHECKPOINT_FORMAT_VERSION);
	return 0;
}

/* The root is recomputed without its own digits and those of the signature. */
static int check_root(const struct st_header *header, const char *json, size_t size,
	struct checkpoint_info *info, struct error *err)
{
	const char *value = checkpoint_header_find_root(json, size), *signature = NULL;
	const char *said = st_header_metadata(header, "root");
	struct digest computed;

	if (info->is_signed) {
		const char *text = st_header_metadata(header, "signature");

		/* That what was found is the member's value keeps it apart from the root's. */
		signature = checkpoint_header_find_signature(json, size);
		if (signature == NULL || text == NULL || strlen(text) != 2 * SIGN_BYTES ||
			memcmp(signature, text, 2 * SIGN_BYTES) != 0)
			return error_set(err, -EBADMSG, "its signature is missing");
	}
	if (value == NULL || metadata_digest(header, "root", &info->root) < 0 ||
		memcmp(value, said, HEX) != 0)
		return error_set(err, -EBADMSG, "its root is missing");
	computed = checkpoint_header_root(json, size, value, signature);
	if (!digest_equal(&computed, &info->root))
		return error_set(err, -EBADMSG, "its header does not match its root");
	return 0;
}

/* A signature that is not the signer's over this root is damage: the root covers the signer. Whose
 * it is comes last, so that only whole files are refused. */
static int check_signature(
	const struct st_header *header, struct checkpoint_info *info, struct error *err)
{
	const char *signer = st_header_metadata(header, "signer");
	const char *text = st_header_metadata(header, "signature");
	uint8_t signature[SIGN_BYTES];

	if (!info->is_signed)
		return 0;
	if (signer == NULL || strlen(signer) != 2 * SIGN_PUBLIC_BYTES ||
		bytes_from_hex(signer, info->signer.bytes, SIGN_PUBLIC_BYTES) < 0 ||
		bytes_from_hex(text, signature, SIGN_BYTES) < 0)
		return error_set(err, -EBADMSG, "its signature is broken");
	if (!checkpoint_header_signed(&info->signer, &info->root, signature))
		return error_set(err, -EBADMSG, "its signature does not match its root");
	return 0;
}

static int read_record(
	const struct st_header *header, struct checkpoint_info *info, struct error *err)
{
	const char *hex = st_header_metadata(header, "record");
	const char *created = st_header_metadata(header, "created");

	if (hex == NULL || strlen(hex) != 2 * sizeof(info->record) ||
		bytes_from_hex(hex, (uint8_t *)&info->record, sizeof(info->record)) < 0 ||
		!state_record_valid(&info->record) || info->record.branch < 1 ||
		info->record.branch > 9999)
		return error_set(err, -EBADMSG, "its record is broken");
	if (created == NULL || strlen(created) >= sizeof(info->created) ||
		metadata_digest(header, "parent_root", &info->parent_root) < 0)
		return error_set(err, -EBADMSG, "its metadata lack a member");
	info->has_weights_digest = st_header_metadata(header, "weights_digest") != NULL;
	if (info->has_weights_digest &&
		metadata_digest(header, "weights_digest", &info->weights_digest) < 0)
		return error_set(err, -EBADMSG, "its weights_digest is broken");
	snprintf(info->created, sizeof(info->created), "%s", created);
	checkpoint_id_format(info->record.step, info->record.branch, info->id);
	return 0;
}

/* Keys that this version does not know, or values beyond its limits, keep their defaults: the run's
 * identity is run.json's business, and an upgrade must never make a good checkpoint unusable. */
static int read_config(const struct st_header *header, struct config *ret, struct error *err)
{
	const char *text = st_header_metadata(header, "config");
	AUTO_JSON object = NULL;
	const char *key;
	json_t *value;

	if (text != NULL)
		object = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(object))
		return error_set(err, -EBADMSG, "its configuration is broken");
	config_defaults(ret);
	json_object_foreach(object, key, value)
	{
		if (config_key_find(key) != NULL && json_is_string(value))
			config_set(ret, key, json_string_value(value), "checkpoint", NULL);
	}
	return 0;
}

static int read_chunks(
	const struct st_header *header, struct checkpoint_info *info, struct error *err)
{
	const char *hex = st_header_metadata(header, "chunk_digests");
	uint64_t chunk_bytes, count = info->block_bytes / CHECKPOINT_CHUNK_BYTES;

	if (metadata_number(header, "chunk_bytes", &chunk_bytes) < 0 ||
		chunk_bytes != CHECKPOINT_CHUNK_BYTES || hex == NULL || strlen(hex) != count * HEX)
		return error_set(err, -EBADMSG, "its chunk digests do not fit its data");
	info->chunks = calloc(count, sizeof(*info->chunks));
	if (info->chunks == NULL)
		return error_set(err, -ENOMEM, "no memory for the chunk digests");
	info->chunk_count = (uint32_t)count;
	for (uint64_t i = 0; i < count; i++)
		if (digest_from_hex(hex + i * HEX, HEX, &info->chunks[i]) < 0)
			return error_set(err, -EBADMSG, "chunk digest %llu is broken",
				(unsigned long long)i);
	return 0;
}

/* -- its tensors: four times the same table, each with its filler -- */

static int build_table(const struct st_header *header, struct tensor_table *table)
{
	const char *prefix = section_prefix(SECTION_WEIGHTS);
	size_t length = strlen(prefix);

	for (uint32_t i = 0; i < header->tensor_count; i++) {
		const struct st_tensor *tensor = &header->tensors[i];
		uint32_t shape[TENSOR_DIMS_MAX];

		if (strncmp(tensor->name, prefix, length) != 0 || tensor->name[length] != '.')
			break;
		if (tensor->dim_count > TENSOR_DIMS_MAX)
			return -EBADMSG;
		for (uint32_t d = 0; d < tensor->dim_count; d++) {
			if (tensor->shape[d] > UINT32_MAX)
				return -EBADMSG;
			shape[d] = (uint32_t)tensor->shape[d];
		}
		if (tensor_table_add(table, tensor->name + length + 1, tensor->dim_count, shape) <
			0)
			return -EBADMSG;
	}
	return table->count > 0 ? tensor_table_layout(table, NULL) : -EBADMSG;
}

static bool is_tensor(const struct st_tensor *tensor, enum section section,
	const struct tensor_spec *spec, uint64_t start)
{
	char name[TENSOR_NAME_MAX + 16];

	snprintf(name, sizeof(name), "%s.%s", section_prefix(section), spec->name);
	if (strcmp(tensor->name, name) != 0 || strcmp(tensor->dtype, "F32") != 0 ||
		tensor->begin != start + spec->offset || tensor->dim_count != spec->dim_count)
		return false;
	for (uint32_t d = 0; d < spec->dim_count; d++)
		if (tensor->shape[d] != spec->shape[d])
			return false;
	return true;
}

static bool is_filler(const struct st_tensor *tensor, enum section section)
{
	char name[TENSOR_NAME_MAX + 16];

	snprintf(name, sizeof(name), "pad.%s", section_pad_name(section));
	return strcmp(tensor->name, name) == 0 && strcmp(tensor->dtype, "U8") == 0;
}

/* The fillers' sizes need no check: the tensors cover the data without gaps, and each section's
 * first tensor is where it must be. */
static int check_tensors(const struct st_header *header, struct checkpoint_info *info)
{
	const struct tensor_table *table = &info->table;
	bool filled = table->tensor_bytes < table->section_bytes;
	uint32_t at = 0;

	if (header->tensor_count != SECTION_COUNT * (table->count + filled))
		return -EBADMSG;
	for (int section = 0; section < SECTION_COUNT; section++) {
		uint64_t start = (uint64_t)section * table->section_bytes;

		for (uint32_t i = 0; i < table->count; i++, at++)
			if (!is_tensor(&header->tensors[at], (enum section)section,
				    &table->specs[i], start))
				return -EBADMSG;
		if (filled && !is_filler(&header->tensors[at++], (enum section)section))
			return -EBADMSG;
	}
	return header->data_bytes == SECTION_COUNT * table->section_bytes ? 0 : -EBADMSG;
}

static int read_tensors(
	const struct st_header *header, struct checkpoint_info *info, struct error *err)
{
	struct digest digest;

	if (build_table(header, &info->table) < 0 || check_tensors(header, info) < 0)
		return error_set(err, -EBADMSG, "its tensors are not four sections of one table");
	digest = tensor_table_digest(&info->table);
	if (!digest_equal(&digest, &info->record.model_digest))
		return error_set(err, -EBADMSG, "its tensors are not those of its record");
	info->section_bytes = info->table.section_bytes;
	info->block_bytes = header->data_bytes;
	return 0;
}

static int check_name(const char *file_name, const struct checkpoint_info *info, struct error *err)
{
	size_t length = strlen(file_name), suffix = strlen(CHECKPOINT_SUFFIX);
	char id[CHECKPOINT_ID_SIZE];
	uint64_t step;
	uint32_t branch;

	/* A copy under a name of its own (inspect) is fine; a wrong name of our kind is not. */
	if (length <= suffix || length - suffix >= sizeof(id))
		return 0;
	memcpy(id, file_name, length - suffix);
	id[length - suffix] = '\0';
	if (checkpoint_id_parse(id, &step, &branch) < 0 || strcmp(id, info->id) == 0)
		return 0;
	return error_set(err, -EBADMSG, "it holds %s, another file under this name", info->id);
}

static int read_content(const char *json, size_t size, const char *file_name,
	struct checkpoint_info *info, struct error *err)
{
	struct st_header header;
	int rc;

	rc = st_header_parse(json, size, info->file_bytes - info->data_offset, &header, err);
	if (rc < 0)
		return rc;
	rc = check_version(&header, info, err);
	if (rc == 0)
		rc = check_root(&header, json, size, info, err);
	if (rc == 0)
		rc = check_signature(&header, info, err);
	if (rc == 0 && info->data_offset % CHECKPOINT_DATA_ALIGN != 0)
		rc = error_set(err, -EBADMSG, "its data do not begin at a whole page");
	if (rc == 0)
		rc = read_record(&header, info, err);
	if (rc == 0)
		rc = check_name(file_name, info, err);
	if (rc == 0)
		rc = read_tensors(&header, info, err);
	if (rc == 0)
		rc = read_chunks(&header, info, err);
	if (rc == 0)
		rc = read_config(&header, &info->config, err);
	if (rc == 0)
		rc = trust_check(info->is_signed ? &info->signer : NULL, err);
	st_header_fini(&header);
	return rc;
}

/* Shared, for as long as the descriptor lives: retention leaves alone what somebody reads. A file
 * system without such locks costs that and nothing else, as an open file outlives its name. */
static int lock_shared(int fd, struct error *err)
{
	if (sys_flock(fd, LOCK_SH | LOCK_NB) != -EWOULDBLOCK)
		return 0;
	return error_set(err, -ENOENT, "it is just being deleted");
}

static int open_checked(int checkpoints_fd, int fd, const char *file_name,
	struct checkpoint_info *info, struct error *err)
{
	struct stat stat;
	char *json = NULL;
	size_t size = 0;
	int rc;

	rc = lock_shared(fd, err);
	if (rc == 0)
		rc = check_file(checkpoints_fd, fd, &stat, err);
	if (rc < 0)
		return rc;
	info->file_bytes = (uint64_t)stat.st_size;
	rc = read_header_bytes(fd, info->file_bytes, &json, &size, err);
	if (rc < 0)
		return rc;
	info->data_offset = HEADER_LENGTH_BYTES + size;
	rc = read_content(json, size, file_name, info, err);
	free(json);
	return rc;
}

static void info_init(struct checkpoint_info *info)
{
	memset(info, 0, sizeof(*info));
	tensor_table_init(&info->table);
}

static int open_file(int checkpoints_fd, const char *file_name, bool past_cache,
	struct checkpoint_info *ret, struct error *err)
{
	int fd, rc;

	info_init(ret);
	/* O_NONBLOCK: a FIFO under this name must not hang the start. */
	fd = sys_openat(
		checkpoints_fd, file_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, fd, "%s: cannot open: %s", file_name, strerror(-fd));
	if (past_cache)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	rc = open_checked(checkpoints_fd, fd, file_name, ret, err);
	if (rc == -EBADMSG || rc == -ENODATA) {
		/* A verdict about bytes is asked for twice, the second time past the cache: the
		 * fault may have been in the reading. */
		checkpoint_info_fini(ret);
		info_init(ret);
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		rc = open_checked(checkpoints_fd, fd, file_name, ret, err);
	}
	if (rc < 0) {
		/* The file shrank between fstat and read. */
		if (rc == -ENODATA)
			rc = -EBADMSG;
		error_prefix(err, rc, "%s", file_name);
		checkpoint_info_fini(ret);
		sys_close(fd);
		return rc;
	}
	return fd;
}

int checkpoint_open(
	int checkpoints_fd, const char *file_name, struct checkpoint_info *ret, struct error *err)
{
	return open_file(checkpoints_fd, file_name, false, ret, err);
}

int checkpoint_open_past_cache(
	int checkpoints_fd, const char *file_name, struct checkpoint_info *ret, struct error *err)
{
	return open_file(checkpoints_fd, file_name, true, ret, err);
}
