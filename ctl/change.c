/* Verbs that change something in the daemon: each is one call and one line about what came of it.
 */
#include "ctl/verbs.h"

#include "base/file.h"
#include "ctl/client.h"
#include "ctl/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_SECONDS 30.0
#define PICTURE_BYTES_MAX ((size_t)1 << 30)

/* Members of a reply in a line for a person. */
static void print_clean(
	const struct ctl *ctl, const char *before, const char *text, const char *after)
{
	char clean[4096];

	text_clean(text, clean, sizeof(clean));
	fprintf(ctl->out, "%s%s%s", before, clean, after);
}

/* A call with an empty answer. */
static int call_plain(struct ctl *ctl, const char *method, json_t *parameters, const char *done)
{
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, method, parameters, ANSWER_SECONDS, &reply);

	if (code == CTL_OK)
		fprintf(ctl->out, "%s\n", done);
	return code;
}

int verb_save(struct ctl *ctl, const struct args *args)
{
	bool wait = args_flag(args, "wait");
	AUTO_JSON reply = NULL;
	int code = ctl_call(
		ctl, "Save", json_pack("{s:b}", "wait", wait), wait ? 0.0 : ANSWER_SECONDS, &reply);

	if (code != CTL_OK)
		return code;
	if (ctl->json)
		return ctl_print_json(ctl, reply);
	const char *id = json_get_text(reply, "id", "");
	if (!wait || id[0] == '\0') {
		fprintf(ctl->out, "saving step %" PRId64 " (see 'ckptctl status')\n",
			json_get_int(reply, "step", 0));
		return CTL_OK;
	}
	print_clean(ctl, "", id,
		json_get_bool(reply, "already", false) ? " was saved and verified before: "
						       : " saved and verified: ");
	print_clean(ctl, "", json_get_text(reply, "path", ""), "\n");
	return CTL_OK;
}

int verb_pause(struct ctl *ctl, const struct args *args)
{
	return call_plain(ctl, "Pause", NULL, "pausing: it saves first ('ckptctl resume' goes on)");
}

int verb_resume(struct ctl *ctl, const struct args *args)
{
	return call_plain(ctl, "Resume", NULL, "going on");
}

int verb_stop(struct ctl *ctl, const struct args *args)
{
	bool leave = args_flag(args, "exit"), now = args_flag(args, "now");

	return call_plain(ctl, "Stop", json_pack("{s:b,s:b}", "exit", leave, "now", now),
		now ? "stopping without saving" : "saving, then stopping");
}

/* A call that begins a branch: it answers when that is durable, after the step that runs. */
static int call_for_branch(
	struct ctl *ctl, const char *method, json_t *parameters, const char *what_it_does)
{
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, method, parameters, 0.0, &reply);

	if (code != CTL_OK)
		return code;
	if (ctl->json)
		return ctl_print_json(ctl, reply);
	fprintf(ctl->out, "branch %" PRId64 " %s step %" PRId64 "\n",
		json_get_int(reply, "branch", 0), what_it_does, json_get_int(reply, "step", 0));
	return CTL_OK;
}

int verb_rollback(struct ctl *ctl, const struct args *args)
{
	const char *id = args->positional_count > 0 ? args->positional[0] : "";

	return call_for_branch(ctl, "Rollback", json_pack("{s:s}", "id", id), "goes on from");
}

/* What happens, to whom; then it has to be typed. Without a terminal nobody can: -EINVAL. */
static int confirm_restart(struct ctl *ctl, int *ret_code, struct error *err)
{
	AUTO_JSON reply = NULL;
	char answer[16] = "", dir[4096], id[64];

	if (!isatty(STDIN_FILENO))
		return error_set(err, -EINVAL,
			"restart --from-scratch begins the run again at step 0: say --yes where "
			"nobody can be asked");
	*ret_code = ctl_call(ctl, "Status", NULL, ANSWER_SECONDS, &reply);
	if (*ret_code != CTL_OK)
		return 0;
	const json_t *status = json_object_get(reply, "status");
	const json_t *newest = json_object_get(status, "newest_verified");
	text_clean(json_get_text(status, "run_dir", "?"), dir, sizeof(dir));
	text_clean(json_get_text(newest, "id", "none"), id, sizeof(id));
	fprintf(ctl->out,
		"The run in %s is at step %" PRId64 " of %" PRId64 "; its newest checkpoint: %s.\n"
		"It would begin again at step 0, on a new branch, with the configuration of now.\n"
		"Its checkpoints stay as retention says: of those left behind, the newest two and\n"
		"what is kept ('ckptctl keep ID'); 'ckptctl rollback ID' comes back to one.\n"
		"Type yes to begin again: ",
		dir, json_get_int(status, "step", 0), json_get_int(status, "steps_total", 0), id);
	fflush(ctl->out);
	if (fgets(answer, sizeof(answer), stdin) == NULL || strcmp(answer, "yes\n") != 0) {
		fprintf(ctl->out, "nothing was changed\n");
		*ret_code = CTL_FAILED;
	}
	return 0;
}

int verb_restart(struct ctl *ctl, const struct args *args)
{
	struct error err;
	int code = CTL_OK;

	if (!args_flag(args, "from-scratch")) {
		error_set(&err, -EINVAL,
			"restart needs --from-scratch, which begins the run again at step 0; "
			"'ckptctl resume' goes on, 'ckptctl rollback' goes back to a checkpoint");
		return ctl_usage(ctl, "restart", &err);
	}
	if (!args_flag(args, "yes") && confirm_restart(ctl, &code, &err) < 0)
		return ctl_usage(ctl, "restart", &err);
	if (code != CTL_OK)
		return code;
	return call_for_branch(ctl, "Restart", json_pack("{s:b}", "from_scratch", 1), "begins at");
}

int verb_keep(struct ctl *ctl, const struct args *args)
{
	json_t *parameters = json_pack(
		"{s:s,s:b}", "id", args->positional[0], "keep", !args_flag(args, "off"));
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Keep", parameters, ANSWER_SECONDS, &reply);

	if (code == CTL_OK)
		print_clean(ctl, "", json_get_text(reply, "text", "done"), "\n");
	return code;
}

int verb_reload(struct ctl *ctl, const struct args *args)
{
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Reload", NULL, ANSWER_SECONDS, &reply);

	if (code == CTL_OK)
		print_clean(ctl, "", json_get_text(reply, "text", "reloaded"), "\n");
	return code;
}

int verb_power_fail(struct ctl *ctl, const struct args *args)
{
	return call_plain(ctl, "PowerFail", NULL, "saving at once, then pausing");
}

int verb_power_ok(struct ctl *ctl, const struct args *args)
{
	return call_plain(ctl, "PowerOk", NULL, "going on");
}

/* -- sample -- */

/* The daemon writes only below its own folder; the copy is made here, with the caller's rights. */
static int copy_picture(const char *from, const char *to, struct error *err)
{
	const char *slash = strrchr(to, '/');
	char *data, dir[4096] = ".";
	size_t size;
	int r = file_read_all(AT_FDCWD, from, PICTURE_BYTES_MAX, &data, &size);

	if (r < 0)
		return error_set(err, r, "cannot read %s: %s", from, strerror(-r));
	if (strcmp(to, "-") == 0) {
		r = fwrite(data, 1, size, stdout) == size && fflush(stdout) == 0 ? 0 : -EIO;
	} else {
		if (slash != NULL)
			snprintf(dir, sizeof(dir), "%.*s", (int)(slash - to + 1), to);
		int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = dir_fd < 0
			? -errno
			: file_replace(dir_fd, slash != NULL ? slash + 1 : to, data, size, 0644);
		if (dir_fd >= 0)
			close(dir_fd);
	}
	free(data);
	if (r < 0)
		return error_set(err, r, "cannot write %s: %s", to, strerror(-r));
	return 0;
}

static int sample_parameters(const struct args *args, json_t **ret, struct error *err)
{
	const char *sampler = args_text(args, "sampler"), *id = args_text(args, "checkpoint");
	int64_t count, steps, seed, label;
	double guidance;

	if (args_int(args, "count", 1, 1024, 16, &count, err) < 0 ||
		args_int(args, "steps", 1, 10000, 50, &steps, err) < 0 ||
		args_int(args, "seed", 0, INT64_C(1) << 53, 1, &seed, err) < 0 ||
		args_int(args, "class", 0, 1000000, -1, &label, err) < 0 ||
		args_real(args, "guidance", 0.0, 1000.0, 1.0, &guidance, err) < 0)
		return -EINVAL;
	if (sampler != NULL && strcmp(sampler, "ddim") != 0 && strcmp(sampler, "ddpm") != 0)
		return error_set(
			err, -EINVAL, "--sampler is '%s', ddim or ddpm is needed", sampler);
	*ret = json_pack("{s:I,s:I,s:f,s:s}", "count", (json_int_t)count, "seed", (json_int_t)seed,
		"guidance", guidance, "sampler", sampler != NULL ? sampler : "ddim");
	if (args_text(args, "steps") != NULL || sampler == NULL || strcmp(sampler, "ddim") == 0)
		json_object_set_new(*ret, "steps", json_integer(steps));
	if (label >= 0)
		json_object_set_new(*ret, "label", json_integer(label));
	if (id != NULL)
		json_object_set_new(*ret, "id", json_string(id));
	return 0;
}

int verb_sample(struct ctl *ctl, const struct args *args)
{
	const char *out = args_text(args, "out");
	AUTO_JSON reply = NULL;
	json_t *parameters = NULL;
	struct error err;

	if (sample_parameters(args, &parameters, &err) < 0)
		return ctl_usage(ctl, "sample", &err);
	int code = ctl_call(ctl, "Sample", parameters, 0.0, &reply);
	if (code != CTL_OK)
		return code;
	const char *path = json_get_text(reply, "path", "");
	if (out != NULL) {
		int r = copy_picture(path, out, &err);
		if (r < 0)
			return ctl_fail(ctl, r, &err);
		if (strcmp(out, "-") == 0)
			return CTL_OK;
	}
	if (ctl->json)
		return ctl_print_json(ctl, reply);
	print_clean(ctl, "", out != NULL ? out : path, " from ");
	print_clean(ctl, "", json_get_text(reply, "id", "?"), "\n");
	return CTL_OK;
}
