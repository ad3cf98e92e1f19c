/* What another process has open, by /proc. Include after cmocka.h. */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* How many descriptors of pid are this file, by its whole name; *ret_last (may be NULL): the number
 * of the last one found, -1 for none. A memfd is "/memfd:NAME (deleted)". */
static inline int descriptors_of(pid_t pid, const char *path, int *ret_last)
{
	char dir[64], link[PATH_MAX];
	int found = 0, last = -1;
	DIR *list;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", (int)pid);
	list = opendir(dir);
	assert_non_null(list);
	for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
		ssize_t length = readlinkat(dirfd(list), entry->d_name, link, sizeof(link) - 1);

		link[length > 0 ? length : 0] = '\0';
		if (strcmp(link, path) == 0) {
			found++;
			last = (int)strtol(entry->d_name, NULL, 10);
		}
	}
	closedir(list);
	if (ret_last)
		*ret_last = last;
	return found;
}

/* The state memory of a supervisor, opened through a descriptor of its own; the caller's. */
static inline int open_state_memory(pid_t supervisor)
{
	char path[64];
	int number, fd;

	assert_true(descriptors_of(supervisor, "/memfd:ckptd-state (deleted)", &number) > 0);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)supervisor, number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}
