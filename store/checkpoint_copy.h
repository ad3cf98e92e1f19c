/* One published checkpoint into another folder: to the mirror, and back from it. The copy has the
 * same bytes and is committed like a save: it is published only after its own bytes, read back from
 * where they lie, match the digests of the original. Private to store/. */
#pragma once

#include "store/checkpoint.h"

struct checkpoint_copy {
	int from_fd, to_fd; /* checkpoints folders */
	const char *name;   /* of the file, in both */
	const uint8_t *run_id;
	const struct digest *root; /* the one that is meant; NULL: whatever verifies */
	/* What holds the name and is not this checkpoint, whole, is moved aside when the copy is
	 * ready; else it is replaced. */
	bool aside;
	uint32_t threads;
	_Atomic uint64_t *moves;      /* counts each MiB read; may be NULL */
	bool (*go_on)(void *context); /* asked before each write and before publishing; or NULL */
	void *context;
};

struct checkpoint_copied {
	bool already;     /* it stood there, and every byte of it matches */
	bool from_failed; /* the error is the original's */
};

/* Fault points: copy.reserved, copy.written, copy.synced, copy.readback, copy.renamed,
 * copy.published. On any error nothing is published that was not there before.
 * -EBADMSG: the original is corrupt; -ENOENT: it is not there, or has another root; -EEXIST: a file
 * of another run, or one that is refused, holds the name; -ECANCELED: go_on said no. */
int checkpoint_copy(
	const struct checkpoint_copy *copy, struct checkpoint_copied *ret, struct error *err);

/* step-….safetensors becomes step-….safetensors.corrupt-1, or the next number that is free. */
int checkpoint_move_aside(int checkpoints_fd, const char *name, struct error *err);
