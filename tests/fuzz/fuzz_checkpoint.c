/* The header of a checkpoint: JSON, with the record's check, the root and the signature made right.
 * The data are a hole. */
#include "store/checkpoint_header.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME "step-000004711-b0002.safetensors"
#define RECORD_MARK ",\"record\":\""
#define DATA_BYTES CHECKPOINT_CHUNK_BYTES

static void seal_record(char *json, size_t size)
{
	struct state_record record;
	char *value = memmem(json, size, RECORD_MARK, strlen(RECORD_MARK)), last;

	if (value == NULL)
		return;
	value += strlen(RECORD_MARK);
	if ((size_t)(json + size - value) <= 2 * sizeof(record))
		return;
	/* bytes_from_hex wants exactly these digits. */
	last = value[2 * sizeof(record)];
	value[2 * sizeof(record)] = '\0';
	if (bytes_from_hex(value, (uint8_t *)&record, sizeof(record)) == 0) {
		state_record_seal(&record);
		bytes_to_hex((const uint8_t *)&record, sizeof(record), value);
	}
	value[2 * sizeof(record)] = last;
}

static void seal_header(char *json, size_t size)
{
	const uint8_t seed[SIGN_SEED_BYTES] = {1};
	char *root = (char *)checkpoint_header_find_root(json, size);
	char *signature = (char *)checkpoint_header_find_signature(json, size);
	char hex[2 * SIGN_BYTES + 1];
	uint8_t made[SIGN_BYTES];
	struct digest digest;
	struct sign_key key;

	if (root == NULL)
		return;
	if (signature != NULL && (signature < root ? root - signature : signature - root) < 128)
		return;
	digest = checkpoint_header_root(json, size, root, signature);
	digest_to_hex(&digest, hex);
	memcpy(root, hex, DIGEST_HEX_SIZE - 1);
	if (signature == NULL)
		return;
	sign_key_from_seed(seed, &key);
	checkpoint_header_sign(&key, &digest, made);
	bytes_to_hex(made, sizeof(made), hex);
	memcpy(signature, hex, 2 * SIGN_BYTES);
}

static void write_file(const char *json, size_t size)
{
	uint8_t length[HEADER_LENGTH_BYTES];
	int fd = openat(fuzz_dir(NULL), NAME, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	for (int i = 0; i < HEADER_LENGTH_BYTES; i++)
		length[i] = (uint8_t)((uint64_t)size >> (8 * i));
	CHECK(fd >= 0);
	CHECK(write(fd, length, sizeof(length)) == sizeof(length));
	CHECK(write(fd, json, size) == (ssize_t)size);
	CHECK(ftruncate(fd, (off_t)(sizeof(length) + size + DATA_BYTES)) == 0);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* Padded as a saver does it, so that the data begin at a whole page. */
	size_t padded = (size + HEADER_LENGTH_BYTES + 4095) / 4096 * 4096 - HEADER_LENGTH_BYTES;
	struct checkpoint_info info;
	char *json = malloc(padded + 1);
	struct error err;

	CHECK(json);
	memset(json, ' ', padded);
	memcpy(json, data, size);
	json[padded] = '\0';
	seal_record(json, padded);
	seal_header(json, padded);
	write_file(json, padded);
	int fd = checkpoint_open(fuzz_dir(NULL), NAME, &info, &err);

	if (fd >= 0) {
		CHECK(info.block_bytes == DATA_BYTES && info.chunk_count == 1);
		CHECK(info.section_bytes * SECTION_COUNT == info.block_bytes);
		CHECK(info.table.section_bytes == info.section_bytes && info.table.count > 0);
		CHECK(info.record.step == 4711 && info.record.branch == 2);
		CHECK(state_record_valid(&info.record));
		checkpoint_info_fini(&info);
		close(fd);
	}
	free(json);
	return 0;
}
