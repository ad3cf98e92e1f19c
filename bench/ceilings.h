/* What this machine can do at most, measured on all OpenMP threads: the ceilings that rates are
 * compared with. */
#pragma once

#define COPY_SIZE_COUNT 3

struct ceilings {
	double tile_gflops; /* AMX bf16 products, operands in the first cache; 0: none here */
	double fma_gflops;  /* fp32, in registers; 0: neither AVX-512 nor AVX2 */
	double copy_gb_s;   /* bytes read plus bytes written: the best of those below */
	double plain_gb_s[COPY_SIZE_COUNT], stream_gb_s[COPY_SIZE_COUNT];
};

/* MiB of the array that is copied. */
extern const unsigned copy_sizes_mib[COPY_SIZE_COUNT];

/* Takes about three seconds. */
void ceilings_measure(struct ceilings *ret);
