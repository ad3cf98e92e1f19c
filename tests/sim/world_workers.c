/* The processes of world.h but the trainer: what they say, when they end, and how they die. */
#include "tests/sim/world.h"

#include "base/panic.h"
#include "proto/link.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t __wrap_resources_private_bytes(pid_t pid);
uint64_t __wrap_resources_oom_kills(void);
void __wrap_resources_limit(pid_t pid, uint64_t memory_bytes);
int __wrap_priority_set(pid_t process, int nice);
json_t *__wrap_json_from_config(const struct config *config);

static const char *const role_names[] = {
	"prepare", "train", "save", "sample", "verify", "scrub", "mirror"};

/* -- what the kernel does for the supervisor -- */

uint64_t __wrap_resources_private_bytes(pid_t pid)
{
	struct worker *trainer = find_worker(ROLE_TRAIN);

	return trainer && trainer->pid == pid ? trainer->private_bytes : 0;
}

uint64_t __wrap_resources_oom_kills(void)
{
	return world.restarts / 2;
}

void __wrap_resources_limit(pid_t pid, uint64_t memory_bytes)
{
}

int __wrap_priority_set(pid_t process, int nice)
{
	return 0;
}

json_t *__wrap_json_from_config(const struct config *config)
{
	return json_object();
}

/* -- processes -- */

struct worker *find_worker(enum role role)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		if (world.workers[i].alive && world.workers[i].role == role)
			return &world.workers[i];
	return NULL;
}

bool any_worker(void)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		if (world.workers[i].alive)
			return true;
	return false;
}

static enum role role_of(const char *name)
{
	for (uint32_t i = 0; i < sizeof(role_names) / sizeof(role_names[0]); i++)
		if (strcmp(role_names[i], name) == 0)
			return (enum role)i;
	PANIC("a role that there is not");
}

/* A mirror that SIGKILL does not reach may be left behind; nobody else. */
static bool is_doubled(enum role role)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		if (world.workers[i].alive && world.workers[i].role == role &&
			!(role == ROLE_MIRROR && world.workers[i].orphan))
			return true;
	return false;
}

int host_spawned(uv_process_t *process, const uv_process_options_t *options)
{
	enum role role = role_of(options->args[1]);
	struct worker *worker = NULL;

	world.tried_ns = virtual_now_ns;
	if (virtual_now_ns < world.no_spawn_until_ns)
		return UV_EAGAIN;
	MUST(!is_doubled(role), "two processes %s", role_names[role]);
	if (role == ROLE_TRAIN)
		MUST(!find_worker(ROLE_PREPARE), "a trainer beside the preparer");
	for (uint32_t i = 0; i < WORKERS_MAX && !worker; i++)
		if (!world.workers[i].alive)
			worker = &world.workers[i];
	CHECK(worker);
	*worker = (struct worker){.alive = true,
		.role = role,
		.pid = ++world.pid_last,
		.process = process,
		.link = options->stdio[LINK_FD].data.stream,
		.err = options->stdio[2].data.stream,
		.begun_ns = virtual_now_ns,
		.next_ns = VIRTUAL_NEVER};
	process->pid = worker->pid;
	virtual_hurry();
	return 0;
}

void worker_send(struct worker *worker, const char *fmt, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, fmt);
	int size = vsnprintf(text, sizeof(text), fmt, arguments);
	va_end(arguments);
	CHECK(size > 0 && (size_t)size < sizeof(text));
	if (worker->link)
		virtual_deliver(worker->link, text, (size_t)size + 1);
}

void worker_exit(struct worker *worker, int exit_status, int term_signal)
{
	uv_process_t *process = worker->process;
	uv_stream_t *link = worker->link, *err = worker->err;

	CHECK(worker->alive);
	worker->alive = false;
	worker->process = NULL;
	worker->link = worker->err = NULL;
	if (!process)
		return;
	bool exit_first = one_in(2);

	if (exit_first)
		process->exit_cb(process, exit_status, term_signal);
	/* Now and then somebody else holds its pipes. */
	if (!virtual_is_closing(link) && !one_in(16))
		virtual_deliver(link, NULL, 0);
	if (!virtual_is_closing(err))
		virtual_deliver(err, NULL, 0);
	if (!exit_first)
		process->exit_cb(process, exit_status, term_signal);
}

void worker_fail(struct worker *worker, int exit_status, const char *text)
{
	worker_send(worker, "{\"failed\":{\"text\":\"%s\"}}", text);
	if (worker->stage != STAGE_DYING)
		worker_exit(worker, exit_status, 0);
}

static struct worker *find_process(const uv_process_t *process)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++)
		if (world.workers[i].alive && world.workers[i].process == process)
			return &world.workers[i];
	return NULL;
}

static void begin_dying(struct worker *worker, int number)
{
	nsec_t most_ns = number == SIGKILL ? 20 * NSEC_PER_MSEC : 400 * NSEC_PER_MSEC;

	worker->stage = STAGE_DYING;
	worker->term_signal = number;
	worker->next_ns = virtual_now_ns + between_ns(NSEC_PER_MSEC, most_ns);
	/* In the hands of a disk that does not answer. */
	if (worker->role == ROLE_MIRROR && worker->hung_since_ns > 0)
		worker->next_ns += between_ns(0, 2000 * NSEC_PER_SEC);
	if (!strikes(FAULT_STUCK))
		return;
	nsec_t stuck_ns = between_ns(5 * NSEC_PER_SEC, 40 * NSEC_PER_SEC);

	worker->next_ns += stuck_ns;
	if (worker->role != ROLE_MIRROR)
		world.term_allowed_ns += stuck_ns;
}

void host_signalled(uv_process_t *process, int number)
{
	struct worker *worker = find_process(process);

	if (!worker || worker->stage == STAGE_DYING)
		return;
	if (number == SIGABRT) {
		MUST(worker->stage == STAGE_HUNG, "a false alarm: %s is killed for a hang",
			role_names[worker->role]);
		world.counts->hangs_found++;
		if (one_in(3)) /* deaf */
			return;
	}
	if (number == SIGKILL || number == SIGABRT)
		begin_dying(worker, number);
}

static void leave_behind(const uv_process_t *process)
{
	struct worker *worker = find_process(process);

	if (!worker)
		return;
	MUST(worker->role == ROLE_MIRROR && world.sup->state == FSM_ENDED,
		"a process %s is left behind", role_names[worker->role]);
	worker->orphan = true;
	worker->process = NULL;
	worker->link = worker->err = NULL;
}

void host_closed(const uv_handle_t *handle)
{
	if (handle->type == UV_PROCESS)
		leave_behind((const uv_process_t *)handle);
	if (handle->type != UV_NAMED_PIPE)
		return;
	for (uint32_t i = 0; i < CLIENTS_MAX; i++)
		if ((const uv_handle_t *)world.clients[i].stream == handle) {
			world.clients[i].stream = NULL;
			world.clients[i].open = false;
		}
}

/* The supervisor is dead: PDEATHSIG. */
void workers_orphan(void)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++) {
		struct worker *worker = &world.workers[i];

		if (!worker->alive)
			continue;
		worker->orphan = true;
		worker->process = NULL;
		worker->link = worker->err = NULL;
		if (worker->stage != STAGE_DYING)
			begin_dying(worker, SIGKILL);
	}
}

void workers_sleep(nsec_t asleep_ns)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++) {
		struct worker *worker = &world.workers[i];

		if (worker->alive && worker->next_ns != VIRTUAL_NEVER)
			worker->next_ns += asleep_ns;
		worker->hung_since_ns += asleep_ns;
	}
}

/* The row of another save could not be written. */
static void adopt_rowless(void)
{
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (world.files[i].used && world.files[i].row == CHECKPOINT_MISSING)
			world.files[i].row = CHECKPOINT_FOUND;
}

/* -- the preparer -- */

static void prepare_advance(struct worker *worker)
{
	static const char digest[] =
		"00000000000000000000000000000000000000000000000000000000000000ab";

	atomic_fetch_add(&world.progress.moves, 1);
	if (virtual_now_ns < world.config_until_ns) {
		worker_fail(worker, LINK_EXIT_CONFIG, "the pictures are gone: ask somebody");
		return;
	}
	if (disk_fails() && one_in(2)) {
		worker_fail(worker, LINK_EXIT_STORAGE, "the cache: input/output error");
		return;
	}
	if (strikes(FAULT_PREPARER)) {
		worker->next_ns = VIRTUAL_NEVER;
		if (one_in(3)) {
			worker->stage = STAGE_HUNG;
			worker->hung_since_ns = virtual_now_ns;
		} else {
			worker_exit(worker, one_in(2) ? 1 : 0, one_in(2) ? SIGSEGV : 0);
		}
		return;
	}
	adopt_rowless();
	worker_send(worker,
		"{\"prepared\":{\"section_bytes\":1048576,\"param_count\":1,\"model_digest\":"
		"\"%s\",\"images\":100,\"classes\":0,\"data_text\":\"cars\",\"catalog\":\"ok\"}}",
		digest);
	if (worker->stage != STAGE_DYING)
		worker_exit(worker, 0, 0);
}

/* -- the saver -- */

static struct file *free_file(void)
{
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (!world.files[i].used)
			return &world.files[i];
	return NULL;
}

static struct file *publish(struct worker *worker, enum checkpoint_state row, bool *ret_already)
{
	struct state_record *record = &worker->pinned;
	struct file *file = find_file(record->step, record->branch);

	*ret_already = file && file->row == CHECKPOINT_VERIFIED && !file->rotten;
	if (*ret_already)
		return file;
	if (!file)
		file = free_file();
	CHECK(file);
	*file = (struct file){.used = true,
		.step = record->step,
		.branch = record->branch,
		.row = row,
		.truth = *truth_of(record),
		.root = ++world.roots,
		.verified_wall_ns = virtual_wall_ns + virtual_now_ns};
	world.ever_verified = world.ever_verified ||
		(row == CHECKPOINT_VERIFIED && line_holds(file));
	world.counts->saves++;
	return file;
}

static void saver_die(struct worker *worker)
{
	bool already;

	switch (below(4)) {
	case 0:
		publish(worker, CHECKPOINT_MISSING, &already);
		break;
	case 1:
		publish(worker, CHECKPOINT_VERIFIED, &already);
		break;
	default:
		break;
	}
	if (one_in(2))
		worker_exit(worker, 0, one_in(2) ? SIGKILL : SIGSEGV);
	else
		worker_fail(worker, one_in(2) ? LINK_EXIT_FAILED : LINK_EXIT_STORAGE,
			"the disk says no");
}

static void saver_finish(struct worker *worker)
{
	struct state_record *record = &worker->pinned;
	char id[CHECKPOINT_ID_SIZE];
	bool already, catalogued = calm() || !one_in(200);
	struct file *file = publish(
		worker, catalogued ? CHECKPOINT_VERIFIED : CHECKPOINT_MISSING, &already);

	if (catalogued) {
		adopt_rowless();
		retain();
	}
	file->told = true;
	world.ever_verified = world.ever_verified || line_holds(file);
	checkpoint_id_format(record->step, record->branch, id);
	worker_send(worker,
		"{\"saved\":{\"id\":\"%s\",\"step\":%" PRIu64
		",\"branch\":%u,\"root\":\"\",\"path\":\"\",\"bytes\":1,\"readback\":\"direct\","
		"\"signer\":\"\",\"catalogued\":%s,\"already\":%s,\"over_bytes\":0,\"stale\":false,"
		"\"ms_write\":1,\"ms_total\":1,\"ms_cpu\":1}}",
		id, record->step, record->branch, catalogued ? "true" : "false",
		already ? "true" : "false");
	if (worker->stage != STAGE_DYING)
		worker_exit(worker, 0, 0);
}

static void saver_advance(struct worker *worker)
{
	if (worker->copy && !worker->pin_dropped) {
		worker->pin_dropped = true;
		worker->next_ns = virtual_now_ns + between_ns(NSEC_PER_MSEC, world.save_ns);
		world.term_allowed_ns += worker->next_ns - virtual_now_ns;
		worker_send(worker, "{\"copied\":{}}");
		return;
	}
	MUST(worker->pin_dropped ||
			(world.memory.pinned &&
				world.memory.pin.sequence == worker->pinned.sequence),
		"the slot is let go under its saver");
	if (strikes(FAULT_SAVER_HANG)) {
		worker->stage = STAGE_HUNG;
		worker->next_ns = VIRTUAL_NEVER;
		worker->hung_since_ns = virtual_now_ns;
		world.term_allowed_ns += 125 * NSEC_PER_SEC;
	} else if (world.memory.flipped && !worker->pin_dropped) {
		worker_fail(worker, LINK_EXIT_MEMORY_CORRUPT, "a sum does not match");
	} else if (disk_full()) {
		retain(); /* to make room */
		worker_fail(worker, LINK_EXIT_STORAGE, "no space left on device");
	} else if (disk_fails()) {
		worker_fail(worker, LINK_EXIT_STORAGE, "input/output error");
	} else if (strikes(FAULT_SAVER)) {
		saver_die(worker);
	} else {
		saver_finish(worker);
	}
}

/* -- those who read checkpoints -- */

static void read_files(struct worker *worker)
{
	if (disk_fails()) {
		worker_fail(worker, LINK_EXIT_STORAGE, "input/output error");
		return;
	}
	for (uint32_t i = 0; i < FILES_MAX && worker->stage != STAGE_DYING; i++) {
		struct file *file = &world.files[i];
		char id[CHECKPOINT_ID_SIZE];

		if (!file->used)
			continue;
		checkpoint_id_format(file->step, file->branch, id);
		if (worker->id[0] && strcmp(id, worker->id) != 0)
			continue;
		file->row = file->rotten ? CHECKPOINT_CORRUPT : CHECKPOINT_VERIFIED;
		world.ever_verified = world.ever_verified || (!file->rotten && line_holds(file));
		worker_send(worker,
			"{\"verified\":{\"id\":\"%s\",\"ok\":%s,\"state\":\"%s\",\"text\":\"\","
			"\"bytes\":1}}",
			id, file->rotten ? "false" : "true", checkpoint_state_name(file->row));
	}
	if (worker->stage != STAGE_DYING)
		worker_exit(worker, worker->stop_asked ? LINK_EXIT_FAILED : 0, 0);
}

/* The mirror: it takes all that is good, when it is there. */
static void mirror_files(struct worker *worker)
{
	const struct file *newest = newest_good();
	char id[CHECKPOINT_ID_SIZE] = "";

	if (virtual_now_ns < world.no_mirror_until_ns) {
		worker_fail(worker, LINK_EXIT_TRANSIENT, "/mirror: no such file or directory");
		return;
	}
	if (strikes(FAULT_MIRROR_HANG)) {
		worker->stage = STAGE_HUNG;
		worker->hung_since_ns = virtual_now_ns;
		worker->next_ns = VIRTUAL_NEVER;
		return;
	}
	for (uint32_t i = 0; i < FILES_MAX; i++)
		world.files[i].mirrored = world.files[i].mirrored ||
			(world.files[i].row == CHECKPOINT_VERIFIED && !world.files[i].rotten);
	if (newest)
		checkpoint_id_format(newest->step, newest->branch, id);
	world.counts->mirrorings++;
	worker_send(worker, "{\"mirrored\":{\"behind\":0,\"newest\":\"%s\"}}", id);
	if (worker->stage != STAGE_DYING)
		worker_exit(worker, 0, 0);
}

static void work(struct worker *worker)
{
	switch (worker->role) {
	case ROLE_PREPARE:
		prepare_advance(worker);
		return;
	case ROLE_SAVE:
		saver_advance(worker);
		return;
	case ROLE_VERIFY:
	case ROLE_SCRUB:
		read_files(worker);
		return;
	case ROLE_MIRROR:
		mirror_files(worker);
		return;
	case ROLE_SAMPLE:
		worker_send(worker, "{\"sampled\":{\"path\":\"p\",\"id\":\"\",\"step\":1}}");
		if (worker->stage != STAGE_DYING)
			worker_exit(worker, 0, 0);
		return;
	default:
		PANIC("no work for this role");
	}
}

void worker_advance(struct worker *worker)
{
	if (worker->stage == STAGE_DYING) {
		bool already;

		if (worker->role == ROLE_SAVE && worker->orphan && one_in(4) && !disk_full())
			publish(worker, CHECKPOINT_MISSING, &already);
		worker_exit(worker, 0, worker->term_signal);
	} else if (worker->role == ROLE_TRAIN) {
		trainer_advance(worker);
	} else {
		work(worker);
	}
}

/* -- what they are told -- */

static void take_start(struct worker *worker, const char *text)
{
	const char *id = strstr(text, "\"id\":\"");
	const char *threads = strstr(text, "\"threads\":");

	worker->from_memory = strstr(text, "\"resume\":\"memory\"") != NULL;
	worker->run_created = strstr(text, "\"run_created\":true") != NULL;
	worker->safe_engine = strstr(text, "\"engine\":\"openblas\"") != NULL;
	worker->copy = strstr(text, "\"copy\":true") != NULL;
	worker->foreground = strstr(text, "\"foreground\":true") != NULL;
	worker->threads = threads ? (uint32_t)atoi(threads + 10) : 0;
	if (id)
		sscanf(id + 6, "%63[^\"]", worker->id);
	if (worker->role == ROLE_TRAIN) {
		trainer_begin(worker);
		return;
	}
	worker->stage = STAGE_WORK;
	worker->next_ns = virtual_now_ns +
		between_ns(20 * NSEC_PER_MSEC,
			worker->role == ROLE_SAVE ? world.save_ns : 900 * NSEC_PER_MSEC);
	if (worker->role == ROLE_SAVE) {
		MUST(world.memory.pinned, "a saver without a pin");
		worker->pinned = world.memory.pin;
		world.term_allowed_ns += worker->next_ns - virtual_now_ns;
	}
}

void host_written(uv_stream_t *stream, const char *data, size_t size)
{
	for (uint32_t i = 0; i < WORKERS_MAX; i++) {
		struct worker *worker = &world.workers[i];

		if (!worker->alive || worker->link != stream)
			continue;
		CHECK(data[size - 1] == '\0');
		if (strstr(data, "\"start\""))
			take_start(worker, data);
		else if (strstr(data, "\"stop\""))
			worker->stop_asked = true;
		else if (strstr(data, "\"reload\""))
			worker->reload_asked = true;
		return;
	}
	people_hear(stream, data);
}
