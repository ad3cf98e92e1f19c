/* P6, P11: the progress page shows what was measured, outlives its writer, and a mad or dead writer
 * costs rows, never sense. */
#include "proto/memfd.h"
#include "proto/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static struct progress *make(int *ret_fd)
{
	struct progress *progress;
	struct error err;

	if (progress_create(&progress, ret_fd, &err) < 0)
		fail_msg("%s", err.text);
	return progress;
}

static void drop(struct progress *progress, int fd)
{
	progress_unmap(progress);
	close(fd);
}

/* Every field follows from the step, so that a torn row shows. */
static struct metric row_of(uint64_t step)
{
	struct metric row = {.step = step,
		.branch = (uint32_t)(step % 9 + 1),
		.kind = METRIC_TRAIN,
		.loss = (float)step,
		.grad_norm = (float)(step * 2),
		.learning_rate = (float)(step * 3),
		.step_ms = (float)(step * 4),
		.images = (uint32_t)step};

	for (int i = 0; i < 4; i++)
		row.loss_quartile[i] = (float)(step + (uint64_t)i);
	return row;
}

static bool row_whole(const struct metric *row)
{
	struct metric want = row_of(row->step);

	want.sequence = row->sequence;
	return memcmp(row, &want, sizeof(want)) == 0;
}

static void write_rows(struct progress *progress, uint64_t first, uint64_t last)
{
	for (uint64_t step = first; step <= last; step++) {
		struct metric row = row_of(step);

		progress_metric(progress, &row);
	}
}

static void test_rows_come_in_order_and_once(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);
	struct metric rows[64];
	uint64_t cursor = 0, lost = 0, step = 0;
	uint32_t count;

	write_rows(progress, 1, 100);
	while ((count = progress_drain(progress, &cursor, rows, 64, &lost)) > 0)
		for (uint32_t i = 0; i < count; i++) {
			assert_int_equal(rows[i].step, ++step);
			assert_int_equal(rows[i].sequence, step);
			assert_true(row_whole(&rows[i]));
		}
	assert_int_equal(step, 100);
	assert_int_equal(cursor, 100);
	assert_int_equal(lost, 0);
	drop(progress, fd);
}

static void test_p11_overwritten_rows_are_counted(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);
	static struct metric rows[PROGRESS_RING + 10];
	uint64_t cursor = 0, lost = 0;

	write_rows(progress, 1, PROGRESS_RING + 123);
	assert_int_equal(
		progress_drain(progress, &cursor, rows, PROGRESS_RING + 10, &lost), PROGRESS_RING);
	assert_int_equal(lost, 123);
	assert_int_equal(rows[0].step, 124);
	assert_int_equal(rows[PROGRESS_RING - 1].step, PROGRESS_RING + 123);
	drop(progress, fd);
}

static void test_a_writer_that_died_inside_a_row_loses_that_row(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);
	struct metric rows[8];
	uint64_t cursor = 0, lost = 0;

	write_rows(progress, 1, 2);
	/* Killed after the row was begun: the head had not moved. The next writer takes its place.
	 */
	progress->ring[2].sequence = 0;
	progress->ring[2].step = 77;
	assert_int_equal(progress_drain(progress, &cursor, rows, 8, &lost), 2);
	write_rows(progress, 3, 3);
	assert_int_equal(progress_drain(progress, &cursor, rows, 8, &lost), 1);
	assert_int_equal(rows[0].step, 3);
	assert_true(row_whole(&rows[0]));
	assert_int_equal(lost, 0);
	drop(progress, fd);
}

static void test_p11_nonsense_is_lost_not_shown(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);
	struct metric rows[8];
	uint64_t cursor = 0, lost = 0;

	write_rows(progress, 1, 5);
	progress->ring[0].kind = 77;
	progress->ring[1].step = UINT64_MAX;
	progress->ring[2].sequence = 99;
	progress->ring[3].skipped = 2;
	assert_int_equal(progress_drain(progress, &cursor, rows, 8, &lost), 1);
	assert_int_equal(rows[0].step, 5);
	assert_int_equal(lost, 4);
	/* The head goes back, then far away: no loop, no crash. */
	progress->ring_head = 1;
	assert_int_equal(progress_drain(progress, &cursor, rows, 8, &lost), 0);
	assert_int_equal(cursor, 1);
	progress->ring_head = UINT64_MAX;
	for (int i = 0; i < 3; i++)
		assert_int_equal(progress_drain(progress, &cursor, rows, 8, &lost), 0);
	assert_int_equal(cursor, UINT64_MAX);
	assert_int_equal(lost, 4);
	drop(progress, fd);
}

static void test_phases_move_and_have_names(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);

	for (int phase = 0; phase < PHASE_COUNT; phase++) {
		progress_phase(progress, (enum phase)phase);
		assert_int_equal(progress->phase, phase);
		assert_int_equal(progress->moves, phase + 1);
		assert_string_not_equal(phase_name((enum phase)phase), "unknown");
	}
	assert_string_equal(phase_name((enum phase)PHASE_COUNT), "unknown");
	assert_string_equal(phase_name((enum phase) - 1), "unknown");
	assert_string_equal(phase_name(PHASE_BACKWARD), "backward");
	drop(progress, fd);
}

static void test_p4_waits_for_a_slot_are_told(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);

	progress_stall(progress, 300, false);
	assert_int_equal(progress->stall_count, 0);
	assert_int_equal(progress->stall_max_ns, 300);
	progress_stall(progress, 2000, true);
	progress_stall(progress, 500, true);
	assert_int_equal(progress->stall_count, 2);
	assert_int_equal(progress->stall_total_ns, 2500);
	assert_int_equal(progress->stall_last_ns, 500);
	assert_int_equal(progress->stall_max_ns, 2000);
	drop(progress, fd);
}

static void test_p3_the_page_outlives_its_writer(void **unused)
{
	int fd;
	struct progress *progress = make(&fd), *again;
	struct error err;

	progress_phase(progress, PHASE_UPDATE);
	progress_unmap(progress);
	assert_int_equal(progress_map(fd, &again, &err), 0);
	assert_int_equal(again->phase, PHASE_UPDATE);
	assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
	drop(again, fd);
}

static void assert_refused(int fd)
{
	struct progress *progress;
	struct error err = {0};

	assert_true(progress_map(fd, &progress, &err) < 0);
	assert_null(progress);
	assert_true(err.text[0] != '\0');
	close(fd);
}

static void test_p9_what_is_no_progress_page_is_refused(void **unused)
{
	const uint64_t other[2] = {PROGRESS_MAGIC + 1, PROGRESS_VERSION};
	const uint64_t newer[2] = {PROGRESS_MAGIC, PROGRESS_VERSION + 1};
	const uint64_t right[2] = {PROGRESS_MAGIC, PROGRESS_VERSION};
	size_t size = sizeof(struct progress);

	assert_refused(memfd_create_sized("t", size, size, other, sizeof(other), NULL));
	assert_refused(memfd_create_sized("t", size, size, newer, sizeof(newer), NULL));
	assert_refused(memfd_create_sized("t", size + 1, size + 1, right, sizeof(right), NULL));
	assert_refused(memfd_create_sized("t", size - 1, size - 1, right, sizeof(right), NULL));
	int fd = memfd_create("t", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_refused(fd);
	assert_refused(open("/dev/null", O_RDWR | O_CLOEXEC));
}

#define ROWS 60000

static void *writer_thread(void *progress)
{
	write_rows(progress, 1, ROWS);
	return NULL;
}

static void test_p11_reader_against_writer(void **unused)
{
	int fd;
	struct progress *progress = make(&fd);
	struct metric rows[256];
	pthread_t writer;
	uint64_t cursor = 0, lost = 0, got = 0, step = 0;

	assert_int_equal(pthread_create(&writer, NULL, writer_thread, progress), 0);
	while (cursor < ROWS) {
		uint32_t count = progress_drain(progress, &cursor, rows, 256, &lost);

		for (uint32_t i = 0; i < count; i++) {
			assert_true(row_whole(&rows[i]));
			assert_true(rows[i].step > step);
			step = rows[i].step;
		}
		got += count;
		assert_int_equal(got + lost, cursor);
	}
	pthread_join(writer, NULL);
	assert_true(got > 0);
	drop(progress, fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rows_come_in_order_and_once),
		cmocka_unit_test(test_p11_overwritten_rows_are_counted),
		cmocka_unit_test(test_a_writer_that_died_inside_a_row_loses_that_row),
		cmocka_unit_test(test_p11_nonsense_is_lost_not_shown),
		cmocka_unit_test(test_phases_move_and_have_names),
		cmocka_unit_test(test_p4_waits_for_a_slot_are_told),
		cmocka_unit_test(test_p3_the_page_outlives_its_writer),
		cmocka_unit_test(test_p9_what_is_no_progress_page_is_refused),
		cmocka_unit_test(test_p11_reader_against_writer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
