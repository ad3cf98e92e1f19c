/* See store/mirror.h. The place: DIR with its mark, and in it one folder for each run. */
#include "store/mirror.h"

#include "base/digest.h"
#include "base/file.h"
#include "base/sys.h"
#include "store/scan.h"
#include "store/sealed_json.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define MARK_TEXT "ckptd-mirror 1\n"
#define MARK_BYTES_MAX 256
#define FOLDER_MODE 0750
#define FILE_MODE 0640
#define ENTRIES_MAX 100000

int mirror_init(const char *path, struct error *err)
{
	int fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), rc;

	if (fd < 0)
		return error_set(err, fd, "cannot open %s: %s", path, strerror(-fd));
	rc = file_create(fd, MIRROR_MARK, MARK_TEXT, strlen(MARK_TEXT), FILE_MODE);
	sys_close(fd);
	if (rc == -EEXIST)
		return error_set(err, rc, "%s is a mirror already", path);
	return rc < 0
		? error_set(err, rc, "cannot write %s/" MIRROR_MARK ": %s", path, strerror(-rc))
		: 0;
}

static int check_mark(int dir_fd, const char *path, struct error *err)
{
	char *text;
	size_t size;
	int rc = file_read_all(dir_fd, MIRROR_MARK, MARK_BYTES_MAX, &text, &size);

	if (rc == -ENOENT)
		return error_set(err, -ENXIO,
			"mirror away: %s is not mounted, or never was a mirror (`ckptctl "
			"mirror-init`)",
			path);
	if (rc < 0)
		return error_set(
			err, rc, "mirror: cannot read %s/" MIRROR_MARK ": %s", path, strerror(-rc));
	rc = strcmp(text, MARK_TEXT) == 0
		? 0
		: error_set(err, -EPROTONOSUPPORT, "mirror: %s was made by another version", path);
	free(text);
	return rc;
}

static int open_dir(const char *path, struct error *err)
{
	int rc = sys_fault("mirror.open"), fd = rc;

	if (rc == 0)
		fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd == -ENOENT)
		return error_set(err, -ENXIO, "mirror away: there is no %s", path);
	if (fd < 0)
		return error_set(err, fd, "mirror: cannot open %s: %s", path, strerror(-fd));
	rc = check_mark(fd, path, err);
	if (rc == 0)
		return fd;
	sys_close(fd);
	return rc;
}

static int open_run(struct mirror *mirror, const char *run_hex, bool make)
{
	int fd;

	mirror->run_fd = make ? file_open_dir(mirror->dir_fd, run_hex, FOLDER_MODE)
			      : sys_openat(mirror->dir_fd, run_hex,
					O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (mirror->run_fd < 0 || !make)
		return mirror->run_fd < 0 ? mirror->run_fd : 0;
	fd = file_open_dir(mirror->run_fd, "checkpoints", FOLDER_MODE);
	if (fd < 0)
		return fd;
	sys_close(fd);
	return 0;
}

/* A lock of its own: other machines may have the same mirror. */
static int lock_run(struct mirror *mirror)
{
	int rc;

	mirror->lock_fd = sys_openat(
		mirror->run_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);
	if (mirror->lock_fd < 0)
		return mirror->lock_fd;
	rc = sys_flock(mirror->lock_fd, LOCK_EX | LOCK_NB);
	/* Where there are no such locks one goes without. */
	return rc == -EWOULDBLOCK ? rc : 0;
}

int mirror_open(const char *path, const char *run_hex, enum mirror_access access,
	struct mirror *ret, struct error *err)
{
	int rc;

	*ret = (struct mirror){.run_fd = -1, .lock_fd = -1};
	ret->dir_fd = open_dir(path, err);
	if (ret->dir_fd < 0)
		return ret->dir_fd;
	rc = open_run(ret, run_hex, access == MIRROR_CHANGE);
	if (rc == -ENOENT)
		error_set(err, rc, "mirror: %s has nothing of run %s", path, run_hex);
	else if (rc < 0)
		error_set(err, rc, "mirror: cannot open %s/%s: %s", path, run_hex, strerror(-rc));
	if (rc == 0 && access == MIRROR_CHANGE) {
		rc = lock_run(ret);
		if (rc == -EWOULDBLOCK)
			error_set(err, rc, "mirror: another process works on %s/%s", path, run_hex);
		else if (rc < 0)
			error_set(err, rc, "mirror: cannot lock %s/%s: %s", path, run_hex,
				strerror(-rc));
	}
	if (rc < 0)
		mirror_close(ret);
	return rc;
}

void mirror_close(struct mirror *mirror)
{
	if (mirror->lock_fd >= 0)
		sys_close(mirror->lock_fd);
	if (mirror->run_fd >= 0)
		sys_close(mirror->run_fd);
	if (mirror->dir_fd >= 0)
		sys_close(mirror->dir_fd);
	*mirror = (struct mirror){.dir_fd = -1, .run_fd = -1, .lock_fd = -1};
}

static bool is_run_id(const char *name)
{
	uint8_t id[RUN_ID_SIZE];

	return strlen(name) == RUN_ID_HEX_SIZE - 1 && bytes_from_hex(name, id, RUN_ID_SIZE) == 0;
}

int mirror_runs(const char *path, char ret_ids[MIRROR_RUNS_MAX][RUN_ID_HEX_SIZE],
	uint32_t *ret_count, struct error *err)
{
	int fd = open_dir(path, err);
	struct dirent *entry;
	DIR *dir;

	*ret_count = 0;
	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (dir == NULL) {
		sys_close(fd);
		return error_set(err, -ENOMEM, "mirror: cannot list %s", path);
	}
	for (int n = 0; n < ENTRIES_MAX && (entry = readdir(dir)) != NULL; n++)
		if (is_run_id(entry->d_name) && *ret_count < MIRROR_RUNS_MAX)
			snprintf(ret_ids[(*ret_count)++], RUN_ID_HEX_SIZE, "%s", entry->d_name);
	closedir(dir);
	return 0;
}

/* -- small files -- */

/* 0: it is there, the same or made just now (*ret_made). What is broken there is made again; one
 * that says something else is no copy of this one, and nobody can tell which of them counts. */
static int copy_branch(int from_fd, int to_fd, const char *name, bool *ret_made, struct error *err)
{
	AUTO_JSON here = NULL;
	AUTO_JSON there = NULL;
	char *text = NULL;
	size_t size;
	int rc;

	rc = sealed_json_read(from_fd, name, INT64_MAX, &here, err);
	if (rc < 0)
		return rc;
	rc = sealed_json_read(to_fd, name, INT64_MAX, &there, NULL);
	if (rc == 0 && json_equal(here, there))
		return 0;
	if (rc == 0)
		return error_set(err, -EEXIST,
			"the mirror and the run have different %s: they are not of one run, or it "
			"was continued in two places",
			name);
	if (rc != -ENOENT && rc != -EBADMSG)
		return error_set(err, rc, "mirror: cannot read %s: %s", name, strerror(-rc));
	rc = file_read_all(from_fd, name, SEALED_JSON_BYTES_MAX, &text, &size);
	if (rc == 0)
		rc = file_replace(to_fd, name, text, size, FILE_MODE);
	free(text);
	*ret_made = rc == 0;
	return rc < 0 ? error_set(err, rc, "cannot copy %s: %s", name, strerror(-rc)) : 0;
}

int mirror_copy_branches(int from_fd, int to_fd, uint32_t *ret_count, struct error *err)
{
	struct scan scan;
	int rc = scan_checkpoints(from_fd, &scan, err);

	*ret_count = 0;
	if (rc < 0)
		return rc;
	/* Ascending: each after its parent. */
	for (uint32_t i = 0; rc == 0 && i < scan.branch_count; i++) {
		char name[SCAN_NAME_MAX];
		bool made = false;

		snprintf(name, sizeof(name), "branch-%04u.json", scan.branches[i]);
		rc = copy_branch(from_fd, to_fd, name, &made, err);
		*ret_count += made;
	}
	scan_fini(&scan);
	return rc;
}
