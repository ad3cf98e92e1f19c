/* One line to stderr per message. Under systemd (JOURNAL_STREAM matches stderr) the line starts
 * with the <N> priority that the journal understands, else with the time and the level. Only the
 * edges log: mains, the supervisor, worker_*. */
#pragma once

enum log_level {
	LOG_LEVEL_ERROR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7
};

/* ident must outlive the process ("ckptd", "ckptd-worker"). */
void log_open(const char *ident, enum log_level max);
void log_set_level(enum log_level max);
int log_level_parse(const char *name, enum log_level *ret);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_write(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
