/* A machine of its own under test: systemd boots in a container (systemd-nspawn) whose /usr is this
 * machine's, read-only, whose /usr/local is this tree as `meson install` puts it, and whose /etc
 * and /var are new. Every helper fails the running cmocka test when something is not as it must be.
 */
#pragma once

#include "tests/system/rig.h"

#include <stdbool.h>
#include <sys/types.h>

#define MACHINE_OUTPUT_MAX 65536

struct machine {
	char dir[64];
	char root[96];                   /* its root folder, seen from here */
	char local[128];                 /* its /usr/local */
	char cgroup[256];                /* of its own, removed with it; "": systemd gave it one */
	pid_t nspawn, leader;            /* leader: its process 1 */
	char output[MACHINE_OUTPUT_MAX]; /* of the last machine_run */
};

/* Group setup and teardown: *state is the machine. Where it cannot be had the setup succeeds, and
 * machine_of ends each test: with a failure where CI is set, else with a skip and the reason. */
int machine_setup(void **state);
int machine_teardown(void **state);
struct machine *machine_of(void **state);

/* Runs a program inside to its end; its output goes to machine->output. The exit code. The words
 * end with NULL; see RUN. */
int machine_run(struct machine *machine, const char *const *words);
#define RUN(machine, ...) machine_run(machine, (const char *const[]){__VA_ARGS__, NULL})
/* The same, which must succeed. */
#define RUN_OK(machine, ...) machine_expect(machine, (const char *const[]){__VA_ARGS__, NULL})
void machine_expect(struct machine *machine, const char *const *words);
/* Writes a file inside; its folders are made. */
void machine_write(struct machine *machine, const char *path, const char *text, mode_t mode);

/* Whether its process 1 may raise limits and lower OOM scores: not where this machine's root lacks
 * CAP_SYS_RESOURCE. Then LimitNICE= and OOMScoreAdjust= are without effect. */
bool machine_sets_limits(const struct machine *machine);

/* -- instances -- */

/* Makes the run of ckptd@NAME, with a net of a few milliseconds a step that settings change ("key=
 * value" words). Its rig talks to the socket of the service. */
void instance_init(
	struct machine *machine, struct rig *rig, const char *name, const char *settings);
/* Lines of [Service] for this instance alone; before it is started. */
void instance_drop_in(struct machine *machine, const char *name, const char *lines);
/* instance_init, and started: trains. */
void instance_start(
	struct machine *machine, struct rig *rig, const char *name, const char *settings);
/* A property of a unit, as systemctl shows it. */
const char *unit_property(struct machine *machine, const char *unit, const char *property);
/* Waits until it is this. */
void unit_wait(struct machine *machine, const char *unit, const char *property, const char *value);
/* The service's main process, seen from here; 0: none. */
pid_t instance_pid(struct machine *machine, const char *name);
/* Waits for a main process that is not this one. */
pid_t instance_wait_pid(struct machine *machine, const char *name, pid_t not_this);
