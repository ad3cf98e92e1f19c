/* Every file of the committed corpora through its target, as an ordinary test: what was once found
 * stays found, and what was accepted is still. Usage: NAME FOLDER. */
#include "tests/fuzz/fuzz.h"

#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define INPUT_MAX (1 << 20)

static int replay(const char *folder)
{
	DIR *dir = opendir(folder);
	int count = 0;

	for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
		char *data;
		size_t size;

		if (entry->d_name[0] == '.')
			continue;
		if (file_read_all(dirfd(dir), entry->d_name, INPUT_MAX, &data, &size) < 0)
			continue;
		printf("# %s\n", entry->d_name);
		fflush(stdout);
		LLVMFuzzerTestOneInput((const uint8_t *)data, size);
		free(data);
		count++;
	}
	if (dir != NULL)
		closedir(dir);
	return count;
}

int main(int argc, char **argv)
{
	int count = argc == 2 ? replay(argv[1]) : 0;

	printf("1..1\n%sok 1 - %d inputs of %s\n", count > 0 ? "" : "not ", count,
		argc == 2 ? argv[1] : "no folder");
	return count > 0 ? 0 : 1;
}
