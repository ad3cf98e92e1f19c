/* Those who ask the supervisor of world.h for something, two at once and one who may only look. */
#include "tests/sim/world.h"

#include "base/panic.h"
#include "proto/interface.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define STRANGER (CLIENTS_MAX - 1)
#define STRANGER_UID 4242
#define ANSWER_NS (600 * NSEC_PER_SEC)

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *size);

static const struct {
	const char *text;
	bool changes; /* only for those who may */
	bool wanted;  /* changes what the run is to do */
} kinds[CALL_KIND_COUNT] = {
	[CALL_STATUS] = {"Status\"}", false, false},
	[CALL_SAVE] = {"Save\",\"parameters\":{\"wait\":true}}", true, false},
	[CALL_PAUSE] = {"Pause\"}", true, true},
	[CALL_RESUME] = {"Resume\"}", true, true},
	[CALL_STOP] = {"Stop\"}", true, true},
	[CALL_STOP_NOW] = {"Stop\",\"parameters\":{\"now\":true}}", true, true},
	[CALL_STOP_EXIT] = {"Stop\",\"parameters\":{\"exit\":true}}", true, true},
	[CALL_ROLLBACK] = {"Rollback\"}", true, false},
	[CALL_RESTART] = {"Restart\",\"parameters\":{\"from_scratch\":true}}", true, true},
	[CALL_RELOAD] = {"Reload\"}", true, false},
	[CALL_POWER_FAIL] = {"PowerFail\"}", true, true},
	[CALL_POWER_OK] = {"PowerOk\"}", true, true},
	[CALL_VERIFY] = {"Verify\"}", true, false},
	[CALL_SCRUB] = {"Scrub\",\"parameters\":{\"wait\":true}}", true, false},
	[CALL_SAMPLE] = {"Sample\"}", true, false},
	[CALL_KEEP] = {"Keep\",\"parameters\":{\"keep\":true,\"id\":\"%s\"}}", true, false},
	[CALL_CHECKPOINTS] = {"Checkpoints\"}", false, false},
};

/* Of whoever connects. */
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
	struct ucred *peer = value;

	*peer = (struct ucred){
		.pid = 1, .uid = world.accepting == &world.clients[STRANGER] ? STRANGER_UID : 0};
	return 0;
}

void host_accepted(uv_stream_t *stream)
{
	CHECK(world.accepting && !world.accepting->stream);
	world.accepting->stream = stream;
}

void people_crossed(const struct client *but)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (&world.clients[i] != but)
			world.clients[i].alone = false;
}

static void say(struct client *client, enum call_kind kind)
{
	char text[256], id[CHECKPOINT_ID_SIZE] = "";
	char call[160];

	world.accepting = client;
	if (!client->stream && !virtual_connect())
		return;
	if (!client->stream)
		return;
	if (kind == CALL_KEEP && world.sup->newest.known)
		snprintf(id, sizeof(id), "%s", world.sup->newest.id);
	snprintf(call, sizeof(call), kinds[kind].text, id);
	int size = snprintf(text, sizeof(text), "{\"method\":\"%s.%s", PROTO_INTERFACE, call);

	client->open = client->alone = true;
	client->kind = kind;
	client->sent_ns = virtual_now_ns;
	world.counts->calls[kind]++;
	if (kinds[kind].wanted && client != &world.clients[STRANGER]) {
		for (uint32_t i = 0; i < CLIENTS_MAX; i++)
			if (&world.clients[i] != client && world.clients[i].open &&
				kinds[world.clients[i].kind].wanted)
				client->alone = false;
		people_crossed(client);
	}
	if ((kind == CALL_ROLLBACK || kind == CALL_RESTART) && client != &world.clients[STRANGER])
		world.forks_allowed++;
	virtual_hurry();
	virtual_deliver(client->stream, text, (size_t)size + 1);
}

/* -- answers -- */

static void check_answer(const struct client *client, bool good)
{
	static const enum wanted wanted[CALL_KIND_COUNT] = {[CALL_PAUSE] = WANTED_PAUSED,
		[CALL_STOP] = WANTED_STOPPED,
		[CALL_STOP_NOW] = WANTED_STOPPED,
		[CALL_STOP_EXIT] = WANTED_STOPPED,
		[CALL_RESUME] = WANTED_RUN,
		[CALL_RESTART] = WANTED_RUN};
	enum call_kind kind = client->kind;
	bool says = kind == CALL_PAUSE || kind == CALL_STOP || kind == CALL_STOP_NOW ||
		kind == CALL_STOP_EXIT || kind == CALL_RESUME || kind == CALL_RESTART;

	if (client == &world.clients[STRANGER] && kinds[kind].changes)
		MUST(!good, "a stranger may change something");
	if (good && says && client->alone && world.sup->has_run &&
		client != &world.clients[STRANGER])
		MUST(world.run.wanted == wanted[kind] || world.sup->wanted_not_durable,
			"an answer says what is not durable: call %d, wanted %d", (int)kind,
			(int)world.run.wanted);
	if (good && kind == CALL_SAVE)
		MUST(world.rotted || find_file(world.sup->newest.step, world.sup->newest.branch),
			"a save is answered, and there is no checkpoint");
}

void people_hear(uv_stream_t *stream, const char *data)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		struct client *client = &world.clients[i];

		if (client->stream != stream)
			continue;
		MUST(client->open, "an answer that nobody asked for");
		client->open = false;
		client->next_ns = virtual_now_ns + between_ns(NSEC_PER_MSEC, 20 * NSEC_PER_SEC);
		check_answer(client, strncmp(data, "{\"error\"", 8) != 0);
		return;
	}
}

void people_check(void)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		MUST(!world.clients[i].open ||
				virtual_now_ns - world.clients[i].sent_ns < ANSWER_NS,
			"call %d of client %u is not answered", (int)world.clients[i].kind, i);
}

/* -- time -- */

static nsec_t client_next_ns(const struct client *client)
{
	return client->open || !world.has_people ? VIRTUAL_NEVER : client->next_ns;
}

nsec_t people_next_ns(void)
{
	nsec_t next_ns = VIRTUAL_NEVER;

	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if (client_next_ns(&world.clients[i]) < next_ns)
			next_ns = client_next_ns(&world.clients[i]);
	return next_ns;
}

/* When all has gone wrong that will, somebody sees to it that the run goes on. */
static void act(struct client *client)
{
	enum wanted wanted = world.sup->run.wanted;
	enum call_kind kind = (enum call_kind)below(CALL_KIND_COUNT);

	client->next_ns = virtual_now_ns + between_ns(NSEC_PER_SEC, 30 * NSEC_PER_SEC);
	if (calm()) {
		client->next_ns += 30 * NSEC_PER_SEC;
		if (client == &world.clients[0] && wanted != WANTED_RUN && world.sup->has_run)
			say(client, CALL_RESUME);
		return;
	}
	if (kind == CALL_RESTART && !one_in(3)) /* who does, does it once */
		kind = CALL_CHECKPOINTS;
	if (wanted != WANTED_RUN && one_in(3))
		kind = CALL_RESUME;
	if (client == &world.clients[STRANGER] && !one_in(4))
		kind = CALL_STATUS;
	world.budget -= kinds[kind].changes && world.budget > 0 && one_in(2);
	say(client, kind);
}

void people_advance(void)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		struct client *client = &world.clients[i];

		if (client_next_ns(client) > virtual_now_ns)
			continue;
		act(client);
		return;
	}
}

void people_sleep(nsec_t asleep_ns)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		world.clients[i].sent_ns += asleep_ns;
}

void people_lose(void)
{
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		world.clients[i] = (struct client){
			.next_ns = virtual_now_ns + between_ns(0, 20 * NSEC_PER_SEC)};
}
