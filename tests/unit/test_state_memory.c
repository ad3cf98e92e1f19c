/* P9: what is not our state memory is refused before it is mapped, and memory that does not fit is
 * an error when it is made. */
#include "tests/unit/state_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static int copy_of(const struct state *state, size_t size, unsigned seals, size_t at, uint8_t flip)
{
	int fd = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t page[STATE_PAGE];

	assert_true(fd >= 0);
	memcpy(page, state->map, sizeof(page));
	page[at] ^= flip;
	assert_int_equal(pwrite(fd, page, sizeof(page), 0), (ssize_t)sizeof(page));
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void assert_refused(int fd)
{
	struct state state;
	struct error err = {0};

	assert_true(state_map(&state, fd, true, &err) < 0);
	assert_true(err.text[0] != '\0');
	assert_null(state.map);
	close(fd);
}

static void test_p9_what_is_not_state_memory_is_refused(void **unused)
{
	const unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct state state;

	make(&state, 2);
	size_t total = (size_t)state.header.total_bytes;
	struct state again;
	struct error err;
	int fd = copy_of(&state, total, seals, 0, 0);
	assert_int_equal(state_map(&again, fd, true, &err), 0);
	drop(&again);

	assert_refused(copy_of(&state, total, 0, 0, 0));
	assert_refused(copy_of(&state, total, F_SEAL_SHRINK | F_SEAL_GROW, 0, 0));
	assert_refused(copy_of(&state, total - STATE_PAGE, seals, 0, 0));
	assert_refused(copy_of(&state, total + STATE_PAGE, seals, 0, 0));
	assert_refused(copy_of(&state, STATE_PAGE, seals, 0, 0));
	assert_refused(copy_of(&state, 0, seals, 0, 0));
	for (size_t at = 0; at < offsetof(struct state_header, ladder); at++)
		assert_refused(copy_of(&state, total, seals, at, 0x01));
	assert_refused(open("/dev/null", O_RDWR | O_CLOEXEC));
	/* The ladder's bytes are the supervisor's own: they do not make the memory foreign. */
	fd = copy_of(&state, total, seals, offsetof(struct state_header, ladder) + 3, 0xff);
	assert_int_equal(state_map(&again, fd, false, &err), 0);
	drop(&again);
	drop(&state);
}

static void test_the_size_cannot_change(void **unused)
{
	struct state state;

	make(&state, 1);
	assert_int_equal(ftruncate(state.fd, STATE_PAGE), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(state.fd, (off_t)state.header.total_bytes * 2), -1);
	assert_true((fcntl(state.fd, F_GETFD) & FD_CLOEXEC) != 0);
	drop(&state);
}

static void test_p9_another_run_or_model_is_stale(void **unused)
{
	struct state state;
	struct digest model = model_digest(), other = digest_of("x", 1);
	struct error err;

	make(&state, 1);
	assert_int_equal(state_check_identity(&state, run_id, &model, &err), 0);
	assert_int_equal(
		state_check_identity(&state, (const uint8_t *)"another run 0000", &model, &err),
		-ESTALE);
	assert_non_null(strstr(err.text, "another run"));
	assert_int_equal(state_check_identity(&state, run_id, &other, &err), -ESTALE);
	assert_non_null(strstr(err.text, "another model"));
	drop(&state);
}

static void test_p9_too_little_memory_is_an_error_at_creation(void **unused)
{
	struct digest model = model_digest();
	struct error err;

	assert_int_equal(state_create((uint64_t)1 << 42, 3, run_id, &model, &err), -ENOMEM);
	assert_non_null(strstr(err.text, "MiB"));
}

static uint64_t allocated_bytes(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Large enough for huge pages. Whether the kernel has any to give is told, not asked: what must
 * hold is that the first slot has its memory from the beginning and the others from when they are
 * given theirs, zero but for what was written before, and where huge pages can be mapped. */
static void test_a_large_memory_is_whole_and_aligned(void **unused)
{
	struct digest model = model_digest();
	struct state state;
	struct error err;
	char line[256];
	long kib = 0;

	int fd = state_create((uint64_t)8 << 20, 3, run_id, &model, &err);
	assert_true(fd >= 0);
	assert_int_equal(state_map(&state, fd, true, &err), 0);
	assert_int_equal((uintptr_t)state.map % ((size_t)2 << 20), 0);
	assert_in_range(allocated_bytes(fd),
		(uint8_t *)state_section(&state, 1, 0) - (uint8_t *)state.map,
		state.header.total_bytes - state.header.block_bytes);
	state_section(&state, 1, 2)[5] = 1;
	state_allocate(&state, 1);
	state_allocate(&state, 2);
	assert_true(allocated_bytes(fd) >= state.header.total_bytes);
	assert_true(state_section(&state, 1, 2)[5] == 1);
	state_section(&state, 1, 2)[5] = 0;
	for (uint32_t slot = 0; slot < 3; slot++) {
		const float *block = state_section(&state, slot, 0);

		for (uint64_t i = 0; i < state.header.block_bytes / sizeof(float); i++)
			assert_true(block[i] == 0);
	}
	FILE *maps = fopen("/proc/self/smaps_rollup", "re");
	while (maps && fgets(line, sizeof(line), maps))
		(void)sscanf(line, "ShmemPmdMapped: %ld kB", &kib);
	if (maps)
		fclose(maps);
	print_message("# %ld of %ld MiB in huge pages\n", kib >> 10,
		(long)(state.header.total_bytes >> 20));
	state_unmap(&state);
	close(fd);
}

static void test_layout_has_no_overlap(void **unused)
{
	struct state state;

	make(&state, 3);
	const uint8_t *end = state.map + 5 * STATE_PAGE;
	for (uint32_t slot = 0; slot < 3; slot++) {
		assert_true((const uint8_t *)state_sums(&state, slot) >= end);
		end = (const uint8_t *)(state_sums(&state, slot) + state_sum_count(&state));
	}
	assert_int_equal(state_sum_count(&state), SECTION_COUNT * SECTION / SEAL_CHUNK_BYTES);
	for (uint32_t slot = 0; slot < 3; slot++)
		for (uint32_t section = 0; section < SECTION_COUNT; section++) {
			const uint8_t *at = (const uint8_t *)state_section(&state, slot, section);

			assert_true(at >= end);
			assert_int_equal((size_t)(at - state.map) % SECTION_ALIGN, 0);
			end = at + SECTION;
		}
	assert_true((size_t)(end - state.map) == state.header.total_bytes);
	drop(&state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_p9_what_is_not_state_memory_is_refused),
		cmocka_unit_test(test_the_size_cannot_change),
		cmocka_unit_test(test_p9_another_run_or_model_is_stale),
		cmocka_unit_test(test_p9_too_little_memory_is_an_error_at_creation),
		cmocka_unit_test(test_a_large_memory_is_whole_and_aligned),
		cmocka_unit_test(test_layout_has_no_overlap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
