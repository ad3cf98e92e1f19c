/* Images per second of whole training steps as the worker takes them: drawing the images and the
 * noise, forward, loss, backward, clip, AdamW with EMA and seals from slot to slot, packing of the
 * weights. One line; `./do bench train` pairs it with bench/peer_train.py.
 *
 * usage: bench_train NET BATCH [STEPS]      NET: default | small | cifar */
#include "base/clock.h"
#include "daemon/ops/engine.h"
#include "daemon/train/step.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define STEPS_MAX 1000

struct bench {
	struct unet_config model;
	struct tensor_table table;
	struct schedule schedule;
	struct data data;
	struct train *train;
	float *slots[2]; /* two blocks of four sections */
	uint64_t *sums[2];
	uint64_t step;
};

static int model_of(const char *name, struct unet_config *ret)
{
	*ret = (struct unet_config){
		.sample_size = 32,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 4,
		.channels = {64, 128, 128, 128},
		.down_attention = {false, true, false, false},
		.up_attention = {false, false, true, false},
		.layers_per_block = 2,
		.groups = 32,
		.norm_eps = 1e-5f,
		.downsample_padding = 1,
		.flip_sin_to_cos = true,
	};
	if (strcmp(name, "small") == 0)
		return 0;
	if (strcmp(name, "cifar") == 0) {
		for (int i = 0; i < 4; i++)
			ret->channels[i] *= 2;
		ret->norm_eps = 1e-6f;
		ret->downsample_padding = 0;
		ret->flip_sin_to_cos = false;
		ret->freq_shift = 1;
		return 0;
	}
	if (strcmp(name, "default") != 0)
		return -EINVAL;
	ret->level_count = 3;
	memcpy(ret->channels, (uint32_t[]){32, 64, 128}, 3 * sizeof(uint32_t));
	ret->layers_per_block = 1;
	ret->head_dim = 32;
	ret->groups = 8;
	memcpy(ret->down_attention, (bool[]){false, false, true}, 3 * sizeof(bool));
	memcpy(ret->up_attention, (bool[]){true, false, false}, 3 * sizeof(bool));
	return 0;
}

static float *section_of(const struct bench *bench, int slot, int section)
{
	return bench->slots[slot] + (uint64_t)section * (bench->table.section_bytes / 4);
}

static int lay_out(struct bench *bench, uint32_t batch, struct error *err)
{
	struct train_setup setup = {
		.model = &bench->model,
		.table = &bench->table,
		.schedule = &bench->schedule,
		.data = &bench->data,
		.params = {.batch_size = batch,
			.micro_batch = batch,
			.lr_kind = LR_CONSTANT,
			.steps_total = STEPS_MAX,
			.learning_rate = 1e-4,
			.beta1 = 0.9,
			.beta2 = 0.999,
			.adam_eps = 1e-8,
			.weight_decay = 1e-2,
			.clip_norm = 1,
			.ema_max = 0.999,
			.ema_power = 0.75,
			.flips = true},
	};
	struct data_config data = {.source = "cars", .image_size = 32, .seed = 1, .cache_fd = -1};
	int code = data_open(&data, &bench->data, err);

	rng_init(&setup.rng, 1);
	if (code == 0)
		code = unet_tensor_table(&bench->model, &bench->table, err);
	if (code == 0)
		code = schedule_init(&bench->schedule, "squaredcos_cap_v2", 1000, 1e-4, 0.02, err);
	if (code == 0)
		code = train_new(&setup, &bench->train, err);
	if (code < 0)
		return code;
	uint64_t block_bytes = SECTION_COUNT * bench->table.section_bytes;
	for (int i = 0; i < 2; i++) {
		void *slot = mmap(NULL, block_bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

		bench->sums[i] = calloc(block_bytes >> 20, sizeof(uint64_t));
		if (slot == MAP_FAILED || !bench->sums[i])
			return error_set(err, -ENOMEM, "no memory for the slots");
		bench->slots[i] = slot;
	}
	unet_init_weights(&bench->model, &bench->table, &setup.rng, false, section_of(bench, 0, 0));
	unet_load_weights(bench->train->unet, section_of(bench, 0, 0));
	return 0;
}

static void one_step(struct bench *bench)
{
	int from = (int)(bench->step % 2), to = 1 - from;
	const struct train_params *params = &bench->train->setup.params;
	float *src[SECTION_COUNT], *dst[SECTION_COUNT];
	struct train_result result;

	for (int i = 0; i < SECTION_COUNT; i++) {
		src[i] = section_of(bench, from, i);
		dst[i] = section_of(bench, to, i);
	}
	train_gradient(bench->train, bench->step, bench->step * params->batch_size, &result);
	struct adamw scalars = train_scalars(params, bench->step, result.grad_norm);
	train_update(bench->train, &scalars, src, dst, bench->step ? bench->sums[from] : NULL,
		bench->sums[to]);
	unet_load_weights(bench->train->unet, dst[SECTION_WEIGHTS]);
	bench->step++;
}

static int by_value(const void *a, const void *b)
{
	const nsec_t *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

int main(int argc, char **argv)
{
	static struct bench bench; /* large: the schedule */
	static nsec_t step_ns[STEPS_MAX];
	struct rusage usage;
	struct error err;
	int batch = argc > 2 ? atoi(argv[2]) : 0, steps = argc > 3 ? atoi(argv[3]) : 5;

	if (argc < 3 || batch < 1 || batch > 4096 || steps < 1 || steps > STEPS_MAX ||
		model_of(argv[1], &bench.model) < 0) {
		fprintf(stderr, "usage: bench_train default|small|cifar BATCH [STEPS]\n");
		return 2;
	}
	if (lay_out(&bench, (uint32_t)batch, &err) < 0) {
		fprintf(stderr, "bench_train: %s\n", err.text);
		return 1;
	}
	for (int i = -2; i < steps; i++) { /* two to warm up */
		nsec_t begun = clock_monotonic_ns();

		one_step(&bench);
		if (i >= 0)
			step_ns[i] = clock_monotonic_ns() - begun;
	}
	qsort(step_ns, (size_t)steps, sizeof(*step_ns), by_value);
	getrusage(RUSAGE_SELF, &usage);
	printf("ours_img_s=%.2f engine=%s threads=%d plan_mib=%llu rss_mib=%ld\n",
		batch / ((double)step_ns[steps / 2] * 1e-9), ops_engine_name(),
		omp_get_max_threads(), (unsigned long long)(train_plan_bytes(bench.train) >> 20),
		usage.ru_maxrss >> 10);
	return 0;
}
