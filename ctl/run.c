/* `ckptctl run`: training in the foreground. ckptd itself runs in a session of its own; this is a
 * guest that starts it where it is missing, shows it, and asks it to save and stop on Ctrl-C. */
#include "ctl/verbs.h"

#include "ctl/client.h"
#include "ctl/setup.h"
#include "ctl/spawn.h"
#include "ctl/text.h"
#include "ctl/watch.h"
#include "proto/link.h"
#include "store/recovery.h"
#include "store/run.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOCKET_SECONDS_MAX 60
#define END_SECONDS_MAX 120
#define POLL_MS 50
/* Of ckptd itself: so many in a row that did not live for so long end the foreground command. */
#define RESTARTS_MAX 5
#define LIVED_SECONDS 600
#define SETS_MAX 64

struct foreground {
	struct ctl *ctl;
	const struct args *args;
	struct setup setup;
	int run_fd;
	char socket[PATH_MAX + 16];
	struct spawn spawn;
	bool spawned; /* spawn.pid is our child and has not been waited for */
	int status;   /* of the child, once waited for */
	int signal_fd;
	sigset_t old_mask;
};

/* True when our ckptd has ended; its status is kept. */
static bool child_ended(struct foreground *fg)
{
	if (fg->spawned && waitpid(fg->spawn.pid, &fg->status, WNOHANG) == fg->spawn.pid)
		fg->spawned = false;
	return !fg->spawned;
}

/* One line, and the log's last ones unless the last says it all; the exit code to hand on. */
static int report_end(const struct foreground *fg)
{
	const struct ctl *ctl = fg->ctl;
	char words[ERROR_TEXT_MAX];

	if (WIFSIGNALED(fg->status)) {
		fprintf(ctl->err, "ckptctl: ckptd was killed by signal %d (%s)\n",
			WTERMSIG(fg->status), strsignal(WTERMSIG(fg->status)));
		return CTL_FAILED;
	}
	if (WEXITSTATUS(fg->status) == 0)
		return CTL_OK;
	if (WEXITSTATUS(fg->status) == LINK_EXIT_CONFIG &&
		spawn_last_words(&fg->spawn, words, sizeof(words))) {
		fprintf(ctl->err, "ckptctl: %s\n", words);
		return LINK_EXIT_CONFIG;
	}
	fprintf(ctl->err, "ckptctl: ckptd ended with code %d; the end of %s:\n",
		WEXITSTATUS(fg->status), fg->spawn.log_path);
	spawn_print_log(&fg->spawn, ctl->err);
	return WEXITSTATUS(fg->status);
}

/* -- starting -- */

static int start_daemon(struct foreground *fg, struct error *err)
{
	const char *arguments[2 * SETS_MAX + 8], *set;
	int count = 0;

	arguments[count++] = "--foreground";
	if (fg->setup.config_path[0] != '\0') {
		arguments[count++] = "--config";
		arguments[count++] = fg->setup.config_path;
	}
	for (int at = 0; (set = args_next(fg->args, "set", &at)) != NULL;) {
		arguments[count++] = "--set";
		arguments[count++] = set;
	}
	arguments[count++] = "--state";
	arguments[count++] = fg->setup.dir;
	arguments[count] = NULL;
	int r = spawn_daemon(fg->setup.dir, arguments, &fg->old_mask, &fg->spawn, err);
	fg->spawned = r == 0;
	return r;
}

/* Until the socket answers. -ECANCELED: ckptd ended, or the person does not want to wait. */
static int wait_socket(struct foreground *fg, struct error *err)
{
	nsec_t deadline = clock_monotonic_ns() + SOCKET_SECONDS_MAX * NSEC_PER_SEC;

	for (;;) {
		struct pollfd signals = {.fd = fg->signal_fd, .events = POLLIN};
		struct client client;
		int r = client_open(fg->socket, &client, err);

		if (r == 0) {
			client_close(&client);
			return 0;
		}
		if (child_ended(fg))
			return -ECANCELED;
		if (clock_monotonic_ns() > deadline)
			return error_set(err, -ETIMEDOUT,
				"ckptd (process %d) has not opened its socket in %d s; see %s",
				(int)fg->spawn.pid, SOCKET_SECONDS_MAX, fg->spawn.log_path);
		if (poll(&signals, 1, POLL_MS) > 0) {
			kill(fg->spawn.pid, SIGTERM);
			return error_set(err, -EINTR, "interrupted before ckptd was ready");
		}
	}
}

/* A run that was paused or stopped before goes on: that is what this command means. */
static int want_run(struct foreground *fg)
{
	struct ctl ctl = *fg->ctl;
	AUTO_JSON reply = NULL;
	AUTO_JSON resumed = NULL;

	ctl.socket = fg->socket;
	int code = ctl_call(&ctl, "Status", NULL, SOCKET_SECONDS_MAX, &reply);
	if (code != CTL_OK)
		return code;
	const char *wanted = json_get_text(json_object_get(reply, "status"), "wanted", "run");
	if (strcmp(wanted, "run") == 0)
		return CTL_OK;
	return ctl_call(&ctl, "Resume", NULL, SOCKET_SECONDS_MAX, &resumed);
}

/* -- ending -- */

static void wait_end(struct foreground *fg)
{
	nsec_t deadline = clock_monotonic_ns() + END_SECONDS_MAX * NSEC_PER_SEC;

	while (!child_ended(fg) && clock_monotonic_ns() < deadline)
		poll(NULL, 0, POLL_MS);
	if (fg->spawned)
		fprintf(fg->ctl->err, "ckptctl: ckptd (process %d) has not ended yet; see %s\n",
			(int)fg->spawn.pid, fg->spawn.log_path);
}

/* What the disk says after the end: the newest checkpoint that a start would take. */
static void print_newest(const struct foreground *fg, const char *after)
{
	struct checkpoint_info info;
	struct error err;
	int fd;

	if (recovery_pick(fg->setup.dir, fg->run_fd, NULL, &info, &fd, &err) < 0) {
		fprintf(fg->ctl->out, "no checkpoint in %s yet\n", fg->setup.dir);
		return;
	}
	fprintf(fg->ctl->out, "newest checkpoint: %s/checkpoints/%s%s\n%s", fg->setup.dir, info.id,
		CHECKPOINT_SUFFIX, after);
	close(fd);
	checkpoint_info_fini(&info);
}

static int finish(struct foreground *fg, const struct look *look)
{
	struct ctl ctl = *fg->ctl;
	AUTO_JSON reply = NULL;
	char text[LOOK_LINE_MAX];

	ctl.socket = fg->socket;
	ctl_call(&ctl, "Stop", json_pack("{s:b}", "exit", 1), END_SECONDS_MAX, &reply);
	if (fg->spawned)
		wait_end(fg);
	look_line(look, text);
	fprintf(ctl.out, "%s\n", text);
	if (look->preview_path[0] != '\0')
		fprintf(ctl.out, "newest preview: %s\n", look->preview_path);
	print_newest(fg, "");
	fprintf(ctl.out, "for diffusers: ckptctl export --state %s my-model\n", fg->setup.dir);
	return CTL_OK;
}

static int leave(const struct foreground *fg)
{
	fprintf(fg->ctl->out,
		"The run goes on without this view. The same command comes back to it;\n"
		"'ckptctl stop --exit --state %s' saves and ends it.\n",
		fg->setup.dir);
	return CTL_OK;
}

/* -- in between -- */

/* The connection broke. True when ckptd died and has to be started again. */
static bool lost(struct foreground *fg, const struct error *err, int *ret_code)
{
	struct client client;
	struct error unused;
	nsec_t deadline = clock_monotonic_ns() + 5 * NSEC_PER_SEC;

	if (fg->spawned) {
		while (!child_ended(fg) && clock_monotonic_ns() < deadline)
			poll(NULL, 0, POLL_MS);
		if (!fg->spawned) {
			*ret_code = report_end(fg);
			if (*ret_code == CTL_OK)
				print_newest(fg, "ckptd has ended, as somebody asked it to.\n");
			return WIFSIGNALED(fg->status);
		}
	}
	int r = client_open(fg->socket, &client, &unused);
	client_close(&client);
	if (r == -ENOTCONN)
		print_newest(fg, "ckptd has ended, as somebody asked it to.\n");
	*ret_code = r == -ENOTCONN ? CTL_OK : ctl_fail(fg->ctl, -ECONNRESET, err);
	/* An orderly end takes its socket away; a death leaves it, with nobody behind it. */
	return r == -ECONNREFUSED;
}

/* Start or attach, and look on. True: once more. */
static bool run_once(struct foreground *fg, int *ret_code)
{
	const struct watch_options options = {.socket = fg->socket,
		.plain = args_flag(fg->args, "plain"),
		.run = true,
		.signal_fd = fg->signal_fd};
	struct client client;
	struct look last;
	struct error err;
	int r = client_open(fg->socket, &client, &err);

	client_close(&client);
	if (r == 0 && !fg->spawned && args_text(fg->args, "set") != NULL)
		fprintf(fg->ctl->err,
			"ckptctl: ckptd runs already: --set counts at its next start\n");
	if (r == -ENOTCONN || r == -ECONNREFUSED) {
		r = start_daemon(fg, &err);
		r = r < 0 ? r : wait_socket(fg, &err);
	}
	if (r == -ECANCELED) {
		*ret_code = report_end(fg);
		return false;
	}
	if (r < 0) {
		*ret_code = ctl_fail(fg->ctl, r, &err);
		return false;
	}
	*ret_code = want_run(fg);
	if (*ret_code != CTL_OK)
		return false;
	switch (watch(fg->ctl, &options, &last, &err)) {
	case WATCH_QUIT:
		*ret_code = leave(fg);
		return false;
	case WATCH_FINISHED:
		*ret_code = finish(fg, &last);
		return false;
	case WATCH_STOPPED:
		if (fg->spawned)
			wait_end(fg);
		print_newest(fg, "The same command goes on from here.\n");
		*ret_code = CTL_OK;
		return false;
	case WATCH_SILENT:
	case WATCH_LOST:
		break;
	}
	return lost(fg, &err, ret_code);
}

static void run_until_over(struct foreground *fg, int *ret_code)
{
	nsec_t begun = clock_monotonic_ns();

	for (int restarts = 0; run_once(fg, ret_code) && restarts < RESTARTS_MAX; restarts++) {
		nsec_t now = clock_monotonic_ns();

		if (now - begun > LIVED_SECONDS * NSEC_PER_SEC)
			restarts = 0;
		begun = now;
		fprintf(fg->ctl->err, "ckptctl: starting ckptd again\n");
	}
}

int verb_run(struct ctl *ctl, const struct args *args)
{
	struct foreground fg = {.ctl = ctl, .args = args, .run_fd = -1};
	struct error err;
	bool created;
	int code = CTL_FAILED, sets = 0, at = 0;

	while (args_next(args, "set", &at) != NULL)
		sets++;
	int r = sets > SETS_MAX ? error_set(&err, -EINVAL, "more than %d --set", SETS_MAX)
				: setup_read(ctl, args, &fg.setup, &err);
	if (r < 0)
		return ctl_fail(ctl, -EINVAL, &err);
	fg.run_fd = setup_folder(&fg.setup, &created, &err);
	if (fg.run_fd < 0)
		return ctl_fail(ctl, fg.run_fd, &err);
	if (created)
		fprintf(ctl->out, "new run in %s\n", fg.setup.dir);
	if (strcmp(fg.setup.config.socket, "auto") == 0)
		snprintf(fg.socket, sizeof(fg.socket), "%s/%s", fg.setup.dir, SOCKET_NAME);
	else
		snprintf(fg.socket, sizeof(fg.socket), "%s", fg.setup.config.socket);
	fg.signal_fd = watch_signals(&fg.old_mask);
	if (fg.signal_fd < 0) {
		error_set(&err, fg.signal_fd, "signals: %s", strerror(-fg.signal_fd));
		code = ctl_fail(ctl, fg.signal_fd, &err);
	} else {
		run_until_over(&fg, &code);
		/* A wrong setting of a new run can be put right: it was never begun. */
		if (created && code == LINK_EXIT_CONFIG)
			setup_undo(fg.run_fd);
		close(fg.signal_fd);
		sigprocmask(SIG_SETMASK, &fg.old_mask, NULL);
	}
	close(fg.run_fd);
	return code;
}
