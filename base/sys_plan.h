/* What a plan makes of one hit of a point. Private to base/sys*.c. */
#pragma once

enum sys_fault_action {
	FAULT_ERRNO,
	FAULT_SHORT,
	FAULT_KILL,
	FAULT_STOP,
	FAULT_FLIP,
	FAULT_EOF,
	FAULT_ROT,
	FAULT_SKIP,
	FAULT_SPIN,
	FAULT_BLOCK,
};

struct sys_fault {
	enum sys_fault_action action;
	int code; /* errno */
};

/* The one that fires at this hit, or NULL. */
const struct sys_fault *sys_fault_at(const char *point);
