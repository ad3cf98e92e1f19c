/* diffusers' UNet2DModel as a list of parts. */
#include "daemon/model/parts.h"

#include "base/panic.h"

#include <stdarg.h>
#include <stdio.h>

uint32_t unet_time_width(const struct unet_config *config)
{
	return 4 * config->channels[0];
}

__attribute__((format(printf, 3, 4))) static void add(
	struct parts *parts, struct part part, const char *fmt, ...)
{
	CHECK(parts->count < PARTS_MAX);
	va_list args;
	va_start(args, fmt);
	int length = vsnprintf(part.name, sizeof(part.name), fmt, args);
	va_end(args);
	CHECK(length > 0 && (size_t)length < sizeof(part.name));
	parts->items[parts->count++] = part;
}

static void down_blocks(const struct unet_config *config, struct parts *parts)
{
	for (uint32_t i = 0; i < config->level_count; i++) {
		uint32_t in = config->channels[i ? i - 1 : 0], out = config->channels[i];
		bool attention = config->down_attention[i];
		for (uint32_t l = 0; l < config->layers_per_block; l++) {
			struct part resnet = {PART_RESNET, .level = i, .in = l ? out : in,
				.out = out, .push = !attention};
			add(parts, resnet, "down_blocks.%u.resnets.%u", i, l);
			struct part attn = {
				PART_ATTENTION, .level = i, .in = out, .out = out, .push = true};
			if (attention)
				add(parts, attn, "down_blocks.%u.attentions.%u", i, l);
		}
		struct part down = {PART_DOWN, .level = i, .in = out, .out = out, .push = true};
		if (i + 1 < config->level_count)
			add(parts, down, "down_blocks.%u.downsamplers.0.conv", i);
	}
}

static void mid_block(const struct unet_config *config, struct parts *parts)
{
	uint32_t level = config->level_count - 1, channels = config->channels[level];
	struct part resnet = {PART_RESNET, .level = level, .in = channels, .out = channels};
	struct part attention = {PART_ATTENTION, .level = level, .in = channels, .out = channels};
	add(parts, resnet, "mid_block.resnets.0");
	add(parts, attention, "mid_block.attentions.0");
	add(parts, resnet, "mid_block.resnets.1");
}

/* Channels of the skip that resnet l of up block u takes. */
static uint32_t skip_channels(const struct unet_config *config, uint32_t u, uint32_t l)
{
	uint32_t level = config->level_count - 1 - u;
	bool last = l == config->layers_per_block;
	return config->channels[last && level ? level - 1 : level];
}

static void up_blocks(const struct unet_config *config, struct parts *parts)
{
	uint32_t levels = config->level_count;
	for (uint32_t u = 0; u < levels; u++) {
		uint32_t level = levels - 1 - u, out = config->channels[level];
		uint32_t before = config->channels[u ? level + 1 : level];
		for (uint32_t l = 0; l <= config->layers_per_block; l++) {
			struct part resnet = {PART_RESNET, .level = level, .in = l ? out : before,
				.out = out, .skip = skip_channels(config, u, l)};
			add(parts, resnet, "up_blocks.%u.resnets.%u", u, l);
			struct part attention = {
				PART_ATTENTION, .level = level, .in = out, .out = out};
			if (config->up_attention[u])
				add(parts, attention, "up_blocks.%u.attentions.%u", u, l);
		}
		struct part up = {PART_UP, .level = level, .in = out, .out = out};
		if (level)
			add(parts, up, "up_blocks.%u.upsamplers.0.conv", u);
	}
}

void parts_of(const struct unet_config *config, struct parts *ret)
{
	uint32_t first = config->channels[0];
	ret->count = 0;
	add(ret, (struct part){PART_CONV_IN, .in = config->in_channels, .out = first, .push = true},
		"conv_in");
	down_blocks(config, ret);
	mid_block(config, ret);
	up_blocks(config, ret);
	add(ret, (struct part){PART_OUTPUT, .in = first, .out = config->out_channels}, "conv_out");
}
