/* What the parts of the chaos test share: the run under test, its kinds of faults, what is known of
 * its checkpoints, and the page that the checkers read all the time. */
#pragma once

#include "tests/system/rig.h"

#include "base/clock.h"

#include <stdatomic.h>

#define KEEP_LAST 6
#define KEPT_MAX 8192
#define HANG_TIMEOUT 10 /* seconds; twice that for a saver */

enum fault {
	KILL_TRAINER,
	SEGV_TRAINER,
	ABRT_TRAINER,
	PAUSE_TRAINER,
	STOP_TRAINER,
	KILL_SAVER,
	SEGV_SAVER,
	ABRT_SAVER,
	PAUSE_SAVER,
	STOP_SAVER,
	KILL_SUPERVISOR,
	SEGV_SUPERVISOR,
	ABRT_SUPERVISOR,
	PAUSE_SUPERVISOR,
	STOP_SUPERVISOR,
	RESTART_SUPERVISOR,
	KILL_STARTING,
	KILL_PREPARER,
	FLIP_RUNNING,
	TRUNCATE_RUNNING,
	DELETE_RUNNING,
	FLIP_BETWEEN,
	TRUNCATE_BETWEEN,
	DELETE_BETWEEN,
	DELETE_CATALOG_RUNNING,
	BREAK_CATALOG_RUNNING,
	DELETE_CATALOG,
	BREAK_CATALOG,
	DELETE_HISTORY_RUNNING,
	BREAK_HISTORY_RUNNING,
	DELETE_HISTORY,
	BREAK_HISTORY,
	DROP_HISTORY_TABLE,
	FILL_DISK,
	KILL_ON_FULL_DISK,
	STARVE_TRAINER,
	LIMIT_TRAINER,
	LIMIT_SAVER,
	FAULT_COUNT,
};

/* What is known of a checkpoint that was verified once. */
enum fate {
	WHOLE,
	DAMAGED, /* on purpose, and nobody has noticed */
	NOTICED,
	GONE, /* deleted by retention */
};

struct kept {
	char id[64];
	int64_t step;
	enum fate fate;
	enum fault by;
	uint64_t inode;
	int64_t changed_ns; /* with inode: of the damaged file; another one was written again */
};

/* Shared with the checkers (watch.c), which are processes of their own. */
struct watch {
	_Atomic int supervisor; /* pid, 0: none */
	_Atomic bool answers;   /* it has to, now */
	_Atomic uint64_t epoch; /* of the two above */
	_Atomic int64_t floor;  /* the newest verified checkpoint that is whole */
	_Atomic bool over;
	_Atomic uint64_t scans, questions, longest_ms;
	_Atomic int bad; /* 2: violation is written */
	char violation[256];
};

struct chaos {
	struct rig rig;
	unsigned seed;
	uint64_t draws; /* of the fault that is being made */
	int64_t steps;
	uint64_t attempted[FAULT_COUNT], effective[FAULT_COUNT], total;
	int64_t redone, hangs, step_seen;
	nsec_t begun_ns;
	nsec_t longest_ns; /* from a fault to a new step */
	struct kept kept[KEPT_MAX];
	unsigned kept_count;
	unsigned spared; /* verified ones that retention must leave */
	struct watch *watch;
	pid_t watchers[2];
	char group[96]; /* the memory control group, "" when there is none */
	bool group_is_v2;
};

/* -- test_chaos.c -- */

/* The next draw of this fault: the same for the same seed and place in the plan. */
unsigned chaos_below(struct chaos *chaos, unsigned bound);
/* Between two faults of the trainer: one step that was never finished before. */
void chaos_let_a_step_finish(struct chaos *chaos);
bool chaos_is_resting(const json_t *status, int64_t value); /* trains, or has finished */
off_t chaos_log_end(const struct chaos *chaos);
/* The first line behind mark that contains the text; waits so long. */
bool chaos_log_says(
	const struct chaos *chaos, off_t mark, const char *text, nsec_t wait_ns, char line[512]);

/* -- watch.c -- */

void watch_begin(struct chaos *chaos);
void watch_end(struct chaos *chaos);
/* Fails the test when a checker has seen something. */
void watch_expect_good(const struct chaos *chaos);
/* pid 0: nobody has to answer. */
void watch_supervisor(struct chaos *chaos, pid_t pid, bool answers);
/* The state letter of a process that is a worker in this role, or with role NULL any; 0: none. */
char watch_state(pid_t pid, const char *role);

/* -- kept.c -- */

/* Looks at the catalog; what was verified and is whole must still be there, unless retention may
 * have taken it. False: the catalog does not answer. */
bool kept_update(struct chaos *chaos);
/* The whole verified ones, newest first: indices into chaos->kept. */
size_t kept_whole(const struct chaos *chaos, unsigned found[KEPT_MAX]);
bool kept_is_damage_hidden(const struct chaos *chaos);
/* Every one reads as it was written. */
void kept_expect_all_whole(struct chaos *chaos);
bool damage_checkpoint(struct chaos *chaos, enum fault fault);

/* -- processes.c -- */

void supervisor_start(struct chaos *chaos);
/* Starts, and expects that it goes on from nothing older than the newest whole one. */
void supervisor_start_and_check(struct chaos *chaos, int64_t step_before);
/* By a signal, or kindly by 0: the exit code, or minus the signal. */
int supervisor_end(struct chaos *chaos, int number);
bool fault_of_trainer(struct chaos *chaos, enum fault fault);
bool fault_of_saver(struct chaos *chaos, enum fault fault);
bool fault_of_supervisor(struct chaos *chaos, enum fault fault);
/* Spoils the last save of a pause, because training would go far until a saver is found to hang:
 * whether that could be done and was the saver's death, in these words of the log. */
bool saver_spoil(struct chaos *chaos, bool (*spoil)(pid_t pid), const char *death);
/* The trainer, somewhere inside a step. */
pid_t trainer_inside_a_step(struct chaos *chaos);
/* It went on from memory, at no older step than that one. */
void trainer_expect_no_step_lost(struct chaos *chaos, off_t mark, int64_t step);

/* -- storage.c -- */

bool fault_of_catalog(struct chaos *chaos, enum fault fault);
bool fault_of_history(struct chaos *chaos, enum fault fault);
bool fault_of_disk(struct chaos *chaos, enum fault fault);

/* -- hunger.c -- */

void hunger_begin(struct chaos *chaos);
void hunger_end(struct chaos *chaos);
void hunger_add_supervisor(struct chaos *chaos);
bool fault_of_memory(struct chaos *chaos, enum fault fault);
