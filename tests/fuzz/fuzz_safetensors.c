/* The safetensors header. The first two bytes say how many data follow it. */
#include "store/safetensors.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct st_header header;
	struct error err;
	uint64_t at = 0;

	if (size < 2)
		return 0;
	uint64_t bytes = (uint64_t)(data[0] | data[1] << 8) * 64;
	char *json = fuzz_text(data + 2, size - 2);

	if (st_header_parse(json, size - 2, bytes, &header, &err) == 0) {
		CHECK(header.data_bytes == bytes);
		for (uint32_t i = 0; i < header.tensor_count; i++) {
			const struct st_tensor *tensor = &header.tensors[i];

			CHECK(tensor->begin == at && tensor->end >= tensor->begin);
			CHECK(tensor->dim_count <= SAFETENSORS_DIMS_MAX);
			CHECK(st_header_find(&header, tensor->name) != NULL);
			at = tensor->end;
		}
		CHECK(at == bytes);
		st_header_fini(&header);
	}
	free(json);
	return 0;
}
