/* What a checkpoint costs, in parts that bench/run puts together.
 *
 *   bench_checkpoint round DIR NET           one round, nothing else at work: the disk, the digest,
 *                                            a save and a verified load
 *   bench_checkpoint stall DIR NET SLOTS N   N saves one after another while training goes on: what
 *                                            the loop waited for each
 *   bench_checkpoint slow DIR NET SECONDS SAVES PAIRS
 *                                            steps a second in blocks with SAVES saves and in
 *                                            blocks without, in turn
 *   bench_checkpoint child DIR NET beside|foreground
 *                                            (internal) the saver: state memory on descriptor 3
 *
 * NET is a net's name (bench/nets.h), or a number of million parameters: then a step is the update
 * of the whole state and nothing else. The saver is a process of its own and a thread does what the
 * supervisor does. `slow` saves at the low priority of a save beside the trainer; `stall` as
 * `ckptctl save --wait` does, with all threads at normal priority: 200 saves end in time, and the
 * loop meets the worst of them. */
#include "base/clock.h"
#include "base/panic.h"
#include "base/priority.h"
#include "base/seal.h"
#include "base/sys.h"
#include "bench/nets.h"
#include "bench/solo.h"
#include "daemon/ops/engine.h"
#include "store/checkpoint.h"
#include "store/chunk_flow.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_FD 3
#define BATCH 4
#define SAVES_MAX 10000
#define WAIT_US 1000 /* between two tries for a slot */
#define MIB (1024.0 * 1024.0)

struct bench {
	const char *dir, *net_name;
	int dir_fd;
	bool real; /* a net that trains */
	struct unet_config net;
	struct tensor_table table;
	struct config config;
	struct state state, view; /* the trainer's and the supervisor's */
	struct state_record record;
	struct solo solo;
	float *grads; /* of an update without a net */
	uint64_t *sums_copy;
	/* The loop's waits for a slot: those that were refused at first, all together, and the
	 * longest of the others. */
	_Atomic uint64_t waited_ns, longest_ns, steps;
	atomic_bool over;
	uint32_t save_count;
	nsec_t pause_ns; /* from the begin of one save to that of the next */
	nsec_t stall_ns[SAVES_MAX], save_ns[SAVES_MAX];
};

static _Noreturn void die(const char *what, const char *why)
{
	fprintf(stderr, "bench_checkpoint: %s: %s\n", what, why);
	exit(1);
}

static double rate(uint64_t bytes, nsec_t ns)
{
	return (double)bytes / MIB / ((double)ns * 1e-9);
}

/* -- the state -- */

static void open_table(struct bench *bench)
{
	struct error err;
	char *end;
	unsigned long millions = strtoul(bench->net_name, &end, 10);
	int r;

	config_defaults(&bench->config);
	bench->real = *end != '\0';
	if (bench->real) {
		if (net_named(bench->net_name, &bench->net) < 0)
			die(bench->net_name, "no such net");
		r = unet_tensor_table(&bench->net, &bench->table, &err);
	} else {
		const uint32_t shape[] = {(uint32_t)millions * 1000, 1000};

		tensor_table_init(&bench->table);
		r = tensor_table_add(&bench->table, "weight", 2, shape);
		if (r == 0)
			r = tensor_table_layout(&bench->table, &err);
	}
	if (r < 0)
		die(bench->net_name, "no tensors");
}

static uint64_t block_bytes(const struct bench *bench)
{
	return SECTION_COUNT * bench->table.section_bytes;
}

/* Values that no disk can compress: weights of about one, small moments. */
static void fill(const struct bench *bench, uint32_t slot)
{
#pragma omp parallel for
	for (uint32_t section = 0; section < SECTION_COUNT; section++) {
		float *values = state_section(&bench->state, slot, section);
		uint32_t seed = section + 1;

		for (uint64_t i = 0; i < bench->table.param_count; i++) {
			seed = seed * 1664525u + 1013904223u;
			values[i] = (float)(seed >> 8) * 0x1p-24f;
		}
	}
}

static void commit(struct bench *bench, uint32_t slot)
{
	uint64_t *sums = state_sums(&bench->state, slot);

	bench->record.sums_digest = digest_of(
		sums, state_sum_count(&bench->state) * sizeof(uint64_t));
	state_commit(&bench->state, slot, &bench->record);
}

static void open_state(struct bench *bench, uint32_t slots)
{
	static const uint8_t run_id[STATE_RUN_ID_SIZE] = "bench";
	struct error err;
	uint32_t slot;
	int fd;

	bench->record.branch = 1;
	bench->record.model_digest = tensor_table_digest(&bench->table);
	memcpy(bench->record.run_id, run_id, sizeof(run_id));
	fd = state_create(
		bench->table.section_bytes, slots, run_id, &bench->record.model_digest, &err);
	if (fd < 0 || state_map(&bench->state, fd, true, &err) < 0 ||
		state_map(&bench->view, fd, false, &err) < 0)
		die("state memory", err.text);
	CHECK(state_begin_write(&bench->state, &slot) == 0);
	fill(bench, slot);
	seal_sums(state_section(&bench->state, slot, 0), block_bytes(bench),
		state_sums(&bench->state, slot));
	commit(bench, slot);
}

/* -- round -- */

struct transfer {
	int fd;
	const uint8_t *block;
};

static int transfer_write(void *context, uint32_t chunk, uint8_t *unused)
{
	const struct transfer *transfer = context;
	uint64_t offset = chunk * CHECKPOINT_CHUNK_BYTES;

	(void)unused;
	return pwrite(transfer->fd, transfer->block + offset, CHECKPOINT_CHUNK_BYTES,
		       (off_t)offset) == (ssize_t)CHECKPOINT_CHUNK_BYTES
		? 0
		: -EIO;
}

static int transfer_read(void *context, uint32_t chunk, uint8_t *buffer)
{
	const struct transfer *transfer = context;

	return pread(transfer->fd, buffer, CHECKPOINT_CHUNK_BYTES,
		       (off_t)(chunk * CHECKPOINT_CHUNK_BYTES)) == (ssize_t)CHECKPOINT_CHUNK_BYTES
		? 0
		: -EIO;
}

static int transfer_hash(void *context, uint32_t chunk, uint8_t *unused)
{
	const struct transfer *transfer = context;
	struct digest digest = digest_of(
		transfer->block + chunk * CHECKPOINT_CHUNK_BYTES, CHECKPOINT_CHUNK_BYTES);

	(void)unused;
	__asm__ volatile("" : : "m"(digest));
	return 0;
}

/* All chunks of the block at this many threads. */
static nsec_t timed(const struct bench *bench, struct transfer *transfer,
	int (*work)(void *, uint32_t, uint8_t *), size_t buffer_bytes, uint32_t threads)
{
	struct chunk_error error = {0};
	struct chunk_flow flow = {.work = work,
		.context = transfer,
		.error = &error,
		.buffer_bytes = buffer_bytes,
		.end = (uint32_t)(block_bytes(bench) / CHECKPOINT_CHUNK_BYTES)};
	nsec_t begun = clock_monotonic_ns();

	chunk_flow_start(&flow, threads - 1);
	chunk_flow_finish(&flow);
	if (chunk_error_seen(&error))
		die(bench->dir, "cannot read or write with direct I/O");
	return clock_monotonic_ns() - begun;
}

/* What fio would do: sequential direct blocks of a chunk, as many in flight as the saver has. */
static void measure_ceilings(const struct bench *bench)
{
	struct transfer transfer = {
		.block = (const uint8_t *)state_section(&bench->state, bench->record.slot, 0)};
	uint64_t bytes = block_bytes(bench);
	nsec_t begun, reserve_ns, write_ns, sync_ns, read_ns, hash_ns;

	transfer.fd = openat(
		bench->dir_fd, "bench.disk", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (transfer.fd < 0)
		die(bench->dir, strerror(errno));
	unlinkat(bench->dir_fd, "bench.disk", 0);
	begun = clock_monotonic_ns();
	if (fallocate(transfer.fd, 0, 0, (off_t)bytes) < 0 && errno != EOPNOTSUPP)
		die(bench->dir, strerror(errno));
	reserve_ns = clock_monotonic_ns() - begun;
	write_ns = timed(bench, &transfer, transfer_write, 0, CHUNK_IO_DEPTH);
	begun = clock_monotonic_ns();
	if (fsync(transfer.fd) < 0)
		die(bench->dir, strerror(errno));
	sync_ns = clock_monotonic_ns() - begun;
	read_ns = timed(bench, &transfer, transfer_read, CHECKPOINT_CHUNK_BYTES, CHUNK_IO_DEPTH);
	close(transfer.fd);
	hash_ns = timed(bench, &transfer, transfer_hash, 0, (uint32_t)omp_get_max_threads());
	printf("state_mib=%.0f disk_write_mib_s=%.0f disk_durable_mib_s=%.0f disk_fsync_ms=%.2f "
	       "disk_read_mib_s=%.0f hash_mib_s=%.0f ",
		(double)bytes / MIB, rate(bytes, write_ns),
		rate(bytes, reserve_ns + write_ns + sync_ns), (double)sync_ns * 1e-6,
		rate(bytes, read_ns), rate(bytes, hash_ns));
}

static void remove_saved(const struct bench *bench, const char *id)
{
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)];

	snprintf(name, sizeof(name), "%s%s", id, CHECKPOINT_SUFFIX);
	unlinkat(bench->dir_fd, name, 0);
}

static bool yes(void *context)
{
	(void)context;
	return true;
}

static int save(const struct bench *bench, uint32_t threads, struct checkpoint_saved *ret,
	struct error *err)
{
	struct checkpoint_source source = {
		.record = &bench->record,
		.block = state_section(&bench->state, bench->record.slot, 0),
		.sums = state_sums(&bench->state, bench->record.slot),
		.table = &bench->table,
		.config = &bench->config,
		.still_valid = yes,
		.threads = threads,
	};

	return checkpoint_save(bench->dir_fd, &source, ret, err);
}

/* Over the slot that was saved: the sums must come out the same. */
static nsec_t load(const struct bench *bench, const char *id)
{
	char name[CHECKPOINT_ID_SIZE + sizeof(CHECKPOINT_SUFFIX)];
	uint32_t slot = bench->record.slot;
	struct checkpoint_info info;
	struct error err;
	nsec_t begun;
	int fd;

	snprintf(name, sizeof(name), "%s%s", id, CHECKPOINT_SUFFIX);
	begun = clock_monotonic_ns();
	fd = checkpoint_open(bench->dir_fd, name, &info, &err);
	if (fd < 0)
		die(name, err.text);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	if (checkpoint_read(fd, &info, state_section(&bench->state, slot, 0),
		    state_sums(&bench->state, slot), 0, NULL, &err) < 0)
		die(name, err.text);
	begun = clock_monotonic_ns() - begun;
	sys_close(fd);
	checkpoint_info_fini(&info);
	return begun;
}

static void run_round(struct bench *bench)
{
	uint64_t bytes = block_bytes(bench);
	struct checkpoint_saved saved;
	struct error err;
	nsec_t load_ns;

	open_state(bench, 1);
	measure_ceilings(bench);
	if (save(bench, 0, &saved, &err) < 0)
		die("save", err.text);
	load_ns = load(bench, saved.id);
	remove_saved(bench, saved.id);
	printf("write_mib_s=%.0f readback_mib_s=%.0f load_mib_s=%.0f write_ms=%.0f "
	       "readback_ms=%.0f publish_ms=%.1f total_ms=%.0f load_ms=%.0f direct=%d\n",
		rate(bytes, saved.write_ns), rate(bytes, saved.readback_ns), rate(bytes, load_ns),
		(double)saved.write_ns * 1e-6, (double)saved.readback_ns * 1e-6,
		(double)(saved.total_ns - saved.write_ns - saved.readback_ns) * 1e-6,
		(double)saved.total_ns * 1e-6, (double)load_ns * 1e-6, saved.direct);
}

/* -- the saver's process -- */

static int run_child(struct bench *bench, bool beside)
{
	struct checkpoint_saved saved;
	struct error err;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (beside)
		priority_set(0, 10); /* as the supervisor does it */
	if (state_map(&bench->state, CHILD_FD, true, &err) < 0)
		die("state memory", err.text);
	if (state_pinned_record(&bench->state, &bench->record) < 0)
		die("state memory", "nothing is pinned");
	if (save(bench, beside ? 1 : 0, &saved, &err) < 0)
		die("save", err.text);
	remove_saved(bench, saved.id);
	return 0;
}

static void spawn_saver(const struct bench *bench)
{
	const char *argv[] = {"bench_checkpoint", "child", bench->dir, bench->net_name,
		bench->pause_ns ? "beside" : "foreground", NULL};
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die("fork", strerror(errno));
	if (pid == 0) {
		dup2(bench->state.fd, CHILD_FD);
		execv("/proc/self/exe", (char *const *)argv);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		die("saver", "failed");
}

/* What the supervisor does: pin, spawn, wait, unpin. */
static void *save_often(void *context)
{
	struct bench *bench = context;

	for (uint32_t i = 0; i < bench->save_count; i++) {
		struct state_record pinned;
		nsec_t begun = clock_monotonic_ns(), left;
		uint64_t step = atomic_load(&bench->steps);

		atomic_store(&bench->waited_ns, 0);
		atomic_store(&bench->longest_ns, 0);
		if (state_pin_newest(&bench->view, &pinned) < 0)
			die("state memory", "cannot pin");
		spawn_saver(bench);
		state_unpin_all(&bench->view);
		bench->save_ns[i] = clock_monotonic_ns() - begun;
		/* A wait that still goes on is told when it ends: one more step. */
		while (bench->pause_ns == 0 && atomic_load(&bench->steps) <= step + 1)
			usleep(WAIT_US);
		bench->stall_ns[i] = (nsec_t)(atomic_load(&bench->waited_ns) +
			atomic_load(&bench->longest_ns));
		left = bench->pause_ns - (clock_monotonic_ns() - begun);
		if (left > 0)
			usleep((useconds_t)(left / 1000));
	}
	atomic_store(&bench->over, true);
	return NULL;
}

/* -- the trainer -- */

static void open_trainer(struct bench *bench)
{
	static const char *const best_first[] = {"amx", "avx512", "openblas"};
	struct solo_setup setup = {.model = &bench->net, .params = solo_params(BATCH), .seed = 1};
	const char *reason;
	struct error err;

	bench->sums_copy = malloc(state_sum_count(&bench->state) * sizeof(uint64_t));
	CHECK(bench->sums_copy);
	if (!bench->real) {
		bench->grads = calloc(1, bench->table.section_bytes);
		if (!bench->grads)
			die("gradient", "no memory");
		return;
	}
	for (int i = 0; i < 3 && !setup.engine; i++)
		setup.engine = engine_named(best_first[i], &reason);
	if (!setup.engine || solo_init(&bench->solo, &setup, &err) < 0)
		die("trainer", "cannot be made");
	/* As a run begins: random moments would throw the weights about, and a net of such weights
	 * is slow. */
	for (uint32_t i = 0; i < SECTION_COUNT; i++)
		memcpy(state_section(&bench->state, bench->record.slot, i),
			solo_section(&bench->solo, (enum section)i), bench->table.section_bytes);
	seal_sums(state_section(&bench->state, bench->record.slot, 0), block_bytes(bench),
		state_sums(&bench->state, bench->record.slot));
	bench->record.sums_digest = digest_of(state_sums(&bench->state, bench->record.slot),
		state_sum_count(&bench->state) * sizeof(uint64_t));
	state_commit_record(&bench->state, &bench->record);
}

static void sections_of(const struct bench *bench, uint32_t slot, float *ret[SECTION_COUNT])
{
	for (uint32_t i = 0; i < SECTION_COUNT; i++)
		ret[i] = state_section(&bench->state, slot, i);
}

/* Where the loop can wait for a save: here only. */
static uint32_t begin_write(struct bench *bench)
{
	nsec_t begun = clock_monotonic_ns();
	bool refused = false;
	uint32_t slot;
	uint64_t took;

	while (state_begin_write(&bench->state, &slot) == -EBUSY) {
		refused = true;
		usleep(WAIT_US);
	}
	took = (uint64_t)(clock_monotonic_ns() - begun);
	if (refused)
		atomic_fetch_add(&bench->waited_ns, took);
	else if (took > atomic_load(&bench->longest_ns))
		atomic_store(&bench->longest_ns, took);
	return slot;
}

static void step(struct bench *bench)
{
	struct train_params params = solo_params(BATCH);
	struct state_record *record = &bench->record;
	const uint64_t *src_sums = state_sums(&bench->state, record->slot);
	float *src[SECTION_COUNT], *dst[SECTION_COUNT];
	struct train_result result = {.grad_norm = 1, .finite = true};
	struct adamw scalars;
	uint32_t slot;
	bool matched;

	if (bench->real)
		train_gradient(bench->solo.train, record->step, record->images_seen, &result);
	CHECK(result.finite);
	scalars = train_scalars(&params, record->update_count, result.grad_norm);
	slot = begin_write(bench);
	if (slot == record->slot) {
		memcpy(bench->sums_copy, src_sums,
			state_sum_count(&bench->state) * sizeof(uint64_t));
		src_sums = bench->sums_copy;
	}
	sections_of(bench, record->slot, src);
	sections_of(bench, slot, dst);
	matched = bench->real
		? train_update(bench->solo.train, &scalars, src, dst, src_sums,
			  state_sums(&bench->state, slot))
		: adamw_update(&scalars, bench->grads, bench->table.section_bytes / sizeof(float),
			  src, dst, src_sums, state_sums(&bench->state, slot), NULL);
	CHECK(matched);
	record->step++;
	record->update_count++;
	record->images_seen += BATCH;
	commit(bench, slot);
	if (bench->real)
		unet_load_weights(bench->solo.train->unet, dst[SECTION_WEIGHTS]);
	atomic_fetch_add(&bench->steps, 1);
}

/* -- stall -- */

static void run_stall(struct bench *bench, uint32_t slots, uint32_t saves)
{
	nsec_t begun;
	pthread_t thread;
	uint32_t last;

	open_state(bench, slots);
	open_trainer(bench);
	step(bench);
	bench->save_count = saves;
	begun = clock_monotonic_ns();
	CHECK(pthread_create(&thread, NULL, save_often, bench) == 0);
	while (!atomic_load(&bench->over))
		step(bench);
	pthread_join(thread, NULL);
	last = (saves * 99 + 99) / 100 - 1;
	printf("state_mib=%.0f slots=%u saves=%u steps=%llu seconds=%.0f save_ms=%.0f ",
		(double)block_bytes(bench) / MIB, slots, saves,
		(unsigned long long)atomic_load(&bench->steps),
		(double)(clock_monotonic_ns() - begun) * 1e-9,
		(double)solo_median(bench->save_ns, saves) * 1e-6);
	solo_median(bench->stall_ns, saves); /* sorts */
	printf("stall_ms_p50=%.4f stall_ms_p99=%.4f stall_ms_max=%.4f\n",
		(double)bench->stall_ns[saves / 2] * 1e-6, (double)bench->stall_ns[last] * 1e-6,
		(double)bench->stall_ns[saves - 1] * 1e-6);
}

/* -- slow -- */

/* Steps a second over about block_ns, with saves at equal distances or none. */
static double block_rate(struct bench *bench, nsec_t block_ns, uint32_t saves)
{
	nsec_t begun = clock_monotonic_ns();
	uint64_t first = atomic_load(&bench->steps);
	pthread_t thread;

	bench->save_count = saves;
	bench->pause_ns = saves ? block_ns / saves : 0;
	atomic_store(&bench->over, saves == 0);
	if (saves)
		CHECK(pthread_create(&thread, NULL, save_often, bench) == 0);
	while (!atomic_load(&bench->over) || clock_monotonic_ns() - begun < block_ns)
		step(bench);
	nsec_t took = clock_monotonic_ns() - begun;
	if (saves)
		pthread_join(thread, NULL);
	return (double)(atomic_load(&bench->steps) - first) / ((double)took * 1e-9);
}

/* Of all savers that have ended. */
static double savers_cpu_ms(void)
{
	struct rusage usage;

	CHECK(getrusage(RUSAGE_CHILDREN, &usage) == 0);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
		(double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-3;
}

static void run_slow(struct bench *bench, uint32_t seconds, uint32_t saves, uint32_t pairs)
{
	nsec_t block_ns = (nsec_t)seconds * NSEC_PER_SEC;

	open_state(bench, 3);
	open_trainer(bench);
	for (int i = 0; i < 3; i++)
		step(bench);
	for (uint32_t i = 0; i < pairs; i++) {
		/* The order changes, so that a machine that slows down favours neither. */
		double cpu_ms = savers_cpu_ms();
		double first = block_rate(bench, block_ns, i % 2 ? saves : 0);
		double second = block_rate(bench, block_ns, i % 2 ? 0 : saves);

		cpu_ms = (savers_cpu_ms() - cpu_ms) / saves;
		printf("saver_cpu_ms=%.1f without_steps_s=%.4f with_steps_s=%.4f saves=%u "
		       "seconds=%u\n",
			cpu_ms, i % 2 ? second : first, i % 2 ? first : second, saves, seconds);
		fflush(stdout);
	}
}

/* -- main -- */

static uint32_t number(const char *text, uint32_t max)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*end || value == 0 || value > max)
		die(text, "not a number that can be");
	return (uint32_t)value;
}

int main(int argc, char **argv)
{
	static struct bench bench; /* large */
	const char *work = argc > 3 ? argv[1] : "";
	bool sized = (strcmp(work, "stall") == 0 && argc == 6) ||
		(strcmp(work, "slow") == 0 && argc == 7) ||
		(strcmp(work, "child") == 0 && argc == 5) ||
		(strcmp(work, "round") == 0 && argc == 4);

	if (!sized) {
		fprintf(stderr,
			"usage: bench_checkpoint round|stall|slow DIR NET [SLOTS SAVES | "
			"SECONDS SAVES PAIRS]\n");
		return 2;
	}
	bench.dir = argv[2];
	bench.net_name = argv[3];
	bench.dir_fd = open(bench.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (bench.dir_fd < 0)
		die(bench.dir, strerror(errno));
	open_table(&bench);
	if (strcmp(work, "round") == 0)
		run_round(&bench);
	else if (strcmp(work, "child") == 0)
		return run_child(&bench, strcmp(argv[4], "beside") == 0);
	else if (strcmp(work, "stall") == 0)
		run_stall(&bench, number(argv[4], STATE_SLOTS_MAX), number(argv[5], SAVES_MAX));
	else
		run_slow(&bench, number(argv[4], 3600), number(argv[5], 1000),
			number(argv[6], 1000));
	return 0;
}
