/* Images per second of whole training steps as the worker takes them: drawing the images and the
 * noise, forward, loss, backward, clip, AdamW with EMA and seals from slot to slot, packing of the
 * weights. With --sample: of denoising steps (a forward without gradients, then DDIM's formula).
 * One line; bench/run pairs it with bench/peer_train.py.
 *
 * usage: bench_train [--sample] [--recompute] NET BATCH ENGINE [STEPS]
 * Exit 3: the engine cannot run here; its reason is on stderr. */
#include "base/clock.h"
#include "bench/nets.h"
#include "bench/solo.h"
#include "daemon/diffusion/sampler.h"
#include "daemon/ops/engine.h"

#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define STEPS_MAX 10000
#define WARM_UP 2
#define DDIM_STEPS 50
#define EXIT_NO_ENGINE 3

struct bench {
	const char *net_name;
	struct unet_config net;
	const struct engine *engine;
	uint32_t batch, steps;
	bool sample, recompute;
	nsec_t step_ns[STEPS_MAX];
	uint64_t plan_bytes, param_count;
};

static int train(struct bench *bench, struct error *err)
{
	static struct solo solo; /* large: the schedule */
	struct solo_setup setup = {
		.model = &bench->net,
		.engine = bench->engine,
		.recompute = bench->recompute,
		.seed = 1,
		.params = solo_params(bench->batch),
	};
	struct train_result result;
	int r = solo_init(&solo, &setup, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < WARM_UP + bench->steps; i++) {
		nsec_t begun = clock_monotonic_ns();

		solo_step(&solo, &result);
		if (i >= WARM_UP)
			bench->step_ns[i - WARM_UP] = clock_monotonic_ns() - begun;
	}
	bench->plan_bytes = train_plan_bytes(solo.train);
	bench->param_count = solo.table.param_count;
	solo_fini(&solo);
	return 0;
}

/* What a sampler holds between two steps. */
struct picture {
	struct tensor_table table;
	struct schedule schedule;
	struct sampler sampler;
	struct unet *unet;
	uint64_t elems; /* of a batch */
	float *weights, *x, *eps, *timesteps;
};

static int picture_init(struct picture *picture, const struct bench *bench, struct error *err)
{
	uint64_t side = bench->net.sample_size;
	struct unet_setup setup = {
		.config = &bench->net,
		.table = &picture->table,
		.engine = bench->engine,
		.batch = bench->batch,
	};
	struct rng rng;
	int r = unet_tensor_table(&bench->net, &picture->table, err);

	if (r == 0)
		r = schedule_init(&picture->schedule, "linear", 1000, 1e-4, 0.02, err);
	if (r == 0)
		r = sampler_init(
			&picture->sampler, SAMPLER_DDIM, &picture->schedule, DDIM_STEPS, true, err);
	if (r == 0)
		r = unet_new(&setup, &picture->unet, err);
	if (r < 0)
		return r;
	picture->elems = bench->batch * 3 * side * side;
	picture->weights = calloc(1, picture->table.section_bytes);
	picture->x = calloc(picture->elems, sizeof(float));
	picture->eps = calloc(picture->elems, sizeof(float));
	picture->timesteps = calloc(bench->batch, sizeof(float));
	if (!picture->weights || !picture->x || !picture->eps || !picture->timesteps)
		return error_set(err, -ENOMEM, "no memory for the images");
	rng_init(&rng, 1);
	rng_normal(&rng, RNG_PREVIEW, 0, 0, picture->x, picture->elems);
	unet_init_weights(&bench->net, &picture->table, &rng, false, picture->weights);
	unet_load_weights(picture->unet, picture->weights);
	return 0;
}

static void picture_fini(struct picture *picture)
{
	unet_free(picture->unet);
	tensor_table_fini(&picture->table);
	free(picture->weights);
	free(picture->x);
	free(picture->eps);
	free(picture->timesteps);
}

static int sample(struct bench *bench, struct error *err)
{
	static struct picture picture; /* large: the schedule */
	int r = picture_init(&picture, bench, err);

	for (uint32_t i = 0; r == 0 && i < WARM_UP + bench->steps; i++) {
		uint32_t step = i % DDIM_STEPS;
		nsec_t begun = clock_monotonic_ns();

		for (uint32_t k = 0; k < bench->batch; k++)
			picture.timesteps[k] = (float)sampler_timestep(&picture.sampler, step);
		unet_forward(picture.unet, bench->batch, picture.x, picture.timesteps, NULL,
			picture.eps);
		sampler_step(&picture.sampler, step, picture.eps, NULL, picture.x, picture.elems);
		if (i >= WARM_UP)
			bench->step_ns[i - WARM_UP] = clock_monotonic_ns() - begun;
	}
	if (r == 0) {
		bench->plan_bytes = unet_plan_bytes(picture.unet);
		bench->param_count = picture.table.param_count;
	}
	picture_fini(&picture);
	return r;
}

static void print(struct bench *bench)
{
	struct rusage usage;

	double step_s = (double)solo_median(bench->step_ns, bench->steps) * 1e-9;
	getrusage(RUSAGE_SELF, &usage);
	printf("ours_img_s=%.2f net=%s batch=%u engine=%s step_s=%.4f threads=%d plan_mib=%llu "
	       "rss_mib=%ld params=%llu mac=%.0f\n",
		bench->batch / step_s, bench->net_name, bench->batch, bench->engine->name, step_s,
		omp_get_max_threads(), (unsigned long long)(bench->plan_bytes >> 20),
		usage.ru_maxrss >> 10, (unsigned long long)bench->param_count,
		net_macs(&bench->net));
}

static uint32_t number(const char *text, uint32_t max)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	return *end || value > max ? 0 : (uint32_t)value;
}

/* Takes options off the front. */
static bool parse(int argc, char **argv, struct bench *bench, const char **ret_engine)
{
	int at = 1;

	for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++)
		if (strcmp(argv[at], "--sample") == 0)
			bench->sample = true;
		else if (strcmp(argv[at], "--recompute") == 0)
			bench->recompute = true;
		else
			return false;
	if (argc - at < 3 || argc - at > 4)
		return false;
	bench->net_name = argv[at];
	bench->batch = number(argv[at + 1], 4096);
	*ret_engine = argv[at + 2];
	bench->steps = argc - at > 3 ? number(argv[at + 3], STEPS_MAX) : 5;
	return bench->batch && bench->steps && net_named(argv[at], &bench->net) == 0;
}

int main(int argc, char **argv)
{
	static struct bench bench;
	const char *name, *reason = NULL;
	struct error err;

	if (!parse(argc, argv, &bench, &name)) {
		fprintf(stderr,
			"usage: bench_train [--sample] [--recompute] default|small|cifar BATCH "
			"ENGINE [STEPS]\n");
		return 2;
	}
	bench.engine = engine_named(name, &reason);
	if (!bench.engine) {
		fprintf(stderr, "engine %s: %s\n", name, reason);
		return EXIT_NO_ENGINE;
	}
	if ((bench.sample ? sample : train)(&bench, &err) < 0) {
		fprintf(stderr, "bench_train: %s\n", err.text);
		return 1;
	}
	print(&bench);
	return 0;
}
