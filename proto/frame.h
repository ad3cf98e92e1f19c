/* Framing of varlink and of the worker's link: a JSON object in UTF-8, then one NUL byte. Pure
 * bytes-in, objects-out; no I/O on loops here. Limits: 64 KiB a frame from a client, 1 MiB between
 * supervisor and worker; nesting 32 deep; duplicate keys and NaN are refused. */
#pragma once

#include "base/clock.h"
#include "base/error.h"
#include "proto/json.h"

#include <stddef.h>

#define FRAME_CLIENT_MAX ((size_t)64 << 10)
#define FRAME_LINK_MAX ((size_t)1 << 20)
#define FRAME_REPLY_MAX ((size_t)8 << 20) /* what a client accepts from the server */

struct frame_reader {
	char *data; /* owned */
	size_t size, capacity, limit;
	size_t begin;   /* frames before this have been taken */
	size_t scanned; /* no NUL between begin and this */
};

void frame_reader_init(struct frame_reader *reader, size_t limit);
void frame_reader_fini(struct frame_reader *reader);
/* Room for at least 4 KiB more: where the next bytes go. -EMSGSIZE when a frame is over the limit
 * or frames pile up untaken, -ENOMEM. */
int frame_reader_space(struct frame_reader *reader, char **ret_data, size_t *ret_size);
void frame_reader_filled(struct frame_reader *reader, size_t size);
/* The next whole object: 1 and *ret (the caller's reference), 0 when more bytes are needed,
 * -EBADMSG for what is not one JSON object, -EMSGSIZE for one over the limit. After an error the
 * stream is of no more use: close it. */
int frame_next(struct frame_reader *reader, json_t **ret, struct error *err);

/* The bytes of one frame, NUL included, malloc'ed. -ENOMEM, -EINVAL. */
int frame_encode(const json_t *object, char **ret_data, size_t *ret_size);

/* Blocking helpers for workers and ckptctl: a stream socket, a deadline (monotonic; 0 = none).
 * -ETIMEDOUT, -ECONNRESET at the end of the stream. */
int frame_send(int fd, const json_t *object, nsec_t deadline);
int frame_receive(
	int fd, struct frame_reader *reader, nsec_t deadline, json_t **ret, struct error *err);
