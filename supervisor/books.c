/* The thread's side of books.h for the run's folder and the history. It must never touch the
 * supervisor's state: a job and the room are all it sees. Invariants: the history is opened only
 * after the run's lock is held; its loss never fails a job that is not about it. */
#include "supervisor/books.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "proto/state.h"
#include "store/recovery.h"
#include "supervisor/books_room.h"
#include "supervisor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAST_GOOD_MAX ((size_t)256 << 10)

struct books *books_new(void)
{
	struct books *books = calloc(1, sizeof(*books));

	CHECK(books);
	books->run_fd = books->checkpoints_fd = -1;
	return books;
}

void books_free(void *room)
{
	struct books *books = room;

	if (books->history)
		history_close(books->history);
	if (books->run_fd >= 0)
		close(books->run_fd);
	if (books->checkpoints_fd >= 0)
		close(books->checkpoints_fd);
	free(books);
}

void *books_job(size_t size, void (*work)(struct ledger_job *job, void *room),
	void (*done)(struct ledger_job *job), void *owner)
{
	CHECK(size >= sizeof(struct book_job));
	struct book_job *head = calloc(1, size);

	CHECK(head);
	head->job.work = work;
	head->job.done = done;
	head->owner = owner;
	return head;
}

void books_forget(struct ledger_job *job)
{
	free(job);
}

void books_give(struct ledger *ledger, void *job)
{
	struct book_job *head = job;
	int code = ledger_give(ledger, &head->job);

	if (code < 0) {
		head->job.result = error_set(&head->job.error, code, "%s",
			code == -ENOBUFS ? "the disk does not keep up: too much waits to be written"
					 : "ckptd is ending");
		head->job.done(&head->job);
	}
}

/* -- configuration -- */

/* Workers get the configuration as JSON. */
static int check_utf8(const struct config *config, struct error *err)
{
	char text[CONFIG_TEXT_MAX];

	for (size_t i = 0; i < config_key_count(); i++) {
		config_value_text(config, config_key_at(i), text);
		if (!text_is_utf8(text))
			return error_set(err, -EINVAL,
				"%s: its value is not UTF-8; rename what it names",
				config_key_at(i)->key);
	}
	return 0;
}

int config_resolve(const struct config_source *source, struct config *ret, struct error *err)
{
	const char *state_directory = getenv("STATE_DIRECTORY");
	int code = 0;

	config_defaults(ret);
	if (state_directory && *state_directory)
		code = config_set(ret, "state_dir", state_directory, "$STATE_DIRECTORY", err);
	if (code == 0 && source->path)
		code = config_parse_file(ret, source->path, err);
	for (uint32_t i = 0; code == 0 && i < source->set_count; i++) {
		const char *equals = strchr(source->sets[i], '=');
		char key[64];

		if (!equals || equals == source->sets[i] ||
			(size_t)(equals - source->sets[i]) >= sizeof(key))
			return error_set(
				err, -EINVAL, "--set %s: write it as KEY=VALUE", source->sets[i]);
		snprintf(
			key, sizeof(key), "%.*s", (int)(equals - source->sets[i]), source->sets[i]);
		code = config_set(ret, key, equals + 1, "--set", err);
	}
	if (code == 0 && source->state_dir)
		code = config_set(ret, "state_dir", source->state_dir, "--state", err);
	if (code == 0)
		code = check_utf8(ret, err);
	return code < 0 ? code : config_check(ret, err);
}

void books_reload_work(struct ledger_job *job, void *room)
{
	struct reload_job *reload = (struct reload_job *)job;

	job->result = config_resolve(&reload->source, &reload->config, &job->error);
	if (job->result == 0)
		signing_read(reload->config.signing_key, &reload->signing);
}

void books_last_good_work(struct ledger_job *job, void *room)
{
	struct last_good_job *last_good = (struct last_good_job *)job;
	struct books *books = room;

	CHECK(books->run_fd >= 0);
	job->result = run_write_last_good(books->run_fd, &last_good->config, &job->error);
}

static int load_last_good(int run_fd, struct config *ret, struct error *err)
{
	char *text;
	size_t size;
	int code = file_read_all(run_fd, "last-good.conf", LAST_GOOD_MAX, &text, &size);

	if (code < 0)
		return code;
	config_defaults(ret);
	code = config_parse_text(ret, text, "last-good.conf", err);
	free(text);
	return code < 0 ? code : config_check(ret, err);
}

/* The file's configuration, or the last good one. */
static void settle_config(struct open_job *open)
{
	struct ledger_job *job = &open->head.job;
	struct config last_good;
	struct error ignored;

	if (open->config_good) {
		if (run_check_identity(&open->run, &open->config, &open->config_error) == 0) {
			open->outcome = OPEN_DONE;
			return;
		}
	}
	if (!open->strict && load_last_good(open->run_fd, &last_good, &ignored) == 0 &&
		run_check_identity(&open->run, &last_good, &ignored) == 0) {
		open->config = last_good;
		open->last_good = true;
		open->outcome = OPEN_DONE;
		return;
	}
	open->outcome = OPEN_CONFIG;
	job->result = error_set(&job->error, -EINVAL, "%s", open->config_error.text);
}

/* -- the run -- */

static void open_failed(struct open_job *open, int code)
{
	run_fini(&open->run);
	memset(&open->run, 0, sizeof(open->run));
	if (open->lock_fd >= 0)
		close(open->lock_fd);
	if (open->run_fd >= 0)
		close(open->run_fd);
	open->lock_fd = open->run_fd = -1;
	open->head.job.result = code;
	CHECK(open->outcome != OPEN_DONE);
}

static int load_or_remake(struct open_job *open)
{
	struct error *err = &open->head.job.error;
	struct error remake_error;
	int code = run_load(open->run_fd, &open->run, err);

	if (code != -ENOENT)
		return code;
	code = run_remake(open->run_fd, &open->run, &remake_error);
	if (code < 0 && code != -ENOENT)
		*err = remake_error;
	return code;
}

static void keep_folder(struct books *books, const struct open_job *open)
{
	snprintf(books->run_dir, sizeof(books->run_dir), "%s", open->run_dir);
	books->run_fd = fcntl(open->run_fd, F_DUPFD_CLOEXEC, 3);
	books->checkpoints_fd = openat(
		open->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	books_history(books);
}

void books_open_work(struct ledger_job *job, void *room)
{
	struct open_job *open = (struct open_job *)job;
	struct books *books = room;
	char path[PATH_MAX];
	int code;

	CHECK(books->run_fd < 0);
	open->run_fd = open->lock_fd = -1;
	open->outcome = OPEN_NO_RUN;
	code = open->run_fd = run_open_dir(open->run_dir, false, &job->error);
	if (code < 0) {
		if (code != -ENOENT)
			open->outcome = OPEN_BROKEN;
		open_failed(open, code);
		return;
	}
	if (realpath(open->run_dir, path))
		snprintf(open->run_dir, sizeof(open->run_dir), "%s", path);
	if (!text_is_utf8(open->run_dir)) {
		open->outcome = OPEN_BROKEN;
		open_failed(open,
			error_set(&job->error, -EINVAL,
				"the path of the state folder is not UTF-8: move it"));
		return;
	}
	code = run_lock(open->run_fd, &open->lock_fd, &open->owner, &job->error);
	if (code < 0) {
		open->lock_fd = -1;
		open->outcome = code == -EWOULDBLOCK ? OPEN_LOCKED : OPEN_BROKEN;
		open_failed(open, code);
		return;
	}
	code = load_or_remake(open);
	if (code < 0) {
		open->outcome = code == -ENOENT ? OPEN_NO_RUN : OPEN_BROKEN;
		open_failed(open, code);
		return;
	}
	settle_config(open);
	if (open->outcome != OPEN_DONE)
		open_failed(open, job->result);
	else
		keep_folder(books, open);
}

void books_store_run_work(struct ledger_job *job, void *room)
{
	struct store_run_job *store = (struct store_run_job *)job;
	struct books *books = room;

	CHECK(books->run_fd >= 0);
	job->result = run_store(books->run_fd, &store->run, &job->error);
}

/* Its header says what the state needs. */
static int ask_newest(struct memory_job *memory)
{
	struct checkpoint_info info;
	int fd,
		code = recovery_pick(
			memory->run_dir, memory->run_fd, NULL, &info, &fd, &memory->head.job.error);

	if (code < 0)
		return code;
	memory->section_bytes = info.section_bytes;
	memory->model_digest = info.record.model_digest;
	checkpoint_info_fini(&info);
	sys_close(fd);
	return 0;
}

void books_memory_work(struct ledger_job *job, void *room)
{
	struct memory_job *memory = (struct memory_job *)job;

	if (memory->run_dir) {
		job->result = ask_newest(memory);
		if (job->result < 0)
			return;
	}
	CHECK(memory->slot_count >= memory->slot_count_min && memory->slot_count_min >= 1);
	for (;;) {
		memory->fd = state_create(memory->section_bytes, memory->slot_count, memory->run_id,
			&memory->model_digest, &job->error);
		job->result = memory->fd < 0 ? memory->fd : 0;
		if (job->result == 0 || job->result != -ENOMEM ||
			memory->slot_count == memory->slot_count_min)
			return;
		memory->slot_count--;
	}
}

void books_space_work(struct ledger_job *job, void *room)
{
	struct space_job *space = (struct space_job *)job;
	struct books *books = room;

	job->result = books->run_fd < 0 ? -EIO : sys_free_bytes(books->run_fd, &space->free_bytes);
}
