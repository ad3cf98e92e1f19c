/* The clients of service.h. What each has sent is read here a second time, so that it is known what
 * the supervisor owes it: one answer for each call in order, none for a oneway call, and nothing
 * may change for one who may not. */
#include "tests/fuzz/service.h"

#include "proto/frame.h"
#include "supervisor/control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define OWED_MAX 64
#define STRANGER 4 /* the first client that may only look */
#define STRANGER_UID 4242
#define ANSWER_NS (400 * NSEC_PER_SEC)
#define READER_BYTES_MAX (4 * FRAME_CLIENT_MAX + 8192)

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *size);

struct owed {
	bool more, oneway, begun;
};

static struct client {
	uv_stream_t *stream; /* NULL: not connected */
	struct frame_reader reader;
	bool mad;    /* what it sent is no call: it is owed nothing more */
	bool lost;   /* more is owed than is noted here */
	bool sleeps; /* reads no more */
	struct owed owed[OWED_MAX];
	uint32_t owed_count;
} clients[SERVICE_CLIENTS];

static struct client *accepting;
static bool owner_has_spoken; /* somebody who may change something */

void people_reset(void)
{
	for (uint32_t i = 0; i < SERVICE_CLIENTS; i++) {
		frame_reader_fini(&clients[i].reader);
		clients[i] = (struct client){0};
	}
	owner_has_spoken = false;
}

void people_owner_speaks(void)
{
	owner_has_spoken = true;
}

/* -- connections -- */

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
	struct ucred *peer = value;
	uint32_t which = (uint32_t)(accepting - clients);

	*peer = (struct ucred){.pid = 1 + (pid_t)which,
		.uid = which >= STRANGER ? STRANGER_UID + which / 6
			: which % 2      ? geteuid()
					 : 0};
	return 0;
}

void host_accepted(uv_stream_t *stream)
{
	CHECK(accepting && !accepting->stream);
	accepting->stream = stream;
}

void people_closed(const uv_handle_t *handle)
{
	for (uint32_t i = 0; i < SERVICE_CLIENTS; i++)
		if ((const uv_handle_t *)clients[i].stream == handle) {
			frame_reader_fini(&clients[i].reader);
			clients[i] = (struct client){0};
		}
}

static bool is_connected(struct client *client)
{
	if (client->stream)
		return true;
	accepting = client;
	frame_reader_init(&client->reader, FRAME_CLIENT_MAX);
	return virtual_connect() && client->stream;
}

/* -- what is owed -- */

static void note_call(struct client *client, const json_t *frame)
{
	const json_t *parameters = json_object_get(frame, "parameters");
	const char *method = json_get_text(frame, "method", NULL);

	if (!method || strlen(method) > 80 || json_get_bool(frame, "upgrade", false) ||
		(parameters && !json_is_object(parameters) && !json_is_null(parameters))) {
		client->mad = true;
		return;
	}
	if (client->owed_count == OWED_MAX) {
		client->lost = true;
		return;
	}
	client->owed[client->owed_count++] = (struct owed){
		.more = json_get_bool(frame, "more", false),
		.oneway = json_get_bool(frame, "oneway", false)};
}

static void note_bytes(struct client *client, const char *data, size_t size)
{
	struct error error;
	json_t *frame;
	int code = 0;

	while (size > 0 && !client->mad) {
		char *room;
		size_t count;

		if (frame_reader_space(&client->reader, &room, &count) < 0) {
			client->mad = true;
			return;
		}
		CHECK(client->reader.capacity <= READER_BYTES_MAX);
		count = count < size ? count : size;
		memcpy(room, data, count);
		frame_reader_filled(&client->reader, count);
		data += count;
		size -= count;
		while (!client->mad && (code = frame_next(&client->reader, &frame, &error)) > 0) {
			note_call(client, frame);
			json_decref(frame);
		}
		client->mad = client->mad || code < 0;
	}
}

/* The front one that gets an answer. */
static struct owed *owed_next(struct client *client)
{
	while (client->owed_count > 0 && client->owed[0].oneway)
		memmove(client->owed, client->owed + 1,
			--client->owed_count * sizeof(client->owed[0]));
	return client->owed_count > 0 ? &client->owed[0] : NULL;
}

/* -- sending -- */

/* All that a call may change at once. What it gives to the ledger or spawns is counted there. */
struct standing {
	enum fsm_state state;
	enum wanted wanted;
	bool power_paused, kill_now, saving, wants_save, trainer_asked, trainer, scrubs, rolls;
	bool waits[4];
	uint32_t changes, asked_for;
};

static struct standing standing_now(void)
{
	const struct supervisor *sup = &service_sup;

	return (struct standing){.state = sup->state,
		.wanted = sup->run.wanted,
		.power_paused = sup->run.power_paused,
		.kill_now = sup->kill_now,
		.saving = sup->saver.in_flight,
		.wants_save = sup->saver.wanted,
		.trainer_asked = sup->trainer.asked,
		.trainer = child_alive(&sup->trainer),
		.scrubs = child_alive(&sup->scrub.child),
		.rolls = sup->rollback_call,
		.waits = {sup->settling, sup->saver.joined, sup->saver.next, sup->scrub.calls},
		.changes = ledger_changes,
		.asked_for = workers_asked_for};
}

static void check_unchanged(const struct standing *before)
{
	struct standing after = standing_now();

	CHECK(after.state == before->state && after.wanted == before->wanted);
	CHECK(after.power_paused == before->power_paused && after.kill_now == before->kill_now);
	CHECK(after.saving == before->saving && after.wants_save == before->wants_save);
	CHECK(after.trainer_asked == before->trainer_asked && after.trainer == before->trainer);
	CHECK(after.scrubs == before->scrubs && after.rolls == before->rolls);
	CHECK(memcmp(after.waits, before->waits, sizeof(after.waits)) == 0);
	CHECK(after.changes == before->changes && after.asked_for == before->asked_for);
}

/* Calls that wait for their turn are done later: nobody but strangers has spoken in this life. */
static void check_only_strangers(void)
{
	const struct supervisor *sup = &service_sup;

	if (owner_has_spoken)
		return;
	CHECK(ledger_changes == 0 && workers_asked_for == 0);
	CHECK(!sup->settling && !sup->saver.joined && !sup->saver.next && !sup->scrub.calls);
}

static void send_bytes(struct client *client, const char *data, size_t size)
{
	struct standing before = standing_now();
	bool stranger = client >= clients + STRANGER;

	owner_has_spoken = owner_has_spoken || !stranger;
	note_bytes(client, data, size);
	virtual_deliver(client->stream, data, size);
	if (stranger)
		check_unchanged(&before);
	check_only_strangers();
}

void people_line(char letter, uint32_t which, char *rest, size_t size)
{
	struct client *client = &clients[which];

	switch (letter) {
	case 'q':
		if (client->stream)
			virtual_deliver(client->stream, NULL, 0);
		return;
	case 'z':
		client->sleeps = true;
		return;
	default:
		break;
	}
	if (size == 0 || !is_connected(client))
		return;
	for (size_t i = 0; i < size; i++)
		if (rest[i] == 0x1e)
			rest[i] = '\0';
	/* The line's own end is the NUL. */
	send_bytes(client, rest, letter == 's' ? size + 1 : size);
}

/* -- answers -- */

static void check_answer(struct client *client, const char *data, size_t size)
{
	AUTO_JSON answer = json_loadb(data, size - 1, JSON_REJECT_DUPLICATES, NULL);
	struct owed *owed = owed_next(client);
	const char *error = json_get_text(answer, "error", "");
	json_t *parameters = json_object_get(answer, "parameters");

	size_t members = 1;

	members += *error != '\0';
	members += json_object_get(answer, "continues") != NULL;
	CHECK(json_is_object(answer) && json_is_object(parameters));
	CHECK(json_object_size(answer) == members);
	/* varlink's own errors give back what was sent. */
	if (strncmp(error, "org.varlink.", 12) != 0)
		json_check_plain("", parameters);
	CHECK(client->lost || owed);
	if (!owed)
		return;
	if (json_get_bool(answer, "continues", false)) {
		CHECK(owed->more && !*error);
		owed->begun = true;
		return;
	}
	memmove(client->owed, client->owed + 1, --client->owed_count * sizeof(client->owed[0]));
}

void people_hear(uv_stream_t *stream, const char *data, size_t size)
{
	for (uint32_t i = 0; i < SERVICE_CLIENTS; i++) {
		struct client *client = &clients[i];

		if (client->stream != stream)
			continue;
		if (client->sleeps)
			stream->write_queue_size += size;
		check_answer(client, data, size);
		return;
	}
	PANIC("an answer to nobody");
}

/* A stream has no end, so whatever was sent after it waits for ever. */
static bool is_waiting(struct client *client)
{
	struct owed *owed = client->stream && !client->lost ? owed_next(client) : NULL;

	return owed && !owed->begun;
}

static bool anybody_waits(void)
{
	for (uint32_t i = 0; i < SERVICE_CLIENTS; i++)
		if (is_waiting(&clients[i]))
			return true;
	return false;
}

void people_check_answered(void)
{
	nsec_t until_ns = virtual_now_ns + ANSWER_NS;

	while (anybody_waits() && virtual_now_ns < until_ns)
		if (!service_pass(NSEC_PER_SEC))
			return;
	CHECK(!anybody_waits());
	check_only_strangers();
}
