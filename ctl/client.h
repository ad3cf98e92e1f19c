/* The varlink client: finds the daemon's socket, calls, streams. Blocking, with deadlines. */
#pragma once

#include "base/clock.h"
#include "base/error.h"
#include "ctl/ctl.h"
#include "proto/frame.h"
#include "proto/json.h"

#include <stdbool.h>

#define SOCKET_NAME "ckptd.sock"
#define STATE_DIR_DEFAULT "ckptd-state"

struct client {
	int fd; /* -1: closed */
	struct frame_reader reader;
};

/* Where the daemon should be: --socket; that of --instance; --state DIR/ckptd.sock; $CKPTD_SOCKET;
 * ./ckptd-state/ckptd.sock when that folder exists; the service's only instance. -ENAMETOOLONG, and
 * the errors of instance_socket. */
int client_find(const struct ctl *ctl, char *path, size_t size, struct error *err);

/* Connects. -ENOTCONN: no socket there; -ECONNREFUSED: nobody behind it (both lines say where it
 * looked); -EACCES. */
int client_open(const char *path, struct client *ret, struct error *err);
/* The same without waiting for a daemon that takes no more connections now: -ETIMEDOUT. */
int client_open_now(const char *path, struct client *ret, struct error *err);
void client_close(struct client *client);

/* One call of io.ckptd.Training.METHOD. parameters is stolen, NULL is {}. *ret: the reply's
 * parameters, the caller's reference. deadline as clock_monotonic_ns, 0 none.
 * -EREMOTEIO: the daemon said no, with its line; -EPERM: not permitted; -ENOSYS: another version;
 * -ETIMEDOUT; -ECONNRESET. */
int client_call(struct client *client, const char *method, json_t *parameters, nsec_t deadline,
	json_t **ret, struct error *err);

/* The two halves of a call, for streams (more) and for loops that wait for several things. */
int client_send(struct client *client, const char *method, json_t *parameters, bool more,
	nsec_t deadline, struct error *err);
int client_receive(struct client *client, nsec_t deadline, json_t **ret, struct error *err);
/* client_receive without waiting: -EAGAIN when there is no whole reply yet. */
int client_poll(struct client *client, json_t **ret, struct error *err);
