/* The state memory as a piece of memory: making the memfd, mapping it, and where things lie in it.
 * What its words and records mean is state.c.
 *
 * Invariants: a size that comes from the header is compared with the file's own before anything is
 * mapped; the file's size is sealed, so no access can ever hit its end (SIGBUS). */
#include "proto/state.h"

#include "base/panic.h"
#include "base/tensor_table.h"
#include "proto/memfd.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLE_PAGE ((size_t)5)
#define HEAD_BYTES (TABLE_PAGE * STATE_PAGE) /* header, records, words: all the supervisor maps */
#define SLOT_ALIGN ((uint64_t)2 << 20)
#define SECTION_BYTES_MAX                                                                          \
	((uint64_t)1 << 42) /* 2^40 parameters; keeps every sum below in 64 bits */

_Static_assert(sizeof(struct state_header) <= STATE_PAGE, "the header is one page");
_Static_assert(SECTION_ALIGN % SEAL_CHUNK_BYTES == 0, "sums never straddle sections");

static uint64_t sum_count(uint64_t section_bytes)
{
	return section_bytes * SECTION_COUNT / SEAL_CHUNK_BYTES;
}

/* Where the first slot begins. */
static uint64_t slots_offset(uint64_t section_bytes, uint32_t slot_count)
{
	uint64_t end = HEAD_BYTES + slot_count * sum_count(section_bytes) * sizeof(uint64_t);

	return (end + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

bool state_sizes_valid(uint64_t section_bytes, uint32_t slot_count)
{
	return slot_count >= 1 && slot_count <= STATE_SLOTS_MAX && section_bytes > 0 &&
		section_bytes <= SECTION_BYTES_MAX && section_bytes % SECTION_ALIGN == 0;
}

uint64_t state_total_bytes(uint64_t section_bytes, uint32_t slot_count)
{
	CHECK(state_sizes_valid(section_bytes, slot_count));
	return slots_offset(section_bytes, slot_count) + slot_count * section_bytes * SECTION_COUNT;
}

static uint64_t header_check(const struct state_header *header)
{
	struct digest digest = digest_of(header, offsetof(struct state_header, check));
	uint64_t check;

	memcpy(&check, digest.bytes, sizeof(check));
	return check;
}

int state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err)
{
	struct state_header header = {.magic = STATE_MAGIC,
		.layout_version = STATE_LAYOUT_VERSION,
		.slot_count = slot_count,
		.section_bytes = section_bytes,
		.block_bytes = section_bytes * SECTION_COUNT,
		.model_digest = *model_digest};

	CHECK(state_sizes_valid(section_bytes, slot_count));
	header.total_bytes = state_total_bytes(section_bytes, slot_count);
	memcpy(header.run_id, run_id, sizeof(header.run_id));
	header.check = header_check(&header);
	return memfd_create_sized("ckptd-state", header.total_bytes,
		slots_offset(section_bytes, slot_count) + header.block_bytes, &header,
		sizeof(header), err);
}

/* Reads and checks the header by file operations: nothing is mapped on its word alone. */
static int header_read(int fd, struct state_header *ret, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "state memory: cannot stat: %s", strerror(errno));
	if (!memfd_size_sealed(fd))
		return error_set(err, -EINVAL, "state memory: its size is not sealed");
	if (st.st_size < (off_t)HEAD_BYTES ||
		pread(fd, ret, sizeof(*ret), 0) != (ssize_t)sizeof(*ret))
		return error_set(
			err, -EINVAL, "state memory: %jd bytes are too few", (intmax_t)st.st_size);
	if (ret->magic != STATE_MAGIC)
		return error_set(err, -EINVAL, "state memory: wrong magic");
	if (ret->layout_version != STATE_LAYOUT_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
			"state memory: layout version %" PRIu32 ", this program knows %d",
			ret->layout_version, STATE_LAYOUT_VERSION);
	if (ret->check != header_check(ret))
		return error_set(err, -EBADMSG, "state memory: the header's sum does not match");
	if (!state_sizes_valid(ret->section_bytes, ret->slot_count) ||
		ret->block_bytes != ret->section_bytes * SECTION_COUNT ||
		ret->total_bytes != state_total_bytes(ret->section_bytes, ret->slot_count) ||
		ret->total_bytes != (uint64_t)st.st_size)
		return error_set(err, -EBADMSG, "state memory: its sizes contradict its %jd bytes",
			(intmax_t)st.st_size);
	return 0;
}

int state_map(struct state *state, int fd, bool with_slots, struct error *err)
{
	struct state_header header;
	int r = header_read(fd, &header, err);

	*state = (struct state){.fd = -1};
	if (r < 0)
		return r;
	if (with_slots && header.total_bytes > SIZE_MAX)
		return error_set(err, -EOVERFLOW, "state memory: larger than the address space");
	size_t bytes = with_slots ? (size_t)header.total_bytes : HEAD_BYTES;
	void *map = memfd_map(fd, bytes);
	if (map == NULL)
		return error_set(err, -errno, "state memory: cannot map %zu bytes: %s", bytes,
			strerror(errno));
	*state = (struct state){.fd = fd,
		.map = map,
		.mapped_bytes = bytes,
		.with_slots = with_slots,
		.header = header};
	return 0;
}

void state_unmap(struct state *state)
{
	if (state->map != NULL)
		munmap(state->map, state->mapped_bytes);
	*state = (struct state){.fd = -1};
}

int state_check_identity(const struct state *state, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err)
{
	if (memcmp(state->header.run_id, run_id, STATE_RUN_ID_SIZE) != 0)
		return error_set(err, -ESTALE, "state memory: it belongs to another run");
	if (!digest_equal(&state->header.model_digest, model_digest))
		return error_set(err, -ESTALE, "state memory: it belongs to another model");
	return 0;
}

uint8_t *state_ladder(const struct state *state)
{
	return state->map + offsetof(struct state_header, ladder);
}

bool state_restore_header(struct state *state)
{
	size_t size = offsetof(struct state_header, ladder);

	if (memcmp(state->map, &state->header, size) == 0)
		return false;
	memcpy(state->map, &state->header, size);
	return true;
}

void state_allocate(const struct state *state, uint32_t slot)
{
	memfd_allocate((uint8_t *)state_section(state, slot, 0), state->header.block_bytes);
}

uint64_t state_sum_count(const struct state *state)
{
	return sum_count(state->header.section_bytes);
}

float *state_section(const struct state *state, uint32_t slot, uint32_t section)
{
	const struct state_header *header = &state->header;

	CHECK(state->with_slots && slot < header->slot_count && section < SECTION_COUNT);
	return (float *)(state->map + slots_offset(header->section_bytes, header->slot_count) +
		slot * header->block_bytes + section * header->section_bytes);
}

uint64_t *state_sums(const struct state *state, uint32_t slot)
{
	CHECK(state->with_slots && slot < state->header.slot_count);
	return (uint64_t *)(state->map + HEAD_BYTES) + slot * state_sum_count(state);
}
