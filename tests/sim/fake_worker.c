/* The roles of fake_worker.h. */
#include "tests/sim/fake_worker.h"

#include "base/panic.h"
#include "base/seal.h"
#include "proto/frame.h"
#include "proto/link.h"
#include "proto/progress.h"
#include "proto/state.h"
#include "store/recovery.h"
#include "store/scrub.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <sys/mman.h>
#include <unistd.h>

struct fake {
	struct frame_reader reader;
	json_t *start; /* borrowed from frame */
	json_t *frame;
	const char *run_dir;
	int run_fd, checkpoints_fd;
	struct config config;
	struct run run;
	struct tensor_table table;
	struct digest model_digest;
	struct state state;
	struct progress *progress;
	long finish_step, step_us, update_us, die_step, exit_step, exit_code, poison, hang_step,
		save_exit, save_kill, save_stale, save_wait_ms, prepare_exit, prepare_wait_ms,
		babble, scrub_wait_ms, scrub_kill, leak_kib, skip_step;
	long scrubbed;
};

static void sleep_us(long us)
{
	struct timespec time = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

	while (nanosleep(&time, &time) < 0)
		;
}

static void say(json_t *frame)
{
	CHECK(frame);
	if (frame_send(LINK_FD, frame, 0) < 0)
		_exit(LINK_EXIT_FAILED);
	json_decref(frame);
}

static int failed(int code, const struct error *error)
{
	fprintf(stderr, "fake worker: %s\n", error->text);
	say(json_pack("{s:{s:s}}", "failed", "text", error->text));
	return code;
}

static void on_report(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	say(json_pack("{s:{s:s, s:s, s:I, s:s}}", "event", "kind", kind, "level", level, "step",
		(json_int_t)step, "text", text));
}

static void read_behaviour(struct fake *fake)
{
	const struct {
		const char *key;
		long *value;
	} keys[] = {{"step_us", &fake->step_us}, {"update_us", &fake->update_us},
		{"die_step", &fake->die_step}, {"exit_step", &fake->exit_step},
		{"exit_code", &fake->exit_code}, {"poison", &fake->poison},
		{"hang_step", &fake->hang_step}, {"save_exit", &fake->save_exit},
		{"save_kill", &fake->save_kill}, {"save_stale", &fake->save_stale},
		{"save_wait_ms", &fake->save_wait_ms}, {"prepare_exit", &fake->prepare_exit},
		{"prepare_wait_ms", &fake->prepare_wait_ms}, {"babble", &fake->babble},
		{"scrub_wait_ms", &fake->scrub_wait_ms}, {"scrub_kill", &fake->scrub_kill},
		{"leak_kib", &fake->leak_kib}, {"skip_step", &fake->skip_step},
		{"finish_step", &fake->finish_step}};
	char path[4200], key[64];
	long value;

	fake->step_us = 2000;
	fake->die_step = fake->exit_step = fake->poison = fake->hang_step = fake->skip_step = -1;
	fake->finish_step = -1;
	snprintf(path, sizeof(path), "%s/behave", fake->run_dir);
	FILE *file = fopen(path, "re");

	if (!file)
		return;
	while (fscanf(file, "%63s %ld", key, &value) == 2)
		for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
			if (strcmp(keys[i].key, key) == 0)
				*keys[i].value = value;
	fclose(file);
}

static void make_table(struct fake *fake)
{
	static const uint32_t shape[] = {16, 1024};

	tensor_table_init(&fake->table);
	CHECK(tensor_table_add(&fake->table, "fake.weight", 2, shape) == 0);
	CHECK(tensor_table_layout(&fake->table, NULL) == 0);
	CHECK(fake->table.section_bytes == FAKE_SECTION_BYTES);
	fake->model_digest = tensor_table_digest(&fake->table);
}

static int begin(struct fake *fake, const char *role)
{
	struct error error;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	frame_reader_init(&fake->reader, FRAME_LINK_MAX);
	if (frame_receive(LINK_FD, &fake->reader, 0, &fake->frame, &error) < 0)
		return LINK_EXIT_FAILED;
	fake->start = json_object_get(fake->frame, "start");
	if (!fake->start || strcmp(json_get_text(fake->start, "role", ""), role) != 0 ||
		json_get_int(fake->start, "parent_pid", 0) != getppid())
		return LINK_EXIT_FAILED;
	fake->run_dir = json_get_text(fake->start, "run_dir", "");
	read_behaviour(fake);
	make_table(fake);
	if (json_to_config(json_object_get(fake->start, "config"), &fake->config, &error) < 0)
		return failed(LINK_EXIT_CONFIG, &error);
	fake->run_fd = run_open_dir(fake->run_dir, false, &error);
	if (fake->run_fd < 0 || run_load(fake->run_fd, &fake->run, &error) < 0)
		return failed(LINK_EXIT_FAILED, &error);
	fake->checkpoints_fd = openat(
		fake->run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fake->checkpoints_fd >= 0);
	say(json_pack("{s:{s:s, s:i}}", "hello", "role", role, "pid", (int)getpid()));
	return 0;
}

/* -- prepare -- */

static int role_prepare(struct fake *fake)
{
	struct recovery_summary summary;
	struct error error;
	char digest[DIGEST_HEX_SIZE];

	sleep_us(fake->prepare_wait_ms * 1000);
	if (fake->prepare_exit) {
		error_set(&error, -EIO, "told to fail");
		return failed((int)fake->prepare_exit, &error);
	}
	if (recovery_prepare(
		    fake->run_dir, fake->run_fd, &fake->run, on_report, NULL, &summary, &error) < 0)
		return failed(LINK_EXIT_TRANSIENT, &error);
	digest_to_hex(&fake->model_digest, digest);
	say(json_pack("{s:{s:I, s:I, s:s, s:s, s:i, s:i}}", "prepared", "section_bytes",
		(json_int_t)fake->table.section_bytes, "param_count",
		(json_int_t)fake->table.param_count, "model_digest", digest, "data_text", "fake",
		"images", 1, "classes", 0));
	return LINK_EXIT_DONE;
}

/* -- train -- */

/* The block of a step: every word of the tensor is the step, in all sections. */
static void write_block(struct fake *fake, uint32_t slot, uint64_t step)
{
	uint64_t *sums = state_sums(&fake->state, slot);

	for (uint32_t i = 0; i < SECTION_COUNT; i++) {
		float *section = state_section(&fake->state, slot, i);

		for (uint64_t j = 0; j < fake->table.param_count; j++)
			section[j] = (float)step;
	}
	seal_sums(state_section(&fake->state, slot, 0), SECTION_COUNT * fake->table.section_bytes,
		sums);
}

static struct digest sums_digest(const struct fake *fake, uint32_t slot)
{
	return digest_of(
		state_sums(&fake->state, slot), state_sum_count(&fake->state) * sizeof(uint64_t));
}

/* *ret_from: memory, checkpoint or scratch. */
static int resume(struct fake *fake, struct state_record *record, const char **ret_from)
{
	bool memory = strcmp(json_get_text(fake->start, "resume", ""), "memory") == 0;
	struct checkpoint_info info;
	struct error error;
	struct line line;
	uint32_t slot;

	if (line_load(fake->checkpoints_fd, &line, &error) < 0)
		return failed(LINK_EXIT_FAILED, &error);
	*ret_from = "memory";
	if (memory && state_newest_record(&fake->state, record) == 0 &&
		line_contains(&line, record->branch, record->step)) {
		line_fini(&line);
		return 0;
	}
	CHECK(state_begin_write(&fake->state, &slot) == 0);
	int code = recovery_load(fake->run_dir, fake->run_fd, &fake->run, &fake->table,
		state_section(&fake->state, slot, 0), state_sums(&fake->state, slot), 1,
		&fake->progress->moves, on_report, NULL, &info, &error);

	if (code == 0) {
		*record = info.record;
		*ret_from = "checkpoint";
		checkpoint_info_fini(&info);
	} else if (code == -ENOENT && json_get_bool(fake->start, "run_created", false)) {
		*record = (struct state_record){.model_digest = fake->model_digest};
		memcpy(record->run_id, fake->run.id, sizeof(record->run_id));
		write_block(fake, slot, 0);
		*ret_from = "scratch";
	} else {
		return failed(LINK_EXIT_TRANSIENT, &error);
	}
	record->branch = line.current;
	line_fini(&line);
	record->sums_digest = sums_digest(fake, slot);
	state_commit(&fake->state, slot, record);
	return 0;
}

/* A branch that skips the data of this step. */
static bool is_skipped(const struct fake *fake, uint64_t step)
{
	struct error error;
	struct line line;
	bool skipped = false;

	CHECK(line_load(fake->checkpoints_fd, &line, &error) == 0);
	const struct line_branch *branch = line_find(&line, line.current);

	for (uint32_t i = 0; i < branch->intervention_count; i++)
		skipped = skipped ||
			(branch->interventions[i].kind == INTERVENTION_SKIP_WINDOW &&
				branch->interventions[i].step == step);
	line_fini(&line);
	return skipped;
}

static void leak(long kib)
{
	size_t size = (size_t)kib << 10;
	char *lost = kib > 0 ? mmap(NULL, size, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
			     : NULL;

	CHECK(lost != MAP_FAILED);
}

static void misbehave(struct fake *fake, const struct state_record *record)
{
	leak(fake->leak_kib);
	if (((long)record->step == fake->die_step || (long)record->step == fake->exit_step) &&
		is_skipped(fake, record->step))
		return;
	if ((long)record->step == fake->die_step)
		raise(SIGABRT);
	if ((long)record->step == fake->exit_step)
		_exit((int)fake->exit_code);
	while ((long)record->step == fake->hang_step)
		sleep_us(100000);
}

static void one_step(struct fake *fake, struct state_record *record)
{
	uint32_t slot;

	progress_phase(fake->progress, PHASE_FORWARD);
	progress_move(fake->progress);
	sleep_us(fake->step_us);
	progress_phase(fake->progress, PHASE_UPDATE);
	while (state_begin_write(&fake->state, &slot) < 0)
		sleep_us(1000);
	write_block(fake, slot, record->step + 1);
	sleep_us(fake->update_us);
	misbehave(fake, record);
	bool skips = (long)record->step == fake->skip_step;

	record->step++;
	record->update_count += !skips;
	record->skipped_count += skips;
	record->images_seen += (uint64_t)fake->config.batch_size;
	record->loss = 1.0f / (float)record->step;
	record->sums_digest = sums_digest(fake, slot);
	state_commit(&fake->state, slot, record);
	atomic_store(&fake->progress->step_ns, (uint64_t)(fake->step_us * NSEC_PER_USEC));
	atomic_store(&fake->progress->images_per_step, (uint32_t)fake->config.batch_size);
	atomic_store(&fake->progress->step, record->step);
	progress_metric(fake->progress,
		&(struct metric){
			.step = record->step, .branch = record->branch, .kind = METRIC_TRAIN});
}

/* True when the supervisor says stop. */
static bool told_to_stop(struct fake *fake)
{
	struct pollfd poll_fd = {.fd = LINK_FD, .events = POLLIN};
	struct error error;
	json_t *frame;

	if (poll(&poll_fd, 1, 0) <= 0)
		return false;
	if (frame_receive(LINK_FD, &fake->reader, 0, &frame, &error) < 0)
		_exit(LINK_EXIT_FAILED);
	bool stop = json_object_get(frame, "stop") != NULL;
	json_t *config = json_object_get(json_object_get(frame, "reload"), "config");

	if (config)
		CHECK(json_to_config(config, &fake->config, &error) == 0);
	json_decref(frame);
	return stop;
}

static int role_train(struct fake *fake)
{
	struct state_record record;
	struct error error;
	const char *from;

	if (state_map(&fake->state, LINK_STATE_FD, true, &error) < 0 ||
		progress_map(LINK_PROGRESS_FD, &fake->progress, &error) < 0)
		return failed(LINK_EXIT_FAILED, &error);
	progress_phase(fake->progress, PHASE_START);
	int code = resume(fake, &record, &from);

	if (code)
		return code;
	atomic_store(&fake->progress->step, record.step);
	say(json_pack("{s:{s:I, s:i, s:s, s:s, s:s, s:s}}", "ready", "step",
		(json_int_t)record.step, "branch", (int)record.branch, "from", from, "engine",
		"fake", "engine_reason", "", "sandbox", "none: a fake"));
	if ((long)record.step == fake->poison)
		raise(SIGABRT);
	if (fake->babble)
		CHECK(write(LINK_FD, "{\"ready\": [1]}", 15) == 15);
	while (record.step < (uint64_t)fake->config.steps_total &&
		(long)record.step != fake->finish_step) {
		if (told_to_stop(fake))
			return LINK_EXIT_DONE;
		one_step(fake, &record);
	}
	say(json_pack("{s:{s:I}}", "finished", "step", (json_int_t)record.step));
	return LINK_EXIT_DONE;
}

/* -- save -- */

static bool still_pinned(void *context)
{
	struct fake *fake = context;
	struct state_record record;

	return state_pinned_record(&fake->state, &record) == 0 &&
		state_still_pinned(&fake->state, &record);
}

static int role_save(struct fake *fake)
{
	struct state_record record;
	struct checkpoint_saved saved;
	struct error error;
	struct recovery_outcome outcome;
	char root[DIGEST_HEX_SIZE], path[4300];

	sleep_us(fake->save_wait_ms * 1000);
	if (fake->save_exit) {
		error_set(&error, -EIO, "told to fail");
		return failed((int)fake->save_exit, &error);
	}
	if (json_get_int(fake->start, "attempt", 0) <= fake->save_kill)
		raise(SIGKILL);
	if (state_map(&fake->state, LINK_STATE_FD, true, &error) < 0)
		return failed(LINK_EXIT_FAILED, &error);
	CHECK(state_pinned_record(&fake->state, &record) == 0);
	struct checkpoint_source source = {.record = &record,
		.block = state_section(&fake->state, record.slot, 0),
		.sums = state_sums(&fake->state, record.slot),
		.table = &fake->table,
		.config = &fake->config,
		.still_valid = still_pinned,
		.context = fake,
		.attempt = (uint32_t)json_get_int(fake->start, "attempt", 0),
		.threads = 1};

	if (checkpoint_save(fake->checkpoints_fd, &source, &saved, &error) < 0)
		return failed(LINK_EXIT_STORAGE, &error);
	/* The checkpoint stands, whatever becomes of its row. */
	recovery_catalog_saved(fake->run_dir, fake->run_fd, &saved, &source, &fake->config,
		&outcome, on_report, NULL, &error);
	digest_to_hex(&saved.root, root);
	snprintf(path, sizeof(path), "%s/checkpoints/%s%s", fake->run_dir, saved.id,
		CHECKPOINT_SUFFIX);
	say(json_pack("{s:{s:s, s:I, s:i, s:s, s:s, s:b, s:b, s:I, s:b, s:i}}", "saved", "id",
		saved.id, "step", (json_int_t)record.step, "branch", (int)record.branch, "root",
		root, "path", path, "catalogued", outcome.catalogued, "already", saved.already,
		"over_bytes", (json_int_t)outcome.over_bytes, "stale", fake->save_stale > 0,
		"ms_total", 1));
	return LINK_EXIT_DONE;
}

/* -- scrub, verify -- */

static void on_begin(void *context, const char *id, uint64_t done_bytes, uint64_t total_bytes)
{
	struct fake *fake = context;

	say(json_pack("{s:{s:s, s:I, s:I}}", "scrub", "id", id, "bytes_done",
		(json_int_t)done_bytes, "bytes_total", (json_int_t)total_bytes));
	sleep_us(fake->scrub_wait_ms * 1000);
}

static int on_gate(void *context, uint64_t bytes)
{
	return told_to_stop(context) ? -ECANCELED : 0;
}

static int on_result(void *context, const struct scrub_result *result)
{
	struct fake *fake = context;

	say(json_pack("{s:{s:s, s:b, s:s, s:s, s:I}}", "verified", "id", result->id, "ok",
		result->state == CHECKPOINT_VERIFIED, "state", checkpoint_state_name(result->state),
		"text", result->text, "bytes", (json_int_t)result->bytes));
	if (fake->scrub_kill && ++fake->scrubbed == fake->scrub_kill)
		raise(SIGKILL);
	return 0;
}

static int role_scrub(struct fake *fake)
{
	const struct checkpoint_gate gate = {on_gate, fake};
	const struct scrub_options options = {.id = json_get_text(fake->start, "id", ""),
		.threads = 1,
		.gate = &gate,
		.begin = on_begin,
		.result = on_result,
		.report = on_report,
		.context = fake};
	struct error error;

	if (scrub_run(fake->run_dir, fake->run_fd, fake->run.id, &options, &error) < 0)
		return failed(LINK_EXIT_FAILED, &error);
	return LINK_EXIT_DONE;
}

bool fake_worker(int argc, char **argv, int *ret)
{
	static const struct {
		const char *name;
		int (*run)(struct fake *fake);
	} roles[] = {{"prepare", role_prepare}, {"train", role_train}, {"save", role_save},
		{"scrub", role_scrub}, {"verify", role_scrub}};
	static struct fake fake;

	for (size_t i = 0; argc == 2 && i < sizeof(roles) / sizeof(roles[0]); i++) {
		if (strcmp(argv[1], roles[i].name) == 0) {
			*ret = begin(&fake, roles[i].name);
			if (*ret == 0)
				*ret = roles[i].run(&fake);
			return true;
		}
	}
	return false;
}
