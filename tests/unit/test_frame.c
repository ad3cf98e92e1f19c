/* P9, P10: whatever bytes arrive, in whatever pieces, become whole objects or one clear refusal. */
#include "proto/frame.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static void feed(struct frame_reader *reader, const char *bytes, size_t size)
{
	while (size > 0) {
		char *room;
		size_t room_size;

		assert_int_equal(frame_reader_space(reader, &room, &room_size), 0);
		assert_true(room_size >= 4096);
		size_t n = size < room_size ? size : room_size;
		memcpy(room, bytes, n);
		frame_reader_filled(reader, n);
		bytes += n;
		size -= n;
	}
}

/* The answer to one whole frame that comes at once. */
static int parse(const char *text, size_t limit, json_t **ret, struct error *err)
{
	struct frame_reader reader;

	frame_reader_init(&reader, limit);
	feed(&reader, text, strlen(text) + 1);
	int r = frame_next(&reader, ret, err);
	frame_reader_fini(&reader);
	return r;
}

static void assert_bad(const char *text, int code)
{
	struct error err = {0};
	json_t *object;
	int r = parse(text, FRAME_CLIENT_MAX, &object, &err);

	if (r != code)
		fail_msg("%.60s: %d instead of %d", text, r, code);
	assert_null(object);
	assert_true(err.text[0] != '\0');
}

static void test_frames_split_at_every_byte(void **unused)
{
	static const char stream[] = "{\"method\":\"a\",\"n\":1}\0{}\0{\"u\":\"\xc3\xa4}{\\\"\"}";

	for (size_t first = 0; first <= sizeof(stream); first++)
		for (size_t second = first; second <= sizeof(stream); second++) {
			struct frame_reader reader;
			const size_t cut[] = {0, first, second, sizeof(stream)};
			int count = 0;

			frame_reader_init(&reader, FRAME_CLIENT_MAX);
			for (int i = 0; i < 3; i++) {
				json_t *object;
				struct error err;

				feed(&reader, stream + cut[i], cut[i + 1] - cut[i]);
				while (frame_next(&reader, &object, &err) == 1) {
					assert_int_equal(json_object_size(object),
						count == 0           ? 2
							: count == 1 ? 0
								     : 1);
					json_decref(object);
					count++;
				}
			}
			assert_int_equal(count, 3);
			frame_reader_fini(&reader);
		}
}

static void test_p10_a_frame_over_the_limit_is_refused(void **unused)
{
	struct frame_reader reader;
	struct error err;
	json_t *object;
	char *room;
	size_t size;
	char text[200];

	memset(text, ' ', sizeof(text));
	text[0] = '{';
	text[98] = '}';
	text[99] = '\0'; /* 99 bytes */
	assert_int_equal(parse(text, 99, &object, &err), 1);
	json_decref(object);
	assert_int_equal(parse(text, 98, &object, &err), -EMSGSIZE);

	/* Without an end: refused when the limit is passed, however long it would go on. */
	frame_reader_init(&reader, 10000);
	int r = 0;
	size_t sent = 0;
	while (r == 0 && sent < 1000000) {
		r = frame_reader_space(&reader, &room, &size);
		if (r < 0)
			break;
		memset(room, '[', size);
		frame_reader_filled(&reader, size);
		sent += size;
		r = frame_next(&reader, &object, &err);
	}
	assert_int_equal(r, -EMSGSIZE);
	assert_true(sent < 40000);
	/* It stays refused. */
	assert_int_equal(frame_next(&reader, &object, &err), -EMSGSIZE);
	assert_int_equal(frame_reader_space(&reader, &room, &size), -EMSGSIZE);
	frame_reader_fini(&reader);
}

static void test_p10_frames_that_nobody_takes_are_bounded(void **unused)
{
	struct frame_reader reader;
	char *room;
	size_t size, sent = 0;

	frame_reader_init(&reader, 10000);
	while (frame_reader_space(&reader, &room, &size) == 0 && sent < 1000000) {
		memcpy(room, "{}", 3);
		frame_reader_filled(&reader, 3);
		sent += 3;
	}
	assert_in_range(sent, 10000, 40000);
	frame_reader_fini(&reader);
}

static void nested(char *text, size_t depth)
{
	char *at = text;

	at += sprintf(at, "{\"a\":");
	for (size_t i = 1; i < depth; i++)
		*at++ = '[';
	for (size_t i = 1; i < depth; i++)
		*at++ = ']';
	strcpy(at, "}");
}

static void test_p10_nesting_is_bounded(void **unused)
{
	static char text[200000];
	struct error err;
	json_t *object;

	nested(text, 32);
	assert_int_equal(parse(text, FRAME_CLIENT_MAX, &object, &err), 1);
	json_decref(object);
	nested(text, 33);
	assert_bad(text, -EBADMSG);
	nested(text, 30000);
	assert_bad(text, -EBADMSG);
	/* Brackets in strings are no nesting, however they are escaped. */
	strcpy(text, "{\"a\":\"\\\\\\\"");
	memset(text + strlen(text), '[', 5000);
	strcat(text, "\"}");
	assert_int_equal(parse(text, FRAME_CLIENT_MAX, &object, &err), 1);
	json_decref(object);
}

static void test_p9_what_is_no_object_is_refused(void **unused)
{
	assert_bad("", -EBADMSG);
	assert_bad("[]", -EBADMSG);
	assert_bad("1", -EBADMSG);
	assert_bad("null", -EBADMSG);
	assert_bad("\"x\"", -EBADMSG);
	assert_bad("{", -EBADMSG);
	assert_bad("{}}", -EBADMSG);
	assert_bad("{} {}", -EBADMSG);
	assert_bad("{\"a\":1,\"a\":2}", -EBADMSG);
	assert_bad("{\"a\":{\"b\":1,\"b\":1}}", -EBADMSG);
	assert_bad("{\"a\":NaN}", -EBADMSG);
	assert_bad("{\"a\":Infinity}", -EBADMSG);
	assert_bad("{\"a\":1e999}", -EBADMSG);
	assert_bad("{\"a\":99999999999999999999}", -EBADMSG);
	assert_bad("{\"a\":\"\xff\xfe\"}", -EBADMSG);
	assert_bad("{\"a\":\"\\u0000\"}", -EBADMSG);
	assert_bad("GET / HTTP/1.1\r\n\r\n", -EBADMSG);
	assert_bad("{\"a\":\"unended}", -EBADMSG);
	assert_bad("{\"a\":\"\\", -EBADMSG);
}

static void test_garbage_between_frames_is_found(void **unused)
{
	static const char stream[] = "{\"n\":1}\0{\"n\":2}x\0{\"n\":3}";
	struct frame_reader reader;
	struct error err;
	json_t *object;

	frame_reader_init(&reader, FRAME_CLIENT_MAX);
	feed(&reader, stream, sizeof(stream));
	assert_int_equal(frame_next(&reader, &object, &err), 1);
	assert_int_equal(json_integer_value(json_object_get(object, "n")), 1);
	json_decref(object);
	assert_int_equal(frame_next(&reader, &object, &err), -EBADMSG);
	frame_reader_fini(&reader);
}

/* Any byte of a good frame changed to any value: an object or a refusal, never a crash. */
static void test_p10_every_single_byte_change(void **unused)
{
	static const char good[] =
		"{\"m\":\"io.x\",\"p\":{\"a\":[1,-2.5e3,true,null,\"\\u00e4\"]}}";
	char text[sizeof(good)];
	int accepted = 0, refused = 0;

	for (size_t at = 0; at < sizeof(good) - 1; at++)
		for (int byte = 1; byte < 256; byte++) {
			struct error err;
			json_t *object;

			memcpy(text, good, sizeof(good));
			text[at] = (char)byte;
			int r = parse(text, FRAME_CLIENT_MAX, &object, &err);
			assert_true(r == 1 || r == -EBADMSG);
			if (r == 1)
				json_decref(object);
			*(r == 1 ? &accepted : &refused) += 1;
		}
	assert_true(accepted > 0 && refused > accepted / 4);
}

static void test_many_small_frames_cost_little(void **unused)
{
	struct frame_reader reader;
	struct error err;
	json_t *object;
	size_t size = FRAME_LINK_MAX / 3 * 3, count = 0;
	char *bytes = malloc(size);

	assert_non_null(bytes);
	for (size_t i = 0; i < size; i += 3)
		memcpy(bytes + i, "{}", 3);
	frame_reader_init(&reader, FRAME_LINK_MAX);
	feed(&reader, bytes, size);
	while (frame_next(&reader, &object, &err) == 1) {
		json_decref(object);
		count++;
	}
	assert_int_equal(count, size / 3);
	frame_reader_fini(&reader);
	free(bytes);
}

/* -- sockets -- */

static void test_send_and_receive(void **unused)
{
	struct frame_reader reader;
	struct error err;
	json_t *object;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	frame_reader_init(&reader, FRAME_LINK_MAX);
	AUTO_JSON sent = json_pack("{s:i,s:s}", "step", 12, "text", "\xc3\xa4");
	assert_int_equal(frame_send(fds[0], sent, 0), 0);
	assert_int_equal(frame_receive(fds[1], &reader, 0, &object, &err), 0);
	assert_true(json_equal(object, sent));
	json_decref(object);
	/* Nothing comes: the deadline holds. */
	nsec_t begun = clock_monotonic_ns();
	assert_int_equal(frame_receive(fds[1], &reader, begun + 20 * NSEC_PER_MSEC, &object, &err),
		-ETIMEDOUT);
	assert_true(clock_monotonic_ns() - begun >= 20 * NSEC_PER_MSEC);
	/* The other side went away, in the middle of a frame. */
	assert_int_equal(send(fds[0], "{\"half", 6, 0), 6);
	close(fds[0]);
	assert_int_equal(frame_receive(fds[1], &reader, 0, &object, &err), -ECONNRESET);
	assert_int_equal(frame_send(fds[1], sent, 0), -ECONNRESET);
	assert_int_equal(frame_send(fds[1], NULL, 0), -EINVAL);
	close(fds[1]);
	frame_reader_fini(&reader);
}

static void *receive_thread(void *context)
{
	struct frame_reader reader;
	struct error err;
	json_t *object = NULL;

	frame_reader_init(&reader, FRAME_LINK_MAX);
	frame_receive(*(int *)context, &reader, 0, &object, &err);
	frame_reader_fini(&reader);
	return object;
}

static void test_a_large_frame_through_a_small_buffer(void **unused)
{
	static char text[900000];
	int fds[2], small = 4096;
	pthread_t receiver;
	void *object;

	memset(text, 'x', sizeof(text) - 1);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	AUTO_JSON sent = json_pack("{s:s}", "text", text);
	/* Nobody reads: the deadline holds for sending too. */
	assert_int_equal(
		frame_send(fds[0], sent, clock_monotonic_ns() + 10 * NSEC_PER_MSEC), -ETIMEDOUT);
	close(fds[0]);
	close(fds[1]);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	assert_int_equal(pthread_create(&receiver, NULL, receive_thread, &fds[1]), 0);
	assert_int_equal(frame_send(fds[0], sent, 0), 0);
	pthread_join(receiver, &object);
	assert_true(json_equal(object, sent));
	json_decref(object);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frames_split_at_every_byte),
		cmocka_unit_test(test_p10_a_frame_over_the_limit_is_refused),
		cmocka_unit_test(test_p10_frames_that_nobody_takes_are_bounded),
		cmocka_unit_test(test_p10_nesting_is_bounded),
		cmocka_unit_test(test_p9_what_is_no_object_is_refused),
		cmocka_unit_test(test_garbage_between_frames_is_found),
		cmocka_unit_test(test_p10_every_single_byte_change),
		cmocka_unit_test(test_many_small_frames_cost_little),
		cmocka_unit_test(test_send_and_receive),
		cmocka_unit_test(test_a_large_frame_through_a_small_buffer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
