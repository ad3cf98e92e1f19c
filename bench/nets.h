/* The nets that the benchmarks train, by name, as bench/peer_train.py has them:
 *
 *     default   what ckptd trains when nothing is set: (32,64,128), one layer a block
 *     small     (64,128,128,128), two layers a block, in cifar's shape
 *     cifar     google/ddpm-cifar10-32: (128,256,256,256), 35.7 M parameters */
#pragma once

#include "daemon/model/unet.h"

/* -EINVAL for an unknown name. */
int net_named(const char *name, struct unet_config *ret);
/* Multiply-adds of one image's forward: convolutions, linears and the two products of attention, as
 * written (an upsampled image is convolved at its full size), without pads. */
double net_macs(const struct unet_config *config);
