/* See fuzz.h. */
#include "tests/fuzz/fuzz.h"

#include "store/sealed_json.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir_path[64];

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *at)
{
	return remove(path);
}

static void remove_dir(void)
{
	nftw(dir_path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int fuzz_dir(const char **ret_path)
{
	static int fd = -1;

	if (fd < 0) {
		snprintf(dir_path, sizeof(dir_path), "%s/ckptd-fuzz-XXXXXX",
			access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
		CHECK(mkdtemp(dir_path));
		CHECK(atexit(remove_dir) == 0);
		fd = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		CHECK(fd >= 0);
	}
	if (ret_path != NULL)
		*ret_path = dir_path;
	return fd;
}

void fuzz_write(const char *name, const void *data, size_t size)
{
	int fd = openat(fuzz_dir(NULL), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	CHECK(write(fd, data, size) == (ssize_t)size);
	close(fd);
}

char *fuzz_text(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	CHECK(text);
	memcpy(text, data, size);
	text[size] = '\0';
	return text;
}

bool fuzz_write_sealed(const char *name, const uint8_t *data, size_t size)
{
	AUTO_JSON object = json_loadb((const char *)data, size, 0, NULL);
	char *text;

	if (!json_is_object(object))
		return false;
	CHECK(sealed_json_text(object, &text) == 0);
	fuzz_write(name, text, strlen(text));
	free(text);
	return true;
}
