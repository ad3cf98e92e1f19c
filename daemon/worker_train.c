/* The role `train`: one optimizer step after another, from the state that worker_resume found until
 * `stop`, steps_total or an end that the exit code tells.
 *
 * Invariants: a step is finished when its record is committed, and not before; between two commits
 * nothing that a restart needs changes; the loop allocates nothing; the link is looked at once a
 * step, without waiting. */
#include "base/arena.h"
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "daemon/train/fault.h"
#include "daemon/worker_confine.h"
#include "daemon/worker_record.h"
#include "daemon/worker_spike.h"
#include "daemon/worker_trainer.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUSY_POLL_MS 20

void trainer_tell(void *context, const char *text)
{
	struct trainer *trainer = context;

	worker_event(
		&trainer->worker->link, "intervention", "info", trainer->record.step, "%s", text);
}

int trainer_choose_engine(const struct trainer *trainer, const struct config *config,
	const struct state_record *record, struct engine_choice *ret, struct error *err)
{
	return engine_choose(&trainer->model.config, trainer->worker->start.engine, config->engine,
		record, ret, err);
}

bool trainer_set_engine(struct trainer *trainer, const struct engine_choice *choice)
{
	struct state_record *record = &trainer->record;

	trainer->engine = *choice;
	if (choice->replaced)
		worker_event(&trainer->worker->link, "engine", "warning", record->step,
			"%s: %s from step %" PRIu64
			" on, with other bits than an uninterrupted run",
			choice->reason, choice->engine->name, record->step);
	return record_set_engine(record, choice->engine->name, choice->by, trainer_tell, trainer);
}

void trainer_metric_loss(struct metric *metric, const struct loss *loss)
{
	metric->loss = (float)loss->mean;
	for (int i = 0; i < 4; i++)
		metric->loss_quartile[i] = loss->quartile_count[i]
			? (float)(loss->quartile_sum[i] / loss->quartile_count[i])
			: NAN;
}

int trainer_begin_write(struct trainer *trainer, uint32_t *ret_slot)
{
	struct worker *worker = trainer->worker;
	nsec_t begun = clock_monotonic_ns();
	bool refused = false;
	struct error err;

	while (state_begin_write(&trainer->state, ret_slot) == -EBUSY) {
		refused = true;
		progress_phase(trainer->progress, PHASE_WAIT);
		progress_move(trainer->progress);
		if (worker_link_poll(&worker->link, BUSY_POLL_MS, &err) < 0)
			return worker_fail(worker, LINK_EXIT_FAILED, "%s", err.text);
		if (worker->link.stop)
			return -ECANCELED;
	}
	progress_stall(trainer->progress, (uint64_t)(clock_monotonic_ns() - begun), refused);
	return 0;
}

/* -- beginning -- */

static void on_part(void *context, enum train_part part)
{
	static const enum phase phases[] = {
		[TRAIN_LOAD] = PHASE_LOAD,
		[TRAIN_FORWARD] = PHASE_FORWARD,
		[TRAIN_BACKWARD] = PHASE_BACKWARD,
	};
	struct trainer *trainer = context;

	progress_phase(trainer->progress, phases[part]);
}

static int map_memory(struct trainer *trainer, struct error *err)
{
	int r = progress_map(LINK_PROGRESS_FD, &trainer->progress, err);

	if (r < 0)
		return r;
	progress_phase(trainer->progress, PHASE_START);
	return state_map(&trainer->state, LINK_STATE_FD, true, err);
}

static int load_line(struct trainer *trainer, struct error *err)
{
	struct worker *worker = trainer->worker;
	int r = run_load(worker->run_fd, &trainer->run, err), dir;

	if (r < 0)
		return r;
	if (memcmp(trainer->run.id, worker->start.run_id, RUN_ID_SIZE) != 0)
		return error_set(err, -ESTALE,
			"%s holds run %s now, which is not the one this trainer was started for",
			worker->start.run_dir, trainer->run.id_hex);
	dir = file_open_dir(worker->run_fd, "checkpoints", 0750);
	if (dir < 0)
		return error_set(err, dir, "cannot open %s/checkpoints: %s", worker->start.run_dir,
			strerror(-dir));
	r = line_load(dir, &trainer->line, err);
	sys_close(dir);
	return r;
}

static struct train_setup step_setup(struct trainer *trainer, const struct engine *engine)
{
	return (struct train_setup){
		.model = &trainer->model.config,
		.table = &trainer->model.table,
		.engine = engine,
		.schedule = &trainer->schedule,
		.data = &trainer->data,
		.rng = trainer->rng,
		.params = plan_params(&trainer->config),
		.recompute = strcmp(trainer->config.recompute, "blocks") == 0,
		.moves = &trainer->progress->moves,
		.entered = on_part,
		.context = trainer,
	};
}

/* A step for the engine that a new run would have, which nearly every run has still, and the slot
 * that it will write. */
static void begin_ahead(struct trainer *trainer)
{
	struct engine_choice choice;
	struct error ignored; /* told when the record is known */

	if (trainer_choose_engine(trainer, &trainer->config, NULL, &choice, &ignored) < 0)
		return;
	struct train_setup setup = step_setup(trainer, choice.engine);

	ahead_begin(&trainer->ahead, &setup, &trainer->state, 1, 2);
}

/* Everything that a step needs, laid out for the configuration in force. */
static int lay_out_plan(struct trainer *trainer, struct error *err)
{
	struct train_setup setup = step_setup(trainer, trainer->engine.engine);
	int r = 0;

	trainer->train = ahead_take(&trainer->ahead, setup.engine);
	if (!trainer->train)
		r = train_new(&setup, &trainer->train, err);
	if (r < 0)
		return r;
	r = preview_new(trainer, &trainer->preview, err);
	if (r < 0)
		return r;
	atomic_store(&trainer->progress->plan_bytes,
		train_plan_bytes(trainer->train) + preview_bytes(trainer->preview));
	atomic_store(&trainer->progress->images_per_step, setup.params.batch_size);
	return 0;
}

static void free_plan(struct trainer *trainer)
{
	(void)ahead_take(&trainer->ahead, NULL);
	preview_free(trainer->preview);
	train_free(trainer->train);
	trainer->preview = NULL;
	trainer->train = NULL;
}

static int open_model(struct trainer *trainer, struct error *err)
{
	struct worker *worker = trainer->worker;
	int r = model_init(&trainer->model, &trainer->config, trainer->data.class_count, err);

	if (r < 0)
		return r;
	r = plan_schedule(&trainer->config, &trainer->schedule, err);
	if (r < 0)
		return r;
	rng_init(&trainer->rng, (uint64_t)trainer->config.seed);
	r = state_check_identity(
		&trainer->state, worker->start.run_id, &trainer->model.digest, err);
	if (r < 0)
		return r;
	trainer->sums_copy = malloc(state_sum_count(&trainer->state) * sizeof(uint64_t));
	return trainer->sums_copy ? 0 : error_set(err, -ENOMEM, "no memory for the sums");
}

/* 0 or an exit code. */
static int open_trainer(struct trainer *trainer)
{
	struct worker *worker = trainer->worker;
	struct error err;
	int r = map_memory(trainer, &err);

	if (r == 0)
		r = load_line(trainer, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	progress_phase(trainer->progress, PHASE_DATA);
	r = plan_open_data(&trainer->config, worker->run_fd, &trainer->data, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err);
	r = open_model(trainer, &err);
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err) : 0;
}

static void close_trainer(struct trainer *trainer)
{
	free_plan(trainer);
	free(trainer->sums_copy);
	model_fini(&trainer->model);
	data_close(&trainer->data);
	line_fini(&trainer->line);
	run_fini(&trainer->run);
	state_unmap(&trainer->state);
	progress_unmap(trainer->progress);
}

static void publish_state(struct trainer *trainer)
{
	const struct state_record *record = &trainer->record;
	struct progress *progress = trainer->progress;
	uint32_t loss_bits;

	memcpy(&loss_bits, &record->loss, sizeof(loss_bits));
	atomic_store(&progress->loss_bits, loss_bits);
	atomic_store(&progress->branch, record->branch);
	atomic_store(&progress->images_seen, record->images_seen);
	atomic_store(&progress->step, record->step);
}

static void publish_engine(struct trainer *trainer)
{
	struct progress *progress = trainer->progress;

	snprintf(progress->engine, sizeof(progress->engine), "%s", trainer->engine.engine->name);
	snprintf(progress->engine_reason, sizeof(progress->engine_reason), "%s",
		trainer->engine.reason);
}

/* What the supervisor shows of engine and plan, added to body. Steals body (NULL: no memory). */
static int send_with_plan(struct trainer *trainer, const char *name, json_t *body)
{
	const struct progress *progress = trainer->progress;
	json_int_t bytes = (json_int_t)atomic_load(&progress->plan_bytes);
	int r;

	publish_engine(trainer);
	json_object_set_new(body, "engine", json_string(progress->engine));
	json_object_set_new(body, "engine_reason", json_string(progress->engine_reason));
	json_object_set_new(body, "plan_bytes", json_integer(bytes));
	r = worker_link_send(&trainer->worker->link, json_pack("{s:o}", name, body));
	return r < 0 ? LINK_EXIT_FAILED : 0;
}

static int say_ready(struct trainer *trainer, const struct resume *resume)
{
	const struct state_record *record = &trainer->record;

	publish_state(trainer);
	return send_with_plan(trainer, "ready",
		json_pack("{s:I,s:I,s:s,s:s,s:s}", "step", (json_int_t)record->step, "branch",
			(json_int_t)record->branch, "from", resume->from, "checkpoint",
			resume->checkpoint, "sandbox", trainer->worker->sandbox));
}

/* -- one step -- */

static void load_weights(struct trainer *trainer)
{
	unet_load_weights(trainer->train->unet,
		state_section(&trainer->state, trainer->record.slot, SECTION_WEIGHTS));
}

static void sections_of(const struct state *state, uint32_t slot, float *sections[SECTION_COUNT])
{
	for (uint32_t i = 0; i < SECTION_COUNT; i++)
		sections[i] = state_section(state, slot, i);
}

static int memory_corrupt(struct trainer *trainer)
{
	state_empty_all(&trainer->state);
	return worker_fail(trainer->worker, LINK_EXIT_MEMORY_CORRUPT,
		"the state of step %" PRIu64 " in memory changed while step %" PRIu64
		" read it: memory corrupt",
		trainer->record.step, trainer->record.step + 1);
}

/* A step on its way. */
struct step {
	nsec_t begun;
	struct train_result result;
	struct spike spike;
	bool skipped;
	struct adamw scalars;
	struct state_record next; /* becomes the record */
};

/* Before the commit: a death between the two redoes the step and replaces the row; after it, the
 * row would be lost. */
static void publish_metric(struct trainer *trainer, const struct step *step)
{
	nsec_t step_ns = clock_monotonic_ns() - step->begun;
	struct metric metric = {
		.step = step->next.step,
		.branch = step->next.branch,
		.kind = METRIC_TRAIN,
		.grad_norm = (float)step->result.grad_norm,
		.learning_rate = step->scalars.learning_rate,
		.step_ms = (float)step_ns * 1e-6f,
		.images = trainer->train->setup.params.batch_size,
		.skipped = step->skipped,
	};

	trainer_metric_loss(&metric, &step->result.loss);
	progress_metric(trainer->progress, &metric);
}

/* From the current slot to the next, and the commit. 0, an exit code, or -ECANCELED. */
static int apply_update(struct trainer *trainer, struct step *step)
{
	struct state *state = &trainer->state;
	size_t sums_bytes = state_sum_count(state) * sizeof(uint64_t);
	const uint64_t *src_sums = state_sums(state, trainer->record.slot);
	float *src[SECTION_COUNT], *dst[SECTION_COUNT];
	uint32_t slot;
	int r = trainer_begin_write(trainer, &slot);

	if (r != 0)
		return r;
	progress_phase(trainer->progress, PHASE_UPDATE);
	if (slot == trainer->record.slot) {
		/* In place: the table is rewritten too, so the old one is kept aside. */
		memcpy(trainer->sums_copy, src_sums, sums_bytes);
		src_sums = trainer->sums_copy;
	}
	sections_of(state, trainer->record.slot, src);
	sections_of(state, slot, dst);
	if (!train_update(
		    trainer->train, &step->scalars, src, dst, src_sums, state_sums(state, slot)))
		return memory_corrupt(trainer);
	if (fault_at("train.update", trainer->record.step) < 0)
		return worker_fail(trainer->worker, LINK_EXIT_FAILED, "fault point train.update");
	publish_metric(trainer, step);
	step->next.update_count++;
	step->next.skipped_in_row = 0;
	spike_learn(&step->next.usual, step->result.grad_norm, step->result.loss.mean);
	step->next.sums_digest = digest_of(state_sums(state, slot), sums_bytes);
	state_commit(state, slot, &step->next);
	trainer->record = step->next;
	load_weights(trainer);
	return 0;
}

/* The weights stay as they are; only the record goes on. 0 or an exit code. */
static int skip_update(struct trainer *trainer, struct step *step)
{
	struct worker *worker = trainer->worker;
	struct state_record *next = &step->next;
	char why[96] = "loss or gradient is not finite";

	publish_metric(trainer, step);
	if (step->result.finite)
		snprintf(why, sizeof(why), "%s is %.0f deviations above the usual",
			step->spike.what, step->spike.deviations);
	next->skipped_count++;
	next->skipped_in_row++;
	next->loss = trainer->record.loss;
	state_commit_record(&trainer->state, next);
	worker_event(&worker->link, step->result.finite ? "spike" : "nonfinite", "warning",
		next->step,
		"step %" PRIu64 ", images %" PRIu64 " to %" PRIu64
		" of the stream: %s: update skipped (%" PRIu64 " in a row)",
		next->step, trainer->record.images_seen, next->images_seen - 1, why,
		next->skipped_in_row);
	trainer->record = *next;
	if (next->skipped_in_row < (uint64_t)trainer->config.nonfinite_limit)
		return 0;
	return worker_fail(worker, LINK_EXIT_NONFINITE,
		"%" PRIu64 " updates in a row were skipped, the last at step %" PRIu64 ": %s",
		next->skipped_in_row, next->step, why);
}

/* Deaths that have a cause: whatever computes this step, only this branch or so many threads, or
 * whatever computes this part of the data (tests of the ladder need that). */
static int step_fault(const struct trainer *trainer)
{
	const struct state_record *record = &trainer->record;
	char aimed[64];

	if (!sys_fault_planned())
		return 0;
	int r = fault_at("train.step", record->step);

	if (r == 0)
		r = fault_at("train.batch", record->images_seen);
	snprintf(aimed, sizeof(aimed), "train.step@%" PRIu64 "/branch%u", record->step,
		record->branch);
	if (r == 0)
		r = sys_fault(aimed);
	snprintf(aimed, sizeof(aimed), "train.step@%" PRIu64 "/threads%u", record->step,
		trainer->worker->start.threads);
	return r == 0 ? sys_fault(aimed) : r;
}

/* 0, an exit code, or -ECANCELED. */
static int run_step(struct trainer *trainer)
{
	const struct train_params *params = &trainer->train->setup.params;
	struct state_record *record = &trainer->record;
	struct step step = {.begun = clock_monotonic_ns()};
	int r;

	record_apply_branch(record, &trainer->line, trainer_tell, trainer);
	atomic_store(&trainer->progress->step_begun, record->step + 1);
	if (step_fault(trainer) < 0)
		return worker_fail(trainer->worker, LINK_EXIT_FAILED, "fault point train.step");
	train_gradient(trainer->train, record->step, record->images_seen, &step.result);
	step.skipped = !step.result.finite;
	if (step.result.finite && trainer->config.spike_limit > 0) {
		step.spike = spike_measure(
			&record->usual, step.result.grad_norm, step.result.loss.mean);
		step.skipped = step.spike.deviations > trainer->config.spike_limit;
	}
	step.scalars = train_scalars(params, record->update_count, step.result.grad_norm);

	step.next = *record;
	step.next.step++;
	step.next.images_seen += params->batch_size;
	step.next.loss = (float)step.result.loss.mean;
	step.next.trained_ns += (uint64_t)(clock_monotonic_ns() - step.begun);
	r = step.skipped ? skip_update(trainer, &step) : apply_update(trainer, &step);
	atomic_store(&trainer->progress->step_ns, (uint64_t)(clock_monotonic_ns() - step.begun));
	publish_state(trainer);
	return r;
}

/* -- the loop -- */

/* With the engine that the record goes on with. 0 or an exit code. */
static int open_plan(struct trainer *trainer)
{
	struct error err;
	int r = lay_out_plan(trainer, &err);

	if (r < 0)
		return worker_fail_errno(trainer->worker, r, LINK_EXIT_FAILED, &err);
	load_weights(trainer);
	return 0;
}

/* 0, or negative with the reason for a refusal. */
static int read_reload(const struct trainer *trainer, struct config *ret,
	struct engine_choice *choice, struct error *err)
{
	AUTO_JSON reload = trainer->worker->link.reload;
	const struct config_key *key;
	int r;

	trainer->worker->link.reload = NULL;
	*ret = trainer->config;
	r = json_to_config(json_object_get(reload, "config"), ret, err);
	if (r < 0)
		return r;
	key = config_next_difference(&trainer->config, ret, CONFIG_IDENTITY, NULL);
	if (key)
		return error_set(err, -EINVAL, "%s is fixed for the life of a run", key->key);
	return trainer_choose_engine(trainer, ret, &trainer->record, choice, err);
}

/* Takes changed schedule and free keys; everything is laid out anew. 0 or an exit code. */
static int take_reload(struct trainer *trainer)
{
	struct worker *worker = trainer->worker;
	struct engine_choice choice;
	struct config config;
	struct error err;
	bool changed;
	int r = read_reload(trainer, &config, &choice, &err);

	if (r < 0) {
		(void)worker_link_send(
			&worker->link, json_pack("{s:{s:s}}", "reload_refused", "text", err.text));
		return 0;
	}
	changed = record_changes(
		&trainer->record, &trainer->config, &config, trainer_tell, trainer);
	if (trainer_set_engine(trainer, &choice) || changed)
		state_commit_record(&trainer->state, &trainer->record);
	trainer->config = config;
	worker->start.config = config;
	worker_set_threads(worker);
	free_plan(trainer);
	r = open_plan(trainer);
	return r == 0 ? send_with_plan(trainer, "plan", json_object()) : r;
}

static int finish(struct trainer *trainer, bool stepped)
{
	struct worker *worker = trainer->worker;

	if (stepped || (trainer->preview && !preview_exists(trainer)))
		preview_make(trainer);
	progress_phase(trainer->progress, PHASE_DONE);
	(void)worker_link_send(&worker->link,
		json_pack("{s:{s:I}}", "finished", "step", (json_int_t)trainer->record.step));
	return LINK_EXIT_DONE;
}

static int loop(struct trainer *trainer)
{
	struct worker *worker = trainer->worker;
	bool stepped = false;
	struct error err;
	int r;

	for (;;) {
		if (worker_link_poll(&worker->link, 0, &err) < 0)
			return worker_fail(worker, LINK_EXIT_FAILED, "%s", err.text);
		if (worker->link.stop)
			return -ECANCELED;
		if (worker->link.reload && (r = take_reload(trainer)) != 0)
			return r;
		if (trainer->record.step >= (uint64_t)trainer->config.steps_total)
			return finish(trainer, stepped);
		r = run_step(trainer);
		if (r != 0)
			return r;
		/* The second step writes the third slot. */
		if (!stepped)
			ahead_begin(&trainer->ahead, NULL, &trainer->state, 2, UINT32_MAX);
		stepped = true;
		if (preview_is_due(trainer) &&
			trainer->record.step < (uint64_t)trainer->config.steps_total)
			preview_make(trainer);
	}
}

int worker_train(struct worker *worker)
{
	static struct trainer trainer; /* large: the schedule */
	struct resume resume;
	int r;

	trainer.worker = worker;
	trainer.config = worker->start.config;
	r = open_trainer(&trainer);
	if (r == 0) {
		begin_ahead(&trainer);
		r = trainer_resume(&trainer, &resume);
	}
	if (r == 0) {
		ahead_wait(&trainer.ahead); /* only a process of one thread is confined */
		worker_confine_to_previews(worker);
		r = open_plan(&trainer);
	}
	if (r == 0)
		r = say_ready(&trainer, &resume);
	if (r == 0)
		r = loop(&trainer);
	if (r == -ECANCELED) {
		progress_phase(trainer.progress, PHASE_DONE);
		r = LINK_EXIT_DONE;
	}
	close_trainer(&trainer);
	return r;
}
