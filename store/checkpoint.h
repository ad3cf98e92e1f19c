/* One checkpoint file. docs/CHECKPOINT_FORMAT.md is the format and the order of a commit, which
 * also stands at checkpoint_save. A file is immutable once published. */
#pragma once

#include "base/clock.h"
#include "base/config.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/sign.h"
#include "base/tensor_table.h"
#include "proto/state.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_FORMAT_SIGNED 2  /* carries a signature; without one it is version 1 */
#define CHECKPOINT_FORMAT_VERSION 2 /* the newest that is read */
#define CHECKPOINT_CHUNK_BYTES ((uint64_t)4 << 20)
#define CHECKPOINT_ID_SIZE 32 /* "step-000012000-b0002" */
#define CHECKPOINT_SUFFIX ".safetensors"
#define CHECKPOINT_DATA_ALIGN 4096

enum checkpoint_state {
	CHECKPOINT_FOUND,      /* a file with a sane header, not read yet */
	CHECKPOINT_VERIFIED,   /* read back and equal to its digest */
	CHECKPOINT_CORRUPT,    /* digest mismatch or broken structure */
	CHECKPOINT_UNREADABLE, /* I/O error, missing right */
	CHECKPOINT_REFUSED,    /* newer format, foreign run, wrong signature */
	CHECKPOINT_MISSING,    /* a row without a file */
	CHECKPOINT_DELETED,    /* by retention */
};
const char *checkpoint_state_name(enum checkpoint_state state);
int checkpoint_state_parse(const char *name, enum checkpoint_state *ret);

/* "step-000012000-b0002" and back (-EINVAL). */
void checkpoint_id_format(uint64_t step, uint32_t branch, char id[CHECKPOINT_ID_SIZE]);
int checkpoint_id_parse(const char *id, uint64_t *ret_step, uint32_t *ret_branch);

/* What the header says; read without touching the data. */
struct checkpoint_info {
	char id[CHECKPOINT_ID_SIZE];
	struct state_record record;
	struct digest root, parent_root;
	bool has_weights_digest; /* files of before have none */
	struct digest weights_digest;
	bool is_signed;
	struct sign_public signer; /* its signature has been verified */
	char created[CLOCK_TEXT_SIZE];
	uint64_t file_bytes, data_offset, block_bytes, section_bytes;
	uint32_t chunk_count;
	struct digest *chunks;     /* owned */
	struct config config;      /* as it was saved; keys of other versions keep their defaults */
	struct tensor_table table; /* owned */
};
void checkpoint_info_fini(struct checkpoint_info *info);

/* Opens (O_NOFOLLOW, regular, one link, of our uid, root's or the folder's), parses and checks the
 * header against the root's rules that need no data, and whether its signer is trusted
 * (store/trust.h). The error class tells recovery what to write
 * down: -EBADMSG corrupt, -EPROTONOSUPPORT refused, others unreadable. Returns the descriptor; as
 * long as it is open, retention leaves the file alone (flock, shared). */
int checkpoint_open(
	int checkpoints_fd, const char *file_name, struct checkpoint_info *ret, struct error *err);

/* The same, and the header is read from the device: what is asked for by whoever wants to know what
 * lies there, not what once was read. */
int checkpoint_open_past_cache(
	int checkpoints_fd, const char *file_name, struct checkpoint_info *ret, struct error *err);

/* Reads the block while hashing in parallel (threads; 0 = all); block may be NULL to verify only.
 * Fills sums when not NULL. moves (may be NULL) counts each MiB. -EBADMSG: digest mismatch. */
int checkpoint_read(int fd, const struct checkpoint_info *info, void *block, uint64_t *sums,
	uint32_t threads, _Atomic uint64_t *moves, struct error *err);
/* Sums of the whole block against those of the record and of the header. -EBADMSG. */
int checkpoint_check_sums(
	const struct checkpoint_info *info, const uint64_t *sums, struct error *err);
/* Asked before each chunk, by one thread at a time. It may wait, and all wait with it: the pace.
 * Not 0 ends the reading, which then gives this. */
struct checkpoint_gate {
	int (*pass)(void *context, uint64_t bytes);
	void *context;
};
/* All that can be checked of the data, read past the cache: each chunk, and the sums. gate may be
 * NULL. */
int checkpoint_verify(int fd, const struct checkpoint_info *info, uint32_t threads,
	const struct checkpoint_gate *gate, struct error *err);
/* For a copy: each chunk that matches its digest, with its seal sums (one a MiB), once and in no
 * order, by several threads at a time. take gives 0, or -errno, which ends the reading. */
typedef int checkpoint_take(
	void *context, uint32_t chunk, const uint8_t *data, const uint64_t *sums);
int checkpoint_read_each(int fd, const struct checkpoint_info *info, checkpoint_take *take,
	void *context, uint32_t threads, _Atomic uint64_t *moves, struct error *err);
/* One section only (sampling, export): its chunks are verified whole. data holds section_bytes. */
int checkpoint_read_section(int fd, const struct checkpoint_info *info, enum section section,
	float *data, uint32_t threads, struct error *err);

/* The saver's input: the pinned slot, its sums, and a way to ask whether it still holds. */
struct checkpoint_source {
	const struct state_record *record;
	const void *block;
	const uint64_t *sums; /* the saver's own copy of the table */
	const struct tensor_table *table;
	const struct config *config;
	struct digest parent_root;
	const struct sign_key *key; /* NULL: not signed */
	bool (*still_valid)(void *context);
	void *context;
	uint32_t attempt;
	uint32_t threads;
};

/* Of the weights' part of the sum table: equal when the weights are, bit for bit. */
struct digest checkpoint_weights_digest(const struct tensor_table *table, const uint64_t *sums);
/* The weights are still those of the parent though updates were made since: a trainer that saves
 * what it does not train, or trains what it does not save. */
bool checkpoint_weights_stale(
	const struct checkpoint_info *parent, const struct checkpoint_source *source);

struct checkpoint_saved {
	char id[CHECKPOINT_ID_SIZE];
	struct digest root;
	char created[CLOCK_TEXT_SIZE];
	char signer[SIGN_PUBLIC_HEX_SIZE]; /* "": not signed */
	uint64_t file_bytes;
	bool already; /* this (branch, step) had been published before, and still verifies */
	bool direct;  /* read back with O_DIRECT, else cache dropped first */
	nsec_t write_ns, readback_ns, total_ns;
};

/* Steps 1 to 6 of the commit: reserve, write and hash, fsync, read back and compare, rename without
 * replacing, fsync folder. Fault points: save.reserved, save.written, save.synced, save.readback,
 * save.renamed, save.published. On any error nothing is published and the partial is gone.
 * The record's sums_digest must be digest_of the whole sum table. A corrupt file that holds the
 * name is moved aside (step-….safetensors.corrupt-1).
 * -ENOSPC, -EDQUOT, -EIO, -EUCLEAN (a seal did not match: memory corrupt), -ESTALE (pin lost),
 * -EEXIST (a file of another run holds the name). */
int checkpoint_save(int checkpoints_fd, const struct checkpoint_source *source,
	struct checkpoint_saved *ret, struct error *err);
