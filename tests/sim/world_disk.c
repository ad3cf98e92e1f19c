/* The disk of world.h: the run's folder, the catalog and the checkpoints, and the ledger's thread
 * as something that takes its time. What books_line.c and books.c do with them is theirs. */
#include "tests/sim/world.h"

#include "base/panic.h"
#include "store/retention.h"
#include "supervisor/books_room.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_LAST_MIN 2

int __wrap_line_load(int checkpoints_fd, struct line *ret, struct error *err);
int __wrap_file_create(int dir_fd, const char *name, const void *data, size_t size, mode_t mode);
int __wrap_catalog_open(const char *run_dir, int mode, struct catalog **ret, struct error *err);
void __wrap_catalog_close(struct catalog *catalog);
int __wrap_catalog_list(struct catalog *catalog, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err);
int __wrap_run_store(int run_fd, const struct run *run, struct error *err);
int __wrap_run_write_last_good(int run_fd, const struct config *config, struct error *err);
int __wrap_run_check_identity(
	const struct run *run, const struct config *config, struct error *err);

static struct books room = {.run_fd = FD_RUN, .checkpoints_fd = FD_CHECKPOINTS};

/* -- files -- */

bool disk_full(void)
{
	return virtual_now_ns < world.full_until_ns;
}

bool disk_fails(void)
{
	return disk_full() || virtual_now_ns < world.broken_until_ns;
}

bool line_holds(const struct file *file)
{
	return line_contains(&world.line, file->branch, file->step);
}

static struct file *find_newest(bool told)
{
	struct file *newest = NULL;

	for (uint32_t i = 0; i < FILES_MAX; i++) {
		struct file *file = &world.files[i];

		if (file->used && file->row == CHECKPOINT_VERIFIED && !file->rotten &&
			line_holds(file) && (file->told || !told) &&
			(!newest || file->step > newest->step))
			newest = file;
	}
	return newest;
}

struct file *newest_good(void)
{
	return find_newest(false);
}

struct file *newest_told(void)
{
	return find_newest(true);
}

struct file *find_file(uint64_t step, uint32_t branch)
{
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (world.files[i].used && world.files[i].step == step &&
			world.files[i].branch == branch)
			return &world.files[i];
	return NULL;
}

static uint32_t count_verified(void)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < FILES_MAX; i++)
		count += world.files[i].used && world.files[i].row == CHECKPOINT_VERIFIED &&
			line_holds(&world.files[i]);
	return count;
}

void retain(void)
{
	struct retention_item items[FILES_MAX];
	struct retention_policy policy = world.retention;
	uint32_t at[FILES_MAX], count = 0, verified = count_verified();

	for (uint32_t i = 0; i < FILES_MAX; i++) {
		const struct file *file = &world.files[i];

		if (!file->used)
			continue;
		at[count] = i;
		items[count++] = (struct retention_item){.step = file->step,
			.branch = file->branch,
			.file_bytes = FILE_BYTES,
			.trained_seconds = file->step,
			.loss = NAN,
			.verified = file->row == CHECKPOINT_VERIFIED,
			.on_line = line_holds(file),
			.keep = file->keep,
			.corrupt = file->row == CHECKPOINT_CORRUPT,
			.found = file->row == CHECKPOINT_FOUND || file->row == CHECKPOINT_MISSING};
	}
	if (policy.keep_last > 0)
		policy.keep_last = (uint32_t)world.sup->config.keep_last;
	retention_decide(items, count, &policy);
	while (disk_full() && retention_make_room(items, count))
		world.counts->made_room++;
	for (uint32_t i = 0; i < count; i++) {
		if (!items[i].remove)
			continue;
		MUST(!world.files[at[i]].keep, "a kept checkpoint is removed");
		world.files[at[i]].used = false;
		world.counts->removed++;
	}
	MUST(count_verified() >= (verified < KEEP_LAST_MIN ? verified : KEEP_LAST_MIN),
		"retention leaves fewer than two of %u verified checkpoints", verified);
}

/* -- store/, as books_line.c and books.c see it -- */

int __wrap_line_load(int checkpoints_fd, struct line *ret, struct error *err)
{
	*ret = world.line;
	ret->branches = malloc(world.line.count * sizeof(*ret->branches));
	CHECK(ret->branches);
	memcpy(ret->branches, world.line.branches, world.line.count * sizeof(*ret->branches));
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (world.files[i].used && world.files[i].branch > ret->highest)
			ret->highest = world.files[i].branch;
	return 0;
}

int __wrap_file_create(int dir_fd, const char *name, const void *data, size_t size, mode_t mode)
{
	return disk_full() ? -ENOSPC : disk_fails() ? -EIO : 0;
}

int __wrap_catalog_open(const char *run_dir, int mode, struct catalog **ret, struct error *err)
{
	if (!disk_fails() && (calm() || !one_in(400))) {
		*ret = (struct catalog *)&room;
		return 0;
	}
	return error_set(err, -EIO, "catalog.sqlite cannot be read now");
}

void __wrap_catalog_close(struct catalog *catalog)
{
}

static int compare_rows(const void *a, const void *b)
{
	const struct catalog_row *x = a, *y = b;

	if (x->step != y->step)
		return x->step < y->step ? 1 : -1;
	return (x->branch < y->branch) - (x->branch > y->branch);
}

int __wrap_catalog_list(struct catalog *catalog, struct catalog_row **ret, uint32_t *ret_count,
	uint32_t *ret_bad, struct error *err)
{
	struct catalog_row *rows = calloc(FILES_MAX, sizeof(*rows));
	uint32_t count = 0;

	CHECK(rows);
	for (uint32_t i = 0; i < FILES_MAX; i++) {
		struct file *file = &world.files[i];
		struct catalog_row *row = &rows[count];

		if (!file->used || file->row == CHECKPOINT_MISSING)
			continue;
		count++;
		file->told = true;
		row->step = file->step;
		row->branch = file->branch;
		row->state = file->row;
		row->keep = file->keep;
		checkpoint_id_format(file->step, file->branch, row->id);
		memcpy(row->root.bytes, &file->root, sizeof(file->root));
		clock_format_utc(file->verified_wall_ns, row->created);
		clock_format_utc(file->verified_wall_ns, row->verified_at);
		if (file->mirrored)
			clock_format_utc(file->verified_wall_ns, row->mirrored_at);
	}
	qsort(rows, count, sizeof(*rows), compare_rows);
	*ret = rows;
	*ret_count = count;
	*ret_bad = 0;
	return 0;
}

int __wrap_run_store(int run_fd, const struct run *run, struct error *err)
{
	if (disk_fails() && one_in(2))
		return error_set(err, -ENOSPC, "run.json: no space left on device");
	world.run.wanted = run->wanted;
	world.run.power_paused = run->power_paused;
	world.run.verified_branch = run->verified_branch;
	return 0;
}

int __wrap_run_write_last_good(int run_fd, const struct config *config, struct error *err)
{
	return disk_fails() ? error_set(err, -ENOSPC, "last-good.conf: no space left on device")
			    : 0;
}

int __wrap_run_check_identity(const struct run *run, const struct config *config, struct error *err)
{
	return 0;
}

/* -- jobs -- */

static bool held_by_another(pid_t *ret)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		if (world.workers[i].alive && world.workers[i].orphan &&
			world.workers[i].role != ROLE_MIRROR) {
			*ret = world.workers[i].pid;
			return true;
		}
	return false;
}

static void do_open(struct ledger_job *job)
{
	struct open_job *open = (struct open_job *)job;

	open->run_fd = open->lock_fd = -1;
	open->outcome = OPEN_NO_RUN;
	job->result = -ENOENT;
	if (virtual_now_ns < world.no_run_until_ns)
		return;
	if (held_by_another(&open->owner)) {
		open->outcome = OPEN_LOCKED;
		job->result = -EWOULDBLOCK;
		return;
	}
	open->outcome = OPEN_DONE;
	job->result = 0;
	open->run = world.run;
	open->run_fd = FD_RUN;
	open->lock_fd = FD_LOCK;
}

static void do_fork(struct ledger_job *job)
{
	struct fork_job *fork = (struct fork_job *)job;
	struct line *line = &world.line;

	books_fork_work(job, &room);
	if (job->result < 0)
		return;
	MUST(find_worker(ROLE_TRAIN) == NULL, "a branch begins under a trainer");
	MUST(world.forks_allowed > 0, "a branch begins that nobody decided");
	if (fork->call)
		watch_climb_lost();
	world.forks_allowed--;
	world.counts->forks++;
	line->branches = realloc(line->branches, (line->count + 1) * sizeof(*line->branches));
	CHECK(line->branches);
	line->branches[line->count++] = fork->branch;
	line->current = line->highest = fork->branch.branch;
	world.leave_memory = true;
	if (fork->which == FORK_SCRATCH)
		world.ever_verified = false; /* on this line */
}

static void do_reload(struct ledger_job *job)
{
	struct reload_job *reload = (struct reload_job *)job;

	if (one_in(4)) {
		job->result = error_set(&job->error, -EINVAL, "ckptd.conf:3: no such key");
		return;
	}
	reload->config = world.sup->config;
	reload->config.batch_size = 8 << below(3);
	reload->config.keep_last = 2 + (int64_t)below(4);
}

static void do_query(struct ledger_job *job)
{
	struct query_job *query = (struct query_job *)job;

	if (!query->call) {
		query->answer = json_null();
		return;
	}
	query->frame = strdup("{\"parameters\":{}}");
	CHECK(query->frame);
	query->frame_size = strlen(query->frame) + 1;
}

static void do_keep(struct ledger_job *job)
{
	struct keep_job *keep = (struct keep_job *)job;
	uint64_t step;
	uint32_t branch;
	struct file *file = NULL;

	if (checkpoint_id_parse(keep->id, &step, &branch) == 0)
		file = find_file(step, branch);
	if (!file)
		job->result = error_set(&job->error, -ENOENT, "there is no such checkpoint");
	else
		file->keep = keep->keep;
}

void host_job(struct ledger_job *job)
{
	if (job->work == books_open_work) {
		do_open(job);
	} else if (job->work == books_fork_work) {
		world.tried_ns = virtual_now_ns;
		do_fork(job);
	} else if (job->work == books_reload_work) {
		do_reload(job);
	} else if (job->work == books_query_work) {
		do_query(job);
	} else if (job->work == books_keep_work) {
		do_keep(job);
	} else if (job->work == books_survey_work || job->work == books_memory_work ||
		job->work == books_store_run_work || job->work == books_last_good_work) {
		world.tried_ns = job->work == books_memory_work ? virtual_now_ns : world.tried_ns;
		job->work(job, &room);
	}
}

nsec_t host_job_ns(bool idle)
{
	nsec_t at_ns = virtual_now_ns + between_ns(50 * NSEC_PER_USEC, 3 * NSEC_PER_MSEC);

	return at_ns < world.ledger_until_ns ? world.ledger_until_ns : at_ns;
}
