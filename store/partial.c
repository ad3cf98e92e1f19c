/* See store/partial.h. */
#include "store/partial.h"

#include "base/file.h"
#include "base/sys.h"
#include "store/checkpoint.h"

#include <errno.h>
#include <fcntl.h>

int partial_create(int folder_fd, const char *name, bool direct, struct partial *ret)
{
	const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	int fd = sys_openat(folder_fd, name, flags, 0640);

	if (fd == -EEXIST && sys_unlinkat(folder_fd, name) == 0)
		fd = sys_openat(folder_fd, name, flags, 0640);
	if (fd < 0)
		return fd;
	*ret = (struct partial){.fd = fd, .direct = -1};
	if (direct)
		ret->direct = sys_openat(
			folder_fd, name, O_RDWR | O_DIRECT | O_NOFOLLOW | O_CLOEXEC, 0);
	return 0;
}

int partial_write(const struct partial *partial, const void *chunk, off_t offset)
{
	if (partial->direct >= 0) {
		int rc = file_write_exact(partial->direct, chunk, CHECKPOINT_CHUNK_BYTES, offset);

		if (rc != -EINVAL)
			return rc;
		/* A file system that takes O_DIRECT and then not these bytes. */
	}
	return file_write_exact(partial->fd, chunk, CHECKPOINT_CHUNK_BYTES, offset);
}

void partial_close(struct partial *partial)
{
	if (partial->direct >= 0)
		sys_close(partial->direct);
	if (partial->fd >= 0)
		sys_close(partial->fd);
	*partial = (struct partial){-1, -1};
}
