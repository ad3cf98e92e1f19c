/* A run's folder, made or found, from the command line: what `init` and `run` share. */
#pragma once

#include "base/config.h"
#include "ctl/args.h"
#include "ctl/ctl.h"

#include <limits.h>
#include <stdbool.h>

struct setup {
	struct config config;
	char config_path[PATH_MAX]; /* "": none */
	char dir[PATH_MAX];         /* absolute, once setup_folder has made it */
	/* How a folder without a run gets one; NULL: a new one. */
	int (*make)(void *context, const char *dir, int run_fd, const struct config *config,
		struct error *err);
	void *context;
};

/* --config FILE (or, without it, that of --instance, or what the run was last trained with), then
 * --set in order, then the folder: --state, that of --instance, else the configuration's state_dir.
 * Errors name file:line or --set. */
int setup_read(
	const struct ctl *ctl, const struct args *args, struct setup *ret, struct error *err);
/* Opens the folder, made where missing; a run is made in it when there is none. *ret_created tells.
 * Returns the folder's descriptor. */
int setup_folder(struct setup *setup, bool *ret_created, struct error *err);
/* Takes back a run that setup_folder has just made and that never came to a checkpoint: the next
 * command may choose other identity keys. */
void setup_undo(int run_fd);
/* As root in a folder that belongs to the service's user, or is to be made in one: what is made
 * there must be that user's. */
int setup_become_owner(const char *dir, struct error *err);
void setup_become_self(void);
