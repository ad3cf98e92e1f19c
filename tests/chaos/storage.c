/* The disk: a lost or damaged catalog and history, under a running daemon and between two, and no
 * space. */
#include "tests/chaos/chaos.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/disk/small_fs.h"

#define GARBAGE 1024
#define PAGE 4096             /* of a database, as SQLite makes it */
#define LOG_HEADER 32         /* of its log, whose frames are each a header */
#define LOG_FRAME (24 + PAGE) /* and a page */
#define SAVES_TO_NOTICE 3
#define REOPEN_US 1100000 /* a history that breaks at once again is left alone so long */
#define EVENT_WAIT_NS (5 * NSEC_PER_SEC)
#define POLL_US 20000
#define SPARE_BYTES (64 << 10) /* too little for anything */

static void path_of(const struct chaos *chaos, const char *name, char path[2 * RIG_PATH_MAX])
{
	snprintf(path, 2 * RIG_PATH_MAX, "%s/%s", chaos->rig.run_dir, name);
}

static void write_garbage(struct chaos *chaos, const char *path, off_t at)
{
	unsigned char garbage[GARBAGE];
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	for (int i = 0; i < GARBAGE; i++)
		garbage[i] = (unsigned char)chaos_below(chaos, 256);
	assert_int_equal(pwrite(fd, garbage, GARBAGE, at), GARBAGE);
	close(fd);
}

/* Anywhere, or over its beginning and that of its log, which a start cannot overlook. */
static void break_file(struct chaos *chaos, const char *path, bool anywhere)
{
	char log[2 * RIG_PATH_MAX + 8];
	struct stat about;

	assert_int_equal(stat(path, &about), 0);
	assert_true(about.st_size > GARBAGE);
	write_garbage(chaos, path,
		anywhere ? (off_t)chaos_below(chaos, (unsigned)about.st_size - GARBAGE) : 0);
	snprintf(log, sizeof(log), "%s-wal", path);
	if (!anywhere)
		write_garbage(chaos, log, 0);
}

static int64_t end_somehow(struct chaos *chaos)
{
	int64_t step = rig_step(&chaos->rig);

	supervisor_end(chaos, chaos_below(chaos, 2) ? SIGKILL : 0);
	return step;
}

/* -- the catalog -- */

bool fault_of_catalog(struct chaos *chaos, enum fault fault)
{
	bool running = fault == DELETE_CATALOG_RUNNING || fault == BREAK_CATALOG_RUNNING;
	bool deletes = fault == DELETE_CATALOG_RUNNING || fault == DELETE_CATALOG;
	static const char rebuilt[] = "the catalog was rebuilt from";
	char path[2 * RIG_PATH_MAX], line[512];
	int64_t step = 0;
	off_t mark;

	chaos_let_a_step_finish(chaos);
	assert_true(kept_update(chaos));
	path_of(chaos, "catalog.sqlite", path);
	mark = chaos_log_end(chaos);
	if (!running)
		step = end_somehow(chaos);
	if (deletes)
		assert_int_equal(unlink(path), 0);
	else
		break_file(chaos, path, chaos_below(chaos, 2));
	if (!running)
		supervisor_start_and_check(chaos, step);
	bool noticed = chaos_log_says(chaos, mark, rebuilt, 0, line);

	/* A save that was on its way may have been too far already. */
	for (int i = 0; running && !noticed && i < SAVES_TO_NOTICE; i++) {
		chaos_let_a_step_finish(chaos);
		json_decref(rig_call(&chaos->rig, "Save", json_pack("{s:b}", "wait", 1), line));
		noticed = chaos_log_says(chaos, mark, rebuilt, 0, line);
	}
	if (deletes && !noticed)
		fail_msg("nobody has noticed that the catalog is gone");
	return noticed;
}

/* -- the history -- */

static unsigned count_broken(const struct chaos *chaos)
{
	unsigned count = 0;
	struct dirent *entry;
	DIR *dir = opendir(chaos->rig.run_dir);

	assert_non_null(dir);
	while ((entry = readdir(dir)))
		count += strncmp(entry->d_name, "history.sqlite.broken-", 22) == 0;
	closedir(dir);
	return count;
}

static void drop_table(struct chaos *chaos, const char *path)
{
	static const char *const tables[] = {"attempt", "event", "metric", "life", "outage"};
	char *sql = sqlite3_mprintf("DROP TABLE %s", tables[chaos_below(chaos, 5)]);
	sqlite3 *db;

	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	sqlite3_busy_timeout(db, 5000);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	sqlite3_free(sql);
}

/* The trainer that was there before, or none when all steps are made. */
static bool is_at(struct chaos *chaos, pid_t trainer)
{
	pid_t now = rig_worker(&chaos->rig, "train");

	return now == trainer || now == 0;
}

/* One that breaks again within a second does not answer for that long. */
static bool event_comes(struct chaos *chaos, const char *kind, const char *part)
{
	nsec_t deadline = clock_monotonic_ns() + EVENT_WAIT_NS;

	do {
		char error[64];
		AUTO_JSON reply = rig_call(
			&chaos->rig, "Events", json_pack("{s:i}", "limit", 1000), error);
		const json_t *events = json_object_get(reply, "events");

		for (size_t i = 0; i < json_array_size(events); i++) {
			const json_t *event = json_array_get(events, i);

			if (strcmp(json_get_text(event, "kind", ""), kind) == 0 &&
				strstr(json_get_text(event, "text", ""), part))
				return true;
		}
		usleep(POLL_US);
	} while (clock_monotonic_ns() < deadline);
	return false;
}

/* What happens from now on is written down again; damage that is met late may cost an event more.
 */
static void expect_history_goes_on(struct chaos *chaos)
{
	char id[64], part[64] = "";
	int64_t step;

	for (int i = 0; i < SAVES_TO_NOTICE; i++) {
		chaos_let_a_step_finish(chaos);
		rig_save(&chaos->rig, id, &step);
		snprintf(part, sizeof(part), "step %lld of", (long long)step);
		if (event_comes(chaos, "saved", part))
			return;
	}
	fail_msg("the history does not go on: nothing about %s a branch", part);
}

/* Over the beginning of the file and of each page in its log, or anywhere in both; how a log is
 * made: sqlite.org/fileformat2.html, section 4. */
static void break_pages(struct chaos *chaos, const char *path, bool anywhere)
{
	char log[2 * RIG_PATH_MAX + 8];
	struct stat about;

	break_file(chaos, path, anywhere);
	snprintf(log, sizeof(log), "%s-wal", path);
	assert_int_equal(stat(log, &about), 0);
	if (anywhere && about.st_size > GARBAGE)
		write_garbage(
			chaos, log, (off_t)chaos_below(chaos, (unsigned)about.st_size - GARBAGE));
	for (off_t at = LOG_HEADER; !anywhere && at + LOG_FRAME <= about.st_size; at += LOG_FRAME)
		write_garbage(chaos, log, at + LOG_FRAME - PAGE);
}

/* What the supervisor has in memory it reads again only when somebody else has written; and while
 * somebody writes, it writes nothing. So the garbage comes in the middle of a write by a stranger,
 * and all that is read from then on is read from the disk. False: the stranger itself has met
 * damage that nobody had read. */
static bool break_open_history(struct chaos *chaos, const char *path, bool anywhere)
{
	static const char write[] = "BEGIN IMMEDIATE; UPDATE event SET wall_ns = wall_ns + 1"
				    " WHERE id = (SELECT max(id) FROM event)";
	sqlite3 *db;
	int code;

	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	sqlite3_busy_timeout(db, 5000);
	/* By then the log of this name may be the next one's. */
	sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	code = sqlite3_exec(db, write, NULL, NULL, NULL);
	assert_true(code == SQLITE_CORRUPT || (code == SQLITE_OK && sqlite3_changes(db) == 1));
	break_pages(chaos, path, anywhere);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
	assert_true(code == SQLITE_OK || code == SQLITE_CORRUPT);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	return code == SQLITE_OK;
}

/* It was set aside, which an event tells. */
static bool history_is_anew(struct chaos *chaos, unsigned broken)
{
	if (count_broken(chaos) == broken)
		return false;
	if (!event_comes(chaos, "history-lost", "set aside"))
		fail_msg("no event tells that a new history begins");
	return true;
}

/* Garbage that nobody reads before it is written over has no effect. */
bool fault_of_history(struct chaos *chaos, enum fault fault)
{
	bool deletes = fault == DELETE_HISTORY_RUNNING || fault == DELETE_HISTORY;
	bool running = fault == DELETE_HISTORY_RUNNING || fault == BREAK_HISTORY_RUNNING ||
		(fault == DROP_HISTORY_TABLE && chaos_below(chaos, 2));
	bool anywhere = chaos_below(chaos, 3) == 0, must_notice = false;
	char path[2 * RIG_PATH_MAX];
	unsigned broken;
	int64_t step = 0;
	pid_t trainer;

	usleep(REOPEN_US);
	chaos_let_a_step_finish(chaos);
	kept_update(chaos);
	path_of(chaos, "history.sqlite", path);
	broken = count_broken(chaos);
	trainer = rig_worker(&chaos->rig, "train");
	if (!running)
		step = end_somehow(chaos);
	if (fault == DROP_HISTORY_TABLE)
		drop_table(chaos, path);
	else if (deletes)
		assert_int_equal(unlink(path), 0);
	else if (running)
		must_notice = break_open_history(chaos, path, anywhere) && !anywhere;
	else
		break_file(chaos, path, anywhere);
	if (!running)
		supervisor_start_and_check(chaos, step);
	expect_history_goes_on(chaos);
	if (running && !is_at(chaos, trainer))
		fail_msg("a damaged history has disturbed the trainer");
	bool noticed = deletes ? access(path, F_OK) == 0 : history_is_anew(chaos, broken);

	if (must_notice && !noticed)
		fail_msg("nobody has noticed that the history is garbage");
	return noticed;
}

/* -- no space -- */

static bool storage_is_good(const json_t *status, int64_t value)
{
	return json_get_bool(json_object_get(status, "storage"), "ok", false);
}

static bool is_full(const struct chaos *chaos)
{
	struct statvfs about;

	assert_int_equal(statvfs(chaos->rig.run_dir, &about), 0);
	return about.f_bavail * about.f_bsize < SPARE_BYTES;
}

/* Older checkpoints give way to the save, or it fails. */
bool fault_of_disk(struct chaos *chaos, enum fault fault)
{
	char filler[2 * RIG_PATH_MAX], error[64], line[512];
	off_t mark;
	bool full, failed;

	/* Two are left when the disk is full: none of them may be one that was damaged. */
	if (kept_is_damage_hidden(chaos))
		json_decref(rig_call(&chaos->rig, "Scrub", json_pack("{s:b}", "wait", 1), NULL));
	chaos_let_a_step_finish(chaos);
	assert_true(kept_update(chaos));
	chaos->spared = 2;
	mark = chaos_log_end(chaos);
	path_of(chaos, "filler", filler);
	small_fs_fill(filler);
	full = is_full(chaos);
	json_decref(rig_call(&chaos->rig, "Save", json_pack("{s:b}", "wait", 1), error));
	failed = *error != '\0';
	chaos_let_a_step_finish(chaos);
	if (fault == KILL_ON_FULL_DISK) {
		int64_t step;

		kept_update(chaos);
		step = rig_step(&chaos->rig);
		supervisor_end(chaos, SIGKILL);
		supervisor_start_and_check(chaos, step);
		chaos_let_a_step_finish(chaos);
	}
	assert_int_equal(unlink(filler), 0);
	rig_send(&chaos->rig, "Save");
	rig_wait(&chaos->rig, "saving to resume", storage_is_good, 0);
	assert_true(kept_update(chaos));
	chaos->spared = KEEP_LAST;
	return full && (failed || chaos_log_says(chaos, mark, "to make room", 0, line));
}
