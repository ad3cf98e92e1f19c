/* Memory: a leak is cured before it kills, and a kill for lack of memory is told as what it is. */
#include "tests/sim/rig.h"

#include "proto/json.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lacks.h"

#define GROUP_BYTES "67108864"

static void a_leaking_trainer_is_replaced_between_two_steps(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "memory_growth=16");
	sim_behave(fx, "leak_kib 256\nstep_us 20000\n");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 25, 0);
	pid_t first = sim_worker_pid(now), second = first;
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	json_decref(now);
	while (second == first || second == 0) {
		assert_true(clock_monotonic_ns() < until);
		now = sim_await(fx, "training", 25, 0);
		second = sim_worker_pid(now);
		json_decref(now);
	}
	/* Nothing died, and no step was lost. */
	assert_int_equal(sim_number_of(fx, "restarts"), 0);
	assert_true(sim_told(fx, "leak"));
	sim_await_only(fx, "training", sim_number_of(fx, "step") + 5, 0);
	json_t *reply = sim_call(fx, "Outages", NULL);
	json_t *rows = json_object_get(json_object_get(reply, "parameters"), "outages");
	const json_t *row = json_array_get(rows, 0);

	assert_string_equal(json_get_text(row, "cause", ""), "planned restart");
	assert_int_equal(sim_number(row, "steps_redone"), 0);
	json_decref(reply);
}

static void a_worker_has_limits_of_its_own(void **state)
{
	struct fixture *fx = *state;
	struct rlimit limit;

	sim_set(fx, "worker_memory=500");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 3, 0);
	pid_t worker = sim_worker_pid(now);

	json_decref(now);
	assert_int_equal(prlimit(worker, RLIMIT_CORE, NULL, &limit), 0);
	assert_true(limit.rlim_max == 0);
	assert_int_equal(prlimit(worker, RLIMIT_DATA, NULL, &limit), 0);
	assert_true(limit.rlim_max == (rlim_t)500 << 20);
	assert_int_equal(prlimit(fx->ckptd, RLIMIT_DATA, NULL, &limit), 0);
	assert_true(limit.rlim_max == RLIM_INFINITY);
}

/* -- a control group with little memory -- */

static bool write_text(const char *folder, const char *name, const char *text)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

/* Version 1, else 2. False: this machine gives us none. */
static bool make_group(char *folder, size_t size)
{
	snprintf(folder, size, "/sys/fs/cgroup/memory/ckptd-test-%d", (int)getpid());
	if (mkdir(folder, 0755) == 0)
		return write_text(folder, "memory.limit_in_bytes", GROUP_BYTES);
	snprintf(folder, size, "/sys/fs/cgroup/ckptd-test-%d", (int)getpid());
	if (mkdir(folder, 0755) < 0)
		return false;
	return write_text(folder, "memory.max", GROUP_BYTES);
}

static void a_kill_for_lack_of_memory_is_told_as_that(void **state)
{
	struct fixture *fx = *state;
	char folder[256], pid[16];

	if (!make_group(folder, sizeof(folder))) {
		rmdir(folder);
		test_lacks("a control group for memory");
	}
	sim_set(fx, "memory_growth=0");
	sim_start(fx);
	sim_await_only(fx, "training", 5, 0);
	snprintf(pid, sizeof(pid), "%d", (int)fx->ckptd);
	assert_true(write_text(folder, "cgroup.procs", pid));
	/* The next trainer is born there, and takes what there is. */
	sim_behave(fx, "leak_kib 4096\n");
	json_t *now = sim_status(fx);

	kill(sim_worker_pid(now), SIGKILL);
	json_decref(now);
	assert_true(sim_log_says(fx, "killed by SIGKILL (out of memory)"));
	sim_behave(fx, "");
	now = sim_await(fx, "training", sim_number_of(fx, "step") + 5, 2);
	assert_int_equal(sim_number(now, "rung"), 0);
	json_decref(now);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	for (int i = 0; i < 500 && rmdir(folder) < 0 && errno == EBUSY; i++)
		usleep(10000);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(a_leaking_trainer_is_replaced_between_two_steps),
		SIM_TEST(a_worker_has_limits_of_its_own),
		SIM_TEST(a_kill_for_lack_of_memory_is_told_as_that),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
