/* A small file system of its own for a test, in a mount namespace that ends with this process.
 * Needs the right to mount; ext4 also a loop device and mkfs.ext4. Include after cmocka. */
#pragma once

#include "tests/lacks.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void small_fs_begin(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		test_lacks("the right to mount (root, CAP_SYS_ADMIN)");
}

static inline void small_fs_mount_tmpfs(const char *path, uint32_t mib)
{
	char options[64];

	snprintf(options, sizeof(options), "size=%um,mode=0750", mib);
	assert_int_equal(mount("tmpfs", path, "tmpfs", 0, options), 0);
}

static inline void small_fs_format(const char *image)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		/* No blocks are held back for root. */
		execlp("mkfs.ext4", "mkfs.ext4", "-q", "-F", "-m", "0", image, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		test_lacks("mkfs.ext4 (e2fsprogs)");
	assert_int_equal(status, 0);
}

/* The loop device frees itself when it is unmounted. */
static inline void small_fs_attach(const char *image, char device[32])
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
	int loop = -1;

	if (control < 0)
		test_lacks("loop devices (/dev/loop-control)");
	config.fd = (uint32_t)open(image, O_RDWR | O_CLOEXEC);
	/* Another process may take the free one first. */
	for (int i = 0; i < 100 && loop < 0; i++) {
		snprintf(device, 32, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
		loop = open(device, O_RDWR | O_CLOEXEC);
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0) {
			close(loop);
			loop = -1;
		}
	}
	if (loop < 0)
		test_lacks("a free loop device");
	close((int)config.fd);
	close(control);
	/* Left open until the mount holds it. */
	(void)loop;
}

static inline void small_fs_mount_ext4(const char *image, const char *path, uint32_t mib)
{
	int fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char device[32];

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)mib << 20), 0);
	close(fd);
	small_fs_format(image);
	small_fs_attach(image, device);
	assert_int_equal(mount(device, path, "ext4", 0, NULL), 0);
}

/* Takes the last block. */
static inline void small_fs_fill(const char *path)
{
	static const char zeros[1 << 20];
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	while (write(fd, zeros, sizeof(zeros)) > 0)
		continue;
	while (write(fd, zeros, 4096) > 0)
		continue;
	close(fd);
}
