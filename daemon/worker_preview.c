/* See worker_preview.h. */
#include "daemon/worker_preview.h"

#include "base/file.h"
#include "base/sys.h"
#include "daemon/diffusion/sampler.h"
#include "daemon/image/image.h"
#include "daemon/train/generate.h"
#include "daemon/train/holdout.h"
#include "daemon/worker_trainer.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct preview {
	struct sampler sampler;
	struct generate generate;
	struct holdout holdout;
	uint32_t count;  /* images; 0: no picture */
	int32_t *labels; /* NULL without classes */
	struct arena arena;
	float *images; /* [count, 3, H, W] */
};

/* Between two denoising steps: a stop need not wait for the whole picture. */
static bool stop_asked(void *context)
{
	struct trainer *trainer = context;
	struct error err;

	/* A broken link is the loop's to report, after the step. */
	return worker_link_poll(&trainer->worker->link, 0, &err) < 0 || trainer->worker->link.stop;
}

static void lay_out(struct preview *preview, struct arena *arena, const struct model *model)
{
	uint64_t side = model->config.sample_size;

	preview->images = arena_alloc(arena, preview->count * 3 * side * side * sizeof(float));
	preview->labels = model->config.class_count
		? arena_alloc(arena, preview->count * sizeof(int32_t))
		: NULL;
}

static int new_images(struct trainer *trainer, struct preview *preview, struct error *err)
{
	struct generate_setup setup = {
		.model = &trainer->model.config,
		.batch = trainer->train->setup.params.micro_batch,
		.sampler = &preview->sampler,
		.rng = trainer->rng,
		.guidance = 1,
		.cancelled = stop_asked,
		.context = trainer,
	};
	struct arena plan;
	int r = sampler_init(&preview->sampler, SAMPLER_DDIM, &trainer->schedule,
		(uint32_t)trainer->config.preview_steps, true, err);

	if (r < 0)
		return r;
	r = generate_init(&preview->generate, &setup, err);
	if (r < 0)
		return r;
	preview->count = (uint32_t)trainer->config.preview_count;
	arena_plan_init(&plan);
	lay_out(preview, &plan, &trainer->model);
	r = arena_init(&preview->arena, plan.used);
	if (r < 0)
		return error_set(err, r, "no memory for a preview of %u images", preview->count);
	lay_out(preview, &preview->arena, &trainer->model);
	for (uint32_t i = 0; preview->labels && i < preview->count; i++)
		preview->labels[i] = generate_label(&trainer->model.config, i);
	return 0;
}

static int new_holdout(struct trainer *trainer, struct preview *preview, struct error *err)
{
	struct holdout_setup setup = {
		.model = &trainer->model.config,
		.schedule = &trainer->schedule,
		.data = &trainer->data,
		.rng = trainer->rng,
		.batch = trainer->train->setup.params.micro_batch,
		.triple_count = (uint32_t)trainer->config.holdout_triples,
		.cancelled = stop_asked,
		.context = trainer,
	};

	return holdout_init(&preview->holdout, &setup, err);
}

int preview_new(struct trainer *trainer, struct preview **ret, struct error *err)
{
	struct preview *preview;
	int r;

	*ret = NULL;
	if (trainer->config.preview_every == 0)
		return 0;
	preview = calloc(1, sizeof(*preview));
	if (!preview)
		return error_set(err, -ENOMEM, "no memory for previews");
	r = new_images(trainer, preview, err);
	if (r == 0)
		r = new_holdout(trainer, preview, err);
	if (r < 0) {
		preview_free(preview);
		return r;
	}
	*ret = preview;
	return 0;
}

void preview_free(struct preview *preview)
{
	if (!preview)
		return;
	generate_fini(&preview->generate);
	holdout_fini(&preview->holdout);
	arena_fini(&preview->arena);
	free(preview);
}

uint64_t preview_bytes(const struct preview *preview)
{
	return preview
		? preview->arena.size + preview->generate.arena.size + preview->holdout.arena.size
		: 0;
}

bool preview_is_due(const struct trainer *trainer)
{
	return trainer->preview &&
		trainer->record.step % (uint64_t)trainer->config.preview_every == 0;
}

static void preview_name(const struct trainer *trainer, char name[64])
{
	snprintf(name, 64, "step-%09" PRIu64 ".png", trainer->record.step);
}

bool preview_exists(const struct trainer *trainer)
{
	char name[64], path[80];
	struct stat file;

	preview_name(trainer, name);
	snprintf(path, sizeof(path), "previews/%s", name);
	return sys_fstatat(trainer->worker->run_fd, path, &file) == 0;
}

/* Writes RUN/previews/<name> and fills in its path. */
static int write_grid(struct trainer *trainer, const char *name, struct error *err)
{
	const struct preview *preview = trainer->preview;
	void *png = NULL;
	size_t size;
	uint32_t columns = 1;
	int r, dir;

	while (columns * columns < preview->count)
		columns++;
	r = image_grid_png(preview->images, preview->count, trainer->model.config.sample_size,
		columns, &png, &size, err);
	if (r < 0)
		return r;
	dir = file_open_dir(trainer->worker->run_fd, "previews", 0750);
	r = dir < 0 ? dir : file_replace(dir, name, png, size, 0640);
	if (r < 0)
		error_set(err, r, "cannot write previews/%s: %s", name, strerror(-r));
	if (dir >= 0)
		sys_close(dir);
	free(png);
	return r;
}

static void make_images(struct trainer *trainer)
{
	struct preview *preview = trainer->preview;
	struct worker *worker = trainer->worker;
	char name[64], path[PATH_MAX + 80];
	struct error err;

	progress_phase(trainer->progress, PHASE_PREVIEW);
	if (!generate_images(&preview->generate, trainer->train->unet, preview->count,
		    preview->labels, preview->images))
		return;
	preview_name(trainer, name);
	if (write_grid(trainer, name, &err) < 0) {
		worker_event(
			&worker->link, "preview", "warning", trainer->record.step, "%s", err.text);
		return;
	}
	snprintf(path, sizeof(path), "%s/previews/%s", worker->start.run_dir, name);
	(void)worker_link_send(&worker->link,
		json_pack("{s:{s:I,s:s}}", "preview", "step", (json_int_t)trainer->record.step,
			"path", path));
}

static void score_holdout(struct trainer *trainer)
{
	struct metric metric = {
		.step = trainer->record.step,
		.branch = trainer->record.branch,
		.kind = METRIC_HOLDOUT,
		.grad_norm = NAN,
		.learning_rate = NAN,
		.step_ms = NAN,
		.images = trainer->preview->holdout.setup.triple_count,
	};
	struct loss loss;

	progress_phase(trainer->progress, PHASE_HOLDOUT);
	if (!holdout_score(&trainer->preview->holdout, trainer->train->unet, &loss))
		return;
	trainer_metric_loss(&metric, &loss);
	progress_metric(trainer->progress, &metric);
}

void preview_make(struct trainer *trainer)
{
	const struct state *state = &trainer->state;
	uint32_t slot = trainer->record.slot;

	if (!trainer->preview)
		return;
	unet_load_weights(trainer->train->unet, state_section(state, slot, SECTION_EMA));
	score_holdout(trainer);
	make_images(trainer);
	unet_load_weights(trainer->train->unet, state_section(state, slot, SECTION_WEIGHTS));
}
