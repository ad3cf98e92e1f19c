/* One row of the catalog as columns of SQLite, and its digest. Private to store/. */
#pragma once

#include "store/catalog.h"

#include <sqlite3.h>

/* In the order of catalog_row_bind's parameters and catalog_row_read's columns. */
#define CATALOG_COLUMNS                                                                            \
	"id, step, branch, state, root, parent_root, file_bytes, loss, trained_seconds, keep,"     \
	" created, readback, text, verified_at, signer, mirrored_at, row_digest"
/* The same from a database of version 1, which knew no more. */
#define CATALOG_COLUMNS_1                                                                          \
	"id, step, branch, state, root, parent_root, file_bytes, loss, trained_seconds, keep,"     \
	" created, readback, text, '', '', '', row_digest"

void catalog_row_bind(sqlite3_stmt *statement, const struct catalog_row *row);
/* -EBADMSG when the row is not what was written. version says what its digest covers. */
int catalog_row_read(sqlite3_stmt *statement, int version, struct catalog_row *ret);
