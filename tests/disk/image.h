/* A run's folder as it was, byte for byte, in memory: to put it back after each fault, and to say
 * whether a file is still the same. Include after store_fixture.h. */
#pragma once

#include <dirent.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMAGE_FILES_MAX 32

struct image_file {
	char name[128]; /* below the run's folder */
	char *bytes;
	size_t size;
};

struct image {
	struct image_file files[IMAGE_FILES_MAX];
	uint32_t count;
};

static inline struct image_file *image_find(struct image *image, const char *name)
{
	for (uint32_t i = 0; i < image->count; i++)
		if (strcmp(image->files[i].name, name) == 0)
			return &image->files[i];
	return NULL;
}

/* Calls each for every plain file in folder ("" or "checkpoints"), by its name below the run. */
static inline void image_each(struct fixture *fx, const char *folder,
	void (*each)(struct fixture *fx, struct image *image, const char *name),
	struct image *image)
{
	int fd = openat(fx->run_fd, *folder ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fdopendir(fd);
	struct dirent *entry;
	char name[128];

	assert_non_null(dir);
	while ((entry = readdir(dir)) != NULL) {
		if (entry->d_type != DT_REG)
			continue;
		assert_in_range(snprintf(name, sizeof(name), "%s%s%.90s", folder,
					*folder ? "/" : "", entry->d_name),
			1, sizeof(name) - 1);
		each(fx, image, name);
	}
	closedir(dir);
}

static inline void image_add(struct fixture *fx, struct image *image, const char *name)
{
	struct image_file *file = &image->files[image->count++];

	assert_true(image->count < IMAGE_FILES_MAX);
	snprintf(file->name, sizeof(file->name), "%s", name);
	assert_int_equal(file_read_all(fx->run_fd, name, 1 << 24, &file->bytes, &file->size), 0);
}

static inline void image_take(struct fixture *fx, struct image *image)
{
	image->count = 0;
	image_each(fx, "", image_add, image);
	image_each(fx, "checkpoints", image_add, image);
}

/* True when the file is there and not one bit has changed. */
static inline bool image_is_same(struct fixture *fx, const struct image_file *file)
{
	struct stat stat;
	void *map;
	bool same;
	int fd;

	if (fstatat(fx->run_fd, file->name, &stat, AT_SYMLINK_NOFOLLOW) < 0 ||
		stat.st_size != (off_t)file->size)
		return false;
	if (file->size == 0)
		return true;
	fd = openat(fx->run_fd, file->name, O_RDONLY | O_CLOEXEC);
	map = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	assert_ptr_not_equal(map, MAP_FAILED);
	same = memcmp(map, file->bytes, file->size) == 0;
	munmap(map, file->size);
	return same;
}

static inline void image_drop_stranger(struct fixture *fx, struct image *image, const char *name)
{
	if (image_find(image, name) == NULL)
		assert_int_equal(unlinkat(fx->run_fd, name, 0), 0);
}

static inline void image_put_back(struct fixture *fx, struct image *image)
{
	image_each(fx, "", image_drop_stranger, image);
	image_each(fx, "checkpoints", image_drop_stranger, image);
	for (uint32_t i = 0; i < image->count; i++)
		if (!image_is_same(fx, &image->files[i]))
			fixture_write(fx->run_fd, image->files[i].name, image->files[i].bytes,
				image->files[i].size);
}

static inline void image_fini(struct image *image)
{
	for (uint32_t i = 0; i < image->count; i++)
		free(image->files[i].bytes);
	image->count = 0;
}
