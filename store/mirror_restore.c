/* Back from the mirror: what a start finds missing here, or a whole run. A file becomes one of the
 * run's own by the commit of checkpoint_copy, and counts only as one that stands here: recovery
 * knows nothing of mirrors. Must never: replace what is whole here, or take what another run made.
 */
#include "store/mirror.h"

#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/checkpoint_copy.h"
#include "store/recovery_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARK_MODE 0640
#define NO_RUN "00000000000000000000000000000000"

struct restore {
	const struct mirror_pass *pass;
	struct mirror mirror;
	struct recovery_folder here, there;
	struct error *err;
};

/* -- a disk that may not answer -- */

/* Whether the mirror can be opened, asked by a child that may be left behind: with a mount that
 * hangs, not even SIGKILL ends it. It holds no descriptor of ours. */
static int reach(const char *path, struct error *err)
{
	struct pollfd ended = {.events = POLLIN};
	struct mirror probe;
	int rc = -ENXIO;
	pid_t pid = fork();

	if (pid < 0)
		return error_set(err, -errno, "mirror: cannot fork: %s", strerror(errno));
	if (pid == 0) {
		struct error ignored;

		close_range(STDERR_FILENO + 1, ~0U, 0);
		rc = mirror_open(path, NO_RUN, MIRROR_LOOK, &probe, &ignored);
		_exit(rc == 0 || rc == -ENOENT ? 0 : 1);
	}
	ended.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (ended.fd >= 0 && poll(&ended, 1, MIRROR_REACH_SECONDS * 1000) > 0)
		rc = 0;
	if (ended.fd >= 0)
		close(ended.fd);
	if (rc < 0)
		kill(pid, SIGKILL);
	/* Its reason is told by the open that follows; one that hangs is left to init. */
	waitpid(pid, NULL, rc < 0 ? WNOHANG : 0);
	return rc < 0 ? error_set(err, rc, "mirror: %s does not answer: going on without it", path)
		      : 0;
}

/* -- small things first: they say which line there is -- */

static int copy_branches_back(struct restore *restore, int to_fd)
{
	int from_fd = sys_openat(restore->mirror.run_fd, "checkpoints",
		O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	uint32_t made = 0;
	int rc;

	if (from_fd < 0)
		return error_set(restore->err, from_fd, "mirror: cannot open its folder: %s",
			strerror(-from_fd));
	rc = mirror_copy_branches(from_fd, to_fd, &made, restore->err);
	sys_close(from_fd);
	if (made > 0)
		recovery_tell(restore->pass->report, restore->pass->context, "mirror", "warning", 0,
			"%u branch files were lost and came back from the mirror", made);
	return rc;
}

static int copy_marks_back(struct restore *restore)
{
	const struct scan *there = &restore->there.scan;
	char name[SCAN_NAME_MAX];
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < there->keep_count; i++) {
		scan_keep_name(&there->keeps[i], name);
		rc = file_create(restore->here.fd, name, "", 0, MARK_MODE);
		rc = rc == -EEXIST ? 0 : rc;
	}
	return rc < 0 ? error_set(restore->err, rc, "cannot copy a keep mark: %s", strerror(-rc))
		      : 0;
}

static int open_both(struct restore *restore)
{
	const struct mirror_pass *pass = restore->pass;
	int rc = mirror_open(pass->config->mirror, pass->run->id_hex, MIRROR_LOOK, &restore->mirror,
		restore->err);
	int fd;

	if (rc < 0)
		return rc;
	fd = file_open_dir(pass->run_fd, "checkpoints", 0750);
	rc = fd < 0 ? error_set(restore->err, fd, "cannot open checkpoints: %s", strerror(-fd))
		    : copy_branches_back(restore, fd);
	if (fd >= 0)
		sys_close(fd);
	if (rc == 0)
		rc = recovery_folder_open(pass->run_fd, &restore->here, restore->err);
	if (rc < 0) {
		restore->here.fd = -1;
		return rc;
	}
	rc = recovery_folder_open(restore->mirror.run_fd, &restore->there, restore->err);
	if (rc < 0)
		restore->there.fd = -1;
	return rc;
}

static void close_both(struct restore *restore)
{
	if (restore->there.fd >= 0)
		recovery_folder_close(&restore->there);
	if (restore->here.fd >= 0)
		recovery_folder_close(&restore->here);
	mirror_close(&restore->mirror);
}

static int fetch(struct restore *restore, const struct scan_file *file, struct error *err)
{
	const struct checkpoint_copy copy = {.from_fd = restore->there.fd,
		.to_fd = restore->here.fd,
		.name = file->name,
		.run_id = restore->pass->run->id,
		.aside = true,
		.threads = restore->pass->threads,
		.moves = restore->pass->moves};
	struct checkpoint_copied copied;

	return checkpoint_copy(&copy, &copied, err);
}

/* -- what a start lacks -- */

/* The greatest step on the line of which a usable file stands here, or -1. Only the header is read:
 * rotten data are found by the load, which comes here again. */
static int64_t newest_here(const struct restore *restore)
{
	struct catalog *catalog = NULL;
	int64_t newest = -1;

	catalog_open(restore->pass->run_dir, CATALOG_READ, &catalog, NULL);
	for (uint32_t i = 0; newest < 0 && i < restore->here.scan.file_count; i++) {
		const struct scan_file *file = &restore->here.scan.files[i];
		char id[CHECKPOINT_ID_SIZE];
		struct checkpoint_info info;
		struct catalog_row row;
		int fd;

		checkpoint_id_format(file->step, file->branch, id);
		if (!line_contains(&restore->here.line, file->branch, file->step) ||
			(catalog != NULL && catalog_get(catalog, id, &row, NULL) == 0 &&
				row.state == CHECKPOINT_CORRUPT))
			continue;
		fd = checkpoint_open(restore->here.fd, file->name, &info, NULL);
		if (fd < 0)
			continue;
		if (memcmp(info.record.run_id, restore->pass->run->id, RUN_ID_SIZE) == 0)
			newest = (int64_t)file->step;
		sys_close(fd);
		checkpoint_info_fini(&info);
	}
	catalog_close(catalog);
	return newest;
}

int mirror_fetch_newest(const struct mirror_pass *pass, const int64_t *have, struct error *err)
{
	struct restore restore = {.pass = pass,
		.mirror = {.dir_fd = -1, .run_fd = -1, .lock_fd = -1},
		.here = {.fd = -1},
		.there = {.fd = -1},
		.err = err};
	int rc = reach(pass->config->mirror, err), fetched = 0;
	int64_t newest = 0;

	if (rc == 0)
		rc = open_both(&restore);
	if (rc == 0)
		newest = have != NULL ? *have : newest_here(&restore);

	for (uint32_t i = 0; rc == 0 && fetched == 0 && i < restore.there.scan.file_count; i++) {
		const struct scan_file *file = &restore.there.scan.files[i];
		struct error why = {{0}};

		if ((int64_t)file->step <= newest)
			break;
		if (!line_contains(&restore.here.line, file->branch, file->step))
			continue;
		if (fetch(&restore, file, &why) == 0) {
			fetched = 1;
			recovery_tell(pass->report, pass->context, "mirror", "warning", file->step,
				"%s was missing or broken here and came back from the mirror",
				file->name);
		} else {
			recovery_tell(pass->report, pass->context, "mirror", "warning", file->step,
				"%s could not be brought back from the mirror: %s", file->name,
				why.text);
		}
	}
	close_both(&restore);
	return rc < 0 ? rc : fetched;
}

/* -- a whole run -- */

/* run.json last: until then there is no run here, and the same command begins again. */
static int restore_all(struct restore *restore, uint32_t *ret_count)
{
	int rc = open_both(restore);

	if (rc == 0)
		rc = copy_marks_back(restore);
	for (uint32_t i = 0; rc == 0 && i < restore->there.scan.file_count; i++) {
		const struct scan_file *file = &restore->there.scan.files[i];
		struct error why = {{0}};
		int got = fetch(restore, file, &why);

		if (got == 0)
			++*ret_count;
		else if (got == -EBADMSG || got == -EPROTONOSUPPORT)
			recovery_tell(restore->pass->report, restore->pass->context, "mirror",
				"warning", file->step, "%s is left out: %s", file->name, why.text);
		else
			rc = error_set(restore->err, got, "%s", why.text);
	}
	if (rc == 0 && *ret_count == 0)
		rc = error_set(restore->err, -ENOENT, "mirror: there is no whole checkpoint of %s",
			restore->pass->run->id_hex);
	return rc < 0 ? rc : run_store(restore->pass->run_fd, restore->pass->run, restore->err);
}

int mirror_load_run(const char *path, const char *run_hex, struct run *ret, struct error *err)
{
	struct mirror mirror;
	int rc = mirror_open(path, run_hex, MIRROR_LOOK, &mirror, err);

	if (rc < 0)
		return rc;
	rc = run_load(mirror.run_fd, ret, err);
	mirror_close(&mirror);
	return rc;
}

int mirror_restore_run(const struct mirror_pass *pass, uint32_t *ret_count, struct error *err)
{
	struct restore restore = {.pass = pass,
		.mirror = {.dir_fd = -1, .run_fd = -1, .lock_fd = -1},
		.here = {.fd = -1},
		.there = {.fd = -1},
		.err = err};
	int rc;

	*ret_count = 0;
	rc = restore_all(&restore, ret_count);
	close_both(&restore);
	return rc;
}
