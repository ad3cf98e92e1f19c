/* A worker without a model: it speaks proto/link.h, commits real steps into the real state memory
 * and writes real checkpoints, but a step is only a number written over a block. The test program
 * is its own worker: `supervisor` starts it again with a role as its argument.
 *
 * What it does wrong is in the file RUN/behave, lines of "key value", read at each start:
 *     step_us N         duration of a step
 *     die_step N        SIGABRT to itself instead of finishing step N
 *     exit_step N, exit_code N    exit instead of finishing step N (as die_step, not on a branch
 *                       that skips it)
 *     poison N          SIGABRT to itself right after starting at step N
 *     hang_step N       stops moving before step N
 *     save_exit N       saver: exit with this code
 *     save_kill N       saver: SIGKILL to itself when its attempt is at most N
 *     save_wait_ms N    saver: waits first
 *     save_stale N      saver: says that the weights are those of the one before
 *     prepare_exit N    preparer: exit with this code
 *     prepare_wait_ms N preparer: waits first
 *     finish_step N     trainer: says at step N that all steps are done
 *     babble N          trainer: sends what is no message
 *     skip_step N       counts the update of step N as skipped
 *     scrub_wait_ms N   scrub, verify: waits before each checkpoint
 *     scrub_kill N      scrub, verify: SIGKILL to itself after the Nth */
#pragma once

#include "base/tensor_table.h"

#include <stdbool.h>

#define FAKE_SECTION_BYTES SECTION_ALIGN

/* True when argv asks for a role; *ret is then the exit code. */
bool fake_worker(int argc, char **argv, int *ret);
