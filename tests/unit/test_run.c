/* P8, P9, P10: whose folder it is: run.json through its life, its loss, the lock, and the one line
 * that says which identity key differs. */
#include "tests/unit/store_fixture.h"

static void expect_same(const struct run *a, const struct run *b)
{
	assert_memory_equal(a->id, b->id, RUN_ID_SIZE);
	assert_string_equal(a->id_hex, b->id_hex);
	assert_string_equal(a->created, b->created);
	assert_int_equal(a->wanted, b->wanted);
	assert_int_equal(a->power_paused, b->power_paused);
	assert_int_equal(a->verified_branch, b->verified_branch);
	assert_true(json_equal(a->identity, b->identity));
}

static void a_run_is_created_once_and_keeps_what_is_stored(void **state)
{
	struct fixture *fx = *state;
	struct run loaded, other;

	PASS(run_load(fx->run_fd, &loaded, &fx->err));
	expect_same(&loaded, &fx->run);
	assert_int_equal(loaded.wanted, WANTED_RUN);
	assert_int_equal(strlen(loaded.id_hex), 32);
	assert_int_equal(run_create(fx->run_fd, &fx->config, &other, &fx->err), -EEXIST);
	loaded.wanted = WANTED_PAUSED;
	loaded.power_paused = true;
	loaded.verified_branch = 3;
	PASS(run_store(fx->run_fd, &loaded, &fx->err));
	PASS(run_load(fx->run_fd, &other, &fx->err));
	expect_same(&loaded, &other);
	run_fini(&loaded);
	run_fini(&other);
}

static void p9_missing_or_broken_is_told_apart(void **state)
{
	struct fixture *fx = *state;
	struct run run;
	char *text;
	size_t size;

	assert_int_equal(file_read_all(fx->run_fd, "run.json", 100000, &text, &size), 0);
	for (size_t n = 0; n < size; n++) {
		bool space = text[n] == ' ' || text[n] == '\n';

		fixture_write(fx->run_fd, "run.json", text, size);
		fixture_flip(fx->run_fd, "run.json", n);
		if (run_load(fx->run_fd, &run, &fx->err) == 0) {
			if (!space)
				fail_msg("a flip at byte %zu is believed", n);
			run_fini(&run);
		}
	}
	for (size_t n = 0; n < size; n += 7) {
		fixture_write(fx->run_fd, "run.json", text, n);
		assert_int_equal(run_load(fx->run_fd, &run, &fx->err), -EBADMSG);
	}
	free(text);
	assert_int_equal(unlinkat(fx->run_fd, "run.json", 0), 0);
	assert_int_equal(run_load(fx->run_fd, &run, &fx->err), -ENOENT);
	assert_non_null(strstr(fx->err.text, "ckptctl init"));
}

static void p7_failed_store_keeps_the_old(void **state)
{
	static const char *const plans[] = {
		"open:1:EIO", "pwrite:1:ENOSPC", "fsync:1:EIO", "rename:1:EIO"};
	struct fixture *fx = *state;

	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		struct run changed = fx->run, loaded;

		changed.wanted = WANTED_STOPPED;
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		assert_true(run_store(fx->run_fd, &changed, &fx->err) < 0);
		sys_fault_plan(NULL);
		PASS(run_load(fx->run_fd, &loaded, &fx->err));
		expect_same(&loaded, &fx->run);
		run_fini(&loaded);
	}
}

static void p8_lost_run_is_remade_from_its_checkpoints(void **state)
{
	struct fixture *fx = *state;
	struct checkpoint_saved saved;
	struct run remade, loaded;

	assert_int_equal(run_remake(fx->run_fd, &remade, &fx->err), -ENOENT);
	PASS(fixture_try_save(fx, 1, 10, &saved));
	PASS(fixture_try_save(fx, 1, 20, &saved));
	PASS(fixture_try_save(fx, 2, 5, &saved));
	fixture_write(fx->fd, "step-000000030-b0001.safetensors", "", 0); /* has no say */
	assert_int_equal(unlinkat(fx->run_fd, "run.json", 0), 0);
	PASS(run_remake(fx->run_fd, &remade, &fx->err));
	assert_memory_equal(remade.id, fx->run.id, RUN_ID_SIZE);
	assert_true(json_equal(remade.identity, fx->run.identity));
	assert_int_equal(remade.verified_branch, 2);
	PASS(run_check_identity(&remade, &fx->config, &fx->err));
	PASS(run_load(fx->run_fd, &loaded, &fx->err));
	expect_same(&remade, &loaded);
	run_fini(&remade);
	run_fini(&loaded);
	/* Two runs in one folder: nobody can say whose it is. */
	fx->run.id[3] ^= 1;
	PASS(fixture_try_save(fx, 1, 40, &saved));
	assert_int_equal(run_remake(fx->run_fd, &remade, &fx->err), -EBADMSG);
	assert_non_null(strstr(fx->err.text, "different runs"));
}

static void only_broken_checkpoints_remake_nothing(void **state)
{
	struct fixture *fx = *state;
	struct run remade;

	fixture_write(fx->fd, "step-000000030-b0001.safetensors", "", 0);
	assert_int_equal(run_remake(fx->run_fd, &remade, &fx->err), -EBADMSG);
}

static void p9_identity_difference_is_one_line(void **state)
{
	struct fixture *fx = *state;
	struct config changed = fx->config;

	PASS(run_check_identity(&fx->run, &fx->config, &fx->err));
	PASS(config_set(&changed, "learning_rate", "0.5", "test", &fx->err));
	PASS(config_set(&changed, "keep_last", "9", "test", &fx->err));
	PASS(run_check_identity(&fx->run, &changed, &fx->err));
	PASS(config_set(&changed, "image_size", "64", "test", &fx->err));
	assert_int_equal(run_check_identity(&fx->run, &changed, &fx->err), -ESTALE);
	assert_non_null(strstr(fx->err.text, "image_size is '64'"));
	assert_non_null(strstr(fx->err.text, "made with '32'"));
	assert_non_null(strstr(fx->err.text, "use another run (state_dir)"));
	assert_null(strchr(fx->err.text, '\n'));
	/* A run made before a key existed has its default. */
	json_object_del(fx->run.identity, "seed");
	PASS(run_check_identity(&fx->run, &fx->config, &fx->err));
}

static void p10_one_owner(void **state)
{
	struct fixture *fx = *state;
	int fd, other, status;
	pid_t owner = 0, pid;

	PASS(run_lock(fx->run_fd, &fd, &owner, &fx->err));
	assert_int_equal(run_lock(fx->run_fd, &other, &owner, &fx->err), -EWOULDBLOCK);
	assert_int_equal(owner, getpid());
	assert_non_null(strstr(fx->err.text, "owned by process"));
	/* A worker that inherits the descriptor holds the run after its parent has let go. */
	int pipe_fds[2];

	assert_int_equal(pipe(pipe_fds), 0);
	pid = fork();
	if (pid == 0) {
		char byte;

		close(pipe_fds[1]);
		_exit(read(pipe_fds[0], &byte, 1) == 0 ? 0 : 1);
	}
	close(pipe_fds[0]);
	close(fd);
	assert_int_equal(run_lock(fx->run_fd, &other, &owner, &fx->err), -EWOULDBLOCK);
	close(pipe_fds[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	PASS(run_lock(fx->run_fd, &fd, &owner, &fx->err));
	close(fd);
}

static void last_good_is_read_back(void **state)
{
	struct fixture *fx = *state;
	struct config loaded;
	char path[300];

	PASS(config_set(&fx->config, "learning_rate", "0.0123", "test", &fx->err));
	PASS(run_write_last_good(fx->run_fd, &fx->config, &fx->err));
	snprintf(path, sizeof(path), "%s/last-good.conf", fx->dir);
	config_defaults(&loaded);
	PASS(config_parse_file(&loaded, path, &fx->err));
	for (size_t i = 0; i < config_key_count(); i++)
		assert_true(config_value_equal(&loaded, &fx->config, config_key_at(i)));
}

static void folders_are_made_only_when_asked(void **state)
{
	struct fixture *fx = *state;
	char path[300];
	struct stat stat;
	int fd;

	snprintf(path, sizeof(path), "%s/another", fx->dir);
	assert_int_equal(run_open_dir(path, false, &fx->err), -ENOENT);
	fd = run_open_dir(path, true, &fx->err);
	PASS(fd);
	assert_int_equal(fstatat(fd, "checkpoints", &stat, 0), 0);
	assert_int_equal(stat.st_mode & 07, 0); /* nobody else */
	assert_int_equal(fstatat(fd, "previews", &stat, 0), 0);
	close(fd);
	for (int wanted = WANTED_RUN; wanted <= WANTED_STOPPED; wanted++)
		assert_non_null(wanted_name((enum wanted)wanted));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup_small, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_run_is_created_once_and_keeps_what_is_stored),
		TEST(p9_missing_or_broken_is_told_apart),
		TEST(p7_failed_store_keeps_the_old),
		TEST(p8_lost_run_is_remade_from_its_checkpoints),
		TEST(only_broken_checkpoints_remake_nothing),
		TEST(p9_identity_difference_is_one_line),
		TEST(p10_one_owner),
		TEST(last_good_is_read_back),
		TEST(folders_are_made_only_when_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
