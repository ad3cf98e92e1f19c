/* The state memory and the progress page of world.h: what proto/state.h promises, without the
 * bytes. */
#include "tests/sim/world.h"

#include "base/panic.h"
#include "store/recovery.h"
#include "supervisor/resources.h"

#include <errno.h>
#include <string.h>

#define BLOCK_BYTES ((uint64_t)4 << 20)

int __wrap_state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);
int __wrap_state_map(struct state *state, int fd, bool with_slots, struct error *err);
void __wrap_state_unmap(struct state *state);
int __wrap_state_check_identity(const struct state *state, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);
uint8_t *__wrap_state_ladder(const struct state *state);
bool __wrap_state_restore_header(struct state *state);
int __wrap_state_newest_record(const struct state *state, struct state_record *ret);
int __wrap_state_pin_newest(struct state *state, struct state_record *ret);
void __wrap_state_unpin_all(struct state *state);
void __wrap_state_clear_writing(struct state *state);
void __wrap_state_empty_all(struct state *state);
int __wrap_progress_create(struct progress **ret, int *ret_fd, struct error *err);
int __wrap_progress_map(int fd, struct progress **ret, struct error *err);
void __wrap_progress_unmap(struct progress *progress);
int __wrap_recovery_pick(const char *run_dir, int run_fd, const char *id,
	struct checkpoint_info *ret, int *ret_fd, struct error *err);
int __real_close(int fd);
int __wrap_close(int fd);
void __wrap_notify_take_passed(struct notify_passed *ret);
int __wrap_notify_store_fd(struct notify *notify, const char *name, int fd);
int __wrap_notify_remove_fd(struct notify *notify, const char *name);

struct truth *truth_of(struct state_record *record)
{
	_Static_assert(sizeof(struct truth) <= sizeof(record->reserved), "it fits");
	return (struct truth *)(void *)record->reserved;
}

void memory_lose(void)
{
	memset(&world.memory, 0, offsetof(__typeof__(world.memory), record));
}

static void forget_unheld(void)
{
	if (!world.memory.mapped && !world.memory.stored)
		memory_lose();
}

bool memory_on_line(void)
{
	return world.memory.exists && world.memory.valid &&
		line_contains(&world.line, world.memory.record.branch, world.memory.record.step);
}

int __wrap_state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err)
{
	if (virtual_now_ns < world.no_memory_until_ns || slot_count > world.slots)
		return error_set(err, -ENOMEM, "no memory for the state");
	CHECK(!world.memory.exists);
	memory_lose();
	world.memory.exists = true;
	world.memory.slots = slot_count;
	memset(world.memory.ladder, 0, sizeof(world.memory.ladder));
	return FD_STATE;
}

/* The header of the newest checkpoint, which says how large a state is. */
int __wrap_recovery_pick(const char *run_dir, int run_fd, const char *id,
	struct checkpoint_info *ret, int *ret_fd, struct error *err)
{
	*ret = (struct checkpoint_info){.section_bytes = BLOCK_BYTES / 4};
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (world.files[i].used) {
			*ret_fd = FD_CHECKPOINTS;
			return 0;
		}
	return error_set(err, -ENOENT, "there is no checkpoint");
}

int __wrap_close(int fd)
{
	if (fd < FD_SOCKET)
		return __real_close(fd);
	if (fd == FD_STATE)
		forget_unheld();
	return 0;
}

int __wrap_state_map(struct state *state, int fd, bool with_slots, struct error *err)
{
	CHECK(fd == FD_STATE && world.memory.exists && !with_slots && !world.memory.mapped);
	*state = (struct state){.fd = fd};
	state->header.slot_count = world.memory.slots;
	state->header.section_bytes = BLOCK_BYTES / 4;
	state->header.block_bytes = BLOCK_BYTES;
	state->header.total_bytes = world.memory.slots * BLOCK_BYTES;
	world.memory.mapped = true;
	return 0;
}

void __wrap_state_unmap(struct state *state)
{
	world.memory.mapped = false;
	forget_unheld();
}

int __wrap_state_check_identity(const struct state *state, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err)
{
	return 0;
}

uint8_t *__wrap_state_ladder(const struct state *state)
{
	CHECK(world.memory.exists);
	return world.memory.ladder;
}

bool __wrap_state_restore_header(struct state *state)
{
	return false;
}

int __wrap_state_newest_record(const struct state *state, struct state_record *ret)
{
	CHECK(world.memory.exists);
	if (world.memory.valid)
		*ret = world.memory.record;
	else if (world.memory.pinned)
		*ret = world.memory.pin;
	else
		return -ENOENT;
	return 0;
}

int __wrap_state_pin_newest(struct state *state, struct state_record *ret)
{
	int code = __wrap_state_newest_record(state, ret);

	if (world.memory.pinned)
		return -EBUSY;
	if (code < 0)
		return code;
	world.memory.pinned = true;
	world.memory.pin = *ret;
	return 0;
}

/* Only one slot: what is rewritten in place is gone with its pin. */
void __wrap_state_unpin_all(struct state *state)
{
	world.memory.pinned = false;
}

/* A death within an update in place: with two slots the pinned state is left. */
void __wrap_state_clear_writing(struct state *state)
{
	MUST(find_worker(ROLE_TRAIN) == NULL, "writing is cleared under a trainer");
	if (!world.memory.valid && world.memory.pinned) {
		world.memory.record = world.memory.pin;
		world.memory.valid = true;
		world.leave_memory = true;
	}
}

void __wrap_state_empty_all(struct state *state)
{
	MUST(find_worker(ROLE_TRAIN) == NULL, "the slots are emptied under a trainer");
	world.memory.valid = world.memory.pinned = world.memory.flipped = false;
	world.leave_memory = true;
}

/* -- the progress page -- */

int __wrap_progress_create(struct progress **ret, int *ret_fd, struct error *err)
{
	memset(&world.progress, 0, offsetof(struct progress, ring));
	*ret = &world.progress;
	*ret_fd = FD_PROGRESS;
	return 0;
}

int __wrap_progress_map(int fd, struct progress **ret, struct error *err)
{
	*ret = &world.progress;
	return 0;
}

void __wrap_progress_unmap(struct progress *progress)
{
}

/* -- systemd's store -- */

void __wrap_notify_take_passed(struct notify_passed *ret)
{
	*ret = (struct notify_passed){.count = 1, .fds[0] = {FD_SOCKET, "socket"}};
	if (!world.has_store || !world.memory.stored)
		return;
	ret->fds[ret->count].fd = FD_STATE;
	strcpy(ret->fds[ret->count++].name, "state");
	ret->fds[ret->count].fd = FD_PROGRESS;
	strcpy(ret->fds[ret->count++].name, "progress");
}

int __wrap_notify_store_fd(struct notify *notify, const char *name, int fd)
{
	if (world.has_store && strcmp(name, "state") == 0)
		world.memory.stored = true;
	return 0;
}

int __wrap_notify_remove_fd(struct notify *notify, const char *name)
{
	if (strcmp(name, "state") == 0) {
		world.memory.stored = false;
		forget_unheld();
	}
	return 0;
}
