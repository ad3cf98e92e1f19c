/* See tests/crash/trace.h. What cannot be recorded ends the process: a trace with a hole shows
 * nothing. */
#include "tests/crash/trace.h"

#include "base/panic.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const uint8_t zeros[TRACE_PAGE];

static void *grow(void *array, uint32_t *count, size_t size)
{
	if ((*count & (*count - 1)) == 0) {
		array = realloc(array, (*count == 0 ? 1 : (size_t)*count * 2) * size);
		CHECK(array != NULL);
	}
	memset((uint8_t *)array + *count * size, 0, size);
	(*count)++;
	return array;
}

/* -- content -- */

static void reserve_pages(struct trace_content *content, uint64_t size)
{
	uint32_t count = (uint32_t)((size + TRACE_PAGE - 1) / TRACE_PAGE);

	if (count <= content->page_count)
		return;
	content->pages = realloc(content->pages, count * sizeof(*content->pages));
	content->owned = realloc(content->owned, count * sizeof(*content->owned));
	CHECK(content->pages != NULL && content->owned != NULL);
	for (uint32_t i = content->page_count; i < count; i++) {
		content->pages[i] = NULL;
		content->owned[i] = false;
	}
	content->page_count = count;
}

static void drop_page(struct trace_content *content, uint32_t page)
{
	if (content->owned[page])
		free((void *)(uintptr_t)content->pages[page]);
	content->owned[page] = false;
	content->pages[page] = NULL;
}

static uint8_t *own_page(struct trace_content *content, uint32_t page)
{
	uint8_t *copy;

	if (content->owned[page])
		return (uint8_t *)(uintptr_t)content->pages[page];
	copy = malloc(TRACE_PAGE);
	CHECK(copy != NULL);
	memcpy(copy, content->pages[page] != NULL ? content->pages[page] : zeros, TRACE_PAGE);
	content->pages[page] = copy;
	content->owned[page] = true;
	return copy;
}

/* Whole pages point into data, which must live as long. */
void trace_content_write(
	struct trace_content *content, uint64_t offset, const uint8_t *data, uint64_t size)
{
	reserve_pages(content, offset + size);
	if (content->size < offset + size)
		content->size = offset + size;
	while (size > 0) {
		uint32_t page = (uint32_t)(offset / TRACE_PAGE), at = offset % TRACE_PAGE;
		uint64_t piece = TRACE_PAGE - at < size ? TRACE_PAGE - at : size;

		if (piece < TRACE_PAGE) {
			memcpy(own_page(content, page) + at, data, piece);
		} else {
			drop_page(content, page);
			if (memcmp(data, zeros, TRACE_PAGE) != 0)
				content->pages[page] = data;
		}
		offset += piece;
		data += piece;
		size -= piece;
	}
}

void trace_content_resize(struct trace_content *content, uint64_t size)
{
	uint32_t keep = (uint32_t)((size + TRACE_PAGE - 1) / TRACE_PAGE);

	for (uint32_t i = keep; i < content->page_count; i++)
		drop_page(content, i);
	if (size < content->size && size % TRACE_PAGE != 0 && content->pages[keep - 1] != NULL)
		memset(own_page(content, keep - 1) + size % TRACE_PAGE, 0,
			TRACE_PAGE - size % TRACE_PAGE);
	reserve_pages(content, size);
	content->size = size;
}

void trace_content_copy(const struct trace_content *from, struct trace_content *ret)
{
	memset(ret, 0, sizeof(*ret));
	reserve_pages(ret, from->size);
	ret->size = from->size;
	for (uint32_t i = 0; i < ret->page_count; i++)
		ret->pages[i] = from->pages[i];
}

void trace_content_fini(struct trace_content *content)
{
	for (uint32_t i = 0; i < content->page_count; i++)
		drop_page(content, i);
	free(content->pages);
	free(content->owned);
	memset(content, 0, sizeof(*content));
}

/* -- the folder as it was -- */

static void read_content(int folder_fd, const char *name, struct trace_content *content)
{
	int fd = openat(folder_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct stat stat;

	CHECK(fd >= 0 && fstat(fd, &stat) == 0);
	trace_content_resize(content, (uint64_t)stat.st_size);
	for (uint32_t i = 0; i < content->page_count; i++) {
		uint8_t page[TRACE_PAGE] = {0};

		CHECK(pread(fd, page, TRACE_PAGE, (off_t)i * TRACE_PAGE) > 0);
		if (memcmp(page, zeros, TRACE_PAGE) != 0)
			memcpy(own_page(content, i), page, TRACE_PAGE);
	}
	close(fd);
}

static bool is_ignored(const char *name)
{
	size_t length = strlen(name);

	return length > 4 && strcmp(name + length - 4, "-shm") == 0;
}

static uint32_t add_node(struct trace *trace, const char *name, bool folder, ino_t inode)
{
	struct trace_node *node;

	trace->nodes = grow(trace->nodes, &trace->node_count, sizeof(*trace->nodes));
	node = &trace->nodes[trace->node_count - 1];
	node->folder = folder;
	node->inode = inode;
	node->ignored = is_ignored(name);
	snprintf(node->label, sizeof(node->label), "%.95s", name);
	return trace->node_count - 1;
}

static void take_folder(struct trace *trace, int fd, uint32_t folder)
{
	DIR *dir = fdopendir(fd);
	struct dirent *entry;

	CHECK(dir != NULL);
	while ((entry = readdir(dir)) != NULL) {
		struct trace_entry *known;
		struct stat stat;
		uint32_t node;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
			is_ignored(entry->d_name))
			continue;
		CHECK(fstatat(fd, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW) == 0);
		node = add_node(trace, entry->d_name, S_ISDIR(stat.st_mode), stat.st_ino);
		trace->entries = grow(trace->entries, &trace->entry_count, sizeof(*trace->entries));
		known = &trace->entries[trace->entry_count - 1];
		known->folder = folder;
		known->node = node;
		snprintf(known->name, sizeof(known->name), "%.95s", entry->d_name);
		if (S_ISDIR(stat.st_mode))
			take_folder(trace,
				openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
				node);
		else
			read_content(fd, entry->d_name, &trace->nodes[node].content);
	}
	closedir(dir);
}

/* -- operations -- */

/* An inode may be given again: the latest node with it counts. */
static bool find_node(const struct trace *trace, ino_t inode, uint32_t *ret)
{
	for (uint32_t i = trace->node_count; i-- > 0;)
		if (trace->nodes[i].inode == inode) {
			*ret = i;
			return true;
		}
	return false;
}

static bool node_of_fd(const struct trace *trace, int fd, uint32_t *ret)
{
	struct stat stat;

	return fstat(fd, &stat) == 0 && find_node(trace, stat.st_ino, ret);
}

/* The folder that holds path, and the last part of it. */
static bool locate(const struct trace *trace, const struct sys_op *op, const char *path,
	uint32_t *ret_folder, char name[TRACE_NAME_MAX])
{
	const char *slash = strrchr(path, '/');
	char parent[512];
	struct stat stat;

	snprintf(name, TRACE_NAME_MAX, "%.95s", slash != NULL ? slash + 1 : path);
	snprintf(parent, sizeof(parent), "%.*s", slash != NULL ? (int)(slash - path) : 1,
		slash != NULL ? path : ".");
	return fstatat(op->dir_fd, parent, &stat, 0) == 0 &&
		find_node(trace, stat.st_ino, ret_folder);
}

static struct trace_op *add_op(struct trace *trace, enum trace_kind kind)
{
	trace->ops = grow(trace->ops, &trace->op_count, sizeof(*trace->ops));
	trace->ops[trace->op_count - 1].kind = kind;
	return &trace->ops[trace->op_count - 1];
}

/* The node that a name stands for after all of the operations so far. */
static bool lookup(const struct trace *trace, uint32_t folder, const char *name, uint32_t *ret)
{
	for (uint32_t i = trace->op_count; i-- > 0;) {
		const struct trace_op *op = &trace->ops[i];

		if (op->kind > TRACE_UNLINK || op->folder != folder)
			continue;
		if ((op->kind == TRACE_RENAME || op->kind == TRACE_LINK) &&
			strcmp(op->to, name) == 0) {
			*ret = op->node;
			return true;
		}
		if (op->kind == TRACE_LINK || strcmp(op->name, name) != 0)
			continue;
		*ret = op->node;
		return op->kind == TRACE_CREATE || op->kind == TRACE_MKDIR;
	}
	for (uint32_t i = 0; i < trace->entry_count; i++)
		if (trace->entries[i].folder == folder &&
			strcmp(trace->entries[i].name, name) == 0) {
			*ret = trace->entries[i].node;
			return true;
		}
	return false;
}

static void record_open(struct trace *trace, const struct sys_op *op)
{
	char name[TRACE_NAME_MAX];
	struct trace_op *added;
	struct stat stat;
	uint32_t folder, node;

	if (!locate(trace, op, op->path, &folder, name))
		return;
	if (lookup(trace, folder, name, &node)) {
		if ((op->flags & O_TRUNC) != 0 && !trace->nodes[node].ignored)
			add_op(trace, TRACE_RESIZE)->node = node;
		return;
	}
	if (is_ignored(name))
		return;
	CHECK(fstat(op->fd, &stat) == 0);
	node = add_node(trace, name, false, stat.st_ino);
	added = add_op(trace, TRACE_CREATE);
	added->node = node;
	added->folder = folder;
	snprintf(added->name, sizeof(added->name), "%s", name);
}

static void record_name(struct trace *trace, const struct sys_op *op)
{
	static const enum trace_kind kinds[] = {[SYS_OP_MKDIR] = TRACE_MKDIR,
		[SYS_OP_UNLINK] = TRACE_UNLINK,
		[SYS_OP_RENAME] = TRACE_RENAME,
		[SYS_OP_LINK] = TRACE_LINK};
	char name[TRACE_NAME_MAX], to[TRACE_NAME_MAX] = "";
	struct trace_op *added;
	uint32_t folder, node;
	struct stat stat;

	if (!locate(trace, op, op->path, &folder, name) || is_ignored(name))
		return;
	if (op->to != NULL)
		CHECK(locate(trace, op, op->to, &folder, to));
	if (op->kind == SYS_OP_MKDIR) {
		CHECK(fstatat(op->dir_fd, op->path, &stat, 0) == 0);
		node = add_node(trace, name, true, stat.st_ino);
	} else {
		CHECK(lookup(trace, folder, name, &node));
	}
	added = add_op(trace, kinds[op->kind]);
	added->node = node;
	added->folder = folder;
	memcpy(added->name, name, sizeof(name));
	memcpy(added->to, to, sizeof(to));
}

static void record_file(struct trace *trace, const struct sys_op *op)
{
	static const enum trace_kind kinds[] = {[SYS_OP_WRITE] = TRACE_WRITE,
		[SYS_OP_ALLOCATE] = TRACE_GROW,
		[SYS_OP_TRUNCATE] = TRACE_RESIZE,
		[SYS_OP_SYNC] = TRACE_SYNC};
	struct trace_op *added;
	uint32_t node;

	if (!node_of_fd(trace, op->fd, &node) || trace->nodes[node].ignored)
		return;
	added = add_op(trace, kinds[op->kind]);
	added->node = node;
	added->failed = op->result < 0;
	added->offset = op->offset;
	added->size = op->kind == SYS_OP_WRITE ? op->size : op->offset;
	if (op->kind == SYS_OP_WRITE) {
		added->data = malloc(op->size);
		CHECK(added->data != NULL);
		memcpy(added->data, op->data, op->size);
	}
}

static void record(void *context, const struct sys_op *op)
{
	switch (op->kind) {
	case SYS_OP_OPEN:
		record_open(context, op);
		break;
	case SYS_OP_MKDIR:
	case SYS_OP_UNLINK:
	case SYS_OP_RENAME:
	case SYS_OP_LINK:
		record_name(context, op);
		break;
	case SYS_OP_WRITE:
	case SYS_OP_ALLOCATE:
	case SYS_OP_TRUNCATE:
	case SYS_OP_SYNC:
		record_file(context, op);
		break;
	case SYS_OP_CLOSE:
		break;
	}
}

void trace_begin(struct trace *trace, const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat stat;

	memset(trace, 0, sizeof(*trace));
	CHECK(fd >= 0 && fstat(fd, &stat) == 0);
	snprintf(trace->dir, sizeof(trace->dir), "%.255s", dir);
	add_node(trace, "RUN", true, stat.st_ino);
	take_folder(trace, fd, 0);
	sys_trace_set(record, trace);
}

void trace_event(struct trace *trace, enum trace_event event, uint32_t value)
{
	struct trace_op *op = add_op(trace, TRACE_EVENT);

	op->event = event;
	op->value = value;
}

void trace_end(void)
{
	sys_trace_set(NULL, NULL);
}

void trace_fini(struct trace *trace)
{
	for (uint32_t i = 0; i < trace->op_count; i++)
		free(trace->ops[i].data);
	for (uint32_t i = 0; i < trace->node_count; i++)
		trace_content_fini(&trace->nodes[i].content);
	free(trace->nodes);
	free(trace->entries);
	free(trace->ops);
	memset(trace, 0, sizeof(*trace));
}

void trace_describe(const struct trace *trace, uint32_t op, char text[192])
{
	static const char *const kinds[] = {"create", "mkdir", "link", "rename", "unlink", "write",
		"grow", "resize", "fsync", "event"};
	static const char *const events[] = {
		"saved", "catalogued", "retiring", "branch", "kept", "wanted-asked", "wanted"};
	const struct trace_op *at = &trace->ops[op];

	if (at->kind == TRACE_EVENT)
		snprintf(text, 192, "event %s %u", events[at->event], at->value);
	else if (at->kind <= TRACE_UNLINK)
		snprintf(text, 192, "%s %.80s%s%.80s", kinds[at->kind], at->name,
			at->to[0] != '\0' ? " " : "", at->to);
	else
		snprintf(text, 192, "%s %s", kinds[at->kind], trace->nodes[at->node].label);
}
