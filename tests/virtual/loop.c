/* See loop.h. Invariant: a callback never runs inside of the call that asked for it. */
#include "tests/virtual/loop.h"

#include "base/panic.h"

#include <string.h>

#define TIMERS_MAX 64
#define PENDING_MAX 1024
#define SIGNALS_MAX 4
#define CLOSING 1u /* libuv's own bit, for uv_is_closing */

nsec_t virtual_now_ns, virtual_wall_ns;

struct pending {
	uv_handle_t *closed; /* or */
	uv_write_t *written;
};

static struct {
	uv_timer_t *timers[TIMERS_MAX];
	uint32_t timer_count;
	struct pending pending[PENDING_MAX];
	uint32_t pending_first, pending_count;
	uv_signal_t *signals[SIGNALS_MAX];
	uint32_t signal_count;
	uv_prepare_t *prepare;
	uv_stream_t *listener;
	bool stopped;
} loop;

nsec_t __wrap_clock_monotonic_ns(void);
nsec_t __wrap_clock_wall_ns(void);

nsec_t __wrap_clock_monotonic_ns(void)
{
	return virtual_now_ns;
}

nsec_t __wrap_clock_wall_ns(void)
{
	return virtual_wall_ns + virtual_now_ns;
}

void virtual_reset(void)
{
	memset(&loop, 0, sizeof(loop));
}

int uv_loop_init(uv_loop_t *handle)
{
	loop.stopped = false;
	return 0;
}

int uv_loop_close(uv_loop_t *handle)
{
	return loop.timer_count == 0 && loop.pending_count == 0 ? 0 : UV_EBUSY;
}

void uv_stop(uv_loop_t *handle)
{
	loop.stopped = true;
}

static void put_pending(struct pending pending)
{
	CHECK(loop.pending_count < PENDING_MAX);
	loop.pending[(loop.pending_first + loop.pending_count++) % PENDING_MAX] = pending;
}

/* -- timers -- */

int uv_timer_init(uv_loop_t *unused, uv_timer_t *timer)
{
	timer->flags = 0;
	timer->type = UV_TIMER;
	return 0;
}

int uv_timer_stop(uv_timer_t *timer)
{
	for (uint32_t i = 0; i < loop.timer_count; i++)
		if (loop.timers[i] == timer)
			loop.timers[i] = loop.timers[--loop.timer_count];
	return 0;
}

int uv_timer_start(uv_timer_t *timer, uv_timer_cb callback, uint64_t timeout, uint64_t repeat)
{
	uv_timer_stop(timer);
	CHECK(!(timer->flags & CLOSING) && loop.timer_count < TIMERS_MAX);
	timer->timer_cb = callback;
	timer->repeat = repeat;
	timer->timeout = (uint64_t)(virtual_now_ns + (nsec_t)timeout * NSEC_PER_MSEC);
	loop.timers[loop.timer_count++] = timer;
	return 0;
}

void virtual_hurry(void)
{
	for (uint32_t i = 0; i < loop.timer_count; i++) {
		uv_timer_t *timer = loop.timers[i];
		nsec_t at_ns = virtual_now_ns + (nsec_t)timer->repeat * NSEC_PER_MSEC;

		if (timer->repeat > 0 && (nsec_t)timer->timeout > at_ns)
			timer->timeout = (uint64_t)at_ns;
	}
}

static uv_timer_t *next_timer(void)
{
	uv_timer_t *next = NULL;

	for (uint32_t i = 0; i < loop.timer_count; i++)
		if (!next || loop.timers[i]->timeout < next->timeout)
			next = loop.timers[i];
	return next;
}

static void run_timer(uv_timer_t *timer)
{
	if (timer->repeat > 0)
		timer->timeout = (uint64_t)host_tick_ns(timer->repeat);
	else
		uv_timer_stop(timer);
	timer->timer_cb(timer);
}

/* -- signals, turns -- */

int uv_signal_init(uv_loop_t *unused, uv_signal_t *handle)
{
	handle->flags = 0;
	handle->type = UV_SIGNAL;
	return 0;
}

int uv_signal_start(uv_signal_t *handle, uv_signal_cb callback, int number)
{
	CHECK(loop.signal_count < SIGNALS_MAX);
	handle->signal_cb = callback;
	handle->signum = number;
	loop.signals[loop.signal_count++] = handle;
	return 0;
}

void virtual_signal(int number)
{
	for (uint32_t i = 0; i < loop.signal_count; i++)
		if (loop.signals[i]->signum == number)
			loop.signals[i]->signal_cb(loop.signals[i], number);
}

int uv_prepare_init(uv_loop_t *unused, uv_prepare_t *handle)
{
	handle->flags = 0;
	handle->type = UV_PREPARE;
	return 0;
}

int uv_prepare_start(uv_prepare_t *handle, uv_prepare_cb callback)
{
	CHECK(!loop.prepare);
	handle->prepare_cb = callback;
	loop.prepare = handle;
	return 0;
}

/* -- streams -- */

int uv_pipe_init(uv_loop_t *unused, uv_pipe_t *pipe, int ipc)
{
	pipe->flags = 0;
	pipe->type = UV_NAMED_PIPE;
	pipe->read_cb = NULL;
	pipe->write_queue_size = 0;
	return 0;
}

int uv_pipe_open(uv_pipe_t *pipe, uv_file file)
{
	return 0;
}

int uv_listen(uv_stream_t *stream, int backlog, uv_connection_cb callback)
{
	CHECK(!loop.listener);
	stream->connection_cb = callback;
	loop.listener = stream;
	return 0;
}

bool virtual_connect(void)
{
	if (!loop.listener)
		return false;
	loop.listener->connection_cb(loop.listener, 0);
	return true;
}

int uv_accept(uv_stream_t *listener, uv_stream_t *stream)
{
	CHECK(listener == loop.listener);
	host_accepted(stream);
	return 0;
}

int uv_fileno(const uv_handle_t *handle, uv_os_fd_t *ret)
{
	*ret = 0;
	return 0;
}

int uv_read_start(uv_stream_t *stream, uv_alloc_cb alloc, uv_read_cb read)
{
	stream->alloc_cb = alloc;
	stream->read_cb = read;
	return 0;
}

int uv_read_stop(uv_stream_t *stream)
{
	stream->read_cb = NULL;
	return 0;
}

bool virtual_is_closing(const uv_stream_t *stream)
{
	return stream->flags & CLOSING;
}

static bool reads(const uv_stream_t *stream)
{
	return stream->read_cb && !virtual_is_closing(stream);
}

bool virtual_deliver(uv_stream_t *stream, const char *data, size_t size)
{
	uv_buf_t buffer = uv_buf_init(NULL, 0);
	size_t at = 0;

	if (size == 0 && reads(stream))
		stream->read_cb(stream, UV_EOF, &buffer);
	while (at < size && reads(stream)) {
		stream->alloc_cb((uv_handle_t *)stream, 65536, &buffer);
		if (buffer.len == 0) {
			stream->read_cb(stream, UV_ENOBUFS, &buffer);
			continue;
		}
		size_t some = size - at < buffer.len ? size - at : buffer.len;

		memcpy(buffer.base, data + at, some);
		at += some;
		stream->read_cb(stream, (ssize_t)some, &buffer);
	}
	return reads(stream);
}

int uv_write(uv_write_t *write, uv_stream_t *stream, const uv_buf_t *buffers, unsigned count,
	uv_write_cb callback)
{
	CHECK(count == 1 && !virtual_is_closing(stream));
	write->cb = callback;
	write->handle = stream;
	put_pending((struct pending){.written = write});
	host_written(stream, buffers[0].base, buffers[0].len);
	return 0;
}

/* -- processes -- */

int uv_spawn(uv_loop_t *unused, uv_process_t *process, const uv_process_options_t *options)
{
	process->flags = 0;
	process->type = UV_PROCESS;
	process->exit_cb = options->exit_cb;
	return host_spawned(process, options);
}

int uv_process_kill(uv_process_t *process, int number)
{
	host_signalled(process, number);
	return 0;
}

/* -- the end of handles -- */

void uv_close(uv_handle_t *handle, uv_close_cb callback)
{
	CHECK(!(handle->flags & CLOSING));
	if (handle->type == UV_TIMER)
		uv_timer_stop((uv_timer_t *)handle);
	if (handle->type == UV_PREPARE && loop.prepare == (uv_prepare_t *)handle)
		loop.prepare = NULL;
	if ((uv_handle_t *)loop.listener == handle)
		loop.listener = NULL;
	handle->flags |= CLOSING;
	handle->close_cb = callback;
	host_closed(handle);
	put_pending((struct pending){.closed = handle});
}

static void run_pending(void)
{
	struct pending pending = loop.pending[loop.pending_first];

	loop.pending_first = (loop.pending_first + 1) % PENDING_MAX;
	loop.pending_count--;
	if (pending.written)
		pending.written->cb(pending.written,
			virtual_is_closing(pending.written->handle) ? UV_ECANCELED : 0);
	else if (pending.closed->close_cb)
		pending.closed->close_cb(pending.closed);
}

/* -- the loop -- */

bool virtual_turn(void)
{
	uv_timer_t *timer = next_timer();
	nsec_t host_ns = host_next_ns();

	if (loop.stopped)
		return false;
	if (loop.prepare)
		loop.prepare->prepare_cb(loop.prepare);
	if (loop.pending_count > 0) {
		run_pending();
	} else if (timer && (nsec_t)timer->timeout <= host_ns) {
		if (virtual_now_ns < (nsec_t)timer->timeout)
			virtual_now_ns = (nsec_t)timer->timeout;
		run_timer(timer);
	} else if (host_ns != VIRTUAL_NEVER) {
		if (virtual_now_ns < host_ns)
			virtual_now_ns = host_ns;
		host_advance();
	} else {
		return false;
	}
	return true;
}

/* Until every handle is closed: the end of the supervisor. */
int uv_run(uv_loop_t *unused, uv_run_mode mode)
{
	loop.stopped = false;
	while (loop.timer_count > 0 || loop.pending_count > 0)
		if (!virtual_turn())
			break;
	return 0;
}
