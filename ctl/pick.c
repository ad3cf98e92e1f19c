/* Finding a checkpoint file, with the caller's rights. */
#include "ctl/pick.h"

#include "ctl/client.h"
#include "store/recovery.h"
#include "store/run.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool pick_is_file(const char *text)
{
	size_t length = strlen(text), suffix = strlen(CHECKPOINT_SUFFIX);

	return strchr(text, '/') != NULL ||
		(length > suffix && strcmp(text + length - suffix, CHECKPOINT_SUFFIX) == 0);
}

int pick_dir(const char *path, const char **ret_name, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char dir[4096] = ".";

	if (slash != NULL && (size_t)(slash - path) + 1 >= sizeof(dir))
		return error_set(err, -ENAMETOOLONG, "the path is too long");
	if (slash != NULL) {
		memcpy(dir, path, (size_t)(slash - path) + 1);
		dir[slash - path + 1] = '\0';
	}
	*ret_name = slash != NULL ? slash + 1 : path;
	int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", dir, strerror(errno));
	return dir_fd;
}

int pick_file(const char *path, struct checkpoint_info *ret, struct error *err)
{
	const char *name;
	int dir_fd = pick_dir(path, &name, err);
	int fd = dir_fd < 0 ? dir_fd : checkpoint_open(dir_fd, name, ret, err);

	if (dir_fd >= 0)
		close(dir_fd);
	return fd;
}

/* Where the run's folder is. */
static int find_run_dir(const struct ctl *ctl, char *dir, size_t size, struct error *err)
{
	struct client client = {.fd = -1};
	struct stat st;
	char path[4096];
	json_t *reply = NULL;

	if (ctl->socket == NULL && ctl->instance == NULL) {
		const char *known = ctl->state_dir;

		if (known == NULL && stat(STATE_DIR_DEFAULT, &st) == 0 && S_ISDIR(st.st_mode))
			known = STATE_DIR_DEFAULT;
		if (known != NULL)
			return snprintf(dir, size, "%s", known) < (int)size ? 0 : -ENAMETOOLONG;
	}
	int r = client_find(ctl, path, sizeof(path), err);
	if (r == 0)
		r = client_open(path, &client, err);
	if (r == 0)
		r = client_call(&client, "Status", NULL, clock_monotonic_ns() + 10 * NSEC_PER_SEC,
			&reply, err);
	client_close(&client);
	if (r == 0 &&
		snprintf(dir, size, "%s",
			json_get_text(json_object_get(reply, "status"), "run_dir", "")) >=
			(int)size)
		r = error_set(err, -ENAMETOOLONG, "the path of the run's folder is too long");
	json_decref(reply);
	return r;
}

int pick_checkpoint(
	const struct ctl *ctl, const char *text, struct checkpoint_info *ret, struct error *err)
{
	char dir[4096];
	int fd = -1;

	if (text != NULL && pick_is_file(text))
		return pick_file(text, ret, err);
	int r = find_run_dir(ctl, dir, sizeof(dir), err);
	if (r < 0)
		return r;
	int run_fd = run_open_dir(dir, false, err);
	r = run_fd < 0 ? run_fd : recovery_pick(dir, run_fd, text, ret, &fd, err);
	if (run_fd >= 0)
		close(run_fd);
	return r < 0 ? r : fd;
}
