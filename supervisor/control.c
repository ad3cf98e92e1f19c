/* The server of control.h. It must never block, and never let one client's bytes cost another's
 * time. Invariants: at most one call is open on a client; a client is freed only after its handles
 * are closed and its writes are over. */
#include "supervisor/control.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/panic.h"
#include "proto/frame.h"
#include "proto/interface.h"
#include "supervisor/places.h"
#include "supervisor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* As many as are taken in about a millisecond: who connects waits behind them, and those whom a
 * longer queue would hold wait in connect() instead. */
#define BACKLOG 64
#define TIMER_MS 100
#define CLOSE_WAIT_MS 1000
#define CALLS_PER_TURN 4 /* pipelined calls of one client before others get a turn */
#define ACCEPTS_PER_TURN 16
#define CALL_NS (NSEC_PER_SEC / CONTROL_CALLS_PER_SECOND)

struct client {
	uv_pipe_t pipe; /* first: the handle's pointer is the client's */
	struct control *control;
	struct client *next;
	struct frame_reader reader;
	struct call *call; /* open, or NULL */
	uid_t uid;
	pid_t pid;
	nsec_t active_ns;
	nsec_t paid_until_ns;  /* each call moves it by CALL_NS; at most a burst ahead of the clock
				*/
	nsec_t write_since_ns; /* the oldest write under way */
	uint32_t writes;
	bool closing;
	bool has_asked; /* a call, once */
	bool streaming;
	uint64_t interval_ms, revision;
	nsec_t streamed_ns;
};

struct control {
	uv_pipe_t listener;
	uv_timer_t timer;
	uv_prepare_t turn;
	struct control_options options;
	struct client *clients;
	uint32_t client_count; /* with those that are closing */
	uint32_t open_count;
	uint32_t accepted;   /* in this turn of the loop */
	bool accept_waits;   /* somebody for the next turn */
	char path[PATH_MAX]; /* to unlink; "" when the socket was passed */
	bool closing;
	nsec_t closing_since_ns;
};

struct reply_write {
	uv_write_t write;
	struct client *client;
	char *data;
};

/* -- clients -- */

static void on_client_closed(uv_handle_t *handle)
{
	struct client *client = (struct client *)handle;

	CHECK(client->closing && client->writes == 0);
	for (struct client **at = &client->control->clients; *at; at = &(*at)->next) {
		if (*at == client) {
			*at = client->next;
			break;
		}
	}
	CHECK(client->control->client_count > 0);
	client->control->client_count--;
	frame_reader_fini(&client->reader);
	free(client);
}

static void client_close(struct client *client)
{
	if (client->closing)
		return;
	client->closing = true;
	CHECK(client->control->open_count > 0);
	client->control->open_count--;
	if (client->call) {
		struct call *call = client->call;

		call->client = NULL;
		client->call = NULL;
		if (client->streaming)
			call_reply(call, NULL);
	}
	uv_close((uv_handle_t *)&client->pipe, on_client_closed);
}

static void on_written(uv_write_t *write, int status)
{
	struct reply_write *reply = (struct reply_write *)write;
	struct client *client = reply->client;

	CHECK(client->writes > 0);
	client->writes--;
	client->active_ns = client->write_since_ns = clock_monotonic_ns();
	free(reply->data);
	free(reply);
	if (status < 0 && !client->closing)
		client_close(client);
}

/* Takes data. */
static void client_send_bytes(struct client *client, char *data, size_t size)
{
	struct reply_write *reply = calloc(1, sizeof(*reply));

	CHECK(reply);
	CHECK(!client->closing);
	reply->client = client;
	reply->data = data;
	uv_buf_t buffer = uv_buf_init(reply->data, (unsigned)size);

	if (client->writes == 0)
		client->write_since_ns = clock_monotonic_ns();
	int code = uv_write(&reply->write, (uv_stream_t *)&client->pipe, &buffer, 1, on_written);

	if (code < 0) {
		free(reply->data);
		free(reply);
		client_close(client);
		return;
	}
	client->writes++;
	/* One answer may be larger than the limit; a pile of them is a reader that sleeps. */
	if (client->writes > 1 &&
		uv_stream_get_write_queue_size((uv_stream_t *)&client->pipe) > CONTROL_QUEUE_MAX) {
		log_warning("control: a client of uid %u does not read: dropped",
			(unsigned)client->uid);
		client_close(client);
	}
}

static void client_send(struct client *client, json_t *frame)
{
	char *data = NULL;
	size_t size = 0;

	CHECK(frame_encode(frame, &data, &size) == 0);
	client_send_bytes(client, data, size);
}

/* -- calls -- */

static void client_next(struct client *client);

static void call_free(struct call *call)
{
	json_decref(call->frame);
	json_decref(call->answer);
	json_decref(call->parameters_empty);
	free(call);
}

void call_reply_frame(struct call *call, char *data, size_t size)
{
	struct client *client = call->client;
	bool silent = call->oneway;

	CHECK(data && size > 0);
	if (client) {
		CHECK(client->call == call);
		client->call = NULL;
		client->streaming = false;
	}
	if (client && !silent)
		client_send_bytes(client, data, size);
	else
		free(data);
	call_free(call);
}

/* The last frame of a call: takes the reference. */
static void call_finish(struct call *call, json_t *frame)
{
	char *data = NULL;
	size_t size = 0;

	CHECK(frame);
	CHECK(frame_encode(frame, &data, &size) == 0);
	json_decref(frame);
	call_reply_frame(call, data, size);
}

void call_reply(struct call *call, json_t *parameters)
{
	json_t *frame = json_pack("{s:o}", "parameters", parameters ? parameters : json_object());

	call_finish(call, frame);
}

void call_error(struct call *call, const char *error, const char *fmt, ...)
{
	char text[ERROR_TEXT_MAX], name[96];
	va_list arguments;

	va_start(arguments, fmt);
	vsnprintf(text, sizeof(text), fmt, arguments);
	va_end(arguments);
	text_flatten(text);
	snprintf(name, sizeof(name), "%s.%s", PROTO_INTERFACE, error);
	json_t *frame = json_pack(
		"{s:s, s:{s:o}}", "error", name, "parameters", "text", text_json(text));

	call_finish(call, frame);
}

void call_service_error(struct call *call, const char *error, const char *name, const char *value)
{
	char full[96];

	snprintf(full, sizeof(full), "org.varlink.service.%s", error);
	json_t *parameters = name ? json_pack("{s:o}", name, text_json(value)) : json_object();

	call_finish(call, json_pack("{s:s, s:o}", "error", full, "parameters", parameters));
}

void call_stream(struct call *call, uint64_t interval_ms)
{
	struct client *client = call->client;

	if (!client) {
		call_reply(call, NULL);
		return;
	}
	CHECK(client->call == call && !client->streaming && !call->oneway);
	client->streaming = true;
	client->interval_ms = interval_ms;
	client->revision = 0;
	client->streamed_ns = 0;
}

/* Varlink's own interface; false when the call is not for it. */
static bool answer_service(struct call *call, const char *method)
{
	const char *name = strrchr(method, '.');

	if (strncmp(method, "org.varlink.service.", 20) != 0)
		return false;
	if (strcmp(name, ".GetInfo") == 0) {
		call_reply(call,
			json_pack("{s:s, s:s, s:s, s:s, s:[s, s]}", "vendor", PROTO_VENDOR,
				"product", PROTO_PRODUCT, "version", proto_version, "url",
				PROTO_URL, "interfaces", "org.varlink.service", PROTO_INTERFACE));
	} else if (strcmp(name, ".GetInterfaceDescription") == 0) {
		const char *interface = json_get_text(call->parameters, "interface", "");

		if (strcmp(interface, PROTO_INTERFACE) == 0)
			call_reply(call,
				json_pack("{s:s}", "description", proto_interface_description));
		else if (strcmp(interface, "org.varlink.service") == 0)
			call_reply(
				call, json_pack("{s:s}", "description", proto_service_description));
		else
			call_service_error(call, "InterfaceNotFound", "interface", interface);
	} else {
		call_service_error(call, "MethodNotFound", "method", method);
	}
	return true;
}

static void route(struct control *control, struct call *call, const char *method)
{
	static const char prefix[] = PROTO_INTERFACE ".";

	if (answer_service(call, method))
		return;
	if (strncmp(method, prefix, sizeof(prefix) - 1) != 0) {
		const char *dot = strrchr(method, '.');
		char interface[96];

		snprintf(interface, sizeof(interface), "%.*s", (int)(dot ? dot - method : 0),
			method);
		call_service_error(call, "InterfaceNotFound", "interface", interface);
		return;
	}
	call->method = method + sizeof(prefix) - 1;
	control->options.handler(control->options.owner, call);
}

static bool may_change(uid_t uid)
{
	return uid == 0 || uid == geteuid();
}

/* One frame; takes the reference. False: what came is no call, the client is dropped. */
static bool client_call(struct client *client, json_t *frame)
{
	const char *method = json_get_text(frame, "method", NULL);
	json_t *parameters = json_object_get(frame, "parameters");
	struct call *call;

	if (!method || strlen(method) > 80 || json_get_bool(frame, "upgrade", false) ||
		(parameters && !json_is_object(parameters) && !json_is_null(parameters))) {
		json_decref(frame);
		return false;
	}
	call = calloc(1, sizeof(*call));
	CHECK(call);
	call->frame = frame;
	call->client = client;
	call->uid = client->uid;
	call->pid = client->pid;
	call->may_change = may_change(client->uid);
	call->more = json_get_bool(frame, "more", false);
	call->oneway = json_get_bool(frame, "oneway", false);
	call->parameters_empty = json_object();
	call->parameters = json_is_object(parameters) ? parameters : call->parameters_empty;
	CHECK(!client->call);
	client->call = call;
	client->has_asked = true;
	route(client->control, call, method);
	return true;
}

/* False: it has had its calls for now. */
static bool may_call(const struct client *client, nsec_t now_ns)
{
	return client->paid_until_ns <= now_ns + (CONTROL_BURST - 1) * CALL_NS;
}

static void pay_call(struct client *client, nsec_t now_ns)
{
	if (client->paid_until_ns < now_ns)
		client->paid_until_ns = now_ns;
	client->paid_until_ns += CALL_NS;
}

/* Calls come one at a time; the rest waits in the reader. */
static void client_next(struct client *client)
{
	nsec_t now_ns = clock_monotonic_ns();
	struct error error;
	json_t *frame;
	int code = 0;

	if (client->control->closing)
		return;
	for (int i = 0; i < CALLS_PER_TURN && !client->call && !client->closing; i++) {
		if (!may_call(client, now_ns))
			break;
		code = frame_next(&client->reader, &frame, &error);
		if (code <= 0)
			break;
		pay_call(client, now_ns);
		client->active_ns = now_ns;
		if (!client_call(client, frame))
			code = -EBADMSG;
		if (code < 0)
			break;
	}
	if (code < 0 && !client->closing) {
		log_debug(
			"control: a client of uid %u sent no call: dropped", (unsigned)client->uid);
		client_close(client);
	}
}

static void client_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
	struct client *client = (struct client *)handle;
	char *data = NULL;
	size_t size = 0;

	if (frame_reader_space(&client->reader, &data, &size) < 0)
		size = 0;
	*buffer = uv_buf_init(data, (unsigned)size);
}

static void on_client_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
	struct client *client = (struct client *)stream;

	if (client->closing)
		return;
	if (size < 0) {
		client_close(client);
		return;
	}
	frame_reader_filled(&client->reader, (size_t)size);
	client_next(client);
}

/* -- places -- */

static struct place place_of(const struct client *client)
{
	return (struct place){.uid = client->uid,
		.may_change = may_change(client->uid),
		.idle = !client->call && client->writes == 0,
		.has_asked = client->has_asked,
		.active_ns = client->active_ns};
}

/* NULL: nobody has to go for the newcomer. */
static struct client *choose_victim(struct control *control, const struct client *newcomer)
{
	struct place places[CONTROL_CLIENTS_MAX], own = place_of(newcomer);
	struct client *clients[CONTROL_CLIENTS_MAX];
	uint32_t count = 0;

	for (struct client *client = control->clients; client; client = client->next) {
		if (client == newcomer || client->closing)
			continue;
		CHECK(count < CONTROL_CLIENTS_MAX);
		clients[count] = client;
		places[count++] = place_of(client);
	}
	int chosen = places_choose(places, count, &own);

	return chosen < 0 ? NULL : clients[chosen];
}

static bool know_peer(struct client *client)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	uv_os_fd_t fd;

	if (uv_fileno((uv_handle_t *)&client->pipe, &fd) < 0 ||
		getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return false;
	client->uid = peer.uid;
	client->pid = peer.pid;
	return true;
}

static void accept_one(struct control *control)
{
	uv_stream_t *listener = (uv_stream_t *)&control->listener;
	struct client *client = calloc(1, sizeof(*client));

	CHECK(client);
	client->control = control;
	CHECK(uv_pipe_init(listener->loop, &client->pipe, 0) == 0);
	frame_reader_init(&client->reader, FRAME_CLIENT_MAX);
	client->next = control->clients;
	control->clients = client;
	control->client_count++;
	control->open_count++;
	control->accepted++;
	client->active_ns = clock_monotonic_ns();
	/* Who comes again and again has not each time as many calls as one who stays. */
	client->paid_until_ns = client->active_ns + (CONTROL_BURST - CONTROL_BURST_NEW) * CALL_NS;
	if (uv_accept(listener, (uv_stream_t *)&client->pipe) < 0 || control->closing ||
		!know_peer(client)) {
		client_close(client);
		return;
	}
	if (control->open_count > CONTROL_CLIENTS_MAX) {
		struct client *victim = choose_victim(control, client);

		client_close(victim ? victim : client);
		if (!victim)
			return;
	}
	uv_read_start((uv_stream_t *)&client->pipe, client_alloc, on_client_read);
}

/* A crowd comes in turns, so that those who are in are heard before they lose their place. */
static void on_connection(uv_stream_t *listener, int status)
{
	struct control *control = listener->data;

	if (status < 0)
		return;
	if (control->accepted >= ACCEPTS_PER_TURN)
		control->accept_waits = true; /* libuv takes no other until this one is accepted */
	else
		accept_one(control);
}

static void on_turn(uv_prepare_t *turn)
{
	struct control *control = turn->data;

	control->accepted = 0;
	if (control->accept_waits && !control->closing) {
		control->accept_waits = false;
		accept_one(control);
	}
}

/* -- time -- */

static void client_stream(struct client *client, nsec_t now_ns)
{
	struct control *control = client->control;

	bool first = client->streamed_ns == 0;

	if ((!first &&
		    now_ns - client->streamed_ns < (nsec_t)client->interval_ms * NSEC_PER_MSEC) ||
		uv_stream_get_write_queue_size((uv_stream_t *)&client->pipe) > CONTROL_QUEUE_SKIP)
		return;
	json_t *parameters = control->options.stream(control->options.owner, &client->revision);

	if (!parameters)
		return;
	client->streamed_ns = now_ns;
	json_t *frame = json_pack("{s:o, s:b}", "parameters", parameters, "continues", 1);

	CHECK(frame);
	client_send(client, frame);
	json_decref(frame);
}

static void client_tick(struct client *client, nsec_t now_ns)
{
	if (client->closing)
		return;
	if (client->writes > 0 &&
		now_ns - client->write_since_ns > CONTROL_REPLY_WAIT_MS * NSEC_PER_MSEC) {
		client_close(client);
		return;
	}
	if (client->streaming)
		client_stream(client, now_ns);
	else if (!client->call)
		client_next(client);
	if (!client->closing && !client->call && client->writes == 0 &&
		now_ns - client->active_ns > CONTROL_IDLE_MS * NSEC_PER_MSEC)
		client_close(client);
}

static void on_timer(uv_timer_t *timer)
{
	struct control *control = timer->data;
	nsec_t now_ns = clock_monotonic_ns();

	for (struct client *client = control->clients, *next; client; client = next) {
		next = client->next;
		client_tick(client, now_ns);
		if (control->closing && !client->closing &&
			(client->writes == 0 ||
				now_ns - control->closing_since_ns > CLOSE_WAIT_MS * NSEC_PER_MSEC))
			client_close(client);
	}
	if (control->closing && control->client_count == 0) {
		uv_close((uv_handle_t *)timer, NULL);
		uv_close((uv_handle_t *)&control->turn, NULL);
	}
}

/* -- the socket -- */

/* True when a server answers there. */
static bool somebody_answers(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool answers;

	if (fd < 0)
		return false;
	answers = connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
		errno == EAGAIN;
	close(fd);
	return answers;
}

/* Binds path by the descriptor of its folder: sun_path has room for 107 bytes only. */
static int bind_socket(const char *path, struct error *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const char *slash = strrchr(path, '/');
	char folder[PATH_MAX];
	int fd = -1, code = 0;

	snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) : 1,
		slash ? path : ".");
	int folder_fd = open(*folder ? folder : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (folder_fd < 0)
		return error_set(
			err, -errno, "socket %s: no folder for it: %s", path, strerror(errno));
	int size = snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s",
		folder_fd, slash ? slash + 1 : path);

	if (size < 0 || (size_t)size >= sizeof(address.sun_path)) {
		code = error_set(err, -ENAMETOOLONG, "socket %s: its name is too long", path);
	} else if (somebody_answers(&address)) {
		code = error_set(err, -EADDRINUSE,
			"socket %s: another ckptd answers there; `ckptctl stop --exit` ends it",
			path);
	} else {
		unlinkat(folder_fd, slash ? slash + 1 : path, 0);
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		mode_t mask = umask(0117);

		if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
			code = error_set(err, -errno, "socket %s: %s", path, strerror(errno));
		umask(mask);
	}
	close(folder_fd);
	if (code < 0 && fd >= 0)
		close(fd);
	return code < 0 ? code : fd;
}

int control_open(struct control **ret, uv_loop_t *loop, const struct control_options *options,
	struct error *err)
{
	struct control *control = calloc(1, sizeof(*control));
	int fd = options->passed_fd;

	CHECK(control);
	CHECK(options->handler && options->stream);
	if (fd < 0) {
		fd = bind_socket(options->path, err);
		if (fd < 0) {
			free(control);
			return fd;
		}
		snprintf(control->path, sizeof(control->path), "%s", options->path);
	}
	control->options = *options;
	CHECK(uv_pipe_init(loop, &control->listener, 0) == 0);
	CHECK(uv_timer_init(loop, &control->timer) == 0);
	CHECK(uv_prepare_init(loop, &control->turn) == 0);
	control->listener.data = control->timer.data = control->turn.data = control;
	int code = uv_pipe_open(&control->listener, fd);

	if (code == 0)
		code = uv_listen((uv_stream_t *)&control->listener, BACKLOG, on_connection);
	CHECK(uv_timer_start(&control->timer, on_timer, TIMER_MS, TIMER_MS) == 0);
	CHECK(uv_prepare_start(&control->turn, on_turn) == 0);
	*ret = control;
	if (code < 0)
		return error_set(err, code, "socket %s: %s", options->path, uv_strerror(code));
	return 0;
}

void control_close(struct control *control)
{
	CHECK(!control->closing);
	control->closing = true;
	control->closing_since_ns = clock_monotonic_ns();
	if (control->path[0])
		unlink(control->path);
	uv_close((uv_handle_t *)&control->listener, NULL);
	on_timer(&control->timer);
}

void control_free(struct control *control)
{
	if (!control)
		return;
	CHECK(control->client_count == 0);
	free(control);
}
