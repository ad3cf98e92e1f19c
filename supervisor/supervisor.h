/* The service's own state, and what its files share. Everything here belongs to the loop's thread;
 * the threads of the two ledgers see jobs only.
 *
 *     supervisor.c  events into the table, its actions, the tick
 *     open.c        the run's folder, the preparer
 *     memory.c      state memory and progress page, systemd's fd store
 *     trainer.c     the trainer's process: start, messages, end, hangs
 *     recover.c     from a death to the next start: the ladder, new branches, the delay
 *     saver.c       saves
 *     outages.c     the ledger of outages
 *     tasks.c       sample and verify
 *     mirror.c      copies on a second disk
 *     scrub.c       scrubs, and what a bad checkpoint brings with it
 *     requests.c    what people may ask for
 *     status.c      what people are told */
#pragma once

#include "base/config.h"
#include "proto/progress.h"
#include "proto/state.h"
#include "store/run.h"
#include "supervisor/books.h"
#include "supervisor/child.h"
#include "supervisor/fsm.h"
#include "supervisor/interval.h"
#include "supervisor/ledger.h"
#include "supervisor/notify.h"
#include "supervisor/obituary.h"
#include "supervisor/refusals.h"
#include "supervisor/resources.h"
#include "supervisor/restart.h"
#include "supervisor/watchdog.h"

#include <limits.h>
#include <uv.h>

#define TICK_MS 100
#define TICK_NS (TICK_MS * NSEC_PER_MSEC)
#define EVENT_QUEUE_MAX 16
#define TEXT_MAX 320

struct call;    /* one method call that waits for its answer: control.h */
struct control; /* the socket and its clients */

struct options {
	struct config_source source;
	bool strict; /* in the foreground: a refused configuration is the end, and run is wanted */
	char worker_path[PATH_MAX];
};

/* The newest verified checkpoint, as shown. */
struct newest {
	bool known;
	char id[CHECKPOINT_ID_SIZE];
	uint64_t step;
	uint32_t branch;
	char root[DIGEST_HEX_SIZE];
	char path[PATH_MAX + 64];
	nsec_t wall_ns;              /* when it was made */
	struct survey_counts counts; /* 0 where its header cannot be read now */
};

/* What the preparer found. */
struct prepared {
	bool known;
	uint64_t section_bytes, param_count;
	struct digest model_digest;
	char data_text[TEXT_MAX];
	char signer[DIGEST_HEX_SIZE]; /* public key; "": checkpoints are not signed */
	uint64_t images, classes;
};

struct saver {
	struct child child;
	bool in_flight, got_saved, already;
	bool off_line; /* what was saved: a branch began while it was */
	bool foreground;
	struct state_record record; /* pinned */
	uint32_t attempt;           /* of any save; in partials' names */
	uint32_t failures;          /* in a row */
	nsec_t retry_ns;            /* not before; monotonic */
	int64_t last_ms;            /* duration of the last good one, -1: none */
	nsec_t last_end_ns;         /* monotonic, of the last good one */
	double cost_seconds;        /* smoothed: training time that a save takes; 0: not known */
	double stalled_ms;          /* stalls of the loop when this one began */
	nsec_t auto_ns;             /* what `interval = auto` means now */
	char last_error[TEXT_MAX];
	bool wanted;                /* somebody asked: as soon as the one in flight is over */
	struct call *joined, *next; /* calls that wait for this one, for a later one */
};

/* The last save before a pause, a stop, the end. */
struct final_save {
	bool active;
	bool skip;          /* stop now: without saving */
	nsec_t deadline_ns; /* 0: for ever */
	uint32_t failures_begun;
};

/* sample or verify: one of each at a time. */
struct task {
	struct child child;
	struct call *call;
	json_t *answer; /* so far; owned */
};

struct mirrorer {
	struct child child;
	bool pending;      /* something may be missing there */
	uint32_t failures; /* in a row */
	nsec_t retry_ns;   /* not before; monotonic */
	uint32_t behind;   /* as the last pass left it */
	char newest[CHECKPOINT_ID_SIZE];
	char last_error[TEXT_MAX];
};

struct scrubber {
	struct child child;
	bool stopping;
	struct call *calls; /* that wait for its end */
	char id[CHECKPOINT_ID_SIZE];
	uint64_t done_bytes, total_bytes, read_bytes;
	uint32_t checked, corrupt, bad; /* bad: with those that are corrupt */
	nsec_t heard_ns;
	nsec_t retry_ns; /* not before; monotonic */
	uint32_t failures;
	nsec_t finished_wall_ns; /* the last whole one; not positive: not known */
};

/* Time without new steps. */
struct outage_now {
	bool open;
	uint64_t token;
	struct history_outage row;
	uint64_t furthest;      /* finished step; a later one is new */
	nsec_t stepped_wall_ns; /* when the last step was seen finished */
	nsec_t seen_ns;         /* monotonic: when the life was last noted */
	uint32_t memory_losses; /* that nobody planned ... */
	nsec_t since_wall_ns;   /* ... since; 0: not known */
};

struct shown {
	double images_per_second, step_ns; /* smoothed; 0: not known */
	uint64_t step_seen;
	float loss, holdout_loss; /* NaN: not known */
	uint64_t skipped;
	char engine[PROGRESS_TEXT_MAX], engine_reason[PROGRESS_TEXT_MAX];
	uint64_t plan_bytes;
	char sandbox[TEXT_MAX]; /* of the trainer; "": not known yet */
	uint64_t preview_step;
	char preview_path[PATH_MAX];
	uint64_t free_bytes;
	int64_t worker_bytes, own_bytes; /* resident, as of resident_ns; 0: no worker */
	nsec_t resident_ns;
	json_t *last_death; /* owned, or NULL */
};

struct supervisor {
	uv_loop_t loop;
	uv_timer_t tick, start_timer;
	uv_signal_t signals[4];
	nsec_t begun_ns, ticked_ns;
	struct options options;
	int exit_code;
	json_t *status; /* the parameters of the answer, as of status_ns; owned, or NULL */
	nsec_t status_ns;
	uint64_t status_revision;
	uint64_t revision; /* grows with everything a status would show */

	enum fsm_state state;
	enum fsm_event events[EVENT_QUEUE_MAX];
	uint32_t event_first, event_count;
	bool dispatching;

	struct config config;          /* in force */
	struct config config_replaced; /* by a reload that the trainer may still refuse; steps_total
					* is 0 when there is none */
	bool config_last_good;
	char config_text[ERROR_TEXT_MAX]; /* why the file is not in force */
	bool config_refused_at_start;
	struct signing signing;

	bool has_run;
	nsec_t power_since_ns; /* of a power pause; monotonic, 0: none */
	struct run run;
	char run_dir[PATH_MAX];
	int run_fd, lock_fd, null_fd;
	bool opening;
	nsec_t poll_ns;  /* look for the run at; 0: not waiting */
	nsec_t retry_ns; /* FSM_RETRY at; 0: none */
	nsec_t lock_wait_since_ns;
	uint32_t retries;
	char trouble[ERROR_TEXT_MAX]; /* why it waits or has failed */
	uint32_t wanted_pending;      /* run.json writes under way */
	bool wanted_not_durable;

	struct state memory; /* header pages only */
	bool has_memory, making_memory, memory_suspect;
	int stored_state_fd; /* passed by systemd, not looked at yet; -1 */
	int ahead_fd;        /* made while the run is prepared, not looked at yet; -1 */
	uint64_t memory_bytes;
	struct progress *progress;
	int progress_fd;
	uint64_t metrics_cursor, metrics_lost;

	struct child preparer;
	struct prepared prepared;
	struct child trainer;
	bool trainer_ready, trainer_finished;
	uint64_t trainer_step_begun; /* of this trainer: where it went on, once it is ready */
	uint64_t attempt_token;
	nsec_t trainer_wall_ns;
	char trainer_from[16];
	uint64_t oom_kills_before;
	uint32_t trainer_threads;
	struct growth growth; /* of the trainer's memory */
	nsec_t growth_read_ns;
	struct watchdog watchdog;
	struct ladder ladder;
	struct restart_decision decision; /* the last one */
	bool resume_disk;                 /* the next start reads the disk */
	nsec_t start_delay_ns;
	/* From the record that the dead one left. */
	uint64_t death_step, death_images, death_skipped_in_row;
	nsec_t memory_retry_ns; /* state memory could not be made: again at; 0: no */
	bool fork_pending;      /* the ladder's branch could not be made yet ... */
	nsec_t fork_retry_ns;   /* ... again at; 0: under way */
	uint32_t fork_failures;
	uint32_t restarts;
	struct call *rollback_call;
	char rollback_id[CHECKPOINT_ID_SIZE];
	bool rollback_scratch; /* to step 0, and then the run is wanted */
	bool forking;          /* a branch is being made: no trainer may start */
	bool kill_now;         /* stop now was asked */

	struct saver saver;
	struct final_save final;
	struct survey survey;
	struct newest newest;
	struct task sample, verify;
	struct scrubber scrub;
	struct mirrorer mirror;
	struct shown shown;
	struct outage_now outage;
	uint64_t over_bytes; /* beyond keep_bytes after the last save */
	bool stale_weights;  /* the last save has the weights of the one before */
	bool storage_bad;
	char storage_text[TEXT_MAX];

	struct ledger ledger;
	struct ledger maker; /* of the state memory alone, which takes longer than rows may wait */
	struct control *control;
	struct refusals refusals;
	uint32_t queries; /* of clients, with the ledger */
	struct notify notify;
	bool ready_sent;
	nsec_t watchdog_fed_ns, notify_status_ns, drained_ns, space_ns, extended_ns;
	uint64_t extended_moves;
	nsec_t told_since_ns; /* workers' events of this second */
	uint32_t told;
	struct call *settling; /* calls that wait for a state */
	int passed_socket_fd;  /* -1: bind one */
};

/* -- supervisor.c -- */
int supervisor_init(struct supervisor *sup, const struct options *options, struct error *err);
/* Until the end; the exit code. */
int supervisor_run(struct supervisor *sup);
void supervisor_fini(struct supervisor *sup);
/* Feeds the table; events fed while one is handled come after it. */
void sup_dispatch(struct supervisor *sup, enum fsm_event event);
/* One line for the log and the history. level: "info", "warning", "error". */
void sup_event(struct supervisor *sup, const char *level, const char *kind, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* The finished steps, from the record if there is one. */
uint64_t sup_step(const struct supervisor *sup);
/* What goes on after a pause or a stop: there may be nothing prepared yet. */
enum fsm_event sup_resume_event(const struct supervisor *sup);
/* What has time may be done: nothing is begun, ended or prepared. */
bool sup_is_quiet(const struct supervisor *sup);
/* For child_handlers: a process in the background that SIGKILL does not end. */
void sup_on_stuck(struct child *child);
/* Answers the calls that wait for a state which is reached, or can no longer be. */
void sup_settle(struct supervisor *sup);
/* All rows of the ring that were not taken yet, to the database. */
void sup_drain_metrics(struct supervisor *sup);

/* -- open.c -- */
void open_run(struct supervisor *sup);
void prepare_start(struct supervisor *sup);
void survey_start(struct supervisor *sup);
/* The `done` of a survey_job: takes it over and frees it. */
void survey_done(struct ledger_job *job);
/* Takes a survey over; newest follows it. */
void survey_take(struct supervisor *sup, struct survey *survey);
void start_frame_send(struct supervisor *sup, struct child *child, json_t *more);
void worker_options(const struct supervisor *sup, struct child_options *ret);
/* The key of the configuration in force. */
const struct signing *worker_signing(struct supervisor *sup);
void store_run(struct supervisor *sup);
/* A checkpoint of this branch is verified: durable soon. */
void run_note_verified(struct supervisor *sup, uint32_t branch);
/* Step 0 is allowed on the line of now. */
bool run_may_begin(const struct supervisor *sup);
/* What is in force becomes last-good.conf. */
void store_last_good(struct supervisor *sup);

/* -- memory.c -- */
int memory_progress_init(
	struct supervisor *sup, const struct notify_passed *passed, struct error *err);
/* Begins to make it while the run is prepared, of the size that the newest checkpoint has. */
void memory_begin_ahead(struct supervisor *sup);
void memory_drop_ahead(struct supervisor *sup);
/* After prepared: takes the stored state memory if it is ours. */
void memory_adopt_stored(struct supervisor *sup);
/* Makes it if there is none; false: under way (schedule_start comes again) or impossible now. */
bool memory_ensure(struct supervisor *sup);
void memory_release(struct supervisor *sup);
/* The newest record that may be resumed or saved: on the line. -ENOENT. */
int memory_newest(const struct supervisor *sup, struct state_record *ret);
void memory_keep_ladder(struct supervisor *sup);
void memory_restore_header(struct supervisor *sup);
void memory_empty(struct supervisor *sup);

/* -- trainer.c -- */
extern const struct child_handlers prepare_handlers, trainer_handlers;
void trainer_start(struct supervisor *sup);
/* Asks the trainer (or kills the preparer) to end; FSM_GONE follows, at once if there is none. */
void trainer_halt(struct supervisor *sup);
/* A planned restart: the trainer ends after its step, the next one goes on from memory. */
void trainer_renew(struct supervisor *sup, const char *why);
/* What comes will take another time than what the watchdog has learned. */
void trainer_forget_pace(struct supervisor *sup);
void trainer_tick(struct supervisor *sup, nsec_t now_ns, nsec_t elapsed_ns);
/* An `event` of any worker. */
void worker_event(struct supervisor *sup, const json_t *body);

/* -- recover.c -- */
/* After an unplanned end: the ladder's decision, made durable, then schedule_start. */
void recover_decide(struct supervisor *sup, const struct obituary *obituary, bool stepped);
/* State memory, then the delay, then FSM_START (or FSM_COMPLETE). */
void schedule_start(struct supervisor *sup);
void schedule_cancel(struct supervisor *sup);
/* The rollback a person asked for (id NULL: to step 0): whether the state allows one; then, before
 * the trainer is ended for it, whether its checkpoint is there (and answers the call if not); then
 * the branch. */
bool rollback_may_begin(const struct supervisor *sup);
void rollback_look(struct supervisor *sup, struct call *call, const char *id);
void rollback_fork(struct supervisor *sup);
void recover_tick(struct supervisor *sup, nsec_t now_ns);
/* The ladder's branch that begins at step 0 is being made: what is in memory will not be on it. */
bool fork_is_from_start(const struct supervisor *sup);
/* Steps of about one checkpoint interval, at least 1. */
uint64_t interval_steps(const struct supervisor *sup);

/* -- saver.c -- */
extern const struct child_handlers saver_handlers;
/* As soon as the one in flight is over; call (may be NULL) is answered when it is verified. */
void saver_request(struct supervisor *sup, struct call *call, bool foreground);
void saver_tick(struct supervisor *sup, nsec_t now_ns);
/* The save in flight, if there is one, is waited for: at normal priority. */
void saver_hurry(struct supervisor *sup);
void final_save_begin(struct supervisor *sup);
/* The limit of stop_timeout, unless it runs already. */
void final_save_limit(struct supervisor *sup);
void final_save_step(struct supervisor *sup);
/* The time between saves that is in force; 0: none by time. */
nsec_t saver_interval_ns(const struct supervisor *sup);
/* Seconds to the next save by interval, or -1. */
double saver_next_seconds(const struct supervisor *sup, nsec_t now_ns);
void storage_note(struct supervisor *sup, bool good, const char *text);

/* -- outages.c -- */
/* The run is open: how did the last life end? */
void outages_life_begin(struct supervisor *sup);
void outages_life_end(struct supervisor *sup);
/* An end of the trainer; detected: by what it was noticed. */
void outages_trainer_ended(struct supervisor *sup, const struct obituary *obituary);
void outages_trainer_started(struct supervisor *sup);
/* It goes on at step; from: "memory", "checkpoint", "scratch". */
void outages_trainer_ready(struct supervisor *sup, const char *from, uint64_t step);
/* A step was seen finished that took step_ns (0: not known). */
void outages_stepped(struct supervisor *sup, uint64_t step, uint64_t step_ns);
/* A person went back: steps beyond this one are new again. */
void outages_went_back(struct supervisor *sup, uint64_t step);
void outages_tick(struct supervisor *sup, nsec_t now_ns);

/* -- tasks.c -- */
extern const struct child_handlers sample_handlers, verify_handlers;
void sample_start(struct supervisor *sup, struct call *call, json_t *more);
void verify_start(struct supervisor *sup, struct call *call, const char *id);

/* -- mirror.c -- */
extern const struct child_handlers mirror_handlers;
/* Something was saved, or the configuration changed: as soon as may be. */
void mirror_want(struct supervisor *sup);
/* Before the catalog may be replaced: at once. */
void mirror_stop(struct supervisor *sup);
void mirror_tick(struct supervisor *sup, nsec_t now_ns);
json_t *mirror_json(const struct supervisor *sup);

/* -- scrub.c -- */
extern const struct child_handlers scrub_handlers;
/* Begins one, or joins the one that runs; wait: answered when it ends. */
void scrub_request(struct supervisor *sup, struct call *call, bool wait);
/* The catalog may be replaced next, or the daemon ends. */
void scrub_stop(struct supervisor *sup);
void scrub_tick(struct supervisor *sup, nsec_t now_ns);
/* A reading says that this one is not to be believed, and the catalog does too: when it is the
 * newest, another is saved. */
void scrub_found_bad(struct supervisor *sup, const char *id, const char *state);
json_t *scrub_json(const struct supervisor *sup);
void scrub_ask_history(struct supervisor *sup);

/* -- requests.c -- */
void request_pause(struct supervisor *sup, struct call *call, bool power);
void request_resume(struct supervisor *sup, struct call *call, bool only_power);
/* The end of a power pause that nobody ends. */
void requests_tick(struct supervisor *sup, nsec_t now_ns);
void request_stop(struct supervisor *sup, struct call *call, bool exit, bool now);
/* SIGTERM, SIGINT: ends the daemon, wanted stays. */
void request_exit(struct supervisor *sup);
/* id NULL: to step 0, and then the run is wanted. */
void request_rollback(struct supervisor *sup, struct call *call, const char *id);
void request_keep(struct supervisor *sup, struct call *call, const char *id, bool keep);
void request_reload(struct supervisor *sup, struct call *call);
/* The trainer cannot do what was asked for: back to what it does. */
void reload_refused(struct supervisor *sup, const char *why);

/* -- status.c -- */
/* Before status_json: what costs system calls is asked again when it is old. */
void status_refresh(struct supervisor *sup);
json_t *status_json(const struct supervisor *sup);
/* For systemctl status. */
void status_line(const struct supervisor *sup, char *text, size_t size);
