/* BLAKE2b-256 and ids: the door of libsodium's hash. */
#include "base/digest.h"

#include "base/panic.h"

#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <string.h>

_Static_assert(sizeof(crypto_generichash_state) <= sizeof(((struct digest_stream *)0)->state),
	"the opaque state holds libsodium's");
_Static_assert(DIGEST_SIZE == crypto_generichash_BYTES, "BLAKE2b-256");

static crypto_generichash_state *stream_state(struct digest_stream *stream)
{
	return (crypto_generichash_state *)(void *)stream->state;
}

static void init(void)
{
	CHECK(sodium_init() >= 0);
}

/* Without it libsodium computes the same with its slowest code. */
static void init_once(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	CHECK(pthread_once(&once, init) == 0);
}

struct digest digest_of(const void *data, size_t size)
{
	struct digest digest;

	init_once();
	CHECK(crypto_generichash(digest.bytes, sizeof(digest.bytes), data, size, NULL, 0) == 0);
	return digest;
}

void digest_begin(struct digest_stream *stream)
{
	init_once();
	CHECK(crypto_generichash_init(stream_state(stream), NULL, 0, DIGEST_SIZE) == 0);
}

void digest_add(struct digest_stream *stream, const void *data, size_t size)
{
	CHECK(crypto_generichash_update(stream_state(stream), data, size) == 0);
}

struct digest digest_end(struct digest_stream *stream)
{
	struct digest digest;

	CHECK(crypto_generichash_final(stream_state(stream), digest.bytes, DIGEST_SIZE) == 0);
	return digest;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
	return memcmp(a->bytes, b->bytes, DIGEST_SIZE) == 0;
}

bool digest_is_zero(const struct digest *digest)
{
	static const struct digest zero;

	return digest_equal(digest, &zero);
}

void bytes_to_hex(const uint8_t *bytes, size_t size, char *hex)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < size; i++) {
		hex[2 * i] = digits[bytes[i] >> 4];
		hex[2 * i + 1] = digits[bytes[i] & 15];
	}
	hex[2 * size] = 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

int bytes_from_hex(const char *hex, uint8_t *bytes, size_t size)
{
	if (strnlen(hex, 2 * size + 1) != 2 * size)
		return -EINVAL;
	for (size_t i = 0; i < size; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		bytes[i] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

void digest_to_hex(const struct digest *digest, char hex[DIGEST_HEX_SIZE])
{
	bytes_to_hex(digest->bytes, DIGEST_SIZE, hex);
}

int digest_from_hex(const char *hex, size_t length, struct digest *ret)
{
	char text[DIGEST_HEX_SIZE];

	if (length != 2 * DIGEST_SIZE)
		return -EINVAL;
	memcpy(text, hex, length);
	text[length] = 0;
	return bytes_from_hex(text, ret->bytes, DIGEST_SIZE);
}

void digest_random_id(uint8_t *bytes, size_t size)
{
	init_once();
	randombytes_buf(bytes, size);
}
