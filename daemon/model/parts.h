/* The architecture as a list: every block of the network in the order of its forward call, with
 * diffusers' name. Tensor table, call list and tests read the same list. */
#pragma once

#include "daemon/model/unet.h"

enum part_kind {
	PART_CONV_IN,
	PART_RESNET,
	PART_ATTENTION,
	PART_DOWN,
	PART_UP,
	PART_OUTPUT, /* conv_norm_out, SiLU, conv_out */
};

struct part {
	enum part_kind kind;
	char name[64];
	uint32_t level; /* 0 is the full size; of the input */
	uint32_t in, out;
	uint32_t skip; /* channels taken from the stack of skips and put behind in, or 0 */
	bool push;     /* the result goes on the stack of skips */
};

#define PARTS_MAX 640

struct parts {
	uint32_t count;
	struct part items[PARTS_MAX];
};

/* config must have passed unet_config_check. */
void parts_of(const struct unet_config *config, struct parts *ret);
/* Width of the time embedding: 4 channels[0]. */
uint32_t unet_time_width(const struct unet_config *config);
