/* What the ledger's thread does for the supervisor: the run's folder, both databases, the line, and
 * other calls that may wait for a disk. Each job is one struct: inputs are filled in on the loop,
 * outputs by the thread, and its `done` runs on the loop again and frees it.
 *
 * A full queue answers at once with -ENOBUFS: `done` may run before books_give returns. */
#pragma once

#include "supervisor/ledger.h"

#include "base/config.h"
#include "proto/json.h"
#include "proto/progress.h"
#include "store/catalog.h"
#include "store/history.h"
#include "store/line.h"
#include "store/run.h"
#include "store/scrub.h"
#include "supervisor/restart.h"
#include "supervisor/signing.h"

#include <limits.h>
#include <sys/types.h>

#define BOOKS_METRICS_MAX 1024
#define BOOKS_CONFIG_SETS_MAX 64

struct books; /* the thread's room */
struct books *books_new(void);
void books_free(void *room);

/* First member of every job. */
struct book_job {
	struct ledger_job job;
	void *owner;
};

/* calloc'ed; work is one of the functions below. */
void *books_job(size_t size, void (*work)(struct ledger_job *job, void *room),
	void (*done)(struct ledger_job *job), void *owner);
/* The `done` of a job that nobody waits for. */
void books_forget(struct ledger_job *job);
void books_give(struct ledger *ledger, void *job);

/* Where the configuration comes from. */
struct config_source {
	const char *path; /* NULL: only defaults and sets */
	const char *sets[BOOKS_CONFIG_SETS_MAX];
	uint32_t set_count;
	const char *state_dir; /* --state, or NULL */
};
/* Defaults, file, sets, config_check; the folder from --state or $STATE_DIRECTORY. */
int config_resolve(const struct config_source *source, struct config *ret, struct error *err);

/* Opens the folder, takes the lock, loads the run, checks the configuration against it, and falls
 * back to last-good.conf. */
struct open_job {
	struct book_job head;
	char run_dir[PATH_MAX];    /* in; out: absolute */
	bool strict;               /* no falling back */
	bool config_good;          /* config has parsed */
	struct config config;      /* in: as parsed; out: in force */
	struct error config_error; /* why not; out: why last-good.conf is in force */
	enum {
		OPEN_DONE,
		OPEN_NO_RUN, /* nothing there: wait */
		OPEN_LOCKED, /* by owner */
		OPEN_CONFIG, /* the configuration is refused, and there is no last good one */
		OPEN_BROKEN, /* a person must look */
	} outcome;           /* with head.job.error */
	int run_fd, lock_fd; /* out: the caller's */
	pid_t owner;
	struct run run;
	bool last_good; /* is in force */
};
void books_open_work(struct ledger_job *job, void *room);

/* Writes last-good.conf. */
struct last_good_job {
	struct book_job head;
	struct config config;
};
void books_last_good_work(struct ledger_job *job, void *room);

/* Parses the configuration again (Reload). */
struct reload_job {
	struct book_job head;
	struct config_source source;
	struct config config;   /* out */
	struct signing signing; /* out, owned: of that configuration */
	void *call;             /* who asked, or NULL */
};
void books_reload_work(struct ledger_job *job, void *room);

/* Writes wanted, power_paused, verified_branch. */
struct store_run_job {
	struct book_job head;
	struct run run; /* identity: a reference of its own */
};
void books_store_run_work(struct ledger_job *job, void *room);

/* Allocates the state memory. */
struct memory_job {
	struct book_job head;
	uint64_t section_bytes;
	uint32_t slot_count; /* in: at most; out: what fitted */
	uint32_t slot_count_min;
	uint8_t run_id[RUN_ID_SIZE];
	struct digest model_digest;
	/* Not NULL: the run's folder; size and model are those of its newest checkpoint, and
	 * -ENOENT without one. */
	const char *run_dir;
	int run_fd;
	int fd; /* out */
};
/* On any ledger's thread: needs no room. */
void books_memory_work(struct ledger_job *job, void *room);

/* What only the header of a checkpoint says. */
struct survey_counts {
	uint64_t images_seen, skipped_count;
};

/* What lies on the line. */
struct survey {
	bool known;
	bool catalog; /* false: it could not be read, and only the line is known */
	struct line line;
	uint32_t count; /* verified on the line, at most RESTART_STEPS_MAX, greatest step first */
	uint64_t steps[RESTART_STEPS_MAX];
	bool left_behind;     /* a verified suspect one exists */
	bool unread;          /* one on the line is only `found`, or cannot be read now */
	struct scrub_age age; /* of all that are kept */
	bool has_newest;
	struct catalog_row newest; /* verified, on the line */
	bool counted;              /* its header could be read */
	struct survey_counts counts;
};
struct survey_job {
	struct book_job head;
	struct survey survey; /* out */
};
void books_survey_work(struct ledger_job *job, void *room);

/* Begins a new branch at a verified checkpoint, durably; then surveys. */
struct fork_job {
	struct book_job head;
	enum {
		FORK_STEP,   /* the one on the line with this step */
		FORK_ID,     /* this one, wherever it lies */
		FORK_NEWEST, /* on the line */
		FORK_BEFORE_NEWEST,
		FORK_LEFT_BEHIND, /* the newest verified suspect one before this step, or of all */
		FORK_START,       /* step 0; but the newest on the line when there is one */
		FORK_SCRATCH,     /* step 0, whatever there is */
	} which;
	uint64_t step;
	char id[CHECKPOINT_ID_SIZE];
	bool suspect;
	bool carry; /* interventions of the branch that is left, for steps to come again */
	char why[160];
	struct intervention interventions[LINE_INTERVENTIONS_MAX];
	uint32_t intervention_count;
	void *call;
	struct line_branch branch; /* out */
	struct survey survey;      /* out */
};
void books_fork_work(struct ledger_job *job, void *room);
/* Only whether it could begin now: -ENOENT and why not. */
void books_fork_look_work(struct ledger_job *job, void *room);

/* The keep mark of a checkpoint. */
struct keep_job {
	struct book_job head;
	char id[CHECKPOINT_ID_SIZE];
	bool keep;
	void *call;
	char text[256]; /* out: for whoever asked */
};
void books_keep_work(struct ledger_job *job, void *room);

/* history.sqlite. token joins the begin and the end of one attempt. */
struct attempt_job {
	struct book_job head;
	uint64_t token;
	struct history_attempt attempt;
};
void books_attempt_begin_work(struct ledger_job *job, void *room);
void books_attempt_end_work(struct ledger_job *job, void *room);

/* The supervisor's life begins: what the last one left. */
struct life_job {
	struct book_job head;
	struct history_life life; /* in; begin fills in the boot id */
	struct history_life last; /* out, of begin */
	uint64_t token;           /* in, of begin: for the open outage */
	uint32_t memory_losses;   /* out, of begin */
	nsec_t since_wall_ns;     /* out, of begin: counted since */
	bool has_open;            /* out, of begin */
	struct history_outage open;
};
void books_life_begin_work(struct ledger_job *job, void *room);
void books_life_seen_work(struct ledger_job *job, void *room);

/* An outage has begun, or something about it is known now. Equal tokens are one outage. */
struct outage_job {
	struct book_job head;
	uint64_t token;
	struct history_outage outage;
};
void books_outage_work(struct ledger_job *job, void *room);

struct event_job {
	struct book_job head;
	nsec_t wall_ns;
	char kind[32], level[16];
	uint64_t step;
	char text[320];
};
void books_event_work(struct ledger_job *job, void *room);

struct metrics_job {
	struct book_job head;
	uint32_t count;
	struct metric rows[BOOKS_METRICS_MAX];
};
void books_metrics_work(struct ledger_job *job, void *room);

/* Free bytes below RUN. */
struct space_job {
	struct book_job head;
	uint64_t free_bytes; /* out */
};
void books_space_work(struct ledger_job *job, void *room);

/* Answers for the methods. */
struct query_job {
	struct book_job head;
	enum {
		QUERY_CHECKPOINTS,
		QUERY_EVENTS,
		QUERY_METRICS,
		QUERY_OUTAGES,
		QUERY_LAST_DEATH,
		QUERY_LAST_EVENT, /* of this kind, or null */
	} query;
	bool all;
	int64_t after;
	uint32_t branch; /* metrics: where the run is */
	uint64_t step;
	uint32_t limit;
	char kind[16];
	void *call;
	json_t *answer;    /* out, without a call: a reference of the job's */
	char *frame;       /* out, with a call: the whole reply, malloc'ed */
	size_t frame_size; /* out */
};
void books_query_work(struct ledger_job *job, void *room);
