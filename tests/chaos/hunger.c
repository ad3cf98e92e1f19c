/* No memory: a kill by the kernel in a memory control group that is made too small (version 1 or 2,
 * where there is one that may be made), and, everywhere, a limit that lets a worker's own requests
 * fail. */
#include "tests/chaos/chaos.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define STARVING_BYTES (1 << 20)
#define LIMIT_BYTES (256 << 10)
#define V1 "/sys/fs/cgroup/memory"
#define V2 "/sys/fs/cgroup"

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

static void group_path(const struct chaos *chaos, const char *name, char path[160])
{
	snprintf(path, 160, "%s/%s", chaos->group, name);
}

static bool set_limit(const struct chaos *chaos, const char *bytes)
{
	char path[160];

	group_path(chaos, chaos->group_is_v2 ? "memory.max" : "memory.limit_in_bytes", path);
	return write_text(path, bytes);
}

static bool make_group(struct chaos *chaos, const char *above, bool v2)
{
	char path[160];

	chaos->group_is_v2 = v2;
	snprintf(chaos->group, sizeof(chaos->group), "%s/ckptd-chaos-%d", above, (int)getpid());
	if (mkdir(chaos->group, 0755) < 0) {
		chaos->group[0] = '\0';
		return false;
	}
	group_path(chaos, v2 ? "memory.max" : "memory.limit_in_bytes", path);
	if (access(path, W_OK) == 0)
		return true;
	rmdir(chaos->group);
	chaos->group[0] = '\0';
	return false;
}

void hunger_begin(struct chaos *chaos)
{
	if (make_group(chaos, V1, false))
		return;
	write_text(V2 "/cgroup.subtree_control", "+memory"); /* most often it is there already */
	if (!make_group(chaos, V2, true))
		print_message("# no memory control group can be made here: no out-of-memory kill, "
			      "only requests that fail\n");
}

void hunger_end(struct chaos *chaos)
{
	for (int i = 0; chaos->group[0] && i < 1000 && rmdir(chaos->group) < 0; i++)
		usleep(10000);
}

void hunger_add_supervisor(struct chaos *chaos)
{
	char path[160], pid[16];

	if (!chaos->group[0])
		return;
	group_path(chaos, "cgroup.procs", path);
	snprintf(pid, sizeof(pid), "%d", (int)chaos->rig.supervisor);
	assert_true(write_text(path, pid));
}

/* What cannot be given back: private memory, shared memory, the kernel's own. */
static uint64_t bytes_held(const struct chaos *chaos)
{
	static const char *const keys[] = {"rss", "anon", "shmem", "kernel"};
	char path[160], key[64];
	unsigned long long number;
	uint64_t sum = 0;

	group_path(chaos, "memory.stat", path);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	while (fscanf(file, "%63s %llu", key, &number) == 2)
		for (int i = 0; i < 4; i++)
			sum += strcmp(key, keys[i]) == 0 ? number : 0;
	fclose(file);
	return sum;
}

/* Version 1 refuses what is less than all that is held. */
static void make_narrow(const struct chaos *chaos)
{
	uint64_t bytes = bytes_held(chaos) + STARVING_BYTES;
	char text[32];

	for (int i = 0; i < 64; i++, bytes += STARVING_BYTES) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)bytes);
		if (set_limit(chaos, text))
			return;
	}
}

/* What is in use without a trainer, and hardly more: the next one cannot start. */
static bool starve(struct chaos *chaos)
{
	pid_t supervisor = chaos->rig.supervisor, pid = trainer_inside_a_step(chaos);
	off_t mark = chaos_log_end(chaos);
	int64_t step = rig_step(&chaos->rig);
	char line[512];
	bool starved;

	if (!chaos->group[0] || watch_state(pid, "train") == 0)
		return false;
	watch_supervisor(chaos, supervisor, false);
	kill(supervisor, SIGSTOP);
	kill(pid, SIGKILL);
	while (watch_state(pid, "train") != 0)
		usleep(1000);
	make_narrow(chaos);
	kill(supervisor, SIGCONT);
	do /* or another one has made room for it */
		starved = chaos_log_says(chaos, mark, "(out of memory)", 20 * NSEC_PER_MSEC, line);
	while (!starved && !chaos_log_says(chaos, mark, "goes on from", 0, line));
	assert_true(set_limit(chaos, chaos->group_is_v2 ? "max" : "-1"));
	watch_supervisor(chaos, supervisor, true);
	rig_wait(&chaos->rig, "a trainer at work", chaos_is_resting, 0);
	trainer_expect_no_step_lost(chaos, mark, step);
	return starved;
}

/* A worker that has hardly begun gets no more. One that OpenBLAS has not set up yet then asks for
 * memory for ever, until it is found to hang. */
static bool limit_worker(pid_t pid)
{
	struct rlimit limit = {LIMIT_BYTES, LIMIT_BYTES};

	return pid > 0 && prlimit(pid, RLIMIT_DATA, &limit, NULL) == 0;
}

static bool limit_trainer(struct chaos *chaos)
{
	pid_t pid = trainer_inside_a_step(chaos), next = 0;
	off_t mark = chaos_log_end(chaos), limited;
	int64_t step = rig_step(&chaos->rig);
	char line[512];

	if (watch_state(pid, "train") == 0)
		return false;
	kill(pid, SIGKILL);
	for (int i = 0; i < 1000 && (next == 0 || next == pid); i++)
		next = rig_worker(&chaos->rig, "train");
	limited = chaos_log_end(chaos);
	if (next == pid || !limit_worker(next))
		return false;
	rig_wait(&chaos->rig, "a trainer at work", chaos_is_resting, 0);
	trainer_expect_no_step_lost(chaos, mark, step);
	return chaos_log_says(chaos, limited, "trainer died: ", 0, line);
}

bool fault_of_memory(struct chaos *chaos, enum fault fault)
{
	return fault == STARVE_TRAINER   ? starve(chaos)
		: fault == LIMIT_TRAINER ? limit_trainer(chaos)
					 : saver_spoil(chaos, limit_worker, "saver died: ");
}
