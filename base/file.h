/* Whole files, durably. Directories are named by descriptor so that no path is resolved twice. */
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reads exactly size bytes at offset; a file that ends early is -ENODATA. */
int file_read_exact(int fd, void *data, size_t size, off_t offset);
/* Writes all of it, over short writes. */
int file_write_exact(int fd, const void *data, size_t size, off_t offset);

/* Reads a whole regular file (O_NOFOLLOW) of at most size_max bytes; *ret_data is malloc'ed and
 * has a NUL after its *ret_size bytes. -EFBIG when larger. */
int file_read_all(int dir_fd, const char *name, size_t size_max, char **ret_data, size_t *ret_size);

/* Writes name durably: temporary in the same folder, fsync, read back and compared (-EIO), rename,
 * fsync of the folder. After it returns 0 the new content survives a power cut; on error the old
 * file is untouched and the temporary is gone (when only the last fsync fails the new one stands,
 * but may not last). */
int file_replace(int dir_fd, const char *name, const void *data, size_t size, mode_t mode);
/* The same, but fails with -EEXIST instead of replacing. */
int file_create(int dir_fd, const char *name, const void *data, size_t size, mode_t mode);

/* fsync of a folder. */
int file_sync_dir(int dir_fd);
/* Opens a folder (O_DIRECTORY), creating it with mode first when it is missing; a created folder's
 * parent is fsynced. */
int file_open_dir(int dir_fd, const char *path, mode_t mode);
