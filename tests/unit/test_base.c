/* The base: durable files under faults, digests and hex, seals, the tensor order, times, errors. */
#include "base/arena.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/seal.h"
#include "base/sys.h"
#include "base/tensor_table.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

static char folder[] = "/tmp/ckptd-base-XXXXXX";
static int folder_fd;

static int setup(void **state)
{
	if (!mkdtemp(folder))
		return -1;
	folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return folder_fd < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	sys_fault_plan(NULL);
	unlinkat(folder_fd, "note", 0);
	unlinkat(folder_fd, "sub/below", AT_REMOVEDIR);
	unlinkat(folder_fd, "sub", AT_REMOVEDIR);
	close(folder_fd);
	return rmdir(folder);
}

static void assert_note_is(const char *right)
{
	char *data;
	size_t size;

	assert_int_equal(file_read_all(folder_fd, "note", 100, &data, &size), 0);
	assert_string_equal(data, right);
	assert_int_equal(size, strlen(right));
	free(data);
}

static void P7_replace_is_all_or_nothing_under_any_fault(void **state)
{
	static const char *const points[] = {
		"open", "pwrite", "fsync", "close", "rename", "unlink"};
	static const char *const errors[] = {"EIO", "ENOSPC"};

	assert_int_equal(file_replace(folder_fd, "note", "old", 3, 0640), 0);
	for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++)
		for (size_t j = 0; j < 2; j++)
			for (int hit = 1; hit <= 2; hit++) {
				char plan[64];

				snprintf(plan, sizeof(plan), "%s:%d:%s", points[i], hit, errors[j]);
				assert_int_equal(sys_fault_plan(plan), 0);
				int code = file_replace(folder_fd, "note", "newer", 5, 0640);
				assert_int_equal(sys_fault_plan(NULL), 0);
				/* The second fsync is the folder's: the name has moved already. */
				if (code < 0 && !(strcmp(points[i], "fsync") == 0 && hit == 2))
					assert_note_is("old");
				else
					assert_note_is("newer");
				assert_int_equal(
					file_replace(folder_fd, "note", "old", 3, 0640), 0);
			}
	assert_int_equal(file_create(folder_fd, "note", "x", 1, 0640), -EEXIST);
	assert_note_is("old");
}

static void short_writes_and_interrupts_are_carried_on(void **state)
{
	assert_int_equal(sys_fault_plan("pwrite:*:short,pread:*:EINTR"), 0);
	assert_int_equal(file_replace(folder_fd, "note", "abcdefgh", 8, 0640), 0);
	assert_note_is("abcdefgh");
	assert_int_equal(sys_fault_plan(NULL), 0);
}

static void faults_flip_and_kill(void **state)
{
	char data[4] = "";
	int status;

	assert_int_equal(file_replace(folder_fd, "note", "aaaa", 4, 0640), 0);
	int fd = sys_openat(folder_fd, "note", O_RDONLY, 0);
	assert_true(fd >= 0);
	assert_int_equal(sys_fault_plan("pread:1:flip"), 0);
	assert_int_equal(sys_pread(fd, data, 4, 0), 4);
	assert_memory_not_equal(data, "aaaa", 4);
	assert_int_equal(sys_pread(fd, data, 4, 0), 4);
	assert_memory_equal(data, "aaaa", 4);
	sys_close(fd);

	assert_int_equal(sys_fault_plan("here:2:kill"), 0);
	pid_t child = fork();
	if (child == 0) {
		sys_fault("here");
		sys_fault("there");
		sys_fault("here");
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(sys_fault_plan(NULL), 0);
	assert_int_equal(sys_fault_plan("here:0:EIO"), -EINVAL);
	assert_int_equal(sys_fault_plan("here:1:EWHAT"), -EINVAL);
	assert_int_equal(sys_fault_plan("here"), -EINVAL);
}

static void reading_is_bounded(void **state)
{
	char *data;
	size_t size;

	assert_int_equal(file_replace(folder_fd, "note", "0123456789", 10, 0640), 0);
	assert_int_equal(file_read_all(folder_fd, "note", 9, &data, &size), -EFBIG);
	assert_int_equal(file_read_all(folder_fd, "none", 9, &data, &size), -ENOENT);
	assert_int_equal(file_read_all(folder_fd, ".", 9, &data, &size), -EINVAL);
	assert_int_equal(symlinkat("note", folder_fd, "link"), 0);
	assert_int_equal(file_read_all(folder_fd, "link", 99, &data, &size), -ELOOP);
	unlinkat(folder_fd, "link", 0);
	int fd = file_open_dir(folder_fd, "sub", 0750);
	assert_true(fd >= 0);
	sys_close(fd);
	fd = file_open_dir(folder_fd, "sub/below", 0750);
	assert_true(fd >= 0);
	sys_close(fd);
}

static void digests_and_hex(void **state)
{
	/* BLAKE2b-256 of "" and "abc", as in the b2sum program (-l 256). */
	char hex[DIGEST_HEX_SIZE];
	struct digest digest = digest_of("", 0), again;

	digest_to_hex(&digest, hex);
	assert_string_equal(
		hex, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
	digest = digest_of("abc", 3);
	digest_to_hex(&digest, hex);
	assert_string_equal(
		hex, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
	struct digest_stream stream;
	digest_begin(&stream);
	digest_add(&stream, "a", 1);
	digest_add(&stream, "bc", 2);
	again = digest_end(&stream);
	assert_true(digest_equal(&digest, &again));
	assert_int_equal(digest_from_hex(hex, 64, &again), 0);
	assert_true(digest_equal(&digest, &again));
	assert_int_equal(digest_from_hex(hex, 63, &again), -EINVAL);
	hex[5] = 'A'; /* one spelling only */
	assert_int_equal(digest_from_hex(hex, 64, &again), -EINVAL);
}

static void P2_seal_finds_every_single_flip_and_equal_pairs(void **state)
{
	uint8_t *chunk = malloc(SEAL_CHUNK_BYTES);
	uint64_t sum, other;

	assert_non_null(chunk);
	for (size_t i = 0; i < SEAL_CHUNK_BYTES; i++)
		chunk[i] = (uint8_t)(i * 2654435761u >> 24);
	seal_sums(chunk, SEAL_CHUNK_BYTES, &sum);
	assert_true(sum ==
		seal_sum(chunk, 0, 1000) +
			seal_sum((uint32_t *)(void *)chunk + 1000, 1000,
				SEAL_CHUNK_BYTES / 4 - 1000));
	for (size_t i = 0; i < SEAL_CHUNK_BYTES; i += 4099)
		for (int bit = 0; bit < 8; bit++) {
			chunk[i] ^= (uint8_t)(1 << bit);
			seal_sums(chunk, SEAL_CHUNK_BYTES, &other);
			assert_true(other != sum);
			chunk[i] ^= (uint8_t)(1 << bit);
			bit += 2;
		}
	memset(chunk, 0, SEAL_CHUNK_BYTES);
	chunk[0] = 1; /* the same flip in two words of zeros */
	chunk[4] = 1;
	seal_sums(chunk, SEAL_CHUNK_BYTES, &sum);
	chunk[4] = 0;
	chunk[8] = 1;
	seal_sums(chunk, SEAL_CHUNK_BYTES, &other);
	assert_true(other != sum);
	free(chunk);
}

static void tensors_have_one_order(void **state)
{
	struct tensor_table table, same;
	struct error err;
	uint32_t odd[] = {3}, even[] = {4, 4}, zero[] = {0}, large[] = {65536, 65536, 65536};

	tensor_table_init(&table);
	assert_int_equal(tensor_table_add(&table, "b.odd", 1, odd), 0);
	assert_int_equal(tensor_table_add(&table, "z.even", 2, even), 0);
	assert_int_equal(tensor_table_add(&table, "a.even", 2, even), 0);
	assert_int_equal(tensor_table_add(&table, "empty", 1, zero), -EINVAL);
	assert_int_equal(tensor_table_add(&table, "large", 3, large), -EOVERFLOW);
	assert_int_equal(tensor_table_layout(&table, &err), 0);
	assert_string_equal(table.specs[0].name, "a.even");
	assert_string_equal(table.specs[1].name, "z.even");
	assert_string_equal(table.specs[2].name, "b.odd");
	assert_int_equal(table.specs[2].offset, 128);
	assert_int_equal(table.param_count, 35);
	assert_int_equal(table.section_bytes, SECTION_ALIGN);
	assert_null(tensor_table_find(&table, "none"));

	tensor_table_init(&same);
	assert_int_equal(tensor_table_add(&same, "a.even", 2, even), 0);
	assert_int_equal(tensor_table_add(&same, "z.even", 2, even), 0);
	assert_int_equal(tensor_table_add(&same, "b.odd", 1, odd), 0);
	assert_int_equal(tensor_table_layout(&same, &err), 0);
	struct digest a = tensor_table_digest(&table), b = tensor_table_digest(&same);
	assert_true(digest_equal(&a, &b));
	assert_int_equal(tensor_table_add(&same, "a.even", 1, odd), 0);
	assert_int_equal(tensor_table_layout(&same, &err), -EINVAL);
	tensor_table_fini(&table);
	tensor_table_fini(&same);
}

static void times_and_errors_are_for_people(void **state)
{
	char text[CLOCK_TEXT_SIZE];
	struct error err;

	clock_format_utc(INT64_C(1700000000123000000), text);
	assert_string_equal(text, "2023-11-14T22:13:20.123Z");
	clock_format_duration(NSEC_PER_SEC * (3 * 3600 + 12 * 60 + 5), text);
	assert_string_equal(text, "3 h 12 min");
	clock_format_duration(NSEC_PER_SEC * 60, text);
	assert_string_equal(text, "1 min");
	clock_format_duration(NSEC_PER_MSEC * 120, text);
	assert_string_equal(text, "120 ms");
	assert_int_equal(error_set(&err, -EIO, "a %s\nline", "two"), -EIO);
	assert_string_equal(err.text, "a two line");
	assert_int_equal(error_prefix(&err, -EIO, "file %d", 7), -EIO);
	assert_string_equal(err.text, "file 7: a two line");
}

static void the_arena_plans_what_it_takes(void **state)
{
	struct arena plan, arena;

	arena_plan_init(&plan);
	assert_null(arena_alloc(&plan, 1));
	assert_null(arena_alloc(&plan, 1000));
	assert_int_equal(arena_init(&arena, plan.used), 0);
	uint8_t *first = arena_alloc(&arena, 1), *second = arena_alloc(&arena, 1000);
	assert_true((uintptr_t)first % 64 == 0 && second - first == 64);
	assert_true(second[999] == 0 && arena.used == arena.size);
	arena_fini(&arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(P7_replace_is_all_or_nothing_under_any_fault),
		cmocka_unit_test(short_writes_and_interrupts_are_carried_on),
		cmocka_unit_test(faults_flip_and_kill),
		cmocka_unit_test(reading_is_bounded),
		cmocka_unit_test(digests_and_hex),
		cmocka_unit_test(P2_seal_finds_every_single_flip_and_equal_pairs),
		cmocka_unit_test(tensors_have_one_order),
		cmocka_unit_test(times_and_errors_are_for_people),
		cmocka_unit_test(the_arena_plans_what_it_takes),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
