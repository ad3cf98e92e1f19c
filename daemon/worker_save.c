/* The role `save`: one checkpoint of the pinned slot. A process of its own, at low priority unless
 * asked otherwise: a crash here costs this checkpoint and nothing else, and a save in flight
 * outlives the trainer.
 *
 * With one slot it first takes a copy, if there is memory for one: then training waits no longer.
 *
 * Must never: publish bytes that do not match the sums, or read any slot but the pinned one. */
#include "base/file.h"
#include "base/sys.h"
#include "daemon/train/fault.h"
#include "daemon/worker.h"
#include "daemon/worker_plan.h"
#include "daemon/worker_record.h"
#include "proto/memfd.h"
#include "store/recovery.h"

#include <errno.h>
#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SAVE_TRIES 3

struct saver {
	struct worker *worker;
	struct state state;
	struct state_record record; /* pinned */
	uint64_t *sums;             /* our copy of the slot's table */
	void *copy;                 /* of the slot itself; NULL: it stays pinned to the end */
	struct config config;       /* in force at the record's step */
	struct model model;
	struct run run;
	int checkpoints_fd;
	struct sign_key key; /* when there is a signing_key */
};

static bool still_valid(void *context)
{
	const struct saver *saver = context;

	return state_still_pinned(&saver->state, &saver->record);
}

/* The table is copied before a byte is read; from then on only the copy is believed. */
static int copy_sums(struct saver *saver, struct error *err)
{
	size_t bytes = state_sum_count(&saver->state) * sizeof(uint64_t);
	struct digest digest;

	saver->sums = malloc(bytes);
	if (!saver->sums)
		return error_set(err, -ENOMEM, "no memory for the sums");
	memcpy(saver->sums, state_sums(&saver->state, saver->record.slot), bytes);
	digest = digest_of(saver->sums, bytes);
	if (!digest_equal(&digest, &saver->record.sums_digest))
		return error_set(err, -EUCLEAN,
			"the sums of step %" PRIu64
			" in memory do not match their record: memory corrupt",
			saver->record.step);
	return 0;
}

static int open_state(struct saver *saver, struct error *err)
{
	int r = state_map(&saver->state, LINK_STATE_FD, true, err);

	if (r < 0)
		return r;
	r = state_pinned_record(&saver->state, &saver->record);
	if (r < 0)
		return error_set(err, r, "no slot is pinned: nothing to save");
	return copy_sums(saver, err);
}

/* One MiB after the other, each against its seal; by all processors, because training waits. */
static int copy_slot(const struct saver *saver, uint8_t *copy)
{
	const uint8_t *slot = (const uint8_t *)state_section(&saver->state, saver->record.slot, 0);
	int64_t count = (int64_t)state_sum_count(&saver->state);
	bool same = true;

#pragma omp parallel for num_threads(omp_get_num_procs()) reduction(&& : same)
	for (int64_t i = 0; i < count; i++) {
		uint8_t *part = copy + (size_t)i * SEAL_CHUNK_BYTES;

		memcpy(part, slot + (size_t)i * SEAL_CHUNK_BYTES, SEAL_CHUNK_BYTES);
		same = same &&
			seal_sum(part, 0, SEAL_CHUNK_BYTES / sizeof(uint32_t)) == saver->sums[i];
	}
	return same ? 0 : -EUCLEAN;
}

/* A slot in a memory of our own. Too little memory for it is no error: then training waits until
 * the save is over. */
static int take_copy(struct saver *saver, struct error *err)
{
	size_t bytes = saver->state.header.block_bytes;
	int fd = memfd_create_sized("ckptd-copy", bytes, bytes, "", 0, err);
	void *copy = MAP_FAILED;

	if (fd >= 0) {
		copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	if (copy == MAP_FAILED)
		return 0;
	int r = copy_slot(saver, copy);

	if (r == 0 && !state_still_pinned(&saver->state, &saver->record))
		r = -ESTALE;
	if (r == 0)
		r = worker_link_send(&saver->worker->link, json_pack("{s:{}}", "copied"));
	if (r < 0) {
		munmap(copy, bytes);
		return error_set(err, r,
			r == -EUCLEAN ? "memory corrupt: step %" PRIu64 " does not match its seals"
				      : "step %" PRIu64 " could not be copied",
			saver->record.step);
	}
	saver->copy = copy;
	return 0;
}

static int open_model(struct saver *saver, struct error *err)
{
	struct worker *worker = saver->worker;
	uint32_t class_count;
	int r = record_config(&saver->record, &worker->start.config, &saver->config, err);

	if (r < 0)
		return r;
	r = plan_class_count(&saver->config, worker->run_fd, &class_count, err);
	if (r < 0)
		return r;
	r = model_init(&saver->model, &saver->config, class_count, err);
	if (r < 0)
		return r;
	if (!digest_equal(&saver->model.digest, &saver->record.model_digest))
		return error_set(err, -EINVAL,
			"the state in memory is of another net than the configuration's");
	return state_check_identity(&saver->state, worker->start.run_id, &saver->model.digest, err);
}

/* Never unsigned instead: who wants signatures would find out too late. */
static int open_key(struct saver *saver, struct error *err)
{
	const struct worker_start *start = &saver->worker->start;
	int r;

	if (start->config.signing_key[0] == '\0')
		return 0;
	if (!start->has_signer)
		return error_set(err, -ENOKEY, "%s", start->signer_error);
	r = sign_key_take(LINK_KEY_FD, start->config.signing_key, &saver->key, err);
	if (r == 0 && !sign_public_equal(&saver->key.public, &start->signer)) {
		sign_key_wipe(&saver->key);
		return error_set(err, -ESTALE,
			"signing key %s: it is another one than at the start: reload",
			start->config.signing_key);
	}
	return r;
}

static int open_store(struct saver *saver, struct error *err)
{
	int r = run_load(saver->worker->run_fd, &saver->run, err);

	if (r < 0)
		return r;
	saver->checkpoints_fd = file_open_dir(saver->worker->run_fd, "checkpoints", 0750);
	if (saver->checkpoints_fd < 0)
		return error_set(err, saver->checkpoints_fd, "cannot open %s/checkpoints: %s",
			saver->worker->start.run_dir, strerror(-saver->checkpoints_fd));
	return 0;
}

/* The newest verified checkpoint on the line, by its header. */
static bool open_parent(const struct worker *worker, struct checkpoint_info *ret)
{
	struct error err;
	int fd;

	if (recovery_pick(worker->start.run_dir, worker->run_fd, NULL, ret, &fd, &err) < 0)
		return false;
	sys_close(fd);
	return true;
}

/* Steps 1 to 6. On a full disk once more after making room, and at last after giving up as much as
 * is needed whatever the disk says it has. */
static int publish(struct saver *saver, const struct checkpoint_source *source,
	struct checkpoint_saved *ret, struct error *err)
{
	struct worker *worker = saver->worker;
	int r = fault_at("save.begin", source->attempt);

	if (r < 0)
		return error_set(err, r, "cannot write a checkpoint: %s", strerror(-r));
	for (int try = 0;; try++) {
		r = recovery_make_room(worker->start.run_dir, worker->run_fd,
			saver->state.header.block_bytes, try == SAVE_TRIES - 1, worker_report,
			worker, err);
		if (r < 0)
			return r;
		r = checkpoint_save(saver->checkpoints_fd, source, ret, err);
		if ((r != -ENOSPC && r != -EDQUOT) || try == SAVE_TRIES - 1)
			return r;
	}
}

/* Processor time of this process so far. */
static double cpu_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static int say_saved(const struct saver *saver, const struct checkpoint_saved *saved,
	const struct recovery_outcome *outcome, bool stale)
{
	struct worker *worker = saver->worker;
	char root[DIGEST_HEX_SIZE], path[PATH_MAX + 64];
	int r;

	digest_to_hex(&saved->root, root);
	snprintf(path, sizeof(path), "%s/checkpoints/%s" CHECKPOINT_SUFFIX, worker->start.run_dir,
		saved->id);
	r = worker_link_send(&worker->link,
		json_pack("{s:{s:s,s:I,s:I,s:s,s:s,s:I,s:s,s:s,s:b,s:b,s:I,s:b,s:I,s:I,s:f}}",
			"saved", "id", saved->id, "step", (json_int_t)saver->record.step, "branch",
			(json_int_t)saver->record.branch, "root", root, "path", path, "bytes",
			(json_int_t)saved->file_bytes, "readback",
			saved->direct ? "direct" : "cache", "signer", saved->signer, "catalogued",
			(int)outcome->catalogued, "already", (int)saved->already, "over_bytes",
			(json_int_t)outcome->over_bytes, "stale", (int)stale, "ms_write",
			(json_int_t)(saved->write_ns / NSEC_PER_MSEC), "ms_total",
			(json_int_t)(saved->total_ns / NSEC_PER_MSEC), "ms_cpu", cpu_ms()));
	return r < 0 ? LINK_EXIT_FAILED : LINK_EXIT_DONE;
}

static int save(struct saver *saver)
{
	struct worker *worker = saver->worker;
	struct checkpoint_source source = {
		.record = &saver->record,
		.block = saver->copy ? saver->copy
				     : state_section(&saver->state, saver->record.slot, 0),
		.sums = saver->sums,
		.table = &saver->model.table,
		.key = worker->start.config.signing_key[0] != '\0' ? &saver->key : NULL,
		.config = &saver->config,
		.still_valid = saver->copy ? NULL : still_valid,
		.context = saver,
		.attempt = worker->start.attempt,
		.threads = worker->start.foreground ? (uint32_t)omp_get_max_threads() : 1,
	};
	struct recovery_outcome outcome = {.catalogued = false};
	struct checkpoint_saved saved;
	struct checkpoint_info parent;
	bool stale = false;
	struct error err;
	int r = recovery_repair_catalog(
		worker->start.run_dir, worker->run_fd, &saver->run, worker_report, worker, &err);

	/* The checkpoint is what matters: it can stand without a row. */
	if (r < 0)
		worker_event(&worker->link, "catalog", "warning", saver->record.step,
			"the catalog cannot be made anew now: %s", err.text);
	if (open_parent(worker, &parent)) {
		source.parent_root = parent.root;
		stale = checkpoint_weights_stale(&parent, &source);
		checkpoint_info_fini(&parent);
	}
	r = publish(saver, &source, &saved, &err);
	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	/* The checkpoint stands from here on, whatever becomes of its row. */
	r = recovery_catalog_saved(worker->start.run_dir, worker->run_fd, &saved, &source,
		&worker->start.config, &outcome, worker_report, worker, &err);
	if (r < 0 || !outcome.catalogued)
		worker_event(&worker->link, "catalog", "warning", saver->record.step,
			"%s is verified, but %s: %s", saved.id,
			outcome.catalogued ? "retention failed" : "not catalogued", err.text);
	return say_saved(saver, &saved, &outcome, stale && !saved.already);
}

int worker_save(struct worker *worker)
{
	struct saver saver = {.worker = worker, .checkpoints_fd = -1};
	struct error err;
	int r;

	if (!worker->start.foreground)
		omp_set_num_threads(1);
	r = open_state(&saver, &err);
	if (r == 0 && worker->start.copy)
		r = take_copy(&saver, &err);
	if (r == 0)
		r = open_store(&saver, &err);
	if (r == 0)
		r = open_model(&saver, &err);
	if (r == 0)
		r = open_key(&saver, &err);
	r = r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err) : save(&saver);
	if (saver.checkpoints_fd >= 0)
		sys_close(saver.checkpoints_fd);
	if (saver.copy)
		munmap(saver.copy, saver.state.header.block_bytes);
	sign_key_wipe(&saver.key);
	free(saver.sums);
	model_fini(&saver.model);
	run_fini(&saver.run);
	state_unmap(&saver.state);
	return r;
}
