/* What a confined process may no longer do, and what it still can. */
#include "base/sandbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void *nothing(void *context)
{
	return context;
}

/* The exit status: the number of the first thing that was not as it must be. */
static int confined(void)
{
	char *const args[] = {(char *)"true", NULL};
	pthread_t thread;
	int status;
	pid_t pid;

	if (sandbox_enter() < 0)
		return 1;
	if (execv("/bin/true", args) != -1 || errno != EPERM)
		return 2;
	if (socket(AF_UNIX, SOCK_STREAM, 0) != -1 || errno != EPERM)
		return 3;
	if (setuid(getuid()) != -1 || errno != EPERM)
		return 4;
	if (unshare(CLONE_NEWUSER) != -1 || errno != EPERM)
		return 5;
	if (syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL) != -1 ||
		errno != EPERM)
		return 5;
#ifndef __SANITIZE_ADDRESS__
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != -1 || errno != EPERM)
		return 6;
#endif
	/* A child is confined too. */
	pid = fork();
	if (pid == 0)
		_exit(execv("/bin/true", args) == -1 && errno == EPERM ? 0 : 1);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		return 9;
	if (pthread_create(&thread, NULL, nothing, NULL) != 0 || pthread_join(thread, NULL) != 0)
		return 7;
	if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 2)
		return 8;
	return 0;
}

static void a_confined_process_has_threads_and_no_programs(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(confined());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_confined_process_has_threads_and_no_programs),
	};

	return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
