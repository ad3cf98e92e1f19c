/* catalog.sqlite: an index over the checkpoint files, rebuildable from them. Written by `save` and
 * by recovery (worker role prepare), read by everybody. WAL, synchronous=FULL, STRICT tables; each
 * row carries a digest of its columns. The door of SQLite for this database. */
#pragma once

#include "base/error.h"
#include "store/checkpoint.h"

#include <stdbool.h>
#include <stdint.h>

struct catalog; /* one connection; used by one thread */

#define CATALOG_VERSION 2

enum catalog_mode { CATALOG_READ, CATALOG_WRITE };

/* Opens an existing catalog (never creates). -ENOENT, -EBADMSG (not a database, wrong schema,
 * integrity_check fails), -EPROTONOSUPPORT (a newer user_version), -ESTALE (an older one: only a
 * start brings it to this one). */
int catalog_open(
	const char *run_dir, enum catalog_mode mode, struct catalog **ret, struct error *err);
void catalog_close(struct catalog *catalog);

/* Builds a fresh database beside the old one and puts it in place (docs/CATALOG.md: build
 * catalog.new, close, move the old aside, unlink its -wal and -shm, fsync, rename, fsync). Only
 * under the run lock with nobody on it. fill writes the rows. */
int catalog_replace(const char *run_dir, int run_fd,
	int (*fill)(struct catalog *catalog, void *context, struct error *err), void *context,
	struct error *err);

struct catalog_row {
	char id[CHECKPOINT_ID_SIZE];
	uint64_t step;
	uint32_t branch;
	enum checkpoint_state state;
	struct digest root, parent_root;
	uint64_t file_bytes;
	double loss; /* NaN when unknown */
	uint64_t trained_seconds;
	bool keep;
	char created[CLOCK_TEXT_SIZE];
	char readback[8];                  /* "direct", "cache" or "" */
	char text[160];                    /* why, when not verified */
	char verified_at[CLOCK_TEXT_SIZE]; /* all its data were last read and matched; "" unknown */
	char signer[DIGEST_HEX_SIZE];      /* public key; "" when it is not signed */
	char mirrored_at[CLOCK_TEXT_SIZE]; /* "": there is no verified copy on the mirror */
};

void catalog_row_verified_now(struct catalog_row *row);

/* A transaction over several puts; end commits when rc is 0, else rolls back, and gives the result.
 * Not nested; catalog_set_state is a transaction of its own. */
int catalog_begin(struct catalog *catalog, struct error *err);
int catalog_end(struct catalog *catalog, int rc, struct error *err);

/* Inserts or updates by id. */
int catalog_put(struct catalog *catalog, const struct catalog_row *row, struct error *err);
/* To VERIFIED says that all its data were read just now and matched: verified_at is set too. */
int catalog_set_state(struct catalog *catalog, const char *id, enum checkpoint_state state,
	const char *text, struct error *err);
int catalog_get(
	struct catalog *catalog, const char *id, struct catalog_row *ret, struct error *err);
/* All rows, newest step first; malloc'ed. Rows whose digest does not match are dropped and
 * counted. */
int catalog_list(struct catalog *catalog, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err);
/* The same of a database of version 1; for a start, which then replaces it. A row that was saved
 * here (readback) was verified when it was created; when others were, is not known. */
int catalog_list_version_1(const char *run_dir, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err);
/* The rows of a replacement that was built and not put in place, because this was cut short between
 * taking the old one away and giving it the name. For a start that finds no catalog. */
int catalog_list_unplaced(const char *run_dir, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err);
/* For one that finds a good one: what lies there is of no use, and must not be found later. */
void catalog_forget_unplaced(int run_fd);
/* Forgets all but the newest rows of files that are gone, so that the index stays small. */
int catalog_prune(struct catalog *catalog, uint32_t keep, struct error *err);
