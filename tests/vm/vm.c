/* See vm.h. */
#include "tests/vm/vm.h"

#include "base/clock.h"
#include "base/file.h"
#include "proto/interface.h"
#include "store/catalog.h"
#include "store/checkpoint.h"
#include "tests/crash/loop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define BOOT_NS (120 * NSEC_PER_SEC)
#define COMMAND_NS (120 * NSEC_PER_SEC)
#define WAIT_NS (300 * NSEC_PER_SEC)
#define POLL_US 100000
#define WORK_US 5000
#define SOCKET "/run/ckptd/vm/ckptd.sock"
#define NEST_MIB 4096
#define OUTPUT_MAX ((size_t)4 << 20)
#define IMAGE CKPTD_BUILD "/tests/vm/image"

/* Older than what OpenBLAS asks for at the least, with instructions that every emulation has. */
#define CPU "Nehalem,+rdrand"

static char nest[64];

/* -- what it needs -- */

static const char *const file_systems[] = {"mkfs.xfs", "mkfs.ext4", NULL};

/* --version succeeds where it is installed. */
static bool installed(const char *program)
{
	const char *const arguments[] = {program, "--version", NULL};

	return loop_run(arguments);
}

const char *vm_lacks(void)
{
	static const char *const programs[] = {"qemu-system-x86_64", "cpio", "lz4", "meson",
		"ninja", "apt-get", "dpkg-deb", "systemd-sysusers"};
	const char *lack = loop_lacks(file_systems);

	for (size_t i = 0; lack == NULL && i < sizeof(programs) / sizeof(programs[0]); i++)
		if (!installed(programs[i]))
			lack = programs[i];
	return lack;
}

/* Its words go to a file, which says why it failed. */
static bool make_image(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int log = open(IMAGE ".log", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

		dup2(log, STDOUT_FILENO);
		dup2(log, STDERR_FILENO);
		execl(CKPTD_SOURCE "/tests/vm/image", "image", CKPTD_SOURCE, CKPTD_BUILD, IMAGE,
			(char *)NULL);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

void vm_path(const char *name, char path[VM_PATH_MAX])
{
	snprintf(path, VM_PATH_MAX, "%s/%s", nest, name);
}

/* On an xfs of our own a copy of a disk takes milliseconds. */
static void make_nest(void)
{
	char image[80], path[VM_PATH_MAX];
	const char *const make[] = {"mkfs.xfs", "-q", "-m", "reflink=1", image, NULL};

	assert_true(loop_isolate());
	strcpy(nest, "/tmp/ckptd-vm-XXXXXX");
	assert_non_null(mkdtemp(nest));
	snprintf(image, sizeof(image), "%s.img", nest);
	assert_true(loop_make_file(image, NEST_MIB) && loop_run(make));
	assert_true(loop_mount(image, nest, "xfs", ""));
	assert_int_equal(unlink(image), 0);
	vm_path("mounted", path);
	assert_int_equal(mkdir(path, 0700), 0);
}

static void copy_in(const char *from, const char *to)
{
	const char *const copy[] = {"cp", "--sparse=always", from, to, NULL};

	assert_true(loop_run(copy));
}

const char *vm_prepare(void)
{
	char path[VM_PATH_MAX];
	nsec_t begun = clock_monotonic_ns();

	if (!make_image())
		return "an image of the guest (" IMAGE ".log says why)";
	print_message("# the image: %.1f s\n",
		(double)(clock_monotonic_ns() - begun) / (double)NSEC_PER_SEC);
	make_nest();
	vm_path("fresh", path);
	copy_in(IMAGE "/state.img", path);
	return NULL;
}

/* However this process ends, mounts, devices and images go with it. */
void vm_finish(void)
{
	if (nest[0] != '\0' && loop_unmount(nest))
		rmdir(nest);
}

void vm_make_disk(const char *path)
{
	char fresh[VM_PATH_MAX];

	vm_path("fresh", fresh);
	assert_true(loop_clone(fresh, path));
}

/* -- the machine -- */

static void show_console(const struct vm *vm)
{
	char *text = NULL, *line, *rest;
	size_t size;

	if (file_read_all(AT_FDCWD, vm->console, (size_t)1 << 20, &text, &size) < 0)
		return;
	rest = size > 3000 ? text + size - 3000 : text;
	while ((line = strsep(&rest, "\n")) != NULL)
		print_message("# %s\n", line);
	free(text);
}

#define vm_fail(vm, ...)                                                                           \
	do {                                                                                       \
		show_console(vm);                                                                  \
		vm_cut(vm);                                                                        \
		fail_msg(__VA_ARGS__);                                                             \
	} while (0)

struct words {
	char text[16][320];
	const char *list[64];
	size_t count, texts;
};

static void add(struct words *words, const char *option, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void add(struct words *words, const char *option, const char *format, ...)
{
	char *text = words->text[words->texts++];
	va_list arguments;

	assert_true(words->texts <= 16 && words->count + 3 < 64);
	va_start(arguments, format);
	vsnprintf(text, sizeof(words->text[0]), format, arguments);
	va_end(arguments);
	words->list[words->count++] = option;
	words->list[words->count++] = text;
	words->list[words->count] = NULL;
}

/* With a log, each write and flush of the run's disk is recorded in order (dm-log-writes' format).
 */
static void add_disks(struct words *words, const struct vm *vm)
{
	/* The order of the devices is that of their names in the guest. */
	add(words, "-drive", "file=" IMAGE "/root.img,if=none,id=root,format=raw,snapshot=on");
	add(words, "-device", "virtio-blk-pci,drive=root");
	if (vm->log == NULL) {
		add(words, "-drive", "file=%s,if=none,id=run,format=raw,cache=writeback", vm->disk);
	} else {
		add(words, "-blockdev", "driver=file,filename=%s,node-name=data", vm->disk);
		add(words, "-blockdev", "driver=file,filename=%s,node-name=log", vm->log);
		add(words, "-blockdev",
			"driver=blklogwrites,node-name=run,file=data,log=log,log-sector-size=512,"
			"log-super-update-interval=1");
	}
	add(words, "-device", "virtio-blk-pci,drive=run");
}

static _Noreturn void become_qemu(const struct vm *vm, int port)
{
	static const char *const fixed[] = {"qemu-system-x86_64", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-M", "pc", "-accel", "tcg", "-cpu", CPU, "-smp",
		"2", "-m", "384", "-kernel", IMAGE "/kernel", "-initrd", IMAGE "/initrd"};
	struct words words = {.count = sizeof(fixed) / sizeof(fixed[0])};
	int null_fd = open("/dev/null", O_RDWR);

	memcpy(words.list, fixed, sizeof(fixed));
	add(&words, "-append",
		"console=ttyS0 quiet mitigations=off nokaslr tsc=reliable audit=0 apparmor=0 "
		"cryptomgr.notests 8250.nr_uarts=1 no_timer_check panic=-1 systemd.log_color=0%s",
		vm->no_sync ? " systemd.setenv=LD_PRELOAD=/usr/lib/guest_nosync.so" : "");
	add(&words, "-serial", "file:%s", vm->console);
	add_disks(&words, vm);
	add(&words, "-device", "virtio-serial-pci");
	add(&words, "-chardev", "socket,id=port,fd=%d", port);
	add(&words, "-device", "virtserialport,chardev=port");
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing behind */
	dup2(null_fd, STDIN_FILENO);
	dup2(null_fd, STDOUT_FILENO);
	execvp(words.list[0], (char *const *)words.list);
	_exit(127);
}

/* A whole line or `size` bytes before the deadline; false when it came to nothing. */
static bool read_port(struct vm *vm, char *text, size_t size, bool line, nsec_t deadline)
{
	for (size_t got = 0; got < size;) {
		struct pollfd ready = {.fd = vm->port, .events = POLLIN};
		nsec_t left = deadline - clock_monotonic_ns();
		size_t want = line ? 1 : size - got;

		if (left <= 0 || poll(&ready, 1, (int)(left / NSEC_PER_MSEC) + 1) < 0)
			return false;
		if (ready.revents == 0)
			continue;
		ssize_t n = read(vm->port, text + got, want);

		if (n <= 0)
			return false;
		got += (size_t)n;
		if (line && text[got - 1] == '\n') {
			text[got - 1] = '\0';
			return true;
		}
	}
	return !line;
}

void vm_power_on(struct vm *vm)
{
	int ends[2];

	assert_int_equal(vm->qemu, 0);
	vm_path("console", vm->console);
	clock_format_utc(clock_wall_ns(), vm->powered);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	assert_int_equal(fcntl(ends[0], F_SETFD, FD_CLOEXEC), 0);
	vm->qemu = fork();
	assert_true(vm->qemu >= 0);
	if (vm->qemu == 0)
		become_qemu(vm, ends[1]);
	close(ends[1]);
	vm->port = ends[0];
	vm->boots++;
}

static bool boot_once(struct vm *vm)
{
	char line[64];

	vm_power_on(vm);
	return read_port(vm, line, sizeof(line), true, clock_monotonic_ns() + BOOT_NS) &&
		strcmp(line, "ready") == 0;
}

void vm_boot(struct vm *vm)
{
	if (boot_once(vm))
		return;
	show_console(vm);
	vm_cut(vm);
	vm->retries++;
	if (!boot_once(vm))
		vm_fail(vm, "the guest does not boot");
}

void vm_cut(struct vm *vm)
{
	int status;

	if (vm->qemu == 0)
		return;
	kill(vm->qemu, SIGKILL);
	assert_int_equal(waitpid(vm->qemu, &status, 0), vm->qemu);
	close(vm->port);
	vm->qemu = 0;
}

void vm_work(struct vm *vm, nsec_t used)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS, begun = -1, now;
	struct timespec time;
	clockid_t clock;

	assert_int_equal(clock_getcpuclockid(vm->qemu, &clock), 0);
	do {
		usleep(WORK_US);
		assert_int_equal(clock_gettime(clock, &time), 0);
		now = time.tv_sec * NSEC_PER_SEC + time.tv_nsec;
		begun = begun < 0 ? now : begun;
	} while (now - begun < used && clock_monotonic_ns() < deadline);
}

/* -- talking -- */

int vm_try(struct vm *vm, char **ret_output, const char *format, ...)
{
	nsec_t deadline = clock_monotonic_ns() + COMMAND_NS;
	char command[512], line[64], *output, *end;
	va_list arguments;

	va_start(arguments, format);
	int size = vsnprintf(command, sizeof(command) - 1, format, arguments);
	va_end(arguments);
	assert_true(size > 0 && size < (int)sizeof(command) - 1);
	strcat(command, "\n");
	if (write(vm->port, command, strlen(command)) != (ssize_t)strlen(command) ||
		!read_port(vm, line, sizeof(line), true, deadline))
		vm_fail(vm, "no answer to: %s", command);
	long code = strtol(line, &end, 10);
	size_t length = strtoul(end, NULL, 10);

	assert_true(length <= OUTPUT_MAX);
	output = calloc(1, length + 1);
	assert_non_null(output);
	if (length > 0 && !read_port(vm, output, length, false, deadline))
		vm_fail(vm, "half an answer to: %s", command);
	if (ret_output != NULL)
		*ret_output = output;
	else
		free(output);
	return (int)code;
}

void vm_run(struct vm *vm, const char *command)
{
	char *output;
	int code = vm_try(vm, &output, "%s", command);

	if (code != 0)
		vm_fail(vm, "%s: %d %s", command, code, output);
	free(output);
}

/* The answer's parameter `name`, or NULL. A pause first: the guest has other work. */
static json_t *ask(struct vm *vm, const char *method, const char *name)
{
	char *output;
	json_t *parameter = NULL;

	usleep(POLL_US);
	if (vm_try(vm, &output,
		    "call " SOCKET " {\"method\":\"" PROTO_INTERFACE ".%s\",\"parameters\":{}}",
		    method) == 0) {
		AUTO_JSON answer = json_loads(output, 0, NULL);

		parameter = json_incref(
			json_object_get(json_object_get(answer, "parameters"), name));
	}
	free(output);
	return parameter;
}

json_t *vm_status(struct vm *vm)
{
	return ask(vm, "Status", "status");
}

int64_t vm_resumed(struct vm *vm, int64_t after, int64_t *ret_id, char from[16])
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	int64_t found = 0, step = -1;

	while (found == 0) {
		AUTO_JSON events = ask(vm, "Events", "events");

		for (size_t i = 0; i < json_array_size(events); i++) {
			const json_t *event = json_array_get(events, i);
			const char *text = strstr(
				json_get_text(event, "text", ""), "goes on from ");
			int64_t id = json_get_int(event, "id", 0);
			long long at;

			if (id <= after || id <= found || text == NULL ||
				strcmp(json_get_text(event, "time", ""), vm->powered) < 0 ||
				sscanf(text, "goes on from %15s at step %lld", from, &at) != 2)
				continue;
			found = id;
			step = at;
		}
		if (found == 0 && clock_monotonic_ns() > deadline)
			vm_fail(vm, "no trainer goes on");
	}
	*ret_id = found;
	return step;
}

void vm_wait_finished(struct vm *vm)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;

	for (;;) {
		AUTO_JSON status = vm_status(vm);

		if (strcmp(json_get_text(status, "state", ""), "finished") == 0)
			return;
		if (clock_monotonic_ns() > deadline)
			vm_fail(vm, "the run does not finish");
	}
}

/* -- a disk -- */

/* The newest row that says verified; its id, or "". */
static void newest_row(const char *dir, char id[CHECKPOINT_ID_SIZE])
{
	struct catalog_row *rows = NULL;
	struct catalog *catalog;
	struct error err;
	uint32_t count = 0, bad;

	id[0] = '\0';
	if (catalog_open(dir, CATALOG_READ, &catalog, &err) < 0)
		return;
	if (catalog_list(catalog, &rows, &count, &bad, &err) < 0)
		count = 0;
	for (uint32_t i = 0; i < count && id[0] == '\0'; i++)
		if (rows[i].state == CHECKPOINT_VERIFIED)
			strcpy(id, rows[i].id);
	free(rows);
	catalog_close(catalog);
}

/* The digest of its four sections. */
static int read_file(int dir_fd, const char *name, struct vm_found *ret, struct error *err)
{
	struct checkpoint_info info;
	int fd = checkpoint_open(dir_fd, name, &info, err);

	if (fd < 0)
		return fd;
	void *block = malloc(info.block_bytes);

	assert_non_null(block);
	int rc = checkpoint_read(fd, &info, block, NULL, 1, NULL, err);

	ret->step = rc == 0 ? (int64_t)info.record.step : 0;
	ret->digest = digest_of(block, info.block_bytes);
	free(block);
	checkpoint_info_fini(&info);
	close(fd);
	return rc;
}

static void read_newest(const char *dir, struct vm_found *ret)
{
	char id[CHECKPOINT_ID_SIZE], path[2 * VM_PATH_MAX + 16], name[CHECKPOINT_ID_SIZE + 16];
	struct error err = {{0}};

	newest_row(dir, id);
	if (id[0] == '\0')
		return;
	snprintf(path, sizeof(path), "%s/checkpoints", dir);
	snprintf(name, sizeof(name), "%s" CHECKPOINT_SUFFIX, id);
	int dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (read_file(dir_fd, name, ret, &err) < 0) {
		ret->whole = false;
		snprintf(ret->text, sizeof(ret->text), "%s: %.180s", name, err.text);
	}
	close(dir_fd);
}

/* What the newest of the run's files says was under way. */
static const char *under_way(const char *dir)
{
	struct catalog_row *rows = NULL;
	struct catalog *catalog = NULL;
	struct error err;
	uint32_t count = 0, bad;
	const char *phase = "training";
	char path[2 * VM_PATH_MAX + 16];

	if (catalog_open(dir, CATALOG_READ, &catalog, &err) == 0)
		catalog_list(catalog, &rows, &count, &bad, &err);
	snprintf(path, sizeof(path), "%s/checkpoints", dir);
	DIR *folder = opendir(path);

	for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
		char *suffix = strstr(entry->d_name, CHECKPOINT_SUFFIX);
		uint32_t i = 0;

		if (strstr(entry->d_name, ".partial") != NULL)
			phase = "saving";
		if (entry->d_name[0] == '.' || suffix == NULL)
			continue;
		*suffix = '\0';
		while (i < count && strcmp(rows[i].id, entry->d_name) != 0)
			i++;
		if (i == count)
			phase = "catalog write";
		else if (rows[i].state == CHECKPOINT_DELETED)
			phase = "deletion";
	}
	if (folder != NULL)
		closedir(folder);
	free(rows);
	if (catalog != NULL)
		catalog_close(catalog);
	return phase;
}

/* Mounts a copy of the disk; false when it cannot be. */
static bool mount_copy(const char *disk, char copy[VM_PATH_MAX], char folder[VM_PATH_MAX])
{
	vm_path("copy", copy);
	vm_path("mounted", folder);
	assert_true(loop_clone(disk, copy));
	return loop_mount(copy, folder, "ext4", "");
}

const char *vm_under_way(const char *disk)
{
	char copy[VM_PATH_MAX], folder[VM_PATH_MAX], dir[2 * VM_PATH_MAX];
	const char *phase;

	assert_true(mount_copy(disk, copy, folder));
	snprintf(dir, sizeof(dir), "%s/vm", folder);
	phase = under_way(dir);
	assert_true(loop_unmount(folder));
	assert_int_equal(unlink(copy), 0);
	return phase;
}

void vm_look(const char *disk, struct vm_found *ret)
{
	char copy[VM_PATH_MAX], folder[VM_PATH_MAX], dir[2 * VM_PATH_MAX];
	const char *const fsck[] = {CKPTD_BUILD "/ctl/ckptctl", "fsck", "--repair", dir, NULL};
	const char *const again[] = {CKPTD_BUILD "/ctl/ckptctl", "fsck", dir, NULL};

	*ret = (struct vm_found){.whole = true};
	if (!mount_copy(disk, copy, folder)) {
		*ret = (struct vm_found){.text = "the file system cannot be mounted"};
	} else {
		snprintf(dir, sizeof(dir), "%s/vm", folder);
		/* The first says whether there was something to repair. */
		loop_run(fsck);
		if (!loop_run(again)) {
			ret->whole = false;
			snprintf(ret->text, sizeof(ret->text), "fsck is not clean after a repair");
		}
		read_newest(dir, ret);
		assert_true(loop_unmount(folder));
	}
	assert_int_equal(unlink(copy), 0);
}
