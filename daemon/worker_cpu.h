/* The training code is compiled for one kind of CPU (build option `cpu`). On another machine, a
 * clear line instead of SIGILL. This check itself, and main, are compiled for any CPU. */
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Bits of worker_cpu_needs. */
enum cpu_feature {
	CPU_SSE4_2,
	CPU_POPCNT,
	CPU_AVX,
	CPU_AVX2,
	CPU_FMA,
	CPU_BMI,
	CPU_BMI2,
	CPU_AVX512F,
	CPU_AVX512CD,
	CPU_AVX512BW,
	CPU_AVX512DQ,
	CPU_AVX512VL,
	CPU_AVX512IFMA,
	CPU_AVX512VBMI,
	CPU_AVX512VNNI,
	CPU_FEATURE_COUNT
};

/* What the training code was compiled to use (worker_cpu_needs.c). */
extern const uint32_t worker_cpu_needs;

/* -ENOTSUP with the missing features and what to do. */
int worker_cpu_check(struct error *err);
/* "Intel(R) Xeon(R) ...; sse4.2 popcnt avx ..." of the CPU that runs this. */
void worker_cpu_text(char *text, size_t size);
