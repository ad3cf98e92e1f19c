/* See choose.h. */
#include "daemon/model/choose.h"

#include "base/panic.h"
#include "daemon/ops/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define WHY_MAX 96

/* amx computes in squares of 32 channels: widths are whole squares, and a head is some squares or
 * an even share of one. False with the reason. */
static bool fits_amx(const struct unet_config *config, char why[WHY_MAX])
{
	uint32_t head = config->head_dim;

	for (uint32_t i = 0; i < config->level_count; i++)
		if (config->channels[i] % PACK_SIDE) {
			snprintf(why, WHY_MAX, "it needs channels divisible by %d, not %u",
				PACK_SIDE, config->channels[i]);
			return false;
		}
	if (head == 0 || head % PACK_SIDE == 0 || PACK_SIDE % head == 0)
		return true;
	snprintf(why, WHY_MAX, "it needs a head_dim that divides %d or is divisible by it, not %u",
		PACK_SIDE, head);
	return false;
}

/* NULL with the reason when it cannot run here or does not fit. */
static const struct engine *find(
	const struct unet_config *config, const char *name, char why[WHY_MAX])
{
	const struct engine *engine;
	const char *refusal;

	if (strcmp(name, "amx") == 0 && !fits_amx(config, why))
		return NULL;
	engine = engine_named(name, &refusal);
	if (!engine)
		snprintf(why, WHY_MAX, "%s", refusal);
	return engine;
}

static const struct engine *fastest(
	const struct unet_config *config, char *reason, size_t reason_size)
{
	static const char *const names[] = {"amx", "avx512", "openblas"};
	char why[WHY_MAX];

	snprintf(reason, reason_size, "auto: the fastest here");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const struct engine *engine = find(config, names[i], why);

		if (engine)
			return engine;
		/* The last refusal: what would have to change for the next faster engine. */
		snprintf(reason, reason_size, "auto: not %s: %s", names[i], why);
	}
	PANIC("openblas runs everywhere");
}

int unet_choose_engine(const struct unet_config *config, const char *wanted,
	const struct engine **ret, char *reason, size_t reason_size, struct error *err)
{
	char why[WHY_MAX];

	if (strcmp(wanted, "auto") == 0) {
		*ret = fastest(config, reason, reason_size);
		return 0;
	}
	*ret = find(config, wanted, why);
	snprintf(reason, reason_size, "%s", *ret ? "as configured" : why);
	if (*ret)
		return 0;
	return error_set(
		err, -ENOTSUP, "engine = %s cannot run here: %s; set engine = auto", wanted, why);
}
