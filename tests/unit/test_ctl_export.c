/* P12: an export is a folder that diffusers loads (tests/oracle/check_export.py tries the real
 * one): names, files, values, and the EMA weights bit for bit. P1, P9: a checkpoint with one wrong
 * bit is not exported, and nothing half-made stays. */
#include "tests/unit/store_fixture.h"

#include "tests/unit/fake_daemon.h"
#include "store/safetensors.h"

static json_t *load_json(const char *dir, const char *name)
{
	char path[600];
	json_error_t why;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
	if (json == NULL)
		fail_msg("%s: %s", path, why.text);
	return json;
}

static void out_path(const struct fixture *fx, char path[300])
{
	snprintf(path, 300, "%s/out", fx->dir);
}

static void expect_weights(struct fixture *fx, const char *out, uint64_t step)
{
	char unet[400];
	float *section = calloc(1, fx->table.section_bytes);

	snprintf(unet, sizeof(unet), "%s/unet", out);
	int fd = open(unet, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	PASS(st_read_section(
		fd, "diffusion_pytorch_model.safetensors", &fx->table, section, NULL, &fx->err));
	fixture_state(fx, 1, step);
	assert_memory_equal(
		section, fx->block + SECTION_EMA * fx->table.section_bytes, fx->table.tensor_bytes);
	free(section);
	close(fd);
}

/* As the worker leaves it: catalogued. */
static struct checkpoint_saved save(struct fixture *fx, uint64_t step)
{
	fixture_prepare(fx);
	return fixture_save(fx, 1, step);
}

static void test_p12_export_of_the_newest(void **state)
{
	struct fixture *fx = *state;
	char out[300];

	PASS(config_set(&fx->config, "head_dim", "0", "test", &fx->err));
	PASS(config_set(&fx->config, "channels", "32,64,96", "test", &fx->err));
	PASS(config_set(&fx->config, "beta_schedule", "scaled_linear", "test", &fx->err));
	PASS(config_set(&fx->config, "beta_start", "0.00085", "test", &fx->err));
	save(fx, 10);
	save(fx, 20);
	out_path(fx, out);
	struct ran ran = ckptctl("export", "--state", fx->dir, out, NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ASSERT_HAS(ran.out, "step-000000020-b0001");
	ran_fini(&ran);
	expect_weights(fx, out, 20);

	AUTO_JSON index = load_json(out, "model_index.json");
	assert_string_equal(json_get_text(index, "_class_name", ""), "DDPMPipeline");
	AUTO_JSON unet = load_json(out, "unet/config.json");
	assert_string_equal(json_get_text(unet, "_class_name", ""), "UNet2DModel");
	assert_true(json_is_null(json_object_get(unet, "attention_head_dim")));
	assert_true(json_is_null(json_object_get(unet, "num_class_embeds")));
	AUTO_JSON channels = json_pack("[i,i,i]", 32, 64, 96);
	assert_true(json_equal(json_object_get(unet, "block_out_channels"), channels));
	AUTO_JSON ups = json_pack("[s,s,s]", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D");
	assert_true(json_equal(json_object_get(unet, "up_block_types"), ups));
	AUTO_JSON scheduler = load_json(out, "scheduler/scheduler_config.json");
	assert_string_equal(json_get_text(scheduler, "beta_schedule", ""), "scaled_linear");
	assert_true(json_get_real(scheduler, "beta_start", 0) == 0.00085);
	assert_int_equal(json_get_int(scheduler, "num_train_timesteps", 0), 1000);
}

static void test_export_of_a_named_one_and_of_a_file(void **state)
{
	struct fixture *fx = *state;
	char out[300], file[600], name[64];

	save(fx, 10);
	save(fx, 20);
	out_path(fx, out);
	struct ran ran = ckptctl(
		"export", out, "--state", fx->dir, "--checkpoint", "step-000000010-b0001", NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ran_fini(&ran);
	expect_weights(fx, out, 10);
	fake_remove_dir(out);
	fixture_name(1, 10, name);
	snprintf(file, sizeof(file), "%s/checkpoints/%s", fx->dir, name);
	ran = ckptctl("export", out, "--checkpoint", file, NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ran_fini(&ran);
	expect_weights(fx, out, 10);
}

static void test_p12_a_model_with_classes_says_so(void **state)
{
	struct fixture *fx = *state;
	const uint32_t shape[] = {5, 128}, large[] = {300, 1024};
	char out[300];

	tensor_table_fini(&fx->table);
	tensor_table_init(&fx->table);
	tensor_table_add(&fx->table, "class_embedding.weight", 2, shape);
	tensor_table_add(&fx->table, "conv_in.weight", 2, large);
	PASS(tensor_table_layout(&fx->table, &fx->err));
	save(fx, 10);
	out_path(fx, out);
	struct ran ran = ckptctl("export", "--state", fx->dir, out, NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ASSERT_HAS(ran.out, "5 classes");
	AUTO_JSON unet = load_json(out, "unet/config.json");
	assert_int_equal(json_get_int(unet, "num_class_embeds", 0), 5);
	ran_fini(&ran);
}

static void test_p1_a_flipped_bit_is_not_exported(void **state)
{
	struct fixture *fx = *state;
	char out[300], name[64];

	save(fx, 10);
	fixture_name(1, 10, name);
	/* In the EMA section: the second of four. */
	fixture_flip(fx->fd, name,
		fixture_file_bytes(fx->fd, name) - 3 * fx->table.section_bytes + 12345);
	out_path(fx, out);
	struct ran ran = ckptctl("export", "--state", fx->dir, out, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "does not match its digest");
	assert_int_equal(access(out, F_OK), -1);
	ran_fini(&ran);
}

static void test_p9_a_folder_in_use_is_refused(void **state)
{
	struct fixture *fx = *state;

	save(fx, 10);
	struct ran ran = ckptctl("export", "--state", fx->dir, fx->dir, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "is not empty");
	assert_true(fixture_exists(fx->run_fd, "run.json"));
	ran_fini(&ran);
	ran = ckptctl("export", "--state", fx->dir, "/nonexistent/out", NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ran_fini(&ran);
	ran = ckptctl("export", "--state", "/nonexistent", "out", NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ran_fini(&ran);
}

/* -- inspect -- */

static void test_inspect_shows_a_checkpoint(void **state)
{
	struct fixture *fx = *state;
	char file[600], name[64];

	struct checkpoint_saved saved = save(fx, 10);
	char root[DIGEST_HEX_SIZE];
	digest_to_hex(&saved.root, root);
	fixture_name(1, 10, name);
	snprintf(file, sizeof(file), "%s/checkpoints/%s", fx->dir, name);
	struct ran ran = ckptctl("inspect", file, "--verify", NULL);
	if (ran.code != CTL_OK)
		fail_msg("%s", ran.err);
	ASSERT_HAS(ran.out, "step-000000010-b0001");
	ASSERT_HAS(ran.out, root);
	ASSERT_HAS(ran.out, "every chunk matches its digest");
	ran_fini(&ran);
	ran = ckptctl("inspect", "--json", "--verify", file, NULL);
	assert_int_equal(ran.code, CTL_OK);
	AUTO_JSON json = json_loads(ran.out, 0, NULL);
	const json_t *checkpoint = json_object_get(json, "checkpoint");
	assert_true(json_get_bool(json, "verified", false));
	assert_int_equal(json_get_int(checkpoint, "step", 0), 10);
	assert_string_equal(json_get_text(checkpoint, "root", ""), root);
	ran_fini(&ran);
	/* A flipped bit in the data: the header still shows, the verdict is clear. */
	fixture_flip(fx->fd, name, fixture_file_bytes(fx->fd, name) - 100);
	ran = ckptctl("inspect", file, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ran_fini(&ran);
	ran = ckptctl("inspect", file, "--verify", NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "does not match its digest");
	ran_fini(&ran);
	/* In the header: it only claims to be a checkpoint. */
	fixture_flip(fx->fd, name, 200);
	ran = ckptctl("inspect", file, NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ran_fini(&ran);
}

static void test_inspect_shows_any_safetensors_file(void **state)
{
	struct fixture *fx = *state;
	char file[300];

	fixture_state(fx, 1, 3);
	PASS(st_write_section(
		fx->run_fd, "plain.safetensors", &fx->table, (float *)fx->block, &fx->err));
	snprintf(file, sizeof(file), "%s/plain.safetensors", fx->dir);
	struct ran ran = ckptctl("inspect", file, NULL);
	assert_int_equal(ran.code, CTL_OK);
	ASSERT_HAS(ran.out, "conv_out.weight");
	ASSERT_HAS(ran.out, "[5, 3]");
	ran_fini(&ran);
	ran = ckptctl("inspect", file, "--verify", NULL);
	assert_int_equal(ran.code, CTL_FAILED);
	ASSERT_HAS(ran.err, "no digests");
	ran_fini(&ran);
	/* Not safetensors at all. */
	fixture_write(fx->run_fd, "short", "abc", 3);
	fixture_write(fx->run_fd, "text", "this is no header, only text", 28);
	const char *const names[] = {"short", "text", "missing", "."};
	for (size_t i = 0; i < 4; i++) {
		snprintf(file, sizeof(file), "%s/%s", fx->dir, names[i]);
		ran = ckptctl("inspect", file, NULL);
		assert_int_equal(ran.code, CTL_FAILED);
		assert_true(strlen(ran.err) > 10);
		ran_fini(&ran);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_p12_export_of_the_newest),
		TEST(test_export_of_a_named_one_and_of_a_file),
		TEST(test_p12_a_model_with_classes_says_so),
		TEST(test_p1_a_flipped_bit_is_not_exported),
		TEST(test_p9_a_folder_in_use_is_refused),
		TEST(test_inspect_shows_a_checkpoint),
		TEST(test_inspect_shows_any_safetensors_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
