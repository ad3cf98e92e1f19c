/* See worker_link.h. */
#include "daemon/worker_link.h"

#include "base/panic.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SEND_TIMEOUT_NS (30 * NSEC_PER_SEC)

void worker_link_init(struct worker_link *link, int fd)
{
	memset(link, 0, sizeof(*link));
	link->fd = fd;
	frame_reader_init(&link->reader, FRAME_LINK_MAX);
}

void worker_link_fini(struct worker_link *link)
{
	frame_reader_fini(&link->reader);
	json_decref(link->reload);
	link->reload = NULL;
}

int worker_link_send(struct worker_link *link, json_t *object)
{
	AUTO_JSON owned = object;

	if (!owned)
		return -ENOMEM;
	return frame_send(link->fd, owned, clock_monotonic_ns() + SEND_TIMEOUT_NS);
}

/* One command from the supervisor; unknown ones are a newer supervisor's and are ignored. */
static void take(struct worker_link *link, const json_t *frame)
{
	json_t *reload = json_object_get(frame, "reload");

	if (json_object_get(frame, "stop"))
		link->stop = true;
	if (json_is_object(reload)) {
		json_decref(link->reload);
		link->reload = json_incref(reload);
	}
}

/* 1: bytes came, 0: none there. */
static int fill(struct worker_link *link, struct error *err)
{
	char *data;
	size_t size;
	ssize_t n;
	int r = frame_reader_space(&link->reader, &data, &size);

	if (r < 0)
		return error_set(err, r, "the supervisor sent a frame that is too large");
	do
		n = recv(link->fd, data, size, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n <= 0)
		return error_set(err, -ECONNRESET, "the supervisor has closed the link");
	frame_reader_filled(&link->reader, (size_t)n);
	return 1;
}

static int take_buffered(struct worker_link *link, struct error *err)
{
	json_t *frame;
	int r;

	while ((r = frame_next(&link->reader, &frame, err)) > 0) {
		take(link, frame);
		json_decref(frame);
	}
	return r;
}

int worker_link_poll(struct worker_link *link, int timeout_ms, struct error *err)
{
	struct pollfd ready = {.fd = link->fd, .events = POLLIN};
	/* A command that came right behind the start frame is in the reader already. */
	int r = take_buffered(link, err);

	if (r < 0)
		return r;
	if (timeout_ms > 0)
		poll(&ready, 1, timeout_ms);
	while ((r = fill(link, err)) > 0) {
		r = take_buffered(link, err);
		if (r < 0)
			return r;
	}
	return r;
}

void worker_event(struct worker_link *link, const char *kind, const char *level, uint64_t step,
	const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	/* An event that cannot be told is lost; a supervisor that is gone takes the worker with it.
	 */
	(void)worker_link_send(link,
		json_pack("{s:{s:s,s:s,s:I,s:s}}", "event", "kind", kind, "level", level, "step",
			(json_int_t)step, "text", text));
}
