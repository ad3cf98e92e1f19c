/* The checkers: two processes that look at the run under test all the time. One goes over /proc:
 * never two trainers of this run at once, whoever their parents are. The other asks for the status:
 * it answers, and steps never go back beyond the newest verified checkpoint that is whole. */
#include "tests/chaos/chaos.h"

#include "proto/frame.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SCAN_US 10000
#define ASK_US 50000
#define ANSWER_NS (20 * NSEC_PER_SEC) /* on a machine that does much else */
#define TRAINERS_MAX 16

static void report(struct watch *watch, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void report(struct watch *watch, const char *format, ...)
{
	va_list arguments;
	int none = 0;

	if (!atomic_compare_exchange_strong(&watch->bad, &none, 1))
		return;
	va_start(arguments, format);
	vsnprintf(watch->violation, sizeof(watch->violation), format, arguments);
	va_end(arguments);
	atomic_store(&watch->bad, 2);
}

/* -- /proc -- */

static int read_file(pid_t pid, const char *name, char *text, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	return (int)n;
}

static bool has_role(pid_t pid, const char *role)
{
	char text[512];
	int n = read_file(pid, "cmdline", text, sizeof(text));
	size_t first = strlen(text) + 1;

	return n > (int)first && strcmp(text + first, role) == 0;
}

/* State letter of a process of that name, and its parent; 0 when it is none or has ended. */
static char state_of(pid_t pid, const char *name, pid_t *ret_parent)
{
	char text[512];

	if (read_file(pid, "stat", text, sizeof(text)) <= 0)
		return 0;
	char *begin = strchr(text, '('), *end = strrchr(text, ')');

	if (!begin || !end || end[1] == '\0' || end[2] == 'Z' || end[2] == 'X')
		return 0;
	*end = '\0';
	if (strcmp(begin + 1, name) != 0)
		return 0;
	*ret_parent = (pid_t)strtol(end + 4, NULL, 10);
	return end[2];
}

char watch_state(pid_t pid, const char *role)
{
	pid_t parent;
	char state = state_of(pid, role ? "ckptd-worker" : "ckptd", &parent);

	return state && role && !has_role(pid, role) ? 0 : state;
}

/* Each worker has inherited the descriptor of its run's lock. */
static bool holds_lock(pid_t pid, const char *lock)
{
	char path[64], target[2 * RIG_PATH_MAX];
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && !found && (entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

		target[n > 0 ? n : 0] = '\0';
		found = strcmp(target, lock) == 0;
	}
	if (dir)
		closedir(dir);
	return found;
}

static bool is_our_trainer(const struct watch *watch, pid_t pid, const char *lock)
{
	pid_t parent;

	return state_of(pid, "ckptd-worker", &parent) && has_role(pid, "train") &&
		(parent == atomic_load(&watch->supervisor) || holds_lock(pid, lock));
}

static void scan(struct watch *watch, const char *lock)
{
	pid_t trainers[TRAINERS_MAX];
	unsigned count = 0;
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && count < TRAINERS_MAX && (entry = readdir(proc))) {
		pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (pid > 0 && is_our_trainer(watch, pid, lock))
			trainers[count++] = pid;
	}
	if (proc)
		closedir(proc);
	atomic_fetch_add(&watch->scans, 1);
	/* The first one may have gone before the second one came: both are looked at again. */
	for (unsigned i = 0; i + 1 < count; i++)
		if (is_our_trainer(watch, trainers[i], lock) &&
			is_our_trainer(watch, trainers[i + 1], lock))
			report(watch, "two trainers at once: %d and %d", (int)trainers[i],
				(int)trainers[i + 1]);
}

/* -- the status -- */

static json_t *ask(const struct rig *rig)
{
	nsec_t deadline = clock_monotonic_ns() + ANSWER_NS;
	struct frame_reader reader;
	struct error error;
	json_t *reply = NULL;
	int fd = rig_connect(rig);

	if (fd < 0)
		return NULL;
	AUTO_JSON call = json_pack(
		"{s:s,s:{}}", "method", "io.ckptd.Training.Status", "parameters");

	frame_reader_init(&reader, FRAME_REPLY_MAX);
	if (frame_send(fd, call, deadline) == 0)
		frame_receive(fd, &reader, deadline, &reply, &error);
	frame_reader_fini(&reader);
	close(fd);
	AUTO_JSON whole = reply;

	return json_incref(json_object_get(json_object_get(whole, "parameters"), "status"));
}

static void ask_and_check(struct watch *watch, const struct rig *rig, int64_t *last)
{
	uint64_t epoch = atomic_load(&watch->epoch);
	int64_t floor = atomic_load(&watch->floor);

	if (!atomic_load(&watch->answers))
		return;
	nsec_t begun_ns = clock_monotonic_ns();
	AUTO_JSON status = ask(rig);
	uint64_t ms = (uint64_t)((clock_monotonic_ns() - begun_ns) / NSEC_PER_MSEC);

	if (atomic_load(&watch->epoch) != epoch)
		return; /* it was ended or stopped meanwhile */
	if (!status) {
		report(watch, "the status did not answer for %llu ms", (unsigned long long)ms);
		return;
	}
	atomic_fetch_add(&watch->questions, 1);
	if (ms > atomic_load(&watch->longest_ms))
		atomic_store(&watch->longest_ms, ms);
	if (!chaos_is_resting(status, 0))
		return;
	int64_t step = json_get_int(status, "step", -1), now = atomic_load(&watch->floor);

	floor = floor < now ? floor : now;
	if (step < *last && step < floor)
		report(watch, "from step %lld back to step %lld, though step %lld is saved",
			(long long)*last, (long long)step, (long long)floor);
	*last = step;
}

/* -- their lives -- */

static pid_t spawn_checker(struct chaos *chaos, bool asks)
{
	struct watch *watch = chaos->watch;
	char lock[2 * RIG_PATH_MAX];
	int64_t last = 0;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid > 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(lock, sizeof(lock), "%s/lock", chaos->rig.run_dir);
	while (!atomic_load(&watch->over)) {
		if (asks)
			ask_and_check(watch, &chaos->rig, &last);
		else
			scan(watch, lock);
		usleep(asks ? ASK_US : SCAN_US);
	}
	_exit(0);
}

void watch_begin(struct chaos *chaos)
{
	chaos->watch = mmap(NULL, sizeof(*chaos->watch), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(chaos->watch != MAP_FAILED);
	chaos->watchers[0] = spawn_checker(chaos, false);
	chaos->watchers[1] = spawn_checker(chaos, true);
}

void watch_end(struct chaos *chaos)
{
	int status;

	atomic_store(&chaos->watch->over, true);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(waitpid(chaos->watchers[i], &status, 0), chaos->watchers[i]);
		assert_int_equal(status, 0);
	}
	watch_expect_good(chaos);
	assert_true(atomic_load(&chaos->watch->scans) > 0);
	assert_true(atomic_load(&chaos->watch->questions) > 0);
}

void watch_expect_good(const struct chaos *chaos)
{
	if (atomic_load(&chaos->watch->bad) == 2)
		fail_msg("%s", chaos->watch->violation);
}

void watch_supervisor(struct chaos *chaos, pid_t pid, bool answers)
{
	atomic_store(&chaos->watch->answers, false);
	atomic_store(&chaos->watch->supervisor, pid);
	atomic_fetch_add(&chaos->watch->epoch, 1);
	atomic_store(&chaos->watch->answers, answers);
}
