/* Bytes of clients, of those who may change something and of those who may only look, through the
 * real socket server and the real methods, while honest workers train and save (service.h). */
#include "tests/fuzz/service.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	service_play(data, size, false);
	return 0;
}
