/* P7, P11: one checkpoint file. What is saved comes back bit for bit; whatever call fails at
 * whatever place, either nothing is published or all of it; what the device gives back differently,
 * or memory that no longer matches its seals, is never published. */
#include "tests/unit/store_fixture.h"

#include "store/checkpoint_header.h"
#include "store/safetensors.h"

#include <dirent.h>

#include "tests/lacks.h"

static uint32_t count_names(int dir_fd, const char *part)
{
	DIR *folder = fdopendir(openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *entry;
	uint32_t count = 0;

	assert_non_null(folder);
	while ((entry = readdir(folder)) != NULL)
		count += strstr(entry->d_name, part) != NULL;
	closedir(folder);
	return count;
}

static void ids_have_one_spelling(void **state)
{
	static const char *const bad[] = {"", "step-1-b1", "step-000000001-b0000",
		"step-000000001-b00001", "step-0000000001-b0001", "step-000000001-b0001 ",
		"step-000000001-b0001.safetensors", "step--00000001-b0001", "step-+00000001-b0001",
		"step-000000001-b-001", "Step-000000001-b0001", "step-99999999999999999999-b0001"};
	char id[CHECKPOINT_ID_SIZE];
	uint64_t step;
	uint32_t branch;

	checkpoint_id_format(12000, 2, id);
	assert_string_equal(id, "step-000012000-b0002");
	assert_int_equal(checkpoint_id_parse(id, &step, &branch), 0);
	assert_int_equal(step, 12000);
	assert_int_equal(branch, 2);
	checkpoint_id_format(UINT64_MAX, 9999, id);
	assert_int_equal(checkpoint_id_parse(id, &step, &branch), 0);
	assert_true(step == UINT64_MAX && branch == 9999);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(checkpoint_id_parse(bad[i], &step, &branch), -EINVAL);
	for (int i = CHECKPOINT_FOUND; i <= CHECKPOINT_DELETED; i++) {
		enum checkpoint_state parsed;

		assert_int_equal(checkpoint_state_parse(
					 checkpoint_state_name((enum checkpoint_state)i), &parsed),
			0);
		assert_int_equal(parsed, i);
	}
}

static void p11_round_trip(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct checkpoint_saved saved;
	_Atomic uint64_t moves = 0;
	float *section = malloc(fx->table.section_bytes);
	int fd;

	fx->config.keep_last = 7;
	PASS(fixture_try_save(fx, 1, 4711, &saved));
	assert_false(saved.already);
	assert_string_equal(saved.id, "step-000004711-b0001");
	assert_int_equal(count_names(fx->fd, "partial"), 0);
	fd = checkpoint_open(fx->fd, "step-000004711-b0001.safetensors", &info, &fx->err);
	PASS(fd);
	assert_true(digest_equal(&info.root, &saved.root));
	assert_string_equal(info.created, saved.created);
	assert_int_equal(info.data_offset % CHECKPOINT_DATA_ALIGN, 0);
	assert_int_equal(info.file_bytes, saved.file_bytes);
	assert_int_equal(info.block_bytes, fx->block_bytes);
	assert_int_equal(info.chunk_count, fx->block_bytes / CHECKPOINT_CHUNK_BYTES);
	assert_int_equal(info.config.keep_last, 7);
	assert_memory_equal(&info.record, &fx->record, sizeof(info.record));
	for (uint32_t threads = 0; threads <= 3; threads++) {
		memset(fx->loaded, 0xff, fx->block_bytes);
		PASS(checkpoint_read(
			fd, &info, fx->loaded, fx->loaded_sums, threads, &moves, &fx->err));
		assert_memory_equal(fx->loaded, fx->block, fx->block_bytes);
		assert_memory_equal(fx->loaded_sums, fx->sums, fx->sum_count * 8);
	}
	assert_int_equal(moves, 4 * fx->sum_count);
	PASS(checkpoint_read(fd, &info, NULL, NULL, 2, NULL, &fx->err));
	for (int s = 0; s < SECTION_COUNT; s++) {
		PASS(checkpoint_read_section(fd, &info, (enum section)s, section, 2, &fx->err));
		assert_memory_equal(
			section, fx->block + s * fx->table.section_bytes, fx->table.section_bytes);
	}
	free(section);
	close(fd);
	checkpoint_info_fini(&info);
}

/* Threads share the work, not the bytes: the same state gives the same file but for its time. */
static void p2_same_bytes_at_any_thread_count(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info[2];

	for (int i = 0; i < 2; i++) {
		struct checkpoint_source source;
		struct checkpoint_saved saved;
		int fd;

		fixture_state(fx, 1, 5);
		source = fixture_source(fx);
		source.threads = i == 0 ? 1 : 4;
		PASS(checkpoint_save(fx->fd, &source, &saved, &fx->err));
		fd = checkpoint_open(
			fx->fd, "step-000000005-b0001.safetensors", &info[i], &fx->err);
		PASS(fd);
		close(fd);
		assert_int_equal(unlinkat(fx->fd, "step-000000005-b0001.safetensors", 0), 0);
	}
	assert_memory_equal(
		info[0].chunks, info[1].chunks, info[0].chunk_count * sizeof(struct digest));
	checkpoint_info_fini(&info[0]);
	checkpoint_info_fini(&info[1]);
}

/* Unaligned memory cannot be read or written directly: through the cache it works as well. */
static void unaligned_block_is_saved_too(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	struct checkpoint_source source;
	struct checkpoint_info info;
	uint8_t *shifted = malloc(fx->block_bytes + 64);
	int fd;

	fixture_state(fx, 1, 6);
	memcpy(shifted + 32, fx->block, fx->block_bytes);
	source = fixture_source(fx);
	source.block = shifted + 32;
	PASS(checkpoint_save(fx->fd, &source, &saved, &fx->err));
	assert_false(saved.direct);
	fd = checkpoint_open(fx->fd, "step-000000006-b0001.safetensors", &info, &fx->err);
	PASS(fd);
	PASS(checkpoint_read(fd, &info, fx->loaded, NULL, 1, NULL, &fx->err));
	assert_memory_equal(fx->loaded, fx->block, fx->block_bytes);
	close(fd);
	checkpoint_info_fini(&info);
	free(shifted);
}

static void second_save_answers_with_the_first(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved first, second;

	PASS(fixture_try_save(fx, 1, 10, &first));
	PASS(fixture_try_save(fx, 1, 10, &second));
	assert_true(second.already);
	assert_true(digest_equal(&first.root, &second.root));
	assert_string_equal(first.created, second.created);
	assert_int_equal(count_names(fx->fd, "step-"), 1);
}

/* P11: a corrupt file is not answered with; it makes way. */
static void p11_corrupt_first_makes_way_for_the_second(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000010-b0001.safetensors";
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, 1, 10, &saved));
	fixture_flip(fx->fd, name, fixture_file_bytes(fx->fd, name) - 5);
	PASS(fixture_try_save(fx, 1, 10, &saved));
	assert_false(saved.already);
	assert_true(fixture_exists(fx->fd, "step-000000010-b0001.safetensors.corrupt-1"));
	fixture_truncate(fx->fd, name, 0);
	PASS(fixture_try_save(fx, 1, 10, &saved));
	assert_false(saved.already);
	assert_true(fixture_exists(fx->fd, "step-000000010-b0001.safetensors.corrupt-2"));
	PASS(fixture_try_save(fx, 1, 10, &saved));
	assert_true(saved.already);
}

static void foreign_file_keeps_its_name(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, 1, 10, &saved));
	fx->run.id[0] ^= 1;
	assert_int_equal(fixture_try_save(fx, 1, 10, &saved), -EEXIST);
	assert_non_null(strstr(fx->err.text, "another run"));
	assert_int_equal(count_names(fx->fd, "step-"), 1);
}

/* -- P7 -- */

static void expect_old_only(struct fixture *fx, const char *plan)
{
	struct checkpoint_info info;
	int fd = checkpoint_open(fx->fd, "step-000000010-b0001.safetensors", &info, &fx->err);

	if (fd < 0)
		fail_msg("under %s the older one went: %s", plan, fx->err.text);
	close(fd);
	checkpoint_info_fini(&info);
	if (count_names(fx->fd, "partial") > 0 || count_names(fx->fd, "step-") > 1)
		fail_msg("under %s something is left behind", plan);
}

static void expect_whole(struct fixture *fx, const char *plan)
{
	struct checkpoint_info info;
	int fd = checkpoint_open(fx->fd, "step-000000020-b0001.safetensors", &info, &fx->err);

	if (fd < 0 || checkpoint_read(fd, &info, fx->loaded, NULL, 1, NULL, &fx->err) < 0)
		fail_msg("under %s it was called saved: %s", plan, fx->err.text);
	assert_memory_equal(fx->loaded, fx->block, fx->block_bytes);
	close(fd);
	checkpoint_info_fini(&info);
	assert_int_equal(unlinkat(fx->fd, "step-000000020-b0001.safetensors", 0), 0);
}

/* One fault at the n-th call of one kind: all or nothing, and the older one stays. */
static int save_under(struct fixture *fx, const char *point, uint32_t n, const char *action)
{
	struct checkpoint_saved saved;
	char plan[64];
	int rc;

	snprintf(plan, sizeof(plan), "%s:%u:%s", point, n, action);
	assert_int_equal(sys_fault_plan(plan), 0);
	rc = fixture_try_save(fx, 1, 20, &saved);
	sys_fault_plan(NULL);
	if (rc == 0)
		expect_whole(fx, plan);
	else if (fx->err.text[0] == '\0')
		fail_msg("under %s there is no word about it", plan);
	else
		expect_old_only(fx, plan);
	return rc;
}

static void p7_any_call_may_fail(void **state)
{
	/* Where one EIO is without consequence, the number of calls to try is given. */
	static const struct {
		const char *point;
		uint32_t calls;
	} points[] = {{"open", 0}, {"close", 6}, {"pread", 0}, {"pwrite", 0}, {"fsync", 0},
		{"fallocate", 0}, {"rename", 0}, {"unlink", 1}, {"save.reserved", 0},
		{"save.written", 0}, {"save.synced", 0}, {"save.readback", 0}, {"save.renamed", 0},
		{"save.published", 0}};
	static const char *const actions[] = {"ENOSPC", "EINTR", "short"};
	struct fixture *fx = *state;
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, 1, 10, &saved));
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		uint32_t calls = points[i].calls, n;

		for (n = 1; save_under(fx, points[i].point, n, "EIO") < 0 || n < calls; n++)
			assert_true(n < 100);
		/* A point that is never met would sweep nothing. */
		assert_true(n > 1 || calls > 0);
		for (size_t a = 0; a < sizeof(actions) / sizeof(actions[0]); a++)
			for (uint32_t k = 1; k <= n; k++)
				save_under(fx, points[i].point, k, actions[a]);
	}
	PASS(fixture_try_save(fx, 1, 20, &saved));
	expect_whole(fx, "no fault");
}

/* A file system that takes O_DIRECT and then not these bytes, or a process that may have no more
 * threads: slower, and whole. */
static void p7_what_only_makes_it_faster_may_fail(void **state)
{
	static const char *const plans[] = {"pwrite:1:EINVAL", "pwrite:2:EINVAL", "pread:1:EINVAL",
		"pread:2:EINVAL", "thread:*:ENOMEM", "thread:2:ENOMEM"};
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	struct checkpoint_info info;

	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		if (fixture_try_save(fx, 1, 20, &saved) < 0)
			fail_msg("under %s: %s", plans[i], fx->err.text);
		assert_true(sys_fault_fired() > 0);
		sys_fault_plan(NULL);
		int fd = checkpoint_open(
			fx->fd, "step-000000020-b0001.safetensors", &info, &fx->err);

		assert_true(fd >= 0);
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		PASS(checkpoint_read(fd, &info, fx->loaded, NULL, 2, NULL, &fx->err));
		sys_fault_plan(NULL);
		close(fd);
		checkpoint_info_fini(&info);
		expect_whole(fx, plans[i]);
	}
}

static void p7_no_fallocate_is_no_error(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;

	assert_int_equal(sys_fault_plan("fallocate:1:EOPNOTSUPP"), 0);
	PASS(fixture_try_save(fx, 1, 20, &saved));
	expect_whole(fx, "EOPNOTSUPP");
}

/* After an error of fsync the same file is not synced again: there is no second call. */
static void p7_failed_fsync_is_final(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;

	assert_int_equal(sys_fault_plan("fsync:1:EIO,fsync:2:kill"), 0);
	assert_int_equal(fixture_try_save(fx, 1, 20, &saved), -EIO);
	assert_non_null(strstr(fx->err.text, "a new save"));
	assert_int_equal(count_names(fx->fd, "step-"), 0);
	sys_fault_plan(NULL);
	PASS(fixture_try_save(fx, 1, 20, &saved));
}

/* -- P11 -- */

static void p11_flipped_read_back_is_caught(void **state)
{
	struct fixture *fx = *state;

	/* Reads 1..: the header, then each chunk. */
	for (int n = 1; n <= 1 + (int)(fx->block_bytes / CHECKPOINT_CHUNK_BYTES); n++) {
		struct checkpoint_saved saved;
		char plan[32];

		snprintf(plan, sizeof(plan), "pread:%d:flip", n);
		assert_int_equal(sys_fault_plan(plan), 0);
		assert_int_equal(fixture_try_save(fx, 1, 20, &saved), -EIO);
		assert_non_null(strstr(fx->err.text, "other bytes"));
		assert_int_equal(count_names(fx->fd, "step-"), 0);
	}
}

static void p11_memory_that_misses_its_seal_is_not_published(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	fixture_state(fx, 1, 20);
	source = fixture_source(fx);
	fx->block[fx->block_bytes - 1] ^= 4;
	assert_int_equal(checkpoint_save(fx->fd, &source, &saved, &fx->err), -EUCLEAN);
	assert_non_null(strstr(fx->err.text, "memory corrupt"));
	fx->block[fx->block_bytes - 1] ^= 4;
	fx->sums[1] ^= 1;
	assert_int_equal(checkpoint_save(fx->fd, &source, &saved, &fx->err), -EUCLEAN);
	assert_int_equal(count_names(fx->fd, "step-"), 0);
}

static bool never_valid(void *context)
{
	return false;
}

static void lost_pin_is_not_published(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	fixture_state(fx, 1, 20);
	source = fixture_source(fx);
	source.still_valid = never_valid;
	assert_int_equal(checkpoint_save(fx->fd, &source, &saved, &fx->err), -ESTALE);
	assert_int_equal(count_names(fx->fd, "step-"), 0);
}

/* -- what open refuses -- */

static void truncated_anywhere_is_corrupt(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000020-b0001.safetensors";
	struct checkpoint_saved saved;
	struct checkpoint_info info;
	uint64_t sizes[] = {0, 1, 7, 8, 9, 100, 4095, 4096, 8192, 0, 0, 0};

	PASS(fixture_try_save(fx, 1, 20, &saved));
	sizes[9] = saved.file_bytes - fx->block_bytes;
	sizes[10] = saved.file_bytes - 4096;
	sizes[11] = saved.file_bytes - 1;
	for (int i = (int)(sizeof(sizes) / sizeof(sizes[0])) - 1; i >= 0; i--) {
		fixture_truncate(fx->fd, name, sizes[i]);
		assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -EBADMSG);
	}
	PASS(fixture_try_save(fx, 1, 20, &saved));
	fixture_truncate(fx->fd, name, saved.file_bytes + 1);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -EBADMSG);
}

/* Each byte of the header is under the root. A flip may also make it a newer format: refused. */
static void flipped_header_is_never_accepted(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000020-b0001.safetensors";
	struct checkpoint_saved saved;
	struct checkpoint_info info;
	uint64_t header_bytes;

	PASS(fixture_try_save(fx, 1, 20, &saved));
	header_bytes = saved.file_bytes - fx->block_bytes;
	for (uint64_t at = 0; at < header_bytes; at += at < 600 ? 1 : 37) {
		int rc;

		fixture_flip(fx->fd, name, at);
		rc = checkpoint_open(fx->fd, name, &info, &fx->err);
		if (rc != -EBADMSG && rc != -EPROTONOSUPPORT)
			fail_msg("a flip at byte %llu gives %d", (unsigned long long)at, rc);
		fixture_flip(fx->fd, name, at);
	}
	int fd = checkpoint_open(fx->fd, name, &info, &fx->err);

	PASS(fd);
	close(fd);
	checkpoint_info_fini(&info);
}

static void flipped_data_names_the_chunk(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000020-b0001.safetensors";
	struct checkpoint_saved saved;
	struct checkpoint_info info;
	float *section = malloc(fx->table.section_bytes);
	int fd;

	PASS(fixture_try_save(fx, 1, 20, &saved));
	fixture_flip(fx->fd, name, saved.file_bytes - 1);
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	PASS(fd);
	assert_int_equal(checkpoint_read(fd, &info, fx->loaded, NULL, 3, NULL, &fx->err), -EBADMSG);
	assert_non_null(strstr(fx->err.text, "chunk 1 of 2"));
	PASS(checkpoint_read_section(fd, &info, SECTION_WEIGHTS, section, 1, &fx->err));
	assert_int_equal(
		checkpoint_read_section(fd, &info, SECTION_EXP_AVG_SQ, section, 1, &fx->err),
		-EBADMSG);
	close(fd);
	checkpoint_info_fini(&info);
	free(section);
}

static void only_plain_files_of_ours_are_opened(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000020-b0001.safetensors";
	struct checkpoint_saved saved;
	struct checkpoint_info info;

	PASS(fixture_try_save(fx, 1, 20, &saved));
	assert_int_equal(linkat(fx->fd, name, fx->fd, "copy", 0), 0);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -EPROTONOSUPPORT);
	assert_int_equal(unlinkat(fx->fd, name, 0), 0);
	assert_int_equal(symlinkat("copy", fx->fd, name), 0);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -ELOOP);
	assert_int_equal(unlinkat(fx->fd, name, 0), 0);
	assert_int_equal(mkfifoat(fx->fd, name, 0600), 0);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -EPROTONOSUPPORT);
	assert_int_equal(unlinkat(fx->fd, name, 0), 0);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -ENOENT);
	/* Under a name of its own it may be looked at; under another state's it may not. */
	int fd = checkpoint_open(fx->fd, "copy", &info, &fx->err);

	PASS(fd);
	close(fd);
	checkpoint_info_fini(&info);
	assert_int_equal(renameat(fx->fd, "copy", fx->fd, "step-000000021-b0001.safetensors"), 0);
	assert_int_equal(
		checkpoint_open(fx->fd, "step-000000021-b0001.safetensors", &info, &fx->err),
		-EBADMSG);
	assert_non_null(strstr(fx->err.text, "step-000000020-b0001"));
}

static void P10_only_who_owns_the_run_may_have_written_it(void **state)
{
	struct fixture *fx = *state;
	const char *name = "step-000000020-b0001.safetensors";
	struct checkpoint_saved saved;
	struct checkpoint_info info;

	if (geteuid() != 0)
		test_lacks("root, to give files away");
	PASS(fixture_try_save(fx, 1, 20, &saved));
	assert_int_equal(fchownat(fx->fd, name, 12345, 12345, 0), 0);
	assert_int_equal(checkpoint_open(fx->fd, name, &info, &fx->err), -EPROTONOSUPPORT);
	assert_non_null(strstr(fx->err.text, "it belongs to uid 12345"));
	/* The owner of the folder is the owner of the run: the group may look at its files. */
	assert_int_equal(fchown(fx->fd, 12345, 12345), 0);
	int fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	PASS(fd);
	close(fd);
	checkpoint_info_fini(&info);
}

/* A header whose text was changed and whose root was made anew: structure is checked all the same.
 */
static int open_edited(struct fixture *fx, const char *from, const char *to)
{
	const char *name = "step-000000030-b0001.safetensors";
	struct checkpoint_header header;
	struct checkpoint_source source;
	struct checkpoint_info info;
	struct digest chunks[2] = {{{0}}}, root;
	char *hit;
	int fd;

	assert_int_equal(strlen(from), strlen(to));
	fixture_state(fx, 1, 30);
	source = fixture_source(fx);
	PASS(checkpoint_header_build(&source, "now", &header, &fx->err));
	hit = memmem(header.bytes, header.size, from, strlen(from));
	assert_non_null(hit);
	memcpy(hit, to, strlen(to));
	checkpoint_header_finish(&header, chunks, &root);
	fixture_write(fx->fd, name, header.bytes, header.size);
	fixture_truncate(fx->fd, name, header.size + fx->block_bytes);
	checkpoint_header_fini(&header);
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	if (fd >= 0) {
		close(fd);
		checkpoint_info_fini(&info);
		return 0;
	}
	return fd;
}

static void header_must_agree_with_itself(void **state)
{
	static const struct {
		const char *from, *to;
		int result;
	} edits[] = {
		{"\"format\":\"pt\"", "\"format\":\"pt\"", 0},
		{"\"ckptd_format\":\"1\"", "\"ckptd_format\":\"3\"", -EPROTONOSUPPORT},
		{"\"ckptd_format\":\"1\"", "\"ckptd_format\":\"0\"", -EBADMSG},
		{"\"ckptd_format\":\"1\"", "\"ckptd_fOrmat\":\"1\"", -EBADMSG},
		{"\"chunk_bytes\":\"4194304\"", "\"chunk_bytes\":\"4194303\"", -EBADMSG},
		{"ema.conv_in.weight", "emo.conv_in.weight", -EBADMSG},
		{"exp_avg_sq.conv_out.bias", "exp_avg_sq.conv_out.bios", -EBADMSG},
		{"pad.ema", "pod.ema", -EBADMSG},
		{"unet.conv_in.weight", "unet.conv_In.weight", -EBADMSG},
		{"[300,1024]", "[1024,300]", -EBADMSG},
		{"\"weights_digest\":", "\"weights_Digest\":", 0}, /* files of before it */
		{"\"parent_root\":\"00", "\"parent_root\":\"0G", -EBADMSG},
		{"\"seed\\\":\\\"1\\\"", "\"sEed\\\":\\\"1\\\"", 0},
		{"seed\\\":", "seed\\\";", -EBADMSG},
	};
	struct fixture *fx = *state;

	for (size_t i = 0; i < sizeof(edits) / sizeof(edits[0]); i++) {
		int rc = open_edited(fx, edits[i].from, edits[i].to);

		if (rc != edits[i].result)
			fail_msg("%s -> %s gives %d (%s)", edits[i].from, edits[i].to, rc,
				rc < 0 ? fx->err.text : "accepted");
	}
}

/* A whole file, its root made anew, whose weights_digest is another or none. */
static void write_with_weights_digest(struct fixture *fx, bool valid_hex)
{
	static const char mark[] = "\"weights_digest\":\"";
	const char *name = "step-000000030-b0001.safetensors";
	struct checkpoint_header header;
	struct checkpoint_source source;
	struct digest chunks[2], root;
	char *hit;
	int fd;

	fixture_state(fx, 1, 30);
	source = fixture_source(fx);
	PASS(checkpoint_header_build(&source, "now", &header, &fx->err));
	hit = memmem(header.bytes, header.size, mark, strlen(mark));
	assert_non_null(hit);
	hit += strlen(mark);
	*hit = !valid_hex ? 'G' : *hit == '0' ? '1' : '0';
	for (int i = 0; i < 2; i++)
		chunks[i] = digest_of(
			fx->block + i * CHECKPOINT_CHUNK_BYTES, CHECKPOINT_CHUNK_BYTES);
	checkpoint_header_finish(&header, chunks, &root);
	fixture_write(fx->fd, name, header.bytes, header.size);
	fd = openat(fx->fd, name, O_WRONLY | O_CLOEXEC);
	assert_int_equal(file_write_exact(fd, fx->block, fx->block_bytes, (off_t)header.size), 0);
	close(fd);
	checkpoint_header_fini(&header);
}

static void p11_weights_digest_must_be_that_of_the_weights(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_info info;

	fixture_prepare(fx);
	write_with_weights_digest(fx, true);
	assert_int_equal(fixture_try_load(fx, &info), -EBADMSG);
	assert_true(fixture_told(fx, "its weights are not those of its header"));
	write_with_weights_digest(fx, false);
	assert_int_equal(fixture_try_load(fx, &info), -EBADMSG);
	assert_true(fixture_told(fx, "its weights_digest is broken"));
}

/* tests/golden/checkpoint-v1.header: the header of a checkpoint whose data are zeros, as version 1
 * wrote it. Every later version must accept it and see the same. */
static void p8_golden_version_1_is_accepted(void **state)
{
	const char *name = "step-000004711-b0002.safetensors";
	struct fixture *fx = *state;
	struct checkpoint_info info;
	char root[DIGEST_HEX_SIZE];
	size_t size = fixture_golden(fx->fd, "checkpoint-v1.header", name);
	int fd;

	fixture_truncate(fx->fd, name, size + CHECKPOINT_CHUNK_BYTES);
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	PASS(fd);
	digest_to_hex(&info.root, root);
	assert_string_equal(
		root, "f81af0a3e4114c4fdb1a5f729a93758933035b6737c1f37d3b66885ab454866b");
	assert_string_equal(info.created, "2026-11-23T04:31:05.123Z");
	assert_int_equal(info.record.step, 4711);
	assert_int_equal(info.record.update_count, 4710);
	assert_int_equal(info.record.images_seen, 75376);
	assert_true(info.record.loss == 0.03125f);
	assert_int_equal(info.record.intervention_count, 1);
	assert_string_equal(info.record.interventions[0].value, "64");
	assert_string_equal(info.config.channels, "32,64,128");
	assert_int_equal(info.table.count, 3);
	PASS(checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &fx->err));
	close(fd);
	checkpoint_info_fini(&info);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids_have_one_spelling),
		TEST(p11_round_trip),
		TEST(p2_same_bytes_at_any_thread_count),
		TEST(unaligned_block_is_saved_too),
		TEST(second_save_answers_with_the_first),
		TEST(p11_corrupt_first_makes_way_for_the_second),
		TEST(foreign_file_keeps_its_name),
		cmocka_unit_test_setup_teardown(
			p7_any_call_may_fail, fixture_setup_small, fixture_teardown),
		TEST(p7_what_only_makes_it_faster_may_fail),
		TEST(p7_no_fallocate_is_no_error),
		TEST(p7_failed_fsync_is_final),
		TEST(p11_flipped_read_back_is_caught),
		TEST(p11_memory_that_misses_its_seal_is_not_published),
		TEST(lost_pin_is_not_published),
		TEST(truncated_anywhere_is_corrupt),
		TEST(flipped_header_is_never_accepted),
		TEST(flipped_data_names_the_chunk),
		TEST(only_plain_files_of_ours_are_opened),
		TEST(P10_only_who_owns_the_run_may_have_written_it),
		TEST(header_must_agree_with_itself),
		TEST(p11_weights_digest_must_be_that_of_the_weights),
		TEST(p8_golden_version_1_is_accepted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
