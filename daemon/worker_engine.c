/* See worker_engine.h. */
#include "daemon/worker_engine.h"

#include "base/panic.h"
#include "daemon/model/choose.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int choose(const struct unet_config *net, const char *wanted, struct engine_choice *ret,
	struct error *err)
{
	return unet_choose_engine(net, wanted, &ret->engine, ret->reason, sizeof(ret->reason), err);
}

/* ret holds the fastest; the run's own goes before it. */
static void keep_of_run(
	const struct unet_config *net, const struct engine_entry *of_run, struct engine_choice *ret)
{
	const char *fastest = ret->engine->name;
	struct engine_choice kept;
	struct error err;

	if (strcmp(of_run->name, fastest) == 0)
		return;
	if (choose(net, of_run->name, &kept, &err) < 0) {
		ret->replaced = true;
		snprintf(ret->reason, sizeof(ret->reason),
			"auto: %s of the run cannot run here: %.76s", of_run->name, kept.reason);
		return;
	}
	ret->engine = kept.engine;
	snprintf(ret->reason, sizeof(ret->reason),
		"auto: kept since step %" PRIu64 "; %s would be faster here", of_run->step,
		fastest);
}

int engine_choose(const struct unet_config *net, const char *forced, const char *wanted,
	const struct state_record *record, struct engine_choice *ret, struct error *err)
{
	struct engine_entry of_run;
	int r;

	*ret = (struct engine_choice){.by = ENGINE_BY_CONFIG};
	if (*forced) {
		ret->by = ENGINE_BY_LADDER;
		r = choose(net, forced, ret, err);
		snprintf(ret->reason, sizeof(ret->reason),
			"the safe engine, after repeated deaths at one step");
		return r;
	}
	r = choose(net, wanted, ret, err);
	if (r < 0 || strcmp(wanted, "auto") != 0)
		return r;
	ret->by = ENGINE_BY_AUTO;
	if (record && record_auto_engine(record, &of_run))
		keep_of_run(net, &of_run, ret);
	return 0;
}

const struct engine *engine_for_record(
	const struct unet_config *net, const struct state_record *record)
{
	struct engine_choice choice;
	struct engine_entry entry;
	struct error err;

	if (record_engine(record, &entry) && choose(net, entry.name, &choice, &err) == 0)
		return choice.engine;
	CHECK(choose(net, "auto", &choice, &err) == 0);
	return choice.engine;
}
