/* The test's hands in the guest, a service of its systemd: reads one command a line from the serial
 * port of the virtual machine, words apart by blanks, runs it, and answers "CODE LENGTH\n" and
 * LENGTH bytes of output. Two are its own: `mark TEXT` writes one sector with TEXT to the end of
 * the run's disk, behind the file system, so that a log of the disk's writes says when the test
 * knew something; `call SOCKET JSON` is one varlink call, for less than a program costs here. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024
#define WORDS_MAX 32
#define OUTPUT_MAX ((size_t)4 << 20)
#define SECTOR 512
#define DISK "/dev/vdb"

static int open_port(void)
{
	glob_t found;

	if (glob("/dev/vport*p1", 0, NULL, &found) != 0)
		return -1;
	return open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
}

static int split(char *line, char **words)
{
	int count = 0;
	char *word;

	while (count < WORDS_MAX - 1 && (word = strsep(&line, " ")) != NULL)
		if (*word != '\0')
			words[count++] = word;
	words[count] = NULL;
	return count;
}

static int mark(const char *text)
{
	static _Alignas(4096) char sector[SECTOR];
	int fd = open(DISK, O_WRONLY | O_DIRECT | O_CLOEXEC), code = 1;

	memset(sector, 0, sizeof(sector));
	snprintf(sector, sizeof(sector), "%s\n", text);
	if (fd >= 0) {
		off_t end = lseek(fd, 0, SEEK_END);

		code = pwrite(fd, sector, SECTOR, end - SECTOR) != SECTOR;
		close(fd);
	}
	return code;
}

/* 0 when an answer came; output is it, without its NUL. */
static int call(const char *path, const char *request, char *output, size_t *length)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t size = (ssize_t)strlen(request) + 1, got = 0;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
		send(fd, request, (size_t)size, MSG_NOSIGNAL) == size)
		while (*length < OUTPUT_MAX &&
			(got = read(fd, output + *length, OUTPUT_MAX - *length)) > 0) {
			*length += (size_t)got;
			if (output[*length - 1] == '\0')
				break;
		}
	if (fd >= 0)
		close(fd);
	if (got <= 0)
		return 1;
	*length -= 1;
	return 0;
}

/* The exit code, or 128 and the signal; output is filled as far as there is room. */
static int run(char **words, char *output, size_t *length)
{
	int ends[2], status = 0;
	ssize_t got;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0)
		return 126;
	if (pid == 0) {
		dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execvp(words[0], words);
		dprintf(STDERR_FILENO, "%s: %s\n", words[0], strerror(errno));
		_exit(127);
	}
	close(ends[1]);
	while (*length < OUTPUT_MAX &&
		(got = read(ends[0], output + *length, OUTPUT_MAX - *length)) > 0)
		*length += (size_t)got;
	close(ends[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void answer(FILE *port, char *line, char *output)
{
	char *words[WORDS_MAX];
	size_t length = 0;
	int code = 0, count = split(line, words);

	if (count == 2 && strcmp(words[0], "mark") == 0)
		code = mark(words[1]);
	else if (count == 3 && strcmp(words[0], "call") == 0)
		code = call(words[1], words[2], output, &length);
	else if (count > 0)
		code = run(words, output, &length);
	fprintf(port, "%d %zu\n", code, length);
	fwrite(output, 1, length, port);
	fflush(port);
}

int main(void)
{
	char line[LINE_MAX_BYTES], *output = malloc(OUTPUT_MAX);
	int fd = open_port();
	FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
	FILE *out = fd < 0 ? NULL : fdopen(dup(fd), "w");

	if (in == NULL || out == NULL || output == NULL)
		return 1;
	fprintf(out, "ready\n");
	fflush(out);
	while (fgets(line, sizeof(line), in) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		answer(out, line, output);
	}
	return 0;
}
