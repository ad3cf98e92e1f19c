/* Looking on: the live view on a terminal, plain lines elsewhere, until there is nothing more to
 * see or the person leaves. A daemon that goes away is waited for and asked again, but with `run`,
 * whose business it is to start it. */
#pragma once

#include "ctl/ctl.h"
#include "ctl/status_text.h"

#include <signal.h>
#include <stdbool.h>

enum watch_end {
	WATCH_QUIT,     /* the person left; the run goes on */
	WATCH_FINISHED, /* steps_total is reached (only with run) */
	WATCH_STOPPED,  /* we asked it to end and it has closed the connection (only with run) */
	WATCH_SILENT,   /* nobody answered for too long (without run); err says so */
	WATCH_LOST,     /* the connection is gone, or was refused; err says why */
};

struct watch_options {
	const char *socket;
	bool plain;    /* lines even on a terminal */
	bool run;      /* Ctrl-C saves and stops the run */
	int signal_fd; /* from watch_signals; 0: its own */
};

/* Blocks the signals that the watch handles and returns a descriptor that reads them; old gets the
 * mask to give to children and to restore. -errno. */
int watch_signals(sigset_t *ret_old);

/* last (may be NULL) gets the last status seen. */
enum watch_end watch(const struct ctl *ctl, const struct watch_options *options,
	struct look *ret_last, struct error *err);
