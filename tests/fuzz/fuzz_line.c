/* A branch file. */
#include "store/line.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err;
	struct line line;

	if (!fuzz_write_sealed("branch-0002.json", data, size))
		fuzz_write("branch-0002.json", data, size);
	if (line_load(fuzz_dir(NULL), &line, &err) < 0)
		return 0;
	CHECK(line.count == 2 && line.current == 2 && line.highest >= 2);
	CHECK(line.branches[1].parent == 1);
	CHECK(line.branches[1].intervention_count <= LINE_INTERVENTIONS_MAX);
	CHECK(line_contains(&line, 1, line.branches[1].fork_step));
	CHECK(line.branches[1].fork_step == UINT64_MAX ||
		!line_contains(&line, 1, line.branches[1].fork_step + 1));
	line_fini(&line);
	return 0;
}
