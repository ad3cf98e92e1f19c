/* P1, P11: no flipped bit and no cut of a checkpoint file is believed.
 *
 * What is exact here and what is sampled: each bit of the header goes through checkpoint_open. The
 * data are hashed by chunks of 4 MiB, so each of their 33.5 million bits through a whole chunk
 * would take days. Instead each bit is shown to change the digest of the data up to its own block
 * of BLAKE2b (128 bytes), and its seal, which is exact; that a difference does not vanish again in
 * the rest of the chunk is BLAKE2b's resistance to collisions. And random bits, thousands in an
 * ordinary run and 10^6 in a full one, go through the real file and the real reader, one in each of
 * some chunks at a time: exactly those chunks must be refused. */
#include "tests/unit/store_fixture.h"

#include "store/scrub.h"

#include "tests/disk/damage.h"

#define NAME "step-000000020-b0001.safetensors"
#define BLAKE2B_BLOCK 128

/* Four chunks, each a section, so that checkpoint_read_section is asked about one chunk. */
static int setup_chunks(void **state)
{
	return fixture_setup_rows(state, 1000);
}

static uint64_t save_one(struct fixture *fx, uint64_t *ret_header_bytes)
{
	struct checkpoint_saved saved;

	PASS(fixture_try_save(fx, 1, 20, &saved));
	*ret_header_bytes = saved.file_bytes - fx->block_bytes;
	return saved.file_bytes;
}

static int try_open(struct fixture *fx)
{
	struct checkpoint_info info;
	int fd = checkpoint_open(fx->fd, NAME, &info, &fx->err);

	if (fd < 0)
		return fd;
	close(fd);
	checkpoint_info_fini(&info);
	return 0;
}

/* Ordinary: one bit of each byte; full: each bit. */
static void p11_every_bit_of_the_header_is_found(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed(), header_bytes, file_bytes = save_one(fx, &header_bytes);
	uint8_t *map = damage_map(fx->fd, NAME, file_bytes);
	uint64_t newer = 0, step = damage_is_full() ? 1 : 8;

	for (uint64_t at = 0; at < header_bytes * 8; at += step) {
		uint64_t bit = at + damage_next(&random) % step;
		int rc;

		damage_flip(map, bit);
		fx->err.text[0] = '\0';
		rc = try_open(fx);
		damage_flip(map, bit);
		newer += rc == -EPROTONOSUPPORT;
		if ((rc != -EBADMSG && rc != -EPROTONOSUPPORT) || fx->err.text[0] == '\0')
			fail_msg("bit %" PRIu64 " of the header gives %d: %s", bit, rc,
				fx->err.text);
	}
	/* "ckptd_format":"1" as '3', '5' and '9': a newer format is refused, not corrupt. */
	assert_in_range(newer, damage_is_full() ? 3 : 0, damage_is_full() ? 3 : 1);
	PASS(try_open(fx));
	munmap(map, file_bytes);
}

/* Ordinary: one bit of each byte; full: each bit. */
static void p11_every_bit_of_a_chunk_enters_its_digest(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed();
	struct digest_stream prefix;
	bool full = damage_is_full();

	fixture_state(fx, 1, 20);
	digest_begin(&prefix);
	for (uint64_t at = 0; at < CHECKPOINT_CHUNK_BYTES; at += BLAKE2B_BLOCK) {
		uint8_t block[BLAKE2B_BLOCK];
		struct digest_stream whole = prefix;
		struct digest expected;
		unsigned step = full ? 1 : 8;

		memcpy(block, fx->block + at, BLAKE2B_BLOCK);
		digest_add(&whole, block, BLAKE2B_BLOCK);
		expected = digest_end(&whole);
		for (unsigned bit = 0; bit < 8 * BLAKE2B_BLOCK; bit += step) {
			unsigned flipped = bit + (unsigned)(damage_next(&random) % step);
			struct digest digest;

			whole = prefix;
			damage_flip(block, flipped);
			digest_add(&whole, block, BLAKE2B_BLOCK);
			damage_flip(block, flipped);
			digest = digest_end(&whole);
			if (digest_equal(&digest, &expected))
				fail_msg("bit %" PRIu64 " does not count", at * 8 + flipped);
		}
		digest_add(&prefix, block, BLAKE2B_BLOCK);
	}
	struct digest said = digest_end(&prefix), own;

	/* The walk above went over what the file's digest is made of. */
	own = digest_of(fx->block, CHECKPOINT_CHUNK_BYTES);
	assert_true(digest_equal(&said, &own));
}

/* A seal is a sum over words, so one word's summand is the whole difference. */
static void p11_every_bit_of_a_chunk_changes_its_seal(void **state)
{
	for (size_t word = 0; word < SEAL_CHUNK_BYTES / sizeof(uint32_t); word++) {
		uint32_t zero = 0;

		assert_int_equal(seal_sum(&zero, word, 1), 0);
		for (unsigned bit = 0; bit < 32; bit++) {
			uint32_t value = UINT32_C(1) << bit;

			if (seal_sum(&value, word, 1) == 0)
				fail_msg("bit %u of word %zu does not count", bit, word);
		}
	}
}

/* One bit in each chunk that is chosen; exactly those must be refused. Returns how many. */
static uint64_t flip_some(struct fixture *fx, int fd, const struct checkpoint_info *info,
	uint8_t *data, float *sections[SECTION_COUNT], uint64_t *random)
{
	/* Most often all of them: each is hashed anyway. */
	uint64_t bits[SECTION_COUNT], count = 0;
	uint64_t chosen = damage_next(random) % 8 == 0 ? damage_next(random) % 16 : 15;
	int rc[SECTION_COUNT];

	for (int s = 0; s < SECTION_COUNT; s++) {
		bits[s] = damage_next(random) % (CHECKPOINT_CHUNK_BYTES * 8);
		if ((chosen >> s & 1) != 0)
			damage_flip(data + s * CHECKPOINT_CHUNK_BYTES, bits[s]);
	}
#pragma omp parallel for schedule(dynamic)
	for (int s = 0; s < SECTION_COUNT; s++)
		rc[s] = checkpoint_read_section(fd, info, (enum section)s, sections[s], 1, NULL);
	for (int s = 0; s < SECTION_COUNT; s++) {
		bool flipped = (chosen >> s & 1) != 0;

		if (rc[s] != (flipped ? -EBADMSG : 0))
			fail_msg("seed %" PRIu64 ", chunk %d, bit %" PRIu64 ": %d", damage_seed(),
				s, bits[s], rc[s]);
		if (flipped)
			damage_flip(data + s * CHECKPOINT_CHUNK_BYTES, bits[s]);
		count += flipped;
	}
	return count;
}

static void p11_random_flips_are_found_in_their_chunks(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed(), header_bytes, flips = 0;
	uint64_t wanted = damage_is_full() ? 1000000 : 400;
	uint64_t file_bytes = save_one(fx, &header_bytes);
	uint8_t *map = damage_map(fx->fd, NAME, file_bytes);
	float *sections[SECTION_COUNT];
	struct checkpoint_info info;
	int fd = checkpoint_open(fx->fd, NAME, &info, &fx->err);

	PASS(fd);
	assert_int_equal(info.chunk_count, SECTION_COUNT);
	for (int s = 0; s < SECTION_COUNT; s++)
		sections[s] = malloc(CHECKPOINT_CHUNK_BYTES);
	while (flips < wanted)
		flips += flip_some(fx, fd, &info, map + header_bytes, sections, &random);
	PASS(checkpoint_read(fd, &info, fx->loaded, NULL, 0, NULL, &fx->err));
	print_message("# %" PRIu64 " bits flipped\n", flips);
	for (int s = 0; s < SECTION_COUNT; s++)
		free(sections[s]);
	close(fd);
	checkpoint_info_fini(&info);
	munmap(map, file_bytes);
}

/* The same through a start: it takes the one before, and says which chunk. */
static void p1_a_start_never_takes_a_flipped_bit(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed(), header_bytes, file_bytes;
	uint32_t tries = damage_is_full() ? 1000 : 40;
	uint8_t *map;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	fixture_save(fx, 1, 10);
	file_bytes = save_one(fx, &header_bytes);
	map = damage_map(fx->fd, NAME, file_bytes);
	for (uint32_t i = 0; i < tries; i++) {
		uint64_t bit = damage_next(&random) % (file_bytes * 8);

		damage_flip(map, bit);
		fx->log[0] = '\0';
		fixture_expect_load(fx, 1, 10);
		if (!fixture_told(fx, NAME " is corrupt") && !fixture_told(fx, NAME " is refused"))
			fail_msg("bit %" PRIu64 " was told so: %s", bit, fx->log);
		damage_flip(map, bit);
	}
	fixture_expect_load(fx, 1, 20);
	munmap(map, file_bytes);
}

static int on_scrubbed(void *context, const struct scrub_result *result)
{
	*(enum checkpoint_state *)context = result->state;
	return 0;
}

/* What a scrub says of it, and the catalog then too. */
static enum checkpoint_state scrubbed(struct fixture *fx)
{
	enum checkpoint_state state = CHECKPOINT_FOUND;
	const struct scrub_options options = {
		.id = "step-000000020-b0001", .result = on_scrubbed, .context = &state};

	PASS(scrub_run(fx->dir, fx->run_fd, fx->run.id, &options, &fx->err));
	assert_int_equal(fixture_row_state(fx, 1, 20), state);
	return state;
}

/* The same by the way of a scrub, anywhere in header and data; and none is called so that is
 * whole. */
static void p11_a_scrub_finds_every_flipped_bit(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed(), header_bytes, file_bytes;
	uint32_t tries = damage_is_full() ? 20000 : 60;
	uint8_t *map;

	PASS(catalog_replace(fx->dir, fx->run_fd, NULL, NULL, &fx->err));
	file_bytes = save_one(fx, &header_bytes);
	map = damage_map(fx->fd, NAME, file_bytes);
	for (uint32_t i = 0; i < tries; i++) {
		/* One in two in the header, which is small. */
		uint64_t range = i % 2 == 0 ? header_bytes : file_bytes;
		uint64_t bit = damage_next(&random) % (range * 8);
		enum checkpoint_state found;

		damage_flip(map, bit);
		found = scrubbed(fx);
		damage_flip(map, bit);
		if (found != CHECKPOINT_CORRUPT && found != CHECKPOINT_REFUSED)
			fail_msg("seed %" PRIu64 ", bit %" PRIu64 " is called %s", damage_seed(),
				bit, checkpoint_state_name(found));
		if (i % 16 == 0)
			assert_int_equal(scrubbed(fx), CHECKPOINT_VERIFIED);
	}
	assert_int_equal(scrubbed(fx), CHECKPOINT_VERIFIED);
	munmap(map, file_bytes);
}

/* -- cuts -- */

static void expect_cut_found(struct fixture *fx, uint64_t size)
{
	int rc;

	fixture_truncate(fx->fd, NAME, size);
	rc = try_open(fx);
	if (rc != -EBADMSG)
		fail_msg("%" PRIu64 " bytes: %d", size, rc);
}

static void p1_a_file_cut_at_any_length_is_corrupt(void **state)
{
	struct fixture *fx = *state;
	uint64_t random = damage_seed(), header_bytes, file_bytes = save_one(fx, &header_bytes);
	uint64_t step = damage_is_full() ? 512 : 4096, size = file_bytes;

	/* Downwards: what is cut off is gone. Between two whole steps one more, anywhere. */
	while (size > header_bytes) {
		uint64_t below = size - step;

		expect_cut_found(fx, size - 1 - damage_next(&random) % (step - 1));
		expect_cut_found(fx, below);
		size = below;
	}
	while (size-- > 0)
		expect_cut_found(fx, size);
}

/* Zeros behind the end, as a file system leaves them that grew a file and lost its data. */
static void p1_a_file_that_grew_is_corrupt(void **state)
{
	struct fixture *fx = *state;
	uint64_t header_bytes, file_bytes = save_one(fx, &header_bytes);

	for (uint64_t grown = 1; grown <= 2 * CHECKPOINT_CHUNK_BYTES; grown *= 2)
		expect_cut_found(fx, file_bytes + grown);
	fixture_truncate(fx->fd, NAME, file_bytes);
	PASS(try_open(fx));
}

/* The size is right and the data are holes from somewhere on, in the middle of the weights or
 * earlier: behind them are fillers, which are zeros anyway. */
static void p1_lost_data_under_the_right_size_are_found(void **state)
{
	struct fixture *fx = *state;
	uint64_t header_bytes, file_bytes = save_one(fx, &header_bytes);

	for (uint64_t data = 1 << 18; data > 0; data /= 2) {
		struct checkpoint_info info;
		int fd;

		fixture_truncate(fx->fd, NAME, header_bytes + data);
		fixture_truncate(fx->fd, NAME, file_bytes);
		fd = checkpoint_open(fx->fd, NAME, &info, &fx->err);
		PASS(fd);
		assert_int_equal(
			checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &fx->err), -EBADMSG);
		close(fd);
		checkpoint_info_fini(&info);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(p11_every_bit_of_the_header_is_found),
		TEST(p11_every_bit_of_a_chunk_enters_its_digest),
		cmocka_unit_test(p11_every_bit_of_a_chunk_changes_its_seal),
		cmocka_unit_test_setup_teardown(
			p11_random_flips_are_found_in_their_chunks, setup_chunks, fixture_teardown),
		TEST(p1_a_start_never_takes_a_flipped_bit),
		TEST(p11_a_scrub_finds_every_flipped_bit),
		TEST(p1_a_file_cut_at_any_length_is_corrupt),
		TEST(p1_a_file_that_grew_is_corrupt),
		TEST(p1_lost_data_under_the_right_size_are_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
