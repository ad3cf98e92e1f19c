/* What no single key of the configuration can know. */
#include "base/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCRUB_RATE_MIN 0.001 /* MiB/s: a GiB in twelve days */

/* The next word of a comma-separated list, trimmed; NULL at the end. */
static const char *next_word(const char **at, char *word, size_t size)
{
	if (!*at)
		return NULL;
	const char *begin = *at + strspn(*at, " ");
	size_t length = strcspn(begin, ",");

	*at = begin[length] ? begin + length + 1 : NULL;
	while (length > 0 && begin[length - 1] == ' ')
		length--;
	if (length >= size)
		length = size - 1;
	memcpy(word, begin, length);
	word[length] = 0;
	return word;
}

static int parse_channels(const char *text, struct config_levels *levels, struct error *err)
{
	char word[64], *end;

	levels->count = 0;
	while (next_word(&text, word, sizeof(word))) {
		unsigned long value = strtoul(word, &end, 10);

		if (end == word || *end || *word == '-' || value == 0 || value > 65536)
			return error_set(err, -EINVAL,
				"[model] channels: '%s' is no width: give 1 to 65536, such as "
				"32,64,128",
				word);
		if (levels->count == CONFIG_LEVELS_MAX)
			return error_set(err, -EINVAL, "[model] channels: at most %d levels",
				CONFIG_LEVELS_MAX);
		levels->channels[levels->count++] = (uint32_t)value;
	}
	return 0;
}

static int parse_blocks(const char *key, const char *text, const char *plain, const char *attention,
	uint32_t level_count, bool *ret, struct error *err)
{
	char word[64];
	uint32_t count = 0;

	while (next_word(&text, word, sizeof(word))) {
		bool attends = strcmp(word, attention) == 0;

		if (!attends && strcmp(word, plain) != 0)
			return error_set(err, -EINVAL, "[model] %s: '%s': give %s or %s", key, word,
				plain, attention);
		if (count < level_count)
			ret[count] = attends;
		count++;
	}
	if (count != level_count)
		return error_set(err, -EINVAL,
			"[model] %s names %u blocks, channels %u: give one for each level", key,
			count, level_count);
	return 0;
}

int config_levels(const struct config *config, struct config_levels *ret, struct error *err)
{
	*ret = (struct config_levels){0};
	int code = parse_channels(config->channels, ret, err);

	if (code == 0)
		code = parse_blocks("down_blocks", config->down_blocks, "Down", "AttnDown",
			ret->count, ret->down_attention, err);
	if (code == 0)
		code = parse_blocks("up_blocks", config->up_blocks, "Up", "AttnUp", ret->count,
			ret->up_attention, err);
	return code;
}

static int check_model(const struct config *config, struct error *err)
{
	struct config_levels levels;
	int code = config_levels(config, &levels, err);

	if (code < 0)
		return code;
	int64_t divisor = INT64_C(1) << (levels.count - 1);
	if (config->image_size % divisor)
		return error_set(err, -EINVAL,
			"[data] image_size = %lld: with %u levels it must be divisible by %lld",
			(long long)config->image_size, levels.count, (long long)divisor);
	for (uint32_t i = 0; i < levels.count; i++) {
		uint32_t width = levels.channels[i];
		/* The deepest level attends in the middle block too. */
		bool attends = levels.down_attention[i] ||
			levels.up_attention[levels.count - 1 - i] || i == levels.count - 1;

		if (width % (uint32_t)config->groups)
			return error_set(err, -EINVAL,
				"[model] groups = %lld does not divide the width %u of channels",
				(long long)config->groups, width);
		if (attends && config->head_dim && width % (uint32_t)config->head_dim)
			return error_set(err, -EINVAL,
				"[model] head_dim = %lld does not divide the width %u that attends",
				(long long)config->head_dim, width);
	}
	if (levels.channels[0] % 2)
		return error_set(err, -EINVAL,
			"[model] channels: the first width must be even for the time embedding");
	return 0;
}

int config_check(const struct config *config, struct error *err)
{
	if (strcmp(config->data, "cars") != 0 && strncmp(config->data, "folder:", 7) != 0)
		return error_set(err, -EINVAL, "[data] data = %s: give 'cars' or 'folder:DIR'",
			config->data);
	if (strcmp(config->data, "folder:") == 0)
		return error_set(err, -EINVAL, "[data] data = folder: names no folder");
	if (config->micro_batch > 0 && config->batch_size % config->micro_batch)
		return error_set(err, -EINVAL,
			"[train] micro_batch = %lld does not divide batch_size = %lld",
			(long long)config->micro_batch, (long long)config->batch_size);
	if (config->preview_steps > config->timesteps)
		return error_set(err, -EINVAL,
			"[preview] preview_steps = %lld is more than timesteps = %lld",
			(long long)config->preview_steps, (long long)config->timesteps);
	if (config->beta_start > config->beta_end)
		return error_set(err, -EINVAL,
			"[diffusion] beta_start = %g is more than beta_end = %g",
			config->beta_start, config->beta_end);
	if (config->require_signature && !*config->signing_key && !*config->trusted_keys)
		return error_set(err, -EINVAL,
			"[checkpoint] require_signature = true: give signing_key or trusted_keys, "
			"or nothing could ever be believed");
	if (!*config->init)
		return error_set(err, -EINVAL,
			"[model] init is empty: give 'pytorch', 'zero_out' or a diffusers folder");
	if (!*config->state_dir)
		return error_set(err, -EINVAL, "[service] state_dir is empty: name a folder");
	if (config->scrub_rate > 0 && config->scrub_rate < SCRUB_RATE_MIN)
		return error_set(err, -EINVAL,
			"[checkpoint] scrub_rate = %g would never be done: give 0 for no limit, or "
			"%g MiB/s and more",
			config->scrub_rate, SCRUB_RATE_MIN);
	if (*config->mirror && *config->mirror != '/')
		return error_set(err, -EINVAL,
			"[checkpoint] mirror = %s: give an absolute path, such as /mnt/mirror",
			config->mirror);
	return check_model(config, err);
}
