/* oneDNN's time for one convolution: a peer of the engine's kernels, in the benchmarks alone, and
 * only where it is installed when the build folder is set up (Debian: libdnnl-dev, version 2). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum conv_pass { CONV_FORWARD, CONV_BY_DATA, CONV_BY_WEIGHTS };

struct onednn_conv {
	enum conv_pass pass;
	bool bf16; /* sources, weights and gradients; else fp32 */
	uint32_t n, in, out;
	uint32_t side; /* H = W of the input */
	uint32_t kernel, stride;
	uint32_t pad_before, pad_after;
};

/* "2.6.3", or NULL where it is not installed. */
const char *onednn_version(void);
/* In its own choice of layouts (reorders are not counted), on all threads: the best of several
 * calls, because threads that wait for each other suffer most from whatever else runs. Negative
 * where it has no such convolution or is not installed. */
double onednn_seconds(const struct onednn_conv *conv);
