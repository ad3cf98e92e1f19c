/* The worker's end of the link (proto/link.h). Sends are blocking with a deadline: the supervisor
 * reads promptly or is gone. Between steps the trainer polls without waiting. */
#pragma once

#include "base/clock.h"
#include "base/error.h"
#include "proto/frame.h"
#include "proto/json.h"

#include <stdbool.h>
#include <stdint.h>

struct worker_link {
	int fd;
	struct frame_reader reader;
	bool stop;      /* `stop` has come */
	json_t *reload; /* the newest `reload` not taken yet; owned */
};

void worker_link_init(struct worker_link *link, int fd);
void worker_link_fini(struct worker_link *link);

/* Steals object (NULL: -ENOMEM). */
int worker_link_send(struct worker_link *link, json_t *object);
/* Waits up to timeout_ms (0: not at all) for commands and notes what has come. -ECONNRESET when
 * the supervisor is gone, -EBADMSG for what is not a frame. */
int worker_link_poll(struct worker_link *link, int timeout_ms, struct error *err);

/* One `event` frame. level: "info", "warning" or "error". */
void worker_event(struct worker_link *link, const char *kind, const char *level, uint64_t step,
	const char *fmt, ...) __attribute__((format(printf, 5, 6)));
