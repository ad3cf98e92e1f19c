/* Processes (child.h). It must never wait for one, and never believe what one says: frames are
 * bounded, stderr is forwarded line by line and rate-limited. Invariants: `ended` comes exactly
 * once for each child_spawn; no signal is sent after waitpid. */
#include "supervisor/child.h"

#include "base/log.h"
#include "base/panic.h"
#include "base/priority.h"
#include "proto/link.h"
#include "supervisor/obituary.h"
#include "supervisor/resources.h"
#include "supervisor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

#define ENVIRONMENT_MAX 512
#define STDIO_COUNT (LINK_KEY_FD + 1)

struct send_request {
	uv_write_t write;
	char *data;
};

void child_init(
	struct child *child, const char *role, const struct child_handlers *handlers, void *owner)
{
	CHECK(handlers->message && handlers->ended && handlers->stuck);
	*child = (struct child){.role = role, .owner = owner, .handlers = handlers};
}

bool child_alive(const struct child *child)
{
	return child->state != CHILD_NONE;
}

/* -- the end -- */

static void on_closed(uv_handle_t *handle)
{
	struct child *child = handle->data;

	CHECK(child->state == CHILD_CLOSING && child->handles_open > 0);
	if (--child->handles_open > 0)
		return;
	frame_reader_fini(&child->reader);
	child->state = CHILD_NONE;
	child->handlers->ended(child);
}

static void close_all(struct child *child)
{
	CHECK(child->state == CHILD_DRAINING);
	child->state = CHILD_CLOSING;
	child->handles_open = 4;
	uv_close((uv_handle_t *)&child->process, on_closed);
	uv_close((uv_handle_t *)&child->link, on_closed);
	uv_close((uv_handle_t *)&child->err, on_closed);
	uv_close((uv_handle_t *)&child->timer, on_closed);
}

static void close_when_dry(struct child *child)
{
	if (child->state == CHILD_DRAINING && child->link_over && child->err_over)
		close_all(child);
}

static void on_timer(uv_timer_t *timer)
{
	struct child *child = timer->data;

	switch (child->timer_for) {
	case CHILD_TIMER_ABORT:
		child_kill(child, SIGKILL);
		break;
	case CHILD_TIMER_KILL:
		if (child->state == CHILD_RUNNING)
			child->handlers->stuck(child);
		break;
	case CHILD_TIMER_DRAIN:
		child->link_over = true;
		child->err_over = true;
		close_when_dry(child);
		break;
	case CHILD_TIMER_NONE:
		break;
	}
}

static void set_timer(struct child *child, int what, uint64_t after_ms)
{
	child->timer_for = what;
	uv_timer_start(&child->timer, on_timer, after_ms, 0);
}

static void on_exit_status(uv_process_t *process, int64_t status, int term_signal)
{
	struct child *child = process->data;

	CHECK(child->state == CHILD_RUNNING);
	child->state = CHILD_DRAINING;
	child->exit_status = (int)status;
	child->term_signal = term_signal;
	set_timer(child, CHILD_TIMER_DRAIN, CHILD_DRAIN_MS);
	close_when_dry(child);
}

/* -- stderr -- */

static void keep_tail(struct child *child, const char *data, size_t size)
{
	size_t room = sizeof(child->tail) - 1;

	if (size > room) {
		data += size - room;
		size = room;
	}
	if (child->tail_size + size > room) {
		size_t gone = child->tail_size + size - room;

		memmove(child->tail, child->tail + gone, child->tail_size - gone);
		child->tail_size -= gone;
	}
	memcpy(child->tail + child->tail_size, data, size);
	child->tail_size += size;
	CHECK(child->tail_size <= room);
	child->tail[child->tail_size] = '\0';
}

static void forward_line(struct child *child)
{
	nsec_t now_ns = clock_monotonic_ns();

	child->line[child->line_size] = '\0';
	child->line_size = 0;
	if (now_ns - child->lines_since_ns > NSEC_PER_SEC) {
		if (child->lines > CHILD_LINES_MAX)
			log_warning("%s[%d]: %u more lines were not shown", child->role,
				(int)child->pid, child->lines - CHILD_LINES_MAX);
		child->lines_since_ns = now_ns;
		child->lines = 0;
	}
	if (++child->lines > CHILD_LINES_MAX || child->line[0] == '\0')
		return;
	text_flatten(child->line);
	log_info("%s[%d]: %s", child->role, (int)child->pid, child->line);
}

static void take_stderr(struct child *child, const char *data, size_t size)
{
	keep_tail(child, data, size);
	for (size_t i = 0; i < size; i++) {
		if (data[i] == '\n' || child->line_size == sizeof(child->line) - 1)
			forward_line(child);
		if (data[i] != '\n')
			child->line[child->line_size++] = data[i];
	}
}

static void err_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	static char room[4096]; /* used up before the next read */

	*buffer = uv_buf_init(room, sizeof(room));
}

static void on_err(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
	struct child *child = stream->data;

	if (size > 0) {
		take_stderr(child, buffer->base, (size_t)size);
	} else if (size < 0) {
		if (child->line_size > 0)
			forward_line(child);
		uv_read_stop(stream);
		child->err_over = true;
		close_when_dry(child);
	}
}

/* -- the link -- */

void child_refuse(struct child *child, const char *text)
{
	if (child->protocol_broken || child->state == CHILD_CLOSING)
		return;
	CHECK(child_alive(child));
	child->protocol_broken = true;
	snprintf(child->last_words, sizeof(child->last_words), "%s", text);
	text_flatten(child->last_words);
	uv_read_stop((uv_stream_t *)&child->link);
	child->link_over = true;
	child_kill(child, SIGKILL);
	close_when_dry(child);
}

static void link_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	struct child *child = handle->data;
	char *data = NULL;
	size_t size = 0;

	if (frame_reader_space(&child->reader, &data, &size) < 0)
		size = 0; /* libuv answers with UV_ENOBUFS */
	*buffer = uv_buf_init(data, (unsigned)size);
}

/* One frame is one message: {"name": {...}}. */
static void take_frame(struct child *child, json_t *frame)
{
	void *entry = json_object_iter(frame);
	json_t *body = entry ? json_object_iter_value(entry) : NULL;

	if (json_object_size(frame) != 1 || !json_is_object(body)) {
		child_refuse(child, "a frame on the link is not one message");
		return;
	}
	if (strcmp(json_object_iter_key(entry), "failed") == 0)
		text_take(child->last_words, sizeof(child->last_words), body, "text");
	child->handlers->message(child, json_object_iter_key(entry), body);
}

static void on_link(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
	struct child *child = stream->data;
	struct error error;
	json_t *frame;
	int code;

	if (size < 0 && size != UV_ENOBUFS) {
		uv_read_stop(stream);
		child->link_over = true;
		close_when_dry(child);
		return;
	}
	if (size == UV_ENOBUFS) {
		child_refuse(child, "a frame on the link is over the limit");
		return;
	}
	frame_reader_filled(&child->reader, (size_t)size);
	while ((code = frame_next(&child->reader, &frame, &error)) > 0) {
		take_frame(child, frame);
		json_decref(frame);
		if (child->protocol_broken)
			return;
	}
	if (code < 0)
		child_refuse(child, error.text);
}

static void on_sent(uv_write_t *write, int status)
{
	struct send_request *request = (struct send_request *)write;

	free(request->data);
	free(request);
}

void child_send(struct child *child, json_t *frame)
{
	char *data = NULL;
	size_t size;

	CHECK(frame);
	int code = frame_encode(frame, &data, &size);

	json_decref(frame);
	CHECK(code == 0);
	struct send_request *request = calloc(1, sizeof(*request));

	CHECK(request);
	request->data = data;
	uv_buf_t buffer = uv_buf_init(data, (unsigned)size);

	if (child->state != CHILD_RUNNING ||
		uv_write(&request->write, (uv_stream_t *)&child->link, &buffer, 1, on_sent) < 0) {
		free(data);
		free(request);
	}
}

/* -- the beginning -- */

static bool keep_variable(const char *entry)
{
	static const char *const ours[] = {
		"NOTIFY_SOCKET=", "LISTEN_FDS=", "LISTEN_PID=", "LISTEN_FDNAMES=", "WATCHDOG_USEC=",
		"WATCHDOG_PID=", "JOURNAL_STREAM=", "CREDENTIALS_DIRECTORY=", "OMP_NUM_THREADS=",
		"OPENBLAS_NUM_THREADS=", "GOMP_SPINCOUNT="};

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		if (strncmp(entry, ours[i], strlen(ours[i])) == 0)
			return false;
	return true;
}

/* OpenBLAS knows CPUs by their model numbers: for one newer than itself it takes its oldest
 * kernels, several times slower. Features say which ones it can run. NULL: leave it alone. */
static char *blas_core(void)
{
#ifdef __x86_64__
	static char wide[] = "OPENBLAS_CORETYPE=SkylakeX", narrow[] = "OPENBLAS_CORETYPE=Haswell";

	if (getenv("OPENBLAS_CORETYPE"))
		return NULL;
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
		__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
		return wide;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return narrow;
#endif
	return NULL;
}

/* The environment of a worker: ours without what is only for us. The array is static: the loop's
 * thread alone spawns. */
static char **worker_environment(uint32_t threads)
{
	static char *list[ENVIRONMENT_MAX];
	static char threads_text[40];
	static char spin_text[] = "GOMP_SPINCOUNT=1000", blas_text[] = "OPENBLAS_NUM_THREADS=1";
	size_t count = 0;

	for (char **entry = environ; *entry && count < ENVIRONMENT_MAX - 5; entry++)
		if (keep_variable(*entry))
			list[count++] = *entry;
	list[count++] = spin_text;
	list[count++] = blas_text;
	if (blas_core())
		list[count++] = blas_core();
	if (threads > 0) {
		snprintf(threads_text, sizeof(threads_text), "OMP_NUM_THREADS=%u", threads);
		list[count++] = threads_text;
	}
	list[count] = NULL;
	CHECK(count < ENVIRONMENT_MAX);
	return list;
}

static void prefer_for_killing(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, "500", 3) < 0)
		log_debug("cannot write %s: %s", path, strerror(errno));
	close(fd);
}

static void reset(struct child *child)
{
	child->link_over = child->err_over = false;
	child->pid = 0;
	child->exit_status = child->term_signal = 0;
	child->asked = child->hang = child->memory_corrupt = child->protocol_broken = false;
	child->last_words[0] = child->tail[0] = '\0';
	child->tail_size = child->line_size = 0;
	child->lines = 0;
	child->timer_for = CHILD_TIMER_NONE;
	child->begun_ns = clock_monotonic_ns();
	child->lines_since_ns = child->begun_ns;
}

static int inherited(int fd, int null_fd)
{
	CHECK(null_fd >= 0);
	return fd >= 0 ? fd : null_fd;
}

static int start_process(struct child *child, uv_loop_t *loop, const struct child_options *options)
{
	char *arguments[] = {(char *)options->worker_path, (char *)child->role, NULL};
	uv_stdio_container_t stdio[STDIO_COUNT] = {
		[STDIN_FILENO] = {.flags = UV_IGNORE},
		[STDOUT_FILENO] = {.flags = UV_IGNORE},
		[STDERR_FILENO] = {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
			.data.stream = (uv_stream_t *)&child->err},
		[LINK_FD] = {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE,
			.data.stream = (uv_stream_t *)&child->link},
		[LINK_STATE_FD] = {.flags = UV_INHERIT_FD,
			.data.fd = inherited(options->state_fd, options->null_fd)},
		[LINK_PROGRESS_FD] = {.flags = UV_INHERIT_FD,
			.data.fd = inherited(options->progress_fd, options->null_fd)},
		[LINK_LOCK_FD] = {.flags = UV_INHERIT_FD,
			.data.fd = inherited(options->lock_fd, options->null_fd)},
		[LINK_KEY_FD] = {.flags = UV_INHERIT_FD,
			.data.fd = inherited(options->key_fd, options->null_fd)},
	};
	uv_process_options_t process = {.exit_cb = on_exit_status,
		.file = options->worker_path,
		.args = arguments,
		.env = worker_environment(options->threads),
		.flags = UV_PROCESS_DETACHED, /* its own session */
		.stdio_count = STDIO_COUNT,
		.stdio = stdio};

	return uv_spawn(loop, &child->process, &process);
}

void child_spawn(struct child *child, uv_loop_t *loop, const struct child_options *options)
{
	CHECK(child->state == CHILD_NONE);
	CHECK(options->worker_path && options->worker_path[0] == '/');
	reset(child);
	frame_reader_init(&child->reader, FRAME_LINK_MAX);
	CHECK(uv_pipe_init(loop, &child->link, 0) == 0);
	CHECK(uv_pipe_init(loop, &child->err, 0) == 0);
	CHECK(uv_timer_init(loop, &child->timer) == 0);
	child->process.data = child->link.data = child->err.data = child->timer.data = child;
	int code = start_process(child, loop, options);

	if (code < 0) {
		child->state = CHILD_DRAINING;
		child->exit_status = LINK_EXIT_TRANSIENT;
		snprintf(child->last_words, sizeof(child->last_words), "cannot start %s: %s",
			options->worker_path, uv_strerror(code));
		close_all(child);
		return;
	}
	child->state = CHILD_RUNNING;
	child->pid = child->process.pid;
	CHECK(child->pid > 0);
	child_set_nice(child, options->nice);
	if (options->kill_first)
		prefer_for_killing(child->pid);
	resources_limit(child->pid, options->memory_bytes);
	uv_read_start((uv_stream_t *)&child->link, link_alloc, on_link);
	uv_read_start((uv_stream_t *)&child->err, err_alloc, on_err);
}

void child_kill(struct child *child, int signal_number)
{
	CHECK(signal_number > 0);
	if (child->state != CHILD_RUNNING)
		return;
	uv_process_kill(&child->process, signal_number);
	if (signal_number == SIGKILL)
		set_timer(child, CHILD_TIMER_KILL, CHILD_KILL_REPORT_MS);
}

void child_reason(const struct child *child, char *text, size_t size)
{
	struct ending ending = {.role = child->role,
		.exit_status = child->exit_status,
		.term_signal = child->term_signal,
		.hang = child->hang,
		.protocol_broken = child->protocol_broken,
		.phase = child->role,
		.last_words = child->last_words};
	struct obituary obituary;

	obituary_write(&ending, &obituary);
	snprintf(text, size, "%s", *child->last_words ? child->last_words : obituary.sentence);
}

void child_abandon(struct child *child)
{
	if (child->state != CHILD_RUNNING)
		return;
	child->state = CHILD_DRAINING;
	child->term_signal = SIGKILL;
	close_all(child);
}

void child_abort(struct child *child)
{
	if (child->state != CHILD_RUNNING)
		return;
	CHECK(child->timer_for != CHILD_TIMER_DRAIN);
	uv_process_kill(&child->process, SIGABRT);
	uv_process_kill(&child->process, SIGCONT); /* one that is stopped takes no signal */
	set_timer(child, CHILD_TIMER_ABORT, CHILD_ABORT_GRACE_MS);
}

void child_set_nice(struct child *child, int nice)
{
	CHECK(child->pid > 0);
	int code = priority_set(child->pid, nice);

	if (code < 0)
		log_debug("%s[%d]: priority %d: %s", child->role, (int)child->pid, nice,
			strerror(-code));
}
