/* See nets.h. */
#include "bench/nets.h"

#include "daemon/model/parts.h"

#include <errno.h>
#include <string.h>

static const struct unet_config default_net = {
	.sample_size = 32,
	.in_channels = 3,
	.out_channels = 3,
	.level_count = 3,
	.channels = {32, 64, 128},
	.down_attention = {false, false, true},
	.up_attention = {true, false, false},
	.layers_per_block = 1,
	.head_dim = 32,
	.groups = 8,
	.norm_eps = 1e-5f,
	.downsample_padding = 1,
	.flip_sin_to_cos = true,
};

static const struct unet_config small_net = {
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

static const struct unet_config cifar_net = {
	.sample_size = 32,
	.in_channels = 3,
	.out_channels = 3,
	.level_count = 4,
	.channels = {128, 256, 256, 256},
	.down_attention = {false, true, false, false},
	.up_attention = {false, false, true, false},
	.layers_per_block = 2,
	.groups = 32,
	.norm_eps = 1e-6f,
	.downsample_padding = 0,
	.flip_sin_to_cos = false,
	.freq_shift = 1,
};

static const struct {
	const char *name;
	const struct unet_config *config;
} nets[] = {{"default", &default_net}, {"small", &small_net}, {"cifar", &cifar_net}};

int net_named(const char *name, struct unet_config *ret)
{
	for (size_t i = 0; i < sizeof(nets) / sizeof(*nets); i++)
		if (strcmp(nets[i].name, name) == 0) {
			*ret = *nets[i].config;
			return 0;
		}
	return -EINVAL;
}

static double part_macs(const struct unet_config *config, const struct part *part)
{
	double side = config->sample_size >> part->level, pixels = side * side;
	double in = part->in + part->skip, out = part->out;

	switch (part->kind) {
	case PART_CONV_IN:
	case PART_OUTPUT:
		return 9 * in * out * pixels;
	case PART_RESNET:
		return (9 * in * out + 9 * out * out + (in == out ? 0 : in * out)) * pixels +
			unet_time_width(config) * out;
	case PART_ATTENTION:
		return 4 * in * out * pixels + 2 * pixels * pixels * out;
	case PART_DOWN:
		return 9 * in * out * pixels / 4;
	case PART_UP:
		return 9 * in * out * pixels * 4;
	}
	return 0;
}

double net_macs(const struct unet_config *config)
{
	static struct parts parts; /* large */
	double time = unet_time_width(config), macs = config->channels[0] * time + time * time;

	parts_of(config, &parts);
	for (uint32_t i = 0; i < parts.count; i++)
		macs += part_macs(config, &parts.items[i]);
	return macs;
}
