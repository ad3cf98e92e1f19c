/* ckptctl: what every verb gets, and how it ends. Verbs print to ctl->out, and one line to ctl->err
 * when they fail; nothing here runs inside the daemon, and nothing needs more than the caller's own
 * rights. */
#pragma once

#include "base/clock.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes; `ckptctl run` also hands on the code of a ckptd that ended early. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1, /* the daemon, or the work here, said no: one line says why */
	CTL_USAGE = 2,
	CTL_NOT_RUNNING = 3, /* no daemon there */
	CTL_DENIED = 4,      /* not permitted */
	CTL_TIMEOUT = 5,
};

struct ctl {
	const char *socket;    /* --socket, or NULL */
	const char *instance;  /* --instance: NAME of the service ckptd@NAME, or NULL */
	const char *state_dir; /* --state, or NULL */
	bool json;
	nsec_t timeout_ns; /* 0: the verb's own */
	FILE *out, *err;
};

/* The whole program but for exit(). */
int ctl_main(int argc, char **argv, FILE *out, FILE *err);

/* Prints "ckptctl: line" and gives the exit code that belongs to the negative errno. */
int ctl_fail(const struct ctl *ctl, int code, const struct error *err);
