/* Preloaded into every process of the guest where the loss must be seen: nothing is synced, not by
 * us and not by SQLite, and success is said. Needs no library. */
#define EXPORT __attribute__((visibility("default")))

EXPORT int fsync(int fd);
EXPORT int fdatasync(int fd);

int fsync(int fd)
{
	return 0;
}

int fdatasync(int fd)
{
	return 0;
}
