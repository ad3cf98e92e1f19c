/* A test as the user of one ckptd: its run folder, the daemon (forked from the test, with the test
 * program itself as its worker: fake_worker.h), and a client. Every helper fails the running test
 * when something is not as it must be. */
#pragma once

#include "base/clock.h"
#include "proto/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#define PATIENCE (60 * NSEC_PER_SEC) /* never waited for when all is well */

struct fixture {
	char dir[128];
	pid_t ckptd; /* 0: not running */
	const char *sets[8];
	uint32_t set_count;
};

#define SIM_TEST(name) cmocka_unit_test_setup_teardown(name, sim_setup, sim_teardown)

/* The main of a test program, which is also the fake worker; an argument chooses tests. */
int sim_main(int argc, char **argv, const struct CMUnitTest *tests, size_t count);

/* A new run in a folder of its own. */
int sim_setup(void **state);
/* The exit code, or 256 and the signal. */
int sim_wait_for_end(struct fixture *fx);
int sim_teardown(void **state);
/* In a forked child: the daemon, to its end. */
_Noreturn void sim_run_ckptd(const struct fixture *fx);
void sim_start(struct fixture *fx);
/* What the fake worker does from its next start on. */
void sim_behave(struct fixture *fx, const char *text);
/* The configuration file, from the next start or reload on. */
void sim_configure(struct fixture *fx, const char *text);
/* One more --set for the next start. */
void sim_set(struct fixture *fx, const char *text);
/* -1 when there is nobody yet. */
int sim_try_connect(const struct fixture *fx);
int sim_connect_now(const struct fixture *fx);
/* One call on an open connection; takes the frame. The whole reply. */
json_t *sim_ask(int fd, json_t *call);
void sim_send(int fd, json_t *call);
json_t *sim_take(int fd);
/* The same by name on a connection of its own; takes parameters. */
json_t *sim_call(const struct fixture *fx, const char *method, json_t *parameters);
void sim_call_good(const struct fixture *fx, const char *method, json_t *parameters);
/* Saves, waits, and gives the name. */
void sim_save(const struct fixture *fx, char id[64]);
json_t *sim_status(const struct fixture *fx);
int64_t sim_number(const json_t *status, const char *key);
int64_t sim_number_of(const struct fixture *fx, const char *key);
/* Until state is the word, step and restarts at least these; the status then. */
json_t *sim_await(const struct fixture *fx, const char *word, int64_t step, int64_t restarts);
void sim_await_only(const struct fixture *fx, const char *word, int64_t step, int64_t restarts);
pid_t sim_worker_pid(const json_t *status);
int64_t sim_newest_step(const json_t *status);
/* Whether the history has an event of this kind. */
bool sim_told(const struct fixture *fx, const char *kind);
/* Waits until the daemon's log has these words; false when it never does. */
bool sim_log_says(const struct fixture *fx, const char *words);
