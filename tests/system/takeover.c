/* See takeover.h. All threads are stopped before the text of one is changed for two bytes: they
 * share it. */
#include "tests/system/takeover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef __x86_64__

#define TEXT_MAX 256
#define ROOM 4096 /* below the stack, beyond what leaf functions use of it */

static const uint8_t syscall_instruction[2] = {0x0f, 0x05};

static void wait_stopped(pid_t thread)
{
	int status;

	assert_int_equal(waitpid(thread, &status, __WALL), thread);
	assert_true(WIFSTOPPED(status));
}

bool takeover_begin(struct takeover *takeover, pid_t pid)
{
	char path[64];
	DIR *tasks;

	*takeover = (struct takeover){.pid = pid};
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	takeover->memory_fd = open(path, O_RDWR | O_CLOEXEC);
	if (takeover->memory_fd < 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	assert_non_null(tasks);
	for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
		pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);

		if (thread <= 0)
			continue;
		assert_true(takeover->thread_count < TAKEOVER_THREADS_MAX);
		if (ptrace(PTRACE_SEIZE, thread, NULL, NULL) < 0)
			break;
		assert_int_equal(ptrace(PTRACE_INTERRUPT, thread, NULL, NULL), 0);
		wait_stopped(thread);
		takeover->threads[takeover->thread_count++] = thread;
	}
	closedir(tasks);
	return takeover->thread_count > 0;
}

void takeover_end(struct takeover *takeover)
{
	for (size_t i = 0; i < takeover->thread_count; i++)
		assert_int_equal(ptrace(PTRACE_DETACH, takeover->threads[i], NULL, NULL), 0);
	close(takeover->memory_fd);
}

static void put(const struct takeover *takeover, uint64_t at, const void *data, size_t size)
{
	assert_int_equal(pwrite(takeover->memory_fd, data, size, (off_t)at), (ssize_t)size);
}

long takeover_call(const struct takeover *takeover, pid_t thread, long number,
	const struct takeover_argument arguments[4])
{
	struct user_regs_struct before, during;
	uint8_t text[sizeof(syscall_instruction)];
	uint64_t values[4];

	assert_int_equal(ptrace(PTRACE_GETREGS, thread, NULL, &before), 0);
	for (int i = 0; i < 4; i++) {
		values[i] = (uint64_t)arguments[i].value;
		if (!arguments[i].text)
			continue;
		assert_true(strlen(arguments[i].text) < TEXT_MAX);
		values[i] = before.rsp - ROOM + (uint64_t)i * TEXT_MAX;
		put(takeover, values[i], arguments[i].text, strlen(arguments[i].text) + 1);
	}
	assert_int_equal(
		pread(takeover->memory_fd, text, sizeof(text), (off_t)before.rip), sizeof(text));
	put(takeover, before.rip, syscall_instruction, sizeof(syscall_instruction));
	during = before;
	during.orig_rax = (uint64_t)-1; /* the call that it was in is not begun again here */
	during.rax = (uint64_t)number;
	during.rdi = values[0];
	during.rsi = values[1];
	during.rdx = values[2];
	during.r10 = values[3];
	assert_int_equal(ptrace(PTRACE_SETREGS, thread, NULL, &during), 0);
	assert_int_equal(ptrace(PTRACE_SINGLESTEP, thread, NULL, NULL), 0);
	wait_stopped(thread);
	assert_int_equal(ptrace(PTRACE_GETREGS, thread, NULL, &during), 0);
	put(takeover, before.rip, text, sizeof(text));
	assert_int_equal(ptrace(PTRACE_SETREGS, thread, NULL, &before), 0);
	return (long)during.rax;
}

#else

bool takeover_begin(struct takeover *takeover, pid_t pid)
{
	return false;
}

void takeover_end(struct takeover *takeover)
{
}

long takeover_call(const struct takeover *takeover, pid_t thread, long number,
	const struct takeover_argument arguments[4])
{
	return -ENOSYS;
}

#endif

long takeover_open(
	const struct takeover *takeover, pid_t thread, int dir_fd, const char *path, int flags)
{
	const struct takeover_argument open_arguments[4] = {VALUE_ARGUMENT(dir_fd),
		TEXT_ARGUMENT(path), VALUE_ARGUMENT(flags), VALUE_ARGUMENT(0600)};
	long fd = takeover_call(takeover, thread, SYS_openat, open_arguments);
	const struct takeover_argument close_arguments[4] = {VALUE_ARGUMENT(fd)};

	if (fd < 0)
		return fd;
	assert_int_equal(takeover_call(takeover, thread, SYS_close, close_arguments), 0);
	return 0;
}
