/* The seam for faults: every file operation that matters to durability goes through here. Each
 * returns what the system call returns, but with -errno instead of -1, and retries EINTR where
 * that is safe (never close or fsync). A fault plan can make any call fail, tear or kill the
 * process at it.
 *
 * The plan comes from the environment variable CKPTD_FAULT, read once on first use:
 *     CKPTD_FAULT=POINT:N:ACTION[,POINT:N:ACTION...]
 * POINT is an operation (open, pwrite, fsync, rename, ...) or a named point of the commit
 * (save.reserved, save.written, ...); N counts hits of that point in this process from 1, or is
 * '*' for each; ACTION is an errno name (EIO, ENOSPC, ...), "short" (half of a write), "kill"
 * (SIGKILL to itself), "stop" (SIGSTOP to itself), "flip" (one bit of the bytes read) or "eof" (a
 * read finds the end). "short", "flip" and "eof" do nothing where there are no bytes. */
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

/* A named point between calls. 0, or -errno when the plan says so. */
int sys_fault(const char *point);
/* Replaces the plan (tests). NULL clears it. Returns -EINVAL for a plan that does not parse. */
int sys_fault_plan(const char *plan);
