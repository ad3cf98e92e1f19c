/* The life of the service as a table: (state, event) -> (state, actions). Pure: no system call, no
 * loop, no clock; supervisor.c performs the actions and feeds the events.
 *
 *                 no run               run found
 *   STARTING ------------> WAITING ------------------+
 *      |  run found                                  v
 *      +----------------------------------------> PREPARING --(wanted)--> PAUSED, STOPPED
 *                                                    |    \--(complete)--> FINISHING
 *                                  +-----------------+
 *                                  v        start
 *        +---died, decide--- RESTARTING ------------> TRAINING --finished--> FINISHING -> FINISHED
 *        |                         ^                   |  |  |
 *        +-------------------------+-------died--------+  |  +--rollback--> ROLLING -> RESTARTING
 *                                                         |  +--renew-----> RENEWING -> RESTARTING
 *                       pause, stop, exit: the trainer is asked to end, then the last save
 *                                                         v
 *                              PAUSING -> PAUSED    STOPPING -> STOPPED    EXITING -> ENDED
 *
 *   FAILED: a person must act; retried slowly for ever.
 *
 * What each state promises is fsm_check(): there is a trainer process in TRAINING, ROLLING and
 * RENEWING, may be one in PAUSING, STOPPING and EXITING, and never one in any other state. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum fsm_state {
	FSM_STARTING,
	FSM_WAITING,
	FSM_PREPARING,
	FSM_RESTARTING,
	FSM_TRAINING,
	FSM_ROLLING,
	FSM_RENEWING,
	FSM_PAUSING,
	FSM_PAUSED,
	FSM_STOPPING,
	FSM_STOPPED,
	FSM_FINISHING,
	FSM_FINISHED,
	FSM_FAILED,
	FSM_EXITING,
	FSM_ENDED,
	FSM_STATE_COUNT,
};

enum fsm_event {
	FSM_RUN_FOUND,
	FSM_RUN_MISSING,
	FSM_PREPARED_RUN,     /* and run is wanted */
	FSM_PREPARED_PAUSED,  /* and a pause is wanted */
	FSM_PREPARED_STOPPED, /* and a stop is wanted */
	FSM_COMPLETE,         /* prepared, and there is nothing left to train */
	FSM_START,            /* the decision is durable and its delay is over */
	FSM_FINISHED_STEPS,   /* the trainer reached steps_total and is gone */
	FSM_DIED,             /* unplanned end of the trainer, or of the preparer */
	FSM_GONE,             /* planned end of the trainer (or of the preparer) */
	FSM_SAVE_OVER, /* the last save is verified, or was given up, or there is none to do */
	FSM_CONFIG,    /* only a person can go on from here */
	FSM_RETRY,
	FSM_PAUSE,
	FSM_RESUME,
	FSM_STOP,
	FSM_EXIT,
	FSM_ROLLBACK,
	FSM_RENEW,  /* another trainer instead of this one, between two steps */
	FSM_FORKED, /* the new branch is durable, or could not be made */
	FSM_EVENT_COUNT,
};

enum fsm_action {
	FSM_DO_POLL = 1 << 0,    /* look for the run again in a while */
	FSM_DO_PREPARE = 1 << 1, /* spawn the preparer */
	FSM_DO_SCHEDULE =
		1 << 2,         /* see that there is state memory, wait the delay, then FSM_START */
	FSM_DO_SPAWN = 1 << 3,  /* spawn the trainer */
	FSM_DO_DECIDE = 1 << 4, /* ask the ladder, then as SCHEDULE */
	FSM_DO_HALT = 1 << 5,   /* ask the trainer to end; FSM_GONE follows */
	FSM_DO_SAVE = 1 << 6,   /* the last save; FSM_SAVE_OVER follows */
	FSM_DO_FORK = 1 << 7,   /* the rollback a person asked for; FSM_FORKED follows */
	FSM_DO_RELEASE = 1 << 8, /* give the state memory back */
	FSM_DO_RETRY = 1 << 9,   /* FSM_RETRY after a while */
	FSM_DO_CANCEL = 1 << 10, /* forget a pending start or retry */
	FSM_DO_END = 1 << 11,    /* leave the loop */
};

struct fsm_step {
	enum fsm_state next;
	uint32_t actions; /* of enum fsm_action */
	bool taken;       /* false: this event means nothing here; next is the same state */
};

struct fsm_step fsm_next(enum fsm_state state, enum fsm_event event);

/* "restarting": for logs. */
const char *fsm_state_name(enum fsm_state state);
const char *fsm_event_name(enum fsm_event event);
/* The word the varlink interface uses. */
const char *fsm_public_name(enum fsm_state state);

/* Pausing, stopping, exiting: the trainer is asked to end, then the last save. */
bool fsm_is_halting(enum fsm_state state);

/* The promises of the comment above, as checks. */
struct fsm_facts {
	bool trainer;  /* the process exists */
	bool preparer; /* the process exists */
	bool run;      /* the run's lock is held */
};
void fsm_check(enum fsm_state state, const struct fsm_facts *facts);
