/* UNet2DModel as its definition, in double, from the list of parts: the oracle for nets that the
 * golden numbers do not cover. */
#pragma once

#include "daemon/model/parts.h"

/* weights: one double for each element of the tensor table's section, at the same index.
 * x [n][in][H][W] -> y [n][out][H][W]. */
void naive_unet(const struct unet_config *config, const struct tensor_table *table,
	const double *weights, uint32_t n, const double *x, const double *timesteps,
	const int32_t *labels, double *y);
