/* See machine.h. Invariants: only processes that this test started are ended; the container has
 * a cgroup of its own, so it never sees another one's processes. */
#include "tests/systemd/machine.h"

#include "base/clock.h"
#include "base/file.h"
#include "tests/system/play.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/capability.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lacks.h"

#define WAIT_NS (60 * NSEC_PER_SEC)
#define POLL_US 5000
#define WORDS_MAX 32

static char lack[256]; /* why there is no machine */

/* -- processes of this machine -- */

/* In the child: output to a file, no input, gets a signal when the test ends. */
static void exec_words(const char *const *words, const char *output, int at_end)
{
	int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	prctl(PR_SET_PDEATHSIG, at_end);
	dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	execvp(words[0], (char *const *)words);
	_exit(127);
}

static pid_t spawn(const char *const *words, const char *output)
{
	pid_t pid = fork();

	if (pid == 0)
		exec_words(words, output, SIGKILL);
	return pid;
}

/* The exit code, minus the signal, or -ETIMEDOUT after its end by SIGKILL. */
static int wait_end(pid_t pid)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (clock_monotonic_ns() > deadline) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return -ETIMEDOUT;
		}
		usleep(POLL_US);
	}
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void read_output(struct machine *machine, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, machine->output, sizeof(machine->output) - 1);

	machine->output[size > 0 ? size : 0] = '\0';
	if (fd >= 0)
		close(fd);
}

static int run_here(struct machine *machine, const char *const *words)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/output", machine->dir);
	unlink(path);
	int code = wait_end(spawn(words, path));

	read_output(machine, path);
	return code;
}

int machine_run(struct machine *machine, const char *const *words)
{
	char leader[16];
	const char *all[WORDS_MAX] = {
		"nsenter", "-t", leader, "-m", "-u", "-i", "-p", "-C", "-r", "-w", "--"};
	size_t count = 11;

	snprintf(leader, sizeof(leader), "%d", (int)machine->leader);
	while (*words && count < WORDS_MAX - 1)
		all[count++] = *words++;
	all[count] = NULL;
	return run_here(machine, all);
}

static void show(const char *text)
{
	char *copy = strdup(text), *rest = copy, *line;

	while ((line = strsep(&rest, "\n")))
		print_message("# %s\n", line);
	free(copy);
}

void machine_expect(struct machine *machine, const char *const *words)
{
	int code = machine_run(machine, words);

	if (code != 0) {
		show(machine->output);
		fail_msg("%s %s: exit code %d", words[0], words[1] ? words[1] : "", code);
	}
}

/* -- its root -- */

static void make_folders(const char *path)
{
	char part[256];

	for (const char *at = path + 1; (at = strchr(at, '/')); at++) {
		snprintf(part, sizeof(part), "%.*s", (int)(at - path), path);
		mkdir(part, 0755);
	}
}

static int write_file(const char *root, const char *path, const char *text, mode_t mode)
{
	char full[256];

	snprintf(full, sizeof(full), "%s%s", root, path);
	make_folders(full);
	int fd = open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	ssize_t written = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return written == (ssize_t)strlen(text) ? 0 : -1;
}

void machine_write(struct machine *machine, const char *path, const char *text, mode_t mode)
{
	assert_int_equal(write_file(machine->root, path, text, mode), 0);
}

static int make_root(struct machine *machine)
{
	static const char *const folders[] = {"/usr/", "/proc/", "/sys/", "/dev/", "/tmp/", "/run/",
		"/root/", "/home/someone/", "/var/", "/etc/alternatives/"};
	static const char *const links[] = {"/bin", "/sbin", "/lib", "/lib64"};
	char path[256], target[256];
	int bad = 0;

	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
		snprintf(path, sizeof(path), "%s%s", machine->root, folders[i]);
		make_folders(path);
	}
	for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++) {
		ssize_t length = readlink(links[i], target, sizeof(target) - 1);

		if (length < 0)
			continue; /* lib64 is not everywhere */
		target[length] = '\0';
		snprintf(path, sizeof(path), "%s%s", machine->root, links[i]);
		bad |= symlink(target, path);
	}
	bad |= write_file(machine->root, "/etc/machine-id", "", 0444);
	bad |= write_file(machine->root, "/etc/os-release", "ID=debian\nVERSION_ID=12\n", 0444);
	/* Its journal is seen in the console's file. */
	bad |= write_file(machine->root, "/etc/systemd/journald.conf.d/console.conf",
		"[Journal]\nForwardToConsole=yes\nMaxLevelConsole=info\nRateLimitBurst=0\n", 0644);
	return bad;
}

static int install(struct machine *machine)
{
	char tree[96];

	snprintf(tree, sizeof(tree), "%s/tree", machine->dir);
	int code = run_here(machine,
		(const char *const[]){"meson", "install", "-C", CKPTD_BUILD, "--no-rebuild",
			"--quiet", "--destdir", tree, NULL});

	if (code != 0)
		show(machine->output);
	return code;
}

/* -- its cgroup: without a systemd outside, containers would share the root of the hierarchy -- */

static void make_cgroup(struct machine *machine)
{
	bool hybrid = access("/sys/fs/cgroup/unified/cgroup.procs", F_OK) == 0;
	FILE *file = fopen("/proc/self/cgroup", "re");
	char line[128], own[128] = "";

	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, "0::/", 4) == 0)
			snprintf(own, sizeof(own), "%.*s", (int)strcspn(line + 4, "\n"), line + 4);
	if (file)
		fclose(file);
	snprintf(machine->cgroup, sizeof(machine->cgroup), "/sys/fs/cgroup/%s%s/%s",
		hybrid ? "unified/" : "", own, strrchr(machine->dir, '/') + 1);
	if (mkdir(machine->cgroup, 0755) < 0)
		machine->cgroup[0] = '\0';
}

/* In the child. */
static void enter_cgroup(const struct machine *machine)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/cgroup.procs", machine->cgroup);
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "0", 1) != 1)
		_exit(126);
	close(fd);
}

static int remove_cgroup(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	if (kind == FTW_DP)
		rmdir(path);
	return 0;
}

/* -- life -- */

static pid_t spawn_nspawn(const struct machine *machine)
{
	char local[160], output[96];
	const char *words[] = {"systemd-nspawn", "--quiet", "-D", machine->root, "--register=no",
		"--console=read-only", "--boot", "--bind-ro=/usr", local,
		"--bind-ro=/etc/alternatives",
		/* Its own filter would hide what the service's lets through. */
		"--system-call-filter=seccomp landlock_create_ruleset landlock_add_rule "
		"landlock_restrict_self",
		machine->cgroup[0] ? "--keep-unit" : NULL, NULL};

	snprintf(local, sizeof(local), "--bind-ro=%s:/usr/local", machine->local);
	snprintf(output, sizeof(output), "%s/console", machine->dir);
	pid_t pid = fork();

	if (pid == 0) {
		if (machine->cgroup[0])
			enter_cgroup(machine);
		/* Only the unified hierarchy tells a container that a group is empty. */
		setenv("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1", 1);
		/* Killed, it would leave its container behind; by this it powers that off. */
		exec_words(words, output, SIGTERM);
	}
	return pid;
}

static bool is_process_1(pid_t pid)
{
	char path[64], line[256];
	bool is = false;
	int outer, inner;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	FILE *file = fopen(path, "re");

	while (file && !is && fgets(line, sizeof(line), file))
		is = sscanf(line, "NSpid: %d %d", &outer, &inner) == 2 && inner == 1;
	if (file)
		fclose(file);
	return is;
}

/* The container's process 1, once it is there: a child of systemd-nspawn. */
static pid_t find_leader(pid_t nspawn)
{
	char path[64], text[256];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)nspawn, (int)nspawn);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[size > 0 ? size : 0] = '\0';
	for (char *rest = text, *word; (word = strsep(&rest, " "));) {
		pid_t pid = (pid_t)strtol(word, NULL, 10);

		if (pid > 0 && is_process_1(pid))
			return pid;
	}
	return 0;
}

static bool boot(struct machine *machine)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	char path[96];

	machine->nspawn = spawn_nspawn(machine);
	while (clock_monotonic_ns() < deadline && waitpid(machine->nspawn, NULL, WNOHANG) == 0) {
		machine->leader = find_leader(machine->nspawn);
		snprintf(path, sizeof(path), "/proc/%d/root/run/systemd/private",
			(int)machine->leader);
		if (machine->leader > 0 && access(path, F_OK) == 0 &&
			RUN(machine, "systemctl", "is-system-running", "--wait") >= 0 &&
			strstr(machine->output, "running"))
			return true;
		usleep(POLL_US);
	}
	snprintf(path, sizeof(path), "%s/console", machine->dir);
	read_output(machine, path);
	show(machine->output);
	return false;
}

int machine_setup(void **state)
{
	static struct machine machine;

	*state = &machine;
	strcpy(machine.dir, "/tmp/ckptd-machine-XXXXXX");
	if (geteuid() != 0)
		snprintf(lack, sizeof(lack), "only root can start a container");
	else if (strcmp(CKPTD_PREFIX, "/usr/local") != 0)
		snprintf(lack, sizeof(lack), "this is built for the prefix %s", CKPTD_PREFIX);
	else if (!mkdtemp(machine.dir) || chmod(machine.dir, 0755) < 0)
		return -1;
	if (*lack)
		return 0;
	snprintf(machine.root, sizeof(machine.root), "%s/root", machine.dir);
	snprintf(machine.local, sizeof(machine.local), "%s/tree/usr/local", machine.dir);
	if (run_here(&machine, (const char *const[]){"systemd-nspawn", "--version", NULL}) != 0)
		snprintf(lack, sizeof(lack), "there is no systemd-nspawn");
	else if (make_root(&machine) != 0 || install(&machine) != 0)
		return -1;
	if (*lack)
		return 0;
	if (access("/run/systemd/system", F_OK) < 0)
		make_cgroup(&machine);
	if (!boot(&machine))
		snprintf(lack, sizeof(lack), "systemd does not boot in a container");
	return 0;
}

int machine_teardown(void **state)
{
	struct machine *machine = *state;

	if (machine->nspawn > 0 && waitpid(machine->nspawn, NULL, WNOHANG) == 0) {
		/* What a power button does; the runs save. */
		if (machine->leader > 0)
			RUN(machine, "systemctl", "poweroff", "--no-block");
		if (wait_end(machine->nspawn) == -ETIMEDOUT && machine->leader > 0)
			kill(machine->leader, SIGKILL);
	}
	if (machine->cgroup[0])
		nftw(machine->cgroup, remove_cgroup, 16, FTW_DEPTH | FTW_PHYS);
	if (access(machine->dir, F_OK) == 0)
		remove_tree(machine->dir);
	return 0;
}

struct machine *machine_of(void **state)
{
	if (*lack)
		test_lacks(lack);
	return *state;
}

/* -- instances -- */

void instance_init(struct machine *machine, struct rig *rig, const char *name, const char *settings)
{
	*rig = (struct rig){0};
	snprintf(rig->conf, sizeof(rig->conf), "%s/etc/ckptd/%s.conf", machine->root, name);
	snprintf(rig->run_dir, sizeof(rig->run_dir), "%s/var/lib/ckptd/%s", machine->root, name);
	snprintf(rig->log, sizeof(rig->log), "%s/console", machine->dir);
	snprintf(rig->socket, sizeof(rig->socket), "/proc/%d/root/run/ckptd/%s/ckptd.sock",
		(int)machine->leader, name);
	make_folders(rig->conf);
	config_defaults(&rig->config);
	rig_settings(rig, settings);
	RUN_OK(machine, "ckptctl", "init", "--instance", name);
}

void instance_drop_in(struct machine *machine, const char *name, const char *lines)
{
	char path[160], text[512];

	snprintf(path, sizeof(path), "/etc/systemd/system/ckptd@%s.service.d/test.conf", name);
	snprintf(text, sizeof(text), "[Service]\n%s\n", lines);
	machine_write(machine, path, text, 0644);
	RUN_OK(machine, "systemctl", "daemon-reload");
}

void instance_start(
	struct machine *machine, struct rig *rig, const char *name, const char *settings)
{
	char unit[64];

	instance_init(machine, rig, name, settings);
	snprintf(unit, sizeof(unit), "ckptd@%s.service", name);
	RUN_OK(machine, "systemctl", "start", unit);
	rig_wait(rig, "steps", is_step, 5);
}

const char *unit_property(struct machine *machine, const char *unit, const char *property)
{
	RUN_OK(machine, "systemctl", "show", "--value", "-p", property, unit);
	machine->output[strcspn(machine->output, "\n")] = '\0';
	return machine->output;
}

void unit_wait(struct machine *machine, const char *unit, const char *property, const char *value)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;

	while (strcmp(unit_property(machine, unit, property), value) != 0) {
		if (clock_monotonic_ns() > deadline)
			fail_msg("%s: %s is %s, not %s", unit, property, machine->output, value);
		usleep(POLL_US);
	}
}

/* The pid here of a process that has this one inside. */
static pid_t pid_here(const struct machine *machine, pid_t inside)
{
	char path[64], own[64], of[64], line[256];
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	pid_t found = 0;

	assert_non_null(proc);
	snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)machine->leader);
	own[0] = '\0';
	ssize_t length = readlink(path, own, sizeof(own) - 1);

	own[length > 0 ? length : 0] = '\0';
	while (inside > 0 && !found && (entry = readdir(proc))) {
		int outer, inner;

		snprintf(path, sizeof(path), "/proc/%.20s/ns/pid", entry->d_name);
		length = readlink(path, of, sizeof(of) - 1);
		of[length > 0 ? length : 0] = '\0';
		if (length <= 0 || strcmp(own, of) != 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/status", entry->d_name);
		FILE *file = fopen(path, "re");

		while (file && fgets(line, sizeof(line), file))
			if (sscanf(line, "NSpid: %d %d", &outer, &inner) == 2 && inner == inside)
				found = outer;
		if (file)
			fclose(file);
	}
	closedir(proc);
	return found;
}

bool machine_sets_limits(const struct machine *machine)
{
	char path[64], line[256];
	unsigned long long capabilities = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)machine->leader);
	FILE *file = fopen(path, "re");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "CapEff: %llx", &capabilities) == 1)
			break;
	if (file)
		fclose(file);
	return capabilities >> CAP_SYS_RESOURCE & 1;
}

pid_t instance_pid(struct machine *machine, const char *name)
{
	char unit[64];

	snprintf(unit, sizeof(unit), "ckptd@%s.service", name);
	return pid_here(machine, (pid_t)strtol(unit_property(machine, unit, "MainPID"), NULL, 10));
}

pid_t instance_wait_pid(struct machine *machine, const char *name, pid_t not_this)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;

	for (;;) {
		pid_t pid = instance_pid(machine, name);

		if (pid > 0 && pid != not_this)
			return pid;
		if (clock_monotonic_ns() > deadline)
			fail_msg("ckptd@%s has no new main process", name);
		usleep(POLL_US);
	}
}
