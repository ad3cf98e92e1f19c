/* `ckptctl fsck DIR`: the run's folder compared with itself, with the caller's rights and under the
 * run's lock, so never beside a daemon. Its exit codes are those of fsck(8). */
#include "ctl/verbs.h"

#include "ctl/setup.h"
#include "ctl/text.h"
#include "store/fsck.h"
#include "store/run.h"
#include "store/trust.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum fsck_exit {
	FSCK_EXIT_CLEAN = 0,
	FSCK_EXIT_REPAIRED = 1,
	FSCK_EXIT_LEFT = 4,
	FSCK_EXIT_FAILED = 8, /* could not look */
};

struct talk {
	struct ctl *ctl;
	json_t *findings; /* NULL: lines for a person */
};

static void report(void *context, enum fsck_kind kind, const char *text)
{
	static const char *const words[] = {
		[FSCK_NOTE] = "note", [FSCK_FOUND] = "found", [FSCK_LEFT] = "left"};
	struct talk *talk = context;
	char clean[2 * ERROR_TEXT_MAX];

	text_clean(text, clean, sizeof(clean));
	if (talk->findings != NULL)
		json_array_append_new(
			talk->findings, json_pack("{s:s,s:s}", "kind", words[kind], "text", text));
	else
		fprintf(talk->ctl->out, "%s: %s\n", words[kind], clean);
}

static void print_summary(const struct ctl *ctl, const struct fsck_summary *summary, bool repair)
{
	fprintf(ctl->out, "%" PRIu32 " checkpoints read: ", summary->read_count);
	if (summary->found == 0)
		fprintf(ctl->out, "clean\n");
	else if (!repair)
		fprintf(ctl->out,
			"%" PRIu32 " found ('ckptctl fsck --repair' does what a start "
			"would)\n",
			summary->found);
	else
		fprintf(ctl->out, "%" PRIu32 " found, %" PRIu32 " left\n", summary->found,
			summary->left);
}

/* Who is trusted stands in the configuration that was accepted last. Keys that only the service can
 * read leave each signature to speak for itself. */
static void take_trust(struct talk *talk, const char *dir)
{
	char path[PATH_MAX], text[2 * ERROR_TEXT_MAX];
	struct config config;
	struct trust trust;
	struct error err = {{0}};
	int r;

	config_defaults(&config);
	if (snprintf(path, sizeof(path), "%s/last-good.conf", dir) >= (int)sizeof(path) ||
		access(path, F_OK) < 0)
		return;
	r = config_parse_file(&config, path, &err);
	if (r == 0)
		r = trust_read(&config, &trust, &err);
	if (r == 0) {
		trust_set(&trust);
		return;
	}
	snprintf(text, sizeof(text), "signers are not compared: %s", err.text);
	report(talk, FSCK_NOTE, text);
}

static int look(struct ctl *ctl, const char *dir, int run_fd, bool repair,
	struct fsck_summary *summary, struct error *err)
{
	AUTO_JSON findings = ctl->json ? json_array() : NULL;
	struct talk talk = {ctl, findings};
	const struct fsck_options options = {.repair = repair, .report = report, .context = &talk};
	int r;

	take_trust(&talk, dir);
	r = fsck_run(dir, run_fd, &options, summary, err);
	if (r == 0 && ctl->json) {
		AUTO_JSON object = json_pack("{s:O,s:I,s:I,s:I}", "findings", findings, "read",
			(json_int_t)summary->read_count, "found", (json_int_t)summary->found,
			"left", (json_int_t)summary->left);

		ctl_print_json(ctl, object);
	} else if (r == 0) {
		print_summary(ctl, summary, repair);
	}
	return r;
}

static int look_locked(struct ctl *ctl, const char *dir, bool repair, struct fsck_summary *summary,
	struct error *err)
{
	int lock_fd, run_fd = run_open_dir(dir, false, err);
	pid_t owner;

	if (run_fd < 0)
		return run_fd;
	int r = faccessat(run_fd, "checkpoints", F_OK, 0) < 0
		? error_set(err, -ENOENT, "%s is no run's folder: it has no checkpoints", dir)
		: run_lock(run_fd, &lock_fd, &owner, err);

	if (r == -EWOULDBLOCK)
		error_set(err, r,
			"process %d works in %s: end it first ('ckptctl stop --exit'), or use "
			"'ckptctl scrub' beside it",
			(int)owner, dir);
	if (r == 0) {
		r = look(ctl, dir, run_fd, repair, summary, err);
		close(lock_fd);
	}
	close(run_fd);
	return r;
}

int verb_fsck(struct ctl *ctl, const struct args *args)
{
	bool repair = args_flag(args, "repair");
	const char *dir = args->positional[0];
	struct fsck_summary summary = {0};
	struct error err;
	int r = setup_become_owner(dir, &err);

	if (r == 0)
		r = look_locked(ctl, dir, repair, &summary, &err);
	setup_become_self();
	if (r < 0) {
		ctl_fail(ctl, r, &err);
		return FSCK_EXIT_FAILED;
	}
	if (summary.left > 0)
		return FSCK_EXIT_LEFT;
	return summary.found > 0 ? FSCK_EXIT_REPAIRED : FSCK_EXIT_CLEAN;
}
