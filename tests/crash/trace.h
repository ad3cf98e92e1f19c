/* Records what a scenario does to a run's folder: the folder as it was, then every operation that
 * changed or synced something, in order, with its data; and events, when a client was told
 * something. Files are known by inode, so that an operation names what it really touched.
 *
 * Never recorded: what lies outside the folder, and `-shm` files, which SQLite stores to through a
 * mapping and rebuilds after a crash. */
#pragma once

#include "base/sys.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define TRACE_NAME_MAX 96
#define TRACE_PAGE 4096

enum trace_kind {
	TRACE_CREATE, /* node gets its first name */
	TRACE_MKDIR,
	TRACE_LINK,
	TRACE_RENAME,
	TRACE_UNLINK,
	TRACE_WRITE,
	TRACE_GROW,
	TRACE_RESIZE,
	TRACE_SYNC,
	TRACE_EVENT,
};

/* What a client was told (acknowledged), or what was begun and may so have happened. */
enum trace_event {
	EVENT_SAVED,        /* checkpoint value is verified */
	EVENT_CATALOGUED,   /* and its row says so */
	EVENT_RETIRING,     /* from here on checkpoint value may go */
	EVENT_BRANCH,       /* branch value was begun */
	EVENT_KEPT,         /* checkpoint value is kept */
	EVENT_WANTED_ASKED, /* wanted value may be found */
	EVENT_WANTED,       /* wanted value was accepted */
};

struct trace_op {
	enum trace_kind kind;
	uint32_t node, folder; /* folder: of name and to */
	char name[TRACE_NAME_MAX], to[TRACE_NAME_MAX];
	uint8_t *data; /* owned; write */
	uint64_t size, offset;
	bool failed; /* a sync */
	enum trace_event event;
	uint32_t value;
};

/* Zero pages are NULL. */
struct trace_content {
	uint64_t size;
	uint32_t page_count;
	const uint8_t **pages;
	bool *owned;
};

struct trace_node {
	bool folder, ignored;
	ino_t inode;
	char label[TRACE_NAME_MAX];   /* its first name */
	struct trace_content content; /* as it was */
};

struct trace_entry {
	uint32_t folder, node;
	char name[TRACE_NAME_MAX];
};

struct trace {
	char dir[256];
	struct trace_node *nodes; /* 0: the run's folder */
	uint32_t node_count;
	struct trace_entry *entries; /* as they were */
	uint32_t entry_count;
	struct trace_op *ops;
	uint32_t op_count;
};

/* Takes the folder as it is, and records from now on. */
void trace_begin(struct trace *trace, const char *dir);
void trace_event(struct trace *trace, enum trace_event event, uint32_t value);
void trace_end(void);
void trace_fini(struct trace *trace);
/* "fsync .step-….partial-1": what a person would call it. */
void trace_describe(const struct trace *trace, uint32_t op, char text[192]);

void trace_content_write(
	struct trace_content *content, uint64_t offset, const uint8_t *data, uint64_t size);
void trace_content_resize(struct trace_content *content, uint64_t size);
void trace_content_copy(const struct trace_content *from, struct trace_content *ret);
void trace_content_fini(struct trace_content *content);
