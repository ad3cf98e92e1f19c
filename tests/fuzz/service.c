/* See service.h: one life of the supervisor for each input, and what must hold at every step. */
#include "tests/fuzz/service.h"

#include "base/log.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define START_NS (1000000 * NSEC_PER_SEC)
#define WALL_NS (INT64_C(1767225600) * NSEC_PER_SEC)
#define LINES_MAX 200
#define TURNS_MAX 400000
#define METRICS_LOST_MAX ((uint64_t)1 << 53)
#define ENDING_NS (300 * NSEC_PER_SEC)
#define FD_SOCKET 900001 /* nobody opens it */

struct supervisor service_sup;
bool service_mad;

static struct {
	const char *name;
	int fd; /* -1: nothing was stored */
} stored[2] = {{"state", -1}, {"progress", -1}};

void __wrap_log_write(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
int __wrap_notify_send(struct notify *notify, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
int __wrap_notify_store_fd(struct notify *notify, const char *name, int fd);
int __wrap_notify_remove_fd(struct notify *notify, const char *name);
void __wrap_notify_take_passed(struct notify_passed *ret);

/* -- texts -- */

bool text_is_plain(const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text, next = (unsigned char)text[1];

		if (c < 0x20 || c == 0x7f || (c == 0xc2 && next >= 0x80 && next < 0xa0))
			return false;
	}
	return true;
}

void json_check_plain(const char *key, const json_t *value)
{
	const char *name;
	json_t *member;
	size_t i;

	switch (json_typeof(value)) {
	case JSON_OBJECT:
		json_object_foreach((json_t *)value, name, member) json_check_plain(name, member);
		break;
	case JSON_ARRAY:
		json_array_foreach(value, i, member) json_check_plain(key, member);
		break;
	case JSON_STRING:
		/* The only ones of more lines. */
		if (strcmp(key, "stderr_tail") != 0 && strcmp(key, "description") != 0)
			CHECK(text_is_plain(json_string_value(value)));
		break;
	case JSON_INTEGER:
		CHECK(json_integer_value(value) >= 0);
		break;
	default:
		break;
	}
}

/* -- what the supervisor tells the outside -- */

void __wrap_log_write(enum log_level level, const char *fmt, ...)
{
	static bool loud, asked;
	char text[8192];
	va_list arguments;

	va_start(arguments, fmt);
	vsnprintf(text, sizeof(text), fmt, arguments);
	va_end(arguments);
	if (!asked) {
		asked = true;
		loud = getenv("CKPTD_FUZZ_LOG") != NULL;
	}
	if (loud)
		fprintf(stderr, "# %9.3f %s\n", (double)(virtual_now_ns - START_NS) / 1e9, text);
	CHECK(text_is_plain(text));
}

static uint32_t count_lines(const char *text)
{
	uint32_t count = 0;

	for (; *text; text++)
		count += *text == '\n';
	return count;
}

/* Each line is an assignment that systemd believes. */
int __wrap_notify_send(struct notify *notify, const char *fmt, ...)
{
	char text[2048];
	va_list arguments;

	va_start(arguments, fmt);
	vsnprintf(text, sizeof(text), fmt, arguments);
	va_end(arguments);
	CHECK(count_lines(text) == count_lines(fmt));
	return 0;
}

int __wrap_notify_store_fd(struct notify *notify, const char *name, int fd)
{
	return 0;
}

int __wrap_notify_remove_fd(struct notify *notify, const char *name)
{
	return 0;
}

void __wrap_notify_take_passed(struct notify_passed *ret)
{
	*ret = (struct notify_passed){.count = 1, .fds[0] = {FD_SOCKET, "socket"}};
	for (int i = 0; i < 2 && stored[i].fd >= 0; i++) {
		ret->fds[ret->count].fd = stored[i].fd;
		strcpy(ret->fds[ret->count++].name, stored[i].name);
		stored[i].fd = -1;
	}
}

/* -- the loop's host -- */

static nsec_t earlier(nsec_t a_ns, nsec_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

nsec_t host_next_ns(void)
{
	return earlier(ledger_next_ns(), workers_next_ns());
}

void host_advance(void)
{
	if (workers_next_ns() <= virtual_now_ns)
		workers_advance();
	else
		ledger_advance();
}

nsec_t host_tick_ns(uint64_t after_ms)
{
	return virtual_now_ns + (nsec_t)after_ms * NSEC_PER_MSEC;
}

void host_written(uv_stream_t *stream, const char *data, size_t size)
{
	CHECK(size > 0 && data[size - 1] == '\0' && strlen(data) == size - 1);
	if (!workers_hear(stream, data, size))
		people_hear(stream, data, size);
}

void host_closed(const uv_handle_t *handle)
{
	people_closed(handle);
}

/* -- what must hold -- */

static void check_now(void)
{
	const struct supervisor *sup = &service_sup;
	json_t *status = status_json(sup);

	json_check_plain("", status);
	json_decref(status);
	uint64_t furthest = workers_furthest > SERVICE_STEPS ? workers_furthest : SERVICE_STEPS;

	CHECK(sup->ladder.furthest_step <= furthest && sup->outage.furthest <= furthest);
	CHECK(!sup->newest.known || sup->newest.id[0]);
	CHECK(sup->ladder.rung <= LADDER_RUNG_MAX);
	CHECK(sup->metrics_lost <= METRICS_LOST_MAX);
	CHECK(text_is_plain(sup->trouble) && text_is_plain(sup->config_text));
}

/* -- one life -- */

bool service_pass(nsec_t duration_ns)
{
	nsec_t until_ns = virtual_now_ns + duration_ns;
	uint32_t turns = 0;

	while (virtual_now_ns < until_ns) {
		if (!virtual_turn())
			return false;
		CHECK(++turns < TURNS_MAX); /* a loop that spins */
	}
	return service_sup.state != FSM_ENDED;
}

static void begin(void)
{
	static struct options options;
	static const char *const sets[] = {"steps_total=1000", "threads=1", "interval=60",
		"state_dir=/nonexistent/run", "mirror=/nonexistent/mirror", "slots=3"};
	struct error error;

	memset(&options, 0, sizeof(options));
	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		options.source.sets[options.source.set_count++] = sets[i];
	snprintf(options.worker_path, sizeof(options.worker_path), "/nonexistent/ckptd-worker");
	virtual_reset();
	CHECK(supervisor_init(&service_sup, &options, &error) == 0);
	open_run(&service_sup);
}

static bool background_alive(const struct supervisor *sup)
{
	return child_alive(&sup->sample.child) || child_alive(&sup->verify.child) ||
		child_alive(&sup->scrub.child) || child_alive(&sup->mirror.child) ||
		child_alive(&sup->saver.child);
}

static void end(void)
{
	struct supervisor *sup = &service_sup;
	nsec_t began_ns = virtual_now_ns;

	/* The second one is for ending without a save; whoever is mad dies of SIGKILL. */
	for (int i = 0; i < 2 && sup->state != FSM_ENDED; i++) {
		virtual_signal(SIGTERM);
		service_pass(NSEC_PER_SEC);
	}
	service_pass(ENDING_NS);
	CHECK(sup->state == FSM_ENDED);
	while (background_alive(sup)) {
		uv_loop_init(&sup->loop);
		CHECK(virtual_turn() && virtual_now_ns - began_ns < 2 * ENDING_NS);
	}
	supervisor_fini(sup);
	virtual_reset();
	people_reset();
}

/* The state memory outlives its supervisor, whatever stands in it now. */
static bool begin_again(void)
{
	if (service_sup.has_memory) {
		stored[0].fd = fcntl(service_sup.memory.fd, F_DUPFD_CLOEXEC, 3);
		stored[1].fd = fcntl(service_sup.progress_fd, F_DUPFD_CLOEXEC, 3);
		CHECK(stored[0].fd >= 0 && stored[1].fd >= 0);
	}
	end();
	begin();
	return service_pass(100 * NSEC_PER_MSEC);
}

/* -- the input -- */

static void signal_line(const char *rest)
{
	static const struct {
		const char *name;
		int number;
	} signals[] = {{"HUP", SIGHUP}, {"PWR", SIGPWR}, {"TERM", SIGTERM}};

	people_owner_speaks();
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (strcmp(signals[i].name, rest) == 0)
			virtual_signal(signals[i].number);
}

static bool one_line(char *line, size_t size)
{
	static const nsec_t times_ns[] = {NSEC_PER_MSEC, 100 * NSEC_PER_MSEC, NSEC_PER_SEC,
		5 * NSEC_PER_SEC, 30 * NSEC_PER_SEC, 150 * NSEC_PER_SEC};
	char letter = line[0];
	uint32_t digit = size > 1 && line[1] >= '0' && line[1] <= '9' ? (uint32_t)(line[1] - '0')
								      : 0;
	char *space = memchr(line, ' ', size);
	char *rest = space ? space + 1 : line + size;

	if (letter == 't')
		return service_pass(times_ns[digit % (sizeof(times_ns) / sizeof(times_ns[0]))]);
	if (letter == 'y' && service_mad)
		return begin_again();
	if (letter == 'r')
		signal_line(rest);
	else if (strchr("spqz", letter))
		people_line(letter, digit % SERVICE_CLIENTS, rest, (size_t)(line + size - rest));
	else if (service_mad)
		workers_line(letter, digit % ROLE_COUNT, rest, (size_t)(line + size - rest));
	return service_pass(NSEC_PER_MSEC);
}

void service_play(const uint8_t *data, size_t size, bool mad_workers)
{
	char *text = fuzz_text(data, size), *at = text;
	bool lives;

	service_mad = mad_workers;
	virtual_now_ns = START_NS;
	virtual_wall_ns = WALL_NS;
	ledger_reset();
	workers_reset();
	begin();
	lives = service_pass(mad_workers ? 100 * NSEC_PER_MSEC : NSEC_PER_SEC);
	for (uint32_t i = 0; i < LINES_MAX && lives && at < text + size; i++) {
		char *stop = memchr(at, '\n', (size_t)(text + size - at));
		size_t length = stop ? (size_t)(stop - at) : (size_t)(text + size - at);

		at[length] = '\0';
		if (length > 0) {
			lives = one_line(at, length);
			check_now();
		}
		at += length + 1;
	}
	if (lives && !mad_workers)
		people_check_answered();
	end();
	free(text);
}
