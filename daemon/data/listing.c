/* The walk, in any order the folder gives; sorted at the end. Never follows a linked folder; what
 * cannot be looked at is a complaint, not the end. See listing.h. */
#include "daemon/data/listing.h"
#include "base/clock.h"
#include "base/sys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define COMPLAINTS_NAMED_MAX 20

void complain(struct complaints *complaints, const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX];
	va_list args;

	if (complaints->count++ >= COMPLAINTS_NAMED_MAX)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (complaints->count == 1)
		snprintf(complaints->first, sizeof(complaints->first), "%.*s",
			(int)sizeof(complaints->first) - 1, text);
	if (complaints->report)
		complaints->report(complaints->context, "warning", text);
}

void complaints_finish(const struct complaints *complaints)
{
	char text[ERROR_TEXT_MAX];

	if (complaints->count <= COMPLAINTS_NAMED_MAX || !complaints->report)
		return;
	snprintf(text, sizeof(text), "%llu more files were skipped",
		(unsigned long long)(complaints->count - COMPLAINTS_NAMED_MAX));
	complaints->report(complaints->context, "warning", text);
}

void listing_fini(struct listing *listing)
{
	if (!listing)
		return;
	free(listing->entries);
	free(listing->text);
	for (uint64_t i = 0; i < listing->linked_count; i++)
		free(listing->linked[i]);
	free(listing->linked);
	*listing = (struct listing){0};
}

/* Makes room for need more elements of size bytes. */
static int grow(void **array, uint64_t *capacity, uint64_t used, uint64_t need, size_t size)
{
	if (*capacity - used >= need)
		return 0;
	uint64_t wanted = (used + need) * 2;
	void *bigger = reallocarray(*array, wanted, size);
	if (!bigger)
		return -ENOMEM;
	*array = bigger;
	*capacity = wanted;
	return 0;
}

static int listing_add(
	struct listing *listing, const char *path, const struct stat *st, struct error *err)
{
	size_t length = strlen(path) + 1;
	void *entries = listing->entries, *text = listing->text;

	if (listing->count >= LISTING_FILES_MAX)
		return error_set(err, -EFBIG, "more than %llu picture files",
			(unsigned long long)LISTING_FILES_MAX);
	int r = grow(&entries, &listing->capacity, listing->count, 1, sizeof(*listing->entries));
	listing->entries = entries;
	if (r == 0)
		r = grow(&text, &listing->text_capacity, listing->text_size, length, 1);
	listing->text = text;
	if (r < 0)
		return error_set(err, r, "no memory to list the picture files");
	memcpy(listing->text + listing->text_size, path, length);
	listing->entries[listing->count++] = (struct listing_entry){
		.path = listing->text_size,
		.size = (uint64_t)st->st_size,
		.mtime_ns = st->st_mtim.tv_sec * NSEC_PER_SEC + st->st_mtim.tv_nsec,
	};
	listing->text_size += length;
	return 0;
}

static bool is_picture_name(const char *name)
{
	static const char *const endings[] = {".png", ".jpg", ".jpeg"};
	size_t length = strlen(name);

	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		size_t ending = strlen(endings[i]);
		if (length > ending && strcasecmp(name + length - ending, endings[i]) == 0)
			return true;
	}
	return false;
}

/* Where folder is among those of links, or would be. */
static uint64_t find_linked(const struct listing *listing, const char *folder)
{
	uint64_t first = 0, end = listing->linked_count;

	while (first < end) {
		uint64_t middle = first + (end - first) / 2;

		if (strcmp(listing->linked[middle], folder) < 0)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

static int add_linked(struct listing *listing, const char *folder)
{
	uint64_t at = find_linked(listing, folder);
	void *linked = listing->linked;
	char *copy;
	int r;

	if (at < listing->linked_count && strcmp(listing->linked[at], folder) == 0)
		return 0;
	r = grow(&linked, &listing->linked_capacity, listing->linked_count, 1, sizeof(char *));
	listing->linked = linked;
	copy = r == 0 ? strdup(folder) : NULL;
	if (!copy)
		return -ENOMEM;
	memmove(listing->linked + at + 1, listing->linked + at,
		(listing->linked_count - at) * sizeof(char *));
	listing->linked[at] = copy;
	listing->linked_count++;
	return 0;
}

/* Notes the folder of the file that a link leads to in the end. */
static int note_link(struct listing *listing, int dir_fd, const char *name)
{
	char link[64], path[PATH_MAX];
	int fd = sys_openat(dir_fd, name, O_PATH | O_CLOEXEC, 0);
	ssize_t length;

	if (fd < 0)
		return fd;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	sys_close(fd);
	if (length < 0)
		return -errno;
	path[length] = '\0';
	char *slash = strrchr(path, '/');
	if (!slash)
		return -ENOENT;
	slash[slash == path ? 1 : 0] = '\0';
	return add_linked(listing, path);
}

struct walk {
	struct listing *listing;
	struct complaints *complaints;
	struct stat skip; /* st_ino 0: none */
	char path[PATH_MAX];
	struct error *err;
};

static int walk_folder(struct walk *walk, int fd, size_t path_length, unsigned depth);

/* A sub-folder that cannot be entered is one complaint, not the end. */
static int walk_subfolder(struct walk *walk, int dir_fd, const char *name, const struct stat *st,
	size_t path_length, unsigned depth)
{
	if (st->st_ino == walk->skip.st_ino && st->st_dev == walk->skip.st_dev)
		return 0;
	if (depth >= LISTING_DEPTH_MAX) {
		complain(walk->complaints, "%s: skipped: more than %d folders deep", walk->path,
			LISTING_DEPTH_MAX);
		return 0;
	}
	int fd = sys_openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0) {
		complain(walk->complaints, "%s: skipped: %s", walk->path, strerror(-fd));
		return 0;
	}
	return walk_folder(walk, fd, path_length, depth + 1);
}

static int walk_entry(
	struct walk *walk, int dir_fd, const char *name, size_t path_length, unsigned depth)
{
	int written = snprintf(walk->path + path_length, sizeof(walk->path) - path_length, "%s%s",
		path_length ? "/" : "", name);
	size_t length = path_length + (size_t)written;
	struct stat st;

	if (length >= sizeof(walk->path)) {
		walk->path[path_length] = '\0';
		complain(walk->complaints, "%s: skipped: a path is too long", walk->path);
		return 0;
	}
	bool picture = is_picture_name(name);
	int r = sys_fstatat(dir_fd, name, &st);
	if (r == 0 && S_ISDIR(st.st_mode))
		return walk_subfolder(walk, dir_fd, name, &st, length, depth);
	if (!picture)
		return 0;
	bool link = r == 0 && S_ISLNK(st.st_mode);

	if (link && fstatat(dir_fd, name, &st, 0) < 0)
		r = -errno;
	if (r < 0) {
		complain(walk->complaints, "%s: skipped: %s", walk->path, strerror(-r));
		return 0;
	}
	if (!S_ISREG(st.st_mode))
		return 0;
	r = link ? note_link(walk->listing, dir_fd, name) : 0;
	if (r < 0)
		return error_set(
			walk->err, r, "%s: following the link: %s", walk->path, strerror(-r));
	return listing_add(walk->listing, walk->path, &st, walk->err);
}

/* Takes fd. */
static int walk_folder(struct walk *walk, int fd, size_t path_length, unsigned depth)
{
	DIR *dir = fdopendir(fd);
	int r = 0;

	if (!dir) {
		r = -errno;
		sys_close(fd);
		return error_set(walk->err, r, "reading a folder: %s", strerror(-r));
	}
	while (r == 0) {
		errno = 0;
		const struct dirent *entry = readdir(dir);
		if (!entry) {
			if (errno)
				r = error_set(
					walk->err, -errno, "reading a folder: %s", strerror(errno));
			break;
		}
		if (entry->d_name[0] != '.')
			r = walk_entry(walk, fd, entry->d_name, path_length, depth);
	}
	closedir(dir);
	return r;
}

static int compare_entries(const void *a, const void *b, void *text)
{
	const struct listing_entry *x = a, *y = b;

	return strcmp((const char *)text + x->path, (const char *)text + y->path);
}

int listing_read(int root_fd, int skip_fd, struct complaints *complaints, struct listing *ret,
	struct error *err)
{
	struct walk *walk = calloc(1, sizeof(*walk));

	*ret = (struct listing){0};
	if (!walk)
		return error_set(err, -ENOMEM, "no memory to list the picture files");
	walk->listing = ret;
	walk->complaints = complaints;
	walk->err = err;
	int r = skip_fd >= 0 ? sys_fstat(skip_fd, &walk->skip) : 0;
	int fd = r < 0 ? r : sys_openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		r = error_set(err, fd, "opening it: %s", strerror(-fd));
	else
		r = walk_folder(walk, fd, 0, 0);
	free(walk);
	if (r < 0) {
		listing_fini(ret);
		return r;
	}
	if (ret->count)
		qsort_r(ret->entries, ret->count, sizeof(*ret->entries), compare_entries,
			ret->text);
	return 0;
}

struct listing_difference listing_compare(const struct listing *before, const struct listing *after)
{
	struct listing_difference difference = {0};
	uint64_t i = 0, j = 0;

	while (i < before->count && j < after->count) {
		const struct listing_entry *a = &before->entries[i], *b = &after->entries[j];
		int order = strcmp(before->text + a->path, after->text + b->path);
		if (order == 0)
			difference.changed += a->size != b->size || a->mtime_ns != b->mtime_ns;
		difference.removed += order < 0;
		difference.added += order > 0;
		i += order <= 0;
		j += order >= 0;
	}
	difference.removed += before->count - i;
	difference.added += after->count - j;
	return difference;
}
