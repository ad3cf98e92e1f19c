/* See play.h. */
#include "tests/system/play.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define FRAME_TIMEOUT (120 * NSEC_PER_SEC)

struct config play_tiny_config(void)
{
	static const char *const settings[][2] = {
		{"image_size", "8"},
		{"channels", "16,16"},
		{"down_blocks", "Down,AttnDown"},
		{"up_blocks", "AttnUp,Up"},
		{"head_dim", "8"},
		{"groups", "4"},
		{"batch_size", "4"},
		{"micro_batch", "2"},
		{"steps_total", "24"},
		{"warmup_steps", "4"},
		{"preview_every", "10"},
		{"preview_count", "4"},
		{"preview_steps", "3"},
		{"holdout_triples", "8"},
		{"interval", "0"},
		{"threads", "2"},
	};
	struct config config;
	struct error err;

	config_defaults(&config);
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (config_set(&config, settings[i][0], settings[i][1], "test", &err) < 0)
			fail_msg("%s", err.text);
	return config;
}

void play_open(struct play *play, const struct config *config)
{
	struct error err;
	char path[128];

	memset(play, 0, sizeof(*play));
	strcpy(play->dir, "/tmp/ckptd-roles-XXXXXX");
	assert_non_null(mkdtemp(play->dir));
	play->config = *config;
	play->created = true;
	play->run_fd = run_open_dir(play->dir, true, &err);
	assert_true(play->run_fd >= 0);
	if (run_create(play->run_fd, config, &play->run, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(run_lock(play->run_fd, &play->lock_fd, &(pid_t){0}, &err), 0);
	assert_int_equal(progress_create(&play->progress, &play->progress_fd, &err), 0);
	play->state_fd = -1;
	snprintf(path, sizeof(path), "%s/previews", play->dir);
	assert_int_equal(access(path, F_OK), 0);
}

void play_drop_memory(struct play *play)
{
	if (play->state_fd < 0)
		return;
	state_unmap(&play->state);
	close(play->state_fd);
	play->state_fd = -1;
}

static int remove_entry(const char *path, const struct stat *file, int kind, struct FTW *at)
{
	return remove(path);
}

void remove_tree(const char *path)
{
	assert_int_equal(nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

void play_close(struct play *play)
{
	play_drop_memory(play);
	progress_unmap(play->progress);
	run_fini(&play->run);
	close(play->progress_fd);
	close(play->lock_fd);
	close(play->run_fd);
	remove_tree(play->dir);
}

/* ENOSYS from a call, for the process and all that it executes. */
static void take_call_away(uint32_t number)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		_exit(126);
}

/* In the child: the descriptors of proto/link.h, in their places. */
static void exec_worker(const struct play *play, const char *role, int link, int stderr_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int from[4] = {link, play->state_fd >= 0 ? play->state_fd : null, play->progress_fd,
		play->lock_fd};

	for (int i = 0; i < 4; i++)
		from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 64);
	for (int i = 0; i < 4; i++)
		dup2(from[i], LINK_FD + i);
	dup2(stderr_fd, STDERR_FILENO);
	setenv("OPENBLAS_NUM_THREADS", "1", 1);
	if (play->lacks_landlock)
		take_call_away(SYS_landlock_create_ruleset);
	if (play->lacks_seccomp)
		take_call_away(SYS_seccomp);
	execl(CKPTD_WORKER, CKPTD_WORKER, role, (char *)NULL);
	_exit(127);
}

/* Starts a role; extra (stolen, may be NULL) adds members to the start frame. */
struct child play_start(struct play *play, const char *role, const char *resume, json_t *extra)
{
	struct child child = {0};
	int pair[2], text[2];
	AUTO_JSON frame = json_pack("{s:{s:s,s:i,s:s,s:o,s:s,s:b,s:s,s:i,s:s}}", "start", "role",
		role, "parent_pid", (int)getpid(), "run_dir", play->dir, "config",
		json_from_config(&play->config), "run_id", play->run.id_hex, "run_created",
		(int)play->created, "resume", resume, "threads", 0, "engine", "");

	assert_non_null(frame);
	if (extra) {
		json_object_update(json_object_get(frame, "start"), extra);
		json_decref(extra);
	}
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(pipe2(text, O_CLOEXEC), 0);
	child.pid = fork();
	assert_true(child.pid >= 0);
	if (child.pid == 0)
		exec_worker(play, role, pair[1], text[1]);
	close(pair[1]);
	close(text[1]);
	child.link = pair[0];
	child.stderr_fd = text[0];
	frame_reader_init(&child.reader, FRAME_LINK_MAX);
	assert_int_equal(frame_send(child.link, frame, clock_monotonic_ns() + FRAME_TIMEOUT), 0);
	return child;
}

/* The next frame with this member, or NULL at the end of the link. Notes `failed` on the way. */
json_t *child_frame(struct child *child, const char *name)
{
	for (;;) {
		json_t *frame = NULL;
		struct error err;

		if (frame_receive(child->link, &child->reader, clock_monotonic_ns() + FRAME_TIMEOUT,
			    &frame, &err) < 0)
			return NULL;
		snprintf(child->failed, sizeof(child->failed), "%s",
			json_get_text(json_object_get(frame, "failed"), "text", child->failed));
		if (json_object_get(frame, name)) {
			json_t *member = json_incref(json_object_get(frame, name));

			json_decref(frame);
			return member;
		}
		json_decref(frame);
	}
}

/* Waits for the end; a signal gives minus its number. The last of stderr goes to tail. */
int child_end(struct child *child, char tail[TAIL_MAX])
{
	size_t used = 0;
	ssize_t n;
	int status;

	json_decref(child_frame(child, "no such frame"));
	while ((n = read(child->stderr_fd, tail + used, TAIL_MAX - 1 - used)) > 0)
		used += (size_t)n;
	tail[used] = 0;
	assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
	frame_reader_fini(&child->reader);
	close(child->link);
	close(child->stderr_fd);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void child_expect_end(struct child *child, int code)
{
	char tail[TAIL_MAX];
	int end = child_end(child, tail);

	if (end != code)
		fail_msg("ended with %d, not %d: %s %s", end, code, child->failed, tail);
}

void play_prepare(struct play *play)
{
	struct child child = play_start(play, "prepare", "disk", NULL);
	AUTO_JSON prepared = child_frame(&child, "prepared");

	child_expect_end(&child, LINK_EXIT_DONE);
	assert_non_null(prepared);
	play->section_bytes = (uint64_t)json_get_int(prepared, "section_bytes", 0);
	assert_int_equal(digest_from_hex(json_get_text(prepared, "model_digest", ""), 64,
				 &play->model_digest),
		0);
}

void play_make_memory(struct play *play, uint32_t slots)
{
	struct error err;

	play->state_fd = state_create(
		play->section_bytes, slots, play->run.id, &play->model_digest, &err);
	assert_true(play->state_fd >= 0);
	assert_int_equal(state_map(&play->state, play->state_fd, true, &err), 0);
}

void play_begin(struct play *play, const struct config *config, uint32_t slots)
{
	play_open(play, config);
	play_prepare(play);
	play_make_memory(play, slots);
}

/* Starts a trainer and returns when it is ready; *ret_step is where it begins. */
struct child play_trainer(
	struct play *play, const char *resume, const char *from, uint64_t *ret_step)
{
	struct child child = play_start(play, "train", resume, NULL);
	AUTO_JSON ready = child_frame(&child, "ready");

	if (!ready)
		child_expect_end(&child, LINK_EXIT_DONE);
	assert_non_null(ready);
	assert_string_equal(json_get_text(ready, "from", ""), from);
	if (ret_step)
		*ret_step = (uint64_t)json_get_int(ready, "step", -1);
	return child;
}

void play_wait_step(struct play *play, uint64_t step)
{
	nsec_t deadline = clock_monotonic_ns() + FRAME_TIMEOUT;

	while (atomic_load(&play->progress->step) < step) {
		if (clock_monotonic_ns() > deadline)
			fail_msg("step %llu was not reached", (unsigned long long)step);
		usleep(200);
	}
}

void play_to_end(struct play *play, const char *resume, const char *from)
{
	struct child child = play_trainer(play, resume, from, NULL);
	AUTO_JSON finished = child_frame(&child, "finished");

	child_expect_end(&child, LINK_EXIT_DONE);
	assert_int_equal(json_get_int(finished, "step", -1), play->config.steps_total);
}

void play_kill(struct play *play, struct child *child)
{
	char tail[TAIL_MAX];

	kill(child->pid, SIGKILL);
	assert_int_equal(child_end(child, tail), -SIGKILL);
	state_clear_writing(&play->state);
}

/* Digest of the four sections and the counters that belong to P2. */
struct digest play_digest(const struct play *play)
{
	struct state_record record;
	struct digest_stream stream;

	assert_int_equal(state_newest_record(&play->state, &record), 0);
	assert_int_equal(record.step, play->config.steps_total);
	digest_begin(&stream);
	digest_add(&stream, state_section(&play->state, record.slot, 0), 4 * play->section_bytes);
	digest_add(&stream, &record.update_count, sizeof(record.update_count));
	digest_add(&stream, &record.images_seen, sizeof(record.images_seen));
	return digest_end(&stream);
}

void assert_same_bits(const struct digest *a, const struct digest *b)
{
	char hex_a[DIGEST_HEX_SIZE], hex_b[DIGEST_HEX_SIZE];

	digest_to_hex(a, hex_a);
	digest_to_hex(b, hex_b);
	assert_string_equal(hex_a, hex_b);
}

json_t *play_save(struct play *play)
{
	struct state_record pinned;
	struct child child;
	json_t *saved;

	assert_int_equal(state_pin_newest(&play->state, &pinned), 0);
	child = play_start(
		play, "save", "disk", json_pack("{s:i,s:b}", "attempt", 1, "foreground", 1));
	saved = child_frame(&child, "saved");
	child_expect_end(&child, LINK_EXIT_DONE);
	state_unpin_all(&play->state);
	assert_non_null(saved);
	play->created = false;
	return saved;
}

int process_seccomp(pid_t pid)
{
	char path[64], line[256];
	FILE *file;
	int mode = -1;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	file = fopen(path, "re");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		(void)sscanf(line, "Seccomp: %d", &mode);
	fclose(file);
	return mode;
}
