/* SQLite's own "unix" file system does the work: locks, shared memory and the rules of when to sync
 * stay its own. Its table of system calls is pointed at base/sys.h; fsync is not in that table, so
 * a second file system, which is the first one with another xSync, does that.
 *
 * Syncs of folders follow SQLite's wish to open the folder, which it has only in order to sync it.
 * Shared memory (-shm) is stored to through a mapping and is rebuilt after a crash. */
#include "store/database.h"

#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define VFS_NAME "ckptd"
#define PATH_SIZE 4096
#define METHODS_MAX 8
#define SHM_PAGE 4096 /* what SQLite takes for one there */
#define BESIDE_AT(size) (((size_t)(size) + 15) / 16 * 16)

static sqlite3_vfs *unix_vfs;
static sqlite3_vfs our_vfs;
/* SQLite has a table of methods for each kind of locks (a log takes none), and we one beside each.
 */
static struct methods {
	const sqlite3_io_methods *theirs;
	sqlite3_io_methods ours;
} methods[METHODS_MAX];
static pthread_mutex_t methods_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
/* What the latest open of this thread gave: how xOpen learns the descriptor of its file. */
static _Thread_local int opened_fd = -1;

/* -- the table of system calls: -1 and errno -- */

static int answer(int code)
{
	if (code >= 0)
		return code;
	errno = -code;
	return -1;
}

static int call_open(const char *path, int flags, int mode)
{
	int fd = sys_db_open(path, flags, (mode_t)mode);

	if (fd >= 0)
		opened_fd = fd;
	return answer(fd);
}

static int call_close(int fd)
{
	return answer(sys_db_close(fd));
}

static ssize_t call_pread(int fd, void *data, size_t size, off_t offset)
{
	ssize_t got = sys_db_pread(fd, data, size, offset);

	return got < 0 ? answer((int)got) : got;
}

/* SQLite makes the shared memory longer by one byte at the end of each new page, so that blocks are
 * there before it stores through a mapping. Where blocks are smaller than pages that leaves holes,
 * and a store into one on a full disk is a SIGBUS: the whole page is written instead. */
static ssize_t fill_page(int fd, off_t offset)
{
	static const char zeros[SHM_PAGE];
	off_t begin = offset + 1 - SHM_PAGE;

	for (size_t done = 0; done < sizeof(zeros);) {
		ssize_t put = sys_db_pwrite(fd, zeros, sizeof(zeros) - done, begin + (off_t)done);

		if (put <= 0)
			return answer(put < 0 ? (int)put : -ENOSPC);
		done += (size_t)put;
	}
	return 1;
}

static ssize_t call_pwrite(int fd, const void *data, size_t size, off_t offset)
{
	if (size == 1 && *(const char *)data == 0 && (offset + 1) % SHM_PAGE == 0)
		return fill_page(fd, offset);
	ssize_t put = sys_db_pwrite(fd, data, size, offset);

	return put < 0 ? answer((int)put) : put;
}

/* SQLite seeks first; the position moves as it would. */
static ssize_t call_read(int fd, void *data, size_t size)
{
	off_t offset = lseek(fd, 0, SEEK_CUR);
	ssize_t got = offset < 0 ? -1 : call_pread(fd, data, size, offset);

	if (got > 0 && lseek(fd, got, SEEK_CUR) < 0)
		return -1;
	return got;
}

static ssize_t call_write(int fd, const void *data, size_t size)
{
	off_t offset = lseek(fd, 0, SEEK_CUR);
	ssize_t put = offset < 0 ? -1 : call_pwrite(fd, data, size, offset);

	if (put > 0 && lseek(fd, put, SEEK_CUR) < 0)
		return -1;
	return put;
}

static int call_ftruncate(int fd, off_t size)
{
	return answer(sys_db_ftruncate(fd, size));
}

static int call_unlink(const char *path)
{
	return answer(sys_db_unlink(path));
}

/* The folder of the file `path`, synced; SQLite's own sync of it that follows is an idle one. */
static int call_open_directory(const char *path, int *ret_fd)
{
	char folder[PATH_SIZE];
	const char *slash = strrchr(path, '/');
	size_t length = slash != NULL ? (size_t)(slash - path) : 0;
	int fd, code;

	*ret_fd = -1;
	if (length == 0 || length >= sizeof(folder))
		return SQLITE_CANTOPEN;
	memcpy(folder, path, length);
	folder[length] = '\0';
	fd = sys_db_open(folder, O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0)
		return SQLITE_CANTOPEN;
	code = sys_db_fsync(fd);
	if (code != 0) {
		sys_db_close(fd);
		/* Skipped by a plan: SQLite goes on without a folder that it cannot open. */
		return code < 0 ? SQLITE_IOERR_DIR_FSYNC : SQLITE_CANTOPEN;
	}
	*ret_fd = fd;
	return SQLITE_OK;
}

/* A call that this build of SQLite does not make has no entry. */
static void point_calls_here(void)
{
	static const struct {
		const char *name;
		sqlite3_syscall_ptr call;
	} calls[] = {
		{"open", (sqlite3_syscall_ptr)call_open},
		{"close", (sqlite3_syscall_ptr)call_close},
		{"read", (sqlite3_syscall_ptr)call_read},
		{"pread", (sqlite3_syscall_ptr)call_pread},
		{"pread64", (sqlite3_syscall_ptr)call_pread},
		{"write", (sqlite3_syscall_ptr)call_write},
		{"pwrite", (sqlite3_syscall_ptr)call_pwrite},
		{"pwrite64", (sqlite3_syscall_ptr)call_pwrite},
		{"ftruncate", (sqlite3_syscall_ptr)call_ftruncate},
		{"unlink", (sqlite3_syscall_ptr)call_unlink},
		{"openDirectory", (sqlite3_syscall_ptr)call_open_directory},
	};

	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (unix_vfs->xGetSystemCall(unix_vfs, calls[i].name) != NULL)
			CHECK(unix_vfs->xSetSystemCall(unix_vfs, calls[i].name, calls[i].call) ==
				SQLITE_OK);
}

/* -- the second file system -- */

/* What stands behind SQLite's own file, where szOsFile made room for it. */
struct beside {
	const struct methods *methods;
	int fd;
};

static struct beside *beside(sqlite3_file *file)
{
	return (struct beside *)((char *)file + BESIDE_AT(unix_vfs->szOsFile));
}

/* Ours first: SQLite's then finds nothing dirty, but may still owe the sync of a new file's folder.
 * After an error it must not come, since it would succeed. */
static int file_sync(sqlite3_file *file, int flags)
{
	struct beside *ours = beside(file);

	int rc = ours->fd >= 0 ? sys_db_fsync(ours->fd) : 0;

	if (rc < 0)
		return SQLITE_IOERR_FSYNC;
	if (rc > 0)
		return SQLITE_OK; /* skipped by a plan: nobody makes up for it */
	return ours->methods->theirs->xSync(file, flags);
}

static const struct methods *methods_for(const sqlite3_io_methods *theirs)
{
	int i = 0;

	pthread_mutex_lock(&methods_lock);
	while (methods[i].theirs != NULL && methods[i].theirs != theirs)
		CHECK(++i < METHODS_MAX);
	if (methods[i].theirs == NULL) {
		methods[i].ours = *theirs;
		methods[i].ours.xSync = file_sync;
		methods[i].theirs = theirs;
	}
	pthread_mutex_unlock(&methods_lock);
	return &methods[i];
}

static int vfs_open(
	sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *ret_flags)
{
	int rc;

	opened_fd = -1;
	rc = unix_vfs->xOpen(unix_vfs, name, file, flags, ret_flags);
	if (file->pMethods != NULL) {
		*beside(file) = (struct beside){methods_for(file->pMethods), opened_fd};
		file->pMethods = &beside(file)->methods->ours;
	}
	return rc;
}

static void set_up(void)
{
	CHECK(sqlite3_initialize() == SQLITE_OK);
	unix_vfs = sqlite3_vfs_find("unix");
	CHECK(unix_vfs != NULL && unix_vfs->iVersion >= 3);
	point_calls_here();
	our_vfs = *unix_vfs;
	our_vfs.pNext = NULL;
	our_vfs.zName = VFS_NAME;
	our_vfs.szOsFile = (int)(BESIDE_AT(unix_vfs->szOsFile) + sizeof(struct beside));
	our_vfs.xOpen = vfs_open;
	CHECK(sqlite3_vfs_register(&our_vfs, 0) == SQLITE_OK);
}

const char *database_vfs(void)
{
	pthread_once(&once, set_up);
	return VFS_NAME;
}
