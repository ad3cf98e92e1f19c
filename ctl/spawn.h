/* Starting ckptd for the foreground command, in a session of its own. */
#pragma once

#include "base/error.h"

#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdbool.h>
#include <sys/types.h>

struct spawn {
	pid_t pid;
	char log_path[PATH_MAX];
	int64_t log_begun; /* bytes of the log before this start */
};

/* Runs ckptd with these arguments (NULL-terminated, without the program's name), its output to
 * DIR/ckptd.log, with signal mask mask. Found beside this program: ../supervisor/ckptd (build
 * tree), ./ckptd, ../libexec/ckptd; else $PATH. */
int spawn_daemon(const char *dir, const char *const *arguments, const sigset_t *mask,
	struct spawn *ret, struct error *err);
/* The last lines that it logged since its start, indented; nothing when there are none. */
void spawn_print_log(const struct spawn *spawn, FILE *out);
/* The last line alone, without its time and level; false when it logged nothing. */
bool spawn_last_words(const struct spawn *spawn, char *text, size_t size);
