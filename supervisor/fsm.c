/* The table of fsm.h. It must never touch anything but its arguments. Invariant: an event that is
 * not in the table changes nothing. */
#include "supervisor/fsm.h"

#include "base/panic.h"

#define POLL FSM_DO_POLL
#define PREPARE FSM_DO_PREPARE
#define SCHEDULE FSM_DO_SCHEDULE
#define SPAWN FSM_DO_SPAWN
#define DECIDE FSM_DO_DECIDE
#define HALT FSM_DO_HALT
#define SAVE FSM_DO_SAVE
#define FORK FSM_DO_FORK
#define RELEASE FSM_DO_RELEASE
#define RETRY FSM_DO_RETRY
#define CANCEL FSM_DO_CANCEL
#define END FSM_DO_END

#define TO(state, actions_)                                                                        \
	{                                                                                          \
		.next = FSM_##state, .actions = (actions_), .taken = true                          \
	}

static const struct fsm_step table[FSM_STATE_COUNT][FSM_EVENT_COUNT] =
	{
		[FSM_STARTING] =
			{
				[FSM_RUN_FOUND] = TO(PREPARING, PREPARE),
				[FSM_RUN_MISSING] = TO(WAITING, POLL),
				[FSM_CONFIG] = TO(FAILED, RETRY),
				[FSM_EXIT] = TO(ENDED, END),
			},
		[FSM_WAITING] =
			{
				[FSM_RUN_FOUND] = TO(PREPARING, PREPARE),
				[FSM_RUN_MISSING] = TO(WAITING, POLL),
				[FSM_CONFIG] = TO(FAILED, RETRY),
				[FSM_EXIT] = TO(ENDED, CANCEL | END),
			},
		[FSM_PREPARING] =
			{
				[FSM_PREPARED_RUN] = TO(RESTARTING, SCHEDULE),
				[FSM_PREPARED_PAUSED] = TO(PAUSED, 0),
				[FSM_PREPARED_STOPPED] = TO(STOPPED, 0),
				[FSM_COMPLETE] = TO(FINISHING, SAVE),
				[FSM_DIED] = TO(PREPARING, RETRY),
				[FSM_RETRY] = TO(PREPARING, PREPARE),
				[FSM_CONFIG] = TO(FAILED, RETRY),
				[FSM_EXIT] = TO(EXITING, CANCEL | HALT),
			},
		[FSM_RESTARTING] =
			{
				[FSM_START] = TO(TRAINING, SPAWN),
				[FSM_FORKED] = TO(RESTARTING, SCHEDULE),
				[FSM_CONFIG] = TO(FAILED, CANCEL | RETRY),
				[FSM_COMPLETE] = TO(FINISHING, CANCEL | SAVE),
				[FSM_PAUSE] = TO(PAUSING, CANCEL | SAVE),
				[FSM_STOP] = TO(STOPPING, CANCEL | SAVE),
				[FSM_EXIT] = TO(EXITING, CANCEL | SAVE),
				[FSM_ROLLBACK] = TO(RESTARTING, CANCEL | FORK),
			},
		[FSM_TRAINING] =
			{
				[FSM_DIED] = TO(RESTARTING, DECIDE),
				[FSM_FINISHED_STEPS] = TO(FINISHING, SAVE),
				[FSM_CONFIG] = TO(FAILED, RETRY),
				[FSM_PAUSE] = TO(PAUSING, HALT),
				[FSM_STOP] = TO(STOPPING, HALT),
				[FSM_EXIT] = TO(EXITING, HALT),
				[FSM_ROLLBACK] = TO(ROLLING, HALT),
				[FSM_RENEW] = TO(RENEWING, HALT),
			},
		[FSM_ROLLING] =
			{
				[FSM_GONE] = TO(RESTARTING, FORK),
				[FSM_PAUSE] = TO(PAUSING, 0),
				[FSM_STOP] = TO(STOPPING, 0),
				[FSM_EXIT] = TO(EXITING, 0),
			},
		[FSM_RENEWING] =
			{
				[FSM_GONE] = TO(RESTARTING, SCHEDULE),
				[FSM_PAUSE] = TO(PAUSING, 0),
				[FSM_STOP] = TO(STOPPING, 0),
				[FSM_EXIT] = TO(EXITING, 0),
				[FSM_ROLLBACK] = TO(ROLLING, 0),
			},
		[FSM_PAUSING] =
			{
				[FSM_GONE] = TO(PAUSING, SAVE),
				[FSM_SAVE_OVER] = TO(PAUSED, 0),
				[FSM_STOP] = TO(STOPPING, 0),
				[FSM_EXIT] = TO(EXITING, 0),
			},
		[FSM_PAUSED] =
			{
				[FSM_RESUME] = TO(RESTARTING, SCHEDULE),
				[FSM_RETRY] = TO(PREPARING, PREPARE),
				[FSM_STOP] = TO(STOPPING, SAVE),
				[FSM_EXIT] = TO(EXITING, SAVE),
				[FSM_ROLLBACK] = TO(PAUSED, FORK),
				[FSM_FORKED] = TO(PAUSED, 0),
			},
		[FSM_STOPPING] =
			{
				[FSM_GONE] = TO(STOPPING, SAVE),
				[FSM_SAVE_OVER] = TO(STOPPED, 0),
				[FSM_EXIT] = TO(EXITING, 0),
			},
		[FSM_STOPPED] =
			{
				[FSM_RESUME] = TO(RESTARTING, SCHEDULE),
				[FSM_RETRY] = TO(PREPARING, PREPARE),
				[FSM_PAUSE] = TO(PAUSED, 0),
				[FSM_EXIT] = TO(EXITING, SAVE),
				[FSM_ROLLBACK] = TO(STOPPED, FORK),
				[FSM_FORKED] = TO(STOPPED, 0),
			},
		[FSM_FINISHING] =
			{
				[FSM_SAVE_OVER] = TO(FINISHED, RELEASE),
				[FSM_STOP] = TO(STOPPING, 0),
				[FSM_EXIT] = TO(EXITING, 0),
			},
		[FSM_FINISHED] =
			{
				[FSM_RETRY] = TO(PREPARING, PREPARE),
				[FSM_STOP] = TO(STOPPED, 0),
				[FSM_EXIT] = TO(EXITING, SAVE),
				[FSM_ROLLBACK] = TO(FINISHED, FORK),
				[FSM_FORKED] = TO(PREPARING, PREPARE),
			},
		[FSM_FAILED] =
			{
				[FSM_RETRY] = TO(STARTING, POLL),
				[FSM_RESUME] = TO(STARTING, CANCEL | POLL),
				[FSM_PAUSE] = TO(PAUSING, CANCEL | SAVE),
				[FSM_STOP] = TO(STOPPING, CANCEL | SAVE),
				[FSM_EXIT] = TO(EXITING, CANCEL | SAVE),
				[FSM_ROLLBACK] = TO(FAILED, FORK),
				[FSM_FORKED] = TO(STARTING, CANCEL | POLL),
			},
		[FSM_EXITING] =
			{
				[FSM_GONE] = TO(EXITING, SAVE),
				[FSM_SAVE_OVER] = TO(ENDED, END),
			},
};

struct fsm_step fsm_next(enum fsm_state state, enum fsm_event event)
{
	CHECK((unsigned)state < FSM_STATE_COUNT);
	CHECK((unsigned)event < FSM_EVENT_COUNT);
	struct fsm_step step = table[state][event];

	if (!step.taken)
		step.next = state;
	return step;
}

const char *fsm_state_name(enum fsm_state state)
{
	static const char *const names[FSM_STATE_COUNT] = {
		[FSM_STARTING] = "starting",
		[FSM_WAITING] = "waiting",
		[FSM_PREPARING] = "preparing",
		[FSM_RESTARTING] = "restarting",
		[FSM_TRAINING] = "training",
		[FSM_ROLLING] = "rolling back",
		[FSM_RENEWING] = "renewing",
		[FSM_PAUSING] = "pausing",
		[FSM_PAUSED] = "paused",
		[FSM_STOPPING] = "stopping",
		[FSM_STOPPED] = "stopped",
		[FSM_FINISHING] = "finishing",
		[FSM_FINISHED] = "finished",
		[FSM_FAILED] = "failed",
		[FSM_EXITING] = "exiting",
		[FSM_ENDED] = "ended",
	};

	CHECK((unsigned)state < FSM_STATE_COUNT);
	return names[state];
}

const char *fsm_event_name(enum fsm_event event)
{
	static const char *const names[FSM_EVENT_COUNT] = {
		[FSM_RUN_FOUND] = "run found",
		[FSM_RUN_MISSING] = "run missing",
		[FSM_PREPARED_RUN] = "prepared, run wanted",
		[FSM_PREPARED_PAUSED] = "prepared, pause wanted",
		[FSM_PREPARED_STOPPED] = "prepared, stop wanted",
		[FSM_COMPLETE] = "complete",
		[FSM_START] = "start",
		[FSM_FINISHED_STEPS] = "finished",
		[FSM_DIED] = "died",
		[FSM_GONE] = "gone",
		[FSM_SAVE_OVER] = "save over",
		[FSM_CONFIG] = "configuration",
		[FSM_RETRY] = "retry",
		[FSM_PAUSE] = "pause",
		[FSM_RESUME] = "resume",
		[FSM_STOP] = "stop",
		[FSM_EXIT] = "exit",
		[FSM_ROLLBACK] = "rollback",
		[FSM_RENEW] = "renew",
		[FSM_FORKED] = "forked",
	};

	CHECK((unsigned)event < FSM_EVENT_COUNT);
	return names[event];
}

const char *fsm_public_name(enum fsm_state state)
{
	switch (state) {
	case FSM_PREPARING:
		return "starting";
	case FSM_ROLLING:
	case FSM_RENEWING:
		return "restarting";
	case FSM_FINISHING:
		return "saving";
	case FSM_EXITING:
	case FSM_ENDED:
		return "stopping";
	default:
		return fsm_state_name(state);
	}
}

bool fsm_is_halting(enum fsm_state state)
{
	return state == FSM_PAUSING || state == FSM_STOPPING || state == FSM_EXITING;
}

void fsm_check(enum fsm_state state, const struct fsm_facts *facts)
{
	CHECK((unsigned)state < FSM_STATE_COUNT);
	CHECK(!(facts->trainer && facts->preparer));
	if (state == FSM_TRAINING || state == FSM_ROLLING || state == FSM_RENEWING)
		CHECK(facts->trainer);
	else if (!fsm_is_halting(state))
		CHECK(!facts->trainer);
	if (facts->preparer)
		CHECK(state == FSM_PREPARING || state == FSM_EXITING);
	if (facts->trainer || facts->preparer || state == FSM_PREPARING)
		CHECK(facts->run);
}
