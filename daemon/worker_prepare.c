/* The role `prepare`: what a start must know before memory is made. Checks configuration, data and
 * run against each other, brings the catalog in line with the files, builds the data cache, and
 * tells the supervisor the sizes. Writes no checkpoint and trains nothing. Pictures are decoded
 * last: from the first one on, the process may read them and write the cache, and no more. */
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "daemon/worker.h"
#include "daemon/worker_confine.h"
#include "daemon/worker_engine.h"
#include "daemon/worker_plan.h"
#include "proto/progress.h"
#include "store/recovery.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A data_report that sends events. */
static void report_data(void *context, const char *level, const char *text)
{
	struct worker *worker = context;

	worker_event(&worker->link, "data", level, 0, "%s", text);
}

/* Landlock opens folders whole. */
static void warn_of_key(struct worker *worker, const char *folder)
{
	char key[PATH_MAX], whole[PATH_MAX];
	size_t length;

	if (!realpath(worker->start.config.signing_key, key) || !realpath(folder, whole))
		return;
	length = strlen(whole);
	if (strncmp(key, whole, length) == 0 && key[length] == '/')
		worker_event(&worker->link, "sandbox", "warning", 0,
			"the signing key lies below %s, which is open to the process that decodes "
			"pictures: move it away",
			folder);
}

/* A data_confine. Headers of checkpoints are still to be read. */
static void confine_to_pictures(void *context, const char *const *folders, uint64_t count)
{
	struct worker *worker = context;
	char cache[PATH_MAX + 16], checkpoints[PATH_MAX + 16];
	struct landlock_folder *all = calloc(count + 2, sizeof(*all));

	CHECK(all);
	snprintf(cache, sizeof(cache), "%s/cache", worker->start.run_dir);
	snprintf(checkpoints, sizeof(checkpoints), "%s/checkpoints", worker->start.run_dir);
	all[0] = (struct landlock_folder){cache, LANDLOCK_WRITE};
	all[1] = (struct landlock_folder){checkpoints, LANDLOCK_READ};
	for (uint64_t i = 0; i < count; i++)
		all[i + 2] = (struct landlock_folder){folders[i], LANDLOCK_READ};
	for (uint64_t i = 0; i < count + 2; i++)
		warn_of_key(worker, all[i].path);
	worker_confine_files(worker, all, count + 2);
	free(all);
}

/* Configuration errors first: they are found without touching the data. 0 or an exit code. */
static int check_config(struct worker *worker)
{
	const struct config *config = &worker->start.config;
	struct engine_choice choice;
	struct model model = {0};
	struct error err;
	int r = config_check(config, &err);

	if (r == 0)
		r = model_init(&model, config, 0, &err);
	if (r == 0)
		r = engine_choose(&model.config, "", config->engine, NULL, &choice, &err);
	model_fini(&model);
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err) : 0;
}

static int open_data(struct worker *worker, struct data *ret)
{
	struct progress *progress;
	struct error err;
	int r = progress_map(LINK_PROGRESS_FD, &progress, &err);

	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err);
	progress_phase(progress, PHASE_DATA);
	r = plan_prepare_data(&worker->start.config, worker->run_fd, &progress->moves, report_data,
		confine_to_pictures, worker, &err);
	if (r == 0)
		r = plan_open_data(&worker->start.config, worker->run_fd, ret, &err);
	progress_unmap(progress);
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err) : 0;
}

static int check_run(struct worker *worker, struct run *ret)
{
	struct error err;
	int r = run_load(worker->run_fd, ret, &err);

	if (r < 0)
		return worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err);
	if (memcmp(ret->id, worker->start.run_id, RUN_ID_SIZE) != 0)
		return worker_fail(worker, LINK_EXIT_FAILED,
			"%s holds run %s now, which is not the one this start is for",
			worker->start.run_dir, ret->id_hex);
	r = run_check_identity(ret, &worker->start.config, &err);
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err) : 0;
}

/* The newest checkpoint must be of these images and this net. A header that cannot be read is
 * recovery's affair. 0 or an exit code. */
static int check_newest(struct worker *worker, const struct catalog_row *newest,
	const struct data *data, const struct model *model)
{
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)];
	struct checkpoint_info info;
	struct error err;
	int dir = file_open_dir(worker->run_fd, "checkpoints", 0750), fd, r = 0;

	if (dir < 0)
		return 0;
	snprintf(name, sizeof(name), "%s" CHECKPOINT_SUFFIX, newest->id);
	fd = checkpoint_open(dir, name, &info, &err);
	sys_close(dir);
	if (fd < 0)
		return 0;
	if (!digest_equal(&info.record.model_digest, &model->digest))
		r = worker_fail(worker, LINK_EXIT_CONFIG,
			"%s is a checkpoint of another net than the configuration's: use another "
			"state_dir",
			newest->id);
	else if (!digest_equal(&info.record.data_digest, &data->digest))
		r = worker_fail(worker, LINK_EXIT_CONFIG,
			"the images (%s) are not those that %s was trained on: bring the old ones "
			"back, or "
			"begin another run in another state_dir",
			data->text, newest->id);
	checkpoint_info_fini(&info);
	sys_close(fd);
	return r;
}

static json_t *newest_json(const struct worker *worker, const struct recovery_summary *summary)
{
	const struct catalog_row *newest = &summary->newest;
	char root[DIGEST_HEX_SIZE], path[PATH_MAX + 64];

	if (!summary->has_newest)
		return json_null();
	digest_to_hex(&newest->root, root);
	snprintf(path, sizeof(path), "%s/checkpoints/%s" CHECKPOINT_SUFFIX, worker->start.run_dir,
		newest->id);
	return json_pack("{s:s,s:I,s:I,s:s,s:s}", "id", newest->id, "step",
		(json_int_t)newest->step, "branch", (json_int_t)newest->branch, "root", root,
		"path", path);
}

static int say_prepared(struct worker *worker, const struct model *model, const struct data *data,
	const struct recovery_summary *summary)
{
	char model_hex[DIGEST_HEX_SIZE], data_hex[DIGEST_HEX_SIZE], signer[SIGN_PUBLIC_HEX_SIZE];
	int r;

	digest_to_hex(&model->digest, model_hex);
	digest_to_hex(&data->digest, data_hex);
	sign_public_hex(&worker->trust.keys[0], signer);
	r = worker_link_send(&worker->link,
		json_pack("{s:{s:I,s:I,s:s,s:s,s:s,s:I,s:I,s:I,s:s,s:s,s:I,s:o}}", "prepared",
			"section_bytes", (json_int_t)model->table.section_bytes, "param_count",
			(json_int_t)model->table.param_count, "model_digest", model_hex,
			"data_digest", data_hex, "data_text", data->text, "images",
			(json_int_t)(data->train_count + data->holdout_count), "classes",
			(json_int_t)data->class_count, "branch", (json_int_t)summary->branch,
			"catalog", summary->catalog, "signer", worker->trust.has_own ? signer : "",
			"checkpoints", (json_int_t)summary->on_line_count, "newest",
			newest_json(worker, summary)));
	return r < 0 ? LINK_EXIT_FAILED : LINK_EXIT_DONE;
}

static int prepare_store(struct worker *worker, const struct run *run, struct recovery_summary *ret)
{
	struct error err;
	int r;

	(void)worker_fetch_newest(worker, run, NULL);
	r = recovery_prepare(
		worker->start.run_dir, worker->run_fd, run, worker_report, worker, ret, &err);
	return r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_TRANSIENT, &err) : 0;
}

static int compare(
	struct worker *worker, const struct recovery_summary *summary, const struct data *data)
{
	struct model model = {0};
	struct error err;
	int r = model_init(&model, &worker->start.config, data->class_count, &err);

	if (r < 0)
		r = worker_fail_errno(worker, r, LINK_EXIT_CONFIG, &err);
	if (r == 0 && summary->has_newest)
		r = check_newest(worker, &summary->newest, data, &model);
	if (r == 0)
		r = say_prepared(worker, &model, data, summary);
	model_fini(&model);
	return r;
}

int worker_prepare(struct worker *worker)
{
	struct recovery_summary summary;
	struct run run = {0};
	struct data data = {0};
	int r = worker->trust_code < 0
		? worker_fail(worker, LINK_EXIT_CONFIG, "%s", worker->trust_text)
		: check_config(worker);

	if (r == 0)
		r = check_run(worker, &run);
	if (r == 0)
		r = prepare_store(worker, &run, &summary);
	if (r == 0)
		r = open_data(worker, &data);
	if (r == 0)
		r = compare(worker, &summary, &data);
	data_close(&data);
	run_fini(&run);
	return r;
}
