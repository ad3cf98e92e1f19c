/* sd_notify by hand: one datagram to $NOTIFY_SOCKET, and what systemd passes at the start (sockets
 * and stored descriptors). Without systemd every function does nothing. */
#pragma once

#include "base/clock.h"
#include "base/error.h"

#include <stdbool.h>

#define NOTIFY_PASSED_MAX 16
#define NOTIFY_NAME_MAX 64

struct notify {
	int fd; /* -1: nobody listens */
	char address[108];
	unsigned address_size; /* of the sockaddr */
	nsec_t watchdog_ns;    /* 0: not asked for */
};

struct notify_passed {
	int count;
	struct {
		int fd;
		char name[NOTIFY_NAME_MAX];
	} fds[NOTIFY_PASSED_MAX];
};

/* Reads NOTIFY_SOCKET and WATCHDOG_USEC (for our pid), and takes them out of the environment so
 * that no child speaks for us. -EINVAL for an address that cannot be one. */
int notify_init(struct notify *notify, struct error *err);
void notify_fini(struct notify *notify);

/* LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID; taken out of the environment; close-on-exec is set.
 * Beyond the room descriptors are closed. */
void notify_take_passed(struct notify_passed *ret);

/* "READY=1\nSTATUS=..." Never blocks; a full queue loses the message. */
int notify_send(struct notify *notify, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* FDSTORE=1 with a name; FDSTOREREMOVE=1. */
int notify_store_fd(struct notify *notify, const char *name, int fd);
int notify_remove_fd(struct notify *notify, const char *name);
