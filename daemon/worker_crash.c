/* See worker_crash.h. The handler calls only what is safe in a signal: write, and backtrace, which
 * was called once before so that it loads nothing. */
#include "daemon/worker_crash.h"

#include <execinfo.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAMES_MAX 48
#define STACK_MIN ((size_t)64 << 10)

static const char *worker_role = "?";

static void say(const char *text)
{
	if (write(STDERR_FILENO, text, strlen(text)) < 0)
		return; /* nobody to tell */
}

static void say_address(const void *address)
{
	char text[2 + 16 + 1] = "0x";
	uintptr_t value = (uintptr_t)address;

	for (int i = 0; i < 16; i++)
		text[2 + i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
	text[18] = 0;
	say(text);
}

static void on_fatal(int signal_number, siginfo_t *info, void *context)
{
	const char *name = sigabbrev_np(signal_number);
	void *frames[FRAMES_MAX];

	say("ckptd-worker ");
	say(worker_role);
	say(": SIG");
	say(name ? name : "?");
	if (signal_number != SIGABRT) {
		say(" at ");
		say_address(info->si_addr);
	}
	say(info->si_code <= 0 ? ", sent by another process; " : "; ");
	say("backtrace:\n");
	backtrace_symbols_fd(frames, backtrace(frames, FRAMES_MAX), STDERR_FILENO);
	/* SA_RESETHAND has put the default back: this ends the process with the same signal. */
	raise(signal_number);
}

void worker_crash_install(const char *role)
{
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
	/* Of this CPU: a signal saves all registers, tiles too, and the kernel gives a process no
	 * tiles whose signal stack could not take them. */
	long wanted = sysconf(_SC_SIGSTKSZ);
	stack_t stack = {.ss_size = wanted > (long)STACK_MIN ? (size_t)wanted : STACK_MIN};
	struct sigaction action = {
		.sa_sigaction = on_fatal,
		.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND | SA_NODEFER,
	};
	void *frame;

	worker_role = role;
	backtrace(&frame, 1);
	/* For the life of the process. */
	stack.ss_sp = mmap(
		NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack.ss_sp != MAP_FAILED)
		sigaltstack(&stack, NULL);
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		sigaction(fatal[i], &action, NULL);
}
