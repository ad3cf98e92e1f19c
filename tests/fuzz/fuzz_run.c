/* run.json: what is accepted is stored and loaded again as the same. */
#include "store/run.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct run run, again;
	struct config config;
	struct error err;
	int dir = fuzz_dir(NULL);

	if (!fuzz_write_sealed("run.json", data, size))
		fuzz_write("run.json", data, size);
	if (run_load(dir, &run, &err) < 0)
		return 0;
	config_defaults(&config);
	if (run_check_identity(&run, &config, &err) < 0)
		CHECK(err.text[0] != '\0');
	CHECK(run_store(dir, &run, &err) == 0);
	CHECK(run_load(dir, &again, &err) == 0);
	CHECK(memcmp(run.id, again.id, sizeof(run.id)) == 0 && run.wanted == again.wanted);
	CHECK(run.power_paused == again.power_paused &&
		run.verified_branch == again.verified_branch);
	CHECK(json_equal(run.identity, again.identity));
	run_fini(&again);
	run_fini(&run);
	return 0;
}
