/* The seam for faults: every file operation that matters to durability goes through here. Each
 * returns what the system call returns, but with -errno instead of -1, and retries EINTR where
 * that is safe (never close or fsync). A fault plan can make any call fail, tear or kill the
 * process at it.
 *
 * The plan comes from the environment variable CKPTD_FAULT, read once on first use:
 *     CKPTD_FAULT=POINT:N:ACTION[,POINT:N:ACTION...]
 * POINT is an operation (open, pwrite, fsync, rename, ...; db.open, db.pwrite, ... of a database)
 * or a named point of the commit (save.reserved, save.written, ...) or a shared memory that is made
 * (ckptd-state, ckptd-copy, ckptd-progress); N counts hits of that point in
 * this process from 1, or is '*' for each; ACTION is one of
 *     an errno name   (EIO, ENOSPC, ...)
 *     short           half of the bytes only
 *     eof             a read finds the end
 *     flip            a read gives one other bit
 *     rot             a write leaves one other bit on the disk, and says nothing
 *     skip            nothing is done, and success is said (of what changes or syncs)
 *     kill, stop      SIGKILL or SIGSTOP to the process itself
 *     spin, block     never comes back: an endless loop, a read that nobody answers
 * An action does nothing where it makes no sense. A tracer sees what really was done. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

int sys_openat(int dir_fd, const char *path, int flags, mode_t mode);
int sys_close(int fd);
ssize_t sys_pread(int fd, void *data, size_t size, off_t offset);
ssize_t sys_pwrite(int fd, const void *data, size_t size, off_t offset);
int sys_fsync(int fd);
int sys_fdatasync(int fd);
int sys_fallocate(int fd, off_t size);
int sys_ftruncate(int fd, off_t size);
int sys_flock(int fd, int operation); /* with LOCK_NB */
int sys_fstat(int fd, struct stat *ret);
int sys_fstatat(int dir_fd, const char *path, struct stat *ret); /* never follows a link */
int sys_mkdirat(int dir_fd, const char *path, mode_t mode);
int sys_unlinkat(int dir_fd, const char *path);
int sys_renameat(int dir_fd, const char *from, const char *to);           /* replaces */
int sys_renameat_noreplace(int dir_fd, const char *from, const char *to); /* -EEXIST */
/* Bytes that this process may still take on the file system of fd. */
int sys_free_bytes(int fd, uint64_t *ret);

/* The same calls for databases (store/database.c), under points of their own, so that a plan
 * can tell them from the others: db.open, db.close, db.pread, db.pwrite, db.ftruncate, db.fsync,
 * db.unlink. */
int sys_db_open(const char *path, int flags, mode_t mode);
int sys_db_close(int fd);
ssize_t sys_db_pread(int fd, void *data, size_t size, off_t offset);
ssize_t sys_db_pwrite(int fd, const void *data, size_t size, off_t offset);
int sys_db_ftruncate(int fd, off_t size);
int sys_db_fsync(int fd); /* 1: a plan skips it, and nobody may make up for it */
int sys_db_unlink(const char *path);

/* A named point between calls. 0, or -errno when the plan says so. */
int sys_fault(const char *point);
/* Whether there is a plan at all: without one no point needs a name. */
bool sys_fault_planned(void);
/* Replaces the plan (tests). NULL clears it. Returns -EINVAL for a plan that does not parse. */
int sys_fault_plan(const char *plan);
/* How many faults fired since the plan was set: a sweep raises N until none does. */
uint64_t sys_fault_fired(void);

/* -- traces (tests) -- */

enum sys_op_kind {
	SYS_OP_OPEN, /* for writing; made if it was not there and flags say so */
	SYS_OP_CLOSE,
	SYS_OP_WRITE,
	SYS_OP_ALLOCATE, /* the file is at least offset bytes long now */
	SYS_OP_TRUNCATE, /* exactly offset bytes */
	SYS_OP_SYNC,     /* of a file or a folder; may have failed */
	SYS_OP_MKDIR,
	SYS_OP_UNLINK,
	SYS_OP_RENAME, /* replaces */
	SYS_OP_LINK,
};

struct sys_op {
	enum sys_op_kind kind;
	int fd;     /* open, close, write, allocate, truncate, sync */
	int dir_fd; /* what path and to are relative to */
	const char *path, *to;
	int flags;        /* open */
	const void *data; /* write: what reached the file */
	uint64_t size, offset;
	int result; /* 0, or the -errno of a sync that failed; other failures are not told */
};

/* Told after each operation that changed or synced something, one at a time, in the order of
 * execution: operations wait for each other while a tracer is set. NULL ends it. */
typedef void sys_tracer(void *context, const struct sys_op *op);
void sys_trace_set(sys_tracer *tracer, void *context);
