/* A Debian 12 with systemd and the installed service in QEMU (software emulation), for tests: its
 * disks, its boots, commands in it, and cuts of its power. Every helper fails the running cmocka
 * test when something is not as it must be, and shows the console. */
#pragma once

#include "base/clock.h"
#include "proto/json.h"
#include "tests/vm/disk.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define VM_STEPS 20   /* of the run in the image */
#define VM_INTERVAL 2 /* steps between its saves */

struct vm {
	pid_t qemu; /* 0: it is off */
	int port;   /* guest_agent.c */
	char console[DISK_PATH_MAX];
	const char *disk, *log; /* of the run; log: of the disk's writes, may be NULL */
	bool no_sync;           /* guest_nosync.c in all of its processes */
	uint32_t boots, retries;
	char powered[CLOCK_TEXT_SIZE]; /* when it came on; the guest has our clock */
};

/* NULL, or what this machine does not give. */
const char *vm_lacks(void);
/* Makes what is needed to boot where it is not there or old, and a nest for disks. NULL, or what is
 * not to be had. */
const char *vm_prepare(void);
/* A disk with an initialised run that never trained. */
void vm_make_disk(const char *path);
/* The power comes on; returns when the guest can be talked to. One retry. */
void vm_boot(struct vm *vm);
/* The power comes on, and nothing is waited for. */
void vm_power_on(struct vm *vm);
/* Until the machine's processors worked for so long: however busy this one is, the guest is then
 * about where it always is. A guest that is idle is not waited for. */
void vm_work(struct vm *vm, nsec_t used);
/* The power goes. */
void vm_cut(struct vm *vm);
/* Words apart by blanks; the exit code. ret_output (may be NULL) is malloc'ed. */
int vm_try(struct vm *vm, char **ret_output, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The same, and it must end with 0. */
void vm_run(struct vm *vm, const char *command);
/* NULL while nobody answers. */
json_t *vm_status(struct vm *vm);
/* Where the newest trainer of this boot, by an event after the event `after`, went on: its step and
 * from what ("memory", "checkpoint", "scratch"); *ret_id its event. Waits. */
int64_t vm_resumed(struct vm *vm, int64_t after, int64_t *ret_id, char from[16]);
/* Until the run is finished. */
void vm_wait_finished(struct vm *vm);
