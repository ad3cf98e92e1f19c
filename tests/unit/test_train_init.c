/* Weights from a diffusers folder (P12 the other way round): new and legacy names, and every reason
 * to refuse one (P9). */
#include "base/file.h"
#include "daemon/worker_init.h"
#include "store/safetensors.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* What diffusers 0.27 writes for the net below, shortened to the keys that matter. */
#define PEER_CONFIG                                                                                \
	"{\"_class_name\": \"UNet2DModel\", \"act_fn\": \"silu\", \"attention_head_dim\": 8,"      \
	" \"block_out_channels\": [16, 32], \"down_block_types\": [\"DownBlock2D\","               \
	" \"AttnDownBlock2D\"], \"up_block_types\": [\"AttnUpBlock2D\", \"UpBlock2D\"],"           \
	" \"downsample_padding\": 1, \"flip_sin_to_cos\": true, \"freq_shift\": 0,"                \
	" \"layers_per_block\": 1, \"norm_eps\": 1e-05, \"norm_num_groups\": %s,"                  \
	" \"num_class_embeds\": null, \"sample_size\": 8, \"class_embed_type\": null}"

struct bench {
	char dir[64];
	int fd;
	struct config config;
	struct model model;
	float *weights, *found;
};

static void bench_open(struct bench *bench)
{
	static const char *const settings[][2] = {{"image_size", "8"}, {"channels", "16,32"},
		{"down_blocks", "Down,AttnDown"}, {"up_blocks", "AttnUp,Up"}, {"head_dim", "8"},
		{"groups", "8"}};
	struct error err;
	struct rng rng;

	config_defaults(&bench->config);
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		assert_int_equal(
			config_set(&bench->config, settings[i][0], settings[i][1], "test", &err),
			0);
	if (model_init(&bench->model, &bench->config, 0, &err) < 0)
		fail_msg("%s", err.text);
	bench->weights = calloc(1, bench->model.table.section_bytes);
	bench->found = calloc(1, bench->model.table.section_bytes);
	rng_init(&rng, 3);
	unet_init_weights(&bench->model.config, &bench->model.table, &rng, false, bench->weights);
	strcpy(bench->dir, "/tmp/ckptd-init-XXXXXX");
	assert_non_null(mkdtemp(bench->dir));
	bench->fd = open(bench->dir, O_RDONLY | O_DIRECTORY);
	snprintf(bench->config.init, sizeof(bench->config.init), "%s", bench->dir);
}

static void bench_close(struct bench *bench)
{
	unlinkat(bench->fd, "unet/config.json", 0);
	unlinkat(bench->fd, "unet/diffusion_pytorch_model.safetensors", 0);
	unlinkat(bench->fd, "unet", AT_REMOVEDIR);
	unlinkat(bench->fd, "config.json", 0);
	unlinkat(bench->fd, "diffusion_pytorch_model.safetensors", 0);
	close(bench->fd);
	assert_int_equal(rmdir(bench->dir), 0);
	free(bench->weights);
	free(bench->found);
	model_fini(&bench->model);
}

static void write_peer(
	int dir, const struct tensor_table *table, const float *section, const char *groups)
{
	char text[1024];
	struct error err;
	int n = snprintf(text, sizeof(text), PEER_CONFIG, groups);

	assert_int_equal(file_replace(dir, "config.json", text, (size_t)n, 0644), 0);
	if (st_write_section(dir, "diffusion_pytorch_model.safetensors", table, section, &err) < 0)
		fail_msg("%s", err.text);
}

static void expect_weights(struct bench *bench)
{
	struct error err;
	struct rng rng;

	rng_init(&rng, 1);
	if (init_weights(&bench->model, &bench->config, &rng, bench->found, &err) < 0)
		fail_msg("%s", err.text);
	assert_memory_equal(bench->weights, bench->found, bench->model.table.section_bytes);
}

static void expect_refusal(struct bench *bench, const char *a, const char *b)
{
	struct error err;
	struct rng rng;

	rng_init(&rng, 1);
	assert_true(init_weights(&bench->model, &bench->config, &rng, bench->found, &err) < 0);
	if (!strstr(err.text, a) || !strstr(err.text, b))
		fail_msg("'%s' names not both %s and %s", err.text, a, b);
}

static void p12_a_unet_folder_and_a_pipeline_folder_are_read(void **unused)
{
	struct bench bench;
	int inner;

	bench_open(&bench);
	assert_int_equal(mkdirat(bench.fd, "unet", 0755), 0);
	inner = openat(bench.fd, "unet", O_RDONLY | O_DIRECTORY);
	write_peer(inner, &bench.model.table, bench.weights, "8");
	close(inner);
	expect_weights(&bench);
	memset(bench.found, 0, bench.model.table.section_bytes);
	write_peer(bench.fd, &bench.model.table, bench.weights, "8");
	expect_weights(&bench);
	bench_close(&bench);
}

/* The name that files of before 2023 have for ours. */
static void legacy_name(const char *name, char ret[TENSOR_NAME_MAX])
{
	static const char *const parts[][2] = {{".to_q.", ".query."}, {".to_k.", ".key."},
		{".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}};

	strcpy(ret, name);
	for (size_t i = 0; i < 4; i++) {
		const char *at = strstr(name, parts[i][0]);

		if (at)
			snprintf(ret, TENSOR_NAME_MAX, "%.*s%s%s", (int)(at - name), name,
				parts[i][1], at + strlen(parts[i][0]));
	}
}

static void p12_legacy_names_of_attention_are_read(void **unused)
{
	struct tensor_table legacy;
	struct bench bench;
	struct error err;
	float *section;

	bench_open(&bench);
	tensor_table_init(&legacy);
	for (uint32_t i = 0; i < bench.model.table.count; i++) {
		const struct tensor_spec *spec = &bench.model.table.specs[i];
		char name[TENSOR_NAME_MAX];

		legacy_name(spec->name, name);
		assert_int_equal(tensor_table_add(&legacy, name, spec->dim_count, spec->shape), 0);
	}
	assert_int_equal(tensor_table_layout(&legacy, &err), 0);
	section = calloc(1, legacy.section_bytes);
	for (uint32_t i = 0; i < bench.model.table.count; i++) {
		const struct tensor_spec *spec = &bench.model.table.specs[i];
		char name[TENSOR_NAME_MAX];

		legacy_name(spec->name, name);
		memcpy((char *)section + tensor_table_find(&legacy, name)->offset,
			(char *)bench.weights + spec->offset, spec->elem_count * sizeof(float));
	}
	assert_non_null(tensor_table_find(&legacy, "mid_block.attentions.0.proj_attn.weight"));
	write_peer(bench.fd, &legacy, section, "8");
	expect_weights(&bench);
	free(section);
	tensor_table_fini(&legacy);
	bench_close(&bench);
}

static void p9_another_net_is_refused_with_the_key_that_differs(void **unused)
{
	struct bench bench;

	bench_open(&bench);
	write_peer(bench.fd, &bench.model.table, bench.weights, "4");
	expect_refusal(&bench, "norm_num_groups is 4 there and 8 here", "groups");
	write_peer(bench.fd, &bench.model.table, bench.weights, "null");
	expect_refusal(&bench, "norm_num_groups is null", "groups");
	bench_close(&bench);
}

static void p9_a_missing_tensor_a_nan_and_a_missing_folder_are_named(void **unused)
{
	struct tensor_table shorter;
	struct bench bench;
	struct error err;

	bench_open(&bench);
	expect_refusal(&bench, "is not a diffusers folder", bench.dir);

	tensor_table_init(&shorter);
	for (uint32_t i = 0; i < bench.model.table.count; i++) {
		const struct tensor_spec *spec = &bench.model.table.specs[i];

		if (strcmp(spec->name, "conv_out.bias") != 0)
			assert_int_equal(tensor_table_add(&shorter, spec->name, spec->dim_count,
						 spec->shape),
				0);
	}
	assert_int_equal(tensor_table_layout(&shorter, &err), 0);
	write_peer(bench.fd, &shorter, bench.weights, "8");
	tensor_table_fini(&shorter);
	expect_refusal(&bench, "conv_out.bias", bench.dir);

	bench.weights[100] = NAN;
	write_peer(bench.fd, &bench.model.table, bench.weights, "8");
	expect_refusal(&bench, "not finite", "conv_");

	strcpy(bench.config.init, "/nonexistent/model");
	expect_refusal(&bench, "/nonexistent/model", "No such file");
	bench_close(&bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p12_a_unet_folder_and_a_pipeline_folder_are_read),
		cmocka_unit_test(p12_legacy_names_of_attention_are_read),
		cmocka_unit_test(p9_another_net_is_refused_with_the_key_that_differs),
		cmocka_unit_test(p9_a_missing_tensor_a_nan_and_a_missing_folder_are_named),
	};

	return cmocka_run_group_tests_name("init", tests, NULL, NULL);
}
