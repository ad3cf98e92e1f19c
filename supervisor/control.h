/* The listening socket, its clients, and varlink's framing. It knows no method: methods.c does.
 *
 * Nothing a client does holds up another: frames, connections, calls in a second, queued bytes and
 * idle time are bounded, one call at a time is open on a connection, and a slow reader is dropped.
 * When all places are taken, a newcomer gets that of a client without an open call: of the user
 * with the most connections, the one that was silent longest; those that never ask hold at most
 * half of the places against those that do. */
#pragma once

#include "base/error.h"
#include "proto/json.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#define CONTROL_CLIENTS_MAX 64      /* beyond it the one that least needs its place loses it */
#define CONTROL_BURST 32            /* calls at once on one connection ... */
#define CONTROL_BURST_NEW 2         /* ... on a new one ... */
#define CONTROL_CALLS_PER_SECOND 20 /* ... and then so many */
#define CONTROL_QUEUE_MAX ((size_t)1 << 20)    /* beyond it a reader is dropped */
#define CONTROL_QUEUE_SKIP ((size_t)256 << 10) /* beyond it a stream skips */
#define CONTROL_REPLY_WAIT_MS 15000            /* a reply that does not go out for so long */
#define CONTROL_IDLE_MS 60000

struct control;

/* One call from its frame to its answer. It outlives its client: an answer to one who is gone is
 * dropped. Each call is answered exactly once by call_reply or call_error, which free it. */
struct call {
	struct call *next; /* in whatever list its owner keeps */
	void *client;      /* NULL: gone */
	uid_t uid;
	pid_t pid;       /* of whoever connected */
	bool may_change; /* root, or the service's own user */
	bool more, oneway;
	const char *method;       /* "Status": within parameters' owner */
	json_t *frame;            /* owned */
	json_t *parameters;       /* borrowed from frame; an object, never NULL */
	json_t *parameters_empty; /* owned */
	int wants;                /* the owner's */
	json_t *answer;           /* the owner's, for later; owned by the call, or NULL */
};

typedef void control_handler(void *owner, struct call *call);

struct control_options {
	int passed_fd;    /* a listening socket, or -1 */
	const char *path; /* else bind here */
	control_handler *handler;
	/* The body of the stream's next reply, or NULL when nothing changed. */
	json_t *(*stream)(void *owner, uint64_t *revision);
	void *owner;
};

/* -EADDRINUSE when somebody answers at path. The folder of path is opened by name, the socket in
 * it may have any length (by /proc/self/fd). */
int control_open(struct control **ret, uv_loop_t *loop, const struct control_options *options,
	struct error *err);
/* No new clients; those with bytes under way get a second for them. Then all handles close, and the
 * loop may end. control_free after it. */
void control_close(struct control *control);
void control_free(struct control *control);

/* Takes the reference of parameters (NULL: {}). */
void call_reply(struct call *call, json_t *parameters);
/* The whole last frame, NUL included, malloc'ed: taken. */
void call_reply_frame(struct call *call, char *data, size_t size);
/* error without the interface's prefix: "Busy"; text becomes its parameter. */
void call_error(struct call *call, const char *error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* org.varlink.service.*: with one parameter, or none (name NULL). */
void call_service_error(struct call *call, const char *error, const char *name, const char *value);
/* The call stays open and is answered again and again from options->stream. */
void call_stream(struct call *call, uint64_t interval_ms);
