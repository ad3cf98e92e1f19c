/* Scalars of step k that depend on counts alone, without libm: learning rate, bias corrections, EMA
 * decay. */
#pragma once

#include <stdint.h>

enum lr_kind { LR_CONSTANT, LR_COSINE };

/* Factor of the peak rate at update k = 0, 1, ...: k / max(1, warmup) below warmup, then 1 or
 * max(0, (1 + cos(pi (k - warmup) / max(1, total - warmup))) / 2). As diffusers' get_scheduler. */
double lr_factor(enum lr_kind kind, uint64_t k, uint64_t warmup, uint64_t total);
/* beta^k by repeated squaring. */
double power_int(double beta, uint64_t k);
/* EMA decay after update n = 1, 2, ...: 0 for n = 1, then min(1 - n^-power, max): EMAModel with
 * use_ema_warmup, inv_gamma 1, update_after_step 0. */
double ema_decay(uint64_t n, double power, double max);
