/* Building the header, and its root. Deterministic: the same source and time give the same bytes.
 * Members stand in the order they are set here. */
#include "store/checkpoint_header.h"

#include "base/panic.h"
#include "proto/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOT_DOMAIN "ckptd checkpoint root 1"
#define SIGNATURE_DOMAIN "ckptd checkpoint signature 1"
#define ROOT_MARK ",\"root\":\""
#define SIGNATURE_MARK ",\"signature\":\""
#define CHUNKS_MARK ",\"chunk_digests\":\""
#define HEX (DIGEST_HEX_SIZE - 1)
#define SIGNATURE_HEX ((size_t)2 * SIGN_BYTES)

static int set_text(json_t *object, const char *key, const char *value)
{
	return json_object_set_new(object, key, json_string(value));
}

static int set_number(json_t *object, const char *key, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	return set_text(object, key, text);
}

/* What people want to see; the record is what counts. */
static int set_readable(json_t *metadata, const struct state_record *record)
{
	char run[2 * STATE_RUN_ID_SIZE + 1], loss[32];

	bytes_to_hex(record->run_id, STATE_RUN_ID_SIZE, run);
	snprintf(loss, sizeof(loss), "%.9g", (double)record->loss);
	return set_text(metadata, "run", run) | set_number(metadata, "branch", record->branch) |
		set_number(metadata, "step", record->step) |
		set_number(metadata, "update_count", record->update_count) |
		set_number(metadata, "images_seen", record->images_seen) |
		set_text(metadata, "loss", loss) |
		set_number(
			metadata, "trained_seconds", record->trained_ns / (uint64_t)NSEC_PER_SEC);
}

static int set_config(json_t *metadata, const struct config *config)
{
	AUTO_JSON object = json_from_config(config);
	char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
	int rc = text != NULL ? set_text(metadata, "config", text) : -1;

	free(text);
	return rc;
}

static int set_record(json_t *metadata, const struct state_record *record)
{
	char hex[2 * sizeof(*record) + 1];

	bytes_to_hex((const uint8_t *)record, sizeof(*record), hex);
	return set_text(metadata, "record", hex);
}

static int set_digests(
	json_t *metadata, const struct checkpoint_source *source, uint32_t chunk_count)
{
	size_t size = (size_t)chunk_count * HEX;
	char parent[DIGEST_HEX_SIZE], zeros[DIGEST_HEX_SIZE], weights[DIGEST_HEX_SIZE];
	struct digest weights_digest = checkpoint_weights_digest(source->table, source->sums);
	char *text = malloc(size + 1);
	int rc;

	if (text == NULL)
		return -1;
	memset(text, '0', size);
	text[size] = '\0';
	memset(zeros, '0', HEX);
	zeros[HEX] = '\0';
	digest_to_hex(&source->parent_root, parent);
	digest_to_hex(&weights_digest, weights);
	rc = set_text(metadata, "parent_root", parent) |
		set_text(metadata, "weights_digest", weights) |
		set_number(metadata, "chunk_bytes", CHECKPOINT_CHUNK_BYTES) |
		set_text(metadata, "chunk_digests", text) | set_text(metadata, "root", zeros);
	free(text);
	return rc;
}

static int set_signature(json_t *metadata, const struct sign_key *key)
{
	char signer[SIGN_PUBLIC_HEX_SIZE], zeros[SIGNATURE_HEX + 1];

	if (key == NULL)
		return 0;
	memset(zeros, '0', SIGNATURE_HEX);
	zeros[SIGNATURE_HEX] = '\0';
	sign_public_hex(&key->public, signer);
	return set_text(metadata, "signer", signer) | set_text(metadata, "signature", zeros);
}

static json_t *build_metadata(
	const struct checkpoint_source *source, const char *created, uint32_t chunk_count)
{
	json_t *metadata = json_object();
	int rc;

	rc = set_text(metadata, "format", "pt") |
		set_number(metadata, "ckptd_format",
			source->key != NULL ? CHECKPOINT_FORMAT_SIGNED : 1) |
		set_text(metadata, "created", created) | set_readable(metadata, source->record) |
		set_config(metadata, source->config) | set_record(metadata, source->record) |
		set_digests(metadata, source, chunk_count) | set_signature(metadata, source->key);
	if (rc == 0)
		return metadata;
	json_decref(metadata);
	return NULL;
}

static int add_tensor(json_t *root, const char *name, const char *dtype, json_t *shape,
	uint64_t begin, uint64_t bytes)
{
	return json_object_set_new(root, name,
		json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype, "shape", shape, "data_offsets",
			(json_int_t)begin, (json_int_t)(begin + bytes)));
}

static int add_section(json_t *root, const struct tensor_table *table, enum section section)
{
	uint64_t start = (uint64_t)section * table->section_bytes;
	uint64_t filler = table->section_bytes - table->tensor_bytes;
	char name[TENSOR_NAME_MAX + 16];
	int rc = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		const struct tensor_spec *spec = &table->specs[i];
		json_t *shape = json_array();

		for (uint32_t d = 0; d < spec->dim_count; d++)
			json_array_append_new(shape, json_integer(spec->shape[d]));
		snprintf(name, sizeof(name), "%s.%s", section_prefix(section), spec->name);
		rc |= add_tensor(
			root, name, "F32", shape, start + spec->offset, spec->elem_count * 4);
	}
	if (filler > 0) {
		snprintf(name, sizeof(name), "pad.%s", section_pad_name(section));
		rc |= add_tensor(root, name, "U8", json_pack("[I]", (json_int_t)filler),
			start + table->tensor_bytes, filler);
	}
	return rc;
}

static char *build_json(
	const struct checkpoint_source *source, const char *created, uint32_t chunk_count)
{
	AUTO_JSON root = json_object();
	int rc;

	rc = json_object_set_new(
		root, "__metadata__", build_metadata(source, created, chunk_count));
	for (int section = 0; section < SECTION_COUNT; section++)
		rc |= add_section(root, source->table, (enum section)section);
	return rc == 0 ? json_dumps(root, JSON_COMPACT) : NULL;
}

static int pad(const char *json, struct checkpoint_header *ret)
{
	size_t used = HEADER_LENGTH_BYTES + strlen(json);
	uint64_t length;

	ret->size = (used + CHECKPOINT_DATA_ALIGN - 1) / CHECKPOINT_DATA_ALIGN *
		CHECKPOINT_DATA_ALIGN;
	ret->bytes = aligned_alloc(CHECKPOINT_DATA_ALIGN, ret->size);
	if (ret->bytes == NULL)
		return -ENOMEM;
	length = ret->size - HEADER_LENGTH_BYTES;
	for (int i = 0; i < HEADER_LENGTH_BYTES; i++)
		ret->bytes[i] = (uint8_t)(length >> (8 * i));
	memset(ret->bytes + HEADER_LENGTH_BYTES, ' ', length);
	memcpy(ret->bytes + HEADER_LENGTH_BYTES, json, used - HEADER_LENGTH_BYTES);
	return 0;
}

/* The only place of a mark. A mark begins with `,"` outside of a string: inside of one the quote
 * would be escaped, so the first hit is a key and a second one means a second such key. */
static const char *find_only(const char *json, size_t size, const char *mark)
{
	const char *hit = memmem(json, size, mark, strlen(mark));
	const char *next;

	if (hit == NULL)
		return NULL;
	hit += strlen(mark);
	next = memmem(hit, size - (size_t)(hit - json), mark, strlen(mark));
	return next == NULL ? hit : NULL;
}

const char *checkpoint_header_find_root(const char *json, size_t size)
{
	const char *value = find_only(json, size, ROOT_MARK);

	return value != NULL && (size_t)(json + size - value) > HEX ? value : NULL;
}

const char *checkpoint_header_find_signature(const char *json, size_t size)
{
	const char *value = find_only(json, size, SIGNATURE_MARK);

	return value != NULL && (size_t)(json + size - value) > SIGNATURE_HEX ? value : NULL;
}

int checkpoint_header_build(const struct checkpoint_source *source, const char *created,
	struct checkpoint_header *ret, struct error *err)
{
	uint64_t block_bytes = SECTION_COUNT * source->table->section_bytes;
	char *json;
	int rc;

	CHECK(block_bytes > 0 && block_bytes % CHECKPOINT_CHUNK_BYTES == 0);
	memset(ret, 0, sizeof(*ret));
	ret->chunk_count = (uint32_t)(block_bytes / CHECKPOINT_CHUNK_BYTES);
	json = build_json(source, created, ret->chunk_count);
	if (json == NULL)
		return error_set(err, -ENOMEM, "no memory for the header");
	if (strlen(json) > CHECKPOINT_HEADER_MAX - CHECKPOINT_DATA_ALIGN)
		rc = error_set(err, -EFBIG, "the model has too many tensors for one header");
	else if (pad(json, ret) < 0)
		rc = error_set(err, -ENOMEM, "no memory for the header");
	else
		rc = 0;
	free(json);
	if (rc < 0)
		return rc;
	json = (char *)ret->bytes + HEADER_LENGTH_BYTES;
	ret->root = (char *)checkpoint_header_find_root(json, ret->size - HEADER_LENGTH_BYTES);
	ret->chunk_digests = (char *)find_only(json, ret->size - HEADER_LENGTH_BYTES, CHUNKS_MARK);
	ret->key = source->key;
	ret->signature = (char *)checkpoint_header_find_signature(
		json, ret->size - HEADER_LENGTH_BYTES);
	CHECK(ret->root != NULL && ret->chunk_digests != NULL);
	CHECK((ret->key != NULL) == (ret->signature != NULL));
	return 0;
}

/* JSON from *at to value, then zeros for its digits. */
static void add_hole(
	struct digest_stream *stream, const char **at, const char *value, size_t digits)
{
	char zeros[SIGNATURE_HEX];

	CHECK(value >= *at && digits <= sizeof(zeros));
	memset(zeros, '0', digits);
	digest_add(stream, *at, (size_t)(value - *at));
	digest_add(stream, zeros, digits);
	*at = value + digits;
}

struct digest checkpoint_header_root(
	const char *json, size_t size, const char *root, const char *signature)
{
	struct digest_stream stream;
	uint8_t length[HEADER_LENGTH_BYTES];
	const char *at = json;

	for (int i = 0; i < HEADER_LENGTH_BYTES; i++)
		length[i] = (uint8_t)((uint64_t)size >> (8 * i));
	digest_begin(&stream);
	digest_add(&stream, ROOT_DOMAIN, sizeof(ROOT_DOMAIN));
	digest_add(&stream, length, sizeof(length));
	if (signature != NULL && signature < root)
		add_hole(&stream, &at, signature, SIGNATURE_HEX);
	add_hole(&stream, &at, root, HEX);
	if (signature != NULL && signature > root)
		add_hole(&stream, &at, signature, SIGNATURE_HEX);
	CHECK(at <= json + size);
	digest_add(&stream, at, size - (size_t)(at - json));
	return digest_end(&stream);
}

/* What is signed: the domain with its NUL, then the root. */
struct signed_text {
	char domain[sizeof(SIGNATURE_DOMAIN)];
	struct digest root;
};
_Static_assert(sizeof(struct signed_text) == sizeof(SIGNATURE_DOMAIN) + DIGEST_SIZE, "no gap");

void checkpoint_header_sign(
	const struct sign_key *key, const struct digest *root, uint8_t ret[SIGN_BYTES])
{
	const struct signed_text text = {SIGNATURE_DOMAIN, *root};

	sign_make(key, &text, sizeof(text), ret);
}

bool checkpoint_header_signed(const struct sign_public *signer, const struct digest *root,
	const uint8_t signature[SIGN_BYTES])
{
	const struct signed_text text = {SIGNATURE_DOMAIN, *root};

	return sign_verify(signer, &text, sizeof(text), signature);
}

void checkpoint_header_finish(
	struct checkpoint_header *header, const struct digest *chunks, struct digest *ret_root)
{
	const char *json = (const char *)header->bytes + HEADER_LENGTH_BYTES;
	char hex[DIGEST_HEX_SIZE];

	for (uint32_t i = 0; i < header->chunk_count; i++) {
		digest_to_hex(&chunks[i], hex);
		memcpy(header->chunk_digests + (size_t)i * HEX, hex, HEX);
	}
	*ret_root = checkpoint_header_root(
		json, header->size - HEADER_LENGTH_BYTES, header->root, header->signature);
	digest_to_hex(ret_root, hex);
	memcpy(header->root, hex, HEX);
	if (header->signature != NULL) {
		uint8_t signature[SIGN_BYTES];
		char signature_hex[SIGNATURE_HEX + 1];

		checkpoint_header_sign(header->key, ret_root, signature);
		bytes_to_hex(signature, sizeof(signature), signature_hex);
		memcpy(header->signature, signature_hex, SIGNATURE_HEX);
	}
}

void checkpoint_header_fini(struct checkpoint_header *header)
{
	free(header->bytes);
	memset(header, 0, sizeof(*header));
}
