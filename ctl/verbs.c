/* The table of verbs, and what is common to them: the command line, help, completion, one call. */
#include "ctl/verbs.h"

#include "ctl/client.h"
#include "ctl/text.h"
#include "proto/interface.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define GLOBAL_OPTIONS "socket= instance= state= json timeout= h|help version complete"

static const struct verb verbs[] = {
	{"run", "[--state DIR] [--config FILE] [--set KEY=VALUE]... [--plain]",
		"config= set= plain", 0, 0, verb_run,
		"Trains in the foreground: starts ckptd, or attaches to the one that runs, and "
		"shows "
		"it. Ctrl-C saves and stops; a closed terminal leaves it running; the same command "
		"goes on."},
	{"init",
		"[--instance NAME | --state DIR] [--config FILE] [--set KEY=VALUE]...\n"
		"            [--from-mirror DIR[/RUN]]",
		"config= set= from-mirror=", 0, 0, verb_init,
		"Makes a new run in the state folder, for a service that starts later; with "
		"--from-mirror, the run that lies there."},
	{"status", "[--json] [--watch]", "watch plain", 0, 0, verb_status,
		"What it does now; --watch keeps showing it."},
	{"top", "", "plain", 0, 0, verb_top, "The live view (status --watch)."},
	{"checkpoints", "[--all] [--json]", "a|all", 0, 0, verb_checkpoints,
		"What is kept and whether it is verified; --all also what is gone or set aside."},
	{"events", "[-n N] [--json]", "n|limit=", 0, 0, verb_events,
		"The last N (20) starts, deaths, saves and faults."},
	{"outages", "[-n N] [--json]", "n|limit=", 0, 0, verb_outages,
		"The last N (20) times without new steps: cause, how it was noticed, time lost, "
		"steps "
		"redone; and the totals."},
	{"config", "[--json]", "", 0, 0, verb_config, "Every setting that is in force."},
	{"save", "[--wait] [--json]", "w|wait", 0, 0, verb_save,
		"Saves now; --wait returns when it is verified."},
	{"pause", "", "", 0, 0, verb_pause, "Saves, and trains no further until resume."},
	{"resume", "", "", 0, 0, verb_resume, "Goes on after pause or stop."},
	{"stop", "[--exit] [--now]", "exit now", 0, 0, verb_stop,
		"Saves and stops; --exit ends ckptd too, --now does not save."},
	{"rollback", "[ID]", "", 0, 1, verb_rollback,
		"Goes on from checkpoint ID (the one before the newest) on a new branch."},
	{"restart", "--from-scratch [--yes] [--json]", "from-scratch y|yes", 0, 0, verb_restart,
		"Begins the run again at step 0 on a new branch, with the configuration of now; "
		"asks before, unless --yes. Checkpoints stay as retention says."},
	{"keep", "ID [--off]", "off", 1, 1, verb_keep,
		"Keeps checkpoint ID whatever retention says, until --off."},
	{"verify", "[ID | FILE... | --all] [--json]", "all", 0, ARGS_MAX, verb_verify,
		"Reads a checkpoint (all of them) again and compares it with its digests; a FILE "
		"needs no daemon."},
	{"scrub", "[--wait] [--json]", "w|wait", 0, 0, verb_scrub,
		"Reads all that is kept again in the background, at the pace of scrub_rate; --wait "
		"returns when it is done."},
	{"sample",
		"[--count N] [--out FILE.png] [--steps N] [--seed N] [--class N] [--guidance G]\n"
		"              [--sampler ddim|ddpm] [--checkpoint ID]",
		"count= o|out= steps= seed= class= guidance= sampler= checkpoint=", 0, 0,
		verb_sample, "Makes pictures with the newest verified checkpoint."},
	{"inspect", "FILE [--verify] [--tensors] [--json]", "verify tensors", 1, 1, verb_inspect,
		"What a checkpoint, or any safetensors file, holds; --verify reads it all."},
	{"export", "DIR [--checkpoint ID|FILE]", "checkpoint=", 1, 1, verb_export,
		"Writes a folder that diffusers' pipelines load, with the EMA weights."},
	{"fsck", "[--repair] [--json] DIR", "repair", 1, 1, verb_fsck,
		"Compares the run's folder DIR with itself, without a daemon: each checkpoint with "
		"its digests, the catalog, what was interrupted. --repair does what a start would "
		"do. Exit codes: 0 clean, 1 repaired, 4 left, 8 could not look."},
	{"mirror-init", "DIR", "", 1, 1, verb_mirror_init,
		"Marks the folder DIR, on another disk, as one that a mirror may be made in."},
	{"keygen", "FILE [--json]", "", 1, 1, verb_keygen,
		"Makes a key that signs checkpoints (signing_key): the secret one in FILE, the "
		"public one in FILE.pub."},
	{"reload", "", "", 0, 0, verb_reload, "Reads the configuration file again."},
	{"power-fail", "", "", 0, 0, verb_power_fail,
		"Saves at once and pauses: for the script of a UPS."},
	{"power-ok", "", "", 0, 0, verb_power_ok, "Ends the pause of power-fail."},
};

static size_t verb_count(void)
{
	return sizeof(verbs) / sizeof(verbs[0]);
}

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < verb_count(); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

/* -- help -- */

/* Words into lines of width columns, the first one begun at indent. */
static void print_wrapped(FILE *out, const char *text, int indent, int width)
{
	int column = indent;

	while (*text != '\0') {
		int length = (int)strcspn(text, " ");

		if (column > indent && column + 1 + length > width) {
			fprintf(out, "\n%*s", indent, "");
			column = indent;
		} else if (column > indent) {
			fputc(' ', out);
			column++;
		}
		fprintf(out, "%.*s", length, text);
		column += length;
		text += length;
		text += strspn(text, " ");
	}
	fputc('\n', out);
}

static void print_help(FILE *out)
{
	fputs("ckptctl: look at a ckptd training run and control it\n\n"
	      "usage: ckptctl [--instance NAME | --state DIR | --socket PATH] VERB [options]\n\n",
		out);
	for (size_t i = 0; i < verb_count(); i++) {
		fprintf(out, "  %-12s", verbs[i].name);
		print_wrapped(out, verbs[i].help, 14, 80);
	}
	fputs("\n"
	      "  --instance NAME the service ckptd@NAME\n"
	      "  --state DIR     the run's folder; its socket is DIR/ckptd.sock\n"
	      "  --socket PATH   the socket itself\n"
	      "  --timeout SEC   longest wait for an answer\n"
	      "  --json          for programs\n"
	      "  --help          with a verb: its options\n\n"
	      "Without these three: $CKPTD_SOCKET, else ./ckptd-state when that folder exists, "
	      "else\n"
	      "the only instance of the service that runs.\n\n"
	      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 ckptd is not running, 4 not "
	      "permitted,\n"
	      "5 no answer in time.\n",
		out);
}

static void print_verb_help(const struct verb *verb, FILE *out)
{
	fprintf(out, "usage: ckptctl %s%s%s\n\n", verb->name, verb->synopsis[0] != '\0' ? " " : "",
		verb->synopsis);
	print_wrapped(out, verb->help, 0, 80);
}

/* For the shell: verbs, or the options of one. */
static void print_completion(const struct verb *verb, FILE *out)
{
	const char *const lists[] = {verb != NULL ? verb->options : "", GLOBAL_OPTIONS};

	for (size_t i = 0; verb == NULL && i < verb_count(); i++)
		fprintf(out, "%s\n", verbs[i].name);
	for (size_t list = 0; list < 2; list++)
		for (const char *at = lists[list]; *at != '\0';) {
			size_t length = strcspn(at, " ");
			const char *bar = memchr(at, '|', length);
			const char *name = bar != NULL ? bar + 1 : at;
			size_t name_length = length - (size_t)(name - at);

			name_length -= name_length > 0 && name[name_length - 1] == '=';
			if (strncmp(name, "complete", name_length) != 0)
				fprintf(out, "--%.*s\n", (int)name_length, name);
			at += length;
			at += strspn(at, " ");
		}
}

/* -- calls -- */

int ctl_fail(const struct ctl *ctl, int code, const struct error *err)
{
	char line[2 * ERROR_TEXT_MAX];

	text_clean(err->text, line, sizeof(line));
	fprintf(ctl->err, "ckptctl: %s\n", line);
	switch (code) {
	case -ENOTCONN:
	case -ECONNREFUSED:
		return CTL_NOT_RUNNING;
	case -EACCES:
	case -EPERM:
		return CTL_DENIED;
	case -ETIMEDOUT:
		return CTL_TIMEOUT;
	}
	return CTL_FAILED;
}

int ctl_usage(const struct ctl *ctl, const char *verb, const struct error *err)
{
	ctl_fail(ctl, -EINVAL, err);
	fprintf(ctl->err, "ckptctl: see 'ckptctl%s%s --help'\n", verb != NULL ? " " : "",
		verb != NULL ? verb : "");
	return CTL_USAGE;
}

int ctl_call(const struct ctl *ctl, const char *method, json_t *parameters, double timeout_seconds,
	json_t **ret)
{
	nsec_t timeout_ns = ctl->timeout_ns > 0 ? ctl->timeout_ns : (nsec_t)(timeout_seconds * 1e9);
	nsec_t deadline = timeout_ns > 0 ? clock_monotonic_ns() + timeout_ns : 0;
	struct client client = {.fd = -1};
	struct error err;
	char path[4096];

	*ret = NULL;
	int r = client_find(ctl, path, sizeof(path), &err);
	if (r == 0)
		r = client_open(path, &client, &err);
	if (r == 0)
		r = client_call(&client, method, parameters, deadline, ret, &err);
	else
		json_decref(parameters);
	client_close(&client);
	return r < 0 ? ctl_fail(ctl, r, &err) : CTL_OK;
}

int ctl_print_json(const struct ctl *ctl, const json_t *value)
{
	char *text = json_dumps(value, JSON_INDENT(2));

	if (text == NULL)
		return CTL_FAILED;
	fprintf(ctl->out, "%s\n", text);
	free(text);
	return CTL_OK;
}

/* -- the command line -- */

/* Global options count wherever they stand. */
static int take_globals(struct ctl *ctl, const struct args *args, struct error *err)
{
	double timeout;

	if (args_text(args, "socket") != NULL)
		ctl->socket = args_text(args, "socket");
	if (args_text(args, "instance") != NULL)
		ctl->instance = args_text(args, "instance");
	if (args_text(args, "state") != NULL)
		ctl->state_dir = args_text(args, "state");
	ctl->json = ctl->json || args_flag(args, "json");
	int r = args_real(args, "timeout", 0.001, 1e6, 0.0, &timeout, err);
	if (timeout > 0.0)
		ctl->timeout_ns = (nsec_t)(timeout * 1e9);
	return r;
}

static int run_verb(struct ctl *ctl, const struct verb *verb, int argc, char **argv)
{
	char spec[256];
	struct args args;
	struct error err;

	snprintf(spec, sizeof(spec), "%s %s", verb->options, GLOBAL_OPTIONS);
	if (args_parse(spec, argc, argv, false, &args, &err) < 0)
		return ctl_usage(ctl, verb->name, &err);
	if (args_flag(&args, "help")) {
		print_verb_help(verb, ctl->out);
		return CTL_OK;
	}
	if (args.positional_count < verb->positional_min ||
		args.positional_count > verb->positional_max) {
		error_set(&err, -EINVAL, "%s takes %s", verb->name,
			verb->positional_max == 0           ? "no argument"
				: verb->positional_min == 0 ? "at most one argument"
							    : "one argument");
		return ctl_usage(ctl, verb->name, &err);
	}
	if (take_globals(ctl, &args, &err) < 0)
		return ctl_usage(ctl, verb->name, &err);
	return verb->run(ctl, &args);
}

int ctl_main(int argc, char **argv, FILE *out, FILE *err_file)
{
	struct ctl ctl = {.out = out, .err = err_file};
	struct args args;
	struct error err;

	signal(SIGPIPE, SIG_IGN); /* a reader that left is seen where we write */
	int taken = args_parse(GLOBAL_OPTIONS, argc - 1, argv + 1, true, &args, &err);
	if (taken < 0 || take_globals(&ctl, &args, &err) < 0)
		return ctl_usage(&ctl, NULL, &err);
	const char *name = taken + 1 < argc ? argv[taken + 1] : NULL;
	const struct verb *verb = name != NULL ? verb_find(name) : NULL;
	if (args_flag(&args, "complete")) {
		print_completion(verb, out);
		return CTL_OK;
	}
	if (args_flag(&args, "version")) {
		fprintf(out, "ckptctl %s\n", proto_version);
		return CTL_OK;
	}
	if (args_flag(&args, "help") || (name != NULL && strcmp(name, "help") == 0)) {
		print_help(out);
		return CTL_OK;
	}
	if (verb == NULL) {
		if (name != NULL)
			error_set(&err, -EINVAL, "unknown verb '%s'", name);
		else
			error_set(&err, -EINVAL, "a verb is needed");
		return ctl_usage(&ctl, NULL, &err);
	}
	int code = run_verb(&ctl, verb, argc - taken - 2, argv + taken + 2);
	if (fflush(out) != 0 && code == CTL_OK)
		code = CTL_FAILED;
	return code;
}
