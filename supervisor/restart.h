/* The ladder: what to do after an unplanned end of the trainer. Pure: the ladder's state, a death
 * and what there is to start from in; a decision out. No clock, no system call, no randomness of
 * its own.
 *
 *     rung 0  the newest sealed slot                     first counted death since progress
 *     rung 1  the newest verified checkpoint             again, or memory corrupt
 *     rung 2  the verified one before it, a new branch   again
 *     rung 3  as 2, the fatal step's data are skipped    one step fatal three times for one cause,
 *                                                        or too many non-finite updates in a row
 *     rung 4  as 3, on the safe engine                   again, same evidence
 *     rung 5  the next older one each time, then the newest again; then that for ever
 *
 * Progress is a finished step beyond the furthest one ever reached: the next death is a first one
 * again. Progress over a whole checkpoint interval beyond the first death of the climb forgets
 * everything. Deaths at differing steps blame nothing, and never lead beyond rung 2: from there on
 * they go on from memory when they finished a step, else from the newest checkpoint, wait longer
 * each time, and when the longest wait is reached, the next older checkpoint is tried.
 *
 * Branches are rows and files for ever, so rung 5 makes one only for what was not tried yet: it
 * goes through the older checkpoints once, returns to the newest, and stays on that branch. It goes
 * through them again when more data are due to be skipped: twice as many each time, so a death that
 * nothing cures comes to the end of it, and is then tried at the slowest pace without a trace. Each
 * of these rounds ends with an older one of those left behind, then with the newest again.
 *
 * When every checkpoint on the line turns out to be bad, the newest one that was left behind is
 * better than none.
 *
 * The struct lives in the header page of the state memory, so that a new supervisor goes on where
 * the old one was; the database is its record, never its source. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#define LADDER_VERSION 3
#define LADDER_RUNG_MAX 5
#define LADDER_FATAL_MAX 8
#define LADDER_ROUNDS_MAX 64 /* through the older checkpoints, without progress */
#define LADDER_DELAY_FIRST_NS (100 * NSEC_PER_MSEC)
#define LADDER_DELAY_MAX_NS (900 * NSEC_PER_SEC)
/* Deaths that each finished a step: the wait stays useful. */
#define LADDER_DELAY_MOVING_MAX_NS (10 * NSEC_PER_SEC)
#define LADDER_FREE_LIMIT 3     /* uncounted deaths in a row without a finished step */
#define LADDER_QUICK_RESTARTS 5 /* with progress, before the wait grows at all */

enum death_kind {
	DEATH_OWN,            /* its own signal, a non-zero exit, a hang: counted */
	DEATH_OUTSIDE,        /* SIGKILL from outside, out of memory: not counted */
	DEATH_MEMORY_CORRUPT, /* counted; the memory is not to be used */
	DEATH_NONFINITE,      /* counted; straight to rung 3 */
	DEATH_STORAGE,        /* disk full, I/O error: not counted, waits */
	DEATH_TRANSIENT,      /* nothing readable now: not counted, waits at the slowest pace */
	DEATH_KIND_COUNT,
};

/* So many deaths for one cause at one step, or at one part of the data: what is left out before it
 * moves the step. */
struct fatal {
	uint64_t step;   /* of the last one */
	uint64_t images; /* of the first one; 0: not known */
	uint32_t cause;
	uint32_t count;   /* 0: free */
	uint32_t skipped; /* times its data that a branch was to leave out */
	uint32_t reserved;
};

struct ladder {
	uint32_t version;
	uint32_t rung;        /* taken last */
	uint32_t counted;     /* counted deaths since progress */
	uint32_t since_reset; /* counted deaths since the ladder was last forgotten */
	uint32_t free_in_row; /* uncounted deaths without a finished step */
	uint32_t fruitless;   /* deaths of any kind since a finished step */
	struct fatal fatal[LADDER_FATAL_MAX]; /* evidence */
	uint64_t furthest_step;               /* ever reached on this memory */
	uint64_t climb_step;                  /* the furthest one when this climb began */
	uint64_t fork_step;   /* rung 2 and up went back to it; the next one is older still */
	uint32_t safe_engine; /* rung 4 and up: forced at each start */
	uint32_t older_taken; /* rung 2 has left a newest one behind in this climb */
	uint32_t rounds;      /* begun again since progress, or from what was left behind */
	uint32_t all_tried;   /* the last one is over */
	uint64_t left_step;   /* was returned to last of what was left behind; 0: nothing yet */
	uint64_t check;       /* ladder_seal */
};

struct death {
	enum death_kind kind;
	uint32_t cause;  /* equal numbers are the same cause (obituary.h) */
	uint64_t step;   /* finished steps when it died */
	uint64_t images; /* of the data, seen by then; 0: not known */
	bool stepped;    /* this trainer had finished at least one step */
};

#define RESTART_STEPS_MAX 64

/* What there is to start from. */
struct restart_supply {
	bool memory;    /* a sealed record on the line */
	uint32_t count; /* verified checkpoints on the line: their steps, greatest first */
	uint64_t steps[RESTART_STEPS_MAX];
	bool left_behind;  /* a verified one that the ladder left */
	bool unread;       /* files on the line that nobody has read yet, or can read now */
	bool scratch;      /* step 0 is allowed: the run never had a verified checkpoint */
	bool safe_already; /* openblas with one thread is what runs now */
	uint32_t random;   /* for the jitter */
};

enum restart_from {
	RESTART_MEMORY,      /* the newest sealed slot */
	RESTART_NEWEST,      /* the newest verified checkpoint (or step 0), no new branch */
	RESTART_FORK_NEWEST, /* the same, on a new branch */
	RESTART_FORK_OLDER,  /* the verified one before it, on a new branch */
	RESTART_FORK_LEFT,   /* the next older that the ladder left behind, on a new branch */
	RESTART_FORK_START,  /* step 0, on a new branch: there is no checkpoint yet */
};

struct restart_decision {
	uint32_t rung;
	uint32_t not_applicable; /* a bit for each rung that was passed over */
	enum restart_from from;
	uint64_t step; /* FORK_NEWEST, FORK_OLDER: of the checkpoint to begin from */
	bool counted;
	uint32_t skip_window; /* the new branch jumps over so many times the fatal data; 0: not */
	bool safe_engine;
	bool withdrawn; /* what was left behind was not the cause: it is no longer suspect */
	nsec_t delay_ns;
};

void ladder_init(struct ladder *ladder);
/* Finished steps were seen: at a tick, and at a death. */
void ladder_progress(struct ladder *ladder, uint64_t step, uint64_t interval_steps);
struct restart_decision ladder_decide(
	struct ladder *ladder, const struct death *death, const struct restart_supply *supply);

void ladder_seal(struct ladder *ladder);
/* Check, version and bounds. */
bool ladder_valid(const struct ladder *ladder);

/* base, 2 base, 4 base, ... (count from 0), at most max; the last quarter of it is jitter. */
nsec_t backoff_ns(nsec_t base_ns, nsec_t max_ns, uint32_t count, uint32_t random);

/* True when a new branch has to be made durable first. */
bool restart_forks(enum restart_from from);

/* "from memory", ...: for a sentence. */
const char *restart_from_text(enum restart_from from);
