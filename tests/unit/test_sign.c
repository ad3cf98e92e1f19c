/* Signatures and key files; who is believed. P11: signed, foreign, forged, stale. */
#include "base/sign.h"
#include "store/trust.h"
#include "tests/unit/store_fixture.h"

#include <sys/stat.h>

#define NAME "step-000000010-b0001.safetensors"

static struct sign_key key_of(uint8_t first)
{
	uint8_t seed[SIGN_SEED_BYTES] = {first};
	struct sign_key key;

	sign_key_from_seed(seed, &key);
	return key;
}

/* -- the primitive -- */

/* RFC 8032, 7.1, TEST 2. */
static void signs_as_rfc_8032(void **state)
{
	static const char seed_hex[] =
		"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
	static const char public_hex[] =
		"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
	static const char signature_hex[] =
		"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
		"085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
	uint8_t seed[SIGN_SEED_BYTES], signature[SIGN_BYTES], message = 0x72;
	char hex[2 * SIGN_BYTES + 1];
	struct sign_key key;

	assert_int_equal(bytes_from_hex(seed_hex, seed, sizeof(seed)), 0);
	sign_key_from_seed(seed, &key);
	sign_public_hex(&key.public, hex);
	assert_string_equal(hex, public_hex);
	sign_make(&key, &message, 1, signature);
	bytes_to_hex(signature, sizeof(signature), hex);
	assert_string_equal(hex, signature_hex);
	assert_true(sign_verify(&key.public, &message, 1, signature));
	message ^= 1;
	assert_false(sign_verify(&key.public, &message, 1, signature));
}

/* -- files -- */

static void path_in(const struct fixture *fx, const char *name, char path[512])
{
	snprintf(path, 512, "%s/%s", fx->dir, name);
}

static void a_made_key_is_read_again_and_never_overwritten(void **state)
{
	struct fixture *fx = *state;
	struct sign_public public, trusted[2];
	struct sign_key key;
	char path[512], pub[520];
	uint32_t count = 0;
	struct stat st;

	path_in(fx, "key", path);
	snprintf(pub, sizeof(pub), "%s.pub", path);
	PASS(sign_key_create(path, &public, &fx->err));
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	PASS(sign_key_read(path, &key, &fx->err));
	assert_true(sign_public_equal(&key.public, &public));
	PASS(sign_trusted_read(pub, trusted, 2, &count, &fx->err));
	assert_int_equal(count, 1);
	assert_true(sign_public_equal(&trusted[0], &public));
	assert_int_equal(sign_key_create(path, &public, &fx->err), -EEXIST);
	PASS(unlink(path));
	assert_int_equal(sign_key_create(path, &public, &fx->err), -EEXIST);
	assert_int_equal(access(path, F_OK), -1);
}

static void a_key_that_others_may_read_is_refused(void **state)
{
	struct fixture *fx = *state;
	struct sign_public public;
	struct sign_key key;
	char path[512];

	path_in(fx, "key", path);
	PASS(sign_key_create(path, &public, &fx->err));
	PASS(chmod(path, 0640));
	assert_int_equal(sign_key_read(path, &key, &fx->err), -EPERM);
	assert_non_null(strstr(fx->err.text, "chmod 600"));
	/* As a credential the folder is what is closed. */
	PASS(setenv("CREDENTIALS_DIRECTORY", fx->dir, 1));
	PASS(sign_key_read("credential:key", &key, &fx->err));
	assert_true(sign_public_equal(&key.public, &public));
	assert_int_equal(sign_key_read("credential:../key", &key, &fx->err), -EINVAL);
	assert_int_equal(sign_key_read("credential:none", &key, &fx->err), -ENOENT);
	PASS(unsetenv("CREDENTIALS_DIRECTORY"));
	assert_int_equal(sign_key_read("credential:key", &key, &fx->err), -ENOENT);
	assert_non_null(strstr(fx->err.text, "LoadCredential=key"));
}

static void a_file_that_is_no_key_is_one_line(void **state)
{
	static const char *const texts[] = {"", "\n", "ckptd-ed25519-secret-1 ",
		"ckptd-ed25519-secret-1 00112233\n",
		"ckptd-ed25519-public-1 "
		"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n",
		"ckptd-ed25519-secret-1 "
		"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff0\n"};
	struct fixture *fx = *state;
	struct sign_key key;
	char path[512];

	path_in(fx, "key", path);
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		fixture_write(fx->run_fd, "key", texts[i], strlen(texts[i]));
		PASS(chmod(path, 0600));
		assert_int_equal(sign_key_read(path, &key, &fx->err), -EINVAL);
		assert_non_null(strstr(fx->err.text, "keygen"));
	}
}

static void trusted_keys_have_comments_and_line_numbers(void **state)
{
	static const char good[] =
		"# those of the lab\n\n"
		"ckptd-ed25519-public-1 "
		"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff  the other one\n"
		"ckptd-ed25519-public-1 "
		"10112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
	static const char bad[] = "# so far\nckptd-ed25519-public-1 0011\n";
	struct fixture *fx = *state;
	struct sign_public keys[2];
	uint32_t count = 0;
	char path[512];

	path_in(fx, "trusted", path);
	fixture_write(fx->run_fd, "trusted", good, strlen(good));
	PASS(sign_trusted_read(path, keys, 2, &count, &fx->err));
	assert_int_equal(count, 2);
	count = 0;
	assert_int_equal(sign_trusted_read(path, keys, 1, &count, &fx->err), -E2BIG);
	fixture_write(fx->run_fd, "trusted", bad, strlen(bad));
	assert_int_equal(sign_trusted_read(path, keys, 2, &count, &fx->err), -EINVAL);
	assert_non_null(strstr(fx->err.text, "trusted:2:"));
}

/* -- who is believed -- */

static void trust(bool require, const struct sign_key *key)
{
	struct trust policy = {.require = require, .only_listed = key != NULL};

	if (key != NULL)
		policy.keys[policy.key_count++] = key->public;
	trust_set(&policy);
}

static int no_trust(void **state)
{
	trust(false, NULL);
	return fixture_teardown(state);
}

static void save_signed(struct fixture *fx, uint64_t step, const struct sign_key *key)
{
	struct checkpoint_source source;
	struct checkpoint_saved saved;

	fixture_state(fx, 1, step);
	source = fixture_source(fx);
	source.key = key;
	PASS(checkpoint_save(fx->fd, &source, &saved, &fx->err));
	PASS(recovery_catalog_saved(fx->dir, fx->run_fd, &saved, &source, &fx->config, &fx->outcome,
		fixture_report, fx, &fx->err));
}

/* 0 or the error of opening NAME. */
static int try_open(struct fixture *fx, struct checkpoint_info *info)
{
	int fd = checkpoint_open(fx->fd, NAME, info, &fx->err);

	if (fd < 0)
		return fd;
	close(fd);
	checkpoint_info_fini(info);
	return 0;
}

static void p11_each_policy_believes_whom_it_says(void **state)
{
	struct sign_key own = key_of(1), other = key_of(2);
	const struct {
		const struct sign_key *signer;
		bool require;
		const struct sign_key *trusted;
		int expected;
		const char *words;
	} cases[] = {
		{NULL, false, NULL, 0, ""},
		{NULL, false, &own, 0, ""},
		{NULL, true, &own, -EPROTONOSUPPORT, "it is not signed"},
		{&own, false, NULL, 0, ""},
		{&own, true, &own, 0, ""},
		{&other, false, &own, -EPROTONOSUPPORT, "an untrusted key signed it"},
		{&other, true, &own, -EPROTONOSUPPORT, "an untrusted key signed it"},
	};
	struct fixture *fx = *state;
	struct checkpoint_info info;

	fixture_prepare(fx);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		trust(false, NULL);
		save_signed(fx, 10, cases[i].signer);
		trust(cases[i].require, cases[i].trusted);
		assert_int_equal(try_open(fx, &info), cases[i].expected);
		if (cases[i].expected < 0)
			assert_non_null(strstr(fx->err.text, cases[i].words));
		else
			assert_int_equal(info.is_signed, cases[i].signer != NULL);
		PASS(unlinkat(fx->fd, NAME, 0));
	}
}

static void p11_a_signed_checkpoint_is_saved_catalogued_and_loaded(void **state)
{
	struct sign_key own = key_of(1);
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct catalog_row row;
	char hex[SIGN_PUBLIC_HEX_SIZE];

	fixture_prepare(fx);
	trust(true, &own);
	save_signed(fx, 10, &own);
	assert_true(fixture_row(fx, "step-000000010-b0001", &row));
	sign_public_hex(&own.public, hex);
	assert_string_equal(row.signer, hex);
	fixture_prepare(fx);
	PASS(fixture_try_load(fx, &info));
	assert_true(info.is_signed);
	assert_true(sign_public_equal(&info.signer, &own.public));
	assert_memory_equal(fx->loaded, fx->block, fx->block_bytes);
	checkpoint_info_fini(&info);
}

/* Recovery takes the one before, and says why. */
static void p11_a_foreign_newest_is_refused_by_a_start(void **state)
{
	struct sign_key own = key_of(1), other = key_of(2);
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct catalog_row row;

	fixture_prepare(fx);
	save_signed(fx, 10, &own);
	save_signed(fx, 20, &other);
	trust(true, &own);
	fixture_prepare(fx);
	assert_true(fixture_told(fx, "step-000000020-b0001 is refused"));
	assert_true(fixture_told(fx, "an untrusted key signed it"));
	assert_true(fixture_row(fx, "step-000000020-b0001", &row));
	assert_int_equal(row.state, CHECKPOINT_REFUSED);
	PASS(fixture_try_load(fx, &info));
	assert_int_equal(info.record.step, 10);
	checkpoint_info_fini(&info);
	/* The person trusts it: found again. */
	trust(false, NULL);
	fixture_prepare(fx);
	PASS(fixture_try_load(fx, &info));
	assert_int_equal(info.record.step, 20);
	checkpoint_info_fini(&info);
}

/* Every digit of signer and signature; the rest of the header is the root's affair. */
static void p11_a_forged_signature_is_never_believed(void **state)
{
	static const char *const marks[] = {"\"signature\":\"", "\"signer\":\""};
	static const size_t digits[] = {2 * SIGN_BYTES, 2 * SIGN_PUBLIC_BYTES};
	struct sign_key own = key_of(1);
	struct fixture *fx = *state;
	struct checkpoint_info info;
	char *data;
	size_t size;

	fixture_prepare(fx);
	save_signed(fx, 10, &own);
	assert_int_equal(file_read_all(fx->fd, NAME, 64 << 20, &data, &size), 0);
	for (int m = 0; m < 2; m++) {
		char *at = memmem(data, 1 << 16, marks[m], strlen(marks[m]));

		assert_non_null(at);
		at += strlen(marks[m]);
		for (size_t i = 0; i < digits[m]; i++) {
			char was = at[i], now = was == '0' ? '1' : '0';
			int fd = openat(fx->fd, NAME, O_WRONLY);

			assert_int_equal(pwrite(fd, &now, 1, at + i - data), 1);
			assert_int_equal(try_open(fx, &info), -EBADMSG);
			assert_int_equal(pwrite(fd, &was, 1, at + i - data), 1);
			close(fd);
		}
	}
	assert_int_equal(try_open(fx, &info), 0);
	free(data);
}

/* The signature of an older file does not stand for a newer one, nor its name. */
static void p11_an_older_signed_file_under_a_newer_name_is_found(void **state)
{
	struct sign_key own = key_of(1);
	struct fixture *fx = *state;
	struct checkpoint_info info;
	int fd;

	fixture_prepare(fx);
	trust(true, &own);
	save_signed(fx, 10, &own);
	PASS(renameat(fx->fd, NAME, fx->fd, "step-000000020-b0001.safetensors"));
	fd = checkpoint_open(fx->fd, "step-000000020-b0001.safetensors", &info, &fx->err);
	assert_int_equal(fd, -EBADMSG);
	assert_non_null(strstr(fx->err.text, "another file under this name"));
}

static void keys_that_cannot_be_read_make_nothing_trusted(void **state)
{
	struct sign_key own = key_of(1);
	struct fixture *fx = *state;
	struct checkpoint_info info;
	struct trust policy;

	fixture_prepare(fx);
	save_signed(fx, 10, &own);
	snprintf(fx->config.signing_key, sizeof(fx->config.signing_key), "/nonexistent/key");
	assert_int_equal(trust_read(&fx->config, &policy, &fx->err), -ENOENT);
	assert_non_null(strstr(fx->err.text, "/nonexistent/key"));
	trust_set(&policy);
	assert_int_equal(try_open(fx, &info), -EPROTONOSUPPORT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, no_trust)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(signs_as_rfc_8032),
		TEST(a_made_key_is_read_again_and_never_overwritten),
		TEST(a_key_that_others_may_read_is_refused),
		TEST(a_file_that_is_no_key_is_one_line),
		TEST(trusted_keys_have_comments_and_line_numbers),
		TEST(p11_each_policy_believes_whom_it_says),
		TEST(p11_a_signed_checkpoint_is_saved_catalogued_and_loaded),
		TEST(p11_a_foreign_newest_is_refused_by_a_start),
		TEST(p11_a_forged_signature_is_never_believed),
		TEST(p11_an_older_signed_file_under_a_newer_name_is_found),
		TEST(keys_that_cannot_be_read_make_nothing_trusted),
	};

	return cmocka_run_group_tests_name("sign", tests, NULL, NULL);
}
