/* See ctl/instance.h. The paths are those of systemd/ckptd@.service. */
#include "ctl/instance.h"

#include "ctl/client.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define NAMES_MAX 512 /* one name always fits */

/* What systemd takes after the @ as it is. */
static int check_name(const char *name, struct error *err)
{
	static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789:-_.";

	if (name[0] == '\0' || name[0] == '.' || name[strspn(name, good)] != '\0')
		return error_set(err, -EINVAL,
			"'%s' is no instance: ckptd@NAME has a NAME of letters, digits and :-_.",
			name);
	return 0;
}

static int name_path(const char *name, const char *before, const char *after, char *path,
	size_t size, struct error *err)
{
	int r = check_name(name, err);

	if (r < 0)
		return r;
	if (snprintf(path, size, "%s/%s%s", before, name, after) >= (int)size)
		return error_set(err, -ENAMETOOLONG, "the instance's name is too long");
	return 0;
}

int instance_config(const char *name, char *path, size_t size, struct error *err)
{
	return name_path(name, "/etc/ckptd", ".conf", path, size, err);
}

int instance_state(const char *name, char *path, size_t size, struct error *err)
{
	return name_path(name, "/var/lib/ckptd", "", path, size, err);
}

static bool has_socket(int runtime_fd, const char *name)
{
	char path[512];
	struct stat st;

	return snprintf(path, sizeof(path), "%s/%s", name, SOCKET_NAME) < (int)sizeof(path) &&
		fstatat(runtime_fd, path, &st, 0) == 0 && S_ISSOCK(st.st_mode);
}

/* The names of those with a socket, between commas. Returns how many there are. */
static int list_names(const char *runtime, char names[NAMES_MAX])
{
	DIR *dir = opendir(runtime);
	struct dirent *entry;
	int count = 0;

	names[0] = '\0';
	while (dir != NULL && (entry = readdir(dir)) != NULL) {
		size_t used = strlen(names);

		if (check_name(entry->d_name, NULL) < 0 || !has_socket(dirfd(dir), entry->d_name))
			continue;
		count++;
		if (snprintf(names + used, NAMES_MAX - used, "%s%s", used > 0 ? ", " : "",
			    entry->d_name) >= (int)(NAMES_MAX - used))
			names[used] = '\0'; /* many: those that fit */
	}
	if (dir != NULL)
		closedir(dir);
	return count;
}

int instance_socket(
	const char *runtime, const char *name, char *path, size_t size, struct error *err)
{
	char names[NAMES_MAX];

	if (name == NULL) {
		int count = list_names(runtime, names);

		if (count == 0)
			return error_set(err, -ENOTCONN,
				"ckptd is not running: there is no instance in %s (start one with "
				"'ckptctl run' or 'systemctl start ckptd@NAME', or say --state "
				"DIR)",
				runtime);
		if (count > 1)
			return error_set(err, -ENOTUNIQ,
				"%d instances of ckptd run here, say --instance NAME: %s", count,
				names);
		name = names;
	}
	return name_path(name, runtime, "/" SOCKET_NAME, path, size, err);
}
