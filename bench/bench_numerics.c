/* Trains the default net on cars with the settings of etc/ckptd.conf and scores the EMA weights:
 * whether bf16 learns as fp32 does. The triples (image, timestep, noise) that are scored come from
 * one seed, so runs of other seeds are compared on the same ones. One line at every 500 steps and
 * at the end.
 *
 * usage: bench_numerics ENGINE SEED STEPS [BATCH] */
#include "bench/nets.h"
#include "bench/solo.h"
#include "daemon/ops/engine.h"
#include "daemon/train/holdout.h"

#include <stdio.h>
#include <stdlib.h>

#define SCORE_EVERY 500
#define SCORE_SEED 20
#define TRIPLES 1024
#define EXIT_NO_ENGINE 3

/* Cars that no training seed draws: the scored images have a seed of their own too. */
static int open_triples(const struct solo *solo, struct data *data, struct holdout *holdout,
	uint32_t batch, struct error *err)
{
	struct data_config config = {
		.source = "cars",
		.image_size = solo->model.sample_size,
		.holdout_percent = 2,
		.seed = SCORE_SEED,
		.cache_fd = -1,
	};
	struct holdout_setup setup = {
		.model = &solo->model,
		.schedule = &solo->schedule,
		.data = data,
		.batch = batch,
		.triple_count = TRIPLES,
	};
	int r = data_open(&config, data, err);

	if (r < 0)
		return r;
	rng_init(&setup.rng, SCORE_SEED);
	return holdout_init(holdout, &setup, err);
}

/* The plan gets the training weights back. */
static void score(struct solo *solo, struct holdout *holdout, const char *engine, uint64_t seed,
	const struct train_result *result)
{
	struct loss loss;

	unet_load_weights(solo->train->unet, solo_section(solo, SECTION_EMA));
	holdout_score(holdout, solo->train->unet, &loss);
	unet_load_weights(solo->train->unet, solo_section(solo, SECTION_WEIGHTS));
	printf("engine=%s seed=%llu step=%llu holdout_loss=%.7f", engine, (unsigned long long)seed,
		(unsigned long long)solo->step, loss.mean);
	for (int i = 0; i < 4; i++)
		printf(" quartile_%d=%.7f", i + 1, loss.quartile_sum[i] / loss.quartile_count[i]);
	printf(" batch_loss=%.5f\n", result->loss.mean);
	fflush(stdout);
}

static int run(const struct engine *engine, uint64_t seed, uint64_t steps, uint32_t batch,
	struct error *err)
{
	static struct solo solo; /* large: the schedule */
	struct unet_config net;
	struct solo_setup setup = {
		.model = &net,
		.engine = engine,
		.seed = seed,
		.zero_out = true,
		.params = {.batch_size = batch,
			.micro_batch = batch,
			.lr_kind = LR_COSINE,
			.warmup_steps = 100,
			.steps_total = steps,
			.learning_rate = 1e-3,
			.beta1 = 0.9,
			.beta2 = 0.99,
			.adam_eps = 1e-8,
			.weight_decay = 1e-4,
			.clip_norm = 1,
			.ema_max = 0.999,
			.ema_power = 0.75,
			.flips = true},
	};
	struct holdout holdout = {0};
	struct data scored = {0};
	struct train_result result;

	net_named("default", &net);
	int r = solo_init(&solo, &setup, err);
	if (r == 0)
		r = open_triples(&solo, &scored, &holdout, batch, err);
	while (r == 0 && solo.step < steps) {
		solo_step(&solo, &result);
		if (solo.step % SCORE_EVERY == 0 || solo.step == steps)
			score(&solo, &holdout, engine->name, seed, &result);
	}
	holdout_fini(&holdout);
	data_close(&scored);
	solo_fini(&solo);
	return r;
}

int main(int argc, char **argv)
{
	const char *reason = NULL;
	struct error err;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: bench_numerics ENGINE SEED STEPS [BATCH]\n");
		return 2;
	}
	const struct engine *engine = engine_named(argv[1], &reason);
	unsigned long long seed = strtoull(argv[2], NULL, 10), steps = strtoull(argv[3], NULL, 10);
	unsigned long batch = argc > 4 ? strtoul(argv[4], NULL, 10) : 16;

	if (!engine) {
		fprintf(stderr, "engine %s: %s\n", argv[1], reason);
		return EXIT_NO_ENGINE;
	}
	if (steps < 1 || steps > 10000000 || batch < 1 || batch > 4096) {
		fprintf(stderr, "bench_numerics: STEPS or BATCH is out of bounds\n");
		return 2;
	}
	if (run(engine, seed, steps, (uint32_t)batch, &err) < 0) {
		fprintf(stderr, "bench_numerics: %s\n", err.text);
		return 1;
	}
	return 0;
}
