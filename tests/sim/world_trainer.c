/* The trainer of world.h: it finishes steps, and dies of what may go wrong with them. */
#include "tests/sim/world.h"

#include "base/panic.h"
#include "proto/link.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define MOVES_PER_STEP 2
#define LEAK_BYTES ((uint64_t)6 << 20)
#define LEARN_MARGIN_STEPS 64 /* that the watchdog has not seen yet */

static void set_phase(enum phase phase)
{
	atomic_store(&world.progress.phase, phase);
}

static void move(void)
{
	atomic_fetch_add(&world.progress.moves, 1);
}

/* -- the beginning -- */

void trainer_begin(struct worker *worker)
{
	set_phase(PHASE_START);
	move();
	worker->stage = STAGE_BOOT;
	worker->private_bytes = TRAINER_BYTES;
	worker->next_ns = virtual_now_ns + between_ns(20 * NSEC_PER_MSEC, world.boot_ns);
	world.counts->starts++;
	const struct file *good = newest_told();

	worker->floor_step = good ? good->step : 0;
	worker->overtaken = world.sup->newest.known &&
		world.sup->newest.step > world.memory.record.step;
}

/* The newest one on the line that can be believed, as recovery looks for it. */
static struct file *load_newest(void)
{
	for (;;) {
		struct file *newest = NULL;

		for (uint32_t i = 0; i < FILES_MAX; i++) {
			struct file *file = &world.files[i];

			if (file->used && file->row != CHECKPOINT_CORRUPT && line_holds(file) &&
				(!newest || file->step > newest->step))
				newest = file;
		}
		if (!newest)
			return NULL;
		newest->row = newest->rotten ? CHECKPOINT_CORRUPT : CHECKPOINT_VERIFIED;
		if (!newest->rotten) {
			world.ever_verified = true;
			return newest;
		}
	}
}

static bool any_file(void)
{
	for (uint32_t i = 0; i < FILES_MAX; i++)
		if (world.files[i].used && line_holds(&world.files[i]))
			return true;
	return false;
}

/* The words of the `ready` message, or NULL when there is nothing to go on from. */
static const char *find_state(struct worker *worker)
{
	struct state_record *record = &worker->record;
	struct file *file;

	if (worker->from_memory && memory_on_line()) {
		*record = world.memory.record;
		return "memory";
	}
	file = load_newest();
	*record = (struct state_record){.sequence = world.memory.record.sequence};
	memcpy(record->run_id, world.run.id, sizeof(record->run_id));
	if (file) {
		record->step = file->step;
		*truth_of(record) = file->truth;
		return "checkpoint";
	}
	if (!worker->run_created || any_file())
		return NULL;
	MUST(!world.ever_verified, "step 0 is begun where a checkpoint was verified");
	truth_of(record)->poisoned_at = STEP_NEVER;
	return "scratch";
}

static bool recorded_safe(void)
{
	const struct line_branch *branch = line_find(&world.line, world.line.current);

	for (uint32_t i = 0; i < branch->intervention_count; i++)
		if (branch->interventions[i].kind == INTERVENTION_ENGINE)
			return true;
	return false;
}

static void become_ready(struct worker *worker, const char *from)
{
	struct state_record *record = &worker->record;
	bool safe = worker->safe_engine || recorded_safe();

	record->branch = world.line.current;
	record->images_seen = truth_of(record)->images;
	record->sequence++;
	worker->begun_step = record->step;
	check_start(worker);
	world.memory.record = *record;
	world.memory.valid = true;
	world.leave_memory = false;
	worker->bad_engine_kills = !safe;
	worker->ready = true;
	atomic_store(&world.progress.step, record->step);
	atomic_store(&world.progress.branch, record->branch);
	worker_send(worker,
		"{\"ready\":{\"step\":%" PRIu64
		",\"branch\":%u,\"from\":\"%s\",\"checkpoint\":\"\",\"engine\":\"%s\","
		"\"engine_reason\":\"\",\"plan_bytes\":1}}",
		record->step, record->branch, from, safe ? "openblas" : "avx512");
	if (worker->stage == STAGE_DYING)
		return;
	worker->stage = STAGE_COMPUTE;
	worker->next_ns = virtual_now_ns;
	worker->moves_left = 0;
}

static void boot(struct worker *worker)
{
	set_phase(PHASE_RECOVER);
	move();
	if (virtual_now_ns < world.config_until_ns) {
		worker_fail(worker, LINK_EXIT_CONFIG, "this cannot be trained: ask somebody");
		return;
	}
	if ((disk_fails() && one_in(2)) || strikes(FAULT_STORAGE)) {
		worker_fail(worker, LINK_EXIT_STORAGE, "the cache: input/output error");
		return;
	}
	if (strikes(FAULT_BOOT)) {
		worker_exit(worker, 1, one_in(2) ? SIGSEGV : 0);
		return;
	}
	if (!worker->from_memory && strikes(FAULT_UNREADABLE)) {
		worker_fail(worker, LINK_EXIT_TRANSIENT, "nothing is readable now");
		return;
	}
	if (worker->from_memory && world.memory.flipped) {
		world.memory.valid = world.memory.flipped = false;
		world.leave_memory = true;
		worker_fail(worker, LINK_EXIT_MEMORY_CORRUPT, "a sum does not match");
		return;
	}
	const char *from = find_state(worker);

	if (!from)
		worker_fail(worker, LINK_EXIT_TRANSIENT, "no checkpoint can be read");
	else
		become_ready(worker, from);
}

/* -- what kills a step -- */

static const struct line_branch *parent_of(const struct line_branch *branch)
{
	return line_before(&world.line, branch);
}

static bool is_same(const struct intervention *a, const struct intervention *b)
{
	return a->kind == b->kind && a->step == b->step && strcmp(a->value, b->value) == 0;
}

/* A branch carries what its parent asked for: that is done once. */
static bool done_below(const struct line_branch *above, const struct intervention *intervention)
{
	const struct line_branch *branch = line_find(&world.line, world.line.current);

	for (; branch != above; branch = parent_of(branch))
		for (uint32_t i = 0; i < branch->intervention_count; i++)
			if (is_same(&branch->interventions[i], intervention))
				return true;
	return false;
}

/* Images that the branches of the line jump over at these steps. */
static uint64_t images_skipped(uint64_t first, uint64_t last)
{
	const struct line_branch *branch = line_find(&world.line, world.line.current);
	uint64_t images = 0;

	for (; branch; branch = parent_of(branch))
		for (uint32_t i = 0; i < branch->intervention_count; i++) {
			const struct intervention *skip = &branch->interventions[i];

			if (skip->kind == INTERVENTION_SKIP_WINDOW && skip->step >= first &&
				skip->step <= last && !done_below(branch, skip))
				images += strtoull(skip->value, NULL, 10);
		}
	return images;
}

static bool data_is_bad(struct worker *worker)
{
	uint64_t images = truth_of(&worker->record)->images;

	return images < world.bad_image_first + world.bad_image_count &&
		images + (uint64_t)world.sup->config.batch_size > world.bad_image_first;
}

static bool fatal_here(struct worker *worker)
{
	uint64_t step = worker->record.step, at = truth_of(&worker->record)->poisoned_at;
	uint64_t wander = world.poison_wanders ? below(4) : 0;

	world.died_of_data = world.bad_image_count > 0 && data_is_bad(worker);
	if (world.died_of_data)
		return true;
	if (step == world.bad_engine_step && worker->bad_engine_kills)
		return true;
	return at != STEP_NEVER && step >= at + world.poison_lag + wander;
}

/* True when the trainer is gone or stands. */
static bool struck(struct worker *worker)
{
	static const int signals[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE};

	if (strikes(FAULT_CRASH)) {
		worker_exit(worker, 0, signals[below(4)]);
	} else if (strikes(FAULT_EXIT)) {
		worker_fail(worker, LINK_EXIT_FAILED, "an error");
	} else if (strikes(FAULT_KILL)) {
		worker_exit(worker, 0, SIGKILL);
	} else if (strikes(FAULT_STORAGE)) {
		worker_fail(worker, LINK_EXIT_STORAGE, "a preview: no space left on device");
	} else if (strikes(FAULT_BABBLE)) {
		worker_send(worker, one_in(2) ? "babble" : "{\"a\":1,\"b\":2}");
		MUST(worker->stage == STAGE_DYING, "a trainer that babbles lives on");
	} else if (strikes(FAULT_HANG)) {
		worker->stage = STAGE_HUNG;
		worker->hung_since_ns = virtual_now_ns;
		worker->next_ns = VIRTUAL_NEVER;
	} else {
		return false;
	}
	return true;
}

/* The shortest that the deadline may be when the next tick has seen all there is to see, or when a
 * reload forgets what was learned. */
static nsec_t least_deadline_ns(void)
{
	struct watchdog watchdog = world.sup->watchdog;

	watchdog.stepped = true;
	watchdog.other = false;
	watchdog.hangs_in_row = 0;
	nsec_t learned_ns = watchdog.steps_learned < WATCHDOG_LEARN_STEPS
		? WATCHDOG_FLOOR_NS
		: watchdog_deadline_ns(&watchdog);

	return learned_ns < watchdog.prior_ns ? learned_ns : watchdog.prior_ns;
}

/* Not to be taken for a hang, also when the machine sleeps meanwhile: shorter than half of the
 * deadline; or all but as long, where nothing can be learned before it is over: but for one tick,
 * which counts whole when a reload begins to watch anew within it. */
static nsec_t stall_ns(nsec_t gap_ns)
{
	const struct watchdog *watchdog = &world.sup->watchdog;

	if (!strikes(FAULT_STALL))
		return 0;
	if (watchdog->steps_learned + LEARN_MARGIN_STEPS >= WATCHDOG_LEARN_STEPS)
		return between_ns(1, least_deadline_ns() / 2 - TICK_NS);
	nsec_t deadline_ns = watchdog_deadline_ns(watchdog) - between_ns(TICK_NS, TICK_NS * 5 / 4);

	sleep_within(deadline_ns);
	return deadline_ns - gap_ns;
}

/* -- a step -- */

static void begin_step(struct worker *worker)
{
	if (worker->reload_asked) {
		worker->reload_asked = false;
		if (one_in(4))
			worker_send(worker, "{\"reload_refused\":{\"text\":\"too much memory\"}}");
		else
			worker_send(worker,
				"{\"plan\":{\"engine\":\"avx512\","
				"\"engine_reason\":\"\",\"plan_bytes\":1}}");
		if (worker->stage == STAGE_DYING)
			return;
	}
	if (worker->stop_asked) {
		worker_exit(worker, LINK_EXIT_DONE, 0);
		return;
	}
	if (worker->record.step >= (uint64_t)world.sup->config.steps_total) {
		worker_send(worker, "{\"finished\":{\"step\":%" PRIu64 "}}", worker->record.step);
		if (worker->stage != STAGE_DYING)
			worker_exit(worker, LINK_EXIT_DONE, 0);
		return;
	}
	truth_of(&worker->record)->images += images_skipped(
		worker->record.step, worker->record.step);
	worker->slow = strikes(FAULT_SLOW);
	worker->step_begun_ns = virtual_now_ns;
	worker->moves_left = MOVES_PER_STEP;
	set_phase(PHASE_FORWARD);
}

static void compute(struct worker *worker)
{
	if (worker->moves_left == 0) {
		begin_step(worker);
		if (!worker->alive || worker->stage == STAGE_DYING)
			return;
	} else if (--worker->moves_left == 0) {
		worker->stage = STAGE_UPDATE;
		worker->next_ns = virtual_now_ns;
		return;
	}
	move();
	if (struck(worker))
		return;
	nsec_t gap_ns = between_ns(world.step_ns * 7 / 10, world.step_ns * 13 / 10) /
		MOVES_PER_STEP;

	gap_ns = worker->slow ? 2 * gap_ns : gap_ns;
	worker->next_ns = virtual_now_ns + gap_ns + stall_ns(gap_ns);
}

static bool in_place(const struct worker *worker)
{
	return world.memory.slots == 1 ||
		(world.memory.slots == 2 && world.memory.pinned &&
			world.memory.pin.sequence != worker->record.sequence);
}

static void update(struct worker *worker)
{
	if (fatal_here(worker)) {
		worker_exit(worker, 0, SIGSEGV);
		return;
	}
	if (world.memory.flipped || strikes(FAULT_CORRUPT)) {
		world.memory.flipped = world.memory.valid = false;
		world.leave_memory = true;
		worker_fail(worker, LINK_EXIT_MEMORY_CORRUPT, "a sum does not match");
		return;
	}
	if (world.memory.slots == 1 && world.memory.pinned) {
		set_phase(PHASE_WAIT);
		worker->next_ns = virtual_now_ns + 50 * NSEC_PER_MSEC;
		return;
	}
	set_phase(PHASE_UPDATE);
	move();
	if (in_place(worker)) {
		world.memory.valid = false;
		world.leave_memory = true;
	}
	if (struck(worker))
		return;
	worker->stage = STAGE_WAIT; /* for its end */
	worker->next_ns = virtual_now_ns + world.step_ns / 20 + 1;
}

/* -- the commit -- */

static void note_nonfinite(struct worker *worker)
{
	struct state_record *record = &worker->record;
	uint64_t limit = (uint64_t)world.sup->config.nonfinite_limit;
	bool bad = record->step >= world.nan_step && record->step < world.nan_step + limit &&
		images_skipped(world.nan_step, world.nan_step + limit) == 0;

	record->skipped_in_row = bad ? record->skipped_in_row + 1 : 0;
	record->skipped_count += bad;
}

static void commit(struct worker *worker)
{
	struct state_record *record = &worker->record;
	struct truth *truth = truth_of(record);

	note_nonfinite(worker);
	truth->images += (uint64_t)world.sup->config.batch_size;
	record->images_seen = truth->images;
	record->step++;
	record->sequence++;
	if (truth->poisoned_at == STEP_NEVER && !calm() && one_in(world.poison_one_in))
		truth->poisoned_at = record->step;
	world.memory.record = *record;
	world.memory.valid = true;
	world.leave_memory = false;
	atomic_store(&world.progress.step, record->step);
	atomic_store(&world.progress.step_ns, (uint64_t)(virtual_now_ns - worker->step_begun_ns));
	move();
	worker->steps++;
	world.counts->steps++;
	world.tried_ns = virtual_now_ns;
	if (strikes(FAULT_LEAK))
		worker->leak_bytes = LEAK_BYTES;
	worker->private_bytes += worker->leak_bytes;
	worker->stage = STAGE_COMPUTE;
	worker->next_ns = virtual_now_ns;
	if (record->skipped_in_row >= (uint64_t)world.sup->config.nonfinite_limit)
		worker_fail(worker, LINK_EXIT_NONFINITE, "too many updates in a row");
}

void trainer_advance(struct worker *worker)
{
	switch (worker->stage) {
	case STAGE_BOOT:
		boot(worker);
		break;
	case STAGE_COMPUTE:
		compute(worker);
		break;
	case STAGE_UPDATE:
		update(worker);
		break;
	case STAGE_WAIT:
		commit(worker);
		break;
	default:
		PANIC("a trainer that has nothing to do");
	}
}
