/* Compiled with the training code's flags: the compiler itself says what it may use. Not AMX: no
 * compiler uses tiles unasked. Data only, so that it can be read on any CPU. See worker_cpu.h. */
#include "daemon/worker_cpu.h"

#define NEED(feature) ((uint32_t)1 << (feature))

const uint32_t worker_cpu_needs = 0
#ifdef __SSE4_2__
	| NEED(CPU_SSE4_2)
#endif
#ifdef __POPCNT__
	| NEED(CPU_POPCNT)
#endif
#ifdef __AVX__
	| NEED(CPU_AVX)
#endif
#ifdef __AVX2__
	| NEED(CPU_AVX2)
#endif
#ifdef __FMA__
	| NEED(CPU_FMA)
#endif
#ifdef __BMI__
	| NEED(CPU_BMI)
#endif
#ifdef __BMI2__
	| NEED(CPU_BMI2)
#endif
#ifdef __AVX512F__
	| NEED(CPU_AVX512F)
#endif
#ifdef __AVX512CD__
	| NEED(CPU_AVX512CD)
#endif
#ifdef __AVX512BW__
	| NEED(CPU_AVX512BW)
#endif
#ifdef __AVX512DQ__
	| NEED(CPU_AVX512DQ)
#endif
#ifdef __AVX512VL__
	| NEED(CPU_AVX512VL)
#endif
#ifdef __AVX512IFMA__
	| NEED(CPU_AVX512IFMA)
#endif
#ifdef __AVX512VBMI__
	| NEED(CPU_AVX512VBMI)
#endif
#ifdef __AVX512VNNI__
	| NEED(CPU_AVX512VNNI)
#endif
#ifdef __AVX512VBMI2__
	| NEED(CPU_AVX512VBMI2)
#endif
#ifdef __AVX512BITALG__
	| NEED(CPU_AVX512BITALG)
#endif
#ifdef __AVX512VPOPCNTDQ__
	| NEED(CPU_AVX512VPOPCNTDQ)
#endif
#ifdef __AVX512BF16__
	| NEED(CPU_AVX512BF16)
#endif
#ifdef __AVX512FP16__
	| NEED(CPU_AVX512FP16)
#endif
	;
