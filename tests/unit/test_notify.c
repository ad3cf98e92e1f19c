/* sd_notify and the passed descriptors, against a socket of our own in systemd's place. */
#include "base/panic.h"
#include "supervisor/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Binds an abstract socket and names it in the environment. */
static int systemd_socket(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char name[64];
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(name, sizeof(name), "@ckptd-test-notify-%d", (int)getpid());
	memcpy(address.sun_path, name, strlen(name));
	address.sun_path[0] = '\0';
	assert_int_equal(
		bind(fd, (struct sockaddr *)&address,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))),
		0);
	assert_int_equal(setenv("NOTIFY_SOCKET", name, 1), 0);
	return fd;
}

/* One datagram; *ret_fd is the descriptor that came with it, or -1. */
static void receive(int fd, char *text, size_t size, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {.iov_base = text, .iov_len = size - 1};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);

	assert_true(got > 0);
	text[got] = '\0';
	*ret_fd = -1;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	if (header)
		memcpy(ret_fd, CMSG_DATA(header), sizeof(int));
}

static void messages_arrive(void **unused)
{
	int systemd = systemd_socket(), fd;
	struct notify notify;
	struct error error;
	char text[256];

	assert_int_equal(setenv("WATCHDOG_USEC", "30000000", 1), 0);
	assert_int_equal(notify_init(&notify, &error), 0);
	assert_true(notify.watchdog_ns == 30 * NSEC_PER_SEC);
	assert_int_equal(notify_send(&notify, "READY=1\nSTATUS=step %d", 7), 0);
	receive(systemd, text, sizeof(text), &fd);
	assert_string_equal(text, "READY=1\nSTATUS=step 7");
	assert_int_equal(fd, -1);
	notify_fini(&notify);
	close(systemd);
}

static void descriptors_are_stored_with_a_name(void **unused)
{
	int systemd = systemd_socket(), fd, memory = memfd_create("state", MFD_CLOEXEC);
	struct notify notify;
	struct error error;
	char text[256];

	assert_int_equal(notify_init(&notify, &error), 0);
	assert_int_equal(pwrite(memory, "whole", 5, 0), 5);
	assert_int_equal(notify_store_fd(&notify, "state", memory), 0);
	receive(systemd, text, sizeof(text), &fd);
	assert_string_equal(text, "FDSTORE=1\nFDNAME=state");
	assert_true(fd >= 0);
	memset(text, 0, sizeof(text));
	assert_int_equal(pread(fd, text, 5, 0), 5);
	assert_string_equal(text, "whole");
	close(fd);
	assert_int_equal(notify_remove_fd(&notify, "state"), 0);
	receive(systemd, text, sizeof(text), &fd);
	assert_string_equal(text, "FDSTOREREMOVE=1\nFDNAME=state");
	notify_fini(&notify);
	close(memory);
	close(systemd);
}

static void children_inherit_nothing(void **unused)
{
	int systemd = systemd_socket();
	struct notify_passed passed;
	struct notify notify;
	struct error error;

	setenv("LISTEN_FDS", "2", 1);
	setenv("LISTEN_PID", "1", 1);
	setenv("LISTEN_FDNAMES", "a:b", 1);
	assert_int_equal(notify_init(&notify, &error), 0);
	notify_take_passed(&passed);
	assert_int_equal(passed.count, 0); /* meant for another process */
	assert_null(getenv("NOTIFY_SOCKET"));
	assert_null(getenv("LISTEN_FDS"));
	assert_null(getenv("LISTEN_PID"));
	assert_null(getenv("LISTEN_FDNAMES"));
	assert_null(getenv("WATCHDOG_USEC"));
	notify_fini(&notify);
	close(systemd);
}

static void without_systemd_nothing_happens(void **unused)
{
	struct notify notify;
	struct error error;

	unsetenv("NOTIFY_SOCKET");
	assert_int_equal(notify_init(&notify, &error), 0);
	assert_int_equal(notify_send(&notify, "READY=1"), 0);
	assert_int_equal(notify_store_fd(&notify, "state", 0), 0);
	assert_int_equal(notify.watchdog_ns, 0);
	notify_fini(&notify);
	setenv("NOTIFY_SOCKET", "vsock:1:2", 1);
	assert_int_equal(notify_init(&notify, &error), -EINVAL);
	assert_non_null(strstr(error.text, "vsock:1:2"));
	notify_fini(&notify);
}

/* In a process of its own: the passed descriptors are 3 and up. */
static int take_in_child(void)
{
	struct notify_passed passed;
	char pid[32];
	int fd = memfd_create("x", 0);

	if (dup2(fd, 3) < 0 || dup2(fd, 4) < 0 || dup2(fd, 5) < 0)
		return 1;
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("LISTEN_FDS", "3", 1);
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDNAMES", "status:state:", 1);
	notify_take_passed(&passed);
	if (passed.count != 3 || passed.fds[1].fd != 4)
		return 2;
	if (strcmp(passed.fds[0].name, "status") != 0 || strcmp(passed.fds[1].name, "state") != 0 ||
		strcmp(passed.fds[2].name, "unknown") != 0)
		return 3;
	for (int i = 0; i < 3; i++)
		if (!(fcntl(passed.fds[i].fd, F_GETFD) & FD_CLOEXEC))
			return 4;
	return 0;
}

static void passed_descriptors_are_taken_by_name(void **unused)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(take_in_child());
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_arrive),
		cmocka_unit_test(descriptors_are_stored_with_a_name),
		cmocka_unit_test(children_inherit_nothing),
		cmocka_unit_test(without_systemd_nothing_happens),
		cmocka_unit_test(passed_descriptors_are_taken_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
