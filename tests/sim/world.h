/* A machine of virtual time around the supervisor's own code: a disk, a memory, processes, people,
 * and what goes wrong with them. One history is a function of its seed.
 *
 * The supervisor is linked as it is, from supervisor_init to supervisor_fini; what it calls beyond
 * supervisor/ is here: libuv (tests/virtual/loop.h), the ledger's thread, the catalog and the
 * files, the state memory, the clock. Workers do no work, but keep what they would have made: a
 * state of training is its record, and a checkpoint one of those on the disk. */
#pragma once

#include "store/line.h"
#include "store/retention.h"
#include "supervisor/supervisor.h"
#include "tests/virtual/ledger.h"
#include "tests/virtual/loop.h"

#define FILES_MAX 48
#define WORKERS_MAX 24
#define CLIENTS_MAX 3
#define SETS_MAX 16
#define STEP_NEVER UINT64_MAX
#define BATCH_SIZE 16 /* until somebody reloads another */
#define FILE_BYTES ((uint64_t)4 << 20)
#define TRAINER_BYTES ((uint64_t)100 << 20)

/* Descriptors that nobody opens. */
enum { FD_SOCKET = 900001, FD_STATE, FD_PROGRESS, FD_RUN, FD_LOCK, FD_CHECKPOINTS };

/* What a state of training carries with it, in the record's unused bytes. */
struct truth {
	uint64_t poisoned_at; /* STEP_NEVER: sound */
	uint64_t images;      /* the next one of the data */
	uint64_t identity;    /* of its bytes */
};

struct file {
	bool used, rotten, published;
	bool told; /* the supervisor has heard of it */
	bool mirrored;
	uint64_t step;
	uint32_t branch;
	enum checkpoint_state row; /* of the catalog; MISSING: there is none */
	bool keep;
	struct truth truth;
	uint64_t root;
	nsec_t verified_wall_ns;
};

enum role {
	ROLE_PREPARE,
	ROLE_TRAIN,
	ROLE_SAVE,
	ROLE_SAMPLE,
	ROLE_VERIFY,
	ROLE_SCRUB,
	ROLE_MIRROR
};

enum stage {
	STAGE_BEGIN, /* until its start frame is read and its work may begin */
	STAGE_BOOT,
	STAGE_COMPUTE,
	STAGE_UPDATE,
	STAGE_WAIT, /* for the only slot */
	STAGE_WORK, /* of those that do not train */
	STAGE_HUNG,
	STAGE_DYING, /* SIGKILL was sent, and the kernel is not done */
	STAGE_DRAINING,
};

struct worker {
	bool alive; /* a process */
	bool orphan;
	enum role role;
	enum stage stage;
	int pid;
	uv_process_t *process; /* NULL: its supervisor is gone */
	uv_stream_t *link, *err;
	nsec_t next_ns;
	int exit_status, term_signal;
	/* of its start frame */
	bool from_memory, run_created, safe_engine, copy, foreground;
	uint32_t threads;
	bool stop_asked, reload_asked;
	/* a trainer */
	struct state_record record;
	uint64_t begun_step, steps;
	uint64_t floor_step; /* verified on the line when it was started */
	bool overtaken;      /* the disk had a newer one than the memory then */
	uint64_t private_bytes, leak_bytes;
	nsec_t hung_since_ns;
	bool ready, bad_engine_kills, slow;
	nsec_t step_begun_ns;
	uint32_t moves_left;
	/* a saver */
	struct state_record pinned;
	nsec_t begun_ns;
	bool pin_dropped;
	char id[CHECKPOINT_ID_SIZE]; /* verify */
};

enum call_kind {
	CALL_STATUS,
	CALL_SAVE,
	CALL_PAUSE,
	CALL_RESUME,
	CALL_STOP,
	CALL_STOP_NOW,
	CALL_STOP_EXIT,
	CALL_ROLLBACK,
	CALL_RESTART,
	CALL_RELOAD,
	CALL_POWER_FAIL,
	CALL_POWER_OK,
	CALL_VERIFY,
	CALL_SCRUB,
	CALL_SAMPLE,
	CALL_KEEP,
	CALL_CHECKPOINTS,
	CALL_KIND_COUNT,
};

struct client {
	uv_stream_t *stream; /* NULL: not connected */
	bool open;
	enum call_kind kind;
	nsec_t sent_ns, next_ns;
	uint64_t wanted_calls; /* when it was sent */
	bool alone;            /* nobody else has asked for another state meanwhile */
};

enum fault {
	FAULT_CRASH,
	FAULT_EXIT,
	FAULT_KILL,
	FAULT_HANG,
	FAULT_STALL,
	FAULT_SLOW,
	FAULT_CORRUPT,
	FAULT_BABBLE,
	FAULT_NONFINITE,
	FAULT_LEAK,
	FAULT_STUCK,
	FAULT_BOOT,
	FAULT_UNREADABLE,
	FAULT_CONFIG,
	FAULT_SAVER,
	FAULT_SAVER_HANG,
	FAULT_SPAWN,
	FAULT_PREPARER,
	FAULT_STORAGE,
	FAULT_MIRROR_HANG,
	FAULT_SUSPEND,
	FAULT_CLOCK,
	FAULT_POWER_CUT,
	FAULT_SUPERVISOR,
	FAULT_TERM,
	FAULT_SIGPWR,
	FAULT_DISK_FULL,
	FAULT_ROT,
	FAULT_LEDGER,
	FAULT_BITFLIP,
	FAULT_NO_MEMORY,
	FAULT_NO_RUN,
	FAULT_DISK_BROKEN,
	FAULT_NO_MIRROR,
	FAULT_COUNT,
};
extern const char *const fault_names[FAULT_COUNT];

struct counts {
	uint64_t histories, hopeless, events, virtual_seconds;
	uint64_t faults[FAULT_COUNT], calls[CALL_KIND_COUNT], rungs[LADDER_RUNG_MAX + 1];
	uint64_t froms[RESTART_FORK_START + 1], kinds[DEATH_KIND_COUNT];
	uint64_t table[FSM_STATE_COUNT][FSM_EVENT_COUNT];
	uint64_t steps, starts, saves, forks, lives, removed, finished, hangs_found, renewals;
	uint64_t withdrawn, passed_over, mirrorings, made_room;
};

/* Branches that rung 3 and up began with no more data to skip than the one before. */
struct round {
	uint32_t forks, window, most; /* most: checkpoints that there were */
	uint32_t blamed_count;
	uint64_t blamed[LADDER_FATAL_MAX];
};

struct world {
	uint64_t seed, first_seed;
	struct supervisor *sup; /* NULL: between two lives */
	struct counts *counts;
	/* -- this history's ways -- */
	uint32_t odds[FAULT_COUNT];                /* one in so many chances; 0: never */
	uint32_t budget;                           /* faults and people to come */
	uint64_t bad_image_first, bad_image_count; /* of the data: no trainer survives them */
	uint64_t bad_engine_step, nan_step, poison_one_in, poison_lag;
	bool poison_wanders, has_store, has_people, has_mirror, scrubs;
	struct retention_policy retention;
	nsec_t step_ns, save_ns, boot_ns;
	uint32_t slots;
	char set_texts[SETS_MAX][48];
	struct options options;
	nsec_t disturbed_ns; /* next */
	/* Of suspends within a long stall. */
	nsec_t suspended_ns, suspended_every_ns, slept_ns;
	uint32_t suspends_left;
	/* -- the disk -- */
	struct run run;
	struct line line;
	struct file files[FILES_MAX];
	bool ever_verified; /* on the way of the line from its step 0 */
	nsec_t full_until_ns, no_run_until_ns, no_memory_until_ns, no_spawn_until_ns;
	nsec_t config_until_ns, broken_until_ns, no_mirror_until_ns;
	/* -- the memory -- */
	struct {
		bool exists, mapped, stored, valid, pinned, flipped;
		uint32_t slots;
		struct state_record record, pin;
		uint8_t ladder[STATE_LADDER_BYTES];
	} memory;
	struct progress progress;
	/* -- the ledger -- */
	nsec_t ledger_until_ns;
	/* -- processes and people -- */
	struct worker workers[WORKERS_MAX];
	int pid_last;
	struct client clients[CLIENTS_MAX];
	struct client *accepting;
	uint64_t wanted_calls;
	/* -- what must hold -- */
	uint64_t roots;
	nsec_t tried_ns, ended_ns, grown_since_ns, term_ns, term_allowed_ns, idle_since_ns,
		resting_since_ns, behind_since_ns;
	enum fsm_state state_before;
	uint64_t newest_before;
	bool killed, power_cut, rotted;
	bool leave_memory;   /* the newest state may be left */
	uint64_t floor_step; /* of the checkpoint that a start must not fall behind */
	uint32_t rung_before, fewest_in_climb, hopeless, restarts, forks_allowed;
	bool left_in_climb;
	/* After the last decision: what the next one must begin with, unless there was progress. */
	struct {
		bool known;
		uint32_t rung, counted;
		uint64_t furthest_step;
	} climb;
	struct round round;
	bool died_of_data;
	uint32_t data_deaths; /* since progress */
};
extern struct world world;

/* Fails the history, with the line that plays it again. */
void world_check(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define MUST(condition, ...) ((condition) ? (void)0 : world_check(false, __VA_ARGS__))

uint64_t draw(void);
uint64_t below(uint64_t bound);
bool one_in(uint64_t n);
nsec_t between_ns(nsec_t least_ns, nsec_t most_ns);
/* A chance of this fault: true when it happens now. */
bool strikes(enum fault fault);
/* The machine sleeps a few times within so long a time, where it sleeps in this history. */
void sleep_within(nsec_t time_ns);
bool calm(void);

/* -- world_disk.c -- */
bool disk_full(void);
/* Full, or it answers with I/O errors. */
bool disk_fails(void);
bool line_holds(const struct file *file);
/* The greatest step among verified, sound files on the line; NULL: none. */
struct file *newest_good(void);
/* Of those that the supervisor has heard of. */
struct file *newest_told(void);
struct file *find_file(uint64_t step, uint32_t branch);
void retain(void);
struct truth *truth_of(struct state_record *record);

/* -- world_memory.c -- */
void memory_lose(void);
bool memory_on_line(void);

/* -- world_workers.c, world_trainer.c -- */
struct worker *find_worker(enum role role);
bool any_worker(void);
void worker_send(struct worker *worker, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void worker_exit(struct worker *worker, int exit_status, int term_signal);
void worker_fail(struct worker *worker, int exit_status, const char *text);
void worker_advance(struct worker *worker);
void workers_orphan(void);
void workers_sleep(nsec_t asleep_ns);
void trainer_begin(struct worker *worker);
void trainer_advance(struct worker *worker);
void check_start(const struct worker *worker);

/* -- world_people.c -- */
nsec_t people_next_ns(void);
void people_advance(void);
void people_lose(void);
void people_hear(uv_stream_t *stream, const char *data);
/* Something else changes what the run is to do. */
void people_crossed(const struct client *but);
void people_sleep(nsec_t asleep_ns);
void people_check(void);

/* -- world_faults.c -- */
nsec_t faults_next_ns(void);
void faults_advance(void);
void draw_history(uint64_t seed);

/* -- world_watch.c -- */
void watch_event(void);
void watch_sleep(nsec_t asleep_ns);
/* What the ladder knew is lost, or a person has made it anew. */
void watch_climb_lost(void);
/* The mirror has what it should have. */
bool mirror_is_good(void);
