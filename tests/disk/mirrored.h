/* A mirror for the sweep: beside the files that are put back after each fault, so each update
 * begins with an empty one. Include after store_fixture.h. */
#pragma once

#include "store/mirror.h"

static inline void mirrored_path(const struct fixture *fx, char path[400])
{
	snprintf(path, 400, "%s/second-disk/%s", fx->dir, fx->run.id_hex);
}

static inline void mirrored_begin(struct fixture *fx)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/second-disk", fx->dir);
	assert_int_equal(mkdir(path, 0750), 0);
	PASS(mirror_init(path, &fx->err));
	snprintf(fx->config.mirror, sizeof(fx->config.mirror), "%.250s", path);
}

static inline struct mirror_pass mirrored_pass(struct fixture *fx)
{
	return (struct mirror_pass){.run_dir = fx->dir,
		.run_fd = fx->run_fd,
		.run = &fx->run,
		.config = &fx->config,
		.threads = 1,
		.report = fixture_report,
		.context = fx};
}

static inline int mirrored_update(struct fixture *fx)
{
	const struct mirror_pass pass = mirrored_pass(fx);
	struct mirror_outcome outcome;
	char path[400];

	mirrored_path(fx, path);
	nftw(path, fixture_unlink, 8, FTW_DEPTH | FTW_PHYS);
	return mirror_update(&pass, &outcome, &fx->err);
}

static inline int mirrored_fetch(struct fixture *fx)
{
	const struct mirror_pass pass = mirrored_pass(fx);
	int rc = mirror_fetch_newest(&pass, NULL, &fx->err);

	return rc > 0 ? 0 : rc;
}

/* What has the name there is whole. */
static inline void mirrored_check(struct fixture *fx)
{
	struct checkpoint_info info;
	char path[420];

	mirrored_path(fx, path);
	strcat(path, "/checkpoints");
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		return;
	int fd = checkpoint_open(dir, "step-000000030-b0001.safetensors", &info, &fx->err);

	if (fd >= 0) {
		if (checkpoint_read(fd, &info, NULL, NULL, 1, NULL, &fx->err) < 0)
			fail_msg("the mirror has what is not whole: %s", fx->err.text);
		close(fd);
		checkpoint_info_fini(&info);
	} else if (fd != -ENOENT) {
		fail_msg("the mirror has what is no checkpoint: %s", fx->err.text);
	}
	close(dir);
}
