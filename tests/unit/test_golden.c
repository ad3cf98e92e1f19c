/* P8, P11: tests/golden holds a checkpoint of each version and files that must be refused, made
 * from the documents by make_checkpoints.py. Their data are 4 MiB of zeros. */
#include "store/trust.h"
#include "tests/unit/store_fixture.h"

#define DATA_BYTES CHECKPOINT_CHUNK_BYTES
#define LINE_MAX_BYTES 256

/* The header from tests/golden with its data, as a checkpoint of the fixture's run. */
static void place(struct fixture *fx, const char *golden, const char *name)
{
	size_t size = fixture_golden(fx->fd, golden, name);

	fixture_truncate(fx->fd, name, size + DATA_BYTES);
}

static void trust_first_key(bool require)
{
	struct trust policy = {.require = require, .only_listed = true, .key_count = 1};
	uint8_t seed[SIGN_SEED_BYTES] = {1};
	struct sign_key key;

	sign_key_from_seed(seed, &key);
	policy.keys[0] = key.public;
	trust_set(&policy);
}

static int setup(void **state)
{
	struct fixture *fx;
	int rc = fixture_setup_small(state);

	fx = *state;
	assert_int_equal(
		bytes_from_hex("00112233445566778899aabbccddeeff", fx->run.id, RUN_ID_SIZE), 0);
	trust_first_key(false);
	return rc;
}

static int teardown(void **state)
{
	trust_set(&(struct trust){0});
	return fixture_teardown(state);
}

static void p8_golden_version_2_is_accepted(void **state)
{
	const char *name = "step-000004711-b0002.safetensors";
	struct fixture *fx = *state;
	struct checkpoint_info info;
	char hex[SIGN_PUBLIC_HEX_SIZE];
	int fd;

	place(fx, "checkpoint-v2.header", name);
	trust_first_key(true);
	fd = checkpoint_open(fx->fd, name, &info, &fx->err);
	PASS(fd);
	assert_true(info.is_signed);
	sign_public_hex(&info.signer, hex);
	assert_string_equal(
		hex, "cecc1507dc1ddd7295951c290888f095adb9044d1b73d696e6df065d683bd4fc");
	assert_true(info.has_weights_digest);
	assert_int_equal(info.record.step, 4711);
	PASS(checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &fx->err));
	close(fd);
	checkpoint_info_fini(&info);
}

/* One line of the index; the catalog says the state and the reason. */
static void expect_refused(struct fixture *fx, char *line)
{
	const char *file = strsep(&line, " "), *name = strsep(&line, " ");
	const char *state = strsep(&line, " "), *words = line;
	char golden[LINE_MAX_BYTES], id[CHECKPOINT_ID_SIZE];
	struct catalog_row row;

	assert_non_null(words);
	snprintf(golden, sizeof(golden), "refused/%s", file);
	trust_first_key(strcmp(file, "not-signed") == 0);
	place(fx, golden, name);
	fixture_prepare(fx);
	snprintf(id, sizeof(id), "%.20s", name);
	assert_true(fixture_row(fx, id, &row));
	if (strcmp(checkpoint_state_name(row.state), state) != 0 || strstr(row.text, words) == NULL)
		fail_msg("%s is %s: %s", file, checkpoint_state_name(row.state), row.text);
	PASS(unlinkat(fx->fd, name, 0));
}

static void p11_what_must_be_refused_is_and_says_why(void **state)
{
	const char *source = getenv("CKPTD_SOURCE");
	struct fixture *fx = *state;
	char path[512], line[LINE_MAX_BYTES];
	uint32_t count = 0;
	FILE *index;

	snprintf(
		path, sizeof(path), "%s/tests/golden/refused/INDEX", source != NULL ? source : ".");
	index = fopen(path, "r");
	assert_non_null(index);
	while (fgets(line, sizeof(line), index) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (line[0] == '#')
			continue;
		expect_refused(fx, line);
		count++;
	}
	fclose(index);
	assert_true(count >= 16);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p8_golden_version_2_is_accepted),
		TEST(p11_what_must_be_refused_is_and_says_why),
	};

	return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
