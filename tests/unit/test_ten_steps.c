/* Ten training steps of a small net give what PyTorch and diffusers give (tests/oracle/
 * make_ten_steps.py says with what inputs): forward, loss, backward, clip, AdamW and EMA together.
 *
 * The reference ran in fp64; PyTorch's own fp32 is up to 2.7e-4 away from it in single weights,
 * because Adam divides by the root of gradients that are nearly zero. So single elements are
 * compared by a share of what ten steps can move (lr each), whole tensors tightly. to_k.bias has a
 * true gradient of zero: there Adam makes noise into full steps, and only that bound holds. */
#include "base/panic.h"
#include "base/seal.h"
#include "daemon/diffusion/loss.h"
#include "daemon/optim/adamw.h"
#include "daemon/optim/lr.h"
#include "tests/unit/golden_unet.h"
#include "tests/unit/oracle.h"

#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/engines.h"

#define STEPS 10
#define BATCH 2
#define ELEMS (3 * 8 * 8) /* of an image */
#define PICKED 8
#define LEARNING_RATE 1e-3

/* How far from the reference: losses and gradient norms as shares of themselves; elements, norm and
 * sum of a tensor as shares of what ten steps can move (norm and sum by the root of its size). */
struct tolerance {
	double loss, grad_norm, element, norm, sum;
};

static const struct tolerance fp32 = {2e-5, 1e-4, 0.05, 2e-4, 2e-3};
/* Twice what was measured. */
static const struct tolerance bf16 = {2e-3, 4e-2, 0.5, 3e-2, 0.2};

struct trainer {
	struct tensor_table table;
	struct unet *unet;
	const struct tolerance *tolerance;
	uint64_t section_elems;
	float *section[SECTION_COUNT], *grads;
	uint64_t *sums;
	double losses[STEPS], norms[STEPS];
};

static float *floats_new(uint64_t count)
{
	float *values = aligned_alloc(64, count * sizeof(float));

	assert_non_null(values);
	memset(values, 0, count * sizeof(float));
	return values;
}

static void trainer_init(struct trainer *trainer, const struct engine *engine)
{
	struct unet_config config = golden_config_a();
	struct unet_setup setup = {
		.config = &config,
		.table = &trainer->table,
		.engine = engine,
		.batch = BATCH,
		.training = true,
	};
	struct error err = {0};

	*trainer = (struct trainer){.tolerance = engine->form.elem == ELEM_BF16 ? &bf16 : &fp32};
	if (unet_tensor_table(&config, &trainer->table, &err) < 0 ||
		unet_new(&setup, &trainer->unet, &err) < 0)
		fail_msg("%s", err.text);
	trainer->section_elems = trainer->table.section_bytes / sizeof(float);
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		trainer->section[s] = floats_new(trainer->section_elems);
	trainer->grads = floats_new(trainer->section_elems);
	trainer->sums = calloc(SECTION_COUNT * trainer->table.section_bytes / SEAL_CHUNK_BYTES,
		sizeof(*trainer->sums));
	assert_non_null(trainer->sums);
	golden_weights(&trainer->table, trainer->section[SECTION_WEIGHTS]);
	memcpy(trainer->section[SECTION_EMA], trainer->section[SECTION_WEIGHTS],
		trainer->table.section_bytes);
}

static void trainer_fini(struct trainer *trainer)
{
	unet_free(trainer->unet);
	tensor_table_fini(&trainer->table);
	for (unsigned s = 0; s < SECTION_COUNT; s++)
		free(trainer->section[s]);
	free(trainer->grads);
	free(trainer->sums);
}

static void update(struct trainer *trainer, unsigned step, double norm)
{
	uint64_t k = step + 1;
	double clip = 1.0 / (norm + 1e-6);
	struct adamw adamw = {
		.learning_rate = (float)(LEARNING_RATE * lr_factor(LR_CONSTANT, step, 0, STEPS)),
		.beta1 = 0.9f,
		.beta2 = 0.99f,
		.eps = 1e-8f,
		.weight_decay = 1e-4f,
		.bias_correction1 = (float)(1.0 - power_int(0.9, k)),
		.bias_correction2 = (float)(1.0 - power_int(0.99, k)),
		.clip_scale = (float)(clip < 1.0 ? clip : 1.0),
		.ema_decay = (float)ema_decay(k, 0.75, 0.999),
	};

	assert_true(adamw_update(&adamw, trainer->grads, trainer->section_elems, trainer->section,
		trainer->section, NULL, trainer->sums, NULL));
}

static void train_step(struct trainer *trainer, unsigned step)
{
	float x[BATCH * ELEMS], eps[BATCH * ELEMS], y[BATCH * ELEMS], dy[BATCH * ELEMS];
	float timesteps[BATCH];
	double per_sample[BATCH];

	golden_fill(0x10000 + 2 * step, x, BATCH * ELEMS);
	golden_fill(0x10000 + 2 * step + 1, eps, BATCH * ELEMS);
	for (unsigned b = 0; b < BATCH; b++)
		timesteps[b] = (float)((37 + 211 * (BATCH * step + b)) % 1000);
	unet_load_weights(trainer->unet, trainer->section[SECTION_WEIGHTS]);
	unet_forward(trainer->unet, BATCH, x, timesteps, NULL, y);
	loss_mse(BATCH, ELEMS, BATCH, eps, y, dy, per_sample);
	unet_backward(trainer->unet, dy, trainer->grads, false);
	trainer->losses[step] = (per_sample[0] + per_sample[1]) / BATCH;
	trainer->norms[step] = sqrt(adamw_square_sum(trainer->grads, trainer->section_elems));
	update(trainer, step, trainer->norms[step]);
}

/* One line of the reference: "unet|ema NAME SHAPE NORM SUM PICKED..." */
struct reference {
	char section[8], name[TENSOR_NAME_MAX], shape[64];
	double norm, sum, picked[PICKED];
};

static void shape_text(const struct tensor_spec *spec, char text[64])
{
	int at = 0;

	for (uint32_t d = 0; d < spec->dim_count; d++)
		at += snprintf(text + at, 64 - (size_t)at, "%s%u", d ? "x" : "", spec->shape[d]);
}

static void check_tensor(const struct trainer *trainer, const struct reference *reference)
{
	const struct tolerance *tolerance = trainer->tolerance;
	bool ema = strcmp(reference->section, "ema") == 0;
	const float *section = trainer->section[ema ? SECTION_EMA : SECTION_WEIGHTS];
	const struct tensor_spec *spec = tensor_table_find(&trainer->table, reference->name);
	bool noise = strstr(reference->name, "to_k.bias") != NULL;
	double square = 0.0, sum = 0.0, bound = STEPS * LEARNING_RATE;
	char shape[64];

	if (!spec)
		fail_msg("%s is not in the table", reference->name);
	shape_text(spec, shape);
	assert_string_equal(shape, reference->shape);
	const float *values = section + spec->offset / sizeof(float);
	uint64_t last = spec->elem_count - 1;
	for (uint64_t i = 0; i <= last; i++) {
		square += (double)values[i] * values[i];
		sum += values[i];
	}
	for (unsigned k = 0; k < PICKED; k++) {
		double away = fabs(values[k * last / (PICKED - 1)] - reference->picked[k]);
		if (!(away <= (noise ? bound : tolerance->element * bound)))
			fail_msg("%s %s: element %llu is %g away", reference->section,
				reference->name, (unsigned long long)(k * last / (PICKED - 1)),
				away);
	}
	if (noise)
		return;
	double root = sqrt((double)spec->elem_count);
	if (!(fabs(sqrt(square) - reference->norm) <= tolerance->norm * root * bound))
		fail_msg("%s %s: norm %.9g, not %.9g", reference->section, reference->name,
			sqrt(square), reference->norm);
	if (!(fabs(sum - reference->sum) <= tolerance->sum * root * bound))
		fail_msg("%s %s: sum %.9g, not %.9g", reference->section, reference->name, sum,
			reference->sum);
}

static bool parse_tensor(const char *line, struct reference *r)
{
	double *p = r->picked;

	return sscanf(line, "%7s %95s %63s %lf %lf %lf %lf %lf %lf %lf %lf %lf %lf", r->section,
		       r->name, r->shape, &r->norm, &r->sum, &p[0], &p[1], &p[2], &p[3], &p[4],
		       &p[5], &p[6], &p[7]) == 13;
}

static void test_ten_steps_are_diffusers(void **state)
{
	const struct engine *engine = check_engine(state);
	struct trainer trainer;
	struct reference reference;
	char line[1024];
	unsigned step, steps_seen = 0, tensors_seen = 0;
	double loss, norm;

	omp_set_num_threads(1); /* too small to share */
	trainer_init(&trainer, engine);
	for (unsigned s = 0; s < STEPS; s++)
		train_step(&trainer, s);

	FILE *file = oracle_open("ten_steps.ref");
	while (fgets(line, sizeof(line), file)) {
		if (line[0] == '#')
			continue;
		if (sscanf(line, "step %u %lf %lf", &step, &loss, &norm) == 3) {
			assert_in_range(step, 0, STEPS - 1);
			if (!(fabs(trainer.losses[step] / loss - 1) < trainer.tolerance->loss) ||
				!(fabs(trainer.norms[step] / norm - 1) <
					trainer.tolerance->grad_norm))
				fail_msg("step %u: loss %.9g, not %.9g; norm %.9g, not %.9g", step,
					trainer.losses[step], loss, trainer.norms[step], norm);
			steps_seen++;
		} else if (parse_tensor(line, &reference)) {
			check_tensor(&trainer, &reference);
			tensors_seen++;
		} else {
			fail_msg("ten_steps.ref: %s", line);
		}
	}
	fclose(file);
	assert_int_equal(steps_seen, STEPS);
	assert_int_equal(tensors_seen, 2 * trainer.table.count);
	trainer_fini(&trainer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(test_ten_steps_are_diffusers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
