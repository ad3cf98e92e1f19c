/* What workers may send and write, were they taken over: messages, stderr, exit codes, the progress
 * page, the first pages of the state memory (service.h). The supervisor goes on, and tells nothing
 * that cannot be. */
#include "tests/fuzz/service.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	service_play(data, size, true);
	return 0;
}
