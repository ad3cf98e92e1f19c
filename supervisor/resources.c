/* Reads of /proc and of the control group (resources.h): small, of the kernel, and never waiting.
 */
#include "supervisor/resources.h"

#include "base/log.h"
#include "base/panic.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define WORKER_FILES 512

/* The number after key in a file of "key number" lines; false when it is not there. */
static bool find_number(const char *path, const char *key, uint64_t *ret)
{
	size_t length = strlen(key);
	unsigned long long number;
	char text[1024];
	bool found = false;
	FILE *file = fopen(path, "re");

	if (!file)
		return false;
	while (!found && fgets(text, sizeof(text), file))
		found = strncmp(text, key, length) == 0 &&
			sscanf(text + length, " %llu", &number) == 1;
	fclose(file);
	if (found)
		*ret = number;
	return found;
}

/* Our path in the hierarchy whose line in /proc/self/cgroup contains mark. */
static bool find_group(const char *mark, char *group, size_t size)
{
	char text[1024];
	bool found = false;
	FILE *file = fopen("/proc/self/cgroup", "re");

	if (!file)
		return false;
	while (!found && fgets(text, sizeof(text), file)) {
		char *path = strstr(text, mark);

		if (!path)
			continue;
		path += strlen(mark);
		path[strcspn(path, "\n")] = '\0';
		found = snprintf(group, size, "%s", path) < (int)size;
	}
	fclose(file);
	return found;
}

uint64_t resources_oom_kills(void)
{
	char group[512], path[640];
	uint64_t count = 0;

	if (find_group(":memory:", group, sizeof(group))) {
		snprintf(path, sizeof(path), "/sys/fs/cgroup/memory%s/memory.oom_control", group);
		if (find_number(path, "oom_kill ", &count))
			return count;
	}
	if (find_group("0::", group, sizeof(group))) {
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.events", group);
		if (find_number(path, "oom_kill ", &count))
			return count;
	}
	find_number("/proc/vmstat", "oom_kill ", &count);
	return count;
}

uint64_t resources_private_bytes(pid_t pid)
{
	char path[64];
	uint64_t kib = 0;

	CHECK(pid > 0);
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	return find_number(path, "RssAnon:", &kib) ? kib << 10 : 0;
}

uint32_t resources_threads(uint32_t named)
{
	static long processors; /* reading it opens a file */

	if (processors == 0)
		processors = sysconf(_SC_NPROCESSORS_ONLN);
	return named > 0 ? named : processors > 0 ? (uint32_t)processors : 1;
}

static void set_limit(pid_t pid, int what, uint64_t value)
{
	struct rlimit limit = {.rlim_cur = value, .rlim_max = value};

	if (prlimit(pid, (__rlimit_resource_t)what, &limit, NULL) < 0)
		log_debug("cannot limit process %d: %s", (int)pid, strerror(errno));
}

void resources_limit(pid_t pid, uint64_t memory_bytes)
{
	set_limit(pid, RLIMIT_CORE, 0);
	set_limit(pid, RLIMIT_NOFILE, WORKER_FILES);
	if (memory_bytes > 0)
		set_limit(pid, RLIMIT_DATA, memory_bytes);
}

bool growth_exceeds(
	struct growth *growth, uint64_t steps, uint64_t private_bytes, uint64_t limit_bytes)
{
	if (steps < GROWTH_SETTLE_STEPS || growth->base_bytes == 0) {
		if (growth->base_bytes < private_bytes)
			growth->base_bytes = private_bytes;
		return false;
	}
	return limit_bytes > 0 && private_bytes > growth->base_bytes &&
		private_bytes - growth->base_bytes > limit_bytes;
}
