/* See store/scan.h. */
#include "store/scan.h"

#include "store/checkpoint.h"
#include "base/sys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Room for one more element, zeroed; capacity doubles. NULL when memory is out. */
static void *push(void *array_pointer, uint32_t *count, size_t size)
{
	void **array = array_pointer;
	uint8_t *element;

	if ((*count & (*count - 1)) == 0) {
		size_t capacity = *count == 0 ? 1 : (size_t)*count * 2;
		void *grown = realloc(*array, capacity * size);

		if (grown == NULL)
			return NULL;
		*array = grown;
	}
	element = (uint8_t *)*array + (size_t)*count * size;
	memset(element, 0, size);
	(*count)++;
	return element;
}

static bool ends_with(const char *name, size_t length, const char *suffix)
{
	size_t n = strlen(suffix);

	return length > n && strcmp(name + length - n, suffix) == 0;
}

static int add_file(struct scan_file **files, uint32_t *count, const char *name, size_t id_length)
{
	char id[CHECKPOINT_ID_SIZE];
	struct scan_file file = {0}, *slot;

	if (id_length >= sizeof(id))
		return 0;
	memcpy(id, name, id_length);
	id[id_length] = '\0';
	if (checkpoint_id_parse(id, &file.step, &file.branch) < 0)
		return 0;
	snprintf(file.name, sizeof(file.name), "%s", name);
	slot = push(files, count, sizeof(file));
	if (slot == NULL)
		return -ENOMEM;
	*slot = file;
	return 0;
}

static int add_branch(struct scan *scan, const char *name)
{
	char canonical[SCAN_NAME_MAX];
	unsigned branch;
	uint32_t *slot;

	if (sscanf(name, "branch-%u.json", &branch) != 1 || branch < 2)
		return 0;
	snprintf(canonical, sizeof(canonical), "branch-%04u.json", branch);
	if (strcmp(canonical, name) != 0)
		return 0;
	slot = push(&scan->branches, &scan->branch_count, sizeof(*slot));
	if (slot == NULL)
		return -ENOMEM;
	*slot = branch;
	return 0;
}

static int add_keep(struct scan *scan, const char *name, size_t length)
{
	struct digest root, *slot;

	if (digest_from_hex(name, length - strlen(".keep"), &root) < 0)
		return 0;
	slot = push(&scan->keeps, &scan->keep_count, sizeof(*slot));
	if (slot == NULL)
		return -ENOMEM;
	*slot = root;
	return 0;
}

/* Hidden names that only a save or a small durable write can have left behind. */
static int add_leftover(struct scan *scan, const char *name)
{
	struct scan_name *slot;

	if (strncmp(name, ".step-", 6) != 0 && strncmp(name, ".branch-", 8) != 0)
		return 0;
	slot = push(&scan->leftovers, &scan->leftover_count, sizeof(*slot));
	if (slot == NULL)
		return -ENOMEM;
	snprintf(slot->name, sizeof(slot->name), "%s", name);
	return 0;
}

static int add_entry(struct scan *scan, const char *name)
{
	size_t length = strlen(name);
	const char *aside = strstr(name, CHECKPOINT_SUFFIX SCAN_ASIDE_INFIX);

	if (length >= SCAN_NAME_MAX)
		return 0;
	if (name[0] == '.')
		return add_leftover(scan, name);
	if (ends_with(name, length, CHECKPOINT_SUFFIX))
		return add_file(
			&scan->files, &scan->file_count, name, length - strlen(CHECKPOINT_SUFFIX));
	if (aside != NULL)
		return add_file(&scan->asides, &scan->aside_count, name, (size_t)(aside - name));
	if (ends_with(name, length, ".json"))
		return add_branch(scan, name);
	if (ends_with(name, length, ".keep"))
		return add_keep(scan, name, length);
	return 0;
}

static int newest_first(const void *a, const void *b)
{
	const struct scan_file *x = a, *y = b;

	if (x->step != y->step)
		return x->step > y->step ? -1 : 1;
	if (x->branch != y->branch)
		return x->branch > y->branch ? -1 : 1;
	return -strcmp(x->name, y->name);
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int read_entries(DIR *folder, struct scan *scan)
{
	for (uint32_t n = 0; n < SCAN_ENTRIES_MAX; n++) {
		struct dirent *entry;
		int rc = sys_fault("readdir");

		if (rc < 0 && rc != -EINTR)
			return rc;
		do {
			errno = 0;
			entry = readdir(folder);
		} while (entry == NULL && errno == EINTR);
		if (entry == NULL)
			return -errno;
		rc = add_entry(scan, entry->d_name);
		if (rc < 0)
			return rc;
	}
	return -E2BIG;
}

int scan_checkpoints(int checkpoints_fd, struct scan *ret, struct error *err)
{
	DIR *folder;
	int fd, rc;

	memset(ret, 0, sizeof(*ret));
	/* A descriptor of its own: a duplicate would share the reading position. */
	fd = sys_openat(checkpoints_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, fd, "cannot open the checkpoints folder: %s", strerror(-fd));
	folder = fdopendir(fd);
	if (folder == NULL) {
		rc = -errno;
		sys_close(fd);
		return error_set(err, rc, "cannot read the checkpoints folder: %s", strerror(-rc));
	}
	rc = read_entries(folder, ret);
	closedir(folder);
	if (rc < 0) {
		scan_fini(ret);
		return error_set(err, rc, "cannot read the checkpoints folder: %s", strerror(-rc));
	}
	if (ret->file_count > 0)
		qsort(ret->files, ret->file_count, sizeof(*ret->files), newest_first);
	if (ret->aside_count > 0)
		qsort(ret->asides, ret->aside_count, sizeof(*ret->asides), newest_first);
	if (ret->branch_count > 0)
		qsort(ret->branches, ret->branch_count, sizeof(*ret->branches), ascending);
	return 0;
}

void scan_fini(struct scan *scan)
{
	free(scan->files);
	free(scan->asides);
	free(scan->leftovers);
	free(scan->branches);
	free(scan->keeps);
	memset(scan, 0, sizeof(*scan));
}

void scan_keep_name(const struct digest *root, char name[SCAN_NAME_MAX])
{
	char hex[DIGEST_HEX_SIZE];

	digest_to_hex(root, hex);
	snprintf(name, SCAN_NAME_MAX, "%s.keep", hex);
}

bool scan_keeps(const struct scan *scan, const struct digest *root)
{
	for (uint32_t i = 0; i < scan->keep_count; i++)
		if (digest_equal(&scan->keeps[i], root))
			return true;
	return false;
}
