/* The varlink client. The daemon is not trusted with memory: replies are bounded frames, members
 * are read by type. */
#include "ctl/client.h"

#include "ctl/instance.h"
#include "proto/interface.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECT_SECONDS_MAX 5

int client_find(const struct ctl *ctl, char *path, size_t size, struct error *err)
{
	const char *from_environment = getenv("CKPTD_SOCKET");
	struct stat st;
	int length;

	if (ctl->socket != NULL)
		length = snprintf(path, size, "%s", ctl->socket);
	else if (ctl->instance != NULL)
		return instance_socket(INSTANCE_RUNTIME, ctl->instance, path, size, err);
	else if (ctl->state_dir != NULL)
		length = snprintf(path, size, "%s/%s", ctl->state_dir, SOCKET_NAME);
	else if (from_environment != NULL && from_environment[0] != '\0')
		length = snprintf(path, size, "%s", from_environment);
	else if (stat(STATE_DIR_DEFAULT, &st) == 0 && S_ISDIR(st.st_mode))
		length = snprintf(path, size, "%s/%s", STATE_DIR_DEFAULT, SOCKET_NAME);
	else
		return instance_socket(INSTANCE_RUNTIME, NULL, path, size, err);
	if (length < 0 || (size_t)length >= size)
		return error_set(err, -ENAMETOOLONG, "the path of the socket is too long");
	return 0;
}

/* A socket's address holds 107 bytes: a longer path goes through its opened folder. *ret_dir_fd has
 * to stay open until the connection stands. */
static int address_make(const char *path, struct sockaddr_un *ret, int *ret_dir_fd)
{
	char dir[4096];
	const char *slash = strrchr(path, '/');
	int length;

	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	*ret_dir_fd = -1;
	if (strlen(path) < sizeof(ret->sun_path)) {
		memcpy(ret->sun_path, path, strlen(path) + 1);
		return 0;
	}
	if (slash == NULL || (size_t)(slash - path) >= sizeof(dir))
		return -ENAMETOOLONG;
	memcpy(dir, path, (size_t)(slash - path));
	dir[slash - path] = '\0';
	*ret_dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*ret_dir_fd < 0)
		return -errno;
	length = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", *ret_dir_fd,
		slash + 1);
	return length < (int)sizeof(ret->sun_path) ? 0 : -ENAMETOOLONG;
}

static int connect_to(const char *path, bool wait)
{
	const struct timeval timeout = {.tv_sec = CONNECT_SECONDS_MAX};
	struct sockaddr_un address;
	int dir_fd, r = address_make(path, &address, &dir_fd);
	int fd = -1;

	if (r == 0) {
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (wait ? 0 : SOCK_NONBLOCK), 0);
		r = fd < 0 ? -errno : 0;
	}
	if (r == 0) {
		/* A full backlog blocks connect; this bounds it. */
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
		if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
			r = errno == EAGAIN ? -ETIMEDOUT : -errno;
		else if (!wait && fcntl(fd, F_SETFL, 0) < 0)
			r = -errno;
	}
	if (dir_fd >= 0)
		close(dir_fd);
	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : fd;
}

static int open_client(const char *path, bool wait, struct client *ret, struct error *err)
{
	int fd = connect_to(path, wait);

	*ret = (struct client){.fd = -1};
	switch (fd) {
	case -ENOENT:
	case -ENOTDIR:
		return error_set(err, -ENOTCONN,
			"ckptd is not running: there is no socket at %s (start it with 'ckptctl "
			"run' "
			"or 'systemctl start ckptd@NAME', or say --state DIR)",
			path);
	case -ECONNREFUSED:
		return error_set(err, -ECONNREFUSED,
			"ckptd is not running: nobody answers at %s (start it with 'ckptctl run' "
			"or "
			"'systemctl start ckptd@NAME')",
			path);
	case -EACCES:
	case -EPERM:
		return error_set(err, -EACCES,
			"not permitted to talk to ckptd at %s: be root, the service's user or in "
			"its "
			"group",
			path);
	}
	if (fd < 0)
		return error_set(err, fd, "cannot connect to %s: %s", path, strerror(-fd));
	ret->fd = fd;
	frame_reader_init(&ret->reader, FRAME_REPLY_MAX);
	return 0;
}

int client_open(const char *path, struct client *ret, struct error *err)
{
	return open_client(path, true, ret, err);
}

int client_open_now(const char *path, struct client *ret, struct error *err)
{
	return open_client(path, false, ret, err);
}

void client_close(struct client *client)
{
	if (client->fd >= 0) {
		close(client->fd);
		frame_reader_fini(&client->reader);
	}
	client->fd = -1;
}

int client_send(struct client *client, const char *method, json_t *parameters, bool more,
	nsec_t deadline, struct error *err)
{
	if (parameters == NULL)
		parameters = json_object();
	AUTO_JSON call = json_pack(
		"{s:s+,s:o}", "method", PROTO_INTERFACE ".", method, "parameters", parameters);
	if (call == NULL)
		return error_set(err, -ENOMEM, "out of memory");
	if (more)
		json_object_set_new(call, "more", json_true());
	int r = frame_send(client->fd, call, deadline);
	if (r == -ECONNRESET)
		return error_set(err, r, "ckptd closed the connection");
	return r < 0 ? error_set(err, r, "cannot send: %s", strerror(-r)) : 0;
}

/* The daemon's refusal as our error. */
static int reply_error(const json_t *reply, const char *name, struct error *err)
{
	const char *text = json_get_text(json_object_get(reply, "parameters"), "text", "");
	const char *dot = strrchr(name, '.');
	const char *last = dot != NULL ? dot + 1 : name;

	if (strcmp(last, "PermissionDenied") == 0)
		return error_set(err, -EPERM,
			"not permitted: only root and the user of ckptd may do this%s%s",
			text[0] != '\0' ? ": " : "", text);
	if (strcmp(last, "MethodNotFound") == 0 || strcmp(last, "MethodNotImplemented") == 0)
		return error_set(err, -ENOSYS,
			"the running ckptd does not know this: it is of "
			"another version than ckptctl");
	return error_set(err, -EREMOTEIO, "%s", text[0] != '\0' ? text : last);
}

int client_receive(struct client *client, nsec_t deadline, json_t **ret, struct error *err)
{
	json_t *reply;
	int r = frame_receive(client->fd, &client->reader, deadline, &reply, err);

	*ret = NULL;
	if (r == -ECONNRESET)
		return error_set(err, r, "ckptd closed the connection");
	if (r == -ETIMEDOUT)
		return error_set(err, r, "ckptd did not answer in time");
	if (r < 0)
		return r;
	const char *name = json_get_text(reply, "error", NULL);
	if (name != NULL)
		r = reply_error(reply, name, err);
	else if ((*ret = json_incref(json_object_get(reply, "parameters"))) == NULL)
		*ret = json_object();
	json_decref(reply);
	return r;
}

int client_poll(struct client *client, json_t **ret, struct error *err)
{
	int r = client_receive(client, 1, ret, err); /* a deadline long past */

	return r == -ETIMEDOUT ? -EAGAIN : r;
}

int client_call(struct client *client, const char *method, json_t *parameters, nsec_t deadline,
	json_t **ret, struct error *err)
{
	*ret = NULL;
	int r = client_send(client, method, parameters, false, deadline, err);
	return r < 0 ? r : client_receive(client, deadline, ret, err);
}
