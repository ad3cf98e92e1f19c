/* The verbs. One row of the table in verbs.c makes a verb: its options, its help, its completion.
 */
#pragma once

#include "ctl/args.h"
#include "ctl/ctl.h"
#include "proto/json.h"

struct verb {
	const char *name;
	const char *synopsis; /* what follows the name */
	const char *options;  /* as args.h; the global ones are added */
	int positional_min, positional_max;
	int (*run)(struct ctl *ctl, const struct args *args); /* an exit code */
	const char *help;
};

/* One call of the daemon: finds, connects, asks, prints the line when it fails. timeout_seconds 0:
 * waits as long as it takes; --timeout overrides. CTL_OK and *ret (the caller's), or an exit code.
 */
int ctl_call(const struct ctl *ctl, const char *method, json_t *parameters, double timeout_seconds,
	json_t **ret);
/* JSON for programs: as it came, indented. */
int ctl_print_json(const struct ctl *ctl, const json_t *value);
/* A usage error: its line, and where the help is. */
int ctl_usage(const struct ctl *ctl, const char *verb, const struct error *err);

/* look.c */
int verb_status(struct ctl *ctl, const struct args *args);
int verb_top(struct ctl *ctl, const struct args *args);
int verb_checkpoints(struct ctl *ctl, const struct args *args);
int verb_events(struct ctl *ctl, const struct args *args);
int verb_outages(struct ctl *ctl, const struct args *args);
int verb_config(struct ctl *ctl, const struct args *args);
/* change.c */
int verb_save(struct ctl *ctl, const struct args *args);
int verb_pause(struct ctl *ctl, const struct args *args);
int verb_resume(struct ctl *ctl, const struct args *args);
int verb_stop(struct ctl *ctl, const struct args *args);
int verb_rollback(struct ctl *ctl, const struct args *args);
int verb_restart(struct ctl *ctl, const struct args *args);
int verb_keep(struct ctl *ctl, const struct args *args);
int verb_sample(struct ctl *ctl, const struct args *args);
int verb_reload(struct ctl *ctl, const struct args *args);
int verb_power_fail(struct ctl *ctl, const struct args *args);
int verb_power_ok(struct ctl *ctl, const struct args *args);
/* verify.c */
int verb_verify(struct ctl *ctl, const struct args *args);
int verb_scrub(struct ctl *ctl, const struct args *args);
/* inspect.c, export.c, fsck.c, init.c, keygen.c, run.c: here, with the caller's rights */
int verb_inspect(struct ctl *ctl, const struct args *args);
int verb_export(struct ctl *ctl, const struct args *args);
int verb_fsck(struct ctl *ctl, const struct args *args);
int verb_keygen(struct ctl *ctl, const struct args *args);
int verb_mirror_init(struct ctl *ctl, const struct args *args);
int verb_init(struct ctl *ctl, const struct args *args);
int verb_run(struct ctl *ctl, const struct args *args);
