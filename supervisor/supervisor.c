/* The service: events into the table, its actions, the tick. It must never do the work of a worker
 * or wait for anything. Invariants: fsm_check holds after every event; events fed during an action
 * come after it. */
#include "supervisor/supervisor.h"
#include "supervisor/control.h"
#include "supervisor/methods.h"
#include "supervisor/text.h"

#include "base/log.h"
#include "base/panic.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUN_POLL_NS (2 * NSEC_PER_SEC)
#define PREPARE_RETRY_NS (1 * NSEC_PER_SEC)
#define FAILED_RETRY_NS (60 * NSEC_PER_SEC)
#define RETRY_MAX_NS (900 * NSEC_PER_SEC)
#define DRAIN_NS NSEC_PER_SEC
#define SPACE_NS (5 * NSEC_PER_SEC)
#define STATUS_NS (2 * NSEC_PER_SEC)
#define EXTEND_NS NSEC_PER_SEC
#define EXTEND_BY_USEC 10000000

/* -- events for the history -- */

void sup_event(struct supervisor *sup, const char *level, const char *kind, const char *fmt, ...)
{
	struct event_job *event = books_job(sizeof(*event), books_event_work, books_forget, sup);
	va_list arguments;

	va_start(arguments, fmt);
	vsnprintf(event->text, sizeof(event->text), fmt, arguments);
	va_end(arguments);
	text_flatten(event->text);
	snprintf(event->kind, sizeof(event->kind), "%s", kind);
	text_flatten(event->kind);
	snprintf(event->level, sizeof(event->level), "%s", level);
	event->wall_ns = clock_wall_ns();
	event->step = sup_step(sup);
	log_write(*level == 'e'         ? LOG_LEVEL_ERROR
			: *level == 'w' ? LOG_LEVEL_WARNING
					: LOG_LEVEL_INFO,
		"%s", event->text);
	sup->revision++;
	books_give(&sup->ledger, event);
}

uint64_t sup_step(const struct supervisor *sup)
{
	struct state_record record;

	if (memory_newest(sup, &record) == 0)
		return record.step;
	/* The state memory is not looked at yet: the page that systemd kept beside it knows. */
	uint64_t told = atomic_load(&sup->progress->step);

	if (sup->stored_state_fd >= 0 && told <= (uint64_t)sup->config.steps_total)
		return told;
	return sup->newest.known ? sup->newest.step : 0;
}

/* -- readiness -- */

/* Opened as soon as nobody else can be its owner: with the run's lock, or outside of the run. */
static int open_socket(struct supervisor *sup, struct error *err)
{
	const char *runtime = getenv("RUNTIME_DIRECTORY");
	struct control_options options = {.passed_fd = sup->passed_socket_fd,
		.handler = methods_handle,
		.stream = methods_stream,
		.owner = sup};
	char path[PATH_MAX + 16];

	CHECK(!sup->control);
	if (strcmp(sup->config.socket, "auto") != 0)
		snprintf(path, sizeof(path), "%s", sup->config.socket);
	else if (runtime && *runtime)
		snprintf(path, sizeof(path), "%s/ckptd.sock", runtime);
	else
		snprintf(path, sizeof(path), "%s/ckptd.sock",
			sup->has_run ? sup->run_dir : sup->config.state_dir);
	options.path = path;
	int code = control_open(&sup->control, &sup->loop, &options, err);

	if (code == 0)
		sup->passed_socket_fd = -1;
	return code;
}

static void become_ready(struct supervisor *sup)
{
	struct error error;

	if (!sup->control) {
		int code = open_socket(sup, &error);

		if (code == -ENOENT && !sup->has_run) {
			/* The folder is not there yet: without a run there is nobody to tell. */
			log_debug("%s", error.text);
		} else if (code < 0) {
			log_error("%s", error.text);
			sup->exit_code = 1;
			sup_dispatch(sup, FSM_EXIT);
			return;
		}
	}
	if (sup->ready_sent || sup->state == FSM_STARTING || sup->state == FSM_PREPARING)
		return;
	sup->ready_sent = true;
	notify_send(&sup->notify, "READY=1");
}

enum fsm_event sup_resume_event(const struct supervisor *sup)
{
	bool resting = sup->state == FSM_PAUSED || sup->state == FSM_STOPPED;

	return resting && !sup->prepared.known ? FSM_RETRY : FSM_RESUME;
}

/* -- calls that wait for a state -- */

static bool is_on_the_way(enum fsm_state state)
{
	return state == FSM_PAUSING || state == FSM_STOPPING || state == FSM_EXITING ||
		state == FSM_PREPARING || state == FSM_STARTING;
}

/* *ret: true when it got what it wanted. False: still on the way. */
static bool is_settled(const struct supervisor *sup, const struct call *call, bool *ret)
{
	*ret = call->wants == (int)sup->state || call->wants == FSM_STATE_COUNT ||
		sup->state == FSM_ENDED;
	return *ret || !is_on_the_way(sup->state);
}

void sup_settle(struct supervisor *sup)
{
	struct call **at = &sup->settling;

	if (sup->wanted_pending > 0 || sup->dispatching)
		return;
	while (*at) {
		struct call *call = *at;
		bool good;

		if (!is_settled(sup, call, &good)) {
			at = &call->next;
			continue;
		}
		*at = call->next;
		call->next = NULL;
		if (good)
			call_reply(call, json_incref(call->answer));
		else
			call_error(call, "Failed", "the service is %s now",
				fsm_state_name(sup->state));
	}
}

bool sup_is_quiet(const struct supervisor *sup)
{
	return (sup->state == FSM_TRAINING && sup->trainer_ready) || sup->state == FSM_PAUSED ||
		sup->state == FSM_STOPPED || sup->state == FSM_FINISHED;
}

void sup_on_stuck(struct child *child)
{
	sup_event(child->owner, "error", "stuck", "%s %d does not end by SIGKILL: waiting for it",
		child->role, (int)child->pid);
}

/* -- the table's actions -- */

static void end_loop(struct supervisor *sup)
{
	CHECK(sup->state == FSM_ENDED);
	CHECK(!child_alive(&sup->trainer) && !child_alive(&sup->preparer));
	notify_send(&sup->notify, "STOPPING=1");
	outages_life_end(sup);
	schedule_cancel(sup);
	uv_timer_stop(&sup->tick);
	child_kill(&sup->sample.child, SIGKILL);
	child_kill(&sup->verify.child, SIGKILL);
	child_kill(&sup->scrub.child, SIGKILL);
	child_kill(&sup->mirror.child, SIGKILL);
	uv_stop(&sup->loop);
}

static void retry_later(struct supervisor *sup)
{
	CHECK(sup->state == FSM_FAILED || sup->state == FSM_PREPARING);
	nsec_t base_ns = sup->state == FSM_FAILED ? FAILED_RETRY_NS : PREPARE_RETRY_NS;

	sup->retry_ns = clock_monotonic_ns() + backoff_ns(base_ns, RETRY_MAX_NS, sup->retries++, 0);
}

static void act(struct supervisor *sup, uint32_t actions, enum fsm_event event)
{
	if (actions & FSM_DO_CANCEL)
		schedule_cancel(sup);
	if (actions & FSM_DO_POLL) {
		if (sup->state == FSM_STARTING)
			open_run(sup);
		else
			sup->poll_ns = clock_monotonic_ns() + RUN_POLL_NS;
	}
	if (actions & FSM_DO_PREPARE)
		prepare_start(sup);
	if (actions & FSM_DO_SCHEDULE) {
		struct state_record record;

		if (event == FSM_GONE)
			sup->start_delay_ns = 0;
		if (event == FSM_RESUME || event == FSM_GONE)
			sup->resume_disk = memory_newest(sup, &record) < 0;
		schedule_start(sup);
	}
	if (actions & FSM_DO_DECIDE)
		schedule_start(sup);
	if (actions & FSM_DO_SPAWN)
		trainer_start(sup);
	if (actions & FSM_DO_HALT)
		trainer_halt(sup);
	if (actions & FSM_DO_SAVE)
		final_save_begin(sup);
	if (actions & FSM_DO_FORK)
		rollback_fork(sup);
	if (actions & FSM_DO_RELEASE)
		memory_release(sup);
	if (actions & FSM_DO_RETRY)
		retry_later(sup);
	if (actions & FSM_DO_END)
		end_loop(sup);
}

/* The last state may be lost before it is saved, and a reload may ask for more. */
static void check_finished(struct supervisor *sup)
{
	uint64_t step = sup->newest.known ? sup->newest.step : 0;

	if (sup->state != FSM_FINISHED || step >= (uint64_t)sup->config.steps_total)
		return;
	sup_event(sup, "warning", "restart",
		"only step %llu of %lld is saved: the steps after it are trained",
		(unsigned long long)step, (long long)sup->config.steps_total);
	sup_dispatch(sup, FSM_RETRY);
}

/* What a state brings with it, however it was reached. */
static void enter(struct supervisor *sup, enum fsm_state before)
{
	if (fsm_is_halting(sup->state))
		final_save_limit(sup);
	else
		sup->final.deadline_ns = 0;
	if (sup->state == FSM_PREPARING || sup->state == FSM_EXITING)
		scrub_stop(sup);
	if (sup->state == FSM_PREPARING)
		mirror_stop(sup);
	if (before == FSM_ROLLING && sup->state != FSM_RESTARTING && sup->rollback_call) {
		call_error(sup->rollback_call, "Failed", "given up: the service was asked to %s",
			sup->state == FSM_PAUSING ? "pause" : "stop");
		sup->rollback_call = NULL;
	}
	check_finished(sup);
	/* A pause and a resume may cross. */
	if ((sup->state == FSM_PAUSED || sup->state == FSM_STOPPED) &&
		sup->run.wanted == WANTED_RUN)
		sup_dispatch(sup, sup_resume_event(sup));
}

static void dispatch_one(struct supervisor *sup, enum fsm_event event)
{
	enum fsm_state before = sup->state;
	struct fsm_step step = fsm_next(before, event);

	if (!step.taken) {
		log_debug(
			"%s: %s means nothing here", fsm_state_name(before), fsm_event_name(event));
		return;
	}
	log_debug("%s: %s -> %s", fsm_state_name(before), fsm_event_name(event),
		fsm_state_name(step.next));
	sup->state = step.next;
	sup->revision++;
	if (event == FSM_RETRY)
		sup->retry_ns = 0;
	act(sup, step.actions, event);
	if (sup->state != before)
		enter(sup, before);
	become_ready(sup);
	struct fsm_facts facts = {.trainer = child_alive(&sup->trainer),
		.preparer = child_alive(&sup->preparer),
		.run = sup->has_run};

	fsm_check(sup->state, &facts);
}

void sup_dispatch(struct supervisor *sup, enum fsm_event event)
{
	CHECK(sup->event_count < EVENT_QUEUE_MAX);
	sup->events[(sup->event_first + sup->event_count++) % EVENT_QUEUE_MAX] = event;
	if (sup->dispatching)
		return;
	sup->dispatching = true;
	while (sup->event_count > 0) {
		enum fsm_event next = sup->events[sup->event_first];

		sup->event_first = (sup->event_first + 1) % EVENT_QUEUE_MAX;
		sup->event_count--;
		dispatch_one(sup, next);
	}
	sup->dispatching = false;
	sup_settle(sup);
}

/* -- the tick -- */

/* Once a second; a burst leaves the rest for the next one. Returns how many rows there were. */
static uint32_t drain_metrics(struct supervisor *sup)
{
	struct metrics_job *metrics = books_job(
		sizeof(*metrics), books_metrics_work, books_forget, sup);

	metrics->head.job.droppable = true;
	metrics->count = progress_drain(sup->progress, &sup->metrics_cursor, metrics->rows,
		BOOKS_METRICS_MAX, &sup->metrics_lost);
	CHECK(metrics->count <= BOOKS_METRICS_MAX);
	for (uint32_t i = 0; i < metrics->count; i++)
		if (metrics->rows[i].kind == METRIC_HOLDOUT)
			sup->shown.holdout_loss = metrics->rows[i].loss;
	uint32_t count = metrics->count;
	if (count == 0 || !sup->has_run)
		free(metrics);
	else
		books_give(&sup->ledger, metrics);
	return count;
}

void sup_drain_metrics(struct supervisor *sup)
{
	CHECK(sup->progress);
	for (uint32_t rows = 0; rows < PROGRESS_RING; rows += BOOKS_METRICS_MAX)
		if (drain_metrics(sup) == 0)
			return;
}

static void on_space(struct ledger_job *job)
{
	struct space_job *space = (struct space_job *)job;
	struct supervisor *sup = space->head.owner;

	if (job->result == 0)
		sup->shown.free_bytes = space->free_bytes;
	free(job);
}

static void tell_systemd(struct supervisor *sup, nsec_t now_ns)
{
	uint64_t moves = atomic_load(&sup->progress->moves);
	bool slow = !sup->ready_sent || sup->state == FSM_EXITING;
	char text[512];

	if (sup->notify.watchdog_ns > 0 &&
		now_ns - sup->watchdog_fed_ns >= sup->notify.watchdog_ns / 3) {
		sup->watchdog_fed_ns = now_ns;
		notify_send(&sup->notify, "WATCHDOG=1");
	}
	if (now_ns - sup->notify_status_ns >= STATUS_NS) {
		sup->notify_status_ns = now_ns;
		status_line(sup, text, sizeof(text));
		notify_send(&sup->notify, "STATUS=%s", text);
	}
	if (!slow || now_ns - sup->extended_ns < EXTEND_NS)
		return;
	sup->extended_ns = now_ns;
	bool waits = !sup->has_run && sup->lock_wait_since_ns > 0;

	if (moves != sup->extended_moves || sup->saver.in_flight || waits)
		notify_send(&sup->notify, "EXTEND_TIMEOUT_USEC=%d", EXTEND_BY_USEC);
	sup->extended_moves = moves;
}

static void on_tick(uv_timer_t *timer)
{
	struct supervisor *sup = timer->data;
	nsec_t now_ns = clock_monotonic_ns(), elapsed_ns = now_ns - sup->ticked_ns;

	CHECK(elapsed_ns >= 0);
	sup->ticked_ns = now_ns;
	trainer_tick(sup, now_ns, elapsed_ns);
	saver_tick(sup, now_ns);
	recover_tick(sup, now_ns);
	scrub_tick(sup, now_ns);
	mirror_tick(sup, now_ns);
	methods_tick(sup, now_ns);
	outages_tick(sup, now_ns);
	requests_tick(sup, now_ns);
	if (sup->poll_ns > 0 && now_ns >= sup->poll_ns &&
		(sup->state == FSM_STARTING || sup->state == FSM_WAITING))
		open_run(sup);
	if (sup->retry_ns > 0 && now_ns >= sup->retry_ns) {
		sup->retry_ns = 0;
		sup_dispatch(sup, FSM_RETRY);
	}
	if (now_ns - sup->drained_ns >= DRAIN_NS) {
		sup->drained_ns = now_ns;
		drain_metrics(sup);
	}
	if (sup->has_run && now_ns - sup->space_ns >= SPACE_NS) {
		sup->space_ns = now_ns;
		books_give(&sup->ledger,
			books_job(sizeof(struct space_job), books_space_work, on_space, sup));
	}
	tell_systemd(sup, now_ns);
}

static void on_signal(uv_signal_t *handle, int number)
{
	struct supervisor *sup = handle->data;

	switch (number) {
	case SIGHUP:
		request_reload(sup, NULL);
		break;
	case SIGPWR:
		request_pause(sup, NULL, true);
		break;
	default:
		log_notice("%s: saving, then ending", signal_name(number));
		request_exit(sup);
	}
}

/* -- life -- */

static void init_fields(struct supervisor *sup)
{
	sup->begun_ns = sup->ticked_ns = clock_monotonic_ns();
	sup->run_fd = sup->lock_fd = -1;
	sup->saver.last_ms = -1;
	sup->saver.last_end_ns = sup->begun_ns;
	sup->saver.auto_ns = INTERVAL_MIN_NS;
	sup->shown.loss = sup->shown.holdout_loss = NAN;
	sup->revision = 1;
	ladder_init(&sup->ladder);
	watchdog_init(&sup->watchdog, TICK_NS, sup->config.hang_timeout * NSEC_PER_SEC);
	child_init(&sup->preparer, "prepare", &prepare_handlers, sup);
	child_init(&sup->trainer, "train", &trainer_handlers, sup);
	child_init(&sup->saver.child, "save", &saver_handlers, sup);
	child_init(&sup->sample.child, "sample", &sample_handlers, sup);
	child_init(&sup->verify.child, "verify", &verify_handlers, sup);
	child_init(&sup->scrub.child, "scrub", &scrub_handlers, sup);
	child_init(&sup->mirror.child, "mirror", &mirror_handlers, sup);
	sup->mirror.pending = true;
}

static int init_config(struct supervisor *sup, struct error *err)
{
	enum log_level level;
	int code = config_resolve(&sup->options.source, &sup->config, err);

	if (code < 0) {
		if (sup->options.strict)
			return code;
		/* As a service the last good one may do: the run decides. */
		sup->config_refused_at_start = true;
		snprintf(sup->config_text, sizeof(sup->config_text), "%s", err->text);
		log_error("%s", err->text);
		struct config_source source = sup->options.source;

		source.path = NULL;
		source.set_count = 0;
		code = config_resolve(&source, &sup->config, err);
	}
	if (code == 0 && log_level_parse(sup->config.log_level, &level) == 0)
		log_set_level(level);
	return code;
}

static void no_room(void *room)
{
}

static void init_loop(struct supervisor *sup)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGPWR};

	CHECK(uv_loop_init(&sup->loop) == 0);
	CHECK(uv_timer_init(&sup->loop, &sup->tick) == 0);
	CHECK(uv_timer_init(&sup->loop, &sup->start_timer) == 0);
	sup->tick.data = sup->start_timer.data = sup;
	CHECK(uv_timer_start(&sup->tick, on_tick, TICK_MS, TICK_MS) == 0);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		CHECK(uv_signal_init(&sup->loop, &sup->signals[i]) == 0);
		sup->signals[i].data = sup;
		CHECK(uv_signal_start(&sup->signals[i], on_signal, numbers[i]) == 0);
	}
	CHECK(ledger_init(&sup->ledger, &sup->loop, books_new(), books_free) == 0);
	CHECK(ledger_init(&sup->maker, &sup->loop, NULL, no_room) == 0);
}

int supervisor_init(struct supervisor *sup, const struct options *options, struct error *err)
{
	struct notify_passed passed;
	int code;

	*sup = (struct supervisor){0};
	sup->options = *options;
	signal(SIGPIPE, SIG_IGN);
	umask(0027);
	code = init_config(sup, err);
	if (code < 0)
		return code;
	init_fields(sup);
	code = notify_init(&sup->notify, err);
	if (code < 0)
		return code;
	notify_take_passed(&passed);
	signing_init(&sup->signing);
	sup->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (sup->null_fd < 0)
		return error_set(err, -errno, "/dev/null: %s", strerror(errno));
	code = memory_progress_init(sup, &passed, err);
	if (code < 0)
		return code;
	init_loop(sup);
	return 0;
}

int supervisor_run(struct supervisor *sup)
{
	struct error error;

	/* A passed socket is nobody else's: it answers from the beginning. */
	if (sup->passed_socket_fd >= 0 && open_socket(sup, &error) < 0)
		log_error("%s", error.text);
	open_run(sup);
	uv_run(&sup->loop, UV_RUN_DEFAULT);
	CHECK(sup->state == FSM_ENDED);
	CHECK(!child_alive(&sup->trainer));
	/* Workers on request and clients' last replies. */
	while (child_alive(&sup->sample.child) || child_alive(&sup->verify.child) ||
		child_alive(&sup->scrub.child) || child_alive(&sup->mirror.child) ||
		child_alive(&sup->saver.child))
		uv_run(&sup->loop, UV_RUN_ONCE);
	return sup->exit_code;
}

static void close_signals(struct supervisor *sup)
{
	for (size_t i = 0; i < sizeof(sup->signals) / sizeof(sup->signals[0]); i++)
		if (sup->signals[i].loop && !uv_is_closing((uv_handle_t *)&sup->signals[i]))
			uv_close((uv_handle_t *)&sup->signals[i], NULL);
}

void supervisor_fini(struct supervisor *sup)
{
	ledger_fini(&sup->maker);
	ledger_fini(&sup->ledger);
	if (sup->control)
		control_close(sup->control);
	uv_close((uv_handle_t *)&sup->tick, NULL);
	uv_close((uv_handle_t *)&sup->start_timer, NULL);
	close_signals(sup);
	uv_run(&sup->loop, UV_RUN_DEFAULT);
	control_free(sup->control);
	CHECK(uv_loop_close(&sup->loop) == 0);
	memory_drop_ahead(sup);
	if (sup->has_memory) {
		close(sup->memory.fd);
		state_unmap(&sup->memory);
	}
	progress_unmap(sup->progress);
	line_fini(&sup->survey.line);
	run_fini(&sup->run);
	json_decref(sup->shown.last_death);
	json_decref(sup->status);
	notify_fini(&sup->notify);
	if (sup->lock_fd >= 0)
		close(sup->lock_fd);
	if (sup->run_fd >= 0)
		close(sup->run_fd);
	signing_fini(&sup->signing);
	close(sup->null_fd);
	close(sup->progress_fd);
}
