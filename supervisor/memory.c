/* State memory and progress page: made, taken back from systemd's store, given back. The supervisor
 * maps the header pages only. It must never read a slot. Invariants: a memory that is held belongs
 * to this run and model; pins and `writing` were cleared before the first worker saw it. */
#include "supervisor/supervisor.h"

#include "base/log.h"
#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MEMORY_RETRY_NS (5 * NSEC_PER_SEC)
#define MEMORY_RETRY_MAX_NS (300 * NSEC_PER_SEC)

int memory_progress_init(
	struct supervisor *sup, const struct notify_passed *passed, struct error *err)
{
	sup->progress_fd = sup->stored_state_fd = sup->passed_socket_fd = sup->ahead_fd = -1;
	for (int i = 0; i < passed->count; i++) {
		int fd = passed->fds[i].fd, *place = NULL;

		if (strcmp(passed->fds[i].name, "state") == 0)
			place = &sup->stored_state_fd;
		else if (strcmp(passed->fds[i].name, "progress") == 0)
			place = &sup->progress_fd;
		else
			place = &sup->passed_socket_fd;
		if (*place >= 0)
			close(fd);
		else
			*place = fd;
	}
	if (sup->progress_fd >= 0) {
		if (progress_map(sup->progress_fd, &sup->progress, err) == 0)
			return 0;
		close(sup->progress_fd);
		notify_remove_fd(&sup->notify, "progress");
	}
	int code = progress_create(&sup->progress, &sup->progress_fd, err);

	if (code < 0)
		return code;
	CHECK(sup->progress_fd >= 0);
	notify_store_fd(&sup->notify, "progress", sup->progress_fd);
	return 0;
}

/* -- the ladder's bytes in the header -- */

_Static_assert(sizeof(struct ladder) <= STATE_LADDER_BYTES, "the ladder fits into the header page");

void memory_keep_ladder(struct supervisor *sup)
{
	if (!sup->has_memory)
		return;
	ladder_seal(&sup->ladder);
	memcpy(state_ladder(&sup->memory), &sup->ladder, sizeof(sup->ladder));
}

static void restore_ladder(struct supervisor *sup)
{
	struct ladder ladder;

	memcpy(&ladder, state_ladder(&sup->memory), sizeof(ladder));
	if (ladder_valid(&ladder))
		sup->ladder = ladder;
}

/* Before a worker maps it: a worker believes only a header that is whole. */
void memory_restore_header(struct supervisor *sup)
{
	CHECK(sup->has_memory);
	if (state_restore_header(&sup->memory))
		sup_event(sup, "warning", "memory",
			"the header of the state memory had changed by itself and was written "
			"again: this machine's memory may be failing");
}

/* -- taking it -- */

static int take_memory(struct supervisor *sup, int fd, struct error *err)
{
	int code = state_map(&sup->memory, fd, false, err);

	if (code < 0)
		return code;
	code = state_check_identity(&sup->memory, sup->run.id, &sup->prepared.model_digest, err);
	if (code == 0 && sup->memory.header.section_bytes != sup->prepared.section_bytes)
		code = error_set(err, -ESTALE, "its sections have another size");
	if (code < 0) {
		state_unmap(&sup->memory);
		return code;
	}
	CHECK(!sup->has_memory);
	sup->has_memory = true;
	sup->memory_bytes = sup->memory.header.total_bytes;
	sup->revision++;
	return 0;
}

void memory_adopt_stored(struct supervisor *sup)
{
	struct state_record record;
	struct error error;
	int fd = sup->stored_state_fd;

	sup->stored_state_fd = -1;
	if (fd < 0 || sup->has_memory)
		return;
	CHECK(sup->prepared.known);
	if (take_memory(sup, fd, &error) < 0) {
		sup_event(sup, "warning", "memory-refused",
			"the state memory kept by systemd is not used: %s", error.text);
		notify_remove_fd(&sup->notify, "state");
		close(fd);
		return;
	}
	state_unpin_all(&sup->memory);
	state_clear_writing(&sup->memory);
	restore_ladder(sup);
	if (memory_newest(sup, &record) == 0)
		sup_event(sup, "info", "memory-kept", "state memory taken over at step %llu",
			(unsigned long long)record.step);
	else
		sup_event(sup, "warning", "memory-empty",
			"the state memory kept by systemd holds no state on the line");
}

/* -- making it -- */

static struct memory_job *memory_job(
	const struct supervisor *sup, void (*done)(struct ledger_job *job), void *owner)
{
	struct memory_job *memory = books_job(sizeof(*memory), books_memory_work, done, owner);

	memory->slot_count = 3;
	memory->slot_count_min = 1;
	if (strcmp(sup->config.slots, "auto") != 0)
		memory->slot_count = memory->slot_count_min = (uint32_t)atoi(sup->config.slots);
	memcpy(memory->run_id, sup->run.id, sizeof(memory->run_id));
	return memory;
}

/* What was just made is empty, and known to systemd from now on. */
static int take_new(struct supervisor *sup, int fd, struct error *err)
{
	int code = take_memory(sup, fd, err);

	if (code < 0) {
		close(fd);
		return code;
	}
	notify_store_fd(&sup->notify, "state", sup->memory.fd);
	memory_keep_ladder(sup);
	return 0;
}

static void on_memory(struct ledger_job *job)
{
	struct memory_job *memory = (struct memory_job *)job;
	struct supervisor *sup = memory->head.owner;
	struct error error = job->error;
	int code = job->result;

	sup->making_memory = false;
	if (code == 0)
		code = take_new(sup, memory->fd, &error);
	free(job);
	if (code == -ECANCELED || sup->state == FSM_ENDED)
		return;
	if (code == 0) {
		sup->trouble[0] = '\0';
		if (sup->state == FSM_RESTARTING)
			schedule_start(sup);
		return;
	}
	snprintf(sup->trouble, sizeof(sup->trouble), "%s", error.text);
	if (sup->retries == 0)
		sup_event(sup, "error", "memory", "%s", error.text);
	sup->memory_retry_ns = clock_monotonic_ns() +
		backoff_ns(MEMORY_RETRY_NS, MEMORY_RETRY_MAX_NS, sup->retries++, 0);
}

void memory_drop_ahead(struct supervisor *sup)
{
	if (sup->ahead_fd >= 0)
		close(sup->ahead_fd);
	sup->ahead_fd = -1;
}

static bool take_ahead(struct supervisor *sup)
{
	struct error ignored; /* of another net: it is made again */
	int fd = sup->ahead_fd;

	sup->ahead_fd = -1;
	return fd >= 0 && take_new(sup, fd, &ignored) == 0;
}

bool memory_ensure(struct supervisor *sup)
{
	if (sup->has_memory || take_ahead(sup))
		return true;
	if (sup->making_memory)
		return false;
	CHECK(sup->prepared.known);
	struct memory_job *memory = memory_job(sup, on_memory, sup);

	sup->making_memory = true;
	sup->memory_retry_ns = 0;
	memory->section_bytes = sup->prepared.section_bytes;
	memory->model_digest = sup->prepared.model_digest;
	books_give(&sup->maker, memory);
	return sup->has_memory;
}

/* Nothing was promised: what failed here is tried again, and told, when it is needed. */
static void on_memory_ahead(struct ledger_job *job)
{
	struct memory_job *memory = (struct memory_job *)job;
	struct supervisor *sup = memory->head.owner;

	sup->making_memory = false;
	if (job->result == 0)
		sup->ahead_fd = memory->fd;
	free(job);
	if (sup->state == FSM_RESTARTING)
		schedule_start(sup);
	else if (sup->state != FSM_PREPARING)
		memory_drop_ahead(sup);
}

void memory_begin_ahead(struct supervisor *sup)
{
	CHECK(sup->has_run && !sup->has_memory && !sup->making_memory && sup->ahead_fd < 0);
	if (sup->stored_state_fd >= 0 || sup->run.verified_branch == 0)
		return;
	struct memory_job *memory = memory_job(sup, on_memory_ahead, sup);

	memory->run_dir = sup->run_dir;
	memory->run_fd = sup->run_fd;
	sup->making_memory = true;
	books_give(&sup->maker, memory);
}

void memory_release(struct supervisor *sup)
{
	CHECK(!child_alive(&sup->trainer));
	memory_drop_ahead(sup);
	if (!sup->has_memory)
		return;
	CHECK(!sup->saver.in_flight);
	int fd = sup->memory.fd;

	state_unmap(&sup->memory);
	close(fd);
	notify_remove_fd(&sup->notify, "state");
	sup->has_memory = false;
	sup->memory_bytes = 0;
	sup->revision++;
}

/* -- reading it -- */

int memory_newest(const struct supervisor *sup, struct state_record *ret)
{
	if (!sup->has_memory)
		return -ENOENT;
	int code = state_newest_record(&sup->memory, ret);

	if (code < 0)
		return code;
	if (memcmp(ret->run_id, sup->run.id, sizeof(ret->run_id)) != 0)
		return -ENOENT;
	/* Before the first survey branch 1 is all there is. */
	if (sup->survey.known && !line_contains(&sup->survey.line, ret->branch, ret->step))
		return -ENOENT;
	if (!sup->survey.known && ret->branch != 1)
		return -ENOENT;
	/* A memory that the disk has overtaken is no newest state. */
	if (sup->newest.known && ret->step < sup->newest.step)
		return -ENOENT;
	return 0;
}

void memory_empty(struct supervisor *sup)
{
	CHECK(!child_alive(&sup->trainer));
	CHECK(!sup->saver.in_flight);
	if (sup->has_memory)
		state_empty_all(&sup->memory);
}
