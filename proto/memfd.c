/* Shared memory of a fixed size. fallocate of a memfd does not fail when memory is short: the
 * kernel reclaims, then kills somebody. So what is left is read first, from the machine and from
 * every control group above us, and asking for more is an error with both numbers in it. */
#include "proto/memfd.h"

#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define CGROUP_ROOT "/sys/fs/cgroup"
#define HUGE_PAGE ((size_t)2 << 20)
#define ALLOCATE_THREADS ((size_t)2)
#define HUGE_FROM ((uint64_t)16 << 20) /* bytes; less is mapped in no time anyway */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

/* The number in a one-line file; UINT64_MAX for "max" and for a file that is not there. */
static uint64_t read_number(const char *dir, const char *name)
{
	char path[PATH_MAX + 64], line[64];
	uint64_t number = UINT64_MAX;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return UINT64_MAX;
	if (fgets(line, sizeof(line), file) != NULL && line[0] >= '0' && line[0] <= '9')
		number = strtoull(line, NULL, 10);
	fclose(file);
	return number;
}

/* The number after key in a file of "key number" lines; fallback when it is not there. */
static uint64_t read_key(const char *path, const char *key, uint64_t fallback)
{
	char line[128];
	uint64_t number = fallback;
	size_t length = strlen(key);
	FILE *file = fopen(path, "re");

	if (file == NULL)
		return fallback;
	while (fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, key, length) == 0 && line[length] == ' ') {
			number = strtoull(line + length, NULL, 10);
			break;
		}
	fclose(file);
	return number;
}

/* In bytes; UINT64_MAX when the kernel does not say. */
static uint64_t machine_available(void)
{
	uint64_t kib = read_key("/proc/meminfo", "MemAvailable:", UINT64_MAX);

	return kib > UINT64_MAX / 1024 ? UINT64_MAX : kib * 1024;
}

/* Used by one control group; file pages can be dropped, so they do not count. */
static uint64_t cgroup_used(const char *dir)
{
	char path[PATH_MAX + 64];
	uint64_t used = read_number(dir, "memory.current");

	snprintf(path, sizeof(path), "%s/memory.stat", dir);
	uint64_t file = read_key(path, "inactive_file", 0) + read_key(path, "active_file", 0);
	return used == UINT64_MAX || file > used ? used : used - file;
}

/* The least that any control group (v2) from ours up to the root still allows. */
static uint64_t cgroup_available(void)
{
	char line[PATH_MAX], dir[PATH_MAX + 32] = CGROUP_ROOT;
	uint64_t least = UINT64_MAX;
	FILE *file = fopen("/proc/self/cgroup", "re");

	if (file != NULL) {
		while (fgets(line, sizeof(line), file) != NULL)
			if (strncmp(line, "0::/", 4) == 0) {
				line[strcspn(line, "\n")] = '\0';
				snprintf(dir, sizeof(dir), "%s%s", CGROUP_ROOT, line + 3);
			}
		fclose(file);
	}
	for (;;) {
		uint64_t max = read_number(dir, "memory.max");
		uint64_t used = cgroup_used(dir);

		if (max != UINT64_MAX && used != UINT64_MAX && max < least)
			least = used < max ? max - used : 0;
		char *slash = strrchr(dir, '/');
		if (strlen(dir) <= strlen(CGROUP_ROOT) || slash == NULL)
			return least;
		*slash = '\0';
	}
}

static int memory_check(const char *name, uint64_t size, struct error *err)
{
	uint64_t machine = machine_available(), group = cgroup_available();
	uint64_t available = machine < group ? machine : group;

	if (size <= available)
		return 0;
	return error_set(err, -ENOMEM,
		"%s needs %" PRIu64 " MiB of memory and %" PRIu64 " MiB are available%s: "
		"use fewer slots, a smaller model or more memory",
		name, size >> 20, available >> 20, group < machine ? " to this control group" : "");
}

void *memfd_map(int fd, size_t bytes)
{
	uint8_t *room = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		return NULL;
	size_t before = (HUGE_PAGE - (uintptr_t)room % HUGE_PAGE) % HUGE_PAGE;
	size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (bytes + page - 1) / page * page;
	uint8_t *map = mmap(
		room + before, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	int code = errno;

	if (before > 0)
		munmap(room, before);
	if (map == MAP_FAILED)
		munmap(room + before, bytes + HUGE_PAGE - before);
	else if (before + used < bytes + HUGE_PAGE)
		munmap(room + before + used, bytes + HUGE_PAGE - before - used);
	errno = code;
	return map == MAP_FAILED ? NULL : map;
}

/* Huge pages: a process that maps 1.6 GiB of small ones needs 0.2 s to begin and 0.1 s to end. The
 * setting for shared memory is off by default and not asked here. */
void memfd_allocate(uint8_t *map, size_t bytes)
{
	/* Only what has a page already is collapsed. */
	for (size_t at = 0; at < bytes; at += HUGE_PAGE)
		(void)madvise(map + at, 1, MADV_POPULATE_READ);
	(void)madvise(map, bytes, MADV_COLLAPSE);
	(void)madvise(map, bytes, MADV_POPULATE_WRITE);
}

struct part {
	uint8_t *map;
	size_t bytes;
	bool alone; /* no thread could be had */
};

static void *allocate_part(void *context)
{
	const struct part *part = context;

	memfd_allocate(part->map, part->bytes);
	return NULL;
}

static void allocate_by_threads(int fd, uint64_t size)
{
	struct part parts[ALLOCATE_THREADS];
	pthread_t threads[ALLOCATE_THREADS];
	uint8_t *map = size < HUGE_FROM || size > SIZE_MAX ? NULL : memfd_map(fd, (size_t)size);
	size_t pages = (size_t)size / HUGE_PAGE;

	if (map == NULL)
		return;
	for (size_t i = 0; i < ALLOCATE_THREADS; i++) {
		size_t begin = pages * i / ALLOCATE_THREADS;
		size_t end = pages * (i + 1) / ALLOCATE_THREADS;
		struct part *part = &parts[i];

		part->map = map + begin * HUGE_PAGE;
		part->bytes = (end - begin) * HUGE_PAGE;
		part->alone = pthread_create(&threads[i], NULL, allocate_part, part) != 0;
		if (part->alone)
			allocate_part(part);
	}
	for (size_t i = 0; i < ALLOCATE_THREADS; i++)
		if (!parts[i].alone)
			pthread_join(threads[i], NULL);
	munmap(map, (size_t)size);
}

int memfd_create_sized(const char *name, uint64_t size, uint64_t now, const void *head,
	size_t head_size, struct error *err)
{
	int r = sys_fault(name);

	if (r < 0)
		return error_set(err, r, "%s: %s", name, strerror(-r));
	r = memory_check(name, size, err);
	if (r < 0)
		return r;
	if (size > INT64_MAX)
		return error_set(err, -EFBIG, "%s: too large", name);
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return error_set(
			err, -errno, "%s: cannot make shared memory: %s", name, strerror(errno));
	r = ftruncate(fd, (off_t)size);
	if (r == 0) {
		allocate_by_threads(fd, now);
		r = fallocate(fd, 0, 0, (off_t)now);
	}
	if (r < 0) {
		r = errno == ENOSPC ? -ENOMEM : -errno;
		error_set(err, r, "%s: cannot allocate %" PRIu64 " MiB: %s", name, now >> 20,
			strerror(-r));
	} else if (pwrite(fd, head, head_size, 0) != (ssize_t)head_size) {
		r = error_set(err, -EIO, "%s: cannot write its header", name);
	} else if (fcntl(fd, F_ADD_SEALS, SIZE_SEALS) < 0) {
		r = error_set(err, -errno, "%s: cannot seal its size: %s", name, strerror(errno));
	}
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

bool memfd_size_sealed(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & SIZE_SEALS) == SIZE_SEALS;
}
