/* One process of ckptd-worker, from fork and exec to the last word: its link, its stderr, its end.
 * The owner gets every message, and then `ended` once: after waitpid, after the link and stderr ran
 * dry (bounded), and after all handles are closed, so the struct can be used again. */
#pragma once

#include "base/clock.h"
#include "proto/frame.h"

#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#define CHILD_TAIL_SIZE 2048
#define CHILD_ABORT_GRACE_MS 5000  /* from SIGABRT to SIGKILL */
#define CHILD_KILL_REPORT_MS 10000 /* a process that SIGKILL does not end is reported */
#define CHILD_DRAIN_MS 2000        /* from the end to giving up on its pipes */
#define CHILD_LINES_MAX 200        /* of stderr, forwarded in a second */

struct child;

struct child_handlers {
	void (*message)(struct child *child, const char *name, json_t *body);
	void (*ended)(struct child *child);
	/* SIGKILL was sent long ago, and it still is there. */
	void (*stuck)(struct child *child);
};

struct child_options {
	const char *worker_path;
	int null_fd;                        /* /dev/null */
	int state_fd, progress_fd, lock_fd; /* -1: /dev/null */
	int key_fd;                         /* the same */
	uint32_t threads;                   /* OMP_NUM_THREADS; 0: not set */
	int nice;
	uint64_t memory_bytes; /* most private memory; 0: no limit */
	bool kill_first;       /* the out-of-memory killer takes it first */
};

struct child {
	const char *role;
	void *owner;
	const struct child_handlers *handlers;
	uv_process_t process;
	uv_pipe_t link, err;
	uv_timer_t timer;
	struct frame_reader reader;
	enum { CHILD_NONE, CHILD_RUNNING, CHILD_DRAINING, CHILD_CLOSING } state;
	enum { CHILD_TIMER_NONE, CHILD_TIMER_ABORT, CHILD_TIMER_KILL, CHILD_TIMER_DRAIN } timer_for;
	unsigned handles_open;
	bool link_over, err_over;
	pid_t pid;
	nsec_t begun_ns;              /* monotonic */
	int exit_status, term_signal; /* from DRAINING on */
	/* What is known about why it ended: the owner sets and reads these. */
	bool asked, hang, memory_corrupt, protocol_broken;
	char last_words[256];       /* of `failed` */
	char tail[CHILD_TAIL_SIZE]; /* of stderr, ended */
	size_t tail_size;
	char line[512];
	size_t line_size;
	nsec_t lines_since_ns;
	unsigned lines;
};

/* In place, with nothing running. */
void child_init(
	struct child *child, const char *role, const struct child_handlers *handlers, void *owner);
/* Starts the process; it must not be alive. A start that fails is an end as well: `ended` comes,
 * with LINK_EXIT_TRANSIENT and the reason as last words. */
void child_spawn(struct child *child, uv_loop_t *loop, const struct child_options *options);
/* From spawn to `ended`. */
bool child_alive(const struct child *child);
/* Sends one frame; takes the reference. Lost when it is ending. */
void child_send(struct child *child, json_t *frame);
void child_kill(struct child *child, int signal_number);
/* What it said cannot be: nothing more is read of it, and it is killed. text says why, in its
 * obituary. */
void child_refuse(struct child *child, const char *text);
/* Why it ended, in one line: its own last words, else what its end says. */
void child_reason(const struct child *child, char *text, size_t size);
/* For one that SIGKILL does not end, when nobody can wait: `ended` comes, as if it had. */
void child_abandon(struct child *child);
/* SIGABRT for a backtrace, then SIGKILL. */
void child_abort(struct child *child);
/* CPU and I/O priority of all threads of a process that runs already (nice above 0: the lowest for
 * I/O); what is not allowed is left. */
void child_set_nice(struct child *child, int nice);
