/* The worker after the CPU check: reads its orders, says hello, runs one role. */
#pragma once

/* Returns the process's exit code (enum link_exit). */
int worker_main(const char *role);
