/* A run's folder under TMPDIR with a small model, for the tests of store/. Content is a function of
 * the step, so a test can tell which state it was given back. */
#pragma once

#include "base/file.h"
#include "base/seal.h"
#include "base/sys.h"
#include "store/recovery.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PASS(call)                                                                                 \
	do {                                                                                       \
		if ((call) < 0)                                                                    \
			fail_msg("%s: %s", #call, fx->err.text);                                   \
	} while (0)

struct fixture {
	char dir[256];
	int run_fd, fd; /* the run's folder, its checkpoints */
	struct tensor_table table;
	struct config config;
	struct run run;
	uint64_t block_bytes, sum_count;
	uint8_t *block, *loaded; /* page-aligned: direct I/O */
	uint64_t *sums, *loaded_sums;
	struct state_record record;
	struct recovery_outcome outcome; /* of the last save */
	struct error err;
	char log[32768]; /* what was reported, one line each */
};

static inline void fixture_table(struct fixture *fx, uint32_t rows)
{
	const uint32_t large[] = {rows, 1024}, small[] = {5, 3}, one[] = {7};

	tensor_table_init(&fx->table);
	assert_int_equal(tensor_table_add(&fx->table, "conv_in.weight", 2, large), 0);
	assert_int_equal(tensor_table_add(&fx->table, "conv_out.weight", 2, small), 0);
	assert_int_equal(tensor_table_add(&fx->table, "conv_out.bias", 1, one), 0);
	assert_int_equal(tensor_table_layout(&fx->table, &fx->err), 0);
}

static inline void fixture_report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	struct fixture *fx = context;
	size_t used = strlen(fx->log);

	snprintf(fx->log + used, sizeof(fx->log) - used, "%s: %s\n", kind, text);
}

static inline bool fixture_told(struct fixture *fx, const char *text)
{
	return strstr(fx->log, text) != NULL;
}

static inline int fixture_setup_rows(void **state, uint32_t rows)
{
	struct fixture *fx = calloc(1, sizeof(*fx));
	const char *tmp = getenv("TMPDIR");

	assert_non_null(fx);
	*state = fx;
	sys_fault_plan(NULL);
	snprintf(fx->dir, sizeof(fx->dir), "%s/ckptd-store-XXXXXX", tmp != NULL ? tmp : "/tmp");
	assert_non_null(mkdtemp(fx->dir));
	fx->run_fd = run_open_dir(fx->dir, true, &fx->err);
	assert_true(fx->run_fd >= 0);
	fx->fd = openat(fx->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fx->fd >= 0);
	fixture_table(fx, rows);
	config_defaults(&fx->config);
	PASS(run_create(fx->run_fd, &fx->config, &fx->run, &fx->err));
	fx->block_bytes = SECTION_COUNT * fx->table.section_bytes;
	fx->sum_count = fx->block_bytes / SEAL_CHUNK_BYTES;
	fx->block = aligned_alloc(4096, fx->block_bytes);
	fx->loaded = aligned_alloc(4096, fx->block_bytes);
	fx->sums = calloc(fx->sum_count, sizeof(uint64_t));
	fx->loaded_sums = calloc(fx->sum_count, sizeof(uint64_t));
	return 0;
}

/* Sections of 2 MiB, two chunks. */
static inline int fixture_setup(void **state)
{
	return fixture_setup_rows(state, 300);
}

/* Sections of 1 MiB, one chunk: for what saves often. */
static inline int fixture_setup_small(void **state)
{
	return fixture_setup_rows(state, 100);
}

static inline int fixture_unlink(
	const char *path, const struct stat *stat, int type, struct FTW *at)
{
	return remove(path);
}

static inline int fixture_teardown(void **state)
{
	struct fixture *fx = *state;

	sys_fault_plan(NULL);
	close(fx->fd);
	close(fx->run_fd);
	nftw(fx->dir, fixture_unlink, 16, FTW_DEPTH | FTW_PHYS);
	tensor_table_fini(&fx->table);
	run_fini(&fx->run);
	free(fx->block);
	free(fx->loaded);
	free(fx->sums);
	free(fx->loaded_sums);
	free(fx);
	return 0;
}

/* The state of (branch, step), sealed. */
static inline void fixture_state(struct fixture *fx, uint32_t branch, uint64_t step)
{
	struct state_record *record = &fx->record;

	memset(fx->block, 0, fx->block_bytes);
	for (int section = 0; section < SECTION_COUNT; section++) {
		float *values = (float *)(fx->block + section * fx->table.section_bytes);

		for (uint64_t i = 0; i < fx->table.param_count; i++)
			values[i] = (float)step + (float)section * 0.25f + (float)(i % 1021);
	}
	seal_sums(fx->block, fx->block_bytes, fx->sums);
	memset(record, 0, sizeof(*record));
	record->sequence = step + 1;
	record->slot_sequence = step + 1;
	record->branch = branch;
	memcpy(record->run_id, fx->run.id, STATE_RUN_ID_SIZE);
	record->step = step;
	record->update_count = step;
	record->images_seen = step * 16;
	record->trained_ns = step * (uint64_t)NSEC_PER_SEC;
	record->loss = 0.125f;
	record->model_digest = tensor_table_digest(&fx->table);
	record->sums_digest = digest_of(fx->sums, fx->sum_count * sizeof(uint64_t));
	state_record_seal(record);
}

static inline struct checkpoint_source fixture_source(struct fixture *fx)
{
	return (struct checkpoint_source){
		.record = &fx->record,
		.block = fx->block,
		.sums = fx->sums,
		.table = &fx->table,
		.config = &fx->config,
		.attempt = 1,
		.threads = 1, /* children are forked: no other threads */
	};
}

static inline int fixture_try_save(
	struct fixture *fx, uint32_t branch, uint64_t step, struct checkpoint_saved *ret)
{
	struct checkpoint_source source;

	fixture_state(fx, branch, step);
	source = fixture_source(fx);
	return checkpoint_save(fx->fd, &source, ret, &fx->err);
}

/* All nine steps. */
static inline struct checkpoint_saved fixture_save(
	struct fixture *fx, uint32_t branch, uint64_t step)
{
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, branch, step, &saved));
	source = fixture_source(fx);
	PASS(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config, &fx->outcome,
		fixture_report, fx, &fx->err));
	assert_true(fx->outcome.catalogued);
	return saved;
}

static inline struct recovery_summary fixture_prepare(struct fixture *fx)
{
	struct recovery_summary summary;

	PASS(recovery_prepare(
		fx->dir, fx->run_fd, &fx->run, fixture_report, fx, &summary, &fx->err));
	return summary;
}

static inline int fixture_try_load(struct fixture *fx, struct checkpoint_info *ret)
{
	return recovery_load(fx->dir, fx->run_fd, &fx->run, &fx->table, fx->loaded, fx->loaded_sums,
		1, NULL, fixture_report, fx, ret, &fx->err);
}

/* Loads, and fails unless it is (branch, step), bit for bit. */
static inline void fixture_expect_load(struct fixture *fx, uint32_t branch, uint64_t step)
{
	struct checkpoint_info info;

	PASS(fixture_try_load(fx, &info));
	if (info.record.step != step || info.record.branch != branch)
		fail_msg("loaded %s, not step %llu of branch %u; told:\n%s", info.id,
			(unsigned long long)step, branch, fx->log);
	fixture_state(fx, branch, step);
	assert_memory_equal(fx->loaded, fx->block, fx->block_bytes);
	assert_memory_equal(fx->loaded_sums, fx->sums, fx->sum_count * sizeof(uint64_t));
	assert_memory_equal(&info.record, &fx->record, sizeof(info.record));
	checkpoint_info_fini(&info);
}

static inline void fixture_name(uint32_t branch, uint64_t step, char name[64])
{
	char id[CHECKPOINT_ID_SIZE];

	checkpoint_id_format(step, branch, id);
	snprintf(name, 64, "%s%s", id, CHECKPOINT_SUFFIX);
}

/* Its row in the catalog; false when there is none. */
static inline bool fixture_row(struct fixture *fx, const char *id, struct catalog_row *ret)
{
	struct catalog *catalog;
	int rc;

	PASS(catalog_open(fx->dir, CATALOG_READ, &catalog, &fx->err));
	rc = catalog_get(catalog, id, ret, &fx->err);
	catalog_close(catalog);
	return rc == 0;
}

/* The state that the catalog gives it; -1 when there is no row. */
static inline int fixture_row_state(struct fixture *fx, uint32_t branch, uint64_t step)
{
	char id[CHECKPOINT_ID_SIZE];
	struct catalog_row row;

	checkpoint_id_format(step, branch, id);
	return fixture_row(fx, id, &row) ? (int)row.state : -1;
}

static inline bool fixture_exists(int dir_fd, const char *name)
{
	return faccessat(dir_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static inline uint64_t fixture_file_bytes(int dir_fd, const char *name)
{
	struct stat stat;

	assert_int_equal(fstatat(dir_fd, name, &stat, AT_SYMLINK_NOFOLLOW), 0);
	return (uint64_t)stat.st_size;
}

static inline void fixture_flip(int dir_fd, const char *name, uint64_t offset)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

static inline void fixture_truncate(int dir_fd, const char *name, uint64_t size)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static inline void fixture_write(int dir_fd, const char *name, const void *data, size_t size)
{
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, size), (ssize_t)size);
	close(fd);
}

static inline void fixture_keep(struct fixture *fx, const struct digest *root)
{
	char name[80];

	digest_to_hex(root, name);
	strcat(name, ".keep");
	fixture_write(fx->fd, name, "", 0);
}

/* A copy of tests/golden/from. Its size. */
static inline size_t fixture_golden(int dir_fd, const char *from, const char *to)
{
	const char *source = getenv("CKPTD_SOURCE");
	char path[512], *data;
	size_t size;

	snprintf(path, sizeof(path), "%s/tests/golden/%s", source != NULL ? source : ".", from);
	assert_int_equal(file_read_all(AT_FDCWD, path, 1 << 20, &data, &size), 0);
	fixture_write(dir_fd, to, data, size);
	free(data);
	return size;
}

/* Runs body in a child under a fault plan; true when SIGKILL ended it. */
static inline bool fixture_dies(
	struct fixture *fx, const char *plan, void (*body)(struct fixture *fx))
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (sys_fault_plan(plan) < 0)
			_exit(99);
		body(fx);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WIFEXITED(status) && WEXITSTATUS(status) != 0);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}
