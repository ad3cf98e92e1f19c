/* What was verified once, and what has become of it. Damage on purpose is written down before it is
 * done, counts when it is noticed, and is forgotten when the file is written again or deleted. */
#include "tests/chaos/chaos.h"

#include "store/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define LOOKS_MAX 20
#define WHOLE_LEAST 3

static struct kept *find(struct chaos *chaos, const char *id)
{
	for (unsigned i = chaos->kept_count; i-- > 0;)
		if (strcmp(chaos->kept[i].id, id) == 0)
			return &chaos->kept[i];
	return NULL;
}

static bool find_file(const struct chaos *chaos, const char *id, struct stat *about)
{
	char path[2 * RIG_PATH_MAX];

	rig_checkpoint_path(&chaos->rig, id, path);
	return stat(path, about) == 0;
}

static int64_t changed_ns(const struct stat *about)
{
	return about->st_mtim.tv_sec * NSEC_PER_SEC + about->st_mtim.tv_nsec;
}

/* It has been noticed when the name was given to another file since. */
static bool was_written_again(const struct chaos *chaos, const struct kept *kept)
{
	struct stat about;

	return find_file(chaos, kept->id, &about) &&
		(about.st_ino != kept->inode || changed_ns(&about) != kept->changed_ns);
}

static void notice(struct chaos *chaos, struct kept *kept, enum fate fate)
{
	if (kept->fate == DAMAGED)
		chaos->effective[kept->by]++;
	kept->fate = fate;
}

static const char *state_in(const json_t *rows, const char *id)
{
	for (size_t i = 0; i < json_array_size(rows); i++) {
		const json_t *row = json_array_get(rows, i);

		if (strcmp(json_get_text(row, "id", ""), id) == 0)
			return json_get_text(row, "state", "");
	}
	return "";
}

static void add_new(struct chaos *chaos, const json_t *rows)
{
	for (size_t i = json_array_size(rows); i-- > 0;) {
		const json_t *row = json_array_get(rows, i);
		const char *id = json_get_text(row, "id", "");
		struct kept *kept = find(chaos, id);

		if (strcmp(json_get_text(row, "state", ""), "verified") != 0)
			continue;
		if (kept && kept->fate == DAMAGED && !was_written_again(chaos, kept))
			continue;
		if (!kept) {
			assert_true(chaos->kept_count < KEPT_MAX);
			kept = &chaos->kept[chaos->kept_count++];
			*kept = (struct kept){.step = json_get_int(row, "step", -1)};
			snprintf(kept->id, sizeof(kept->id), "%s", id);
		}
		notice(chaos, kept, WHOLE);
	}
}

/* Also those that were saved, and whose catalog was lost, since the last look: no row says any more
 * that they were verified. */
static unsigned count_newer(struct chaos *chaos, const json_t *rows, int64_t step)
{
	unsigned count = 0;

	for (unsigned i = 0; i < chaos->kept_count; i++)
		count += chaos->kept[i].step > step;
	for (size_t i = 0; i < json_array_size(rows); i++) {
		const json_t *row = json_array_get(rows, i);

		count += strcmp(json_get_text(row, "state", ""), "found") == 0 &&
			json_get_int(row, "step", -1) > step &&
			!find(chaos, json_get_text(row, "id", ""));
	}
	return count;
}

static bool is_one_of(const char *state, const char *const *states)
{
	while (*states)
		if (strcmp(state, *states++) == 0)
			return true;
	return false;
}

/* False: it is not where its row says, which retention may do between two looks. */
static bool settle(struct chaos *chaos, const json_t *rows, struct kept *kept)
{
	static const char *const bad[] = {"corrupt", "missing", "unreadable", "refused", NULL};
	static const char *const good[] = {"verified", "found", NULL};
	const char *state = state_in(rows, kept->id);
	struct stat about;

	if (kept->fate == DAMAGED && is_one_of(state, bad)) {
		notice(chaos, kept, NOTICED);
		return true;
	}
	if (*state == '\0' || strcmp(state, "deleted") == 0) {
		if (kept->fate == WHOLE && count_newer(chaos, rows, kept->step) < chaos->spared)
			fail_msg("%s was verified and whole, and is gone", kept->id);
		kept->fate = GONE;
		return true;
	}
	if (kept->fate == NOTICED || kept->fate == GONE)
		return true;
	if (kept->fate == WHOLE && !is_one_of(state, good))
		fail_msg("%s was verified and whole, and is %s now", kept->id, state);
	return kept->fate != WHOLE || find_file(chaos, kept->id, &about);
}

bool kept_update(struct chaos *chaos)
{
	int64_t floor = 0;
	bool settled = false;
	char error[64];

	for (int look = 0; look < LOOKS_MAX && !settled; look++) {
		AUTO_JSON reply = rig_call(
			&chaos->rig, "Checkpoints", json_pack("{s:b}", "all", 1), error);
		const json_t *rows = json_object_get(reply, "checkpoints");

		if (!reply)
			return false;
		settled = true;
		add_new(chaos, rows);
		for (unsigned i = 0; i < chaos->kept_count; i++) {
			struct kept *kept = &chaos->kept[i];

			if (kept->fate == WHOLE || kept->fate == DAMAGED)
				settled &= settle(chaos, rows, kept);
		}
		if (!settled)
			usleep(20000);
	}
	if (!settled)
		fail_msg("the catalog promises a file that is not there");
	for (unsigned i = 0; i < chaos->kept_count; i++)
		if (chaos->kept[i].fate == WHOLE && chaos->kept[i].step > floor)
			floor = chaos->kept[i].step;
	atomic_store(&chaos->watch->floor, floor);
	return true;
}

size_t kept_whole(const struct chaos *chaos, unsigned found[KEPT_MAX])
{
	size_t count = 0;

	for (unsigned i = 0; i < chaos->kept_count; i++)
		if (chaos->kept[i].fate == WHOLE)
			found[count++] = i;
	for (size_t i = 1; i < count; i++)
		for (size_t j = i;
			j > 0 && chaos->kept[found[j]].step > chaos->kept[found[j - 1]].step; j--) {
			unsigned other = found[j];

			found[j] = found[j - 1];
			found[j - 1] = other;
		}
	return count;
}

bool kept_is_damage_hidden(const struct chaos *chaos)
{
	for (unsigned i = 0; i < chaos->kept_count; i++)
		if (chaos->kept[i].fate == DAMAGED)
			return true;
	return false;
}

void kept_expect_all_whole(struct chaos *chaos)
{
	unsigned whole[KEPT_MAX];
	char path[2 * RIG_PATH_MAX], name[96];
	size_t count;

	assert_true(kept_update(chaos));
	count = kept_whole(chaos, whole);
	assert_true(count >= 2);
	snprintf(path, sizeof(path), "%s/checkpoints", chaos->rig.run_dir);
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; i < count; i++) {
		struct checkpoint_info info;
		struct error error;

		snprintf(name, sizeof(name), "%s" CHECKPOINT_SUFFIX, chaos->kept[whole[i]].id);
		int fd = checkpoint_open(dir, name, &info, &error);

		if (fd < 0)
			fail_msg("%s", error.text);
		void *block = malloc(info.block_bytes);

		assert_non_null(block);
		if (checkpoint_read(fd, &info, block, NULL, 1, NULL, &error) < 0)
			fail_msg("%s", error.text);
		free(block);
		checkpoint_info_fini(&info);
		close(fd);
	}
	close(dir);
}

/* -- damage -- */

static void flip_bit(int fd, off_t at)
{
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 4;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}

static void hurt(struct chaos *chaos, struct kept *kept, enum fault fault)
{
	char path[2 * RIG_PATH_MAX];
	struct stat about;

	rig_checkpoint_path(&chaos->rig, kept->id, path);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0) /* retention was faster */
		return;
	assert_int_equal(fstat(fd, &about), 0);
	off_t at = (off_t)chaos_below(chaos, (unsigned)about.st_size);

	kept->fate = DAMAGED;
	kept->by = fault;
	if (fault == FLIP_RUNNING || fault == FLIP_BETWEEN)
		flip_bit(fd, at);
	else if (fault == TRUNCATE_RUNNING || fault == TRUNCATE_BETWEEN)
		assert_int_equal(ftruncate(fd, at), 0);
	else
		unlink(path);
	assert_int_equal(fstat(fd, &about), 0);
	close(fd);
	kept->inode = about.st_nlink > 0 ? about.st_ino : 0;
	kept->changed_ns = changed_ns(&about);
}

/* Those that are left must do for a start. */
static size_t gather_whole(struct chaos *chaos, unsigned whole[KEPT_MAX])
{
	size_t count = 0;
	char id[64];

	for (int i = 0; i < 2 * WHOLE_LEAST && count < WHOLE_LEAST; i++) {
		chaos_let_a_step_finish(chaos);
		rig_save(&chaos->rig, id, NULL);
		assert_true(kept_update(chaos));
		count = kept_whole(chaos, whole);
	}
	assert_true(count >= WHOLE_LEAST);
	return count;
}

/* The floor of what may be lost is lowered before the file is touched. */
static void choose_and_hurt(struct chaos *chaos, enum fault fault, bool newest)
{
	unsigned whole[KEPT_MAX];
	size_t count = kept_whole(chaos, whole);
	size_t at = newest ? 0 : chaos_below(chaos, (unsigned)count);

	if (at == 0)
		atomic_store(&chaos->watch->floor, chaos->kept[whole[1]].step);
	hurt(chaos, &chaos->kept[whole[at]], fault);
}

bool damage_checkpoint(struct chaos *chaos, enum fault fault)
{
	bool running = fault == FLIP_RUNNING || fault == TRUNCATE_RUNNING ||
		fault == DELETE_RUNNING;
	bool newest = chaos_below(chaos, 2), hidden = chaos_below(chaos, 4) == 0;
	unsigned whole[KEPT_MAX];
	int64_t step;

	gather_whole(chaos, whole);
	step = rig_step(&chaos->rig);
	if (!running)
		supervisor_end(chaos, chaos_below(chaos, 2) ? SIGKILL : 0);
	choose_and_hurt(chaos, fault, newest);
	if (!running)
		supervisor_start_and_check(chaos, step);
	/* Some stay as they are, until something else meets them. */
	if (!hidden)
		json_decref(rig_call(&chaos->rig, "Scrub", json_pack("{s:b}", "wait", 1), NULL));
	kept_update(chaos);
	return false; /* counts when it is noticed */
}
