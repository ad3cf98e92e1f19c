/* See loop.h. */
#include "tests/crash/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICE_TRIES 16

bool loop_run(const char *const *arguments)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int null_fd = open("/dev/null", O_RDWR);

		dup2(null_fd, STDIN_FILENO);
		dup2(null_fd, STDOUT_FILENO);
		dup2(null_fd, STDERR_FILENO);
		execvp(arguments[0], (char *const *)arguments);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
		WEXITSTATUS(status) == 0;
}

const char *loop_lacks(const char *const *programs)
{
	static char text[96];

	if (geteuid() != 0)
		return "root";
	if (access("/dev/loop-control", R_OK | W_OK) < 0)
		return "loop devices";
	for (; *programs != NULL; programs++) {
		const char *const arguments[] = {*programs, "-V", NULL};

		if (!loop_run(arguments)) {
			snprintf(text, sizeof(text), "%s", *programs);
			return text;
		}
	}
	return NULL;
}

bool loop_isolate(void)
{
	return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

bool loop_make_file(const char *path, long mib)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool good = fd >= 0 && ftruncate(fd, mib << 20) == 0;

	if (fd >= 0)
		close(fd);
	return good;
}

/* The descriptor, or -1: another process may take the free device first. */
static int attach(const char *image, char device[32])
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int image_fd = open(image, O_RDWR | O_CLOEXEC), fd = -1;

	for (int i = 0; fd < 0 && i < DEVICE_TRIES && control >= 0 && image_fd >= 0; i++) {
		struct loop_config config = {
			.fd = (unsigned)image_fd, .info.lo_flags = LO_FLAGS_AUTOCLEAR};
		int number = ioctl(control, LOOP_CTL_GET_FREE);

		if (number < 0)
			break;
		snprintf(device, 32, "/dev/loop%d", number);
		fd = open(device, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
			close(fd);
			fd = -1;
		}
	}
	if (control >= 0)
		close(control);
	if (image_fd >= 0)
		close(image_fd);
	return fd;
}

bool loop_mount(const char *image, const char *folder, const char *type, const char *options)
{
	char device[32];
	int fd = attach(image, device);
	bool good = fd >= 0 && mount(device, folder, type, 0, options) == 0;

	if (!good)
		fprintf(stderr, "# mount %s at %s: %s\n", type, folder, strerror(errno));
	if (fd >= 0)
		close(fd);
	return good;
}

bool loop_unmount(const char *folder)
{
	return umount2(folder, 0) == 0;
}

bool loop_clone(const char *from, const char *to)
{
	int from_fd = open(from, O_RDONLY | O_CLOEXEC);
	int to_fd = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool good = from_fd >= 0 && to_fd >= 0 && ioctl(to_fd, FICLONE, from_fd) == 0;

	if (from_fd >= 0)
		close(from_fd);
	if (to_fd >= 0)
		close(to_fd);
	return good;
}
