/* Key files: a secret one, and one of trusted keys. */
#include "base/sign.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct sign_public keys[4];
	struct sign_key key;
	uint32_t count = 0;
	const char *dir;
	struct error err;
	char path[96];

	fuzz_dir(&dir);
	snprintf(path, sizeof(path), "%s/key", dir);
	fuzz_write("key", data, size);
	if (sign_key_read(path, &key, &err) == 0) {
		CHECK(memcmp(key.secret + SIGN_SEED_BYTES, key.public.bytes, SIGN_PUBLIC_BYTES) ==
			0);
		sign_key_wipe(&key);
	}
	sign_trusted_read(path, keys, 4, &count, &err);
	CHECK(count <= 4);
	return 0;
}
