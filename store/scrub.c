/* See store/scrub.h. The rows are written in transactions of their own, with what they say at that
 * moment: a save, a deletion or a keep mark may have come since the list was made. The catalog is
 * open only then, so a scrub of hours is in nobody's way. */
#include "store/scrub.h"

#include "base/panic.h"
#include "base/sys.h"
#include "store/recovery_folder.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS_MAX 3 /* of one file that changes under the hands */

struct scrub {
	const char *run_dir;
	const uint8_t *run_id;
	const struct scrub_options *options;
	struct recovery_folder folder;
	struct scrub_item *items;
	uint32_t count;
	uint64_t done_bytes, total_bytes;
};

/* -- pure -- */

nsec_t scrub_pace_wait_ns(struct scrub_pace *pace, nsec_t now_ns, uint64_t bytes)
{
	nsec_t wait_ns;

	if (pace->rate_bytes == 0)
		return 0;
	if (pace->ready_ns < now_ns)
		pace->ready_ns = now_ns;
	wait_ns = pace->ready_ns - now_ns;
	pace->ready_ns += (nsec_t)((double)bytes * 1e9 / (double)pace->rate_bytes);
	return wait_ns;
}

static int compare_items(const void *a, const void *b)
{
	const struct scrub_item *x = a, *y = b;
	int order = strcmp(x->verified_at, y->verified_at);

	if (order != 0)
		return order;
	if (x->step != y->step)
		return x->step > y->step ? -1 : 1;
	return x->branch > y->branch ? -1 : x->branch < y->branch;
}

void scrub_order(struct scrub_item *items, uint32_t count)
{
	if (count > 1)
		qsort(items, count, sizeof(*items), compare_items);
}

void scrub_age_add(struct scrub_age *age, const struct catalog_row *row)
{
	nsec_t at_ns;

	age->bad_count += row->state == CHECKPOINT_CORRUPT;
	if (row->state != CHECKPOINT_VERIFIED && row->state != CHECKPOINT_FOUND)
		return;
	at_ns = clock_parse_utc(row->verified_at);
	age->unknown = age->unknown || at_ns < 0;
	if (at_ns >= 0 && (age->oldest_ns == 0 || at_ns < age->oldest_ns))
		age->oldest_ns = at_ns;
	age->count++;
}

nsec_t scrub_due_ns(const struct scrub_age *age, nsec_t interval_ns, nsec_t now_wall_ns)
{
	if (interval_ns == 0 || age->count == 0)
		return INT64_MAX;
	if (age->unknown || age->oldest_ns > now_wall_ns)
		return 0;
	return age->oldest_ns + interval_ns;
}

/* -- the list -- */

static bool is_kept(const struct catalog_row *row)
{
	return row->state != CHECKPOINT_DELETED && row->state != CHECKPOINT_MISSING;
}

static bool is_asked(const struct scrub *scrub, uint64_t step, uint32_t branch)
{
	char id[CHECKPOINT_ID_SIZE];

	if (scrub->options->id == NULL || *scrub->options->id == '\0')
		return true;
	checkpoint_id_format(step, branch, id);
	return strcmp(id, scrub->options->id) == 0;
}

static void add_file(
	struct scrub *scrub, const struct scan_file *file, const struct catalog_row *row)
{
	struct scrub_item *item = &scrub->items[scrub->count];
	struct stat stat;

	if (!is_asked(scrub, file->step, file->branch))
		return;
	*item = (struct scrub_item){.step = file->step, .branch = file->branch, .has_file = true};
	if (row != NULL)
		memcpy(item->verified_at, row->verified_at, sizeof(item->verified_at));
	if (sys_fstatat(scrub->folder.fd, file->name, &stat) == 0)
		item->file_bytes = (uint64_t)stat.st_size;
	scrub->total_bytes += item->file_bytes;
	scrub->count++;
}

static void add_row(struct scrub *scrub, const struct catalog_row *row)
{
	if (!is_kept(row) || !is_asked(scrub, row->step, row->branch))
		return;
	for (uint32_t i = 0; i < scrub->folder.scan.file_count; i++)
		if (scrub->folder.scan.files[i].step == row->step &&
			scrub->folder.scan.files[i].branch == row->branch)
			return;
	scrub->items[scrub->count++] = (struct scrub_item){
		.step = row->step, .branch = row->branch};
}

/* Rows, or none when the catalog cannot be used: then all were never verified. */
static void read_rows(const struct scrub *scrub, struct catalog_row **ret, uint32_t *ret_count)
{
	struct catalog *catalog;
	struct error err;
	uint32_t bad;
	int rc = catalog_open(scrub->run_dir, CATALOG_READ, &catalog, &err);

	*ret = NULL;
	*ret_count = 0;
	if (rc == 0) {
		rc = catalog_list(catalog, ret, ret_count, &bad, &err);
		catalog_close(catalog);
	}
	if (rc < 0)
		recovery_tell(scrub->options->report, scrub->options->context, "catalog", "warning",
			0, "the catalog cannot be used now (%s); the files are", err.text);
}

static int make_list(struct scrub *scrub, struct error *err)
{
	const struct scan *scan = &scrub->folder.scan;
	struct catalog_row *rows;
	uint32_t row_count;

	read_rows(scrub, &rows, &row_count);
	scrub->items = calloc((size_t)scan->file_count + row_count + 1, sizeof(*scrub->items));
	if (scrub->items == NULL) {
		free(rows);
		return error_set(err, -ENOMEM, "no memory for the list of checkpoints");
	}
	for (uint32_t i = 0; i < scan->file_count; i++)
		add_file(scrub, &scan->files[i],
			recovery_find_row(
				rows, row_count, scan->files[i].step, scan->files[i].branch));
	for (uint32_t i = 0; i < row_count; i++)
		add_row(scrub, &rows[i]);
	free(rows);
	scrub_order(scrub->items, scrub->count);
	return 0;
}

/* -- one file -- */

struct check {
	int checkpoints_fd;
	const char *name;
	const uint8_t *run_id;
	uint32_t threads;
	const struct checkpoint_gate *gate;
	struct checkpoint_info *info;
	int fd;
};

static void check_again(struct check *check)
{
	if (check->fd < 0)
		return;
	sys_close(check->fd);
	checkpoint_info_fini(check->info);
	check->fd = -1;
}

static int check_once(void *context, struct error *err)
{
	struct check *check = context;
	int rc;

	check_again(check);
	rc = checkpoint_open_past_cache(check->checkpoints_fd, check->name, check->info, err);
	if (rc < 0)
		return rc;
	check->fd = rc;
	if (check->run_id != NULL &&
		memcmp(check->info->record.run_id, check->run_id, RUN_ID_SIZE) != 0)
		return error_set(
			err, -EPROTONOSUPPORT, "%s: it belongs to another run", check->info->id);
	return checkpoint_verify(check->fd, check->info, check->threads, check->gate, err);
}

int scrub_check_file(int checkpoints_fd, const char *name, const uint8_t *run_id, uint32_t threads,
	const struct checkpoint_gate *gate, struct checkpoint_info *ret, int *ret_fd,
	struct error *err)
{
	struct check check = {checkpoints_fd, name, run_id, threads, gate, ret, -1};
	int rc = recovery_try(check_once, &check, err);

	*ret_fd = check.fd;
	return rc;
}

static void name_of(const struct scrub_item *item, char name[SCAN_NAME_MAX])
{
	char id[CHECKPOINT_ID_SIZE];

	checkpoint_id_format(item->step, item->branch, id);
	snprintf(name, SCAN_NAME_MAX, "%s%s", id, CHECKPOINT_SUFFIX);
}

/* -- its row -- */

/* What was found, to be written down. */
struct verdict {
	const struct scrub_item *item;
	const struct checkpoint_info *info; /* NULL: its header could not be used */
	enum checkpoint_state state;
	const char *text;
};

/* A row of another root speaks of another file: one that came since. A deletion is not undone. */
static bool may_change(const struct catalog_row *old, const struct verdict *verdict)
{
	if (old->state == CHECKPOINT_DELETED)
		return false;
	return verdict->info == NULL || verdict->state == CHECKPOINT_VERIFIED ||
		digest_equal(&old->root, &verdict->info->root) || old->state == CHECKPOINT_FOUND ||
		old->state == CHECKPOINT_REFUSED;
}

/* Its header could not be used, and now it can: a save has put another file there since, or the
 * reading was at fault. Asked with the catalog held, so the save's own row comes after ours. */
static bool is_another_now(const struct scrub *scrub, const struct verdict *verdict)
{
	struct checkpoint_info info;
	char name[SCAN_NAME_MAX];
	int fd;

	if (verdict->info != NULL || verdict->state != CHECKPOINT_CORRUPT)
		return false;
	name_of(verdict->item, name);
	fd = checkpoint_open(scrub->folder.fd, name, &info, NULL);
	if (fd < 0)
		return false;
	sys_close(fd);
	checkpoint_info_fini(&info);
	return true;
}

static void make_row(const struct scrub *scrub, const struct verdict *verdict,
	const struct catalog_row *old, struct catalog_row *ret)
{
	const struct scrub_item *item = verdict->item;
	struct scan_file file = {.step = item->step, .branch = item->branch};

	if (verdict->state == CHECKPOINT_VERIFIED) {
		CHECK(verdict->info != NULL);
		recovery_row_of_info(&scrub->folder, verdict->info, verdict->state, ret);
		recovery_row_carry(old, ret);
		if (old != NULL && digest_equal(&old->root, &ret->root))
			ret->keep = old->keep;
		catalog_row_verified_now(ret);
		return;
	}
	name_of(item, file.name);
	recovery_row_of_name(&scrub->folder, &file, old, verdict->state, verdict->text, ret);
	if (old != NULL)
		ret->keep = old->keep;
}

static void tell_change(
	const struct scrub *scrub, const struct catalog_row *old, const struct catalog_row *row)
{
	const char *state = checkpoint_state_name(row->state);
	bool news = old == NULL || old->state != row->state;

	if (!news ||
		(row->state == CHECKPOINT_VERIFIED &&
			(old == NULL || old->state == CHECKPOINT_FOUND)))
		return;
	recovery_tell(scrub->options->report, scrub->options->context, state,
		row->state == CHECKPOINT_CORRUPT            ? "error"
			: row->state == CHECKPOINT_VERIFIED ? "info"
							    : "warning",
		row->step, "%s is %s%s%s", row->id, state, row->text[0] != '\0' ? ": " : "",
		row->text);
}

static int put_row(const struct scrub *scrub, struct catalog *catalog,
	const struct verdict *verdict, struct error *err)
{
	struct catalog_row old, row;
	char id[CHECKPOINT_ID_SIZE];
	bool known;
	int rc = catalog_begin(catalog, err);

	if (rc < 0)
		return rc;
	checkpoint_id_format(verdict->item->step, verdict->item->branch, id);
	rc = catalog_get(catalog, id, &old, err);
	known = rc == 0;
	/* A damaged row is made anew. */
	if (rc == -ENOENT || rc == -EBADMSG)
		rc = 0;
	if (rc == 0 && known && !may_change(&old, verdict))
		return catalog_end(catalog, -ECANCELED, err);
	if (rc == 0 && is_another_now(scrub, verdict))
		return catalog_end(catalog, -ESTALE, err);
	make_row(scrub, verdict, known ? &old : NULL, &row);
	if (rc == 0)
		rc = catalog_put(catalog, &row, err);
	rc = catalog_end(catalog, rc, err);
	if (rc == 0)
		tell_change(scrub, known ? &old : NULL, &row);
	return rc;
}

/* A row that cannot be written is told; the verdict stands without it. -ECANCELED: it is not about
 * this file any more. -ESTALE: there is another, or the same to be read again. */
static int write_down(const struct scrub *scrub, const struct verdict *verdict)
{
	struct catalog *catalog = NULL;
	struct error err = {{0}};
	char id[CHECKPOINT_ID_SIZE];
	int rc = catalog_open(scrub->run_dir, CATALOG_WRITE, &catalog, &err);

	if (rc == 0)
		rc = put_row(scrub, catalog, verdict, &err);
	catalog_close(catalog);
	if (rc == 0 || rc == -ECANCELED || rc == -ESTALE)
		return rc;
	checkpoint_id_format(verdict->item->step, verdict->item->branch, id);
	recovery_tell(scrub->options->report, scrub->options->context, "catalog", "warning",
		verdict->item->step, "cannot write down that %s is %s: %s", id,
		checkpoint_state_name(verdict->state), err.text);
	return 0;
}

/* -- the walk -- */

/* 1: to be read again. */
static int conclude(const struct scrub *scrub, const struct verdict *verdict)
{
	char id[CHECKPOINT_ID_SIZE];
	int rc = write_down(scrub, verdict);

	if (rc < 0)
		return rc == -ESTALE;
	checkpoint_id_format(verdict->item->step, verdict->item->branch, id);
	return scrub->options->result(scrub->options->context,
		&(struct scrub_result){.id = id,
			.state = verdict->state,
			.text = verdict->text,
			.bytes = verdict->item->file_bytes});
}

/* Deleted by retention since the list was made: then its row says so. */
static int conclude_gone(const struct scrub *scrub, const struct scrub_item *item)
{
	const struct verdict verdict = {item, NULL, CHECKPOINT_MISSING, "the file is gone"};
	struct catalog *catalog = NULL;
	struct catalog_row row;
	char id[CHECKPOINT_ID_SIZE];
	int rc = catalog_open(scrub->run_dir, CATALOG_READ, &catalog, NULL);

	checkpoint_id_format(item->step, item->branch, id);
	if (rc == 0)
		rc = catalog_get(catalog, id, &row, NULL);
	catalog_close(catalog);
	return rc == 0 && is_kept(&row) ? conclude(scrub, &verdict) : 0;
}

/* As conclude. */
static int check_item(const struct scrub *scrub, const struct scrub_item *item, struct error *err)
{
	const struct scrub_options *options = scrub->options;
	struct checkpoint_info info;
	struct error why = {{0}};
	char id[CHECKPOINT_ID_SIZE], name[SCAN_NAME_MAX];
	int fd, rc;

	checkpoint_id_format(item->step, item->branch, id);
	if (options->begin != NULL)
		options->begin(options->context, id, scrub->done_bytes, scrub->total_bytes);
	name_of(item, name);
	rc = scrub_check_file(scrub->folder.fd, name, scrub->run_id, options->threads,
		options->gate, &info, &fd, &why);
	if (rc == -ECANCELED || (rc < 0 && recovery_is_ours(rc))) {
		rc = error_set(err, rc, "%s", why.text);
	} else if (rc == -ENOENT) {
		rc = conclude_gone(scrub, item);
	} else {
		const struct verdict verdict = {item, fd >= 0 ? &info : NULL,
			rc == 0 ? CHECKPOINT_VERIFIED : recovery_state_of(rc),
			rc == 0 ? "" : why.text};

		rc = conclude(scrub, &verdict);
	}
	if (fd >= 0) {
		sys_close(fd);
		checkpoint_info_fini(&info);
	}
	return rc;
}

static int walk(struct scrub *scrub, struct error *err)
{
	for (uint32_t i = 0; i < scrub->count; i++) {
		int rc = 1;

		for (int round = 0; rc > 0 && round < ROUNDS_MAX; round++)
			rc = check_item(scrub, &scrub->items[i], err);
		if (rc < 0)
			return rc;
		scrub->done_bytes += scrub->items[i].file_bytes;
	}
	return 0;
}

int scrub_run(const char *run_dir, int run_fd, const uint8_t *run_id,
	const struct scrub_options *options, struct error *err)
{
	struct scrub scrub = {.run_dir = run_dir, .run_id = run_id, .options = options};
	bool one = options->id != NULL && *options->id != '\0';
	int rc = recovery_folder_open(run_fd, &scrub.folder, err);

	if (rc < 0)
		return rc;
	rc = make_list(&scrub, err);
	if (rc == 0 && one && scrub.count == 0)
		rc = error_set(err, -ENOENT, "there is no checkpoint %.40s", options->id);
	if (rc == 0)
		rc = walk(&scrub, err);
	free(scrub.items);
	recovery_folder_close(&scrub.folder);
	return rc;
}
