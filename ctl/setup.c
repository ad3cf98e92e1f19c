/* A run's folder from the command line. A run is made only under the run's lock and only where
 * neither run.json nor checkpoints to remake it from are found. */
#include "ctl/setup.h"

#include "base/file.h"
#include "base/sys.h"
#include "ctl/instance.h"
#include "store/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int apply_sets(const struct args *args, struct config *config, struct error *err)
{
	const char *set;

	for (int at = 0; (set = args_next(args, "set", &at)) != NULL;) {
		const char *equals = strchr(set, '=');
		char key[64];

		if (equals == NULL || equals == set || (size_t)(equals - set) >= sizeof(key))
			return error_set(err, -EINVAL, "--set is '%s', key=value is needed", set);
		memcpy(key, set, (size_t)(equals - set));
		key[equals - set] = '\0';
		int r = config_set(config, key, equals + 1, "--set", err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_config(
	const struct args *args, const char *path, struct config *config, struct error *err)
{
	int r = 0;

	config_defaults(config);
	if (path[0] != '\0')
		r = config_parse_file(config, path, err);
	return r < 0 ? r : apply_sets(args, config, err);
}

int setup_read(const struct ctl *ctl, const struct args *args, struct setup *ret, struct error *err)
{
	const char *path = args_text(args, "config");
	char last_good[PATH_MAX], own_config[PATH_MAX], own_state[PATH_MAX];
	const char *state_dir = ctl->state_dir;

	*ret = (struct setup){0};
	if (ctl->instance != NULL) {
		int r = instance_config(ctl->instance, own_config, sizeof(own_config), err);
		if (r == 0)
			r = instance_state(ctl->instance, own_state, sizeof(own_state), err);
		if (r < 0)
			return r;
		path = path != NULL ? path : own_config;
		state_dir = state_dir != NULL ? state_dir : own_state;
	}
	if (path != NULL && strlen(path) >= sizeof(ret->config_path))
		return error_set(err, -ENAMETOOLONG, "the path of the configuration is too long");
	snprintf(ret->config_path, sizeof(ret->config_path), "%s", path != NULL ? path : "");
	int r = read_config(args, ret->config_path, &ret->config, err);
	if (r < 0)
		return r;
	const char *dir = state_dir != NULL ? state_dir : ret->config.state_dir;
	if (snprintf(ret->dir, sizeof(ret->dir), "%s", dir) >= (int)sizeof(ret->dir))
		return error_set(err, -ENAMETOOLONG, "the path of the state folder is too long");
	if (path == NULL) {
		/* The same command again, without its settings: the run knows them. */
		int length = snprintf(last_good, sizeof(last_good), "%s/last-good.conf", ret->dir);
		if (length < (int)sizeof(last_good) && access(last_good, R_OK) == 0) {
			memcpy(ret->config_path, last_good, sizeof(last_good));
			r = read_config(args, ret->config_path, &ret->config, err);
		}
	}
	return r < 0 ? r : config_check(&ret->config, err);
}

/* Under the lock. */
static int make_run(int run_fd, const struct setup *setup, bool *ret_created, struct error *err)
{
	struct run run;
	int r = run_load(run_fd, &run, err);

	if (r == -ENOENT && setup->make != NULL) {
		r = setup->make(setup->context, setup->dir, run_fd, &setup->config, err);
		*ret_created = r == 0;
		return r;
	}
	if (r == -ENOENT)
		r = run_remake(run_fd, &run, err);
	if (r == -ENOENT) {
		r = run_create(run_fd, &setup->config, &run, err);
		*ret_created = r == 0;
		if (r == 0)
			r = run_write_last_good(run_fd, &setup->config, err);
	}
	if (r == 0)
		run_fini(&run);
	return r;
}

int setup_folder(struct setup *setup, bool *ret_created, struct error *err)
{
	int lock_fd, run_fd = run_open_dir(setup->dir, true, err);
	char absolute[PATH_MAX];
	pid_t owner;

	*ret_created = false;
	if (run_fd < 0)
		return run_fd;
	int r = realpath(setup->dir, absolute) == NULL ? -errno : 0;
	if (r < 0)
		error_set(err, r, "cannot resolve %s: %s", setup->dir, strerror(-r));
	else
		memcpy(setup->dir, absolute, sizeof(absolute));
	if (r == 0)
		r = run_lock(run_fd, &lock_fd, &owner, err);
	if (r == 0) {
		r = make_run(run_fd, setup, ret_created, err);
		close(lock_fd);
	} else if (r == -EWOULDBLOCK) {
		r = 0; /* somebody works in it: then there is a run */
	}
	if (r < 0) {
		close(run_fd);
		return r;
	}
	return run_fd;
}

static bool has_entries(int run_fd, const char *folder)
{
	int fd = sys_openat(run_fd, folder, O_RDONLY | O_DIRECTORY, 0);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	bool found = false;

	if (dir == NULL) {
		if (fd >= 0)
			sys_close(fd);
		return fd != -ENOENT; /* what cannot be read may hold something */
	}
	while (!found && (entry = readdir(dir)) != NULL)
		found = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
	closedir(dir);
	return found;
}

void setup_undo(int run_fd)
{
	int lock_fd;
	pid_t owner;

	if (run_lock(run_fd, &lock_fd, &owner, NULL) < 0)
		return;
	if (!has_entries(run_fd, "checkpoints") && sys_unlinkat(run_fd, "run.json") == 0) {
		sys_unlinkat(run_fd, "last-good.conf");
		file_sync_dir(run_fd);
	}
	close(lock_fd);
}

int setup_become_owner(const char *dir, struct error *err)
{
	char copy[PATH_MAX];
	struct stat st;

	if (geteuid() != 0)
		return 0;
	snprintf(copy, sizeof(copy), "%s", dir);
	if ((stat(dir, &st) < 0 && stat(dirname(copy), &st) < 0) || st.st_uid == 0)
		return 0;
	if (setegid(st.st_gid) < 0 || seteuid(st.st_uid) < 0)
		return error_set(err, -errno, "cannot become the owner of %s", dir);
	return 0;
}

void setup_become_self(void)
{
	if (seteuid(getuid()) == 0 && setegid(getgid()) == 0)
		return;
}
