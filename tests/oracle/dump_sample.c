/* What our own code makes of a checkpoint's EMA weights, for check_export.py to compare with
 * diffusers: a batch of noise x, its timesteps, the predicted noise eps(x, t), and images drawn by
 * DDIM from the noise of a fixed seed, as one plain safetensors file.
 *
 *     dump_sample CHECKPOINT.safetensors OUT.safetensors [DDIM_STEPS [ENGINE]] */
#include "base/arena.h"
#include "base/panic.h"
#include "daemon/model/choose.h"
#include "daemon/train/generate.h"
#include "daemon/worker_plan.h"
#include "store/checkpoint.h"
#include "store/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT 4
#define SEED 20261123

struct dump {
	struct checkpoint_info info;
	int fd;
	struct model model;
	struct schedule schedule;
	struct sampler sampler;
	struct generate generate;
	struct unet *unet;
	struct rng rng;
	uint64_t elems; /* of an image */
	float timesteps[COUNT], *noise, *eps, *images;
	int32_t labels[COUNT], *labels_or_null;
};

static int split_open(const char *path, struct dump *dump, struct error *err)
{
	char folder[4096] = ".";
	const char *slash = strrchr(path, '/');

	if (slash != NULL)
		snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path + 1), path);
	int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return error_set(err, -errno, "cannot open %s", folder);
	dump->fd = checkpoint_open(dir, slash != NULL ? slash + 1 : path, &dump->info, err);
	close(dir);
	return dump->fd < 0 ? dump->fd : 0;
}

static int load_net(struct dump *dump, const char *engine, struct error *err)
{
	const struct tensor_spec *classes = tensor_table_find(
		&dump->info.table, "class_embedding.weight");
	struct unet_setup setup = {
		.config = &dump->model.config, .table = &dump->model.table, .batch = COUNT};
	struct arena weights;
	char reason[128];
	int r = model_init(
		&dump->model, &dump->info.config, classes ? classes->shape[0] - 1 : 0, err);

	if (r == 0)
		r = unet_choose_engine(
			&dump->model.config, engine, &setup.engine, reason, sizeof(reason), err);
	if (r == 0)
		r = unet_new(&setup, &dump->unet, err);
	if (r == 0)
		r = arena_init(&weights, dump->model.table.section_bytes);
	if (r < 0)
		return r;
	r = checkpoint_read_section(
		dump->fd, &dump->info, SECTION_EMA, (float *)weights.base, 0, err);
	if (r == 0)
		unet_load_weights(dump->unet, (float *)weights.base);
	arena_fini(&weights);
	return r;
}

static void predict(struct dump *dump)
{
	uint32_t last = dump->schedule.count - 1;

	dump->elems = 3 * (uint64_t)dump->model.config.sample_size * dump->model.config.sample_size;
	dump->noise = malloc(COUNT * dump->elems * sizeof(float));
	dump->eps = malloc(COUNT * dump->elems * sizeof(float));
	dump->images = malloc(COUNT * dump->elems * sizeof(float));
	CHECK(dump->noise && dump->eps && dump->images);
	for (uint32_t i = 0; i < COUNT; i++) {
		dump->timesteps[i] = (float)(last * i / (COUNT - 1));
		dump->labels[i] = generate_label(&dump->model.config, i);
		rng_normal(
			&dump->rng, RNG_PREVIEW, 0, i, dump->noise + i * dump->elems, dump->elems);
	}
	dump->labels_or_null = dump->model.config.class_count > 0 ? dump->labels : NULL;
	unet_forward(
		dump->unet, COUNT, dump->noise, dump->timesteps, dump->labels_or_null, dump->eps);
}

static int draw(struct dump *dump, uint32_t steps, struct error *err)
{
	struct generate_setup setup = {.model = &dump->model.config,
		.batch = COUNT,
		.sampler = &dump->sampler,
		.rng = dump->rng,
		.guidance = 1};
	int r = sampler_init(&dump->sampler, SAMPLER_DDIM, &dump->schedule, steps, true, err);

	if (r == 0)
		r = generate_init(&dump->generate, &setup, err);
	if (r == 0)
		CHECK(generate_images(
			&dump->generate, dump->unet, COUNT, dump->labels_or_null, dump->images));
	return r;
}

static void put(
	const struct tensor_table *table, float *section, const char *name, const float *values)
{
	const struct tensor_spec *spec = tensor_table_find(table, name);

	CHECK(spec != NULL);
	memcpy(section + spec->offset / sizeof(float), values, spec->elem_count * sizeof(float));
}

static int write_out(const struct dump *dump, uint32_t steps, const char *path, struct error *err)
{
	const uint32_t side = dump->model.config.sample_size;
	const uint32_t batch_shape[] = {COUNT, 3, side, side}, list_shape[] = {COUNT}, one[] = {1};
	float labels[COUNT], step_count = (float)steps;
	struct tensor_table table;

	for (uint32_t i = 0; i < COUNT; i++)
		labels[i] = dump->labels_or_null != NULL ? (float)dump->labels[i] : -1.0f;
	tensor_table_init(&table);
	tensor_table_add(&table, "x", 4, batch_shape);
	tensor_table_add(&table, "eps", 4, batch_shape);
	tensor_table_add(&table, "images", 4, batch_shape);
	tensor_table_add(&table, "timesteps", 1, list_shape);
	tensor_table_add(&table, "labels", 1, list_shape);
	tensor_table_add(&table, "ddim_steps", 1, one);
	int r = tensor_table_layout(&table, err);
	float *section = calloc(1, table.section_bytes);
	CHECK(r == 0 && section != NULL);
	put(&table, section, "x", dump->noise);
	put(&table, section, "eps", dump->eps);
	put(&table, section, "images", dump->images);
	put(&table, section, "timesteps", dump->timesteps);
	put(&table, section, "labels", labels);
	put(&table, section, "ddim_steps", &step_count);
	int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = st_write_section(here, path, &table, section, err);
	close(here);
	free(section);
	tensor_table_fini(&table);
	return r;
}

int main(int argc, char **argv)
{
	static struct dump dump; /* large: the schedule */
	uint32_t steps = argc > 3 ? (uint32_t)atoi(argv[3]) : 50;
	struct error err = {0};

	if (argc < 3 || strchr(argv[2], '/') != NULL) {
		fprintf(stderr,
			"usage: dump_sample CHECKPOINT.safetensors OUT [DDIM_STEPS [ENGINE]]\n"
			"OUT is a name in the current folder; ENGINE is openblas unless given\n");
		return 2;
	}
	rng_init(&dump.rng, SEED);
	int r = split_open(argv[1], &dump, &err);
	if (r == 0)
		r = load_net(&dump, argc > 4 ? argv[4] : "openblas", &err);
	if (r == 0)
		r = plan_schedule(&dump.info.config, &dump.schedule, &err);
	if (r == 0) {
		predict(&dump);
		r = draw(&dump, steps, &err);
	}
	if (r == 0)
		r = write_out(&dump, steps, argv[2], &err);
	if (r < 0)
		fprintf(stderr, "dump_sample: %s\n", err.text);
	return r < 0;
}
