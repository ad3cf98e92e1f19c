/* The threads of supervisor/ledger.h in virtual time: the jobs of all ledgers in one queue, one
 * after another. ledger_init, ledger_give and ledger_fini are wrapped; what a job does and how long
 * it takes is the host's. */
#pragma once

#include "supervisor/ledger.h"
#include "tests/virtual/loop.h"

/* When the first job is done; VIRTUAL_NEVER without one. */
nsec_t ledger_next_ns(void);
/* The first job is done, and answered. */
void ledger_advance(void);
/* With the process: what was not done is not done. */
void ledger_lose(void);

/* -- the host's -- */

/* When the job that is now the first is done; idle: it found the queue empty. */
nsec_t host_job_ns(bool idle);
void host_job(struct ledger_job *job);
