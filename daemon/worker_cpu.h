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
	CPU_AVX512VBMI2,
	CPU_AVX512BITALG,
	CPU_AVX512VPOPCNTDQ,
	CPU_AVX512BF16,
	CPU_AVX512FP16,
	CPU_AMX_TILE,
	CPU_AMX_BF16,
	CPU_FEATURE_COUNT
};

/* What the training code was compiled to use (worker_cpu_needs.c). The kernels of an engine that
 * asks for its CPU at run time need nothing here. */
extern const uint32_t worker_cpu_needs;

/* -ENOTSUP with the missing features and what to do. */
int worker_cpu_check(struct error *err);
/* "Intel(R) Xeon(R) ...; sse4.2 popcnt avx ..." of the CPU that runs this. */
void worker_cpu_text(char *text, size_t size);
