/* See rig.h. */
#include "tests/system/rig.h"

#include "base/clock.h"
#include "base/file.h"
#include "proto/frame.h"
#include "store/checkpoint.h"
#include "store/run.h"
#include "tests/system/play.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
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
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT_NS (240 * NSEC_PER_SEC)
#define EVENT_WAIT_NS (30 * NSEC_PER_SEC)
#define POLL_US 5000

#define rig_fail(rig, ...)                                                                         \
	do {                                                                                       \
		show_log(rig);                                                                     \
		fail_msg(__VA_ARGS__);                                                             \
	} while (0)

static char *read_text(const char *path)
{
	char *text = NULL;
	size_t size;

	if (file_read_all(AT_FDCWD, path, (size_t)16 << 20, &text, &size) < 0)
		text = strdup("");
	assert_non_null(text);
	return text;
}

char *rig_log(const struct rig *rig)
{
	return read_text(rig->log);
}

char *rig_output(const struct rig *rig)
{
	char path[RIG_PATH_MAX];

	snprintf(path, sizeof(path), "%s/output", rig->dir);
	return read_text(path);
}

/* The end of the daemon's log, as TAP comments. */
static void show_log(const struct rig *rig)
{
	char *log = rig_log(rig), *line, *rest;
	size_t length = strlen(log);

	rest = length > 6000 ? log + length - 6000 : log;
	while ((line = strsep(&rest, "\n")))
		print_message("# %s\n", line);
	free(log);
}

/* -- folder and configuration -- */

static void write_config(const struct rig *rig)
{
	FILE *file = fopen(rig->conf, "we");

	assert_non_null(file);
	assert_int_equal(config_write(&rig->config, file), 0);
	assert_int_equal(fclose(file), 0);
}

void rig_set(struct rig *rig, const char *key, const char *value)
{
	struct error err;

	if (config_set(&rig->config, key, value, "test", &err) < 0)
		fail_msg("%s", err.text);
	write_config(rig);
}

static void name_paths(struct rig *rig)
{
	snprintf(rig->run_dir, sizeof(rig->run_dir), "%s/run", rig->dir);
	snprintf(rig->conf, sizeof(rig->conf), "%s/ckptd.conf", rig->dir);
	snprintf(rig->log, sizeof(rig->log), "%s/log", rig->dir);
	snprintf(rig->socket, sizeof(rig->socket), "%s/run/ckptd.sock", rig->dir);
	snprintf(rig->config.state_dir, sizeof(rig->config.state_dir), "%s", rig->run_dir);
}

static void make_dir(struct rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	strcpy(rig->dir, "/tmp/ckptd-rig-XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	name_paths(rig);
}

void rig_settings(struct rig *rig, const char *settings)
{
	static const char tiny[] = "image_size=8 channels=16,16 down_blocks=Down,AttnDown "
				   "up_blocks=AttnUp,Up head_dim=8 groups=4 batch_size=4 "
				   "warmup_steps=10 preview_every=0 interval=0 threads=1";
	char words[1024], *rest = words, *word;

	snprintf(words, sizeof(words), "%s %s", tiny, settings);
	while ((word = strsep(&rest, " "))) {
		char *value = strchr(word, '=');

		if (!value)
			continue;
		*value++ = 0;
		rig_set(rig, word, value);
	}
}

void rig_open(struct rig *rig, const char *settings)
{
	struct error err;
	struct run run;
	int fd;

	make_dir(rig);
	config_defaults(&rig->config);
	name_paths(rig);
	rig_settings(rig, settings);
	fd = run_open_dir(rig->run_dir, true, &err);
	if (fd < 0 || run_create(fd, &rig->config, &run, &err) < 0)
		fail_msg("%s", err.text);
	run_fini(&run);
	close(fd);
}

static const char *copy_from, *copy_to; /* nftw takes no context */

static int copy_entry(const char *path, const struct stat *file, int kind, struct FTW *at)
{
	char target[2 * RIG_PATH_MAX], *bytes;
	size_t size;
	ssize_t n;
	int fd;

	snprintf(target, sizeof(target), "%s%s", copy_to, path + strlen(copy_from));
	if (kind == FTW_D)
		return mkdir(target, 0750) < 0 && errno != EEXIST;
	if (!S_ISREG(file->st_mode))
		return 0;
	if (file_read_all(AT_FDCWD, path, (size_t)1 << 30, &bytes, &size) < 0)
		return 1;
	fd = open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	n = fd < 0 ? -1 : write(fd, bytes, size);
	close(fd);
	free(bytes);
	return n != (ssize_t)size;
}

void rig_copy_run(const struct rig *rig, const struct rig *from)
{
	copy_from = from->run_dir;
	copy_to = rig->run_dir;
	assert_int_equal(nftw(from->run_dir, copy_entry, 16, FTW_PHYS), 0);
}

void rig_copy(struct rig *rig, const struct rig *from)
{
	assert_int_equal(from->supervisor, 0);
	make_dir(rig);
	rig->config = from->config;
	name_paths(rig);
	write_config(rig);
	rig_copy_run(rig, from);
}

void rig_close(struct rig *rig)
{
	if (rig->supervisor)
		rig_kill_supervisor(rig);
	remove_tree(rig->dir);
}

/* -- processes -- */

static pid_t spawn(const struct rig *rig, const char *program, const char *const *arguments,
	const char *output, bool service, const char *fault)
{
	const char *argv[16];
	char path[512];
	size_t count = 0;
	pid_t pid;

	snprintf(path, sizeof(path), "%s/%s", CKPTD_BUILD, program);
	argv[count++] = path;
	while (*arguments && count < 15)
		argv[count++] = *arguments++;
	argv[count] = NULL;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int fd = open(output, O_WRONLY | O_CREAT | O_APPEND, 0600);

		dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing behind */
		if (service)
			setsid(); /* as under systemd */
		setenv("CKPTD_WORKER", CKPTD_WORKER, 1);
		if (fault)
			setenv("CKPTD_FAULT", fault, 1);
		unsetenv("NOTIFY_SOCKET");
		execv(path, (char *const *)argv);
		_exit(127);
	}
	return pid;
}

static int wait_end(const struct rig *rig, pid_t pid)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	int status;
	pid_t ended;

	while ((ended = waitpid(pid, &status, WNOHANG)) == 0) {
		if (clock_monotonic_ns() > deadline) {
			kill(pid, SIGKILL);
			rig_fail(rig, "process %d did not end", (int)pid);
		}
		usleep(POLL_US);
	}
	assert_int_equal(ended, pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int rig_run(struct rig *rig, const char *program, const char *const *arguments)
{
	char output[RIG_PATH_MAX];

	snprintf(output, sizeof(output), "%s/output", rig->dir);
	unlink(output);
	return wait_end(rig, spawn(rig, program, arguments, output, false, NULL));
}

int rig_connect(const struct rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_true(strlen(rig->socket) < sizeof(address.sun_path));
	strcpy(address.sun_path, rig->socket);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

void rig_start(struct rig *rig, const char *fault)
{
	const char *arguments[] = {"--config", rig->conf, NULL};
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	int fd;

	assert_int_equal(rig->supervisor, 0);
	unlink(rig->socket);
	rig->supervisor = spawn(rig, "supervisor/ckptd", arguments, rig->log, true, fault);
	while ((fd = rig_connect(rig)) < 0) {
		if (waitpid(rig->supervisor, NULL, WNOHANG) != 0) {
			rig->supervisor = 0;
			rig_fail(rig, "ckptd ended at its start");
		}
		if (clock_monotonic_ns() > deadline)
			rig_fail(rig, "ckptd does not listen at %s", rig->socket);
		usleep(POLL_US);
	}
	close(fd);
}

int rig_stop(struct rig *rig)
{
	pid_t pid = rig->supervisor;

	rig->supervisor = 0;
	kill(pid, SIGTERM);
	return wait_end(rig, pid);
}

/* The role of pid when it is a worker of this rig, else false. */
static bool worker_role(pid_t pid, const char *role)
{
	char path[64], text[512];
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = (int)read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = 0;
	return strstr(text, "ckptd-worker") && (int)strlen(text) + 1 < n &&
		strcmp(text + strlen(text) + 1, role) == 0;
}

/* 0 for a zombie, or nobody; its state's letter in ret_state. */
static pid_t parent_of(pid_t pid, char *ret_state)
{
	char path[64], text[512], *end;
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = (int)read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	end = strrchr(text, ')');
	if (!end || !end[1] || !end[2] || end[2] == 'Z')
		return 0;
	*ret_state = end[2];
	return (pid_t)strtol(end + 4, NULL, 10);
}

static pid_t find_worker(const struct rig *rig, const char *role, char *ret_state)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	pid_t found = 0;

	assert_non_null(proc);
	while (!found && (entry = readdir(proc))) {
		pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (pid > 0 && parent_of(pid, ret_state) == rig->supervisor &&
			worker_role(pid, role))
			found = pid;
	}
	closedir(proc);
	return found;
}

pid_t rig_worker(const struct rig *rig, const char *role)
{
	char state;

	return find_worker(rig, role, &state);
}

pid_t rig_halted(struct rig *rig, const char *role)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	char state = '?';
	pid_t pid;

	while ((pid = find_worker(rig, role, &state)) == 0 || state != 'T') {
		if (clock_monotonic_ns() > deadline)
			rig_fail(rig, "no worker in role %s has stopped", role);
		usleep(POLL_US);
	}
	return pid;
}

void rig_kill_supervisor(struct rig *rig)
{
	pid_t pid = rig->supervisor;

	rig->supervisor = 0;
	kill(pid, SIGKILL);
	assert_int_equal(wait_end(rig, pid), -SIGKILL);
}

/* -- talking -- */

json_t *rig_call(struct rig *rig, const char *method, json_t *parameters, char error[64])
{
	char name[96];
	struct frame_reader reader;
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;
	struct error err = {{0}};
	json_t *reply = NULL, *result;
	int fd = rig_connect(rig);

	snprintf(name, sizeof(name), "io.ckptd.Training.%s", method);
	AUTO_JSON frame = json_pack(
		"{s:s,s:o}", "method", name, "parameters", parameters ? parameters : json_object());
	if (fd < 0)
		rig_fail(rig, "%s: nobody listens", method);
	frame_reader_init(&reader, FRAME_REPLY_MAX);
	if (frame_send(fd, frame, deadline) < 0 ||
		frame_receive(fd, &reader, deadline, &reply, &err) < 0)
		rig_fail(rig, "%s: no reply: %s", method, err.text);
	frame_reader_fini(&reader);
	close(fd);
	if (error)
		snprintf(error, 64, "%s", json_get_text(reply, "error", ""));
	if (json_object_get(reply, "error")) {
		if (!error)
			rig_fail(rig, "%s: %s", method, json_get_text(reply, "error", ""));
		json_decref(reply);
		return NULL;
	}
	result = json_incref(json_object_get(reply, "parameters"));
	json_decref(reply);
	return result;
}

void rig_send(struct rig *rig, const char *method)
{
	char name[96];
	int fd = rig_connect(rig);

	snprintf(name, sizeof(name), "io.ckptd.Training.%s", method);
	AUTO_JSON frame = json_pack("{s:s,s:b}", "method", name, "oneway", 1);
	assert_true(fd >= 0);
	assert_int_equal(frame_send(fd, frame, clock_monotonic_ns() + WAIT_NS), 0);
	close(fd);
}

json_t *rig_status(struct rig *rig)
{
	AUTO_JSON reply = rig_call(rig, "Status", NULL, NULL);

	return json_incref(json_object_get(reply, "status"));
}

int64_t rig_step(struct rig *rig)
{
	AUTO_JSON status = rig_status(rig);

	return json_get_int(status, "step", -1);
}

bool is_step(const json_t *status, int64_t value)
{
	return json_get_int(status, "step", -1) >= value;
}

bool is_training(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "training") == 0;
}

bool has_restarted(const json_t *status, int64_t value)
{
	return json_get_int(status, "restarts", 0) >= value && is_training(status, 0);
}

bool is_finished(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "finished") == 0;
}

bool has_died(const json_t *status, int64_t value)
{
	return json_get_int(status, "restarts", 0) >= value;
}

bool is_saved(const json_t *status, int64_t value)
{
	return json_get_int(json_object_get(status, "newest_verified"), "step", -1) >= value;
}

void rig_wait(struct rig *rig, const char *what, bool (*is)(const json_t *status, int64_t value),
	int64_t value)
{
	nsec_t deadline = clock_monotonic_ns() + WAIT_NS;

	for (;;) {
		AUTO_JSON status = rig_status(rig);

		if (is(status, value))
			return;
		if (clock_monotonic_ns() > deadline) {
			char *text = json_dumps(status, JSON_INDENT(1));

			print_message("# %s\n", text ? text : "");
			free(text);
			rig_fail(rig, "waited in vain: %s", what);
		}
		usleep(POLL_US);
	}
}

/* -- what is recorded -- */

static json_t *events_after(struct rig *rig, int64_t after)
{
	AUTO_JSON reply = rig_call(rig, "Events",
		json_pack("{s:i,s:I}", "limit", 10000, "after", (json_int_t)after), NULL);

	return json_incref(json_object_get(reply, "events"));
}

int64_t rig_last_event(struct rig *rig)
{
	AUTO_JSON events = events_after(rig, 0);
	int64_t last = 0;

	for (size_t i = 0; i < json_array_size(events); i++) {
		int64_t id = json_get_int(json_array_get(events, i), "id", 0);

		last = id > last ? id : last;
	}
	return last;
}

int64_t rig_event(
	struct rig *rig, const char *kind, const char *part, int64_t after, char text[256])
{
	nsec_t deadline = clock_monotonic_ns() + EVENT_WAIT_NS;
	int64_t found = 0;

	while (!found && clock_monotonic_ns() < deadline) {
		AUTO_JSON events = events_after(rig, after);

		for (size_t i = 0; i < json_array_size(events); i++) {
			const json_t *event = json_array_get(events, i);
			const char *line = json_get_text(event, "text", "");

			if (strcmp(json_get_text(event, "kind", ""), kind) != 0 ||
				!strstr(line, part) || json_get_int(event, "id", 0) < found)
				continue;
			found = json_get_int(event, "id", 0);
			snprintf(text, 256, "%s", line);
		}
		if (!found)
			usleep(10 * POLL_US);
	}
	return found;
}

void rig_checkpoint_state(struct rig *rig, const char *id, char state[32])
{
	AUTO_JSON reply = rig_call(rig, "Checkpoints", json_pack("{s:b}", "all", 1), NULL);
	const json_t *rows = json_object_get(reply, "checkpoints");

	state[0] = 0;
	for (size_t i = 0; i < json_array_size(rows); i++) {
		const json_t *row = json_array_get(rows, i);

		if (strcmp(json_get_text(row, "id", ""), id) == 0)
			snprintf(state, 32, "%s", json_get_text(row, "state", ""));
	}
}

void rig_checkpoint_path(const struct rig *rig, const char *id, char path[2 * RIG_PATH_MAX])
{
	snprintf(path, 2 * RIG_PATH_MAX, "%s/checkpoints/%s" CHECKPOINT_SUFFIX, rig->run_dir, id);
}

void rig_flip(const char *path, off_t at)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat file;
	uint8_t byte;

	assert_true(fd >= 0 && fstat(fd, &file) == 0);
	at = at < 0 ? file.st_size + at : at;
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 4;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

void rig_save(struct rig *rig, char id[64], int64_t *ret_step)
{
	AUTO_JSON saved = rig_call(rig, "Save", json_pack("{s:b}", "wait", 1), NULL);

	snprintf(id, 64, "%s", json_get_text(saved, "id", ""));
	assert_true(*id);
	if (ret_step)
		*ret_step = json_get_int(saved, "step", -1);
}

struct digest rig_digest(struct rig *rig, uint64_t step)
{
	AUTO_JSON status = rig_status(rig);
	const json_t *newest = json_object_get(status, "newest_verified");
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)], path[2 * RIG_PATH_MAX];
	struct checkpoint_info info;
	struct digest digest;
	struct error err;
	void *block;
	int dir, fd;

	snprintf(path, sizeof(path), "%s/checkpoints", rig->run_dir);
	snprintf(name, sizeof(name), "%.31s" CHECKPOINT_SUFFIX, json_get_text(newest, "id", ""));
	dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = checkpoint_open(dir, name, &info, &err);
	if (fd < 0)
		rig_fail(rig, "%s: %s", name, err.text);
	if (info.record.step != step)
		rig_fail(rig, "%s is not of step %llu", name, (unsigned long long)step);
	block = malloc(info.block_bytes);
	assert_non_null(block);
	if (checkpoint_read(fd, &info, block, NULL, 1, NULL, &err) < 0)
		rig_fail(rig, "%s", err.text);
	digest = digest_of(block, info.block_bytes);
	free(block);
	checkpoint_info_fini(&info);
	close(fd);
	close(dir);
	return digest;
}
