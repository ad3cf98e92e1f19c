/* Frames: a JSON object and a NUL. What comes in is hostile until it has passed here: its size, its
 * depth and its keys are bounded before or while the parser sees it. */
#include "proto/frame.h"

#include "base/panic.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define DEPTH_MAX 32
#define ROOM_MIN ((size_t)4096)

void frame_reader_init(struct frame_reader *reader, size_t limit)
{
	*reader = (struct frame_reader){.limit = limit};
}

void frame_reader_fini(struct frame_reader *reader)
{
	free(reader->data);
	*reader = (struct frame_reader){0};
}

int frame_reader_space(struct frame_reader *reader, char **ret_data, size_t *ret_size)
{
	size_t pending = reader->size - reader->begin;

	if (reader->begin > 0) {
		memmove(reader->data, reader->data + reader->begin, pending);
		reader->scanned -= reader->begin;
		reader->size = pending;
		reader->begin = 0;
	}
	/* Known to hold no NUL, or frames that nobody takes. */
	if ((reader->scanned == pending && pending > reader->limit) ||
		pending > 2 * reader->limit + ROOM_MIN)
		return -EMSGSIZE;
	if (reader->capacity - pending < ROOM_MIN) {
		size_t capacity = 2 * reader->capacity > pending + ROOM_MIN ? 2 * reader->capacity
									    : pending + ROOM_MIN;
		char *data = realloc(reader->data, capacity);

		if (data == NULL)
			return -ENOMEM;
		reader->data = data;
		reader->capacity = capacity;
	}
	*ret_data = reader->data + pending;
	*ret_size = reader->capacity - pending;
	return 0;
}

void frame_reader_filled(struct frame_reader *reader, size_t size)
{
	CHECK(size <= reader->capacity - reader->size);
	reader->size += size;
}

/* The parser recurses for each level, so depth is bounded before it starts. */
static bool depth_allowed(const char *text, size_t size)
{
	unsigned depth = 0;
	bool in_string = false;

	for (size_t i = 0; i < size; i++) {
		char c = text[i];

		if (in_string) {
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
		} else if (c == '"') {
			in_string = true;
		} else if (c == '{' || c == '[') {
			if (++depth > DEPTH_MAX)
				return false;
		} else if ((c == '}' || c == ']') && depth > 0) {
			depth--;
		}
	}
	return true;
}

static int frame_parse(const char *text, size_t size, json_t **ret, struct error *err)
{
	json_error_t why;

	if (!depth_allowed(text, size))
		return error_set(err, -EBADMSG, "frame: nested more than %d deep", DEPTH_MAX);
	json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES, &why);
	if (value == NULL)
		return error_set(err, -EBADMSG, "frame: byte %d: %s", why.position, why.text);
	if (!json_is_object(value)) {
		json_decref(value);
		return error_set(err, -EBADMSG, "frame: not a JSON object");
	}
	*ret = value;
	return 1;
}

int frame_next(struct frame_reader *reader, json_t **ret, struct error *err)
{
	*ret = NULL;
	if (reader->scanned == reader->size && reader->size - reader->begin <= reader->limit)
		return 0;
	char *text = reader->data + reader->begin;
	char *end = memchr(reader->data + reader->scanned, '\0', reader->size - reader->scanned);
	size_t size = end != NULL ? (size_t)(end - text) : reader->size - reader->begin;

	if (size > reader->limit) {
		reader->scanned = end != NULL ? reader->scanned : reader->size;
		return error_set(err, -EMSGSIZE, "frame: more than %zu bytes", reader->limit);
	}
	if (end == NULL) {
		reader->scanned = reader->size;
		return 0;
	}
	reader->begin += size + 1;
	reader->scanned = reader->begin;
	return frame_parse(text, size, ret, err);
}

int frame_encode(const json_t *object, char **ret_data, size_t *ret_size)
{
	if (!json_is_object(object))
		return -EINVAL;
	char *text = json_dumps(object, JSON_COMPACT);
	if (text == NULL)
		return -ENOMEM;
	*ret_data = text;
	*ret_size = strlen(text) + 1;
	return 0;
}

/* Waits for events on fd: 0, -ETIMEDOUT or -errno. */
static int wait_ready(int fd, short events, nsec_t deadline)
{
	for (;;) {
		struct pollfd poll_fd = {.fd = fd, .events = events};
		int timeout_ms = -1;

		if (deadline != 0) {
			nsec_t left = deadline - clock_monotonic_ns();
			if (left <= 0)
				return -ETIMEDOUT;
			nsec_t left_ms = left / NSEC_PER_MSEC + 1;
			timeout_ms = left_ms > 60000 ? 60000 : (int)left_ms;
		}
		int r = poll(&poll_fd, 1, timeout_ms);
		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return -errno;
	}
}

static int send_all(int fd, const char *data, size_t size, nsec_t deadline)
{
	for (size_t sent = 0; sent < size;) {
		ssize_t n = send(fd, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0) {
			sent += (size_t)n;
		} else if (errno == EAGAIN) {
			int r = wait_ready(fd, POLLOUT, deadline);
			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			return errno == EPIPE ? -ECONNRESET : -errno;
		}
	}
	return 0;
}

int frame_send(int fd, const json_t *object, nsec_t deadline)
{
	char *data;
	size_t size;
	int r = frame_encode(object, &data, &size);

	if (r < 0)
		return r;
	r = send_all(fd, data, size, deadline);
	free(data);
	return r;
}

int frame_receive(
	int fd, struct frame_reader *reader, nsec_t deadline, json_t **ret, struct error *err)
{
	for (;;) {
		char *room;
		size_t size;
		int r = frame_next(reader, ret, err);

		if (r != 0)
			return r < 0 ? r : 0;
		r = frame_reader_space(reader, &room, &size);
		if (r < 0)
			return error_set(err, r, "frame: no room for %zu bytes", reader->limit);
		ssize_t n = recv(fd, room, size, MSG_DONTWAIT);
		if (n > 0) {
			frame_reader_filled(reader, (size_t)n);
			continue;
		}
		if (n == 0)
			return error_set(err, -ECONNRESET, "the other side closed the connection");
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return error_set(err, -errno, "receive: %s", strerror(errno));
		r = wait_ready(fd, POLLIN, deadline);
		if (r < 0)
			return error_set(
				err, r, "%s", r == -ETIMEDOUT ? "no answer in time" : strerror(-r));
	}
}
