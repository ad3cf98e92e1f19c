/* Starting ckptd. It outlives this program and its terminal: own session, no descriptor of ours,
 * its output in a file. */
#include "ctl/spawn.h"

#include "ctl/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ARGUMENTS_MAX 160
#define LOG_BYTES_MAX ((off_t)8 << 20)
#define LOG_TAIL_BYTES 4096
#define LOG_TAIL_LINES 5

/* The path of ckptd, or its bare name for $PATH. */
static void find_program(char path[PATH_MAX])
{
	static const char *const beside[] = {"../supervisor/ckptd", "ckptd", "../sbin/ckptd",
		"../libexec/ckptd", "../libexec/ckptd/ckptd"};
	char self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[length > 0 ? length : 0] = '\0';
	char *slash = strrchr(self, '/');
	for (size_t i = 0; slash != NULL && i < sizeof(beside) / sizeof(beside[0]); i++) {
		int size = snprintf(
			path, PATH_MAX, "%.*s/%s", (int)(slash - self), self, beside[i]);
		struct stat st;

		if (size < PATH_MAX && stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
			access(path, X_OK) == 0)
			return;
	}
	snprintf(path, PATH_MAX, "ckptd");
}

/* Appends; an old log that has grown large is set aside first. */
static int open_log(const char *dir, struct spawn *spawn, struct error *err)
{
	char old[PATH_MAX + 8];
	struct stat st = {0};
	int length = snprintf(spawn->log_path, sizeof(spawn->log_path), "%s/ckptd.log", dir);

	if (length >= (int)sizeof(spawn->log_path))
		return error_set(err, -ENAMETOOLONG, "the path of the state folder is too long");
	snprintf(old, sizeof(old), "%s.old", spawn->log_path);
	if (stat(spawn->log_path, &st) == 0 && st.st_size > LOG_BYTES_MAX)
		rename(spawn->log_path, old);
	int fd = open(
		spawn->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0 || fstat(fd, &st) < 0) {
		int r = -errno;
		if (fd >= 0)
			close(fd);
		return error_set(err, r, "cannot open %s: %s", spawn->log_path, strerror(-r));
	}
	spawn->log_begun = st.st_size;
	return fd;
}

/* In the child: only what is safe between fork and exec. */
static _Noreturn void become_daemon(
	const char *program, const char *const *argv, int log_fd, const sigset_t *mask)
{
	static const char failed[] = "ckptctl: cannot execute ckptd: is it installed?\n";
	int null_fd = open("/dev/null", O_RDONLY);

	setsid();
	if (null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(log_fd, STDOUT_FILENO) >= 0 &&
		dup2(log_fd, STDERR_FILENO) >= 0) {
		signal(SIGPIPE, SIG_DFL);
		sigprocmask(SIG_SETMASK, mask, NULL);
		execvp(program, (char *const *)argv);
	}
	if (write(STDERR_FILENO, failed, sizeof(failed) - 1) < 0)
		_exit(126);
	_exit(127);
}

/* What a service manager told us is not for a ckptd in the foreground. */
static const char *const service_variables[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
	"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"};

int spawn_daemon(const char *dir, const char *const *arguments, const sigset_t *mask,
	struct spawn *ret, struct error *err)
{
	const char *argv[ARGUMENTS_MAX];
	char program[PATH_MAX];
	int count = 0;

	*ret = (struct spawn){.pid = -1};
	find_program(program);
	argv[count++] = "ckptd";
	for (; *arguments != NULL && count < ARGUMENTS_MAX - 1; arguments++)
		argv[count++] = *arguments;
	argv[count] = NULL;
	int log_fd = open_log(dir, ret, err);
	if (log_fd < 0)
		return log_fd;
	for (size_t i = 0; i < sizeof(service_variables) / sizeof(service_variables[0]); i++)
		unsetenv(service_variables[i]);
	pid_t pid = fork();
	if (pid == 0)
		become_daemon(program, argv, log_fd, mask);
	int r = pid < 0 ? -errno : 0;
	close(log_fd);
	if (r < 0)
		return error_set(err, r, "cannot start ckptd: %s", strerror(-r));
	ret->pid = pid;
	return 0;
}

/* What it logged since its start, at most the last LOG_TAIL_BYTES, as lines; the last ones when
 * there are more than LOG_TAIL_LINES. Returns how many. */
static int read_tail(const struct spawn *spawn, char tail[LOG_TAIL_BYTES + 1],
	const char *ret_lines[LOG_TAIL_LINES])
{
	int fd = open(spawn->log_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0)
		return 0;
	off_t from = fstat(fd, &st) == 0 ? st.st_size - LOG_TAIL_BYTES : 0;
	from = from < spawn->log_begun ? spawn->log_begun : from;
	ssize_t size = pread(fd, tail, LOG_TAIL_BYTES, from);
	close(fd);
	tail[size > 0 ? size : 0] = '\0';
	int count = 0;
	char *save;
	for (char *line = strtok_r(tail, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save)) {
		if (count == LOG_TAIL_LINES)
			memmove(ret_lines, ret_lines + 1, --count * sizeof(*ret_lines));
		ret_lines[count++] = line;
	}
	return count;
}

void spawn_print_log(const struct spawn *spawn, FILE *out)
{
	char tail[LOG_TAIL_BYTES + 1], clean[LOG_TAIL_BYTES + 1];
	const char *lines[LOG_TAIL_LINES];
	int count = read_tail(spawn, tail, lines);

	for (int i = 0; i < count; i++) {
		text_clean(lines[i], clean, sizeof(clean));
		fprintf(out, "  %s\n", clean);
	}
}

bool spawn_last_words(const struct spawn *spawn, char *text, size_t size)
{
	static const char level[] = " error: ";
	char tail[LOG_TAIL_BYTES + 1];
	const char *lines[LOG_TAIL_LINES];
	int count = read_tail(spawn, tail, lines);

	if (count == 0)
		return false;
	const char *words = strstr(lines[count - 1], level);
	text_clean(words != NULL ? words + strlen(level) : lines[count - 1], text, size);
	return true;
}
