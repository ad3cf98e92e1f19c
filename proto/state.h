/* The state memory: one memfd that the supervisor holds, in which every finished optimizer step
 * survives the trainer. Layout (all sizes fixed at creation):
 *
 *     page 0      header: magic, version, sizes, run, model, ladder (the supervisor's own bytes)
 *     page 1, 2   records A and B: the newest valid one wins. The record is the commit.
 *     page 3      the pinned record: the supervisor's copy for the save in flight. It counts like
 *                 A and B: with two slots and a pin it may be the only record of a whole state
 *     page 4      one word for each slot
 *     page 5..    one sum table for each slot (u64 for each MiB of the block)
 *     2 MiB..     slots: the block of four sections
 *
 * Slot words change only by compare-and-swap:
 *
 *     empty --begin--> writing --commit--> sealed --begin--> writing ...
 *     sealed <--pin/unpin--> sealed+pinned        (supervisor only)
 *
 * Only the trainer takes `writing` and seals; only the supervisor pins, unpins (after waitpid of
 * the saver), and clears `writing` (after waitpid of the trainer). At most one pin.
 * The sequence in a word only grows, also through empty and writing.
 * A record is valid when its own sum matches and its slot's word is sealed with the record's
 * slot_sequence. The last finished step is that of the valid record with the greatest sequence. */
#pragma once

#include "base/clock.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/seal.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define STATE_MAGIC UINT64_C(0x31657461745354) /* "TState1" */
#define STATE_LAYOUT_VERSION 1
#define STATE_PAGE ((size_t)4096)
#define STATE_SLOTS_MAX 3
#define STATE_LADDER_BYTES 1024
#define STATE_INTERVENTIONS_MAX 48
#define STATE_RUN_ID_SIZE 16
#define STATE_COUNT_MAX (UINT64_C(1) << 53) /* of steps, updates, images */

enum intervention_kind {
	INTERVENTION_CONFIG = 1,      /* value: "key=value" of a schedule key */
	INTERVENTION_SKIP_WINDOW = 2, /* value: number of images jumped over */
	INTERVENTION_ENGINE = 3,      /* value: "amx (auto)", the engine and who chose it */
	INTERVENTION_DATA = 4,        /* value: hex of the new data digest's first 16 bytes */
	INTERVENTION_FOLDED = 5, /* the oldest, folded: value is a digest's first 16 bytes in hex */
};

struct intervention {
	uint64_t step; /* takes effect before this step index is computed */
	uint32_t kind;
	uint32_t reserved;
	char value[48]; /* NUL-terminated */
};

/* Running mean and variance of the logarithm of what each update showed (daemon/worker_spike.h). */
struct usual_value {
	double mean, variance;
};

struct usual {
	uint64_t updates; /* that it is made of */
	struct usual_value grad_norm, loss;
};

/* Everything a restart needs besides the block. Fixed little-endian layout; 4 KiB. */
struct state_record {
	uint64_t sequence;      /* of this record, from 1 */
	uint64_t slot_sequence; /* of the slot it speaks of */
	uint32_t slot;
	uint32_t branch;
	uint8_t run_id[STATE_RUN_ID_SIZE];
	uint64_t step;          /* finished steps, skipped ones included */
	uint64_t update_count;  /* finished optimizer updates: AdamW, learning rate, EMA count by it
				 */
	uint64_t images_seen;   /* the data cursor */
	uint64_t skipped_count; /* non-finite updates and spikes, all together */
	uint64_t skipped_in_row;
	uint64_t trained_ns; /* seconds of training behind this state; not part of the bits */
	float loss;          /* of the last finished step */
	uint32_t intervention_count;
	struct digest model_digest; /* tensor_table_digest */
	struct digest data_digest;
	struct digest fingerprint;
	struct digest sums_digest; /* of the slot's sum table */
	struct intervention interventions[STATE_INTERVENTIONS_MAX];
	struct usual usual;
	uint8_t reserved[4096 - 8 * 9 - 4 * 4 - 16 - 32 * 4 - STATE_INTERVENTIONS_MAX * 64 - 8 * 5];
	uint64_t check; /* first 8 bytes of BLAKE2b over all before */
};
_Static_assert(sizeof(struct intervention) == 64, "layout");
_Static_assert(sizeof(struct state_record) == 4096, "layout");

struct state_header {
	uint64_t magic;
	uint32_t layout_version;
	uint32_t slot_count;
	uint64_t section_bytes;
	uint64_t block_bytes; /* 4 * section_bytes */
	uint64_t total_bytes;
	uint8_t run_id[STATE_RUN_ID_SIZE];
	struct digest model_digest;
	uint64_t check;                     /* over all above */
	uint8_t ladder[STATE_LADDER_BYTES]; /* the supervisor's; carries its own check */
};

enum slot_state { SLOT_EMPTY, SLOT_WRITING, SLOT_SEALED };

/* A view of the memory. The supervisor maps only what is before the slots. header is the view's own
 * copy, checked when it was mapped: sizes and places never come from memory that others write. */
struct state {
	int fd;
	uint8_t *map;
	size_t mapped_bytes;
	bool with_slots;
	struct state_header header;
};

/* Creates and sizes the memfd, allocates it up to the end of its first slot (too little memory for
 * all of it is -ENOMEM here, not a SIGBUS later), writes the header, seals the size. Returns the
 * descriptor (close-on-exec). */
int state_create(uint64_t section_bytes, uint32_t slot_count, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);
/* Whether state_create may be asked for these. */
bool state_sizes_valid(uint64_t section_bytes, uint32_t slot_count);
/* Bytes that state_create would take. */
uint64_t state_total_bytes(uint64_t section_bytes, uint32_t slot_count);

/* Maps fd. with_slots: everything. Checks magic, version, sizes against the file's own
 * size, and seals. The descriptor stays the caller's. */
int state_map(struct state *state, int fd, bool with_slots, struct error *err);
void state_unmap(struct state *state);
/* -ESTALE with the reason when it belongs to another run or model. */
int state_check_identity(const struct state *state, const uint8_t *run_id,
	const struct digest *model_digest, struct error *err);

/* The ladder's bytes in the header page. */
uint8_t *state_ladder(const struct state *state);
/* Writes the header page (but for the ladder) again from the view's copy, so that a bit that
 * flipped there keeps nobody from mapping it; true when it was not what it should be. */
bool state_restore_header(struct state *state);

/* The block and the sum table of a slot (maps with slots only). */
float *state_section(const struct state *state, uint32_t slot, uint32_t section);
uint64_t *state_sums(const struct state *state, uint32_t slot);
/* Gives a slot its memory, if it has none yet. Whoever writes it may do so meanwhile. */
void state_allocate(const struct state *state, uint32_t slot);
uint64_t state_sum_count(const struct state *state);

/* The newest valid record, copied and re-read until stable. -ENOENT when there is none. */
int state_newest_record(const struct state *state, struct state_record *ret);

/* -- trainer -- */
/* Takes an unpinned slot that is not current. With two slots and the other one pinned it takes the
 * current one itself (in place); with one slot and a pin, -EBUSY: the caller waits. */
int state_begin_write(struct state *state, uint32_t *ret_slot);
/* Seals the slot and then writes the record; fills in sequence, slot_sequence, slot and check. The
 * sum table of the slot must be complete and its digest in the record. */
void state_commit(struct state *state, uint32_t slot, struct state_record *record);
/* A skipped update: a new record and nothing else; it keeps the slot and slot_sequence it came
 * with, which must still hold. */
void state_commit_record(struct state *state, struct state_record *record);
/* Gives a slot in writing back as empty (before anything was destroyed in it). */
void state_abort_write(struct state *state, uint32_t slot);
/* All slots empty, all records void: after `memory corrupt`. */
void state_empty_all(struct state *state);

/* -- supervisor -- */
/* Copies the newest record to the pinned page and pins its slot. -ENOENT, -EBUSY (pinned already).
 */
int state_pin_newest(struct state *state, struct state_record *ret);
void state_unpin_all(struct state *state);
/* After waitpid of the trainer: writing -> empty. */
void state_clear_writing(struct state *state);

/* -- saver -- */
/* The pinned record and its slot; -ENOENT when nothing is pinned. */
int state_pinned_record(const struct state *state, struct state_record *ret);
/* True while the slot is sealed with this sequence and pinned. */
bool state_still_pinned(const struct state *state, const struct state_record *record);
enum slot_state state_slot_state(
	const struct state *state, uint32_t slot, uint64_t *ret_sequence, bool *ret_pinned);

void state_record_seal(struct state_record *record);        /* fills in check */
bool state_record_valid(const struct state_record *record); /* check, bounds */
