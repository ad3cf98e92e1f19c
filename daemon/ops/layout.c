/* The sequence of positions. */
#include "daemon/ops/layout.h"

#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>

#define POSITIONS_MAX (UINT32_C(1) << 30)

int layout_init(struct layout *layout, uint32_t batch, uint32_t height, uint32_t width, bool dense)
{
	*layout = (struct layout){
		.batch = batch,
		.height = height,
		.width = width,
		.dense = dense,
		.pitch = dense ? width : width + 1,
		.head = dense ? 0 : width + 2,
		.tail = dense ? 32 : width + 2,
	};
	uint64_t stride = (uint64_t)layout->pitch * (dense ? height : height + 1);
	if (stride > POSITIONS_MAX || stride * batch > POSITIONS_MAX)
		return -EOVERFLOW;
	layout->image_stride = (uint32_t)stride;
	uint32_t count = batch * layout->image_stride;
	layout->padded = (count + 31) / 32 * 32;
	layout->image_of = malloc(layout->padded * sizeof(*layout->image_of));
	if (!layout->image_of)
		return -ENOMEM;
	for (uint32_t p = 0; p < layout->padded; p++) {
		uint32_t in_image = p % layout->image_stride;
		bool pad = p >= count || in_image % layout->pitch >= width ||
			in_image / layout->pitch >= height;
		layout->image_of[p] = pad ? -1 : (int32_t)(p / layout->image_stride);
	}
	return 0;
}

void layout_fini(struct layout *layout)
{
	free(layout->image_of);
	*layout = (struct layout){0};
}

uint32_t layout_active(const struct layout *layout, uint32_t n)
{
	CHECK(n <= layout->batch);
	uint32_t end = (n * layout->image_stride + POSITION_BLOCK - 1) / POSITION_BLOCK *
		POSITION_BLOCK;
	return end < layout->padded ? end : layout->padded;
}
