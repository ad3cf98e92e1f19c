/* The protocol of sd_notify(3) and sd_listen_fds(3), by hand: libsystemd would pull in six more
 * libraries for these few lines. It must never block the loop and never trust the environment's
 * numbers. Invariant: after notify_init and notify_take_passed no child inherits the variables. */
#include "supervisor/notify.h"

#include "base/panic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_FDS_FIRST 3

/* A whole non-negative decimal number; -1 for anything else. */
static long parse_count(const char *text)
{
	char *end;

	if (!text || *text < '0' || *text > '9')
		return -1;
	errno = 0;
	long value = strtol(text, &end, 10);

	return errno == 0 && *end == '\0' ? value : -1;
}

static bool meant_for_us(const char *pid_variable)
{
	const char *text = getenv(pid_variable);

	return text && parse_count(text) == (long)getpid();
}

int notify_init(struct notify *notify, struct error *err)
{
	const char *address = getenv("NOTIFY_SOCKET");
	const char *pid = getenv("WATCHDOG_PID");
	long usec = parse_count(getenv("WATCHDOG_USEC"));
	int code = 0;

	*notify = (struct notify){.fd = -1};
	if (address && *address) {
		size_t length = strlen(address);

		if ((*address != '/' && *address != '@') || length < 2 ||
			length >= sizeof(notify->address)) {
			code = error_set(err, -EINVAL, "NOTIFY_SOCKET=%s is not a socket's address",
				address);
		} else {
			memcpy(notify->address, address, length + 1);
			notify->address_size = (unsigned)(offsetof(struct sockaddr_un, sun_path) +
				length);
			notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		}
	}
	if (usec > 0 && (!pid || meant_for_us("WATCHDOG_PID")))
		notify->watchdog_ns = usec * NSEC_PER_USEC;
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
	return code;
}

void notify_fini(struct notify *notify)
{
	if (notify->fd >= 0)
		close(notify->fd);
	notify->fd = -1;
}

static int send_message(struct notify *notify, const char *text, size_t size, int pass_fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct iovec part = {.iov_base = (void *)text, .iov_len = size};
	struct msghdr message = {.msg_name = &address,
		.msg_namelen = notify->address_size,
		.msg_iov = &part,
		.msg_iovlen = 1};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	ssize_t sent;

	if (notify->fd < 0)
		return 0;
	CHECK(size > 0);
	CHECK(notify->address_size <= sizeof(address));
	memcpy(address.sun_path, notify->address, sizeof(address.sun_path));
	if (address.sun_path[0] == '@')
		address.sun_path[0] = '\0';
	if (pass_fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.room);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &pass_fd, sizeof(int));
	}
	do
		sent = sendmsg(notify->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

int notify_send(struct notify *notify, const char *fmt, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, fmt);
	int size = vsnprintf(text, sizeof(text), fmt, arguments);

	va_end(arguments);
	CHECK(size > 0);
	if ((size_t)size >= sizeof(text))
		return -EMSGSIZE;
	return send_message(notify, text, (size_t)size, -1);
}

int notify_store_fd(struct notify *notify, const char *name, int fd)
{
	char text[128];
	int size = snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s", name);

	CHECK(size > 0 && (size_t)size < sizeof(text));
	CHECK(fd >= 0);
	return send_message(notify, text, (size_t)size, fd);
}

int notify_remove_fd(struct notify *notify, const char *name)
{
	return notify_send(notify, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

/* The i-th name of a list separated by colons; "unknown" when there is none. */
static void passed_name(const char *names, int i, char ret[NOTIFY_NAME_MAX])
{
	snprintf(ret, NOTIFY_NAME_MAX, "unknown");
	for (; names && i > 0; i--) {
		names = strchr(names, ':');
		if (names)
			names++;
	}
	if (!names)
		return;
	size_t length = strcspn(names, ":");

	if (length > 0 && length < NOTIFY_NAME_MAX) {
		memcpy(ret, names, length);
		ret[length] = '\0';
	}
}

void notify_take_passed(struct notify_passed *ret)
{
	const char *names = getenv("LISTEN_FDNAMES");
	long count = parse_count(getenv("LISTEN_FDS"));

	*ret = (struct notify_passed){0};
	if (count > 0 && count < 1024 && meant_for_us("LISTEN_PID")) {
		for (int i = 0; i < (int)count; i++) {
			int fd = LISTEN_FDS_FIRST + i;

			if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
				continue;
			if (ret->count == NOTIFY_PASSED_MAX) {
				close(fd);
				continue;
			}
			ret->fds[ret->count].fd = fd;
			passed_name(names, i, ret->fds[ret->count].name);
			ret->count++;
		}
	}
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDNAMES");
	CHECK(ret->count <= NOTIFY_PASSED_MAX);
}
