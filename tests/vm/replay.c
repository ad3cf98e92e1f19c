/* See replay.h. The log is that of dm-log-writes, in sectors of 512 bytes: a superblock, then
 * entries, each a sector of header with its data behind it. */
#include "tests/vm/replay.h"

#include "tests/crash/loop.h"
#include "tests/vm/disk.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define LOG_MAGIC 0x6a736677736872ULL
#define SECTOR 512
#define TEAR 4096
#define FLAG_FLUSH 1u
#define FLAG_DISCARD 4u
#define PENDING_MAX 4096

struct super {
	uint64_t magic, version, entry_count;
	uint32_t sector_bytes;
};

struct entry {
	uint64_t sector, sector_count, flags, data_bytes;
};

struct pending {
	off_t to, from; /* disk, log */
	size_t bytes;
};

struct run {
	int log_fd, base_fd;
	const char *base;
	const struct disk_fs *fs;
	off_t disk_bytes;
	struct pending pending[PENDING_MAX];
	uint32_t count;
	uint32_t every; /* one flush of so many is looked at */
	struct replay *ret;
};

static void apply(const struct run *run, int fd, const struct pending *write, size_t bytes)
{
	char *data = malloc(write->bytes);

	assert_non_null(data);
	assert_int_equal(pread(run->log_fd, data, bytes, write->from), (ssize_t)bytes);
	assert_int_equal(pwrite(fd, data, bytes, write->to), (ssize_t)bytes);
	free(data);
}

/* A subset of the pending writes; none at the first try of a flush. */
static void apply_some(const struct run *run, int fd, bool none)
{
	for (uint32_t i = 0; i < run->count && !none; i++) {
		const struct pending *write = &run->pending[i];
		size_t blocks = write->bytes / TEAR;

		switch (rand() % 4) {
		case 0:
			break;
		case 1:
			if (blocks > 1)
				apply(run, fd, write, (size_t)rand() % blocks * TEAR);
			break;
		default:
			apply(run, fd, write, write->bytes);
		}
	}
}

static void look(struct run *run, bool none)
{
	struct replay *ret = run->ret;
	char path[DISK_PATH_MAX];
	struct disk_found found;

	disk_path("state", path);
	assert_true(loop_clone(run->base, path));
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	apply_some(run, fd, none);
	assert_int_equal(close(fd), 0);
	disk_look(path, run->fs, &found);
	assert_int_equal(unlink(path), 0);
	ret->states++;
	if (found.whole && found.step >= ret->promised)
		return;
	if (ret->violations++ == 0)
		snprintf(ret->first, sizeof(ret->first),
			"flush %u, %u writes since the one before: step %lld was verified, step "
			"%lld is found %.100s",
			ret->flushes, run->count, (long long)ret->promised, (long long)found.step,
			found.text);
}

/* The power may have gone just before this flush. */
static void take_flush(struct run *run)
{
	run->ret->flushes++;
	if (run->count > 0 && (uint32_t)rand() % run->every == 0) {
		look(run, true);
		look(run, false);
	}
	for (uint32_t i = 0; i < run->count; i++)
		apply(run, run->base_fd, &run->pending[i], run->pending[i].bytes);
	run->count = 0;
}

static void take_mark(struct run *run, off_t from)
{
	char text[SECTOR + 1] = "";

	assert_int_equal(pread(run->log_fd, text, SECTOR, from), SECTOR);
	run->ret->promised = strtoll(text, NULL, 10);
}

/* The offset of the next entry. */
static off_t take_entry(struct run *run, const struct entry *entry, off_t data)
{
	size_t bytes = (size_t)entry->sector_count * SECTOR;
	off_t to = (off_t)entry->sector * SECTOR;

	if ((entry->flags & FLAG_FLUSH) != 0)
		take_flush(run);
	if ((entry->flags & FLAG_DISCARD) != 0)
		return data;
	if (bytes > 0 && to == run->disk_bytes - SECTOR) {
		take_mark(run, data);
	} else if (bytes > 0) {
		assert_true(run->count < PENDING_MAX);
		run->pending[run->count++] = (struct pending){to, data, bytes};
	}
	return data + (off_t)bytes;
}

static void walk(struct run *run, bool count_only, uint64_t entry_count, bool mutant)
{
	off_t at = SECTOR;

	for (uint64_t i = 0; i < entry_count && !(mutant && run->ret->violations > 0); i++) {
		struct entry entry;

		assert_int_equal(
			pread(run->log_fd, &entry, sizeof(entry), at), (ssize_t)sizeof(entry));
		at += SECTOR;
		if (!count_only) {
			at = take_entry(run, &entry, at);
			continue;
		}
		run->every += (entry.flags & FLAG_FLUSH) != 0;
		if ((entry.flags & FLAG_DISCARD) == 0)
			at += (off_t)entry.sector_count * SECTOR;
	}
}

void replay_run(const char *log, const char *base, const struct disk_fs *fs, uint32_t states,
	bool mutant, struct replay *ret)
{
	static struct run run; /* large */
	struct super super;
	struct stat stat;

	*ret = (struct replay){0};
	run = (struct run){.log_fd = open(log, O_RDONLY | O_CLOEXEC),
		.base_fd = open(base, O_RDWR | O_CLOEXEC),
		.base = base,
		.fs = fs,
		.ret = ret};
	assert_true(run.log_fd >= 0 && run.base_fd >= 0 && fstat(run.base_fd, &stat) == 0);
	run.disk_bytes = stat.st_size;
	assert_int_equal(pread(run.log_fd, &super, sizeof(super), 0), (ssize_t)sizeof(super));
	assert_true(super.magic == LOG_MAGIC && super.sector_bytes == SECTOR);
	/* Two states at each flush. */
	walk(&run, true, super.entry_count, false);
	run.every = run.every * 2 / states + 1;
	walk(&run, false, super.entry_count, mutant);
	/* What the machine never flushed. */
	if (!(mutant && ret->violations > 0))
		look(&run, true);
	close(run.log_fd);
	close(run.base_fd);
}
