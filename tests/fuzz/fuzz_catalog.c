/* catalog.sqlite, whatever is in it: opened, listed, and written to. */
#include "store/catalog.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void look(struct catalog *catalog)
{
	struct catalog_row *rows, row;
	uint32_t count, bad;
	struct error err;

	if (catalog_list(catalog, &rows, &count, &bad, &err) < 0)
		return;
	for (uint32_t i = 0; i < count; i++) {
		CHECK(rows[i].state <= CHECKPOINT_DELETED);
		CHECK(memchr(rows[i].id, '\0', sizeof(rows[i].id)) != NULL);
		CHECK(catalog_get(catalog, rows[i].id, &row, &err) == 0);
	}
	free(rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *dir;
	int fd = fuzz_dir(&dir);
	struct catalog *catalog;
	struct catalog_row *rows;
	uint32_t count, bad;
	struct error err;

	unlinkat(fd, "catalog.sqlite-wal", 0);
	unlinkat(fd, "catalog.sqlite-shm", 0);
	fuzz_write("catalog.sqlite", data, size);
	if (catalog_open(dir, CATALOG_READ, &catalog, &err) == 0) {
		look(catalog);
		catalog_close(catalog);
	}
	if (catalog_list_version_1(dir, &rows, &count, &bad, &err) == 0)
		free(rows);
	if (catalog_open(dir, CATALOG_WRITE, &catalog, &err) == 0) {
		catalog_set_state(
			catalog, "step-000004711-b0002", CHECKPOINT_CORRUPT, "fuzz", &err);
		catalog_prune(catalog, 1, &err);
		look(catalog);
		catalog_close(catalog);
	}
	return 0;
}
