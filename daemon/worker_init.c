/* See worker_init.h. A diffusers folder is either a pipeline (unet/config.json) or the UNet itself
 * (config.json). Its configuration must describe the net that ours describes: weights of the same
 * shapes can still mean another net (heads, padding, embedding order). */
#include "daemon/worker_init.h"

#include "base/file.h"
#include "base/sys.h"
#include "proto/json.h"
#include "store/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS_FILE "diffusion_pytorch_model.safetensors"
#define CONFIG_FILE "config.json"
#define CONFIG_BYTES_MAX ((size_t)1 << 20)

/* A key of config.json: what the class UNet2DModel takes when it is missing, which key of ours
 * decides it ("" when we know only one value). */
struct peer_key {
	const char *key, *class_default, *ours;
};

static const struct peer_key peer_keys[] = {
	{"in_channels", "3", ""},
	{"out_channels", "3", ""},
	{"block_out_channels", "[224, 448, 672, 896]", "channels"},
	{"layers_per_block", "2", "layers_per_block"},
	{"down_block_types",
		"[\"DownBlock2D\", \"AttnDownBlock2D\", \"AttnDownBlock2D\", \"AttnDownBlock2D\"]",
		"down_blocks"},
	{"up_block_types",
		"[\"AttnUpBlock2D\", \"AttnUpBlock2D\", \"AttnUpBlock2D\", \"UpBlock2D\"]",
		"up_blocks"},
	{"attention_head_dim", "8", "head_dim"},
	{"norm_num_groups", "32", "groups"},
	{"norm_eps", "1e-05", "norm_eps"},
	{"downsample_padding", "1", "downsample_padding"},
	{"flip_sin_to_cos", "true", "flip_sin_to_cos"},
	{"freq_shift", "0", "freq_shift"},
	{"num_class_embeds", "null", "labels"},
	{"class_embed_type", "null", ""},
	{"center_input_sample", "false", ""},
	{"mid_block_scale_factor", "1", ""},
	{"act_fn", "\"silu\"", ""},
	{"add_attention", "true", ""},
	{"attn_norm_num_groups", "null", ""},
	{"resnet_time_scale_shift", "\"default\"", ""},
	{"time_embedding_type", "\"positional\"", ""},
	{"downsample_type", "\"conv\"", ""},
	{"upsample_type", "\"conv\"", ""},
};
#define PEER_KEY_COUNT (sizeof(peer_keys) / sizeof(peer_keys[0]))

static json_t *block_types(const struct unet_config *config, bool up)
{
	json_t *types = json_array();

	for (uint32_t i = 0; i < config->level_count; i++) {
		bool attention = up ? config->up_attention[i] : config->down_attention[i];
		const char *name = up ? "UpBlock2D" : "DownBlock2D";
		char text[32];

		snprintf(text, sizeof(text), "%s%s", attention ? "Attn" : "", name);
		json_array_append_new(types, json_string(text));
	}
	return types;
}

static json_t *channel_list(const struct unet_config *config)
{
	json_t *channels = json_array();

	for (uint32_t i = 0; i < config->level_count; i++)
		json_array_append_new(channels, json_integer(config->channels[i]));
	return channels;
}

static json_t *integer_or_null(uint32_t value)
{
	return value ? json_integer(value) : json_null();
}

/* Our net in diffusers' words; keys that are missing here have one allowed value, the default. */
static json_t *our_config(const struct unet_config *config)
{
	return json_pack("{s:o,s:o,s:o,s:i,s:o,s:i,s:f,s:i,s:b,s:i,s:o}", "block_out_channels",
		channel_list(config), "down_block_types", block_types(config, false),
		"up_block_types", block_types(config, true), "layers_per_block",
		(int)config->layers_per_block, "attention_head_dim",
		integer_or_null(config->head_dim), "norm_num_groups", (int)config->groups,
		"norm_eps", (double)config->norm_eps, "downsample_padding",
		(int)config->downsample_padding, "flip_sin_to_cos", (int)config->flip_sin_to_cos,
		"freq_shift", (int)config->freq_shift, "num_class_embeds",
		integer_or_null(config->class_count));
}

static bool same_value(const json_t *a, const json_t *b)
{
	if (json_is_number(a) && json_is_number(b))
		return fabs(json_number_value(a) - json_number_value(b)) <=
			1e-6 * fabs(json_number_value(a));
	return json_equal(a, b);
}

/* Appends "; key: theirs X, ours Y (our key)" to list. */
static void name_difference(const struct peer_key *key, const json_t *theirs, const json_t *ours,
	char *list, size_t size)
{
	char *a = json_dumps(theirs, JSON_ENCODE_ANY | JSON_COMPACT);
	char *b = json_dumps(ours, JSON_ENCODE_ANY | JSON_COMPACT);
	size_t used = strlen(list);

	snprintf(list + used, size - used, "%s%s is %s there and %s here%s%s%s", *list ? "; " : "",
		key->key, a ? a : "?", b ? b : "?", *key->ours ? " (" : "", key->ours,
		*key->ours ? ")" : "");
	free(a);
	free(b);
}

static int compare_config(
	const json_t *theirs, const struct model *model, const char *folder, struct error *err)
{
	AUTO_JSON ours = our_config(&model->config);
	char list[ERROR_TEXT_MAX] = "";

	if (!ours)
		return error_set(err, -ENOMEM, "no memory to read %s", folder);
	for (size_t i = 0; i < PEER_KEY_COUNT; i++) {
		const struct peer_key *key = &peer_keys[i];
		AUTO_JSON fallback = json_loads(key->class_default, JSON_DECODE_ANY, NULL);
		const json_t *a = json_object_get(theirs, key->key);
		const json_t *b = json_object_get(ours, key->key);

		a = a ? a : fallback;
		b = b ? b : fallback;
		if (!same_value(a, b))
			name_difference(key, a, b, list, sizeof(list));
	}
	if (!*list)
		return 0;
	return error_set(err, -EINVAL, "init: %s is another net: %s", folder, list);
}

/* Files written before 2023 name the projections of an attention otherwise. */
static const char *modern_name(const char *name, char buffer[TENSOR_NAME_MAX])
{
	static const struct {
		const char *old, *new;
	} parts[] = {
		{".query.", ".to_q."},
		{".key.", ".to_k."},
		{".value.", ".to_v."},
		{".proj_attn.", ".to_out.0."},
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		const char *at = strstr(name, parts[i].old);
		int n;

		if (!at)
			continue;
		n = snprintf(buffer, TENSOR_NAME_MAX, "%.*s%s%s", (int)(at - name), name,
			parts[i].new, at + strlen(parts[i].old));
		return n < TENSOR_NAME_MAX ? buffer : NULL;
	}
	return name;
}

static int check_finite(const struct model *model, const float *section, struct error *err)
{
	for (uint32_t i = 0; i < model->table.count; i++) {
		const struct tensor_spec *spec = &model->table.specs[i];
		const float *values = section + spec->offset / sizeof(float);

		for (uint64_t k = 0; k < spec->elem_count; k++)
			if (!isfinite(values[k]))
				return error_set(err, -EBADMSG,
					"init: %s holds a value that is not finite", spec->name);
	}
	return 0;
}

/* The folder with config.json: folder/unet, else folder itself. */
static int open_unet_folder(const char *folder, struct error *err)
{
	struct stat file;
	int fd = sys_openat(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), inner;

	if (fd < 0)
		return error_set(err, fd,
			"init: cannot open the diffusers folder %s: %s (init is 'pytorch', "
			"'zero_out' or "
			"a folder)",
			folder, strerror(-fd));
	if (sys_fstatat(fd, CONFIG_FILE, &file) == 0)
		return fd;
	inner = sys_openat(fd, "unet", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	sys_close(fd);
	if (inner < 0 || sys_fstatat(inner, CONFIG_FILE, &file) < 0) {
		if (inner >= 0)
			sys_close(inner);
		return error_set(err, -ENOENT,
			"init: %s is not a diffusers folder: neither " CONFIG_FILE
			" nor unet/" CONFIG_FILE " is there",
			folder);
	}
	return inner;
}

static int init_from_folder(
	const struct model *model, const char *folder, float *section, struct error *err)
{
	AUTO_JSON theirs = NULL;
	json_error_t parse;
	char *text = NULL;
	size_t size;
	int fd = open_unet_folder(folder, err), r;

	if (fd < 0)
		return fd;
	r = file_read_all(fd, CONFIG_FILE, CONFIG_BYTES_MAX, &text, &size);
	if (r < 0) {
		error_set(err, r, "init: cannot read %s of %s: %s", CONFIG_FILE, folder,
			strerror(-r));
		goto done;
	}
	theirs = json_loadb(text, size, JSON_REJECT_DUPLICATES, &parse);
	if (!json_is_object(theirs)) {
		r = error_set(err, -EBADMSG, "init: %s of %s is not JSON: line %d: %s", CONFIG_FILE,
			folder, parse.line, parse.text);
		goto done;
	}
	r = compare_config(theirs, model, folder, err);
	if (r == 0) {
		r = st_read_section(fd, WEIGHTS_FILE, &model->table, section, modern_name, err);
		if (r < 0)
			error_prefix(err, r, "init: %s", folder);
	}
	if (r == 0)
		r = check_finite(model, section, err);
done:
	free(text);
	sys_close(fd);
	return r;
}

int init_weights(const struct model *model, const struct config *config, const struct rng *rng,
	float *section, struct error *err)
{
	bool zero_out = strcmp(config->init, "zero_out") == 0;

	if (!zero_out && strcmp(config->init, "pytorch") != 0)
		return init_from_folder(model, config->init, section, err);
	unet_init_weights(&model->config, &model->table, rng, zero_out, section);
	return 0;
}
