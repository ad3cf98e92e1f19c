/* The configuration's rules, and diffusers' names and shapes for it. docs/MODEL.md has the list. */
#include "base/panic.h"
#include "daemon/model/parts.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHANNELS_MAX 4096
#define LAYERS_MAX 16
#define SAMPLE_SIZE_MAX 1024
#define CLASSES_MAX (1u << 20)

static int check_levels(const struct unet_config *config, struct error *err)
{
	if (config->level_count < 1 || config->level_count > UNET_LEVELS_MAX)
		return error_set(err, -EINVAL, "channels: %u levels; give 1 to %d",
			config->level_count, UNET_LEVELS_MAX);
	if (config->groups < 1)
		return error_set(err, -EINVAL, "groups: must be at least 1");
	for (uint32_t i = 0; i < config->level_count; i++) {
		uint32_t channels = config->channels[i];
		if (channels < 1 || channels > CHANNELS_MAX)
			return error_set(err, -EINVAL, "channels: %u is not in 1..%d", channels,
				CHANNELS_MAX);
		if (channels % config->groups)
			return error_set(err, -EINVAL,
				"channels: %u is not divisible by groups = %u", channels,
				config->groups);
		bool attention = config->down_attention[i] || i + 1 == config->level_count ||
			config->up_attention[config->level_count - 1 - i];
		if (attention && config->head_dim && channels % config->head_dim)
			return error_set(err, -EINVAL,
				"head_dim: %u does not divide the %u channels of level %u, which "
				"has "
				"attention",
				config->head_dim, channels, i);
	}
	uint32_t step = 1u << (config->level_count - 1);
	if (config->sample_size < 1 || config->sample_size > SAMPLE_SIZE_MAX ||
		config->sample_size % step)
		return error_set(err, -EINVAL,
			"image_size: %u is not a multiple of %u up to %d (it is halved between the "
			"%u levels)",
			config->sample_size, step, SAMPLE_SIZE_MAX, config->level_count);
	return 0;
}

int unet_config_check(const struct unet_config *config, struct error *err)
{
	int code = check_levels(config, err);
	if (code < 0)
		return code;
	if (config->in_channels < 1 || config->in_channels > 64 || config->out_channels < 1 ||
		config->out_channels > 64)
		return error_set(err, -EINVAL, "in_channels, out_channels: %u, %u; give 1 to 64",
			config->in_channels, config->out_channels);
	if (config->layers_per_block < 1 || config->layers_per_block > LAYERS_MAX)
		return error_set(err, -EINVAL, "layers_per_block: %u is not in 1..%d",
			config->layers_per_block, LAYERS_MAX);
	if (!(config->norm_eps > 0.0f) || !isfinite(config->norm_eps))
		return error_set(err, -EINVAL, "norm_eps: must be positive");
	if (config->downsample_padding > 1)
		return error_set(err, -EINVAL, "downsample_padding: %u is not 0 or 1",
			config->downsample_padding);
	if (config->channels[0] / 2 <= config->freq_shift)
		return error_set(err, -EINVAL,
			"freq_shift: %u is not below half of the first channels, %u",
			config->freq_shift, config->channels[0] / 2);
	if (config->class_count > CLASSES_MAX)
		return error_set(err, -EINVAL, "class_count: %u is more than %u",
			config->class_count, CLASSES_MAX);
	return 0;
}

/* Adds tensors until the first failure, which it keeps. */
struct adder {
	struct tensor_table *table;
	int code;
	char name[TENSOR_NAME_MAX]; /* of the tensor that failed */
};

/* prefix.name.what, or prefix.what without a name. */
static void add(struct adder *adder, const char *prefix, const char *name, const char *what,
	uint32_t dim_count, const uint32_t *shape)
{
	if (adder->code < 0)
		return;
	int length = snprintf(adder->name, sizeof(adder->name), "%s%s%s.%s", prefix,
		name ? "." : "", name ? name : "", what);
	CHECK(length > 0 && (size_t)length < sizeof(adder->name));
	adder->code = tensor_table_add(adder->table, adder->name, dim_count, shape);
}

static void add_conv(struct adder *adder, const char *prefix, const char *name, uint32_t in,
	uint32_t out, uint32_t kernel)
{
	add(adder, prefix, name, "weight", 4, (uint32_t[]){out, in, kernel, kernel});
	add(adder, prefix, name, "bias", 1, &out);
}

static void add_linear(
	struct adder *adder, const char *prefix, const char *name, uint32_t in, uint32_t out)
{
	add(adder, prefix, name, "weight", 2, (uint32_t[]){out, in});
	add(adder, prefix, name, "bias", 1, &out);
}

static void add_norm(struct adder *adder, const char *prefix, const char *name, uint32_t channels)
{
	add(adder, prefix, name, "weight", 1, &channels);
	add(adder, prefix, name, "bias", 1, &channels);
}

static void add_resnet(
	struct adder *adder, const char *prefix, uint32_t in, uint32_t out, uint32_t temb)
{
	add_norm(adder, prefix, "norm1", in);
	add_conv(adder, prefix, "conv1", in, out, 3);
	add_linear(adder, prefix, "time_emb_proj", temb, out);
	add_norm(adder, prefix, "norm2", out);
	add_conv(adder, prefix, "conv2", out, out, 3);
	if (in != out)
		add_conv(adder, prefix, "conv_shortcut", in, out, 1);
}

static void add_attention(struct adder *adder, const char *prefix, uint32_t channels)
{
	add_norm(adder, prefix, "group_norm", channels);
	add_linear(adder, prefix, "to_q", channels, channels);
	add_linear(adder, prefix, "to_k", channels, channels);
	add_linear(adder, prefix, "to_v", channels, channels);
	add_linear(adder, prefix, "to_out.0", channels, channels);
}

static void add_part(struct adder *adder, const struct part *part, uint32_t temb)
{
	switch (part->kind) {
	case PART_CONV_IN:
	case PART_DOWN:
	case PART_UP:
		add_conv(adder, part->name, NULL, part->in, part->out, 3);
		break;
	case PART_RESNET:
		add_resnet(adder, part->name, part->in + part->skip, part->out, temb);
		break;
	case PART_ATTENTION:
		add_attention(adder, part->name, part->in);
		break;
	case PART_OUTPUT:
		add_norm(adder, "conv_norm_out", NULL, part->in);
		add_conv(adder, part->name, NULL, part->in, part->out, 3);
		break;
	}
}

int unet_tensor_table(const struct unet_config *config, struct tensor_table *ret, struct error *err)
{
	int code = unet_config_check(config, err);
	if (code < 0)
		return code;
	struct parts *parts = malloc(sizeof(*parts));
	if (!parts)
		return error_set(err, -ENOMEM, "no memory for the list of tensors");
	parts_of(config, parts);
	tensor_table_init(ret);
	struct adder adder = {.table = ret};
	uint32_t temb = unet_time_width(config);
	add_linear(&adder, "time_embedding", "linear_1", config->channels[0], temb);
	add_linear(&adder, "time_embedding", "linear_2", temb, temb);
	if (config->class_count)
		add(&adder, "class_embedding", NULL, "weight", 2,
			(uint32_t[]){config->class_count, temb});
	for (uint32_t i = 0; i < parts->count; i++)
		add_part(&adder, &parts->items[i], temb);
	free(parts);
	code = adder.code;
	if (code < 0)
		error_set(err, code, "the model is too large: tensor %s does not fit", adder.name);
	else
		code = tensor_table_layout(ret, err);
	if (code < 0)
		tensor_table_fini(ret);
	return code;
}
