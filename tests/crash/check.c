/* See tests/crash/check.h. */
#include "tests/crash/check.h"

#include "base/panic.h"
#include "base/seal.h"
#include "store/fsck.h"
#include "store/recovery.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECKPOINTS "checkpoints"

void checker_content(const struct tensor_table *table, uint32_t branch, uint64_t step, void *block)
{
	memset(block, 0, SECTION_COUNT * table->section_bytes);
	for (int section = 0; section < SECTION_COUNT; section++) {
		float *values = (float *)((uint8_t *)block + section * table->section_bytes);

		for (uint64_t i = 0; i < table->param_count; i++)
			values[i] = (float)step + (float)branch * 1000.0f + (float)section * 0.25f +
				(float)(i % 1021);
	}
}

void checker_init(struct checker *checker, const struct tensor_table *table,
	const struct known *known, const uint32_t *known_count)
{
	uint64_t bytes = SECTION_COUNT * table->section_bytes;

	memset(checker, 0, sizeof(*checker));
	snprintf(checker->base, sizeof(checker->base), "%s/ckptd-crash-XXXXXX",
		access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	CHECK(mkdtemp(checker->base) != NULL);
	snprintf(checker->dir, sizeof(checker->dir), "%s/run", checker->base);
	checker->table = table;
	checker->known = known;
	checker->known_count = known_count;
	checker->block = aligned_alloc(4096, bytes);
	checker->expected = aligned_alloc(4096, bytes);
	checker->sums = calloc(bytes / SEAL_CHUNK_BYTES, sizeof(uint64_t));
	CHECK(checker->block != NULL && checker->expected != NULL && checker->sums != NULL);
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *at)
{
	return remove(path);
}

void checker_fini(struct checker *checker)
{
	nftw(checker->base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(checker->block);
	free(checker->expected);
	free(checker->sums);
	free(checker->outcomes);
	free(checker->loads);
}

static void blame(struct outcome *outcome, const char *format, ...)
{
	va_list arguments;

	if (outcome->violation[0] != '\0')
		return;
	va_start(arguments, format);
	vsnprintf(outcome->violation, sizeof(outcome->violation), format, arguments);
	va_end(arguments);
}

/* -- the state, on a disk -- */

static void path_of(const struct checker *checker, const struct model_state *state,
	const struct model_file *file, char path[512])
{
	const char *folder = "";

	for (uint32_t i = 0; file->folder != 0 && i < state->count; i++)
		if (state->nodes[i] == file->folder)
			folder = state->files[i].name;
	snprintf(path, 512, "%s/%s%s%s", checker->dir, folder, *folder ? "/" : "", file->name);
}

static void lay_file(const char *path, const struct trace_content *content)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)content->size) == 0);
	for (uint32_t i = 0; i < content->page_count; i++) {
		uint64_t at = (uint64_t)i * TRACE_PAGE;

		if (content->pages[i] == NULL || at >= content->size)
			continue;
		uint64_t piece = content->size - at < TRACE_PAGE ? content->size - at : TRACE_PAGE;

		CHECK(pwrite(fd, content->pages[i], piece, (off_t)at) == (ssize_t)piece);
	}
	close(fd);
}

void checker_lay(struct checker *checker, const struct model_state *state)
{
	char path[512];

	nftw(checker->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	CHECK(mkdir(checker->dir, 0750) == 0);
	for (uint32_t i = 0; i < state->count; i++)
		if (state->files[i].is_folder) {
			path_of(checker, state, &state->files[i], path);
			CHECK(mkdir(path, 0750) == 0);
		}
	for (uint32_t i = 0; i < state->count; i++)
		if (!state->files[i].is_folder) {
			path_of(checker, state, &state->files[i], path);
			lay_file(path, state->files[i].content);
		}
}

/* -- the folder after a start -- */

static uint64_t hash_of(const void *data, size_t size)
{
	struct digest digest = digest_of(data, size);
	uint64_t hash;

	memcpy(&hash, &digest, sizeof(hash));
	return hash;
}

/* Names and sizes; of small files the bytes too. */
static uint64_t hash_folder(int run_fd, const char *folder)
{
	int fd = openat(run_fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fdopendir(fd);
	struct dirent *entry;
	uint64_t hash = 0;

	CHECK(dir != NULL);
	while ((entry = readdir(dir)) != NULL) {
		static char bytes[1 << 17];
		struct stat stat;
		ssize_t got = 0;

		CHECK(fstatat(fd, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW) == 0);
		if (S_ISDIR(stat.st_mode))
			continue;
		if (stat.st_size <= (off_t)sizeof(bytes)) {
			int file = openat(fd, entry->d_name, O_RDONLY | O_CLOEXEC);

			got = pread(file, bytes, sizeof(bytes), 0);
			close(file);
		}
		hash += hash_of(bytes, got > 0 ? (size_t)got : 0) * 3 +
			hash_of(entry->d_name, strlen(entry->d_name)) * 5 + (uint64_t)stat.st_size;
	}
	closedir(dir);
	return hash;
}

struct seen {
	struct checker *checker;
	const struct model_state *state;
	struct outcome *outcome;
	int run_fd, fd;
	struct run run;
	struct catalog_row *rows;
	uint32_t row_count;
	uint64_t names; /* hash of what lies in checkpoints/ */
	struct error err;
};

static uint64_t hash_all(const struct seen *seen)
{
	return hash_folder(seen->run_fd, ".") + 7 * hash_folder(seen->run_fd, CHECKPOINTS);
}

static bool read_rows(struct seen *seen)
{
	struct catalog *catalog;
	uint32_t bad = 0;

	free(seen->rows);
	seen->rows = NULL;
	seen->row_count = 0;
	if (catalog_open(seen->checker->dir, CATALOG_READ, &catalog, &seen->err) < 0)
		return false;
	if (catalog_list(catalog, &seen->rows, &seen->row_count, &bad, &seen->err) < 0 || bad > 0)
		blame(seen->outcome, "the catalog has %u damaged rows after a start", bad);
	catalog_close(catalog);
	return true;
}

static bool prepare(struct seen *seen)
{
	struct recovery_summary summary;
	int rc = recovery_prepare(
		seen->checker->dir, seen->run_fd, &seen->run, NULL, NULL, &summary, &seen->err);

	if (rc < 0)
		blame(seen->outcome, "recovery_prepare: %d %s", rc, seen->err.text);
	return rc == 0;
}

static void prepare_twice(struct seen *seen)
{
	struct catalog_row *first;
	uint32_t count;
	uint64_t hash;

	if (!prepare(seen) || !read_rows(seen))
		return;
	first = seen->rows;
	count = seen->row_count;
	seen->rows = NULL;
	hash = hash_all(seen);
	if (prepare(seen) && read_rows(seen)) {
		if (count != seen->row_count ||
			memcmp(first, seen->rows, count * sizeof(*first)) != 0)
			blame(seen->outcome, "a second start changes rows");
		else if (hash != hash_all(seen))
			blame(seen->outcome, "a second start changes files");
	}
	free(first);
}

/* -- files -- */

static bool find_known(const struct checker *checker, uint32_t branch, uint64_t step, uint32_t *ret)
{
	for (uint32_t i = 0; i < *checker->known_count; i++)
		if (checker->known[i].branch == branch && checker->known[i].step == step) {
			*ret = i;
			return true;
		}
	return false;
}

static bool read_whole(struct seen *seen, const char *name, struct verdict_memo *memo)
{
	struct checker *checker = seen->checker;
	struct checkpoint_info info;
	int fd = checkpoint_open(seen->fd, name, &info, &seen->err);
	bool whole;

	if (fd < 0)
		return false;
	whole = checkpoint_read(fd, &info, checker->block, NULL, 1, NULL, &seen->err) == 0;
	close(fd);
	memo->branch = info.record.branch;
	memo->step = info.record.step;
	checkpoint_info_fini(&info);
	checker_content(checker->table, memo->branch, memo->step, checker->expected);
	return whole &&
		memcmp(checker->block, checker->expected,
			SECTION_COUNT * checker->table->section_bytes) == 0;
}

/* By its bytes: the same file stands in thousands of states. */
static const struct verdict_memo *verdict(struct seen *seen, const struct model_file *file)
{
	struct verdict_memo *memo;
	uint64_t at = file->hash;
	const uint64_t mask = sizeof(seen->checker->verdicts) / sizeof(*memo) - 1;

	for (memo = &seen->checker->verdicts[at & mask]; memo->key != 0 && memo->key != file->hash;
		memo = &seen->checker->verdicts[++at & mask])
		CHECK(at - file->hash < mask);
	if (memo->key == 0) {
		memo->whole = read_whole(seen, file->name, memo);
		memo->key = file->hash;
	}
	return memo;
}

static void look_at_file(struct seen *seen, const struct model_file *file)
{
	const struct verdict_memo *memo;
	uint32_t branch, known;
	uint64_t step;
	char id[CHECKPOINT_ID_SIZE] = "";
	size_t length = strcspn(file->name, ".");

	if (faccessat(seen->fd, file->name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	seen->names += hash_of(file->name, strlen(file->name)) * 3 + file->hash;
	if (length == 0 || length >= sizeof(id) ||
		strcmp(file->name + length, CHECKPOINT_SUFFIX) != 0)
		return;
	memcpy(id, file->name, length);
	if (checkpoint_id_parse(id, &step, &branch) < 0)
		return;
	memo = verdict(seen, file);
	if (!memo->whole || memo->step != step || memo->branch != branch)
		blame(seen->outcome, "%s is published and not whole", file->name);
	else if (find_known(seen->checker, branch, step, &known))
		seen->outcome->whole |= 1u << known;
	else
		blame(seen->outcome, "%s was never saved", file->name);
}

static void look_at_files(struct seen *seen)
{
	for (uint32_t i = 0; i < seen->state->count; i++) {
		const struct model_file *file = &seen->state->files[i];

		for (uint32_t j = 0; file->folder != 0 && j < seen->state->count; j++)
			if (seen->state->nodes[j] == file->folder &&
				strcmp(seen->state->files[j].name, CHECKPOINTS) == 0)
				look_at_file(seen, file);
	}
}

static void look_at_rows(struct seen *seen)
{
	for (uint32_t i = 0; i < seen->row_count; i++) {
		const struct catalog_row *row = &seen->rows[i];
		uint32_t known;
		bool whole;

		if (!find_known(seen->checker, row->branch, row->step, &known))
			continue;
		whole = (seen->outcome->whole >> known & 1) != 0;
		if (row->state == CHECKPOINT_MISSING && !seen->checker->lenient)
			blame(seen->outcome, "the row of %s promised a file that is gone", row->id);
		if (row->state == CHECKPOINT_VERIFIED && !whole)
			blame(seen->outcome, "%s is called verified and is not", row->id);
		if (row->state == CHECKPOINT_CORRUPT || row->state == CHECKPOINT_UNREADABLE ||
			row->state == CHECKPOINT_REFUSED)
			blame(seen->outcome, "%s is called %s", row->id,
				checkpoint_state_name(row->state));
		if (row->state == CHECKPOINT_VERIFIED)
			seen->outcome->rows |= 1u << known;
		if (whole && row->keep != (seen->outcome->kept >> known & 1))
			blame(seen->outcome, "the row of %s and its keep mark disagree", row->id);
	}
}

static void look_at_line(struct seen *seen)
{
	const struct checker *checker = seen->checker;
	struct line line;

	for (uint32_t i = 0; i < *checker->known_count; i++) {
		char name[DIGEST_HEX_SIZE + 8];

		digest_to_hex(&checker->known[i].root, name);
		strcat(name, ".keep");
		if (checker->known[i].saved && faccessat(seen->fd, name, F_OK, 0) == 0)
			seen->outcome->kept |= 1u << i;
	}
	if (line_load(seen->fd, &line, &seen->err) < 0) {
		blame(seen->outcome, "the line cannot be read: %s", seen->err.text);
		return;
	}
	for (uint32_t i = 0; i < line.count; i++)
		seen->outcome->branches |= 1u << line.branches[i].branch;
	for (uint32_t i = 0; i < *checker->known_count; i++)
		if (line_contains(&line, checker->known[i].branch, checker->known[i].step))
			seen->outcome->on_line |= 1u << i;
	line_fini(&line);
}

/* -- loading -- */

static void load(struct seen *seen, struct load_memo *memo)
{
	struct checker *checker = seen->checker;
	struct checkpoint_info info;

	memo->load = recovery_load(checker->dir, seen->run_fd, &seen->run, checker->table,
		checker->block, checker->sums, 1, NULL, NULL, NULL, &info, &seen->err);
	if (memo->load < 0)
		return;
	memo->branch = info.record.branch;
	memo->step = info.record.step;
	checkpoint_info_fini(&info);
	checker_content(checker->table, memo->branch, memo->step, checker->expected);
	memo->other_bytes = memcmp(checker->block, checker->expected,
				    SECTION_COUNT * checker->table->section_bytes) != 0;
}

/* By what it depends on: the files and the rows. */
static void load_once(struct seen *seen)
{
	struct checker *checker = seen->checker;
	uint64_t key = seen->names +
		hash_of(seen->rows, seen->row_count * sizeof(*seen->rows)) * 11;
	const struct load_memo *memo = NULL;

	for (uint32_t i = 0; memo == NULL && i < checker->load_count; i++)
		if (checker->loads[i].key == key)
			memo = &checker->loads[i];
	if (memo == NULL) {
		if (checker->load_count == checker->load_room) {
			checker->load_room = checker->load_room * 2 + 64;
			checker->loads = realloc(
				checker->loads, checker->load_room * sizeof(*checker->loads));
			CHECK(checker->loads != NULL);
		}
		memset(&checker->loads[checker->load_count], 0, sizeof(*memo));
		load(seen, &checker->loads[checker->load_count]);
		memo = &checker->loads[checker->load_count++];
		checker->loads[checker->load_count - 1].key = key;
	}
	seen->outcome->load = memo->load;
	seen->outcome->branch = memo->branch;
	seen->outcome->step = memo->step;
	if (memo->other_bytes)
		blame(seen->outcome, "other bytes were loaded than were saved as step %llu",
			(unsigned long long)memo->step);
}

/* -- all of it -- */

static void look(struct checker *checker, const struct model_state *state, struct outcome *outcome)
{
	struct seen seen = {.checker = checker, .state = state, .outcome = outcome};

	checker_lay(checker, state);
	seen.run_fd = open(checker->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	seen.fd = openat(seen.run_fd, CHECKPOINTS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (seen.fd < 0 || run_load(seen.run_fd, &seen.run, &seen.err) < 0) {
		blame(outcome, "run.json: %s", seen.err.text);
	} else {
		outcome->wanted = 1u << seen.run.wanted;
		prepare_twice(&seen);
		look_at_line(&seen);
		look_at_files(&seen);
		look_at_rows(&seen);
		load_once(&seen);
		run_fini(&seen.run);
	}
	free(seen.rows);
	if (seen.fd >= 0)
		close(seen.fd);
	close(seen.run_fd);
}

int checker_start(struct checker *checker, char text[VIOLATION_MAX])
{
	struct recovery_summary summary;
	struct checkpoint_info info;
	struct error err = {{0}};
	struct run run;
	int run_fd = open(checker->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = run_load(run_fd, &run, &err);

	if (rc == 0) {
		rc = recovery_prepare(checker->dir, run_fd, &run, NULL, NULL, &summary, &err);
		if (rc == 0 &&
			recovery_load(checker->dir, run_fd, &run, checker->table, checker->block,
				checker->sums, 1, NULL, NULL, NULL, &info, &err) == 0)
			checkpoint_info_fini(&info);
		run_fini(&run);
	}
	close(run_fd);
	snprintf(text, VIOLATION_MAX, "%.300s", rc < 0 ? err.text : "");
	return rc;
}

/* -- fsck -- */

struct told {
	uint32_t left;
	char last[VIOLATION_MAX / 2];
};

/* A branch whose file, or whose first checkpoint, is another's is a person's to decide. */
static void note_left(void *context, enum fsck_kind kind, const char *text)
{
	struct told *told = context;

	if (kind != FSCK_LEFT || strstr(text, "branch-") != NULL)
		return;
	told->left++;
	snprintf(told->last, sizeof(told->last), "%.150s", text);
}

static void note_found(void *context, enum fsck_kind kind, const char *text)
{
	note_left(context, kind == FSCK_FOUND ? FSCK_LEFT : FSCK_NOTE, text);
}

void checker_repair(
	struct checker *checker, const struct model_state *state, char violation[VIOLATION_MAX])
{
	struct told first = {0}, again = {0};
	struct fsck_options options = {
		.repair = true, .threads = 1, .report = note_left, .context = &first};
	struct fsck_summary summary;
	struct error err = {{0}};
	int run_fd, rc;

	violation[0] = '\0';
	checker_lay(checker, state);
	run_fd = open(checker->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	rc = fsck_run(checker->dir, run_fd, &options, &summary, &err);
	options = (struct fsck_options){.threads = 1, .report = note_found, .context = &again};
	if (rc == 0)
		rc = fsck_run(checker->dir, run_fd, &options, &summary, &err);
	if (rc < 0)
		snprintf(violation, VIOLATION_MAX, "fsck: %.200s", err.text);
	else if (first.left + again.left > 0)
		snprintf(violation, VIOLATION_MAX, "a repair leaves %u, and then %u are found (%s)",
			first.left, again.left, first.left > 0 ? first.last : again.last);
	close(run_fd);
}

static struct outcome *find_outcome(const struct checker *checker, uint64_t hash)
{
	uint64_t at = hash;

	while (checker->outcomes[at & (checker->outcome_room - 1)].hash != 0 &&
		checker->outcomes[at & (checker->outcome_room - 1)].hash != hash)
		at++;
	return &checker->outcomes[at & (checker->outcome_room - 1)];
}

static void make_room(struct checker *checker)
{
	struct checker grown = *checker;

	grown.outcome_room = checker->outcome_room == 0 ? 1024 : 2 * checker->outcome_room;
	grown.outcomes = calloc(grown.outcome_room, sizeof(*grown.outcomes));
	CHECK(grown.outcomes != NULL);
	for (uint32_t i = 0; i < checker->outcome_room; i++)
		if (checker->outcomes[i].hash != 0)
			*find_outcome(&grown, checker->outcomes[i].hash) = checker->outcomes[i];
	free(checker->outcomes);
	checker->outcomes = grown.outcomes;
	checker->outcome_room = grown.outcome_room;
}

const struct outcome *checker_look(
	struct checker *checker, const struct model_state *state, bool *ret_new)
{
	struct outcome *outcome;

	if (2 * checker->outcome_count >= checker->outcome_room)
		make_room(checker);
	outcome = find_outcome(checker, state->hash);
	*ret_new = outcome->hash == 0;
	if (*ret_new) {
		outcome->hash = state->hash;
		checker->outcome_count++;
		look(checker, state, outcome);
	}
	return outcome;
}

static void name_lost(const struct checker *checker, uint32_t lost, const char *what,
	char violation[VIOLATION_MAX])
{
	for (uint32_t i = 0; i < *checker->known_count; i++)
		if ((lost >> i & 1) != 0) {
			snprintf(violation, VIOLATION_MAX, "%s step %llu of branch %u", what,
				(unsigned long long)checker->known[i].step,
				checker->known[i].branch);
			return;
		}
}

void checker_hold(const struct checker *checker, const struct outcome *outcome,
	const struct promise *promise, char violation[VIOLATION_MAX])
{
	uint32_t must = promise->saved & ~promise->retired;
	uint32_t candidates = must & outcome->on_line;
	uint64_t newest = 0;

	snprintf(violation, VIOLATION_MAX, "%s", outcome->violation);
	if (violation[0] != '\0')
		return;
	for (uint32_t i = 0; i < *checker->known_count; i++)
		if ((candidates >> i & 1) != 0 && checker->known[i].step > newest)
			newest = checker->known[i].step;
	if ((must & ~outcome->whole) != 0)
		name_lost(checker, must & ~outcome->whole, "P1: lost is", violation);
	else if (candidates != 0 && outcome->load < 0)
		snprintf(violation, VIOLATION_MAX, "P1: nothing is loaded (%d), step %llu stands",
			outcome->load, (unsigned long long)newest);
	else if (candidates != 0 && outcome->step < newest)
		snprintf(violation, VIOLATION_MAX, "P1: step %llu is loaded, step %llu stands",
			(unsigned long long)outcome->step, (unsigned long long)newest);
	else if ((promise->branches & ~outcome->branches) != 0)
		snprintf(violation, VIOLATION_MAX, "P8: branches %#x are lost",
			promise->branches & ~outcome->branches);
	else if ((promise->kept & ~outcome->kept) != 0)
		name_lost(checker, promise->kept & ~outcome->kept, "P8: no longer kept is",
			violation);
	else if (promise->wanted != 0 && (promise->wanted & outcome->wanted) == 0)
		snprintf(violation, VIOLATION_MAX, "what was wanted is forgotten");
	else if (!checker->lenient &&
		(promise->catalogued & ~promise->retired & ~outcome->rows) != 0)
		name_lost(checker, promise->catalogued & ~promise->retired & ~outcome->rows,
			"the row no longer calls verified", violation);
}
