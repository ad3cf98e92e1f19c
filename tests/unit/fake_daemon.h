/* A daemon made of canned answers, for the tests of ckptctl: one thread on a Unix socket that
 * speaks real frames. And ckptctl itself, run inside the test with its output in memory. */
#pragma once

#include "ctl/ctl.h"
#include "proto/frame.h"

#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define FAKE_CLIENTS_MAX 8
#define FAKE_ANSWERS_MAX 16

/* What is done when a method is called, besides or instead of answering. */
enum fake_action {
	FAKE_ANSWER,
	FAKE_CLOSE_ALL, /* answers, then the daemon ends */
	FAKE_SILENCE,   /* no answer at all */
	FAKE_RAW,       /* text is sent as it is, with its NUL */
	FAKE_INTERRUPT, /* answers, and presses Ctrl-C */
};

struct fake_answer {
	const char *method; /* without the interface */
	enum fake_action action;
	const char *text; /* the whole reply object */
};

struct fake_daemon {
	char dir[256], path[300];
	int listen_fd, stop_fd[2];
	pthread_t thread;
	struct fake_answer
		answers[FAKE_ANSWERS_MAX]; /* each is used once, in order for its method */
	bool used[FAKE_ANSWERS_MAX];
	struct {
		int fd;
		struct frame_reader reader;
	} clients[FAKE_CLIENTS_MAX];
	/* What was called: "Method{parameters}" and a newline each. */
	char calls[8192];
	_Atomic bool ended;
};

static inline void fake_drop(struct fake_daemon *daemon, int i)
{
	if (daemon->clients[i].fd < 0)
		return;
	close(daemon->clients[i].fd);
	frame_reader_fini(&daemon->clients[i].reader);
	daemon->clients[i].fd = -1;
}

static inline void fake_log(struct fake_daemon *daemon, const char *method, const json_t *call)
{
	size_t used = strlen(daemon->calls);
	char *parameters = json_dumps(json_object_get(call, "parameters"), JSON_COMPACT);

	snprintf(daemon->calls + used, sizeof(daemon->calls) - used, "%s%s\n", method, parameters);
	free(parameters);
}

/* False when the daemon has ended by it. */
static inline bool fake_call(struct fake_daemon *daemon, int i, const json_t *call)
{
	const char *name = json_get_text(call, "method", ""), *dot = strrchr(name, '.');
	const char *method = dot != NULL ? dot + 1 : name;

	fake_log(daemon, method, call);
	for (int k = 0; k < FAKE_ANSWERS_MAX && daemon->answers[k].method != NULL; k++) {
		const struct fake_answer *answer = &daemon->answers[k];

		if (daemon->used[k] || strcmp(answer->method, method) != 0)
			continue;
		daemon->used[k] = true;
		if (answer->action != FAKE_SILENCE && answer->text != NULL &&
			send(daemon->clients[i].fd, answer->text, strlen(answer->text) + 1,
				MSG_NOSIGNAL) < 0)
			fake_drop(daemon, i);
		if (answer->action == FAKE_INTERRUPT)
			kill(getpid(), SIGINT);
		if (answer->action == FAKE_CLOSE_ALL)
			return false;
		/* A stream: all that is left of this method follows. */
		if (!json_get_bool(call, "more", false))
			return true;
	}
	return true;
}

static inline void fake_accept(struct fake_daemon *daemon)
{
	int fd = accept(daemon->listen_fd, NULL, NULL);

	for (int i = 0; fd >= 0 && i < FAKE_CLIENTS_MAX; i++)
		if (daemon->clients[i].fd < 0) {
			daemon->clients[i].fd = fd;
			frame_reader_init(&daemon->clients[i].reader, FRAME_CLIENT_MAX);
			return;
		}
	abort();
}

static inline void *fake_thread(void *context)
{
	struct fake_daemon *daemon = context;
	bool alive = true;

	while (alive) {
		struct pollfd fds[FAKE_CLIENTS_MAX + 2];

		for (int i = 0; i < FAKE_CLIENTS_MAX; i++)
			fds[i] = (struct pollfd){.fd = daemon->clients[i].fd, .events = POLLIN};
		fds[FAKE_CLIENTS_MAX] = (struct pollfd){.fd = daemon->listen_fd, .events = POLLIN};
		fds[FAKE_CLIENTS_MAX + 1] = (struct pollfd){
			.fd = daemon->stop_fd[0], .events = POLLIN};
		poll(fds, FAKE_CLIENTS_MAX + 2, -1);
		if (fds[FAKE_CLIENTS_MAX + 1].revents != 0)
			break;
		if (fds[FAKE_CLIENTS_MAX].revents != 0)
			fake_accept(daemon);
		for (int i = 0; alive && i < FAKE_CLIENTS_MAX; i++) {
			struct error err;
			json_t *call;

			if (daemon->clients[i].fd < 0 || fds[i].revents == 0)
				continue;
			if (frame_receive(daemon->clients[i].fd, &daemon->clients[i].reader, 0,
				    &call, &err) < 0) {
				fake_drop(daemon, i);
				continue;
			}
			alive = fake_call(daemon, i, call);
			json_decref(call);
		}
	}
	/* An orderly end takes the socket away first. */
	unlink(daemon->path);
	close(daemon->listen_fd);
	for (int i = 0; i < FAKE_CLIENTS_MAX; i++)
		fake_drop(daemon, i);
	atomic_store(&daemon->ended, true);
	return NULL;
}

static inline void fake_dir(char *dir, size_t size)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, size, "%s/ckptd-ctl-XXXXXX", tmp != NULL ? tmp : "/tmp");
	assert_non_null(mkdtemp(dir));
}

static inline int fake_unlink(const char *path, const struct stat *stat, int type, struct FTW *at)
{
	return remove(path);
}

static inline void fake_remove_dir(const char *dir)
{
	nftw(dir, fake_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

/* The answers end with a NULL method. */
static inline void fake_start(struct fake_daemon *daemon, const struct fake_answer *answers)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	sigset_t all, old;

	memset(daemon, 0, sizeof(*daemon));
	for (int i = 0; answers[i].method != NULL; i++)
		daemon->answers[i] = answers[i];
	for (int i = 0; i < FAKE_CLIENTS_MAX; i++)
		daemon->clients[i].fd = -1;
	fake_dir(daemon->dir, sizeof(daemon->dir));
	snprintf(daemon->path, sizeof(daemon->path), "%s/ckptd.sock", daemon->dir);
	assert_true(strlen(daemon->path) < sizeof(address.sun_path));
	memcpy(address.sun_path, daemon->path, strlen(daemon->path) + 1);
	daemon->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(
		bind(daemon->listen_fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(daemon->listen_fd, 8), 0);
	assert_int_equal(pipe(daemon->stop_fd), 0);
	sigfillset(&all); /* Ctrl-C is for the thread that runs ckptctl */
	pthread_sigmask(SIG_BLOCK, &all, &old);
	assert_int_equal(pthread_create(&daemon->thread, NULL, fake_thread, daemon), 0);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static inline void fake_stop(struct fake_daemon *daemon)
{
	close(daemon->stop_fd[1]); /* its reader sees the end */
	pthread_join(daemon->thread, NULL);
	close(daemon->stop_fd[0]);
	fake_remove_dir(daemon->dir);
}

/* -- ckptctl -- */

struct ran {
	int code;
	char *out, *err;
};

/* ckptctl("status", "--json", NULL); free with ran_fini. */
static inline struct ran ckptctl(const char *first, ...) __attribute__((sentinel));

static inline struct ran ckptctl(const char *first, ...)
{
	const char *argv[32] = {"ckptctl", first};
	struct ran ran = {0};
	size_t out_size, err_size;
	int argc = first != NULL ? 2 : 1;
	va_list args;

	va_start(args, first);
	while (first != NULL && argc < 31 && (argv[argc] = va_arg(args, const char *)) != NULL)
		argc++;
	va_end(args);
	FILE *out = open_memstream(&ran.out, &out_size);
	FILE *err = open_memstream(&ran.err, &err_size);
	assert_true(out != NULL && err != NULL);
	ran.code = ctl_main(argc, (char **)argv, out, err);
	fclose(out);
	fclose(err);
	return ran;
}

static inline void ran_fini(struct ran *ran)
{
	free(ran->out);
	free(ran->err);
}

#define ASSERT_HAS(text, part)                                                                     \
	do {                                                                                       \
		if (strstr(text, part) == NULL)                                                    \
			fail_msg("'%s' is not in:\n%s", part, text);                               \
	} while (0)
