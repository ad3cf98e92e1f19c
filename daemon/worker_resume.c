/* Where a trainer begins: the newest sealed slot (when the supervisor allows it), else the newest
 * verified checkpoint on the line, else, only on a line that never had one, step 0. Whatever it is,
 * it leaves as a sealed slot whose record is the newest, before the first step runs.
 *
 * Must never: go on from a slot whose sums do not match, start from scratch beside checkpoints
 * that cannot be read, or resume what is off the line. */
#include "base/panic.h"
#include "base/seal.h"
#include "daemon/worker_init.h"
#include "daemon/worker_record.h"
#include "daemon/worker_trainer.h"
#include "store/recovery.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FETCHES_MAX 3

/* Sums of the slot's block, by all threads. */
static void sum_slot(const struct trainer *trainer, uint32_t slot, uint64_t *sums)
{
	const uint8_t *block = (const uint8_t *)state_section(&trainer->state, slot, 0);
	int64_t count = (int64_t)state_sum_count(&trainer->state);

#pragma omp parallel for schedule(dynamic, 8)
	for (int64_t i = 0; i < count; i++) {
		sums[i] = seal_sum(block + (size_t)i * SEAL_CHUNK_BYTES, 0,
			SEAL_CHUNK_BYTES / sizeof(uint32_t));
		progress_move(trainer->progress);
	}
}

static struct digest sums_digest(const struct trainer *trainer, uint32_t slot)
{
	return digest_of(state_sums(&trainer->state, slot),
		state_sum_count(&trainer->state) * sizeof(uint64_t));
}

/* True when the slot's bytes are those that were sealed. */
static bool seal_holds(struct trainer *trainer, const struct state_record *record)
{
	struct digest digest = sums_digest(trainer, record->slot);

	if (!digest_equal(&digest, &record->sums_digest))
		return false;
	sum_slot(trainer, record->slot, trainer->sums_copy);
	return memcmp(trainer->sums_copy, state_sums(&trainer->state, record->slot),
		       state_sum_count(&trainer->state) * sizeof(uint64_t)) == 0;
}

static int data_changed(struct trainer *trainer, const struct digest *recorded, const char *where)
{
	char was[DIGEST_HEX_SIZE], is[DIGEST_HEX_SIZE];

	digest_to_hex(recorded, was);
	digest_to_hex(&trainer->data.digest, is);
	return worker_fail(trainer->worker, LINK_EXIT_CONFIG,
		"the images (%s) are not those of %s (digest %.12s, was %.12s): bring the old ones "
		"back, "
		"or begin another run in another state_dir",
		trainer->data.text, where, is, was);
}

/* The record of a state that was found becomes this trainer's: on the current branch, with this
 * fingerprint, and with what the configuration or the engine changed since entered as
 * interventions. */
static int adopt_record(struct trainer *trainer, const struct state_record *found)
{
	struct worker *worker = trainer->worker;
	struct state_record *record = &trainer->record;
	struct engine_choice choice;
	struct config before;
	struct error err;
	int r;

	*record = *found;
	r = record_config(found, &worker->start.config, &before, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	r = trainer_choose_engine(trainer, &worker->start.config, found, &choice, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err);
	if (record_changes(record, &before, &worker->start.config, trainer_tell, trainer))
		trainer->record_changed = true;
	if (trainer_set_engine(trainer, &choice))
		trainer->record_changed = true;
	if (record->branch != trainer->line.current) {
		record->branch = trainer->line.current;
		trainer->record_changed = true;
	}
	if (!digest_equal(&record->fingerprint, &worker->fingerprint)) {
		worker_event(&worker->link, "fingerprint", "warning", record->step,
			"going on with another CPU, build, OpenBLAS or libc than the state was "
			"made with: from step %" PRIu64
			" bits may differ from an uninterrupted run (now: %s)",
			record->step, worker->fingerprint_text);
		record->fingerprint = worker->fingerprint;
		trainer->record_changed = true;
	}
	return 0;
}

/* 0: resumed, -ENOENT: nothing usable there, > 0: exit code. */
static int resume_memory(struct trainer *trainer)
{
	struct worker *worker = trainer->worker;
	struct state_record found;

	if (state_newest_record(&trainer->state, &found) < 0)
		return -ENOENT;
	if (memcmp(found.run_id, worker->start.run_id, RUN_ID_SIZE) != 0 ||
		!digest_equal(&found.model_digest, &trainer->model.digest)) {
		worker_event(&worker->link, "memory", "warning", found.step,
			"the state in memory belongs to another run or model: taking a checkpoint");
		return -ENOENT;
	}
	if (!line_contains(&trainer->line, found.branch, found.step)) {
		worker_event(&worker->link, "memory", "info", found.step,
			"step %" PRIu64
			" of branch %u in memory is off the line: taking a checkpoint",
			found.step, found.branch);
		return -ENOENT;
	}
	if (!digest_equal(&found.data_digest, &trainer->data.digest))
		return data_changed(trainer, &found.data_digest, "the state in memory");
	if (!seal_holds(trainer, &found)) {
		state_empty_all(&trainer->state);
		return worker_fail(worker, LINK_EXIT_MEMORY_CORRUPT,
			"the state of step %" PRIu64
			" in memory does not match its sums: memory corrupt",
			found.step);
	}
	return adopt_record(trainer, &found);
}

/* Seals what stands in slot under trainer->record. */
static void seal_slot(struct trainer *trainer, uint32_t slot)
{
	trainer->record.sums_digest = sums_digest(trainer, slot);
	state_commit(&trainer->state, slot, &trainer->record);
	trainer->record_changed = false;
}

/* The newest on the line that verifies, whichever of the two disks has it. */
static int load_newest(
	struct trainer *trainer, uint32_t slot, struct checkpoint_info *ret, struct error *err)
{
	struct worker *worker = trainer->worker;
	int64_t have;
	int r;

	for (int try = 0;; try++) {
		r = recovery_load(worker->start.run_dir, worker->run_fd, &trainer->run,
			&trainer->model.table, state_section(&trainer->state, slot, 0),
			state_sums(&trainer->state, slot), worker->start.threads,
			&trainer->progress->moves, worker_report, worker, ret, err);
		have = r == 0 ? (int64_t)ret->record.step : -1;
		if (try == FETCHES_MAX || !worker_fetch_newest(worker, &trainer->run, &have))
			return r;
		if (r == 0)
			checkpoint_info_fini(ret);
	}
}

/* 0, -ENOENT: no checkpoint at all, > 0: exit code. */
static int resume_disk(struct trainer *trainer, uint32_t slot, struct resume *ret)
{
	struct worker *worker = trainer->worker;
	struct checkpoint_info info;
	struct error err;
	int r;

	progress_phase(trainer->progress, PHASE_RECOVER);
	r = load_newest(trainer, slot, &info, &err);
	if (r == -ENOENT)
		return r;
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err);
	if (!digest_equal(&info.record.data_digest, &trainer->data.digest))
		r = data_changed(trainer, &info.record.data_digest, info.id);
	else
		r = adopt_record(trainer, &info.record);
	if (r == 0) {
		seal_slot(trainer, slot);
		ret->from = "checkpoint";
		snprintf(ret->checkpoint, sizeof(ret->checkpoint), "%s", info.id);
	}
	checkpoint_info_fini(&info);
	return r;
}

/* Step 0: weights, their copy as EMA, zero moments. */
static int begin_run(struct trainer *trainer, uint32_t slot, struct resume *ret)
{
	struct worker *worker = trainer->worker;
	uint64_t section_bytes = trainer->model.table.section_bytes;
	float *weights = state_section(&trainer->state, slot, SECTION_WEIGHTS);
	struct state_record *record = &trainer->record;
	struct engine_choice choice;
	struct error err;
	int r;

	if (!worker->start.run_created)
		return worker_fail(worker, LINK_EXIT_TRANSIENT,
			"this run had verified checkpoints, and none is in %s/checkpoints now: "
			"bring them back, or begin again with `ckptctl restart --from-scratch`",
			worker->start.run_dir);
	r = trainer_choose_engine(trainer, &worker->start.config, NULL, &choice, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err);
	progress_phase(trainer->progress, PHASE_INIT);
	/* The slot may hold an older state: padding and moments must be zero. */
	memset(weights, 0, section_bytes * SECTION_COUNT);
	r = init_weights(&trainer->model, &worker->start.config, &trainer->rng, weights, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err);
	memcpy(state_section(&trainer->state, slot, SECTION_EMA), weights, section_bytes);
	sum_slot(trainer, slot, state_sums(&trainer->state, slot));

	memset(record, 0, sizeof(*record));
	memcpy(record->run_id, worker->start.run_id, RUN_ID_SIZE);
	record->branch = trainer->line.current;
	record->model_digest = trainer->model.digest;
	record->data_digest = trainer->data.digest;
	record->fingerprint = worker->fingerprint;
	record_begin(record, &worker->start.config);
	trainer_set_engine(trainer, &choice);
	seal_slot(trainer, slot);
	ret->from = "scratch";
	return 0;
}

static int resume_into_slot(struct trainer *trainer, struct resume *ret)
{
	uint32_t slot;
	int r = trainer_begin_write(trainer, &slot);

	if (r != 0)
		return r;
	r = resume_disk(trainer, slot, ret);
	if (r == -ENOENT)
		r = begin_run(trainer, slot, ret);
	if (r > 0 && state_slot_state(&trainer->state, slot, NULL, NULL) == SLOT_WRITING)
		state_abort_write(&trainer->state, slot);
	return r;
}

int trainer_resume(struct trainer *trainer, struct resume *ret)
{
	int r = -ENOENT;

	*ret = (struct resume){.from = "memory"};
	if (trainer->worker->start.resume_memory)
		r = resume_memory(trainer);
	if (r == -ENOENT)
		r = resume_into_slot(trainer, ret);
	if (r == 0 && trainer->record_changed) {
		state_commit_record(&trainer->state, &trainer->record);
		trainer->record_changed = false;
	}
	return r;
}
