/* The role `sample`: images from the EMA weights of a checkpoint, as a grid under RUN/previews. It
 * reads a published file, verified whole, never the state memory. Once that is open it opens no
 * other, and writes nothing but its picture. */
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "daemon/image/image.h"
#include "daemon/train/generate.h"
#include "daemon/worker.h"
#include "daemon/worker_confine.h"
#include "daemon/worker_engine.h"
#include "daemon/worker_plan.h"
#include "store/recovery.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_MAX 16

struct picture {
	struct worker *worker;
	struct checkpoint_info info;
	int fd;
	struct model model;
	struct schedule schedule;
	struct sampler sampler;
	struct unet *unet;
	struct generate generate;
	int32_t *labels; /* NULL without classes */
	float *images;
};

/* The checkpoint says which net it is; its tensors say how many classes. */
static int open_checkpoint(struct picture *picture, struct error *err)
{
	struct worker *worker = picture->worker;
	const struct tensor_spec *classes;
	int r = recovery_pick(worker->start.run_dir, worker->run_fd, worker->start.id,
		&picture->info, &picture->fd, err);

	if (r < 0)
		return r;
	classes = tensor_table_find(&picture->info.table, "class_embedding.weight");
	r = model_init(
		&picture->model, &picture->info.config, classes ? classes->shape[0] - 1 : 0, err);
	if (r < 0)
		return r;
	if (!digest_equal(&picture->model.digest, &picture->info.record.model_digest))
		return error_set(err, -EINVAL, "%s: its tensors do not fit its own configuration",
			picture->info.id);
	return 0;
}

static int load_net(struct picture *picture, uint32_t batch, struct error *err)
{
	struct worker *worker = picture->worker;
	const struct unet_setup setup = {
		.config = &picture->model.config,
		.table = &picture->model.table,
		.engine = engine_for_record(&picture->model.config, &picture->info.record),
		.batch = batch,
	};
	struct arena arena;
	int r = unet_new(&setup, &picture->unet, err);

	if (r < 0)
		return r;
	r = arena_init(&arena, picture->model.table.section_bytes);
	if (r < 0)
		return error_set(err, r, "no memory for the weights");
	r = checkpoint_read_section(picture->fd, &picture->info, SECTION_EMA, (float *)arena.base,
		worker->start.threads, err);
	if (r == 0)
		unet_load_weights(picture->unet, (float *)arena.base);
	arena_fini(&arena);
	return r;
}

static int set_labels(struct picture *picture, struct error *err)
{
	const struct worker_start *start = &picture->worker->start;
	uint32_t classes = picture->model.config.class_count;

	if (classes == 0)
		return start->label < 0
			? 0
			: error_set(err, -EINVAL, "label %d: this model has no classes",
				  start->label);
	if (start->label >= (int32_t)classes - 1)
		return error_set(err, -EINVAL, "label %d: this model has classes 0 to %u",
			start->label, classes - 2);
	picture->labels = malloc(start->count * sizeof(int32_t));
	if (!picture->labels)
		return error_set(err, -ENOMEM, "no memory for the labels");
	for (uint32_t i = 0; i < start->count; i++)
		picture->labels[i] = start->label >= 0 ? start->label : (int32_t)classes - 1;
	return 0;
}

static int plan_images(struct picture *picture, uint32_t batch, struct error *err)
{
	const struct worker_start *start = &picture->worker->start;
	struct generate_setup setup = {
		.model = &picture->model.config,
		.batch = batch,
		.sampler = &picture->sampler,
		.guidance = start->label >= 0 ? start->guidance : 1,
	};
	uint64_t side = picture->model.config.sample_size;
	enum sampler_kind kind = strcmp(start->sampler, "ddpm") == 0 ? SAMPLER_DDPM : SAMPLER_DDIM;
	int r = plan_schedule(&picture->info.config, &picture->schedule, err);

	if (r == 0)
		r = sampler_init(
			&picture->sampler, kind, &picture->schedule, start->steps, true, err);
	if (r < 0)
		return r;
	rng_init(&setup.rng, start->seed);
	r = generate_init(&picture->generate, &setup, err);
	if (r < 0)
		return r;
	picture->images = malloc(start->count * 3 * side * side * sizeof(float));
	return picture->images ? 0 : error_set(err, -ENOMEM, "no memory for the images");
}

static int write_picture(struct picture *picture, struct error *err)
{
	const struct worker_start *start = &picture->worker->start;
	uint32_t columns = 1;
	void *png = NULL;
	size_t size;
	int dir, r;

	while (columns * columns < start->count)
		columns++;
	r = image_grid_png(picture->images, start->count, picture->model.config.sample_size,
		columns, &png, &size, err);
	if (r < 0)
		return r;
	dir = file_open_dir(picture->worker->run_fd, "previews", 0750);
	r = dir < 0 ? dir : file_replace(dir, start->name, png, size, 0640);
	if (r < 0)
		error_set(err, r, "cannot write %s/previews/%s: %s", start->run_dir, start->name,
			strerror(-r));
	if (dir >= 0)
		sys_close(dir);
	free(png);
	return r;
}

static int say_sampled(const struct picture *picture)
{
	struct worker *worker = picture->worker;
	char path[PATH_MAX + NAME_MAX + 16];
	int r;

	snprintf(path, sizeof(path), "%s/previews/%s", worker->start.run_dir, worker->start.name);
	r = worker_link_send(&worker->link,
		json_pack("{s:{s:s,s:s,s:I}}", "sampled", "path", path, "id", picture->info.id,
			"step", (json_int_t)picture->info.record.step));
	return r < 0 ? LINK_EXIT_FAILED : LINK_EXIT_DONE;
}

static int sample(struct picture *picture, struct error *err)
{
	const struct worker_start *start = &picture->worker->start;
	uint32_t batch = start->count < BATCH_MAX ? start->count : BATCH_MAX;
	int r = open_checkpoint(picture, err);

	if (r < 0)
		return r;
	worker_confine_to_previews(picture->worker);
	r = load_net(picture, batch, err);
	if (r == 0)
		r = set_labels(picture, err);
	if (r == 0)
		r = plan_images(picture, batch, err);
	if (r < 0)
		return r;
	CHECK(generate_images(
		&picture->generate, picture->unet, start->count, picture->labels, picture->images));
	return write_picture(picture, err);
}

int worker_sample(struct worker *worker)
{
	static struct picture picture; /* large: the schedule */
	struct error err;
	int r;

	picture.worker = worker;
	picture.fd = -1;
	r = sample(&picture, &err);
	r = r < 0 ? worker_fail_errno(worker, r, LINK_EXIT_FAILED, &err) : say_sampled(&picture);
	free(picture.images);
	free(picture.labels);
	generate_fini(&picture.generate);
	unet_free(picture.unet);
	model_fini(&picture.model);
	if (picture.fd >= 0) {
		sys_close(picture.fd);
		checkpoint_info_fini(&picture.info);
	}
	return r;
}
