/* ckptd-worker ROLE: started by the supervisor, never by hand (proto/link.h). This file is compiled
 * for any CPU: it ties the worker's life to the supervisor's, sees that the CPU can run the
 * training code, and only then calls it. */
#include "base/error.h"
#include "daemon/worker_cpu.h"
#include "daemon/worker_crash.h"
#include "daemon/worker_main.h"
#include "proto/frame.h"
#include "proto/json.h"
#include "proto/link.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

static int refuse(const char *text)
{
	AUTO_JSON failed = json_pack("{s:{s:s}}", "failed", "text", text);
	struct stat link;

	fprintf(stderr, "ckptd-worker: %s\n", text);
	if (failed && fstat(LINK_FD, &link) == 0 && S_ISSOCK(link.st_mode))
		(void)frame_send(LINK_FD, failed, clock_monotonic_ns() + NSEC_PER_SEC);
	return LINK_EXIT_CONFIG;
}

int main(int argc, char **argv)
{
	struct error err;

	/* First of all: whatever happens to the supervisor, no worker outlives it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		puts("ckptd-worker " CKPTD_VERSION);
		return 0;
	}
	if (argc != 2)
		return refuse("usage: ckptd-worker ROLE (ckptd starts it; see `ckptd --help`)");
	if (worker_cpu_check(&err) < 0)
		return refuse(err.text);
	worker_crash_install(argv[1]);
	return worker_main(argv[1]);
}
