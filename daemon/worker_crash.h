/* Last words: on a fatal signal one line and a backtrace to stderr, whose tail the supervisor keeps
 * for the obituary; then the signal takes its course. */
#pragma once

/* role: what the line names; must outlive the process. */
void worker_crash_install(const char *role);
