/* See worker_plan.h. */
#include "daemon/worker_plan.h"

#include "base/file.h"
#include "base/sys.h"

#include <errno.h>
#include <string.h>

static int unet_config_of(const struct config *config, uint32_t class_count,
	struct unet_config *ret, struct error *err)
{
	struct config_levels levels;
	int r = config_levels(config, &levels, err);

	if (r < 0)
		return r;
	*ret = (struct unet_config){
		.sample_size = (uint32_t)config->image_size,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = levels.count,
		.layers_per_block = (uint32_t)config->layers_per_block,
		.head_dim = (uint32_t)config->head_dim,
		.groups = (uint32_t)config->groups,
		.norm_eps = (float)config->norm_eps,
		.downsample_padding = (uint32_t)config->downsample_padding,
		.flip_sin_to_cos = config->flip_sin_to_cos,
		.freq_shift = (uint32_t)config->freq_shift,
		.class_count = class_count ? class_count + 1 : 0,
	};
	for (uint32_t i = 0; i < levels.count; i++) {
		ret->channels[i] = levels.channels[i];
		ret->down_attention[i] = levels.down_attention[i];
		ret->up_attention[i] = levels.up_attention[i];
	}
	return 0;
}

int model_init(
	struct model *model, const struct config *config, uint32_t class_count, struct error *err)
{
	int r;

	memset(model, 0, sizeof(*model));
	r = unet_config_of(config, class_count, &model->config, err);
	if (r == 0)
		r = unet_config_check(&model->config, err);
	if (r == 0)
		r = unet_tensor_table(&model->config, &model->table, err);
	if (r == 0)
		model->digest = tensor_table_digest(&model->table);
	return r;
}

void model_fini(struct model *model)
{
	tensor_table_fini(&model->table);
	memset(model, 0, sizeof(*model));
}

static int data_config_of(
	const struct config *config, int run_fd, struct data_config *ret, struct error *err)
{
	int cache = file_open_dir(run_fd, "cache", 0750);

	if (cache < 0)
		return error_set(
			err, cache, "cannot open the run's cache folder: %s", strerror(-cache));
	*ret = (struct data_config){
		.source = config->data,
		.image_size = (uint32_t)config->image_size,
		.labels = strcmp(config->labels, "folders") == 0,
		.holdout_percent = config->holdout,
		.seed = (uint64_t)config->seed,
		.cache_fd = cache,
	};
	return 0;
}

int plan_prepare_data(const struct config *config, int run_fd, _Atomic uint64_t *moves,
	data_report *report, data_confine *confine, void *context, struct error *err)
{
	struct data_config data;
	int r = data_config_of(config, run_fd, &data, err);

	if (r < 0)
		return r;
	data.confine = confine;
	data.confine_context = context;
	r = data_prepare(&data, moves, report, context, err);
	sys_close(data.cache_fd);
	return r;
}

int plan_open_data(const struct config *config, int run_fd, struct data *ret, struct error *err)
{
	struct data_config data;
	int r = data_config_of(config, run_fd, &data, err);

	if (r < 0)
		return r;
	r = data_open(&data, ret, err);
	sys_close(data.cache_fd);
	return r;
}

int plan_class_count(
	const struct config *config, int run_fd, uint32_t *ret_count, struct error *err)
{
	struct data data;
	int r;

	*ret_count = 0;
	if (strcmp(config->labels, "none") == 0)
		return 0;
	r = plan_open_data(config, run_fd, &data, err);
	if (r < 0)
		return r;
	*ret_count = data.class_count;
	data_close(&data);
	return 0;
}

int plan_schedule(const struct config *config, struct schedule *ret, struct error *err)
{
	return schedule_init(ret, config->beta_schedule, (uint32_t)config->timesteps,
		config->beta_start, config->beta_end, err);
}

struct train_params plan_params(const struct config *config)
{
	uint32_t batch = (uint32_t)config->batch_size, micro = (uint32_t)config->micro_batch;

	return (struct train_params){
		.batch_size = batch,
		.micro_batch = micro ? micro : batch,
		.lr_kind = strcmp(config->lr_schedule, "cosine") == 0 ? LR_COSINE : LR_CONSTANT,
		.warmup_steps = (uint64_t)config->warmup_steps,
		.steps_total = (uint64_t)config->steps_total,
		.learning_rate = config->learning_rate,
		.beta1 = config->beta1,
		.beta2 = config->beta2,
		.adam_eps = config->adam_eps,
		.weight_decay = config->weight_decay,
		.clip_norm = config->clip_norm,
		.ema_max = config->ema_max,
		.ema_power = config->ema_power,
		.label_drop = config->label_drop,
		.flips = config->flips,
	};
}
