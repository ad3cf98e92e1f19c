/* The database thread's queue: in order, bounded, each job answered once, on the loop. */
#include "supervisor/ledger.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define JOBS LEDGER_JOBS_MAX

struct room {
	uv_sem_t open; /* the thread waits for it in the first job */
	int seen[JOBS];
	int count;
	bool ended;
};

struct numbered {
	struct ledger_job job;
	struct room *room;
	int number;
	int *answered;
};

static struct room room;
static uv_loop_t loop;
static struct ledger ledger;

static void room_fini(void *context)
{
	((struct room *)context)->ended = true;
}

static void work_wait(struct ledger_job *job, void *context)
{
	uv_sem_wait(&((struct room *)context)->open);
}

static void work(struct ledger_job *job, void *context)
{
	struct room *here = context;

	here->seen[here->count++] = ((struct numbered *)job)->number;
}

static void done(struct ledger_job *job)
{
	++*((struct numbered *)job)->answered;
}

static int setup(void **unused)
{
	memset(&room, 0, sizeof(room));
	assert_int_equal(uv_loop_init(&loop), 0);
	assert_int_equal(uv_sem_init(&room.open, 0), 0);
	return ledger_init(&ledger, &loop, &room, room_fini);
}

static int teardown(void **unused)
{
	ledger_fini(&ledger);
	uv_run(&loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&loop), 0);
	uv_sem_destroy(&room.open);
	return 0;
}

static void jobs_are_done_in_order_and_answered_once(void **unused)
{
	struct numbered jobs[100];
	int answered = 0;

	for (int i = 0; i < 100; i++) {
		jobs[i] = (struct numbered){
			.job = {.work = work, .done = done}, .number = i, .answered = &answered};
		assert_int_equal(ledger_give(&ledger, &jobs[i].job), 0);
	}
	while (answered < 100)
		uv_run(&loop, UV_RUN_ONCE);
	for (int i = 0; i < 100; i++)
		assert_int_equal(room.seen[i], i);
	assert_int_equal(answered, 100);
}

/* A disk that hangs: metrics fill half of the queue, then they are counted and lost. */
static void a_full_queue_refuses_metrics_first(void **unused)
{
	static struct numbered jobs[2 * JOBS];
	struct numbered first = {.job = {.work = work_wait, .done = done}};
	int answered = 0, taken = 1, metrics = 0;

	first.answered = &answered;
	assert_int_equal(ledger_give(&ledger, &first.job), 0);
	for (int i = 0; i < 2 * JOBS; i++) {
		jobs[i] = (struct numbered){
			.job = {.work = work, .done = done, .droppable = i < JOBS},
			.number = i,
			.answered = &answered};
		int code = ledger_give(&ledger, &jobs[i].job);

		assert_true(code == 0 || code == -ENOBUFS);
		taken += code == 0;
		metrics += code == 0 && i < JOBS;
	}
	assert_in_range(metrics, JOBS / 2 - 1, JOBS / 2);
	assert_int_equal(taken, JOBS);
	assert_int_equal(ledger.dropped, (uint64_t)(JOBS - metrics));
	uv_sem_post(&room.open);
	while (answered < taken)
		uv_run(&loop, UV_RUN_ONCE);
	assert_int_equal(answered, taken);
}

static void the_end_waits_for_what_was_taken(void **unused)
{
	static struct numbered jobs[50];
	int answered = 0;

	for (int i = 0; i < 50; i++) {
		jobs[i] = (struct numbered){
			.job = {.work = work, .done = done}, .number = i, .answered = &answered};
		assert_int_equal(ledger_give(&ledger, &jobs[i].job), 0);
	}
	ledger_fini(&ledger);
	assert_int_equal(answered, 50);
	assert_int_equal(room.count, 50);
	assert_true(room.ended);
	jobs[0].job.next = NULL;
	assert_int_equal(ledger_give(&ledger, &jobs[0].job), -ECANCELED);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(jobs_are_done_in_order_and_answered_once),
		TEST(a_full_queue_refuses_metrics_first),
		TEST(the_end_waits_for_what_was_taken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
