/* The configuration files of a diffusers folder (UNet2DModel, DDPMScheduler, DDPMPipeline), with
 * every field whose value differs from the class's default and the ones people look for. Our own
 * provenance has a leading '_': diffusers keeps such fields without a word. */
#include "ctl/export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DIFFUSERS_VERSION "0.27.0" /* the oldest that is known to load these files */

/* block_out_channels, or the names of the down or up blocks. */
static json_t *channels_of(const struct config_levels *levels)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < levels->count; i++)
		json_array_append_new(array, json_integer(levels->channels[i]));
	return array;
}

static json_t *blocks_of(
	uint32_t count, const bool *attention, const char *with, const char *without)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < count; i++)
		json_array_append_new(array, json_string(attention[i] ? with : without));
	return array;
}

uint32_t export_class_count(const struct checkpoint_info *info)
{
	const struct tensor_spec *spec = tensor_table_find(&info->table, "class_embedding.weight");

	return spec != NULL ? spec->shape[0] : 0;
}

json_t *export_unet_config(const struct checkpoint_info *info)
{
	const struct config *config = &info->config;
	uint32_t classes = export_class_count(info);
	struct config_levels levels;
	char root[DIGEST_HEX_SIZE];

	if (config_levels(config, &levels, NULL) < 0)
		return NULL;
	digest_to_hex(&info->root, root);
	return json_pack("{s:s, s:s, s:I, s:i, s:i, s:o, s:o, s:o, s:I, s:o, s:I, s:f, s:I, s:b, "
			 "s:I, s:b, s:i, s:s, s:s, s:b, s:f, s:s, s:s, s:s, s:n, s:n, s:o, s:n, "
			 "s:s, s:s}",
		"_class_name", "UNet2DModel", "_diffusers_version", DIFFUSERS_VERSION,
		"sample_size", (json_int_t)config->image_size, "in_channels", 3, "out_channels", 3,
		"block_out_channels", channels_of(&levels), "down_block_types",
		blocks_of(levels.count, levels.down_attention, "AttnDownBlock2D", "DownBlock2D"),
		"up_block_types",
		blocks_of(levels.count, levels.up_attention, "AttnUpBlock2D", "UpBlock2D"),
		"layers_per_block", (json_int_t)config->layers_per_block, "attention_head_dim",
		config->head_dim > 0 ? json_integer(config->head_dim) : json_null(),
		"norm_num_groups", (json_int_t)config->groups, "norm_eps", config->norm_eps,
		"downsample_padding", (json_int_t)config->downsample_padding, "flip_sin_to_cos",
		(int)config->flip_sin_to_cos, "freq_shift", (json_int_t)config->freq_shift,
		"center_input_sample", 0, "mid_block_scale_factor", 1, "act_fn", "silu",
		"time_embedding_type", "positional", "add_attention", 1, "dropout", 0.0,
		"downsample_type", "conv", "upsample_type", "conv", "resnet_time_scale_shift",
		"default", "attn_norm_num_groups", "class_embed_type", "num_class_embeds",
		classes > 0 ? json_integer(classes) : json_null(), "num_train_timesteps",
		"_ckptd_checkpoint", info->id, "_ckptd_root", root);
}

json_t *export_scheduler_config(const struct checkpoint_info *info)
{
	const struct config *config = &info->config;

	return json_pack("{s:s, s:s, s:I, s:s, s:f, s:f, s:n, s:s, s:b, s:f, s:s, s:b, s:f, s:f, "
			 "s:s, s:i, s:b}",
		"_class_name", "DDPMScheduler", "_diffusers_version", DIFFUSERS_VERSION,
		"num_train_timesteps", (json_int_t)config->timesteps, "beta_schedule",
		config->beta_schedule, "beta_start", config->beta_start, "beta_end",
		config->beta_end, "trained_betas", "variance_type", "fixed_small", "clip_sample", 1,
		"clip_sample_range", 1.0, "prediction_type", "epsilon", "thresholding", 0,
		"dynamic_thresholding_ratio", 0.995, "sample_max_value", 1.0, "timestep_spacing",
		"leading", "steps_offset", 0, "rescale_betas_zero_snr", 0);
}

json_t *export_model_index(void)
{
	return json_pack("{s:s, s:s, s:[s, s], s:[s, s]}", "_class_name", "DDPMPipeline",
		"_diffusers_version", DIFFUSERS_VERSION, "scheduler", "diffusers", "DDPMScheduler",
		"unet", "diffusers", "UNet2DModel");
}
