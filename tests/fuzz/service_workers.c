/* The workers of service.h. An honest one does what proto/link.h says, with real records in the
 * real state memory; a mad one writes anything wherever it could. */
#include "tests/fuzz/service.h"

#include "proto/link.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACT_NS (200 * NSEC_PER_MSEC) /* between two acts of an honest worker */
#define DEATH_NS NSEC_PER_MSEC
#define HEAD_BYTES (5 * STATE_PAGE)
#define SLOT_WORDS (4 * STATE_PAGE)

uint64_t __wrap_resources_private_bytes(pid_t pid);
uint64_t __wrap_resources_oom_kills(void);
void __wrap_resources_limit(pid_t pid, uint64_t memory_bytes);
int __wrap_priority_set(pid_t process, int nice);

static const char *const role_names[ROLE_COUNT] = {
	"prepare", "train", "save", "sample", "verify", "scrub", "mirror"};

static struct worker {
	uv_process_t *process; /* NULL: there is none */
	uv_stream_t *link, *err;
	bool ready, stop_asked, from_memory;
	int term_signal; /* on its way */
	nsec_t next_ns;
} workers[ROLE_COUNT];

static int pid_last;
uint32_t workers_asked_for;
uint64_t workers_furthest;

void workers_reset(void)
{
	memset(workers, 0, sizeof(workers));
	pid_last = VIRTUAL_PID_FIRST;
	workers_asked_for = 0;
	workers_furthest = 0;
}

/* -- what the kernel does for the supervisor -- */

uint64_t __wrap_resources_private_bytes(pid_t pid)
{
	return (uint64_t)100 << 20;
}

uint64_t __wrap_resources_oom_kills(void)
{
	return 0;
}

void __wrap_resources_limit(pid_t pid, uint64_t memory_bytes)
{
}

int __wrap_priority_set(pid_t process, int nice)
{
	return 0;
}

/* -- processes -- */

int host_spawned(uv_process_t *process, const uv_process_options_t *options)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		if (strcmp(role_names[role], options->args[1]) != 0)
			continue;
		CHECK(!workers[role].process); /* never two */
		workers[role] = (struct worker){.process = process,
			.link = options->stdio[LINK_FD].data.stream,
			.err = options->stdio[2].data.stream,
			.next_ns = service_mad ? VIRTUAL_NEVER : virtual_now_ns + ACT_NS};
		workers_asked_for += role == ROLE_SAMPLE || role == ROLE_VERIFY;
		process->pid = ++pid_last;
		return 0;
	}
	PANIC("a role that there is not");
}

void host_signalled(uv_process_t *process, int number)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *worker = &workers[role];

		if (worker->process != process || (number != SIGKILL && number != SIGABRT))
			continue;
		worker->term_signal = number;
		worker->next_ns = virtual_now_ns + DEATH_NS;
	}
}

static void worker_exit(struct worker *worker, int exit_status, int term_signal)
{
	struct worker gone = *worker;

	*worker = (struct worker){0};
	gone.process->exit_cb(gone.process, exit_status, term_signal);
	if (!virtual_is_closing(gone.link))
		virtual_deliver(gone.link, NULL, 0);
	if (!virtual_is_closing(gone.err))
		virtual_deliver(gone.err, NULL, 0);
}

static void say(struct worker *worker, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct worker *worker, const char *fmt, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, fmt);
	int size = vsnprintf(text, sizeof(text), fmt, arguments);
	va_end(arguments);
	CHECK(size > 0 && (size_t)size < sizeof(text));
	virtual_deliver(worker->link, text, (size_t)size + 1);
}

/* -- honest ones -- */

static struct state_record next_record(void)
{
	const struct supervisor *sup = &service_sup;
	struct state_record record;

	if (state_newest_record(&sup->memory, &record) < 0) {
		record = (struct state_record){.model_digest = sup->memory.header.model_digest};
		if (sup->newest.known)
			record.step = record.update_count = sup->newest.step;
	}
	memcpy(record.run_id, sup->run.id, sizeof(record.run_id));
	record.branch = sup->survey.known ? sup->survey.line.current : 1;
	return record;
}

static bool commit(struct state_record *record)
{
	struct state *state = &service_sup.memory;
	uint32_t slot;

	if (state_begin_write(state, &slot) < 0)
		return false;
	state_commit(state, slot, record);
	if (workers_furthest < record->step)
		workers_furthest = record->step;
	return true;
}

static void one_step(struct worker *worker, struct state_record *record)
{
	struct progress *progress = service_sup.progress;
	float loss = 1.0f;
	uint32_t bits;

	record->step++;
	record->update_count++;
	record->images_seen += 16;
	record->loss = loss;
	if (!commit(record))
		return;
	memcpy(&bits, &loss, sizeof(bits));
	progress_phase(progress, PHASE_UPDATE);
	atomic_store(&progress->loss_bits, bits);
	atomic_store(&progress->step_ns, (uint64_t)ACT_NS);
	atomic_store(&progress->images_per_step, 16);
	atomic_store(&progress->step, record->step);
	progress_metric(progress,
		&(struct metric){.step = record->step,
			.branch = record->branch,
			.kind = record->step % 4 ? METRIC_TRAIN : METRIC_HOLDOUT});
}

static void act_train(struct worker *worker)
{
	struct state_record record = next_record();

	if (worker->stop_asked) {
		worker_exit(worker, 0, 0);
	} else if (!worker->ready) {
		worker->ready = true;
		if (commit(&record))
			say(worker,
				"{\"ready\":{\"step\":%" PRIu64 ",\"branch\":%u,\"from\":\"%s\","
				"\"engine\":\"openblas\",\"engine_reason\":\"\",\"plan_bytes\":1,"
				"\"sandbox\":\"seccomp\"}}",
				record.step, record.branch,
				worker->from_memory ? "memory" : "scratch");
	} else if (record.step < SERVICE_STEPS) {
		one_step(worker, &record);
	} else {
		say(worker, "{\"finished\":{\"step\":%" PRIu64 "}}", record.step);
		worker_exit(worker, 0, 0);
	}
}

static void act_save(struct worker *worker)
{
	static const char zeros[] =
		"0000000000000000000000000000000000000000000000000000000000000000";
	struct state_record record;
	char id[CHECKPOINT_ID_SIZE];

	if (state_pinned_record(&service_sup.memory, &record) < 0) {
		worker_exit(worker, LINK_EXIT_FAILED, 0);
		return;
	}
	checkpoint_id_format(record.step, record.branch, id);
	ledger_note_saved(record.step, record.branch);
	say(worker,
		"{\"saved\":{\"id\":\"%s\",\"step\":%" PRIu64 ",\"branch\":%u,\"root\":\"%s\","
		"\"path\":\"/nonexistent/run/checkpoints/%s.safetensors\",\"bytes\":1,"
		"\"signer\":\"\",\"catalogued\":true,\"already\":false,\"over_bytes\":0,"
		"\"stale\":false,\"ms_write\":1,\"ms_total\":1,\"ms_cpu\":1}}",
		id, record.step, record.branch, zeros, id);
	worker_exit(worker, 0, 0);
}

static void act(uint32_t role)
{
	static const char digest[] =
		"00000000000000000000000000000000000000000000000000000000000000ab";
	struct worker *worker = &workers[role];

	worker->next_ns = service_mad ? VIRTUAL_NEVER : virtual_now_ns + ACT_NS;
	atomic_fetch_add(&service_sup.progress->moves, 1);
	switch (role) {
	case ROLE_PREPARE:
		say(worker,
			"{\"prepared\":{\"section_bytes\":%" PRIu64 ",\"param_count\":1,"
			"\"model_digest\":\"%s\",\"images\":100,\"classes\":0,\"data_text\":"
			"\"cars\","
			"\"catalog\":\"ok\",\"signer\":\"\"}}",
			SERVICE_SECTION_BYTES, digest);
		break;
	case ROLE_TRAIN:
		act_train(worker);
		return;
	case ROLE_SAVE:
		act_save(worker);
		return;
	case ROLE_SAMPLE:
		say(worker, "{\"sampled\":{\"path\":\"p.png\",\"id\":\"\",\"step\":1}}");
		break;
	case ROLE_VERIFY:
	case ROLE_SCRUB:
		say(worker,
			"{\"scrub\":{\"id\":\"step-000000001-b0001\",\"bytes_done\":1,"
			"\"bytes_total\":2}}");
		say(worker,
			"{\"verified\":{\"id\":\"step-000000001-b0001\",\"ok\":true,"
			"\"state\":\"verified\",\"text\":\"\",\"bytes\":2}}");
		break;
	default:
		say(worker,
			"{\"mirrored\":{\"copied\":1,\"removed\":0,\"behind\":0,"
			"\"newest\":\"\"}}");
		break;
	}
	worker_exit(worker, 0, 0);
}

/* -- time -- */

static struct worker *next_worker(void)
{
	struct worker *next = NULL;

	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		if (workers[role].process && (!next || workers[role].next_ns < next->next_ns))
			next = &workers[role];
	return next;
}

nsec_t workers_next_ns(void)
{
	const struct worker *worker = next_worker();

	return worker ? worker->next_ns : VIRTUAL_NEVER;
}

void workers_advance(void)
{
	struct worker *worker = next_worker();

	if (worker->term_signal)
		worker_exit(worker, 0, worker->term_signal);
	else
		act((uint32_t)(worker - workers));
}

bool workers_hear(const uv_stream_t *stream, const char *data, size_t size)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *worker = &workers[role];

		if (!worker->process || worker->link != stream)
			continue;
		worker->from_memory = worker->from_memory || strstr(data, "\"resume\":\"memory\"");
		worker->stop_asked = worker->stop_asked || strstr(data, "{\"stop\"");
		return true;
	}
	return false;
}

/* -- mad ones -- */

/* Decimal numbers, as many as there are: the rest is 0. */
static void take_numbers(const char *text, uint64_t *numbers, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		char *end;

		numbers[i] = strtoull(text, &end, 10);
		text = end;
	}
}

static void poke_field(const char *rest)
{
	static const struct {
		const char *name;
		size_t offset, size;
	} fields[] = {
#define FIELD(name) {#name, offsetof(struct progress, name), sizeof(((struct progress *)0)->name)}
		FIELD(moves), FIELD(phase), FIELD(branch), FIELD(step), FIELD(step_begun),
		FIELD(images_seen), FIELD(step_ns), FIELD(loss_bits), FIELD(images_per_step),
		FIELD(plan_bytes), FIELD(stall_count), FIELD(stall_last_ns), FIELD(stall_total_ns),
		FIELD(stall_max_ns), FIELD(ring_head)
#undef FIELD
	};
	size_t length = strcspn(rest, " ");
	uint64_t value;

	take_numbers(rest + length, &value, 1);
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (strlen(fields[i].name) == length && memcmp(fields[i].name, rest, length) == 0)
			memcpy((uint8_t *)service_sup.progress + fields[i].offset, &value,
				fields[i].size);
}

static void poke_word(void *memory, size_t bytes, const char *rest)
{
	uint64_t numbers[2];

	take_numbers(rest, numbers, 2);
	memcpy((uint8_t *)memory + numbers[0] % (bytes / 8) * 8, &numbers[1], 8);
}

static void poke_row(const char *rest)
{
	struct progress *progress = service_sup.progress;
	uint64_t numbers[7];

	take_numbers(rest, numbers, 7);
	uint32_t bits = (uint32_t)numbers[4];
	struct metric *row = &progress->ring[(numbers[0] - 1) % PROGRESS_RING];

	*row = (struct metric){.sequence = numbers[0],
		.step = numbers[1],
		.branch = (uint32_t)numbers[2],
		.kind = (uint32_t)numbers[3],
		.images = (uint32_t)numbers[5],
		.skipped = (uint32_t)numbers[6]};
	memcpy(&row->loss, &bits, sizeof(bits));
	atomic_store(&progress->ring_head, numbers[0]);
}

/* What state_commit would not take, with a greater sequence than all that there is. */
static void poke_pages(struct state_record *record)
{
	record->sequence += 2;
	state_record_seal(record);
	for (uint32_t page = 1; page <= 3; page += 2)
		memcpy(service_sup.memory.map + page * STATE_PAGE, record, sizeof(*record));
}

/* A record with the right sum, over a slot that holds what it speaks of. */
static void poke_record(const char *rest)
{
	uint64_t numbers[6];
	struct state_record record;

	if (!service_sup.has_memory)
		return;
	take_numbers(rest, numbers, 6);
	record = next_record();
	record.step = numbers[0];
	if (numbers[1] > 0)
		record.branch = (uint32_t)numbers[1];
	record.update_count = numbers[2];
	record.images_seen = numbers[3];
	record.skipped_count = numbers[4];
	record.skipped_in_row = numbers[5];
	state_record_seal(&record);
	if (state_record_valid(&record))
		commit(&record);
	else
		poke_pages(&record);
}

static void poke_ladder(const char *rest)
{
	struct ladder ladder = service_sup.ladder;
	uint64_t numbers[3];

	if (!service_sup.has_memory)
		return;
	take_numbers(rest, numbers, 3);
	ladder.rung = (uint32_t)numbers[0];
	ladder.furthest_step = numbers[1];
	ladder.climb_step = numbers[2];
	ladder_seal(&ladder);
	memcpy(state_ladder(&service_sup.memory), &ladder, sizeof(ladder));
	if (workers_furthest < ladder.furthest_step)
		workers_furthest = ladder.furthest_step;
}

static void write_stderr(const struct worker *worker, const char *rest, size_t size)
{
	virtual_deliver(worker->err, rest, size);
	virtual_deliver(worker->err, "\n", 1);
}

void workers_line(char letter, uint32_t role, const char *rest, size_t size)
{
	struct worker *worker = &workers[role];
	uint64_t number;

	take_numbers(rest, &number, 1);
	if (letter == 'g')
		poke_field(rest);
	else if (letter == 'o')
		poke_word(service_sup.progress, sizeof(struct progress), rest);
	else if (letter == 'h')
		poke_row(rest);
	else if (letter == 'c')
		poke_record(rest);
	else if (letter == 'w' && service_sup.has_memory)
		poke_word(service_sup.memory.map, HEAD_BYTES, rest);
	else if (letter == 'l')
		poke_ladder(rest);
	if (!worker->process || worker->term_signal)
		return;
	if (letter == 'b')
		act(role);
	else if (letter == 'm')
		virtual_deliver(worker->link, rest, size + 1);
	else if (letter == 'n' && size > 0)
		virtual_deliver(worker->link, rest, size);
	else if (letter == 'e' && size > 0)
		write_stderr(worker, rest, size);
	else if (letter == 'x')
		worker_exit(worker, (int)(number & 0xff), 0);
	else if (letter == 'k')
		worker_exit(worker, 0, 1 + (int)(number % 31));
}
