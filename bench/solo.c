/* See solo.h. */
#include "bench/solo.h"

#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct train_params solo_params(uint32_t batch)
{
	return (struct train_params){
		.batch_size = batch,
		.micro_batch = batch,
		.lr_kind = LR_CONSTANT,
		.learning_rate = 1e-4,
		.beta1 = 0.9,
		.beta2 = 0.999,
		.adam_eps = 1e-8,
		.weight_decay = 1e-2,
		.clip_norm = 1,
		.ema_max = 0.999,
		.ema_power = 0.75,
		.flips = true,
	};
}

static int by_value(const void *a, const void *b)
{
	const nsec_t *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

nsec_t solo_median(nsec_t *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), by_value);
	return values[count / 2];
}

static uint64_t slot_bytes(const struct solo *solo)
{
	return SECTION_COUNT * solo->table.section_bytes;
}

static float *section_of(const struct solo *solo, uint64_t slot, enum section section)
{
	return solo->slots[slot % 2] + section * (solo->table.section_bytes / sizeof(float));
}

float *solo_section(const struct solo *solo, enum section section)
{
	return section_of(solo, solo->step, section);
}

static int make_slots(struct solo *solo, struct error *err)
{
	for (int i = 0; i < 2; i++) {
		void *slot = mmap(NULL, slot_bytes(solo), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

		solo->slots[i] = slot == MAP_FAILED ? NULL : slot;
		solo->sums[i] = calloc(slot_bytes(solo) / SECTION_ALIGN, sizeof(uint64_t));
		if (!solo->slots[i] || !solo->sums[i])
			return error_set(err, -ENOMEM, "no memory for the slots");
	}
	return 0;
}

static int make_trainer(struct solo *solo, const struct solo_setup *setup, struct error *err)
{
	struct train_setup train = {
		.model = &solo->model,
		.table = &solo->table,
		.schedule = &solo->schedule,
		.data = &solo->data,
		.engine = setup->engine,
		.recompute = setup->recompute,
		.params = setup->params,
		.entered = setup->entered,
		.context = setup->context,
	};

	rng_init(&train.rng, setup->seed);
	unet_init_weights(&solo->model, &solo->table, &train.rng, setup->zero_out,
		section_of(solo, 0, SECTION_WEIGHTS));
	memcpy(section_of(solo, 0, SECTION_EMA), section_of(solo, 0, SECTION_WEIGHTS),
		solo->table.section_bytes);
	int r = train_new(&train, &solo->train, err);
	if (r == 0)
		unet_load_weights(solo->train->unet, section_of(solo, 0, SECTION_WEIGHTS));
	return r;
}

int solo_init(struct solo *solo, const struct solo_setup *setup, struct error *err)
{
	struct data_config data = {
		.source = "cars",
		.image_size = setup->model->sample_size,
		.holdout_percent = 2,
		.seed = setup->seed,
		.cache_fd = -1,
	};

	memset(solo, 0, sizeof(*solo));
	solo->model = *setup->model;
	int r = data_open(&data, &solo->data, err);
	if (r == 0)
		r = unet_tensor_table(&solo->model, &solo->table, err);
	if (r == 0)
		r = schedule_init(&solo->schedule, "squaredcos_cap_v2", 1000, 1e-4, 0.02, err);
	if (r == 0)
		r = make_slots(solo, err);
	if (r == 0)
		r = make_trainer(solo, setup, err);
	if (r < 0)
		solo_fini(solo);
	return r;
}

void solo_fini(struct solo *solo)
{
	train_free(solo->train);
	for (int i = 0; i < 2; i++) {
		if (solo->slots[i])
			munmap(solo->slots[i], slot_bytes(solo));
		free(solo->sums[i]);
	}
	tensor_table_fini(&solo->table);
	data_close(&solo->data);
	memset(solo, 0, sizeof(*solo));
}

void solo_step(struct solo *solo, struct train_result *ret)
{
	const struct train_params *params = &solo->train->setup.params;
	uint64_t step = solo->step, from = step % 2, to = 1 - from;
	float *src[SECTION_COUNT], *dst[SECTION_COUNT];

	for (int i = 0; i < SECTION_COUNT; i++) {
		src[i] = section_of(solo, from, (enum section)i);
		dst[i] = section_of(solo, to, (enum section)i);
	}
	train_gradient(solo->train, step, step * params->batch_size, ret);
	CHECK(ret->finite);
	struct adamw scalars = train_scalars(params, step, ret->grad_norm);
	CHECK(train_update(
		solo->train, &scalars, src, dst, step ? solo->sums[from] : NULL, solo->sums[to]));
	unet_load_weights(solo->train->unet, dst[SECTION_WEIGHTS]);
	solo->step++;
}
