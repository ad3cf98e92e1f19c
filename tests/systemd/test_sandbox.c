/* P10: what the service may do under systemd. The score of its sandbox, what is denied to a program
 * in the place of ckptd, what a worker still needs, and a signing key given as a credential. */
#include "base/sign.h"
#include "tests/systemd/machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#define SCORE_MAX 0.6
#define ENDLESS "steps_total=100000000 "
#define FIT_FOR_AMX "channels=32,32 "
#define PROBE "/usr/local/bin/probe" /* this program, inside */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* -- the probe: runs in the place of ckptd and writes a line for each thing tried -- */

static int try_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int write_in_state(void)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/probe", getenv("STATE_DIRECTORY"));
	return try_open(path, O_CREAT | O_WRONLY);
}

static int write_in_runtime(void)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/probe", getenv("RUNTIME_DIRECTORY"));
	return try_open(path, O_CREAT | O_WRONLY);
}

static int write_in_etc(void)
{
	return try_open("/etc/probe", O_CREAT | O_WRONLY);
}

static int write_in_var(void)
{
	return try_open("/var/open/probe", O_CREAT | O_WRONLY);
}

static int write_in_home(void)
{
	return try_open("/home/someone/open/probe", O_CREAT | O_WRONLY);
}

static int read_in_home(void)
{
	return try_open("/home/someone/open/image.png", O_RDONLY);
}

static int read_shadow(void)
{
	return try_open("/etc/shadow", O_RDONLY);
}

static int write_kernel_setting(void)
{
	return try_open("/proc/sys/kernel/hostname", O_WRONLY);
}

static int new_socket(int family)
{
	int fd = socket(family, SOCK_STREAM, 0);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int internet(void)
{
	return new_socket(AF_INET);
}

static int internet_6(void)
{
	return new_socket(AF_INET6);
}

static int unix_socket(void)
{
	return new_socket(AF_UNIX);
}

static int sees_process_1(void)
{
	return access("/proc/1/status", F_OK) < 0 ? errno : 0;
}

static int make_namespace(void)
{
	return unshare(CLONE_NEWNS) < 0 ? errno : 0;
}

static int mount_something(void)
{
	return mount("none", "/tmp", "tmpfs", 0, NULL) < 0 ? errno : 0;
}

static int become_root(void)
{
	return setuid(0) < 0 ? errno : 0;
}

static int be_realtime(void)
{
	struct sched_param param = {.sched_priority = 1};

	return sched_setscheduler(0, SCHED_FIFO, &param) < 0 ? errno : 0;
}

static int set_identity_bits(void)
{
	return chmod("/proc/self/cwd/probe", 04755) < 0 ? errno : 0;
}

static int read_kernel_log(void)
{
	return syscall(SYS_syslog, 3, NULL, 0) < 0 ? errno : 0;
}

static int load_module(void)
{
	return syscall(SYS_init_module, NULL, 0, "") < 0 ? errno : 0;
}

/* -- what workers need -- */

static int be_nicer_and_back(void)
{
	if (setpriority(PRIO_PROCESS, 0, 10) < 0 || setpriority(PRIO_PROCESS, 0, 0) < 0)
		return errno;
	return 0;
}

static int choose_cpu(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0 ||
		sched_setaffinity(0, sizeof(set), &set) < 0)
		return errno;
	return 0;
}

static int idle_io(void)
{
	return syscall(SYS_ioprio_set, 1, 0, 3 << 13) < 0 ? errno : 0;
}

static int memory_file(void)
{
	int fd = memfd_create("probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int executable_memory(void)
{
	void *page = mmap(
		NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return errno;
	munmap(page, 4096);
	return 0;
}

/* Where the sandbox lets it through, the kernel's own answer is not EPERM. */
static int landlock(void)
{
	long version = syscall(
		SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return version < 0 && errno == EPERM ? errno : 0;
}

static int system_call_filter(void)
{
	unsigned action = SECCOMP_RET_ERRNO;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0 ? errno : 0;
}

static int tiles(void)
{
#ifdef SYS_arch_prctl
	if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) < 0 && errno == EPERM)
		return errno;
#endif
	return 0;
}

static int end_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, 9) < 0 ? errno : 0;
}

static const struct {
	const char *name;
	int (*try)(void);
	bool allowed;
} probes[] = {
	{"write in the state folder", write_in_state, true},
	{"write in the runtime folder", write_in_runtime, true},
	{"write in /etc", write_in_etc, false},
	{"write in /var", write_in_var, false},
	{"write in /home", write_in_home, false},
	{"read an image in /home", read_in_home, true},
	{"read /etc/shadow", read_shadow, false},
	{"write a kernel setting", write_kernel_setting, false},
	{"IPv4", internet, false},
	{"IPv6", internet_6, false},
	{"Unix sockets", unix_socket, true},
	{"see process 1", sees_process_1, false},
	{"make a namespace", make_namespace, false},
	{"mount", mount_something, false},
	{"become root", become_root, false},
	{"run in real time", be_realtime, false},
	{"set the set-user-id bit", set_identity_bits, false},
	{"read the kernel's log", read_kernel_log, false},
	{"load a module", load_module, false},
	{"be nicer and back", be_nicer_and_back, true},
	{"choose a CPU", choose_cpu, true},
	{"idle I/O", idle_io, true},
	{"memfd", memory_file, true},
	{"executable memory", executable_memory, true},
	{"landlock", landlock, true},
	{"seccomp", system_call_filter, true},
	{"AMX tiles", tiles, true},
	{"end with the parent", end_with_parent, true},
};

#define PROBES (sizeof(probes) / sizeof(*probes))

static int probe(void)
{
	if (chdir(getenv("STATE_DIRECTORY")) < 0)
		return 1;
	FILE *file = fopen("results", "we");

	if (!file)
		return 1;
	for (size_t i = 0; i < PROBES; i++) {
		fprintf(file, "%d\n", probes[i].try());
		fflush(file);
	}
	return fclose(file) == 0 ? 0 : 1;
}

static void copy_program(const char *from, const char *to)
{
	char bytes[65536];
	ssize_t size;
	int in = open(from, O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);

	assert_true(in >= 0 && out >= 0);
	while ((size = read(in, bytes, sizeof(bytes))) > 0)
		assert_int_equal(write(out, bytes, (size_t)size), size);
	assert_int_equal(size, 0);
	close(in);
	close(out);
}

static void p10_what_is_denied_is_denied(void **state)
{
	struct machine *machine = machine_of(state);
	char path[256];
	int results[PROBES], wrong = 0;

	snprintf(path, sizeof(path), "%s/bin/probe", machine->local);
	copy_program("/proc/self/exe", path);
	/* Only the sandbox stands before these. */
	machine_write(machine, "/var/open/there", "", 0644);
	machine_write(machine, "/home/someone/open/image.png", "", 0644);
	RUN_OK(machine, "chmod", "777", "/var/open", "/home/someone/open");
	instance_drop_in(machine, "probe",
		"Type=oneshot\nRestart=no\nExecStart=\nExecStart=" PROBE " --probe");
	RUN_OK(machine, "systemctl", "start", "ckptd@probe");
	snprintf(path, sizeof(path), "%s/var/lib/ckptd/probe/results", machine->root);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	for (size_t i = 0; i < PROBES; i++) {
		assert_int_equal(fscanf(file, "%d", &results[i]), 1);
		if ((results[i] == 0) == probes[i].allowed ||
			(probes[i].try == be_nicer_and_back && !machine_sets_limits(machine)))
			continue;
		print_message("# %s: %s\n", probes[i].name, strerror(results[i]));
		wrong++;
	}
	fclose(file);
	assert_int_equal(wrong, 0);
}

/* -- from outside -- */

static void p10_the_score_is_bounded(void **state)
{
	struct machine *machine = machine_of(state);
	double score = 10;

	RUN_OK(machine, "systemd-analyze", "security", "--offline=true", "--no-pager",
		"/usr/local/lib/systemd/system/ckptd@.service");
	const char *level = strstr(machine->output, "Overall exposure level");

	assert_non_null(level);
	assert_int_equal(sscanf(strchr(level, ':'), ": %lf", &score), 1);
	print_message("# exposure level %.1f, at most %.1f is allowed\n", score, SCORE_MAX);
	assert_true(score <= SCORE_MAX);
	RUN_OK(machine, "systemd-analyze", "verify", "--man=no", "ckptd@x.service",
		"ckptd@x.socket", "ckptd-scrub@x.timer", "ckptd-scrub@x.service",
		"ckptd-sigpwr.service");
	assert_string_equal(machine->output, "");
}

/* A line of /proc/PID/status without its name. */
static void status_field(pid_t pid, const char *name, char value[64])
{
	char path[64], line[256];

	value[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
			sscanf(line + strlen(name) + 1, " %63[^\n]", value);
	fclose(file);
}

static void expect_field(pid_t pid, const char *name, const char *expected)
{
	char value[64];

	status_field(pid, name, value);
	assert_string_equal(value, expected);
}

static int score_for_killing(pid_t pid)
{
	char path[64];
	int score = 0;

	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%d", &score), 1);
	fclose(file);
	return score;
}

static void p10_both_processes_are_confined(void **state)
{
	struct machine *machine = machine_of(state);
	struct rig rig, outside;

	instance_start(machine, &rig, "confined", ENDLESS FIT_FOR_AMX);
	pid_t supervisor = rig.supervisor = instance_pid(machine, "confined");
	pid_t pids[] = {supervisor, rig_worker(&rig, "train")};

	rig.supervisor = 0;
	for (int i = 0; i < 2; i++) {
		char uids[64];
		struct rlimit core;

		assert_true(pids[i] > 0);
		expect_field(pids[i], "NoNewPrivs", "1");
		expect_field(pids[i], "Seccomp", "2");
		expect_field(pids[i], "CapBnd", "0000000000000000");
		expect_field(pids[i], "CapEff", "0000000000000000");
		status_field(pids[i], "Uid", uids);
		assert_true(strtol(uids, NULL, 10) != 0);
		assert_int_equal(prlimit(pids[i], RLIMIT_CORE, NULL, &core), 0);
		assert_int_equal(core.rlim_max, 0);
	}
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0) {
		AUTO_JSON status = rig_status(&rig);

		assert_string_equal(json_get_text(status, "sandbox", ""), "seccomp+landlock");
	}
	/* Nor does the sandbox keep the tiles of AMX, which a process must ask for, from it. */
	rig_open(&outside, ENDLESS FIT_FOR_AMX);
	rig_start(&outside, NULL);
	rig_wait(&outside, "a trainer", is_training, 0);
	{
		AUTO_JSON there = rig_status(&outside);
		AUTO_JSON here = rig_status(&rig);
		const char *engine = json_get_text(json_object_get(here, "engine"), "name", "");

		print_message("# the engine is %s\n", engine);
		assert_string_equal(
			json_get_text(json_object_get(there, "engine"), "name", "none"), engine);
	}
	rig_close(&outside);
	/* When memory runs out the trainer goes first. */
	assert_int_equal(score_for_killing(pids[0]), machine_sets_limits(machine) ? -500 : 0);
	assert_int_equal(score_for_killing(pids[1]), 500);
	RUN_OK(machine, "systemctl", "stop", "ckptd@confined");
}

/* -- who may -- */

/* The groups and users as the service sees them: it has a user namespace of its own. */
static void p10_the_group_may_look_root_and_the_user_may_change(void **state)
{
	static const struct {
		const char *user, *group;
		int look, change;
	} rows[] = {{"root", "root", 0, 0}, {"ckptd", "ckptd", 0, 0}, {"nobody", "ckptd", 0, 4},
		{"nobody", "nogroup", 4, 4}};
	struct machine *machine = machine_of(state);
	char user[32], group[32];
	struct rig rig;

	instance_start(machine, &rig, "who", ENDLESS);
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		snprintf(user, sizeof(user), "--reuid=%s", rows[i].user);
		snprintf(group, sizeof(group), "--regid=%s", rows[i].group);
		assert_int_equal(RUN(machine, "setpriv", user, group, "--clear-groups", "ckptctl",
					 "--instance", "who", "status"),
			rows[i].look);
		assert_int_equal(RUN(machine, "setpriv", user, group, "--clear-groups", "ckptctl",
					 "--instance", "who", "save"),
			rows[i].change);
	}
	RUN_OK(machine, "systemctl", "stop", "ckptd@who");
}

/* -- a key as a credential -- */

static bool is_failed(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "failed") == 0 &&
		strstr(json_get_text(status, "state_text", ""), "signing key") != NULL;
}

static void p11_the_signing_key_is_a_credential(void **state)
{
	struct machine *machine = machine_of(state);
	char id[64], hex[128] = "";
	int64_t step;
	struct rig rig;

	RUN_OK(machine, "mkdir", "-m", "700", "-p", "/etc/credstore");
	RUN_OK(machine, "ckptctl", "keygen", "/etc/credstore/ckptd-signed.key");
	instance_start(machine, &rig, "signed",
		ENDLESS "interval=0 signing_key=credential:ckptd-key require_signature=true");
	rig_save(&rig, id, &step);
	{
		AUTO_JSON status = rig_status(&rig);
		const json_t *signing = json_object_get(status, "signing");

		snprintf(hex, sizeof(hex), "%s", json_get_text(signing, "signer", ""));
		assert_true(json_get_bool(signing, "required", false));
	}
	RUN_OK(machine, "cat", "/etc/credstore/ckptd-signed.key.pub");
	assert_int_equal(strlen(hex), SIGN_PUBLIC_HEX_SIZE - 1);
	assert_non_null(strstr(machine->output, hex));
	/* A start from the disk believes it: the memory goes with the stop. */
	RUN_OK(machine, "systemctl", "stop", "ckptd@signed");
	RUN_OK(machine, "systemctl", "start", "ckptd@signed");
	rig_wait(&rig, "further steps", is_step, step + 1);

	/* Without the key nothing is believed, and the line says what to do. */
	RUN_OK(machine, "systemctl", "stop", "ckptd@signed");
	RUN_OK(machine, "rm", "/etc/credstore/ckptd-signed.key");
	RUN_OK(machine, "systemctl", "start", "ckptd@signed");
	rig_wait(&rig, "a person", is_failed, 0);
	RUN_OK(machine, "systemctl", "stop", "ckptd@signed");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p10_the_score_is_bounded),
		cmocka_unit_test(p10_what_is_denied_is_denied),
		cmocka_unit_test(p10_both_processes_are_confined),
		cmocka_unit_test(p10_the_group_may_look_root_and_the_user_may_change),
		cmocka_unit_test(p11_the_signing_key_is_a_credential),
	};

	if (argc == 2 && strcmp(argv[1], "--probe") == 0)
		return probe();
	return cmocka_run_group_tests_name(
		"systemd_sandbox", tests, machine_setup, machine_teardown);
}
