/* Whole files, durably: temporary, write, fsync, rename, fsync of the folder. */
#include "base/file.h"

#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int file_read_exact(int fd, void *data, size_t size, off_t offset)
{
	uint8_t *bytes = data;

	while (size > 0) {
		ssize_t got = sys_pread(fd, bytes, size, offset);

		if (got < 0)
			return (int)got;
		if (got == 0)
			return -ENODATA;
		bytes += got;
		size -= (size_t)got;
		offset += got;
	}
	return 0;
}

int file_write_exact(int fd, const void *data, size_t size, off_t offset)
{
	const uint8_t *bytes = data;

	while (size > 0) {
		ssize_t put = sys_pwrite(fd, bytes, size, offset);

		if (put < 0)
			return (int)put;
		if (put == 0)
			return -EIO;
		bytes += put;
		size -= (size_t)put;
		offset += put;
	}
	return 0;
}

static int read_whole(int fd, size_t size_max, char **ret_data, size_t *ret_size)
{
	struct stat st;
	int code = sys_fstat(fd, &st);

	if (code < 0)
		return code;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_size < 0 || (uint64_t)st.st_size > size_max)
		return -EFBIG;
	size_t size = (size_t)st.st_size;
	char *data = malloc(size + 1);
	if (!data)
		return -ENOMEM;
	code = file_read_exact(fd, data, size, 0);
	if (code < 0) {
		free(data);
		return code;
	}
	data[size] = 0;
	*ret_data = data;
	*ret_size = size;
	return 0;
}

int file_read_all(int dir_fd, const char *name, size_t size_max, char **ret_data, size_t *ret_size)
{
	/* O_NONBLOCK: a FIFO under that name must not hang the open. */
	int fd = sys_openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);

	if (fd < 0)
		return fd;
	int code = read_whole(fd, size_max, ret_data, ret_size);
	sys_close(fd);
	return code;
}

/* What the device gives back must be what was written: past the cache, as far as advice goes. */
static int compare_written(int fd, const uint8_t *data, size_t size)
{
	uint8_t read[4096];
	int code = 0;

	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	for (size_t at = 0; code == 0 && at < size; at += sizeof(read)) {
		size_t piece = size - at < sizeof(read) ? size - at : sizeof(read);

		code = file_read_exact(fd, read, piece, (off_t)at);
		if (code == -ENODATA || (code == 0 && memcmp(read, data + at, piece) != 0))
			code = -EIO;
	}
	return code;
}

static int write_synced(int dir_fd, const char *name, const void *data, size_t size, mode_t mode)
{
	int fd = sys_openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode);

	if (fd < 0)
		return fd;
	int code = file_write_exact(fd, data, size, 0);
	if (code == 0)
		code = sys_fsync(fd);
	if (code == 0)
		code = compare_written(fd, data, size);
	int closed = sys_close(fd);
	return code < 0 ? code : closed;
}

static int publish(int dir_fd, const char *name, const void *data, size_t size, mode_t mode,
	int (*rename_to)(int, const char *, const char *))
{
	char temporary[256];
	int length = snprintf(temporary, sizeof(temporary), ".%s.tmp-%d", name, (int)getpid());
	int code;

	CHECK(*name && !strchr(name, '/'));
	if (length < 0 || length >= (int)sizeof(temporary))
		return -ENAMETOOLONG;
	/* A leftover of an earlier process with this pid. */
	code = sys_unlinkat(dir_fd, temporary);
	if (code < 0 && code != -ENOENT)
		return code;
	code = write_synced(dir_fd, temporary, data, size, mode);
	if (code == 0)
		code = rename_to(dir_fd, temporary, name);
	if (code < 0) {
		sys_unlinkat(dir_fd, temporary);
		return code;
	}
	return file_sync_dir(dir_fd);
}

int file_replace(int dir_fd, const char *name, const void *data, size_t size, mode_t mode)
{
	return publish(dir_fd, name, data, size, mode, sys_renameat);
}

int file_create(int dir_fd, const char *name, const void *data, size_t size, mode_t mode)
{
	return publish(dir_fd, name, data, size, mode, sys_renameat_noreplace);
}

int file_sync_dir(int dir_fd)
{
	return sys_fsync(dir_fd);
}

/* The folder that holds path, for the fsync after mkdir. */
static int open_parent(int dir_fd, const char *path)
{
	char parent[4096];
	size_t length = strlen(path);

	while (length > 1 && path[length - 1] == '/')
		length--;
	while (length > 0 && path[length - 1] != '/')
		length--;
	if (length == 0)
		return sys_openat(dir_fd, ".", O_RDONLY | O_DIRECTORY, 0);
	if (length >= sizeof(parent))
		return -ENAMETOOLONG;
	memcpy(parent, path, length);
	parent[length] = 0;
	return sys_openat(dir_fd, parent, O_RDONLY | O_DIRECTORY, 0);
}

int file_open_dir(int dir_fd, const char *path, mode_t mode)
{
	int fd = sys_openat(dir_fd, path, O_RDONLY | O_DIRECTORY, 0);

	if (fd != -ENOENT)
		return fd;
	int code = sys_mkdirat(dir_fd, path, mode);
	if (code < 0 && code != -EEXIST)
		return code;
	int parent = open_parent(dir_fd, path);
	if (parent < 0)
		return parent;
	code = file_sync_dir(parent);
	sys_close(parent);
	if (code < 0)
		return code;
	return sys_openat(dir_fd, path, O_RDONLY | O_DIRECTORY, 0);
}
