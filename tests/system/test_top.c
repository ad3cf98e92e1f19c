/* P11: `ckptctl top` looks on through the death and the restart of the real ckptd, says so, and can
 * be left at any time. On a terminal of its own, and without one. */
#include "tests/system/rig.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PATIENCE (60 * NSEC_PER_SEC) /* never waited for when all is well */
#define HOME "\033[H"                /* each picture begins with it */
#define NO_ANSWER "ckptd does not answer; waiting"

struct onlooker {
	pid_t pid;
	int fd; /* what it prints, and on a terminal its keys */
	size_t size;
	char text[1 << 20];
};

/* Reads what there is, for at most `ms`; false: nothing. */
static bool listen_to(struct onlooker *top, int ms)
{
	struct pollfd out = {.fd = top->fd, .events = POLLIN};

	if (poll(&out, 1, ms) <= 0)
		return false;
	assert_true(top->size < sizeof(top->text) - 1);
	ssize_t n = read(top->fd, top->text + top->size, sizeof(top->text) - 1 - top->size);

	top->size += n > 0 ? (size_t)n : 0;
	top->text[top->size] = '\0';
	return n > 0;
}

/* On a terminal: the last whole picture. Without one: all lines since the last call. */
static const char *last_picture(struct onlooker *top)
{
	char *last = NULL, *newest = NULL;

	for (char *at = top->text; (at = strstr(at, HOME)); at++) {
		last = newest;
		newest = at;
	}
	return last ? last : "";
}

static void await_picture(struct onlooker *top, const char *words, const char *but_not)
{
	nsec_t deadline = clock_monotonic_ns() + PATIENCE;

	top->size = 0; /* what was shown before is no answer */
	top->text[0] = '\0';
	for (;;) {
		const char *picture = last_picture(top);

		if (strstr(picture, words) && !(but_not && strstr(picture, but_not)))
			return;
		if (clock_monotonic_ns() > deadline)
			fail_msg("'%s' is never shown; the last picture:\n%s", words, picture);
		listen_to(top, 100);
	}
}

static void await_line(struct onlooker *top, const char *words)
{
	nsec_t deadline = clock_monotonic_ns() + PATIENCE;
	char *found;

	while (!(found = strstr(top->text, words))) {
		if (clock_monotonic_ns() > deadline)
			fail_msg("'%s' is never printed:\n%s", words, top->text);
		listen_to(top, 100);
	}
	top->size = strlen(found + strlen(words));
	memmove(top->text, found + strlen(words), top->size + 1);
}

static _Noreturn void be_top(const struct rig *rig, int fd)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/ctl/ckptctl", CKPTD_BUILD);
	for (int to = 0; to < 3; to++)
		dup2(fd, to);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setenv("TERM", "xterm", 1);
	execl(path, path, "--socket", rig->socket, "top", (char *)NULL);
	_exit(127);
}

static void top_on_terminal(struct onlooker *top, const struct rig *rig)
{
	const struct winsize size = {.ws_col = 100, .ws_row = 40};

	memset(top, 0, sizeof(*top));
	top->fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(top->fd >= 0);
	assert_int_equal(grantpt(top->fd), 0);
	assert_int_equal(unlockpt(top->fd), 0);
	assert_int_equal(ioctl(top->fd, TIOCSWINSZ, &size), 0);
	top->pid = fork();
	assert_true(top->pid >= 0);
	if (top->pid > 0)
		return;
	setsid(); /* the terminal that it opens is its own */
	be_top(rig, open(ptsname(top->fd), O_RDWR));
}

static void top_in_pipe(struct onlooker *top, const struct rig *rig)
{
	int ends[2];

	memset(top, 0, sizeof(*top));
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	top->pid = fork();
	assert_true(top->pid >= 0);
	if (top->pid == 0)
		be_top(rig, ends[1]);
	close(ends[1]);
	top->fd = ends[0];
}

/* Its exit code; it must not wait for a daemon. */
static int end_of(struct onlooker *top)
{
	nsec_t deadline = clock_monotonic_ns() + PATIENCE;
	int status;

	while (waitpid(top->pid, &status, WNOHANG) == 0) {
		assert_true(clock_monotonic_ns() < deadline);
		listen_to(top, 20);
	}
	while (listen_to(top, 0)) /* its last words */
		;
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void open_long_run(struct rig *rig)
{
	rig_open(rig, "steps_total=1000000 batch_size=1");
	rig_start(rig, NULL);
}

static void look_at_training(struct rig *rig, struct onlooker *top)
{
	open_long_run(rig);
	top_on_terminal(top, rig);
	await_picture(top, "training", NULL);
}

/* At once, although nobody answers. */
static void leave_by(struct onlooker *top, char key)
{
	nsec_t pressed = clock_monotonic_ns();

	assert_int_equal(write(top->fd, &key, 1), 1);
	assert_int_equal(end_of(top), 0);
	assert_true(clock_monotonic_ns() - pressed < 5 * NSEC_PER_SEC);
}

static void p11_top_goes_on_after_a_killed_daemon(void **unused)
{
	static struct onlooker top;
	struct rig rig;

	look_at_training(&rig, &top);
	for (int i = 0; i < 2; i++) {
		rig_kill_supervisor(&rig);
		/* The last picture is still there, below what is wrong with it. */
		await_picture(&top, NO_ANSWER, NULL);
		assert_non_null(strstr(last_picture(&top), "no answer"));
		assert_non_null(strstr(last_picture(&top), "of 1,000,000"));
		assert_non_null(strstr(last_picture(&top), rig.run_dir));
		rig_start(&rig, NULL);
		await_picture(&top, "training", NO_ANSWER);
	}
	/* It can be left while nobody answers. */
	rig_kill_supervisor(&rig);
	await_picture(&top, NO_ANSWER, NULL);
	leave_by(&top, 'q');
	assert_non_null(strstr(top.text, "\033[?1049l")); /* the terminal is as it was */
	close(top.fd);
	rig_close(&rig);
}

/* Ctrl-C is a byte that the terminal makes a signal of. */
static void p11_ctrl_c_leaves_top_while_nobody_answers(void **unused)
{
	static struct onlooker top;
	struct rig rig;

	look_at_training(&rig, &top);
	rig_kill_supervisor(&rig);
	await_picture(&top, NO_ANSWER, NULL);
	leave_by(&top, '\003');
	close(top.fd);
	rig_close(&rig);
}

/* A stopped daemon takes connections, and says nothing: so does a service's socket while ckptd
 * comes up. */
static void p11_top_says_that_a_stopped_daemon_is_silent(void **unused)
{
	static struct onlooker top;
	struct rig rig;

	open_long_run(&rig);
	rig_wait(&rig, "steps", is_step, 2);
	kill(rig.supervisor, SIGSTOP);
	top_on_terminal(&top, &rig);
	await_picture(&top, NO_ANSWER, NULL);
	kill(rig.supervisor, SIGCONT);
	await_picture(&top, "training", NO_ANSWER);
	kill(top.pid, SIGTERM);
	assert_int_equal(end_of(&top), 0);
	close(top.fd);
	rig_close(&rig);
}

static void p11_top_in_a_pipe_tells_both_in_lines(void **unused)
{
	static struct onlooker top;
	struct rig rig;

	open_long_run(&rig);
	top_in_pipe(&top, &rig);
	await_line(&top, "training");
	rig_kill_supervisor(&rig);
	await_line(&top, NO_ANSWER);
	rig_start(&rig, NULL);
	await_line(&top, "ckptd answers again");
	await_line(&top, "training");
	assert_null(strstr(top.text, "\033"));
	kill(top.pid, SIGINT);
	assert_int_equal(end_of(&top), 0);
	close(top.fd);
	rig_close(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p11_top_goes_on_after_a_killed_daemon),
		cmocka_unit_test(p11_ctrl_c_leaves_top_while_nobody_answers),
		cmocka_unit_test(p11_top_says_that_a_stopped_daemon_is_silent),
		cmocka_unit_test(p11_top_in_a_pipe_tells_both_in_lines),
	};

	return cmocka_run_group_tests_name("top", tests, NULL, NULL);
}
