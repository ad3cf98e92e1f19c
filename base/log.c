/* One write(2) for each line, so that lines of several processes do not mix. */
#include "base/log.h"

#include "base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *log_ident = "ckptd";
static enum log_level log_max = LOG_LEVEL_INFO;
static int log_to_journal;

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error",
	[LOG_LEVEL_WARNING] = "warning",
	[LOG_LEVEL_NOTICE] = "notice",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DEBUG] = "debug",
};

/* JOURNAL_STREAM is "device:inode" of the journal's socket (systemd.exec(5)). */
static int stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
		fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

void log_open(const char *ident, enum log_level max)
{
	log_ident = ident;
	log_max = max;
	log_to_journal = stderr_is_journal();
}

void log_set_level(enum log_level max)
{
	log_max = max;
}

int log_level_parse(const char *name, enum log_level *ret)
{
	for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++)
		if (strcmp(level_names[i], name) == 0) {
			*ret = (enum log_level)i;
			return 0;
		}
	return -EINVAL;
}

void log_write(enum log_level level, const char *fmt, ...)
{
	char line[2048];
	int used;
	va_list args;

	if (level > log_max)
		return;
	if (log_to_journal) {
		used = snprintf(line, sizeof(line), "<%d>", (int)level);
	} else {
		char now[CLOCK_TEXT_SIZE];

		clock_format_utc(clock_wall_ns(), now);
		used = snprintf(
			line, sizeof(line), "%s %s %s: ", now, log_ident, level_names[level]);
	}
	va_start(args, fmt);
	int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, fmt, args);
	va_end(args);
	if (more < 0)
		return;
	size_t length = strlen(line);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = ' ';
	line[length++] = '\n';
	/* Nobody to tell when stderr itself fails. */
	if (write(STDERR_FILENO, line, length) < 0)
		return;
}
