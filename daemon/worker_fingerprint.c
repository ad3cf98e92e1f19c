/* See worker_fingerprint.h. */
#include "daemon/worker_fingerprint.h"

#include "base/sys.h"
#include "daemon/ops/engine.h"
#include "daemon/worker_cpu.h"

#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* The build's id is the digest of the program itself: any change of code or compiler shows. */
static int digest_self(struct digest *ret, struct error *err)
{
	int fd = sys_openat(AT_FDCWD, "/proc/self/exe", O_RDONLY | O_CLOEXEC, 0);
	struct stat file;
	void *bytes;
	int r;

	if (fd < 0)
		return error_set(err, fd, "cannot read /proc/self/exe: %s", strerror(-fd));
	r = sys_fstat(fd, &file);
	bytes = r < 0 ? MAP_FAILED
		      : mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED) {
		r = r < 0 ? r : -errno;
		sys_close(fd);
		return error_set(err, r, "cannot map /proc/self/exe: %s", strerror(-r));
	}
	*ret = digest_of(bytes, (size_t)file.st_size);
	munmap(bytes, (size_t)file.st_size);
	sys_close(fd);
	return 0;
}

int worker_fingerprint(struct digest *ret, char *text, size_t size, struct error *err)
{
	char cpu[512], build[DIGEST_HEX_SIZE];
	struct digest self;
	int r = digest_self(&self, err);

	if (r < 0)
		return r;
	digest_to_hex(&self, build);
	build[16] = 0;
	worker_cpu_text(cpu, sizeof(cpu));
	snprintf(text, size, "ckptd %s build %s; %s; glibc %s; %s", CKPTD_VERSION, build,
		engine_openblas()->library(), gnu_get_libc_version(), cpu);
	*ret = digest_of(text, strlen(text));
	return 0;
}
