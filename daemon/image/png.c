/* The door of libspng: PNG in every colour type and depth to 8-bit RGB, and RGB to PNG bytes.
 * Alpha (a channel or tRNS) is blended over white; 16 bit is rounded to 8. */
#include "daemon/image/decode.h"

#include <errno.h>
#include <spng.h>
#include <stdlib.h>
#include <string.h>

/* Text and colour profiles that a picture may carry; the pixels are bounded by the sides. */
#define CHUNK_CACHE_BYTES_MAX ((size_t)64 << 20)

bool png_is(const uint8_t *data, size_t size)
{
	static const uint8_t magic[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

	return size >= sizeof(magic) && memcmp(data, magic, sizeof(magic)) == 0;
}

static int png_error(int code, struct error *err)
{
	int r = code == SPNG_EMEM ? -ENOMEM : -EBADMSG;

	if (code == SPNG_EUSER_WIDTH || code == SPNG_EUSER_HEIGHT)
		r = -EFBIG;
	return error_set(err, r, "PNG: %s", spng_strerror(code));
}

/* A decoder on data whose header is read and whose sides are allowed. */
static int png_open(
	const uint8_t *data, size_t size, spng_ctx **ret, struct spng_ihdr *ihdr, struct error *err)
{
	spng_ctx *ctx = spng_ctx_new(0);

	*ret = NULL;
	if (!ctx)
		return error_set(err, -ENOMEM, "PNG: no memory");
	int code = spng_set_image_limits(ctx, IMAGE_SIDE_MAX, IMAGE_SIDE_MAX);
	if (!code)
		code = spng_set_chunk_limits(ctx, CHUNK_CACHE_BYTES_MAX, CHUNK_CACHE_BYTES_MAX);
	if (!code)
		code = spng_set_crc_action(ctx, SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
	if (!code)
		code = spng_set_png_buffer(ctx, data, size);
	if (!code)
		code = spng_get_ihdr(ctx, ihdr);
	int r = code ? png_error(code, err)
		     : image_check_size("PNG", ihdr->width, ihdr->height, err);
	if (r < 0) {
		spng_ctx_free(ctx);
		return r;
	}
	*ret = ctx;
	return 0;
}

int png_size(const uint8_t *data, size_t size, uint32_t *ret_width, uint32_t *ret_height,
	struct error *err)
{
	struct spng_ihdr ihdr;
	spng_ctx *ctx;
	int r = png_open(data, size, &ctx, &ihdr, err);

	if (r < 0)
		return r;
	spng_ctx_free(ctx);
	*ret_width = ihdr.width;
	*ret_height = ihdr.height;
	return 0;
}

static inline uint8_t over_white(uint32_t value, uint32_t alpha, uint32_t full)
{
	uint64_t sum = (uint64_t)value * alpha + (uint64_t)full * (full - alpha);
	uint64_t square = (uint64_t)full * full;

	return (uint8_t)((sum * 255 + square / 2) / square);
}

/* RGBA to RGB in the same memory: the write position never passes the read position. */
static void blend_bytes(uint8_t *pixels, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint8_t rgba[4];
		memcpy(rgba, pixels + i * sizeof(rgba), sizeof(rgba));
		for (unsigned c = 0; c < 3; c++)
			pixels[i * 3 + c] = over_white(rgba[c], rgba[3], UINT8_MAX);
	}
}

static void blend_words(uint8_t *pixels, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint16_t rgba[4];
		memcpy(rgba, pixels + i * sizeof(rgba), sizeof(rgba));
		for (unsigned c = 0; c < 3; c++)
			pixels[i * 3 + c] = over_white(rgba[c], rgba[3], UINT16_MAX);
	}
}

int png_decode(const uint8_t *data, size_t size, struct image *ret, unsigned *ret_orientation,
	struct error *err)
{
	struct spng_ihdr ihdr;
	struct spng_exif exif;
	spng_ctx *ctx;
	int r = png_open(data, size, &ctx, &ihdr, err);

	if (r < 0)
		return r;
	bool deep = ihdr.bit_depth == 16;
	size_t count = (size_t)ihdr.width * ihdr.height;
	size_t bytes = count * (deep ? 8 : 4);
	uint8_t *pixels = malloc(bytes);
	if (!pixels) {
		spng_ctx_free(ctx);
		return error_set(
			err, -ENOMEM, "PNG: no memory for %u x %u pixels", ihdr.width, ihdr.height);
	}
	int code = spng_decode_image(
		ctx, pixels, bytes, deep ? SPNG_FMT_RGBA16 : SPNG_FMT_RGBA8, SPNG_DECODE_TRNS);
	*ret_orientation = 1;
	if (!code) { /* reads on to the end: a file cut after its pixels is an error too */
		code = spng_get_exif(ctx, &exif);
		if (!code)
			*ret_orientation = exif_orientation((uint8_t *)exif.data, exif.length);
		else if (code == SPNG_ECHUNKAVAIL)
			code = 0;
	}
	spng_ctx_free(ctx);
	if (code) {
		free(pixels);
		return png_error(code, err);
	}
	if (deep)
		blend_words(pixels, count);
	else
		blend_bytes(pixels, count);
	uint8_t *rgb = realloc(pixels, count * 3);
	*ret = (struct image){
		.width = ihdr.width, .height = ihdr.height, .rgb = rgb ? rgb : pixels};
	return 0;
}

int image_encode_png(const uint8_t *rgb, uint32_t width, uint32_t height, void **ret_data,
	size_t *ret_size, struct error *err)
{
	struct spng_ihdr ihdr = {.width = width,
		.height = height,
		.bit_depth = 8,
		.color_type = SPNG_COLOR_TYPE_TRUECOLOR};
	int r = image_check_size("PNG", width, height, err);

	*ret_data = NULL;
	*ret_size = 0;
	if (r < 0)
		return r;
	spng_ctx *ctx = spng_ctx_new(SPNG_CTX_ENCODER);
	if (!ctx)
		return error_set(err, -ENOMEM, "PNG: no memory");
	int code = spng_set_option(ctx, SPNG_ENCODE_TO_BUFFER, 1);
	if (!code)
		code = spng_set_ihdr(ctx, &ihdr);
	if (!code)
		code = spng_encode_image(
			ctx, rgb, (size_t)width * height * 3, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
	if (!code)
		*ret_data = spng_get_png_buffer(ctx, ret_size, &code);
	spng_ctx_free(ctx);
	return code ? png_error(code, err) : 0;
}
