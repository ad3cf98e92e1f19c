/* P1, P11: a bit of the state memory that flips between two steps is never laundered into a new
 * seal. Whatever bit it is (header, records, words, sums, data) and whatever comes next (an update,
 * a skipped one, a save, a resume): either it is refused, or what comes out is bit for bit what
 * would have come out without the flip. The trainer, the saver and the resume are played here with
 * the code they call; tests/system/test_worker_roles.c does the same to the real processes. */
#include "daemon/optim/adamw.h"
#include "tests/unit/store_fixture.h"

#include <sys/mman.h>

#include "tests/disk/damage.h"

#define SLOTS 3
#define STEPS 4 /* finished when the bit flips */
#define PAGE(n) ((n)*STATE_PAGE)

struct memory {
	struct fixture *fx;
	struct state state;
	uint8_t *before;           /* the whole of it, as it was before the flip */
	struct state_record own;   /* the trainer's own copy, in its own memory */
	float *gradient;           /* one section */
	uint8_t *truth[STEPS + 3]; /* the block after each step, without any flip */
};

/* -- the trainer: daemon/worker_train.c, apply_update and skip_update -- */

static struct adamw scalars_of(uint64_t update_count)
{
	return (struct adamw){.learning_rate = 1e-3f / (float)update_count,
		.beta1 = 0.9f,
		.beta2 = 0.99f,
		.eps = 1e-8f,
		.bias_correction1 = 0.5f,
		.bias_correction2 = 0.5f,
		.clip_scale = 1,
		.ema_decay = 0.9f};
}

static void sections_of(const struct state *state, uint32_t slot, float *sections[SECTION_COUNT])
{
	for (uint32_t i = 0; i < SECTION_COUNT; i++)
		sections[i] = state_section(state, slot, i);
}

/* False when the memory is found to be corrupt: then nothing is committed. */
static bool update(struct memory *memory, struct state_record *own)
{
	struct state *state = &memory->state;
	uint64_t kept[64], elems = memory->fx->table.section_bytes / sizeof(float);
	const uint64_t *src_sums = state_sums(state, own->slot);
	float *src[SECTION_COUNT], *dst[SECTION_COUNT];
	struct state_record next = *own;
	struct adamw scalars = scalars_of(own->update_count + 1);
	uint32_t slot;

	assert_int_equal(state_begin_write(state, &slot), 0);
	if (slot == own->slot) {
		memcpy(kept, src_sums, state_sum_count(state) * sizeof(uint64_t));
		src_sums = kept;
	}
	sections_of(state, own->slot, src);
	sections_of(state, slot, dst);
	if (!adamw_update(&scalars, memory->gradient, elems, src, dst, src_sums,
		    state_sums(state, slot), NULL)) {
		state_empty_all(state);
		return false;
	}
	next.step++;
	next.update_count++;
	next.sums_digest = digest_of(
		state_sums(state, slot), state_sum_count(state) * sizeof(uint64_t));
	state_commit(state, slot, &next);
	*own = next;
	return true;
}

/* In a child: it may find that its slot holds no longer, and that ends the process. */
static bool skip_update(struct memory *memory, struct state_record *own)
{
	struct state_record *shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	assert_ptr_not_equal(shared, MAP_FAILED);
	*shared = *own;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(STDERR_FILENO);
		shared->step++;
		shared->skipped_count++;
		state_commit_record(&memory->state, shared);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*own = *shared;
	munmap(shared, sizeof(*shared));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* -- resume: daemon/worker_resume.c, resume_memory -- */

/* True when the newest record's slot matches its seal; then it must hold the truth. */
static bool resume(
	struct memory *memory, const struct state *state, uint64_t skipped, const char *where)
{
	struct state_record record;
	uint64_t sums[64], bytes = state_sum_count(state) * sizeof(uint64_t);
	struct digest digest;

	if (state_newest_record(state, &record) < 0)
		return false;
	digest = digest_of(state_sums(state, record.slot), bytes);
	if (!digest_equal(&digest, &record.sums_digest))
		return false;
	seal_sums(state_section(state, record.slot, 0), memory->fx->block_bytes, sums);
	if (memcmp(sums, state_sums(state, record.slot), bytes) != 0)
		return false;
	if (record.step > STEPS + 2 || record.update_count + skipped < record.step ||
		memcmp(state_section(state, record.slot, 0), memory->truth[record.update_count],
			memory->fx->block_bytes) != 0)
		fail_msg("%s: step %" PRIu64 " is not what it was", where, record.step);
	return true;
}

/* -- save: supervisor/saver.c, then daemon/worker_save.c -- */

static int save_pinned(struct memory *memory, const struct state *state)
{
	struct fixture *fx = memory->fx;
	struct checkpoint_source source = fixture_source(fx);
	struct checkpoint_saved saved;
	struct state_record record;

	if (state_pinned_record(state, &record) < 0)
		return -ENOENT;
	memcpy(fx->sums, state_sums(state, record.slot), fx->sum_count * sizeof(uint64_t));
	source.record = &record;
	source.block = state_section(state, record.slot, 0);
	return checkpoint_save(fx->fd, &source, &saved, &fx->err);
}

static void expect_truth_on_disk(struct memory *memory, const char *where)
{
	struct fixture *fx = memory->fx;

	for (uint64_t step = 1; step <= STEPS; step++) {
		struct checkpoint_info info;
		char name[64];
		int fd;

		fixture_name(1, step, name);
		fd = checkpoint_open(fx->fd, name, &info, &fx->err);
		if (fd < 0)
			continue;
		PASS(checkpoint_read(fd, &info, fx->loaded, NULL, 1, NULL, &fx->err));
		if (memcmp(fx->loaded, memory->truth[step], fx->block_bytes) != 0)
			fail_msg("%s: step %" PRIu64 " was saved changed", where, step);
		close(fd);
		checkpoint_info_fini(&info);
		unlinkat(fx->fd, name, 0);
	}
}

/* False when nothing was saved. */
static bool save(struct memory *memory, const char *where)
{
	struct state_record pinned;
	struct state other;
	int rc;

	state_restore_header(&memory->state);
	if (state_pin_newest(&memory->state, &pinned) < 0)
		return false;
	rc = state_map(&other, memory->state.fd, true, &memory->fx->err);
	if (rc == 0) {
		rc = save_pinned(memory, &other);
		state_unmap(&other);
	}
	expect_truth_on_disk(memory, where);
	return rc == 0;
}

/* -- the memory -- */

static int setup(void **state)
{
	struct memory *memory = calloc(1, sizeof(*memory));
	struct digest model;
	uint64_t section_bytes;
	struct fixture *fx;
	void *inner;
	int fd;

	fixture_setup_small(&inner);
	memory->fx = fx = inner;
	section_bytes = fx->table.section_bytes;
	model = tensor_table_digest(&fx->table);
	fd = state_create(section_bytes, SLOTS, fx->run.id, &model, &fx->err);
	PASS(fd);
	PASS(state_map(&memory->state, fd, true, &fx->err));
	memory->gradient = aligned_alloc(64, section_bytes);
	memset(memory->gradient, 0, section_bytes);
	for (uint64_t i = 0; i < fx->table.param_count; i++)
		memory->gradient[i] = (float)(i % 89) - 44;
	fixture_state(fx, 1, 0);
	for (int step = 0; step < STEPS + 3; step++)
		memory->truth[step] = malloc(fx->block_bytes);
	memory->before = malloc(memory->state.header.total_bytes);
	*state = memory;
	return 0;
}

/* Trains STEPS steps, remembers the memory, and goes on for two to know the truth. */
static void train(struct memory *memory)
{
	struct fixture *fx = memory->fx;
	struct state *state = &memory->state;
	struct state_record *own = &memory->own, further;
	uint32_t slot;

	*own = fx->record;
	assert_int_equal(state_begin_write(state, &slot), 0);
	memcpy(state_section(state, slot, 0), fx->block, fx->block_bytes);
	memcpy(state_sums(state, slot), fx->sums, fx->sum_count * sizeof(uint64_t));
	state_commit(state, slot, own);
	memcpy(memory->truth[0], fx->block, fx->block_bytes);
	for (uint64_t step = 1; step <= STEPS + 2; step++) {
		assert_true(update(memory, step <= STEPS ? own : &further));
		if (step == STEPS) {
			memcpy(memory->before, state->map, state->header.total_bytes);
			further = *own;
		}
		memcpy(memory->truth[step],
			state_section(state, step <= STEPS ? own->slot : further.slot, 0),
			fx->block_bytes);
	}
}

static int teardown(void **state)
{
	struct memory *memory = *state;
	int fd = memory->state.fd;
	void *inner = memory->fx;

	state_unmap(&memory->state);
	close(fd);
	free(memory->gradient);
	free(memory->before);
	for (int step = 0; step < STEPS + 3; step++)
		free(memory->truth[step]);
	fixture_teardown(&inner);
	free(memory);
	return 0;
}

/* -- flips -- */

enum next { UPDATE, SKIP, SAVE, RESUME, NEXT_COUNT };

struct tally {
	uint32_t found[NEXT_COUNT], same[NEXT_COUNT];
};

/* One flip, and what comes next. It is counted as found or as without effect. */
static void flip_then(
	struct memory *memory, uint64_t bit, enum next next, const char *what, struct tally *tally)
{
	static const char *const names[] = {"update", "skipped update", "save", "resume"};
	struct state_record own = memory->own;
	bool went_on = true;
	char where[96];

	snprintf(where, sizeof(where), "%s, bit %" PRIu64 ", then %s", what, bit, names[next]);
	memcpy(memory->state.map, memory->before, memory->state.header.total_bytes);
	damage_flip(memory->state.map, bit);
	switch (next) {
	case UPDATE:
		went_on = update(memory, &own) && update(memory, &own);
		break;
	case SKIP:
		went_on = skip_update(memory, &own) && update(memory, &own);
		break;
	case SAVE:
		went_on = save(memory, where);
		break;
	case RESUME:
	case NEXT_COUNT:
		break;
	}
	if (!resume(memory, &memory->state, next == SKIP, where))
		went_on = false;
	state_unpin_all(&memory->state);
	if (went_on)
		tally->same[next]++;
	else
		tally->found[next]++;
}

static struct tally flip_region(
	struct memory *memory, size_t at, size_t size, uint32_t count, const char *what)
{
	uint64_t random = damage_seed();
	struct tally tally = {0};

	if (damage_is_full())
		count *= 20;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t bit = at * 8 +
			(size * 8 <= count ? i % (size * 8) : damage_next(&random) % (size * 8));

		for (enum next next = UPDATE; next < NEXT_COUNT; next++)
			flip_then(memory, bit, next, what, &tally);
	}
	return tally;
}

static size_t place_of(const struct memory *memory, const void *at)
{
	return (size_t)((const uint8_t *)at - memory->state.map);
}

static void p11_flipped_data_are_found_whatever_comes_next(void **state)
{
	struct memory *memory = *state;
	struct tally tally;

	train(memory);
	tally = flip_region(memory,
		place_of(memory, state_section(&memory->state, memory->own.slot, 0)),
		memory->fx->block_bytes, 30, "data of the current slot");
	for (enum next next = UPDATE; next < NEXT_COUNT; next++)
		assert_int_equal(tally.same[next], 0);
}

static void p11_flipped_sums_are_found_whatever_comes_next(void **state)
{
	struct memory *memory = *state;
	struct tally tally;

	train(memory);
	tally = flip_region(memory, place_of(memory, state_sums(&memory->state, memory->own.slot)),
		memory->fx->sum_count * sizeof(uint64_t), 20, "sums of the current slot");
	for (enum next next = UPDATE; next < NEXT_COUNT; next++)
		assert_int_equal(tally.same[next], 0);
}

/* What is not current is not asked; it must not be taken for something else. */
static void p11_flips_elsewhere_change_nothing(void **state)
{
	struct memory *memory = *state;
	struct tally tally;
	uint32_t other;

	train(memory);
	other = (memory->own.slot + 1) % SLOTS;
	tally = flip_region(memory, place_of(memory, state_section(&memory->state, other, 0)),
		memory->fx->block_bytes, 8, "data of another slot");
	assert_int_equal(tally.found[UPDATE] + tally.found[SAVE] + tally.found[RESUME], 0);
	tally = flip_region(memory, place_of(memory, state_sums(&memory->state, other)),
		memory->fx->sum_count * sizeof(uint64_t), 4, "sums of another slot");
	assert_int_equal(tally.found[UPDATE] + tally.found[SAVE] + tally.found[RESUME], 0);
	/* The header is the view's own copy, and is written again before anybody maps it. */
	tally = flip_region(memory, 0, offsetof(struct state_header, ladder), 16, "header");
	for (enum next next = UPDATE; next < NEXT_COUNT; next++)
		assert_int_equal(tally.found[next], 0);
}

static void p11_flipped_records_and_words_never_tell_another_state(void **state)
{
	struct memory *memory = *state;

	train(memory);
	for (size_t page = 1; page <= 3; page++)
		flip_region(memory, PAGE(page), sizeof(struct state_record), 8, "record");
	for (uint32_t slot = 0; slot < SLOTS; slot++)
		flip_region(memory, PAGE(4) + slot * 64, sizeof(uint64_t), 24, "word");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p11_flipped_data_are_found_whatever_comes_next),
		TEST(p11_flipped_sums_are_found_whatever_comes_next),
		TEST(p11_flips_elsewhere_change_nothing),
		TEST(p11_flipped_records_and_words_never_tell_another_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
