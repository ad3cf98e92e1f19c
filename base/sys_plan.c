/* The fault plan of base/sys.h: read once, then counted at every hit. Without one a call costs one
 * atomic load. */
#include "base/sys_plan.h"

#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAULTS_MAX 16

struct planned {
	char point[48];
	uint64_t number; /* 0: every hit */
	struct sys_fault fault;
	_Atomic uint64_t hits;
};

static struct planned faults[FAULTS_MAX];
static _Atomic uint64_t fired_count;
static _Atomic int fault_count; /* -1 until the environment was read */
static pthread_once_t plan_once = PTHREAD_ONCE_INIT;

static const struct {
	const char *name;
	int code;
} errno_names[] = {
	{"EIO", EIO},
	{"ENOSPC", ENOSPC},
	{"EDQUOT", EDQUOT},
	{"EINTR", EINTR},
	{"ENOMEM", ENOMEM},
	{"EACCES", EACCES},
	{"EROFS", EROFS},
	{"EINVAL", EINVAL},
	{"EMFILE", EMFILE},
	{"ENOENT", ENOENT},
	{"EOPNOTSUPP", EOPNOTSUPP},
	{"EPERM", EPERM},
	{"EEXIST", EEXIST},
	{"EFBIG", EFBIG},
	{"EXDEV", EXDEV},
	{"ESTALE", ESTALE},
};

static int parse_action(const char *text, struct sys_fault *fault)
{
	static const struct {
		const char *name;
		enum sys_fault_action action;
	} actions[] = {{"short", FAULT_SHORT}, {"kill", FAULT_KILL}, {"stop", FAULT_STOP},
		{"flip", FAULT_FLIP}, {"eof", FAULT_EOF}, {"rot", FAULT_ROT}, {"skip", FAULT_SKIP},
		{"spin", FAULT_SPIN}, {"block", FAULT_BLOCK}};

	for (size_t i = 0; i < sizeof(actions) / sizeof(*actions); i++)
		if (strcmp(text, actions[i].name) == 0) {
			fault->action = actions[i].action;
			return 0;
		}
	for (size_t i = 0; i < sizeof(errno_names) / sizeof(*errno_names); i++)
		if (strcmp(text, errno_names[i].name) == 0) {
			fault->action = FAULT_ERRNO;
			fault->code = errno_names[i].code;
			return 0;
		}
	return -EINVAL;
}

/* POINT:N:ACTION */
static int parse_fault(const char *text, size_t length, struct planned *fault)
{
	char copy[128];
	char *number, *action, *end;

	if (length >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, text, length);
	copy[length] = 0;
	number = strchr(copy, ':');
	if (!number || number == copy || number - copy >= (ptrdiff_t)sizeof(fault->point))
		return -EINVAL;
	*number++ = 0;
	action = strchr(number, ':');
	if (!action)
		return -EINVAL;
	*action++ = 0;
	memcpy(fault->point, copy, strlen(copy) + 1);
	atomic_store(&fault->hits, 0);
	fault->number = 0;
	if (strcmp(number, "*") != 0) {
		fault->number = strtoull(number, &end, 10);
		if (*number < '0' || *number > '9' || *end || fault->number == 0)
			return -EINVAL;
	}
	return parse_action(action, &fault->fault);
}

static int load_plan(const char *plan)
{
	int count = 0;

	atomic_store(&fault_count, 0);
	atomic_store(&fired_count, 0);
	while (plan && *plan) {
		size_t length = strcspn(plan, ",");

		if (count == FAULTS_MAX || parse_fault(plan, length, &faults[count]) < 0)
			return -EINVAL;
		count++;
		plan += length + (plan[length] == ',');
	}
	atomic_store(&fault_count, count);
	return 0;
}

/* A plan that does not parse must not run as if there were none. */
static void load_environment(void)
{
	if (load_plan(getenv("CKPTD_FAULT")) < 0)
		PANIC("CKPTD_FAULT does not parse");
}

int sys_fault_plan(const char *plan)
{
	pthread_once(&plan_once, load_environment);
	return load_plan(plan);
}

uint64_t sys_fault_fired(void)
{
	return atomic_load(&fired_count);
}

static void spin(void)
{
	for (volatile unsigned turns = 0;; turns = turns + 1)
		;
}

/* As on a file system that does not answer. */
static void block(void)
{
	int ends[2];
	char byte;

	CHECK(pipe(ends) == 0);
	while (read(ends[0], &byte, 1) < 0)
		;
}

/* How many faults the plan has. */
static int planned_count(void)
{
	pthread_once(&plan_once, load_environment);
	return atomic_load_explicit(&fault_count, memory_order_acquire);
}

bool sys_fault_planned(void)
{
	return planned_count() > 0;
}

const struct sys_fault *sys_fault_at(const char *point)
{
	int count = planned_count();
	const struct planned *fired = NULL;

	for (int i = 0; i < count; i++) {
		if (strcmp(faults[i].point, point) != 0)
			continue;
		uint64_t hit = atomic_fetch_add(&faults[i].hits, 1) + 1;
		if (!fired && (faults[i].number == 0 || faults[i].number == hit))
			fired = &faults[i];
	}
	if (!fired)
		return NULL;
	atomic_fetch_add(&fired_count, 1);
	if (fired->fault.action == FAULT_KILL)
		kill(getpid(), SIGKILL);
	if (fired->fault.action == FAULT_STOP)
		kill(getpid(), SIGSTOP);
	if (fired->fault.action == FAULT_SPIN)
		spin();
	if (fired->fault.action == FAULT_BLOCK)
		block();
	return &fired->fault;
}

int sys_fault(const char *point)
{
	const struct sys_fault *fault = sys_fault_at(point);

	return fault && fault->action == FAULT_ERRNO ? -fault->code : 0;
}
