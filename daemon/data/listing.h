/* What lies below a picture folder: relative path, size and mtime of every file whose name ends in
 * .png, .jpg or .jpeg, in byte order of the path. Nothing is opened but folders. Names that begin
 * with a dot, and the run's own folder, are left out; linked folders are not entered, linked files
 * are pictures like others. */
#pragma once

#include "base/digest.h"
#include "base/error.h"
#include "daemon/data/data.h"

#include <stddef.h>
#include <stdint.h>

#define LISTING_DEPTH_MAX 32
#define LISTING_FILES_MAX ((uint64_t)1 << 24)

struct listing_entry {
	uint64_t path; /* offset into text */
	uint64_t size;
	int64_t mtime_ns;
};

struct listing {
	struct listing_entry *entries; /* owned */
	char *text;                    /* owned: paths, each ended by NUL */
	uint64_t count, capacity;
	uint64_t text_size, text_capacity;
	char **linked; /* owned, sorted: the folders that linked files lie in; absolute */
	uint64_t linked_count, linked_capacity;
};

/* Reports bad files one by one up to a bound, and counts them all. */
struct complaints {
	data_report *report; /* may be NULL */
	void *context;
	uint64_t count;
	char first[ERROR_TEXT_MAX / 2];
};
void complain(struct complaints *complaints, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* How many more there were than were named, in one line. */
void complaints_finish(const struct complaints *complaints);

/* skip_fd: a folder that is left out with all below it (-1: none). -ENOMEM, -EFBIG, -EIO, ... */
int listing_read(int root_fd, int skip_fd, struct complaints *complaints, struct listing *ret,
	struct error *err);
void listing_fini(struct listing *listing);

struct listing_difference {
	uint64_t added, removed, changed;
};
/* Both sorted. */
struct listing_difference listing_compare(
	const struct listing *before, const struct listing *after);
