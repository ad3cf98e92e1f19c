/* A test as the supervisor of one worker at a time: the descriptors, frames and memory of
 * proto/link.h, played with the real ckptd-worker. Every helper fails the running cmocka test when
 * something is not as it must be. */
#pragma once

#include "base/config.h"
#include "base/digest.h"
#include "base/error.h"
#include "proto/frame.h"
#include "proto/json.h"
#include "proto/link.h"
#include "proto/progress.h"
#include "proto/state.h"
#include "store/run.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define TAIL_MAX 4096

/* A run and what the supervisor holds of it. */
struct play {
	char dir[64];
	int run_fd, lock_fd, state_fd, progress_fd;
	struct config config;
	struct run run;
	struct state state; /* with slots */
	struct progress *progress;
	uint64_t section_bytes;
	struct digest model_digest;
	bool created;                       /* step 0 is allowed */
	bool lacks_landlock, lacks_seccomp; /* workers run as on a kernel without them */
};

struct child {
	pid_t pid;
	int link, stderr_fd;
	struct frame_reader reader;
	char failed[ERROR_TEXT_MAX];
};

/* A net of milliseconds a step: 8 x 8 pixels, 24 steps, batch 4 in micro-batches of 2. */
struct config play_tiny_config(void);
void remove_tree(const char *path);

/* A run folder under /tmp, locked, with a progress page. */
void play_open(struct play *play, const struct config *config);
void play_close(struct play *play);
/* The role prepare; then state memory of its sizes. */
void play_prepare(struct play *play);
void play_make_memory(struct play *play, uint32_t slots);
void play_drop_memory(struct play *play);
/* All three. */
void play_begin(struct play *play, const struct config *config, uint32_t slots);

/* Starts a role; extra (stolen, may be NULL) adds members to the start frame. */
struct child play_start(struct play *play, const char *role, const char *resume, json_t *extra);
/* Starts a trainer and returns when it is ready, from what it must be; *ret_step (may be NULL) is
 * where it begins. */
struct child play_trainer(
	struct play *play, const char *resume, const char *from, uint64_t *ret_step);
void play_wait_step(struct play *play, uint64_t step);
/* A trainer until steps_total. */
void play_to_end(struct play *play, const char *resume, const char *from);
/* Kills a trainer as the machine would, and does what the supervisor does after its waitpid. */
void play_kill(struct play *play, struct child *child);
/* Pins, saves at full speed, unpins: the `saved` member. */
json_t *play_save(struct play *play);

/* The next frame with this member (a new reference), NULL at the end of the link. */
json_t *child_frame(struct child *child, const char *name);
/* Waits for the end; a signal gives minus its number. The last of stderr goes to tail. */
int child_end(struct child *child, char tail[TAIL_MAX]);
/* The seccomp mode of a process as the kernel says it: 0 none, 2 a filter; -1 where it says none.
 */
int process_seccomp(pid_t pid);
void child_expect_end(struct child *child, int code);

/* Digest of the four sections and the counters of the newest record, at steps_total. */
struct digest play_digest(const struct play *play);
void assert_same_bits(const struct digest *a, const struct digest *b);
