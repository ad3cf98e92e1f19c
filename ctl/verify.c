/* `ckptctl verify` and `ckptctl scrub`: what the daemon keeps is read by the daemon, which writes
 * down what it finds; a file that is named is read here and needs nobody. */
#include "ctl/verbs.h"

#include "ctl/pick.h"
#include "ctl/text.h"
#include "store/scrub.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_SECONDS 30.0

static void print_result(const struct ctl *ctl, const json_t *result)
{
	char clean[4096];
	const char *text = json_get_text(result, "text", "");

	text_clean(json_get_text(result, "id", "?"), clean, sizeof(clean));
	fprintf(ctl->out, "%s%s", clean, json_get_bool(result, "ok", false) ? "  ok" : "  BAD");
	text_clean(text, clean, sizeof(clean));
	fprintf(ctl->out, "%s%s\n", text[0] != '\0' ? "  " : "", clean);
}

/* -- files -- */

static json_t *verify_file(const char *path)
{
	struct checkpoint_info info;
	struct error err = {{0}};
	const char *name;
	int fd = -1, dir_fd = pick_dir(path, &name, &err);
	int r = dir_fd;

	if (dir_fd >= 0) {
		r = scrub_check_file(dir_fd, name, NULL, 0, NULL, &info, &fd, &err);
		close(dir_fd);
	}
	if (fd >= 0) {
		checkpoint_info_fini(&info);
		close(fd);
	}
	return json_pack("{s:s,s:b,s:s,s:s}", "id", path, "ok", r >= 0, "state",
		r >= 0                          ? "verified"
			: r == -EBADMSG         ? "corrupt"
			: r == -EPROTONOSUPPORT ? "refused"
						: "unreadable",
		"text", r >= 0 ? "every byte matches its digest" : err.text);
}

/* -- verify -- */

/* The results of one call, or of one file, are added. An exit code. */
static int verify_one(const struct ctl *ctl, const char *what, json_t *results)
{
	if (what != NULL && pick_is_file(what)) {
		json_array_append_new(results, verify_file(what));
		return CTL_OK;
	}
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Verify",
		what != NULL ? json_pack("{s:s}", "id", what) : json_object(), 0.0, &reply);

	if (code == CTL_OK)
		json_array_extend(results, json_object_get(reply, "results"));
	return code;
}

int verb_verify(struct ctl *ctl, const struct args *args)
{
	bool all = args_flag(args, "all") || args->positional_count == 0;
	AUTO_JSON results = json_array();
	const json_t *result;
	int code = CTL_OK;
	size_t i, shown = 0;

	if (all)
		code = verify_one(ctl, NULL, results);
	for (int a = 0; a < args->positional_count; a++) {
		int one = verify_one(ctl, args->positional[a], results);

		code = one != CTL_OK ? one : code;
	}
	json_array_foreach(results, i, result)
	{
		if (!ctl->json)
			print_result(ctl, result);
		if (!json_get_bool(result, "ok", false) && code == CTL_OK)
			code = CTL_FAILED;
		shown++;
	}
	if (ctl->json) {
		AUTO_JSON object = json_pack("{s:O}", "results", results);

		ctl_print_json(ctl, object);
	} else if (shown == 0 && code == CTL_OK) {
		fprintf(ctl->out, "there is no checkpoint to verify\n");
	}
	return code;
}

/* -- scrub -- */

int verb_scrub(struct ctl *ctl, const struct args *args)
{
	bool wait = args_flag(args, "wait");
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Scrub", json_pack("{s:b}", "wait", wait),
		wait ? 0.0 : ANSWER_SECONDS, &reply);
	char size[TEXT_NUMBER_SIZE];

	if (code != CTL_OK)
		return code;
	int64_t bad = json_get_int(reply, "bad", 0), corrupt = json_get_int(reply, "corrupt", 0);

	if (ctl->json) {
		ctl_print_json(ctl, reply);
	} else if (json_get_bool(reply, "running", false)) {
		fprintf(ctl->out, "reading what is kept (see 'ckptctl status')\n");
	} else {
		fprintf(ctl->out,
			"%" PRId64 " checkpoints, %s: ", json_get_int(reply, "checked", 0),
			text_bytes((uint64_t)json_get_int(reply, "bytes", 0), size));
		if (bad == 0)
			fprintf(ctl->out, "every byte matches\n");
		else
			fprintf(ctl->out,
				"%" PRId64 " corrupt, %" PRId64
				" missing, unreadable or refused (see 'ckptctl checkpoints')\n",
				corrupt, bad - corrupt);
	}
	return bad == 0 ? CTL_OK : CTL_FAILED;
}
