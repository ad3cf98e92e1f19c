/* See base/priority.h. */
#include "base/priority.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/ioprio.h: the class, then the level in it. */
enum {
	IOPRIO_WHO_PROCESS = 1,
	AS_NICE_SAYS = 0,
	BEST_EFFORT_LOWEST = 2 << 13 | 7,
	IDLE = 3 << 13,
};

static int normal; /* nice of what nobody has changed */

/* Of the session that the process leads, if it does. The kernel takes one such change in 100 ms
 * from those without rights, and -EAGAIN leaves it as it was. */
static int set_session(pid_t leader, int nice)
{
	char path[32], text[64] = {0};
	const char *is;
	int code = 0, fd;

	if (getsid(leader) != leader)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/autogroup", (int)leader);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno; /* a kernel without them */
	/* "/autogroup-ID nice N" */
	if (read(fd, text, sizeof(text) - 1) < 0)
		code = -errno;
	is = strstr(text, " nice ");
	if (is && strtol(is + 6, NULL, 10) != nice && dprintf(fd, "%d", nice) < 0)
		code = -errno;
	close(fd);
	return code;
}

void priority_raise(int by)
{
	errno = 0;
	int nice = getpriority(PRIO_PROCESS, 0);

	if (nice == -1 && errno != 0)
		return;
	normal = nice;
	(void)setpriority(PRIO_PROCESS, 0, nice - by);
	(void)set_session(getpid(), nice - by);
}

static int set_thread(pid_t thread, int nice)
{
	int code = setpriority(PRIO_PROCESS, (id_t)thread, normal + nice) < 0 ? -errno : 0;

	if (syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, (int)thread,
		    nice > 0 ? BEST_EFFORT_LOWEST : AS_NICE_SAYS) < 0 &&
		code == 0)
		code = -errno;
	return code;
}

int priority_set(pid_t process, int nice)
{
	char path[32];
	int code = set_thread(process, nice), other = set_session(process, normal + nice);

	if (code == 0)
		code = other;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)process);
	DIR *threads = opendir(path);

	if (!threads)
		return code != 0 ? code : -errno;
	for (struct dirent *entry; (entry = readdir(threads)) != NULL;) {
		pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);

		other = thread > 0 && thread != process ? set_thread(thread, nice) : 0;
		if (code == 0)
			code = other;
	}
	closedir(threads);
	return code;
}

void priority_idle_io(void)
{
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE);
}
