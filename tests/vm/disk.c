/* See disk.h. */
#include "tests/vm/disk.h"

#include "store/catalog.h"
#include "store/checkpoint.h"
#include "tests/crash/loop.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NEST_MIB 4096

const struct disk_fs disk_ext4 = {.name = "ext4", .type = "ext4", .options = ""};

static char nest[64];

/* -- the nest -- */

void disk_path(const char *name, char path[DISK_PATH_MAX])
{
	snprintf(path, DISK_PATH_MAX, "%s/%s", nest, name);
}

/* On an xfs of our own a copy of a disk takes milliseconds. */
void disk_nest(void)
{
	char image[80], path[DISK_PATH_MAX];
	const char *const make[] = {"mkfs.xfs", "-q", "-m", "reflink=1", image, NULL};

	assert_true(loop_isolate());
	strcpy(nest, "/tmp/ckptd-vm-XXXXXX");
	assert_non_null(mkdtemp(nest));
	snprintf(image, sizeof(image), "%s.img", nest);
	assert_true(loop_make_file(image, NEST_MIB) && loop_run(make));
	assert_true(loop_mount(image, nest, "xfs", ""));
	assert_int_equal(unlink(image), 0);
	disk_path("mounted", path);
	assert_int_equal(mkdir(path, 0700), 0);
}

/* However this process ends, mounts, devices and images go with it. */
void disk_finish(void)
{
	if (nest[0] != '\0' && loop_unmount(nest))
		rmdir(nest);
}

/* -- what is on it -- */

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
static int read_file(int dir_fd, const char *name, struct disk_found *ret, struct error *err)
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

static void read_newest(const char *dir, struct disk_found *ret)
{
	char id[CHECKPOINT_ID_SIZE], path[2 * DISK_PATH_MAX + 16], name[CHECKPOINT_ID_SIZE + 16];
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
	char path[2 * DISK_PATH_MAX + 16];

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
static bool mount_copy(const char *disk, const struct disk_fs *fs, char copy[DISK_PATH_MAX],
	char folder[DISK_PATH_MAX])
{
	const char *const check[] = {"e2fsck", "-fy", copy, NULL};

	disk_path("copy", copy);
	disk_path("mounted", folder);
	assert_true(loop_clone(disk, copy));
	if (fs->check)
		loop_run(check); /* its code says what it repaired */
	return loop_mount(copy, folder, fs->type, fs->options);
}

const char *disk_under_way(const char *disk)
{
	char copy[DISK_PATH_MAX], folder[DISK_PATH_MAX], dir[2 * DISK_PATH_MAX];
	const char *phase;

	assert_true(mount_copy(disk, &disk_ext4, copy, folder));
	snprintf(dir, sizeof(dir), "%s/vm", folder);
	phase = under_way(dir);
	assert_true(loop_unmount(folder));
	assert_int_equal(unlink(copy), 0);
	return phase;
}

void disk_look(const char *disk, const struct disk_fs *fs, struct disk_found *ret)
{
	char copy[DISK_PATH_MAX], folder[DISK_PATH_MAX], dir[2 * DISK_PATH_MAX];
	const char *const fsck[] = {CKPTD_BUILD "/ctl/ckptctl", "fsck", "--repair", dir, NULL};
	const char *const again[] = {CKPTD_BUILD "/ctl/ckptctl", "fsck", dir, NULL};

	*ret = (struct disk_found){.whole = true};
	if (!mount_copy(disk, fs, copy, folder)) {
		*ret = (struct disk_found){.text = "the file system cannot be mounted"};
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
