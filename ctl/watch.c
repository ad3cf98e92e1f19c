/* Looking on. One loop over a few descriptors: the status stream, the metrics for the curve, our
 * own request to stop, signals and keys. Nothing here waits for a single one of them. */
#include "ctl/watch.h"

#include "ctl/client.h"
#include "ctl/curve.h"
#include "ctl/terminal.h"
#include "ctl/text.h"
#include "ctl/view.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define STATUS_INTERVAL_MS 1000
#define SEND_SECONDS 5
#define PLAIN_SECONDS 5
#define METRICS_SECONDS 2
#define METRICS_PAGE 500
#define RETRY_NS (100 * NSEC_PER_MSEC) /* the first; then twice as long each time ... */
#define RETRY_MAX_NS (2 * NSEC_PER_SEC)
#define SILENT_NS NSEC_PER_SEC /* from a connection to its first status, before it is told */
#define AWAY_SECONDS 60        /* without a terminal somebody else must decide what then */
#define CURVE_STEPS_MAX 20000  /* the curve begins so many steps back: at most 40 pages */

enum stop_stage { STOP_NONE, STOP_SAVE, STOP_NOW, STOP_REFUSED };

struct watcher {
	const struct ctl *ctl;
	const struct watch_options *options;
	struct client status, metrics, control;
	bool metrics_asked;
	nsec_t metrics_next;
	nsec_t silent_since;         /* no status since; 0: it answers */
	bool lost;                   /* it answered, or could be reached, before */
	nsec_t retry_at, retry_wait; /* of a connection that is gone */
	int signal_fd;
	bool screen;
	struct terminal terminal;
	struct look look;
	nsec_t looked; /* when look came */
	bool some;     /* look is there */
	struct curve curve;
	int64_t curve_branch;
	enum stop_stage stop;
	char refusal[ERROR_TEXT_MAX + 32];
	/* plain lines */
	nsec_t line_next;
	char told_state[24], told_verified[48], told_death[256];
	int told_warnings;
};

int watch_signals(sigset_t *ret_old)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGTSTP);
	if (sigprocmask(SIG_BLOCK, &set, ret_old) < 0)
		return -errno;
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

/* -- showing -- */

static const char *hint(const struct watcher *watcher)
{
	switch (watcher->stop) {
	case STOP_SAVE:
		return "Saving, then stopping. Ctrl-C again stops without saving.";
	case STOP_NOW:
		return "Stopping without saving. Ctrl-C again leaves.";
	case STOP_REFUSED:
		return watcher->refusal;
	case STOP_NONE:
		break;
	}
	return watcher->options->run
		? "Ctrl-C saves and stops. q leaves it running; the same command comes back to it."
		: "q leaves. The run does not depend on this view.";
}

/* Worth a word: a daemon that comes up takes a moment. */
static bool is_away(const struct watcher *watcher)
{
	return watcher->lost ||
		(watcher->silent_since > 0 &&
			clock_monotonic_ns() - watcher->silent_since > SILENT_NS);
}

static void away_text(const struct watcher *watcher, char *text, size_t size)
{
	char since[TEXT_NUMBER_SIZE];

	text_seconds((double)(clock_monotonic_ns() - watcher->silent_since) / 1e9, since);
	snprintf(text, size, "ckptd does not answer; waiting (for %s now)%s", since,
		watcher->screen && watcher->some ? ". What it said last:" : "");
}

static int show_screen(struct watcher *watcher)
{
	struct view view = {
		.color = terminal_color(), .utf8 = terminal_utf8(), .stale = is_away(watcher)};
	struct look look = watcher->look;
	char *frame = NULL;
	size_t size;
	FILE *out = open_memstream(&frame, &size);

	if (out == NULL)
		return 0;
	terminal_size(watcher->ctl->out, &view.width, &view.height);
	view.hint = hint(watcher);
	look.verified_age += (double)(clock_monotonic_ns() - watcher->looked) / 1e9;
	if (view.stale) {
		snprintf(look.state, sizeof(look.state), "no answer");
		away_text(watcher, look.state_text, sizeof(look.state_text));
	}
	view_render(&view, &look, &watcher->curve, out);
	fclose(out);
	int r = terminal_show(&watcher->terminal, frame);
	free(frame);
	return r;
}

static void tell(const struct watcher *watcher, const char *text)
{
	char clock[16];
	time_t now = time(NULL);
	struct tm local;

	strftime(clock, sizeof(clock), "%H:%M:%S", localtime_r(&now, &local));
	fprintf(watcher->ctl->out, "%s %s\n", clock, text);
}

/* True, and remembered, when text is not what was told last. */
static bool is_new(char *told, size_t size, const char *text)
{
	if (strncmp(told, text, size - 1) == 0)
		return false;
	snprintf(told, size, "%s", text);
	return true;
}

static int show_lines(struct watcher *watcher)
{
	const struct look *look = &watcher->look;
	nsec_t now = clock_monotonic_ns();
	char text[LOOK_LINE_MAX];

	if (is_new(watcher->told_state, sizeof(watcher->told_state), look->state)) {
		bool named = strncmp(look->state_text, look->state, strlen(look->state)) == 0;

		snprintf(text, sizeof(text), "%s%s%s", named ? "" : look->state, named ? "" : ": ",
			look->state_text);
		tell(watcher, text);
	}
	if (look->has_death &&
		is_new(watcher->told_death, sizeof(watcher->told_death), look->death)) {
		snprintf(text, sizeof(text), "restarts %lld: %s", (long long)look->restarts,
			look->death);
		tell(watcher, text);
	}
	if (look->has_verified &&
		is_new(watcher->told_verified, sizeof(watcher->told_verified), look->verified_id)) {
		snprintf(text, sizeof(text), "verified %s: %s", look->verified_id,
			look->verified_path);
		tell(watcher, text);
	}
	for (int i = watcher->told_warnings; i < look->warning_count; i++) {
		snprintf(text, sizeof(text), "warning: %s", look->warnings[i]);
		tell(watcher, text);
	}
	watcher->told_warnings = look->warning_count;
	if (now >= watcher->line_next) {
		look_line(look, text);
		tell(watcher, text);
		watcher->line_next = now + PLAIN_SECONDS * NSEC_PER_SEC;
	}
	return fflush(watcher->ctl->out) == 0 ? 0 : -errno;
}

static int show_away(struct watcher *watcher)
{
	nsec_t now = clock_monotonic_ns();
	char text[LOOK_LINE_MAX];

	if (is_new(watcher->told_state, sizeof(watcher->told_state), "no answer") ||
		now >= watcher->line_next) {
		away_text(watcher, text, sizeof(text));
		tell(watcher, text);
		watcher->line_next = now + PLAIN_SECONDS * NSEC_PER_SEC;
	}
	return fflush(watcher->ctl->out) == 0 ? 0 : -errno;
}

static int show(struct watcher *watcher)
{
	bool away = is_away(watcher);

	if (!watcher->some && !away)
		return 0;
	if (watcher->screen)
		return show_screen(watcher);
	return away ? show_away(watcher) : show_lines(watcher);
}

/* -- the daemon -- */

static void ask_metrics(struct watcher *watcher)
{
	const struct look *look = &watcher->look;
	uint64_t after = watcher->curve.last_step;
	struct error err;

	if (!watcher->screen || watcher->metrics_asked || watcher->metrics.fd < 0 ||
		clock_monotonic_ns() < watcher->metrics_next)
		return;
	if (look->branch != watcher->curve_branch) { /* a rollback: the curve begins anew */
		curve_init(&watcher->curve);
		watcher->curve_branch = look->branch;
		after = 0;
	}
	if (after == 0 && look->step > CURVE_STEPS_MAX)
		after = (uint64_t)look->step - CURVE_STEPS_MAX;
	json_t *parameters = json_pack("{s:i,s:I,s:s}", "limit", METRICS_PAGE, "after_step",
		(json_int_t)after, "kind", "train");
	if (client_send(&watcher->metrics, "Metrics", parameters, false,
		    clock_monotonic_ns() + SEND_SECONDS * NSEC_PER_SEC, &err) < 0)
		client_close(&watcher->metrics);
	else
		watcher->metrics_asked = true;
}

/* The curve is an extra: without metrics there is none, and no error. */
static void take_metrics(struct watcher *watcher)
{
	struct error err;
	json_t *reply;
	const json_t *row;
	size_t i;
	int r = client_poll(&watcher->metrics, &reply, &err);

	if (r == -EAGAIN)
		return;
	watcher->metrics_asked = false;
	watcher->metrics_next = clock_monotonic_ns() + METRICS_SECONDS * NSEC_PER_SEC;
	if (r < 0) {
		if (r != -EREMOTEIO)
			client_close(&watcher->metrics);
		return;
	}
	const json_t *rows = json_object_get(reply, "metrics");
	uint64_t before = watcher->curve.last_step;
	json_array_foreach(rows, i, row) if (strcmp(json_get_text(row, "kind", "train"), "train") ==
		0) curve_add(&watcher->curve, (uint64_t)json_get_int(row, "step", 0),
		json_get_real(row, "loss", NAN));
	if (json_array_size(rows) >= METRICS_PAGE && watcher->curve.last_step > before)
		watcher->metrics_next = 0; /* there is more: the next page at once */
	json_decref(reply);
}

/* A stream of its status, which then has to come. */
static int ask_status(struct watcher *watcher, bool wait, struct error *err)
{
	const char *socket = watcher->options->socket;
	struct error unused;
	int r = wait ? client_open(socket, &watcher->status, err)
		     : client_open_now(socket, &watcher->status, err);

	if (r == 0)
		r = client_send(&watcher->status, "Status",
			json_pack("{s:i}", "interval_ms", STATUS_INTERVAL_MS), true,
			clock_monotonic_ns() + SEND_SECONDS * NSEC_PER_SEC, err);
	if (r < 0) {
		client_close(&watcher->status);
		return r;
	}
	if (watcher->screen && watcher->metrics.fd < 0)
		client_open_now(socket, &watcher->metrics, &unused);
	if (watcher->silent_since == 0)
		watcher->silent_since = clock_monotonic_ns();
	return 0;
}

/* The connection is gone: again in a while. */
static void lose(struct watcher *watcher)
{
	nsec_t now = clock_monotonic_ns();

	client_close(&watcher->status);
	client_close(&watcher->metrics);
	watcher->metrics_asked = false;
	if (watcher->silent_since == 0)
		watcher->silent_since = now;
	watcher->lost = true;
	watcher->retry_at = now + watcher->retry_wait;
	watcher->retry_wait *= 2;
	if (watcher->retry_wait > RETRY_MAX_NS)
		watcher->retry_wait = RETRY_MAX_NS;
}

static void retry(struct watcher *watcher)
{
	struct error unused;

	if (watcher->status.fd < 0 && clock_monotonic_ns() >= watcher->retry_at &&
		ask_status(watcher, false, &unused) < 0)
		lose(watcher);
}

/* Who waits at a terminal can leave; else, or when a time was given, it ends. */
static bool away_too_long(const struct watcher *watcher, struct error *err)
{
	nsec_t most = watcher->ctl->timeout_ns;
	char text[TEXT_NUMBER_SIZE];

	if (most == 0 && !watcher->screen)
		most = AWAY_SECONDS * NSEC_PER_SEC;
	if (watcher->options->run || most == 0 || watcher->silent_since == 0 ||
		clock_monotonic_ns() - watcher->silent_since < most)
		return false;
	error_set(err, -ETIMEDOUT, "ckptd has not answered for %s",
		text_seconds((double)most / 1e9, text));
	return true;
}

/* 0, or -errno when the stream is over. */
static int take_status(struct watcher *watcher, struct error *err)
{
	for (;;) {
		json_t *reply;
		int r = client_poll(&watcher->status, &reply, err);

		if (r == -EAGAIN)
			return 0;
		if (r < 0)
			return r;
		look_read(json_object_get(reply, "status"), &watcher->look);
		json_decref(reply);
		watcher->looked = clock_monotonic_ns();
		watcher->some = true;
		if (watcher->lost && !watcher->screen)
			tell(watcher, "ckptd answers again");
		watcher->lost = false;
		watcher->silent_since = 0;
		watcher->retry_wait = RETRY_NS;
	}
}

/* Asks for the stop without waiting for it: the answer, if it is a refusal, is shown. */
static void ask_stop(struct watcher *watcher, bool now)
{
	struct error err;

	client_close(&watcher->control);
	int r = client_open(watcher->options->socket, &watcher->control, &err);
	if (r == 0)
		r = client_send(&watcher->control, "Stop",
			json_pack("{s:b,s:b}", "exit", 1, "now", (int)now), false,
			clock_monotonic_ns() + SEND_SECONDS * NSEC_PER_SEC, &err);
	watcher->stop = now ? STOP_NOW : STOP_SAVE;
	if (r < 0) {
		watcher->stop = STOP_REFUSED;
		snprintf(watcher->refusal, sizeof(watcher->refusal), "%s", err.text);
	}
	if (!watcher->screen)
		tell(watcher, hint(watcher));
}

static void take_stop_reply(struct watcher *watcher)
{
	struct error err;
	json_t *reply = NULL;
	int r = client_poll(&watcher->control, &reply, &err);

	json_decref(reply);
	if (r == -EAGAIN)
		return;
	client_close(&watcher->control);
	if (r == 0 || r == -ECONNRESET)
		return;
	watcher->stop = STOP_REFUSED;
	snprintf(watcher->refusal, sizeof(watcher->refusal), "%s (Ctrl-C leaves)", err.text);
	if (!watcher->screen)
		tell(watcher, watcher->refusal);
}

/* -- the person -- */

/* True when the person leaves. */
static bool take_interrupt(struct watcher *watcher)
{
	if (!watcher->options->run || watcher->stop == STOP_NOW || watcher->stop == STOP_REFUSED)
		return true;
	ask_stop(watcher, watcher->stop == STOP_SAVE);
	return false;
}

static void suspend(struct watcher *watcher)
{
	terminal_leave(&watcher->terminal);
	raise(SIGSTOP);
	if (watcher->screen)
		terminal_enter(&watcher->terminal, watcher->ctl->out);
}

static bool take_signals(struct watcher *watcher)
{
	struct signalfd_siginfo info;
	bool leave = false;

	while (!leave && read(watcher->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			leave = true; /* the terminal is gone; the run goes on */
		else if (info.ssi_signo == SIGINT || info.ssi_signo == SIGTERM)
			leave = take_interrupt(watcher);
		else if (info.ssi_signo == SIGTSTP)
			suspend(watcher);
	}
	return leave;
}

static bool take_keys(const struct watcher *watcher)
{
	char keys[64];
	ssize_t n = read(STDIN_FILENO, keys, sizeof(keys));

	return n <= 0 || memchr(keys, 'q', (size_t)n) != NULL;
}

/* -- the loop -- */

static int watch_open(struct watcher *watcher, struct error *err)
{
	watcher->screen = !watcher->options->plain && terminal_possible(watcher->ctl->out);
	int r = ask_status(watcher, true, err);

	if (r == 0 && watcher->screen)
		terminal_enter(&watcher->terminal, watcher->ctl->out);
	return r;
}

/* The stream ended with r: true when that is the end of the watch too. */
static bool stream_over(struct watcher *watcher, int r, enum watch_end *ret_end)
{
	bool asked = watcher->stop == STOP_SAVE || watcher->stop == STOP_NOW;
	bool refused = r == -EPERM || r == -ENOSYS || (!watcher->some && r == -EREMOTEIO);

	show(watcher); /* what it said last */
	*ret_end = asked ? WATCH_STOPPED : WATCH_LOST;
	if (watcher->options->run || refused)
		return true;
	lose(watcher);
	return false;
}

static bool ready(const struct pollfd *poll_fd)
{
	return poll_fd->fd >= 0 && poll_fd->revents != 0;
}

/* As long as nothing happens. */
static int turn_ms(const struct watcher *watcher)
{
	nsec_t left = watcher->retry_at - clock_monotonic_ns();

	if (watcher->status.fd >= 0 || left > NSEC_PER_SEC)
		return 1000;
	return left > 0 ? (int)(left / NSEC_PER_MSEC) + 1 : 0;
}

/* One turn; true when it is over. */
static bool watch_turn(struct watcher *watcher, enum watch_end *ret_end, struct error *err)
{
	struct pollfd fds[] = {
		{.fd = watcher->status.fd, .events = POLLIN},
		{.fd = watcher->metrics_asked ? watcher->metrics.fd : -1, .events = POLLIN},
		{.fd = watcher->control.fd, .events = POLLIN},
		{.fd = watcher->signal_fd, .events = POLLIN},
		{.fd = watcher->terminal.keys ? STDIN_FILENO : -1, .events = POLLIN},
	};

	retry(watcher);
	fds[0].fd = watcher->status.fd;
	ask_metrics(watcher);
	if (watcher->metrics_asked)
		fds[1].fd = watcher->metrics.fd;
	poll(fds, sizeof(fds) / sizeof(fds[0]), turn_ms(watcher));
	if (ready(&fds[1]))
		take_metrics(watcher);
	if (ready(&fds[2]))
		take_stop_reply(watcher);
	*ret_end = WATCH_QUIT;
	if ((ready(&fds[3]) && take_signals(watcher)) || (ready(&fds[4]) && take_keys(watcher)))
		return true;
	int r = ready(&fds[0]) ? take_status(watcher, err) : 0;
	if (r < 0 && stream_over(watcher, r, ret_end))
		return true;
	if (show(watcher) < 0)
		return true; /* the terminal is gone */
	*ret_end = WATCH_SILENT;
	if (away_too_long(watcher, err))
		return true;
	*ret_end = WATCH_FINISHED;
	return watcher->options->run && watcher->some &&
		strcmp(watcher->look.state, "finished") == 0;
}

enum watch_end watch(const struct ctl *ctl, const struct watch_options *options,
	struct look *ret_last, struct error *err)
{
	struct watcher *watcher = calloc(1, sizeof(*watcher));
	enum watch_end end = WATCH_LOST;
	sigset_t old;

	if (watcher == NULL) {
		error_set(err, -ENOMEM, "out of memory");
		return WATCH_LOST;
	}
	watcher->ctl = ctl;
	watcher->options = options;
	watcher->status.fd = watcher->metrics.fd = watcher->control.fd = -1;
	watcher->retry_wait = RETRY_NS;
	look_read(NULL, &watcher->look);
	curve_init(&watcher->curve);
	bool own_signals = options->signal_fd == 0;
	watcher->signal_fd = own_signals ? watch_signals(&old) : options->signal_fd;
	if (watcher->signal_fd < 0)
		error_set(err, watcher->signal_fd, "signals: %s", strerror(-watcher->signal_fd));
	else if (watch_open(watcher, err) == 0)
		while (!watch_turn(watcher, &end, err))
			;
	terminal_leave(&watcher->terminal);
	client_close(&watcher->status);
	client_close(&watcher->metrics);
	client_close(&watcher->control);
	if (own_signals && watcher->signal_fd >= 0) {
		close(watcher->signal_fd);
		sigprocmask(SIG_SETMASK, &old, NULL);
	}
	if (ret_last != NULL)
		*ret_last = watcher->look;
	free(watcher);
	return end;
}
