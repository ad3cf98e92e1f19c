/* See worker_cpu.h. */
#include "daemon/worker_cpu.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char *const feature_names[CPU_FEATURE_COUNT] = {
	[CPU_SSE4_2] = "sse4.2",
	[CPU_POPCNT] = "popcnt",
	[CPU_AVX] = "avx",
	[CPU_AVX2] = "avx2",
	[CPU_FMA] = "fma",
	[CPU_BMI] = "bmi",
	[CPU_BMI2] = "bmi2",
	[CPU_AVX512F] = "avx512f",
	[CPU_AVX512CD] = "avx512cd",
	[CPU_AVX512BW] = "avx512bw",
	[CPU_AVX512DQ] = "avx512dq",
	[CPU_AVX512VL] = "avx512vl",
	[CPU_AVX512IFMA] = "avx512ifma",
	[CPU_AVX512VBMI] = "avx512vbmi",
	[CPU_AVX512VNNI] = "avx512vnni",
	[CPU_AVX512VBMI2] = "avx512vbmi2",
	[CPU_AVX512BITALG] = "avx512bitalg",
	[CPU_AVX512VPOPCNTDQ] = "avx512vpopcntdq",
	[CPU_AVX512BF16] = "avx512_bf16",
	[CPU_AVX512FP16] = "avx512_fp16",
	[CPU_AMX_TILE] = "amx_tile",
	[CPU_AMX_BF16] = "amx_bf16",
};

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* What the builtin of older compilers does not know. */
static bool has_leaf_7_edx(unsigned bit)
{
	unsigned eax, ebx, ecx, edx;

	return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> bit & 1);
}

/* The builtin takes literals only. */
static bool has(enum cpu_feature feature)
{
	switch (feature) {
	case CPU_SSE4_2:
		return __builtin_cpu_supports("sse4.2");
	case CPU_POPCNT:
		return __builtin_cpu_supports("popcnt");
	case CPU_AVX:
		return __builtin_cpu_supports("avx");
	case CPU_AVX2:
		return __builtin_cpu_supports("avx2");
	case CPU_FMA:
		return __builtin_cpu_supports("fma");
	case CPU_BMI:
		return __builtin_cpu_supports("bmi");
	case CPU_BMI2:
		return __builtin_cpu_supports("bmi2");
	case CPU_AVX512F:
		return __builtin_cpu_supports("avx512f");
	case CPU_AVX512CD:
		return __builtin_cpu_supports("avx512cd");
	case CPU_AVX512BW:
		return __builtin_cpu_supports("avx512bw");
	case CPU_AVX512DQ:
		return __builtin_cpu_supports("avx512dq");
	case CPU_AVX512VL:
		return __builtin_cpu_supports("avx512vl");
	case CPU_AVX512IFMA:
		return __builtin_cpu_supports("avx512ifma");
	case CPU_AVX512VBMI:
		return __builtin_cpu_supports("avx512vbmi");
	case CPU_AVX512VNNI:
		return __builtin_cpu_supports("avx512vnni");
	case CPU_AVX512VBMI2:
		return __builtin_cpu_supports("avx512vbmi2");
	case CPU_AVX512BITALG:
		return __builtin_cpu_supports("avx512bitalg");
	case CPU_AVX512VPOPCNTDQ:
		return __builtin_cpu_supports("avx512vpopcntdq");
	case CPU_AVX512BF16:
		return __builtin_cpu_supports("avx512bf16");
	case CPU_AVX512FP16:
		return __builtin_cpu_supports("avx512f") && has_leaf_7_edx(23);
	case CPU_AMX_TILE:
		return has_leaf_7_edx(24);
	case CPU_AMX_BF16:
		return has_leaf_7_edx(22);
	case CPU_FEATURE_COUNT:
		break;
	}
	return false;
}

static void model_name(char name[49])
{
	unsigned registers[12];

	strcpy(name, "x86");
	for (unsigned i = 0; i < 3; i++)
		if (!__get_cpuid(0x80000002 + i, &registers[4 * i], &registers[4 * i + 1],
			    &registers[4 * i + 2], &registers[4 * i + 3]))
			return;
	memcpy(name, registers, sizeof(registers));
	name[48] = 0;
}
#else
static bool has(enum cpu_feature feature)
{
	return false;
}

static void model_name(char name[49])
{
	strcpy(name, "not x86");
}
#endif

int worker_cpu_check(struct error *err)
{
	char missing[400] = "";

	for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
		if (!(worker_cpu_needs >> i & 1) || has(i))
			continue;
		strcat(missing, " ");
		strcat(missing, feature_names[i]);
	}
	if (!*missing)
		return 0;
	return error_set(err, -ENOTSUP,
		"this CPU lacks%s, which ckptd was built to use: build it on this machine, or with "
		"-Dcpu=x86-64-v2",
		missing);
}

void worker_cpu_text(char *text, size_t size)
{
	char name[49];
	size_t used;

	model_name(name);
	used = (size_t)snprintf(text, size, "%s;", name);
	for (unsigned i = 0; i < CPU_FEATURE_COUNT && used < size; i++)
		if (has(i))
			used += (size_t)snprintf(text + used, size - used, " %s", feature_names[i]);
}
