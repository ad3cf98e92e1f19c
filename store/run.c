/* The run's folder. run.json is small and durable at each change; everything a start decides about
 * whose folder this is comes from it, so it carries a check of its own and a lost one is remade
 * only from checkpoint headers that verify and agree. */
#include "store/run.h"

#include "base/clock.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"
#include "store/checkpoint.h"
#include "store/scan.h"
#include "store/sealed_json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define RUN_FORMAT 1
#define FOLDER_MODE 0750
#define FILE_MODE 0640

static const char *const wanted_names[] = {
	[WANTED_RUN] = "run",
	[WANTED_PAUSED] = "paused",
	[WANTED_STOPPED] = "stopped",
};
#define WANTED_COUNT (sizeof(wanted_names) / sizeof(wanted_names[0]))

const char *wanted_name(enum wanted wanted)
{
	CHECK(wanted < WANTED_COUNT);
	return wanted_names[wanted];
}

static int wanted_parse(const char *name, enum wanted *ret)
{
	for (size_t i = 0; i < WANTED_COUNT; i++) {
		if (strcmp(name, wanted_names[i]) == 0) {
			*ret = (enum wanted)i;
			return 0;
		}
	}
	return -EBADMSG;
}

void run_fini(struct run *run)
{
	json_decref(run->identity);
	run->identity = NULL;
}

/* -- folder and lock -- */

static int make_folders(int run_fd, const char *path, struct error *err)
{
	static const char *const names[] = {"checkpoints", "previews", "cache"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		int fd = file_open_dir(run_fd, names[i], FOLDER_MODE);

		if (fd < 0)
			return error_set(
				err, fd, "cannot create %s/%s: %s", path, names[i], strerror(-fd));
		sys_close(fd);
	}
	return 0;
}

int run_open_dir(const char *path, bool create, struct error *err)
{
	int fd, rc;

	if (create)
		fd = file_open_dir(AT_FDCWD, path, FOLDER_MODE);
	else
		fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(
			err, fd, "cannot open the run's folder %s: %s", path, strerror(-fd));
	rc = create ? make_folders(fd, path, err) : 0;
	if (rc < 0) {
		sys_close(fd);
		return rc;
	}
	return fd;
}

static pid_t read_owner(int fd)
{
	char text[24] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	return n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
}

/* The pid is for people; the lock itself is the kernel's. */
static void write_owner(int fd)
{
	char text[24];
	int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

	if (sys_ftruncate(fd, 0) == 0)
		file_write_exact(fd, text, (size_t)length, 0);
}

int run_lock(int run_fd, int *ret_fd, pid_t *ret_owner, struct error *err)
{
	pid_t owner;
	int fd = sys_openat(run_fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);

	if (fd < 0)
		return error_set(err, fd, "cannot open the run's lock: %s", strerror(-fd));
	int rc = sys_flock(fd, LOCK_EX | LOCK_NB);

	if (rc == 0) {
		write_owner(fd);
		*ret_fd = fd;
		return 0;
	}
	owner = read_owner(fd);
	sys_close(fd);
	if (ret_owner != NULL)
		*ret_owner = owner;
	if (rc == -EWOULDBLOCK)
		return error_set(
			err, rc, "the run is owned by process %ld or a worker of it", (long)owner);
	return error_set(err, rc, "cannot lock the run: %s", strerror(-rc));
}

/* -- run.json -- */

static json_t *identity_of(const struct config *config)
{
	json_t *identity = json_object();

	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);
		char text[CONFIG_TEXT_MAX];

		if (key->class != CONFIG_IDENTITY)
			continue;
		config_value_text(config, key, text);
		json_object_set_new(identity, key->key, json_string(text));
	}
	return identity;
}

static int parse_run(json_t *object, struct run *ret)
{
	json_t *identity = json_object_get(object, "identity");
	const char *key;
	int64_t verified;
	json_t *value;

	memset(ret, 0, sizeof(*ret));
	snprintf(ret->id_hex, sizeof(ret->id_hex), "%s", json_get_text(object, "run", ""));
	snprintf(ret->created, sizeof(ret->created), "%s", json_get_text(object, "created", ""));
	ret->power_paused = json_get_bool(object, "power_paused", false);
	/* Versions before had only the bool, and no way back to step 0. */
	verified = json_get_int(
		object, "verified_branch", json_get_bool(object, "ever_verified", false) ? 1 : 0);
	if (verified < 0 || verified > UINT32_MAX)
		return -EBADMSG;
	ret->verified_branch = (uint32_t)verified;
	if (bytes_from_hex(ret->id_hex, ret->id, RUN_ID_SIZE) < 0 ||
		wanted_parse(json_get_text(object, "wanted", ""), &ret->wanted) < 0 ||
		!json_is_object(identity))
		return -EBADMSG;
	json_object_foreach(identity, key, value)
	{
		if (!json_is_string(value))
			return -EBADMSG;
	}
	ret->identity = json_incref(identity);
	return 0;
}

int run_load(int run_fd, struct run *ret, struct error *err)
{
	AUTO_JSON object = NULL;
	int rc = sealed_json_read(run_fd, "run.json", RUN_FORMAT, &object, err);

	if (rc == -ENOENT)
		return error_set(
			err, rc, "no run here: the folder is not mounted, or needs `ckptctl init`");
	if (rc < 0)
		return rc;
	if (parse_run(object, ret) < 0)
		return error_set(
			err, -EBADMSG, "run.json is broken: a member is missing or out of range");
	return 0;
}

static int run_text(const struct run *run, char **ret_text)
{
	AUTO_JSON object = json_pack("{s:i, s:s, s:s, s:s, s:b, s:b, s:i, s:O}", "format",
		RUN_FORMAT, "run", run->id_hex, "created", run->created, "wanted",
		wanted_name(run->wanted), "power_paused", (int)run->power_paused, "ever_verified",
		(int)(run->verified_branch > 0), "verified_branch", (int)run->verified_branch,
		"identity", run->identity);

	return object == NULL ? -ENOMEM : sealed_json_text(object, ret_text);
}

static int write_run(int run_fd, const struct run *run, bool replace, struct error *err)
{
	char *text = NULL;
	int rc = run_text(run, &text);

	if (rc == 0 && replace)
		rc = file_replace(run_fd, "run.json", text, strlen(text), FILE_MODE);
	else if (rc == 0)
		rc = file_create(run_fd, "run.json", text, strlen(text), FILE_MODE);
	free(text);
	if (rc == -EEXIST)
		return error_set(err, rc, "there is a run here already (run.json)");
	if (rc < 0)
		return error_set(err, rc, "cannot write run.json: %s", strerror(-rc));
	return 0;
}

int run_create(int run_fd, const struct config *config, struct run *ret, struct error *err)
{
	int rc;

	memset(ret, 0, sizeof(*ret));
	digest_random_id(ret->id, RUN_ID_SIZE);
	bytes_to_hex(ret->id, RUN_ID_SIZE, ret->id_hex);
	clock_format_utc(clock_wall_ns(), ret->created);
	ret->wanted = WANTED_RUN;
	ret->identity = identity_of(config);
	rc = write_run(run_fd, ret, false, err);
	if (rc < 0)
		run_fini(ret);
	return rc;
}

int run_store(int run_fd, const struct run *run, struct error *err)
{
	return write_run(run_fd, run, true, err);
}

/* -- a lost run.json -- */

static int take_run(const struct checkpoint_info *info, bool first, struct run *ret)
{
	if (!first)
		return memcmp(ret->id, info->record.run_id, RUN_ID_SIZE) == 0 ? 0 : -EBADMSG;
	memcpy(ret->id, info->record.run_id, RUN_ID_SIZE);
	bytes_to_hex(ret->id, RUN_ID_SIZE, ret->id_hex);
	ret->identity = identity_of(&info->config);
	return 0;
}

/* Newest first; only headers that match their root have a say. */
static int agree_on_run(
	int checkpoints_fd, const struct scan *scan, struct run *ret, struct error *err)
{
	uint32_t agreed = 0;

	for (uint32_t i = 0; i < scan->file_count; i++) {
		struct checkpoint_info info;
		int fd = checkpoint_open(checkpoints_fd, scan->files[i].name, &info, err);
		int rc;

		if (fd == -EBADMSG)
			continue;
		if (fd < 0)
			return fd;
		rc = take_run(&info, agreed == 0, ret);
		/* The oldest one comes nearest to the time of creation. */
		snprintf(ret->created, sizeof(ret->created), "%s", info.created);
		sys_close(fd);
		checkpoint_info_fini(&info);
		if (rc < 0)
			return error_set(err, rc,
				"run.json is lost and the checkpoints belong to different runs (%s "
				"is not of %s); move the foreign ones away",
				scan->files[i].name, ret->id_hex);
		agreed++;
		if (ret->verified_branch < scan->files[i].branch)
			ret->verified_branch = scan->files[i].branch;
	}
	if (agreed > 0)
		return 0;
	return error_set(err, scan->file_count > 0 ? -EBADMSG : -ENOENT,
		"run.json is lost and there is no checkpoint to remake it from");
}

int run_remake(int run_fd, struct run *ret, struct error *err)
{
	struct scan scan;
	int fd, rc;

	memset(ret, 0, sizeof(*ret));
	ret->wanted = WANTED_RUN;
	fd = sys_openat(run_fd, "checkpoints", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, fd, "cannot open the checkpoints folder: %s", strerror(-fd));
	rc = scan_checkpoints(fd, &scan, err);
	if (rc == 0) {
		rc = agree_on_run(fd, &scan, ret, err);
		scan_fini(&scan);
	}
	sys_close(fd);
	if (rc == 0)
		rc = write_run(run_fd, ret, true, err);
	if (rc < 0)
		run_fini(ret);
	return rc;
}

/* -- configuration -- */

int run_check_identity(const struct run *run, const struct config *config, struct error *err)
{
	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);
		char text[CONFIG_TEXT_MAX];
		const char *was;

		if (key->class != CONFIG_IDENTITY)
			continue;
		config_value_text(config, key, text);
		/* A key that is younger than the run: its default is how it was. */
		was = json_get_text(run->identity, key->key, key->default_text);
		if (strcmp(was, text) != 0)
			return error_set(err, -ESTALE,
				"%s is '%s' but this run was made with '%s', which cannot change; "
				"set it back, or use another run (state_dir)",
				key->key, text, was);
	}
	return 0;
}

int run_write_last_good(int run_fd, const struct config *config, struct error *err)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	int rc = out != NULL ? config_write(config, out) : -ENOMEM;

	if (out != NULL && fclose(out) != 0 && rc == 0)
		rc = -ENOMEM;
	if (rc == 0)
		rc = file_replace(run_fd, "last-good.conf", text, size, FILE_MODE);
	free(text);
	if (rc < 0)
		return error_set(err, rc, "cannot write last-good.conf: %s", strerror(-rc));
	return 0;
}
