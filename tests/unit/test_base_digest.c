/* BLAKE2b-256 against published values, and hex that has one spelling only. */
#include "base/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

static void assert_hex(const struct digest *digest, const char *expected)
{
	char hex[DIGEST_HEX_SIZE];

	digest_to_hex(digest, hex);
	assert_string_equal(hex, expected);
}

static void test_known_values(void **unused)
{
	struct digest empty = digest_of("", 0), abc = digest_of("abc", 3);

	assert_hex(&empty, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
	assert_hex(&abc, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
}

static void test_parts_give_the_digest_of_the_whole(void **unused)
{
	uint8_t data[1000];
	struct digest whole;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 37);
	whole = digest_of(data, sizeof(data));
	for (size_t cut = 0; cut <= sizeof(data); cut += 125) {
		struct digest_stream stream;

		digest_begin(&stream);
		digest_add(&stream, data, cut);
		digest_add(&stream, data + cut, sizeof(data) - cut);
		struct digest parts = digest_end(&stream);
		assert_true(digest_equal(&parts, &whole));
	}
	data[999] ^= 1;
	struct digest other = digest_of(data, sizeof(data));
	assert_false(digest_equal(&other, &whole));
}

static void test_hex_has_one_spelling(void **unused)
{
	struct digest digest = digest_of("x", 1), read;
	char hex[DIGEST_HEX_SIZE + 1];

	digest_to_hex(&digest, hex);
	assert_int_equal(digest_from_hex(hex, 64, &read), 0);
	assert_true(digest_equal(&digest, &read));
	assert_int_equal(digest_from_hex(hex, 63, &read), -EINVAL);
	hex[64] = '0';
	hex[65] = 0;
	assert_int_equal(digest_from_hex(hex, 65, &read), -EINVAL);
	for (const char *bad = "AFg/:`@ "; *bad; bad++) {
		hex[10] = *bad;
		assert_int_equal(digest_from_hex(hex, 64, &read), -EINVAL);
	}
	hex[10] = 0;
	assert_int_equal(digest_from_hex(hex, 64, &read), -EINVAL);
}

static void test_bytes_and_hex(void **unused)
{
	uint8_t bytes[3] = {0x00, 0x7f, 0xff}, read[3];
	char hex[7];

	bytes_to_hex(bytes, 3, hex);
	assert_string_equal(hex, "007fff");
	assert_int_equal(bytes_from_hex(hex, read, 3), 0);
	assert_memory_equal(bytes, read, 3);
	assert_int_equal(bytes_from_hex("007ff", read, 3), -EINVAL);
	assert_int_equal(bytes_from_hex("007fff0", read, 3), -EINVAL);
}

static void test_ids_differ(void **unused)
{
	uint8_t a[16], b[16];

	digest_random_id(a, sizeof(a));
	digest_random_id(b, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
}

static void test_zero(void **unused)
{
	struct digest digest = {0};

	assert_true(digest_is_zero(&digest));
	digest.bytes[31] = 1;
	assert_false(digest_is_zero(&digest));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_values),
		cmocka_unit_test(test_parts_give_the_digest_of_the_whole),
		cmocka_unit_test(test_hex_has_one_spelling),
		cmocka_unit_test(test_bytes_and_hex),
		cmocka_unit_test(test_ids_differ),
		cmocka_unit_test(test_zero),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
