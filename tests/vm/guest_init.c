/* The first process of the guest, from its initial RAM disk: loads the modules of /modules in the
 * order of /modules/order, mounts the root and the run's disk, and becomes systemd. Linked
 * statically: there is no library beside it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEVICE_TRIES 1000
#define DEVICE_WAIT_US 10000
#define RUNS "/root/var/lib/ckptd"

/* The kernel ends QEMU (-no-reboot) and the console says why. */
static _Noreturn void give_up(const char *what)
{
	printf("guest_init: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void load_modules(void)
{
	FILE *order = fopen("/modules/order", "re");
	char name[64], path[96];

	if (order == NULL)
		give_up("/modules/order");
	while (fscanf(order, "%63s", name) == 1) {
		snprintf(path, sizeof(path), "/modules/%s.ko", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			give_up(path);
		close(fd);
	}
	fclose(order);
}

/* Devices are found in the background. */
static void mount_disk(const char *device, const char *folder)
{
	for (int i = 0; i < DEVICE_TRIES && access(device, F_OK) < 0; i++)
		usleep(DEVICE_WAIT_US);
	if (mount(device, folder, "ext4", MS_NOATIME, NULL) < 0)
		give_up(device);
}

int main(void)
{
	static char name[] = "/sbin/init";
	char *const arguments[] = {name, NULL};

	if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0)
		give_up("/dev");
	load_modules();
	mount_disk("/dev/vda", "/root");
	mount_disk("/dev/vdb", RUNS);
	if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) < 0 || chdir("/root") < 0 ||
		mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
		give_up("/root");
	execv(arguments[0], arguments);
	give_up(arguments[0]);
}
