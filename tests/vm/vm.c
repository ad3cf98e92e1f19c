/* See vm.h. */
#include "tests/vm/vm.h"

#include "base/clock.h"
#include "base/file.h"
#include "proto/interface.h"
#include "tests/crash/loop.h"

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
#define IDLE_NS NSEC_PER_SEC
#define IDLE_FACTOR 10 /* more time for its work than that, and it has none to do */
#define SOCKET "/run/ckptd/vm/ckptd.sock"
#define OUTPUT_MAX ((size_t)4 << 20)
#define IMAGE CKPTD_BUILD "/tests/vm/image"

/* Older than what OpenBLAS asks for at the least, with instructions that every emulation has. */
#define CPU "Nehalem,+rdrand"

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

static void copy_in(const char *from, const char *to)
{
	const char *const copy[] = {"cp", "--sparse=always", from, to, NULL};

	assert_true(loop_run(copy));
}

const char *vm_prepare(void)
{
	char path[DISK_PATH_MAX];
	nsec_t begun = clock_monotonic_ns();

	if (!make_image())
		return "an image of the guest (" IMAGE ".log says why)";
	print_message("# the image: %.1f s\n",
		(double)(clock_monotonic_ns() - begun) / (double)NSEC_PER_SEC);
	disk_nest();
	disk_path("fresh", path);
	copy_in(IMAGE "/state.img", path);
	return NULL;
}

void vm_make_disk(const char *path)
{
	char fresh[DISK_PATH_MAX];

	disk_path("fresh", fresh);
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
	disk_path("console", vm->console);
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
	nsec_t deadline = clock_monotonic_ns() + IDLE_NS + IDLE_FACTOR * used, begun = -1, now;
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
