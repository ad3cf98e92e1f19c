/* Signals: to the trainer, the saver, the supervisor, the preparer. Each took effect only when its
 * process was alive in that role, and then ended or stood still by it. */
#include "tests/chaos/chaos.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define DEATH_NS (30 * NSEC_PER_SEC)
#define POLLS 400
#define WATCHDOG_US 300000 /* until systemd would have had enough */

static int number_of(enum fault fault)
{
	switch (fault) {
	case SEGV_TRAINER:
	case SEGV_SAVER:
	case SEGV_SUPERVISOR:
		return SIGSEGV;
	case ABRT_TRAINER:
	case ABRT_SAVER:
	case ABRT_SUPERVISOR:
		return SIGABRT;
	default:
		return SIGKILL;
	}
}

/* As obituaries say it. */
static const char *death_text(const char *who, int number, char text[64])
{
	snprintf(text, 64, "%s died: killed by %s", who,
		number == SIGSEGV           ? "SIGSEGV"
			: number == SIGABRT ? "SIGABRT"
					    : "SIGKILL");
	return text;
}

static bool send_signal(pid_t pid, const char *role, int number)
{
	return pid > 0 && watch_state(pid, role) != 0 && kill(pid, number) == 0;
}

/* Stands still for a while, and is then still there. */
static bool stand_still(struct chaos *chaos, pid_t pid, const char *role, unsigned us)
{
	bool stopped;

	if (!send_signal(pid, role, SIGSTOP))
		return false;
	usleep(us);
	stopped = watch_state(pid, role) == 'T';
	kill(pid, SIGCONT);
	return stopped;
}

static pid_t wait_worker(struct chaos *chaos, const char *role)
{
	pid_t pid = 0;

	for (int i = 0; i < POLLS && pid == 0; i++)
		pid = rig_worker(&chaos->rig, role);
	return pid;
}

/* -- the trainer -- */

pid_t trainer_inside_a_step(struct chaos *chaos)
{
	chaos_let_a_step_finish(chaos);
	usleep(chaos_below(chaos, 20000));
	return rig_worker(&chaos->rig, "train");
}

void trainer_expect_no_step_lost(struct chaos *chaos, off_t mark, int64_t step)
{
	static const char from_memory[] = "goes on from memory at step ";
	char line[512];

	if (!chaos_log_says(chaos, mark, "goes on from", DEATH_NS, line))
		fail_msg("no trainer followed");
	const char *at = strstr(line, from_memory);

	if (!at || strtoll(at + strlen(from_memory), NULL, 10) < step)
		fail_msg("step %lld was finished, but: %s", (long long)step, line);
}

static bool stop_trainer(struct chaos *chaos, pid_t pid, off_t mark)
{
	char line[512];

	if (!send_signal(pid, "train", SIGSTOP))
		return false;
	if (!chaos_log_says(chaos, mark, "has not moved for", DEATH_NS, line))
		return false;
	chaos->hangs++;
	return true;
}

bool fault_of_trainer(struct chaos *chaos, enum fault fault)
{
	int64_t step;
	char line[512], text[64];
	pid_t pid = trainer_inside_a_step(chaos);
	off_t mark = chaos_log_end(chaos);

	step = rig_step(&chaos->rig);
	if (fault == PAUSE_TRAINER) {
		bool stood = stand_still(chaos, pid, "train", 50000 + chaos_below(chaos, 250000));

		chaos_let_a_step_finish(chaos);
		if (stood && rig_worker(&chaos->rig, "train") != pid)
			fail_msg("a trainer that was stopped for a moment was replaced");
		return stood;
	}
	if (fault == STOP_TRAINER) {
		if (!stop_trainer(chaos, pid, mark))
			return false;
	} else if (!send_signal(pid, "train", number_of(fault)) ||
		!chaos_log_says(chaos, mark, death_text("trainer", number_of(fault), text),
			DEATH_NS, line)) {
		return false;
	}
	trainer_expect_no_step_lost(chaos, mark, step);
	return true;
}

/* -- the saver -- */

static bool is_paused(const json_t *status, int64_t value)
{
	return strcmp(json_get_text(status, "state", ""), "paused") == 0;
}

/* The saver of a save that is asked for; 0 when it was faster. */
static pid_t saver_begin(struct chaos *chaos)
{
	chaos_let_a_step_finish(chaos);
	rig_send(&chaos->rig, "Save");
	return wait_worker(chaos, "save");
}

bool saver_spoil(struct chaos *chaos, bool (*spoil)(pid_t pid), const char *death)
{
	off_t mark = chaos_log_end(chaos);
	char line[512];

	chaos_let_a_step_finish(chaos);
	rig_send(&chaos->rig, "Pause");
	bool spoilt = spoil(wait_worker(chaos, "save"));

	rig_wait(&chaos->rig, "a pause", is_paused, 0);
	json_decref(rig_call(&chaos->rig, "Resume", NULL, NULL));
	return spoilt && chaos_log_says(chaos, mark, death, 0, line);
}

static bool stop_saver(pid_t pid)
{
	return send_signal(pid, "save", SIGSTOP);
}

bool fault_of_saver(struct chaos *chaos, enum fault fault)
{
	char line[512], text[64];
	bool took_effect;

	if (fault == STOP_SAVER)
		return saver_spoil(chaos, stop_saver, "saver died: hang");
	off_t mark = chaos_log_end(chaos);
	pid_t pid = saver_begin(chaos);
	int64_t step = rig_step(&chaos->rig);

	if (fault == PAUSE_SAVER) {
		took_effect = stand_still(chaos, pid, "save", 50000 + chaos_below(chaos, 250000));
	} else {
		usleep(chaos_below(chaos, 10000));
		took_effect = send_signal(pid, "save", number_of(fault)) &&
			chaos_log_says(chaos, mark, "save", DEATH_NS, line) &&
			chaos_log_says(chaos, mark, death_text("saver", number_of(fault), text),
				NSEC_PER_SEC, line);
	}
	/* Whatever became of it: saving goes on by itself. */
	json_decref(rig_call(&chaos->rig, "Save", json_pack("{s:b}", "wait", 1), line));
	rig_wait(&chaos->rig, "a save", is_saved, step);
	return took_effect;
}

/* -- the supervisor -- */

void supervisor_start(struct chaos *chaos)
{
	rig_start(&chaos->rig, NULL);
	hunger_add_supervisor(chaos);
	watch_supervisor(chaos, chaos->rig.supervisor, true);
}

static void check_resumed(struct chaos *chaos, off_t mark, int64_t step_before)
{
	int64_t floor = atomic_load(&chaos->watch->floor), resumed;
	char line[512];

	rig_wait(&chaos->rig, "a trainer at work", chaos_is_resting, 0);
	if (!chaos_log_says(chaos, mark, "goes on from", 0, line))
		return; /* it was over before */
	resumed = strtoll(strstr(line, "at step ") + strlen("at step "), NULL, 10);
	if (resumed < floor)
		fail_msg("resumed at step %lld, but step %lld was verified and whole",
			(long long)resumed, (long long)floor);
	if (resumed < step_before)
		chaos->redone += step_before - resumed;
}

void supervisor_start_and_check(struct chaos *chaos, int64_t step_before)
{
	off_t mark = chaos_log_end(chaos);

	supervisor_start(chaos);
	check_resumed(chaos, mark, step_before);
}

int supervisor_end(struct chaos *chaos, int number)
{
	pid_t pid = chaos->rig.supervisor;
	int status;

	watch_supervisor(chaos, pid, false);
	if (number == 0)
		return rig_stop(&chaos->rig);
	chaos->rig.supervisor = 0;
	kill(pid, number);
	kill(pid, SIGCONT);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* For a moment: nobody answers, and then all goes on. For good: systemd's watchdog ends it. */
static bool stop_supervisor(struct chaos *chaos, bool for_good)
{
	pid_t pid = chaos->rig.supervisor, trainer = rig_worker(&chaos->rig, "train");
	int64_t step = rig_step(&chaos->rig);
	unsigned us = for_good ? WATCHDOG_US : 50000 + chaos_below(chaos, 600000);
	bool stopped;

	watch_supervisor(chaos, pid, false);
	kill(pid, SIGSTOP);
	usleep(us);
	stopped = watch_state(pid, NULL) == 'T';
	if (for_good) {
		supervisor_end(chaos, SIGKILL);
		supervisor_start_and_check(chaos, step);
		return stopped;
	}
	kill(pid, SIGCONT);
	watch_supervisor(chaos, pid, true);
	chaos_let_a_step_finish(chaos);
	if (trainer != rig_worker(&chaos->rig, "train") && rig_step(&chaos->rig) < chaos->steps)
		fail_msg("the trainer was replaced after its supervisor was stopped for a moment");
	return stopped;
}

/* Again while it starts, and whatever it has begun by then. */
static bool kill_starting(struct chaos *chaos, int64_t step)
{
	off_t mark = chaos_log_end(chaos);
	char line[512];
	bool early;

	supervisor_end(chaos, SIGKILL);
	supervisor_start(chaos);
	usleep(chaos_below(chaos, 100000));
	early = !chaos_log_says(chaos, mark, "goes on from", 0, line);
	early = supervisor_end(chaos, SIGKILL) == -SIGKILL && early;
	supervisor_start_and_check(chaos, step);
	return early;
}

static bool kill_preparer(struct chaos *chaos, int64_t step)
{
	off_t mark = chaos_log_end(chaos);
	char line[512];
	bool sent;

	supervisor_end(chaos, SIGKILL);
	supervisor_start(chaos);
	pid_t pid = wait_worker(chaos, "prepare");

	usleep(chaos_below(chaos, 10000));
	sent = send_signal(pid, "prepare", SIGKILL);
	check_resumed(chaos, mark, step);
	return sent && chaos_log_says(chaos, mark, "prepare died: killed by SIGKILL", 0, line);
}

bool fault_of_supervisor(struct chaos *chaos, enum fault fault)
{
	int64_t step;
	int ended;

	chaos_let_a_step_finish(chaos);
	usleep(chaos_below(chaos, 20000));
	kept_update(chaos);
	step = rig_step(&chaos->rig);
	switch (fault) {
	case PAUSE_SUPERVISOR:
	case STOP_SUPERVISOR:
		return stop_supervisor(chaos, fault == STOP_SUPERVISOR);
	case KILL_STARTING:
		return kill_starting(chaos, step);
	case KILL_PREPARER:
		return kill_preparer(chaos, step);
	case RESTART_SUPERVISOR:
		ended = supervisor_end(chaos, 0);
		assert_int_equal(ended, 0);
		/* It saved its last step. */
		atomic_store(&chaos->watch->floor, step);
		break;
	default:
		ended = supervisor_end(chaos, number_of(fault)) == -number_of(fault) ? 0 : 1;
	}
	supervisor_start_and_check(chaos, step);
	return ended == 0;
}
