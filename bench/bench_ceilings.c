/* The ceilings of this machine in one line: bf16 tiles and fp32 FMA in GFLOP/s, copies in GB/s
 * (read plus written) by MiB copied, with plain and with streaming stores. */
#include "bench/ceilings.h"

#include <omp.h>
#include <stdio.h>

int main(void)
{
	struct ceilings ceilings;

	ceilings_measure(&ceilings);
	printf("tile_gflops=%.0f fma_gflops=%.1f copy_gb_s=%.2f threads=%d", ceilings.tile_gflops,
		ceilings.fma_gflops, ceilings.copy_gb_s, omp_get_max_threads());
	for (int i = 0; i < COPY_SIZE_COUNT; i++)
		printf(" copy_%u_gb_s=%.2f stream_%u_gb_s=%.2f", copy_sizes_mib[i],
			ceilings.plain_gb_s[i], copy_sizes_mib[i], ceilings.stream_gb_s[i]);
	printf("\n");
	return 0;
}
