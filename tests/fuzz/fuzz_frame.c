/* Frames from a client or a worker, in pieces: the first byte says how large. */
#include "proto/frame.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#define LIMIT 4096

static void check_again(const json_t *object)
{
	char *data, *text;
	size_t size;

	CHECK(frame_encode(object, &data, &size) == 0);
	CHECK(size > 0 && data[size - 1] == '\0' && strlen(data) == size - 1);
	text = json_dumps(object, JSON_COMPACT);
	CHECK(text != NULL);
	free(text);
	free(data);
}

/* False when the stream is of no more use. */
static bool take_frames(struct frame_reader *reader)
{
	struct error err;
	json_t *object;
	int rc;

	while ((rc = frame_next(reader, &object, &err)) > 0) {
		CHECK(json_is_object(object));
		check_again(object);
		json_decref(object);
	}
	return rc == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct frame_reader reader;
	size_t piece = size > 0 ? (size_t)data[0] + 1 : 1, at = 1;

	frame_reader_init(&reader, LIMIT);
	while (at < size) {
		size_t room, count = size - at < piece ? size - at : piece;
		char *space;

		if (frame_reader_space(&reader, &space, &room) < 0)
			break;
		CHECK(reader.capacity <= 4 * LIMIT + 8192);
		count = count < room ? count : room;
		memcpy(space, data + at, count);
		frame_reader_filled(&reader, count);
		at += count;
		if (!take_frames(&reader))
			break;
	}
	frame_reader_fini(&reader);
	return 0;
}
