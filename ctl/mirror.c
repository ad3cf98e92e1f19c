/* `ckptctl mirror-init DIR`, and what `ckptctl init --from-mirror` does. */
#include "ctl/mirror.h"

#include "ctl/text.h"
#include "ctl/verbs.h"
#include "store/mirror.h"
#include "store/trust.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int verb_mirror_init(struct ctl *ctl, const struct args *args)
{
	char clean[4096];
	struct error err;
	int r = mirror_init(args->positional[0], &err);

	if (r < 0)
		return ctl_fail(ctl, r, &err);
	text_clean(args->positional[0], clean, sizeof(clean));
	fprintf(ctl->out, "%s is a mirror now: name it in ckptd.conf (mirror = ...)\n", clean);
	return CTL_OK;
}

/* DIR with one run in it, or DIR/RUN. */
static int find_run(
	const char *path, struct config *config, char run_hex[RUN_ID_HEX_SIZE], struct error *err)
{
	char ids[MIRROR_RUNS_MAX][RUN_ID_HEX_SIZE];
	const char *slash = strrchr(path, '/');
	uint8_t id[RUN_ID_SIZE];
	uint32_t count;
	bool named = slash != NULL && slash > path && strlen(slash + 1) == RUN_ID_HEX_SIZE - 1 &&
		bytes_from_hex(slash + 1, id, RUN_ID_SIZE) == 0;
	size_t length = named ? (size_t)(slash - path) : strlen(path);

	if (length >= sizeof(config->mirror))
		return error_set(err, -ENAMETOOLONG, "the path of the mirror is too long");
	memcpy(config->mirror, path, length);
	config->mirror[length] = '\0';
	if (named) {
		memcpy(run_hex, slash + 1, RUN_ID_HEX_SIZE);
		return 0;
	}
	int r = mirror_runs(config->mirror, ids, &count, err);
	if (r < 0)
		return r;
	if (count != 1)
		return error_set(err, -ENOENT, "%s has %u runs: name one of them, %s/%s", path,
			count, path, count > 0 ? ids[0] : "RUN");
	memcpy(run_hex, ids[0], RUN_ID_HEX_SIZE);
	return 0;
}

static void tell(
	void *context, const char *kind, const char *level, uint64_t step, const char *text)
{
	struct ctl *ctl = context;
	char clean[4096];

	text_clean(text, clean, sizeof(clean));
	fprintf(ctl->err, "ckptctl: %s\n", clean);
}

int mirror_into_folder(struct ctl *ctl, const char *path, const char *dir, int run_fd,
	const struct config *config, struct error *err)
{
	struct config with_mirror = *config;
	char run_hex[RUN_ID_HEX_SIZE];
	struct run run = {0};
	struct trust trust;
	uint32_t count;
	int r = trust_read(config, &trust, err);

	if (r == 0)
		r = find_run(path, &with_mirror, run_hex, err);
	if (r == 0)
		r = mirror_load_run(with_mirror.mirror, run_hex, &run, err);
	if (r < 0)
		return r;
	trust_set(&trust);
	const struct mirror_pass pass = {.run_dir = dir,
		.run_fd = run_fd,
		.run = &run,
		.config = &with_mirror,
		.report = tell,
		.context = ctl};

	r = run_check_identity(&run, config, err);
	if (r == 0)
		r = mirror_restore_run(&pass, &count, err);
	if (r == 0)
		r = run_write_last_good(run_fd, config, err);
	if (r == 0)
		fprintf(ctl->out, "%u checkpoints came back from the mirror\n", count);
	run_fini(&run);
	return r;
}
