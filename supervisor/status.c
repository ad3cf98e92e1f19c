/* What people are told. It must never show what was not measured: null or an empty text stands for
 * what is not known. Invariant: the members are those of the type RunStatus in the interface. */
#include "supervisor/supervisor.h"
#include "supervisor/text.h"

#include "base/panic.h"
#include "proto/interface.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RESIDENT_NS (100 * NSEC_PER_MSEC)
#define STATUS_MEMBERS 35 /* of the type RunStatus */

static int64_t resident_bytes(pid_t pid)
{
	char path[64];
	long long total = 0, resident = 0;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
	FILE *file = fopen(path, "re");

	if (!file)
		return 0;
	if (fscanf(file, "%lld %lld", &total, &resident) != 2)
		resident = 0;
	fclose(file);
	return resident * (int64_t)sysconf(_SC_PAGESIZE);
}

static const struct child *worker_of(const struct supervisor *sup)
{
	return child_alive(&sup->trainer) ? &sup->trainer : &sup->preparer;
}

void status_refresh(struct supervisor *sup)
{
	const struct child *worker = worker_of(sup);
	nsec_t now_ns = clock_monotonic_ns();

	if (sup->shown.resident_ns > 0 && now_ns - sup->shown.resident_ns < RESIDENT_NS)
		return;
	sup->shown.resident_ns = now_ns;
	sup->shown.worker_bytes = child_alive(worker) ? resident_bytes(worker->pid) : 0;
	sup->shown.own_bytes = resident_bytes(getpid());
}

/* Before the trainer says `ready` it is not training yet. */
static const char *state_word(const struct supervisor *sup)
{
	bool coming = (sup->state == FSM_TRAINING && !sup->trainer_ready) ||
		sup->state == FSM_RESTARTING;

	if (coming)
		return sup->restarts > 0 ? "restarting" : "starting";
	return fsm_public_name(sup->state);
}

static void state_sentence(const struct supervisor *sup, char *text, size_t size)
{
	const char *trouble = sup->trouble;

	CHECK(size > 0);
	switch (sup->state) {
	case FSM_STARTING:
		snprintf(text, size, "%s", *trouble ? trouble : "opening the run");
		return;
	case FSM_WAITING:
	case FSM_FAILED:
		snprintf(text, size, "%s", *trouble ? trouble : "waiting");
		return;
	case FSM_PREPARING:
		snprintf(text, size, "%s%s",
			*trouble ? "preparing; last time: " : "preparing the run", trouble);
		return;
	case FSM_RESTARTING:
		if (sup->fork_pending)
			snprintf(text, size, "making the new branch durable");
		else if (sup->making_memory || *trouble)
			snprintf(text, size, "state memory: %s", *trouble ? trouble : "making it");
		else
			snprintf(text, size, "rung %u: starting %s", sup->decision.rung,
				restart_from_text(sup->decision.from));
		return;
	case FSM_TRAINING:
		snprintf(text, size, "%s",
			sup->trainer_ready ? "training" : "the trainer is starting");
		return;
	case FSM_PAUSED:
		snprintf(text, size, "%s",
			sup->run.power_paused ? "paused because power failed: `ckptctl power-ok`"
					      : "paused: `ckptctl resume` goes on");
		return;
	case FSM_STOPPED:
		snprintf(text, size, "stopped: `ckptctl resume` goes on");
		return;
	case FSM_FINISHING:
		snprintf(text, size, "all steps are done; the last checkpoint is being saved%s%s",
			*sup->saver.last_error ? "; last try: " : "", sup->saver.last_error);
		return;
	case FSM_FINISHED:
		snprintf(text, size, "finished%s%.400s", sup->newest.known ? ": " : "",
			sup->newest.known ? sup->newest.path : "");
		return;
	case FSM_ENDED:
		snprintf(text, size, "the daemon ends");
		return;
	default:
		snprintf(text, size, "%s%s", fsm_state_name(sup->state),
			sup->final.active ? ": the last save" : ": after the step that runs");
	}
}

static json_t *worker_json(const struct supervisor *sup, nsec_t now_ns)
{
	const struct child *child = worker_of(sup);
	bool alive = child_alive(child);

	return json_pack("{s:i, s:f, s:I}", "pid", alive ? (int)child->pid : 0, "uptime_seconds",
		alive ? (double)(now_ns - child->begun_ns) / 1e9 : 0.0, "rss_bytes",
		(json_int_t)(alive ? sup->shown.worker_bytes : 0));
}

static json_t *newest_json(const struct supervisor *sup)
{
	const struct newest *newest = &sup->newest;
	CHECK(!newest->known || newest->id[0]);
	double age = (double)(clock_wall_ns() - newest->wall_ns) / 1e9;

	if (!newest->known)
		return json_null();
	return json_pack("{s:o, s:I, s:o, s:o, s:f}", "id", text_json(newest->id), "step",
		(json_int_t)newest->step, "root", text_json(newest->root), "path",
		text_json(newest->path), "age_seconds", age > 0 ? age : 0.0);
}

static json_t *save_json(const struct supervisor *sup, nsec_t now_ns)
{
	double next = saver_next_seconds(sup, now_ns);
	struct progress *progress = sup->progress;
	nsec_t interval_ns = saver_interval_ns(sup);

	return json_pack("{s:b, s:o, s:o, s:o, s:o, s:o, s:I, s:f, s:f, s:f}", "in_flight",
		sup->saver.in_flight, "interval_seconds",
		interval_ns > 0 ? json_real((double)interval_ns / 1e9) : json_null(),
		"cost_seconds",
		sup->saver.cost_seconds > 0 ? json_real(sup->saver.cost_seconds) : json_null(),
		"last_ms",
		sup->saver.last_ms >= 0 ? json_real((double)sup->saver.last_ms) : json_null(),
		"last_error", text_json(sup->saver.last_error), "next_seconds",
		next >= 0 ? json_real(next) : json_null(), "stalls",
		(json_int_t)(atomic_load(&progress->stall_count) & INT64_MAX), "stall_last_ms",
		(double)atomic_load(&progress->stall_last_ns) * 1e-6, "stall_total_ms",
		(double)atomic_load(&progress->stall_total_ns) * 1e-6, "stall_max_ms",
		(double)atomic_load(&progress->stall_max_ns) * 1e-6);
}

static json_t *slots_json(const struct supervisor *sup)
{
	static const char *const texts[] = {"no state memory now",
		"one slot: saves stall training for a copy, a death goes back to the disk",
		"two slots: a death during a save repeats the steps since the save began",
		"three slots: no finished step is lost, saves do not stall training"};
	uint32_t count = sup->has_memory ? sup->memory.header.slot_count : 0;

	CHECK(count <= STATE_SLOTS_MAX);
	return json_pack("{s:i, s:I, s:b, s:b, s:s}", "count", (int)count, "bytes",
		(json_int_t)sup->memory_bytes, "no_step_lost", count == 3, "no_stall", count == 3,
		"text", texts[count]);
}

static json_t *engine_json(const struct supervisor *sup)
{
	uint32_t threads = sup->ladder.safe_engine ? 1 : (uint32_t)sup->config.threads;

	return json_pack("{s:o, s:o, s:i, s:I}", "name", text_json(sup->shown.engine), "reason",
		text_json(sup->shown.engine_reason), "threads", (int)resources_threads(threads),
		"plan_bytes", (json_int_t)sup->shown.plan_bytes);
}

static json_t *warnings_json(const struct supervisor *sup)
{
	json_t *list = json_array();

	CHECK(list);
	char text[ERROR_TEXT_MAX + 64];

	if (sup->config_last_good) {
		snprintf(text, sizeof(text), "going on with last-good.conf: %s", sup->config_text);
		json_array_append_new(list, text_json(text));
	}
	if (sup->storage_bad) {
		snprintf(text, sizeof(text), "storage: %s", sup->storage_text);
		json_array_append_new(list, text_json(text));
	}
	if (sup->over_bytes > 0) {
		snprintf(text, sizeof(text),
			"the checkpoints take %llu MiB more than keep_bytes allows, and none may "
			"go",
			(unsigned long long)(sup->over_bytes >> 20) + 1);
		json_array_append_new(list, text_json(text));
	}
	if (sup->stale_weights)
		json_array_append_new(list,
			text_json("stale weights: the newest checkpoint has the weights of the one "
				  "before it, though updates were counted"));
	if (sup->wanted_not_durable)
		json_array_append_new(list,
			text_json("run.json could not be written: what is wanted would be "
				  "forgotten by a restart of the daemon"));
	if (sup->ledger.dropped > 0 || sup->metrics_lost > 0) {
		snprintf(text, sizeof(text), "%llu metrics were dropped: the disk does not keep up",
			(unsigned long long)(sup->ledger.dropped + sup->metrics_lost));
		json_array_append_new(list, text_json(text));
	}
	return list;
}

static void add_object(json_t *status, const char *key, json_t *value)
{
	CHECK(value);
	CHECK(!json_object_get(status, key));
	json_object_set_new(status, key, value);
}

static void add_numbers(const struct supervisor *sup, json_t *status)
{
	const struct shown *shown = &sup->shown;
	struct state_record record = {0};
	bool has_record = memory_newest(sup, &record) == 0;
	/* Without a state in memory, the newest checkpoint is where the run stands. */
	struct survey_counts counts = has_record
		? (struct survey_counts){.images_seen = record.images_seen,
			  .skipped_count = record.skipped_count}
		: sup->newest.known ? sup->newest.counts
				    : (struct survey_counts){0};
	uint64_t step = sup_step(sup);
	double left = (double)sup->config.steps_total - (double)step;
	bool measured = sup->state == FSM_TRAINING && shown->images_per_second > 0;

	add_object(
		status, "branch", json_integer(sup->survey.known ? sup->survey.line.current : 1));
	add_object(status, "step", json_integer((json_int_t)step));
	add_object(status, "steps_total", json_integer(sup->config.steps_total));
	add_object(status, "images_seen", json_integer((json_int_t)counts.images_seen));
	add_object(status, "loss",
		json_finite(
			has_record && record.step > 0 ? (double)record.loss : (double)shown->loss));
	add_object(status, "holdout_loss", json_finite((double)shown->holdout_loss));
	add_object(status, "images_per_second",
		measured ? json_finite(shown->images_per_second) : json_null());
	add_object(status, "eta_seconds",
		measured ? json_finite(left > 0 ? left * shown->step_ns / 1e9 : 0) : json_null());
	add_object(status, "restarts", json_integer(sup->restarts));
	add_object(status, "rung", json_integer(sup->ladder.rung));
	add_object(status, "skipped_updates", json_integer((json_int_t)counts.skipped_count));
}

json_t *status_json(const struct supervisor *sup)
{
	nsec_t now_ns = clock_monotonic_ns();
	json_t *status = json_object();
	char text[ERROR_TEXT_MAX + 128];

	CHECK(status);
	state_sentence(sup, text, sizeof(text));
	add_object(status, "state", text_json(state_word(sup)));
	add_object(status, "state_text", text_json(text));
	add_object(status, "wanted", text_json(wanted_name(sup->run.wanted)));
	add_object(status, "run", text_json(sup->run.id_hex));
	add_object(
		status, "run_dir", text_json(sup->has_run ? sup->run_dir : sup->config.state_dir));
	add_numbers(sup, status);
	add_object(status, "phase", text_json(phase_name(atomic_load(&sup->progress->phase))));
	add_object(status, "moves",
		json_integer((json_int_t)(atomic_load(&sup->progress->moves) & INT64_MAX)));
	add_object(status, "worker", worker_json(sup, now_ns));
	add_object(status, "saver",
		json_pack("{s:i, s:I}", "pid", sup->saver.in_flight ? (int)sup->saver.child.pid : 0,
			"step", (json_int_t)(sup->saver.in_flight ? sup->saver.record.step : 0)));
	add_object(status, "supervisor",
		json_pack("{s:i, s:f, s:I, s:s}", "pid", (int)getpid(), "uptime_seconds",
			(double)(now_ns - sup->begun_ns) / 1e9, "rss_bytes",
			(json_int_t)sup->shown.own_bytes, "version", proto_version));
	add_object(status, "last_death",
		sup->shown.last_death ? json_incref(sup->shown.last_death) : json_null());
	add_object(status, "newest_verified", newest_json(sup));
	add_object(status, "save", save_json(sup, now_ns));
	add_object(status, "scrub", scrub_json(sup));
	add_object(status, "mirror", mirror_json(sup));
	add_object(status, "slots", slots_json(sup));
	add_object(status, "signing",
		json_pack("{s:o, s:b}", "signer", text_json(sup->prepared.signer), "required",
			sup->config.require_signature));
	add_object(status, "engine", engine_json(sup));
	add_object(status, "sandbox", text_json(sup->shown.sandbox));
	add_object(status, "storage",
		json_pack("{s:b, s:o, s:I}", "ok", !sup->storage_bad, "text",
			text_json(sup->storage_text), "free_bytes",
			(json_int_t)sup->shown.free_bytes));
	add_object(status, "data",
		json_pack("{s:o, s:I, s:I}", "text", text_json(sup->prepared.data_text), "images",
			(json_int_t)sup->prepared.images, "classes",
			(json_int_t)sup->prepared.classes));
	add_object(status, "preview",
		json_pack("{s:I, s:o}", "step", (json_int_t)sup->shown.preview_step, "path",
			text_json(sup->shown.preview_path)));
	add_object(status, "config",
		json_pack("{s:o, s:o}", "source",
			text_json(sup->config_last_good            ? "last-good"
					: sup->options.source.path ? sup->options.source.path
								   : "defaults"),
			"text", text_json(sup->config_text)));
	add_object(status, "warnings", warnings_json(sup));
	CHECK(json_object_size(status) == STATUS_MEMBERS);
	return status;
}

void status_line(const struct supervisor *sup, char *text, size_t size)
{
	char age[CLOCK_TEXT_SIZE], sentence[ERROR_TEXT_MAX + 128];

	if (sup->state != FSM_TRAINING || !sup->trainer_ready) {
		state_sentence(sup, sentence, sizeof(sentence));
		snprintf(text, size, "%s: %.200s", state_word(sup), sentence);
		return;
	}
	clock_format_duration(clock_wall_ns() - sup->newest.wall_ns, age);
	snprintf(text, size, "step %llu/%lld loss %.4f, %.1f images/s, newest checkpoint %s%s",
		(unsigned long long)sup_step(sup), (long long)sup->config.steps_total,
		(double)sup->shown.loss, sup->shown.images_per_second,
		sup->newest.known ? age : "none", sup->newest.known ? " ago" : "");
}
