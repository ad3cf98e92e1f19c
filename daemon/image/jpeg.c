/* The door of libjpeg-turbo: baseline and progressive JPEG (grey, YCbCr, RGB, CMYK, YCCK) to 8-bit
 * RGB. The library reports errors by calling back; the jump out of it stays inside this file. Its
 * warnings about missing or broken data are errors here: it would fill the rest with grey. */
#include "base/panic.h"
#include "daemon/image/decode.h"

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define SCAN_COUNT_MAX 200 /* a progressive file may ask for full passes without end */

struct jpeg_session {
	struct jpeg_decompress_struct info;
	struct jpeg_error_mgr errors;
	struct jpeg_progress_mgr progress;
	jmp_buf escape;
	char text[JMSG_LENGTH_MAX];
	uint8_t *rgb;
};

bool jpeg_is(const uint8_t *data, size_t size)
{
	return size >= 3 && data[0] == 0xff && data[1] == 0xd8 && data[2] == 0xff;
}

static struct jpeg_session *session_of(j_common_ptr info)
{
	return info->client_data;
}

_Noreturn static void on_error(j_common_ptr info)
{
	info->err->format_message(info, session_of(info)->text);
	longjmp(session_of(info)->escape, 1);
}

/* level -1 is a warning. Those that leave pixels as they were drawn are let pass. */
static void on_message(j_common_ptr info, int level)
{
	if (level >= 0)
		return;
	switch (info->err->msg_code) {
	case JWRN_EXTRANEOUS_DATA:
	case JWRN_ADOBE_XFORM:
	case JWRN_BOGUS_ICC:
	case JWRN_JFIF_MAJOR:
		return;
	default:
		on_error(info);
	}
}

static void on_progress(j_common_ptr info)
{
	struct jpeg_session *session = session_of(info);

	if (session->info.input_scan_number > SCAN_COUNT_MAX) {
		snprintf(
			session->text, sizeof(session->text), "more than %d scans", SCAN_COUNT_MAX);
		longjmp(session->escape, 1);
	}
}

static void session_init(struct jpeg_session *session)
{
	memset(session, 0, sizeof(*session));
	session->info.err = jpeg_std_error(&session->errors);
	session->errors.error_exit = on_error;
	session->errors.emit_message = on_message;
	session->progress.progress_monitor = on_progress;
	session->info.client_data = session;
}

/* Only after a jump: what was being done is over, nothing of the library's state is used. */
static int session_failed(struct jpeg_session *session, struct error *err)
{
	int code = session->errors.msg_code == JERR_OUT_OF_MEMORY ? -ENOMEM : -EBADMSG;

	return error_set(err, code, "JPEG: %s", session->text);
}

static int read_header(
	struct jpeg_session *session, const uint8_t *data, size_t size, struct error *err)
{
	jpeg_create_decompress(&session->info);
	session->info.progress = &session->progress;
	jpeg_mem_src(&session->info, data, size);
	jpeg_save_markers(&session->info, JPEG_APP0 + 1, 0xffff);
	jpeg_read_header(&session->info, TRUE);
	return image_check_size("JPEG", session->info.image_width, session->info.image_height, err);
}

int jpeg_size(const uint8_t *data, size_t size, uint32_t *ret_width, uint32_t *ret_height,
	struct error *err)
{
	struct jpeg_session session;
	int r;

	session_init(&session);
	if (setjmp(session.escape)) {
		r = session_failed(&session, err);
	} else {
		r = read_header(&session, data, size, err);
		*ret_width = session.info.image_width;
		*ret_height = session.info.image_height;
	}
	jpeg_destroy_decompress(&session.info);
	return r;
}

/* CMYK in JPEG is inverted, 255 is no ink: Adobe's way, which every reader in use takes for
 * granted, marker or not. */
static void cmyk_to_rgb(const uint8_t *cmyk, uint32_t count, uint8_t *rgb)
{
	for (uint32_t i = 0; i < count; i++)
		for (unsigned c = 0; c < 3; c++)
			rgb[3 * i + c] = (uint8_t)((cmyk[4 * i + c] * cmyk[4 * i + 3] + 127) / 255);
}

static void read_rows(struct jpeg_session *session)
{
	struct jpeg_decompress_struct *info = &session->info;
	bool cmyk = info->out_color_space == JCS_CMYK;
	uint8_t *inks = NULL;

	if (cmyk) /* freed with the session */
		inks = info->mem->alloc_large(
			(j_common_ptr)info, JPOOL_IMAGE, (size_t)info->output_width * 4);
	while (info->output_scanline < info->output_height) {
		uint8_t *rgb = session->rgb +
			(size_t)info->output_scanline * info->output_width * 3;
		JSAMPROW row = cmyk ? inks : rgb;
		if (jpeg_read_scanlines(info, &row, 1) != 1)
			PANIC("libjpeg read no row from memory");
		if (cmyk)
			cmyk_to_rgb(inks, info->output_width, rgb);
	}
	jpeg_finish_decompress(info);
}

static unsigned marker_orientation(const struct jpeg_decompress_struct *info)
{
	static const char magic[6] = "Exif\0";

	for (const struct jpeg_marker_struct *m = info->marker_list; m; m = m->next)
		if (m->marker == JPEG_APP0 + 1 && m->data_length > sizeof(magic) &&
			memcmp(m->data, magic, sizeof(magic)) == 0)
			return exif_orientation(
				m->data + sizeof(magic), m->data_length - sizeof(magic));
	return 1;
}

static int decode_rows(struct jpeg_session *session, const uint8_t *data, size_t size,
	unsigned *ret_orientation, struct error *err)
{
	struct jpeg_decompress_struct *info = &session->info;
	int r = read_header(session, data, size, err);

	if (r < 0)
		return r;
	*ret_orientation = marker_orientation(info);
	bool cmyk = info->jpeg_color_space == JCS_CMYK || info->jpeg_color_space == JCS_YCCK;
	info->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
	info->dct_method = JDCT_ISLOW;
	session->rgb = malloc((size_t)info->image_width * info->image_height * 3);
	if (!session->rgb)
		return error_set(err, -ENOMEM, "JPEG: no memory for %u x %u pixels",
			info->image_width, info->image_height);
	jpeg_start_decompress(info);
	read_rows(session);
	return 0;
}

int jpeg_decode(const uint8_t *data, size_t size, struct image *ret, unsigned *ret_orientation,
	struct error *err)
{
	struct jpeg_session session;
	int r;

	session_init(&session);
	if (setjmp(session.escape))
		r = session_failed(&session, err);
	else
		r = decode_rows(&session, data, size, ret_orientation, err);
	if (r < 0)
		free(session.rgb);
	else
		*ret = (struct image){.width = session.info.output_width,
			.height = session.info.output_height,
			.rgb = session.rgb};
	jpeg_destroy_decompress(&session.info);
	return r;
}
