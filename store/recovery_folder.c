/* See store/recovery_folder.h. */
#include "store/recovery_folder.h"

#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define RESERVE_NAME "reserve"
#define RESERVE_BYTES (1 << 20)
#define READ_TRIES 3
#define RETRY_MS 100
#define GIB 1073741824.0

int recovery_folder_open(int run_fd, struct recovery_folder *ret, struct error *err)
{
	int rc;

	memset(ret, 0, sizeof(*ret));
	ret->fd = sys_openat(
		run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (ret->fd < 0)
		return error_set(
			err, ret->fd, "cannot open the checkpoints folder: %s", strerror(-ret->fd));
	rc = scan_checkpoints(ret->fd, &ret->scan, err);
	if (rc == 0)
		rc = line_load(ret->fd, &ret->line, err);
	if (rc < 0)
		recovery_folder_close(ret);
	return rc;
}

void recovery_folder_close(struct recovery_folder *folder)
{
	scan_fini(&folder->scan);
	line_fini(&folder->line);
	if (folder->fd >= 0)
		sys_close(folder->fd);
	folder->fd = -1;
}

enum checkpoint_state recovery_state_of(int error)
{
	switch (error) {
	case -EBADMSG:
		return CHECKPOINT_CORRUPT;
	case -EPROTONOSUPPORT:
		return CHECKPOINT_REFUSED;
	default:
		return CHECKPOINT_UNREADABLE;
	}
}

int recovery_try(int (*once)(void *context, struct error *err), void *context, struct error *err)
{
	int rc = 0;

	for (int try = 1; try <= READ_TRIES; try++) {
		const struct timespec pause = {.tv_nsec = RETRY_MS * 1000000L * try};

		rc = once(context, err);
		if (rc == 0 || rc == -EBADMSG || rc == -EPROTONOSUPPORT || rc == -ENOENT ||
			rc == -ECANCELED)
			return rc;
		if (try < READ_TRIES)
			nanosleep(&pause, NULL);
	}
	return rc;
}

bool recovery_is_ours(int error)
{
	return error == -ENOMEM || error == -EMFILE || error == -ENFILE || error == -EINTR;
}

void recovery_row_of_info(const struct recovery_folder *folder, const struct checkpoint_info *info,
	enum checkpoint_state state, struct catalog_row *ret)
{
	memset(ret, 0, sizeof(*ret));
	snprintf(ret->id, sizeof(ret->id), "%s", info->id);
	ret->step = info->record.step;
	ret->branch = info->record.branch;
	ret->state = state;
	ret->root = info->root;
	ret->parent_root = info->parent_root;
	ret->file_bytes = info->file_bytes;
	ret->loss = isnan(info->record.loss) ? (double)NAN : (double)info->record.loss;
	ret->trained_seconds = info->record.trained_ns / (uint64_t)NSEC_PER_SEC;
	ret->keep = scan_keeps(&folder->scan, &info->root);
	snprintf(ret->created, sizeof(ret->created), "%s", info->created);
	if (info->is_signed)
		sign_public_hex(&info->signer, ret->signer);
}

void recovery_row_carry(const struct catalog_row *old, struct catalog_row *ret)
{
	if (old == NULL || !digest_equal(&old->root, &ret->root))
		return;
	memcpy(ret->readback, old->readback, sizeof(ret->readback));
	/* What was read just now counts more. */
	if (ret->verified_at[0] == '\0')
		memcpy(ret->verified_at, old->verified_at, sizeof(ret->verified_at));
	memcpy(ret->mirrored_at, old->mirrored_at, sizeof(ret->mirrored_at));
}

void recovery_row_of_name(const struct recovery_folder *folder, const struct scan_file *file,
	const struct catalog_row *old, enum checkpoint_state state, const char *text,
	struct catalog_row *ret)
{
	struct stat stat;

	memset(ret, 0, sizeof(*ret));
	ret->loss = (double)NAN;
	if (old != NULL)
		*ret = *old;
	checkpoint_id_format(file->step, file->branch, ret->id);
	ret->step = file->step;
	ret->branch = file->branch;
	ret->state = state;
	ret->keep = scan_keeps(&folder->scan, &ret->root);
	if (sys_fstatat(folder->fd, file->name, &stat) == 0)
		ret->file_bytes = (uint64_t)stat.st_size;
	memset(ret->readback, 0, sizeof(ret->readback));
	memset(ret->text, 0, sizeof(ret->text));
	snprintf(ret->text, sizeof(ret->text), "%s", text);
}

const struct catalog_row *recovery_find_row(
	const struct catalog_row *rows, uint32_t count, uint64_t step, uint32_t branch)
{
	for (uint32_t i = 0; i < count; i++)
		if (rows[i].step == step && rows[i].branch == branch)
			return &rows[i];
	return NULL;
}

void recovery_reserve_hold(int run_fd)
{
	struct stat stat;
	int fd;

	if (sys_fstatat(run_fd, RESERVE_NAME, &stat) == 0 && stat.st_size == RESERVE_BYTES)
		return;
	fd = sys_openat(run_fd, RESERVE_NAME, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
	if (fd < 0)
		return;
	/* Without it all works but for a disk that is full to the last block. */
	if (sys_fallocate(fd, RESERVE_BYTES) < 0)
		sys_unlinkat(run_fd, RESERVE_NAME);
	sys_close(fd);
}

void recovery_reserve_release(int run_fd)
{
	sys_unlinkat(run_fd, RESERVE_NAME);
}

uint32_t recovery_prune_asides(struct recovery_folder *folder, uint32_t keep)
{
	uint32_t removed = 0;

	while (folder->scan.aside_count > keep) {
		const struct scan_file *oldest = &folder->scan.asides[--folder->scan.aside_count];

		if (sys_unlinkat(folder->fd, oldest->name) == 0)
			removed++;
	}
	return removed;
}

void recovery_tell(recovery_report *report, void *context, const char *kind, const char *level,
	uint64_t step, const char *format, ...)
{
	char text[ERROR_TEXT_MAX];
	va_list arguments;

	if (report == NULL)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	report(context, kind, level, step, text);
}

struct retention_policy recovery_policy_of(const struct config *config)
{
	return (struct retention_policy){
		.keep_last = (uint32_t)config->keep_last,
		.keep_every = (uint64_t)config->keep_every,
		.keep_tail = config->keep_tail,
		.keep_best = (uint32_t)config->keep_best,
		.keep_bytes = (uint64_t)(config->keep_bytes * GIB),
		.abandoned_last = RECOVERY_ABANDONED_LAST,
		.corrupt_last = RECOVERY_CORRUPT_LAST,
	};
}
