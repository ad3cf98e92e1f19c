/* Mutations that no start can tell from the real thing, and why. A pattern stands for exactly those
 * that match it: test_crash.c checks that each of them is unseen, and no other. */
#pragma once

#define FOLDED                                                                                     \
	"before anybody is told, the log is folded into the database, which is synced: only a "    \
	"deletion counts on the log, and its commit syncs what was synced before once more"
#define COMPLETED "the row says deleted: the next start completes the unlink"
#define ANEW "there is nothing to lose: rows are made anew from the files at every start"
#define TWICE "SQLite syncs it at its close and we once more: never is noticed, once is not"
#define ASIDE "it is built aside, and whole and synced before it gets its name"
#define EMPTY "an empty file has nothing that could be lost"

static const struct unseen {
	const char *scenario, *pattern, *why;
} unseen[] = {
	{"first_save", "no fsync [1-3] of catalog.sqlite-wal", FOLDED},
	{"first_save", "no fsync 1 of RUN", FOLDED},
	{"first_save", "never an fsync of catalog.sqlite-wal", FOLDED},
	{"first_save", "never an fsync of RUN", FOLDED},
	{"save", "no fsync [1-46] of catalog.sqlite-wal", FOLDED},
	{"save", "no fsync 2 of checkpoints", COMPLETED},
	{"two_saves", "no fsync [1-46-9] of catalog.sqlite-wal", FOLDED},
	{"two_saves", "no fsync 1[02] of catalog.sqlite-wal", FOLDED},
	{"two_saves", "no fsync [24] of checkpoints", COMPLETED},
	{"full_disk", "no fsync [13-6] of catalog.sqlite-wal", FOLDED},
	{"full_disk", "no fsync 1 of checkpoints", COMPLETED},
	{"adopt", "no fsync [1-3] of catalog.sqlite-wal", FOLDED},
	{"adopt", "no fsync 1 of checkpoints", COMPLETED},
	{"adopt", "never an fsync of checkpoints", COMPLETED},
	{"adopt", "unlink step-000000010-b0001.safetensors before its row", COMPLETED},
	{"create_catalog", "*", ANEW},
	{"rebuild_catalog", "*", ANEW},
	{"migrate_catalog", "no fsync ? of catalog.new-*", ASIDE},
	{"migrate_catalog", "never an fsync of catalog.new-*", ASIDE},
	{"migrate_catalog", "no fsync 1 of RUN", ASIDE},
	{"migrate_catalog", "no fsync [1-3] of catalog.new", TWICE},
	{"migrate_catalog", "no fsync [34] of RUN",
		"a start takes the rows from the one set aside"},
	{"migrate_catalog", "rename catalog.new catalog.sqlite before its fsync", TWICE},
	{"rollback", "no fsync [1-79] of catalog.sqlite-wal", FOLDED},
	{"rollback", "no fsync 4 of checkpoints", COMPLETED},
	{"keep", "no fsync 1 of .ROOT.keep.tmp", EMPTY},
	{"keep", "never an fsync of .ROOT.keep.tmp", EMPTY},
	{"keep", "rename .ROOT.keep.tmp ROOT* before its fsync", EMPTY},
	{"keep", "no fsync [1-9] of catalog.sqlite-wal", FOLDED},
	{"keep", "no fsync 1[02] of catalog.sqlite-wal", FOLDED},
	{"keep", "no fsync 4 of checkpoints", COMPLETED},
};
#define UNSEEN_COUNT (sizeof(unseen) / sizeof(unseen[0]))
