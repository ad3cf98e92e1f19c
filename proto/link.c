/* The names of a worker's exit codes: the codes are part of the agreement in link.h. */
#include "proto/link.h"

const char *link_exit_name(int code)
{
	switch ((enum link_exit)code) {
	case LINK_EXIT_DONE:
		return "done";
	case LINK_EXIT_FAILED:
		return "failed";
	case LINK_EXIT_STORAGE:
		return "storage";
	case LINK_EXIT_TRANSIENT:
		return "transient";
	case LINK_EXIT_MEMORY_CORRUPT:
		return "memory corrupt";
	case LINK_EXIT_NONFINITE:
		return "non-finite";
	case LINK_EXIT_CONFIG:
		return "configuration";
	}
	return "exit code";
}
