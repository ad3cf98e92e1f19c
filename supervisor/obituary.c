/* The words of obituary.h. It must never decide what happens next: restart.c does. Invariant: the
 * texts are one line, ended, and free of control characters whatever the worker sent. */
#include "supervisor/obituary.h"

#include "base/panic.h"
#include "proto/link.h"
#include "supervisor/text.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

const char *signal_name(int number)
{
	static const struct {
		int number;
		const char *name;
	} names[] = {
		{SIGHUP, "SIGHUP"},
		{SIGINT, "SIGINT"},
		{SIGQUIT, "SIGQUIT"},
		{SIGILL, "SIGILL"},
		{SIGTRAP, "SIGTRAP"},
		{SIGABRT, "SIGABRT"},
		{SIGBUS, "SIGBUS"},
		{SIGFPE, "SIGFPE"},
		{SIGKILL, "SIGKILL"},
		{SIGUSR1, "SIGUSR1"},
		{SIGSEGV, "SIGSEGV"},
		{SIGUSR2, "SIGUSR2"},
		{SIGPIPE, "SIGPIPE"},
		{SIGALRM, "SIGALRM"},
		{SIGTERM, "SIGTERM"},
		{SIGXCPU, "SIGXCPU"},
		{SIGXFSZ, "SIGXFSZ"},
		{SIGSYS, "SIGSYS"},
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].number == number)
			return names[i].name;
	return "a signal";
}

/* Signals that a process does not send to itself by a mistake of its own. */
static bool from_outside(int number)
{
	return number == SIGKILL || number == SIGTERM || number == SIGINT || number == SIGHUP;
}

static void classify_exit(const struct ending *ending, struct obituary *ret)
{
	ret->cause_number = 256u + (uint32_t)(ending->exit_status & 255);
	ret->kind = DEATH_OWN;
	switch (ending->exit_status) {
	case LINK_EXIT_DONE:
		snprintf(ret->cause, sizeof(ret->cause), "ended without being asked");
		return;
	case LINK_EXIT_STORAGE:
		ret->kind = DEATH_STORAGE;
		snprintf(ret->cause, sizeof(ret->cause), "storage error");
		return;
	case LINK_EXIT_TRANSIENT:
		ret->kind = DEATH_TRANSIENT;
		snprintf(ret->cause, sizeof(ret->cause), "cannot go on now");
		return;
	case LINK_EXIT_MEMORY_CORRUPT:
		ret->kind = DEATH_MEMORY_CORRUPT;
		snprintf(ret->cause, sizeof(ret->cause), "memory corrupt");
		return;
	case LINK_EXIT_NONFINITE:
		ret->kind = DEATH_NONFINITE;
		snprintf(ret->cause, sizeof(ret->cause), "non-finite updates in a row");
		return;
	case LINK_EXIT_CONFIG:
		ret->person = true;
		snprintf(ret->cause, sizeof(ret->cause), "configuration");
		return;
	default:
		snprintf(ret->cause, sizeof(ret->cause), "exit code %d", ending->exit_status);
	}
}

static void classify(const struct ending *ending, struct obituary *ret)
{
	ret->kind = DEATH_OWN;
	if (ending->memory_corrupt) {
		ret->detected = "the sums of the state";
		ret->kind = DEATH_MEMORY_CORRUPT;
		ret->cause_number = OBITUARY_CORRUPT;
		snprintf(ret->cause, sizeof(ret->cause), "memory corrupt");
	} else if (ending->hang) {
		ret->detected = "no movement";
		ret->cause_number = OBITUARY_HANG;
		snprintf(ret->cause, sizeof(ret->cause), "hang");
	} else if (ending->protocol_broken) {
		ret->detected = "what it sent";
		ret->cause_number = OBITUARY_PROTOCOL;
		snprintf(ret->cause, sizeof(ret->cause), "spoke nonsense");
	} else if (ending->term_signal) {
		ret->detected = "its signal";
		ret->cause_number = (uint32_t)ending->term_signal;
		ret->kind = from_outside(ending->term_signal) ? DEATH_OUTSIDE : DEATH_OWN;
		snprintf(ret->cause, sizeof(ret->cause), "killed by %s%s",
			signal_name(ending->term_signal),
			ending->out_of_memory ? " (out of memory)" : "");
	} else {
		classify_exit(ending, ret);
	}
}

void obituary_write(const struct ending *ending, struct obituary *ret)
{
	CHECK(ending->role && ending->phase && ending->last_words);
	CHECK(ending->term_signal >= 0);
	*ret = (struct obituary){.kind = DEATH_OWN, .detected = "its exit code"};
	if (ending->asked && !ending->term_signal && ending->exit_status == LINK_EXIT_DONE) {
		ret->planned = true;
		snprintf(ret->cause, sizeof(ret->cause), "stopped");
		snprintf(ret->sentence, sizeof(ret->sentence), "%s ended as asked after step %llu",
			ending->role, (unsigned long long)ending->step);
		return;
	}
	classify(ending, ret);
	snprintf(ret->sentence, sizeof(ret->sentence),
		"%s died: %s, after step %llu in phase %s%s%.120s", ending->role, ret->cause,
		(unsigned long long)ending->step, ending->phase, *ending->last_words ? ": " : "",
		ending->last_words);
	text_flatten(ret->sentence);
	CHECK(ret->cause[0] && ret->sentence[0]);
}
