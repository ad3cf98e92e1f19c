/* `ckptctl export`: a folder that diffusers' pipelines load. Here, with the caller's rights; every
 * chunk of the weights is compared with its digest while it is read. model_index.json is written
 * last: a folder without it is no pipeline. */
#include "ctl/export.h"

#include "base/file.h"
#include "ctl/pick.h"
#include "ctl/text.h"
#include "ctl/verbs.h"
#include "store/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FOLDER_MODE 0755
#define FILE_MODE 0644
#define WEIGHTS_NAME "diffusion_pytorch_model.safetensors"
#define WEIGHTS_PATH "unet/" WEIGHTS_NAME

/* True when the folder holds nothing; -errno. */
static int is_empty(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;
	int others = 0;

	if (dir == NULL) {
		int r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	while ((entry = readdir(dir)) != NULL)
		others += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
	closedir(dir);
	return others == 0;
}

static int open_target(const char *path, struct error *err)
{
	int fd = file_open_dir(AT_FDCWD, path, FOLDER_MODE);

	if (fd < 0)
		return error_set(err, fd, "cannot make the folder %s: %s", path, strerror(-fd));
	int empty = is_empty(fd);
	if (empty == 1)
		return fd;
	close(fd);
	if (empty < 0)
		return error_set(
			err, empty, "cannot read the folder %s: %s", path, strerror(-empty));
	return error_set(err, -ENOTEMPTY, "%s is not empty: name a new folder", path);
}

/* json is stolen. */
static int write_json(int dir_fd, const char *name, json_t *json, struct error *err)
{
	char *text = json != NULL ? json_dumps(json, JSON_INDENT(2)) : NULL;
	int r = text == NULL ? -EINVAL : file_replace(dir_fd, name, text, strlen(text), FILE_MODE);

	free(text);
	json_decref(json);
	return r < 0 ? error_set(err, r, "cannot write %s: %s", name, strerror(-r)) : 0;
}

static int write_weights(int dir_fd, int fd, const struct checkpoint_info *info, struct error *err)
{
	float *section = aligned_alloc(4096, info->section_bytes);
	int r;

	if (section == NULL)
		return error_set(err, -ENOMEM, "no memory for %" PRIu64 " MiB of weights",
			info->section_bytes >> 20);
	r = checkpoint_read_section(fd, info, SECTION_EMA, section, 0, err);
	if (r == 0)
		r = st_write_section(dir_fd, WEIGHTS_NAME, &info->table, section, err);
	free(section);
	return r;
}

static int write_in(int dir_fd, const char *folder, const char *name, json_t *json, int checkpoint,
	const struct checkpoint_info *info, struct error *err)
{
	int fd = file_open_dir(dir_fd, folder, FOLDER_MODE);
	int r;

	if (fd < 0) {
		json_decref(json);
		return error_set(err, fd, "cannot make the folder %s: %s", folder, strerror(-fd));
	}
	r = write_json(fd, name, json, err);
	if (r == 0 && checkpoint >= 0)
		r = write_weights(fd, checkpoint, info, err);
	close(fd);
	return r;
}

static int write_all(int dir_fd, int fd, const struct checkpoint_info *info, struct error *err)
{
	int r = write_in(dir_fd, "unet", "config.json", export_unet_config(info), fd, info, err);

	if (r == 0)
		r = write_in(dir_fd, "scheduler", "scheduler_config.json",
			export_scheduler_config(info), -1, info, err);
	if (r == 0)
		r = write_json(dir_fd, "model_index.json", export_model_index(), err);
	return r;
}

/* Nothing half-made stays: the folder was empty when we came. */
static void remove_all(int dir_fd, const char *path)
{
	static const char *const files[] = {"model_index.json", "unet/config.json", WEIGHTS_PATH,
		"scheduler/scheduler_config.json"};

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		unlinkat(dir_fd, files[i], 0);
	unlinkat(dir_fd, "unet", AT_REMOVEDIR);
	unlinkat(dir_fd, "scheduler", AT_REMOVEDIR);
	rmdir(path);
}

static void print_done(const struct ctl *ctl, const char *path, const struct checkpoint_info *info)
{
	char clean[4096];

	text_clean(path, clean, sizeof(clean));
	fprintf(ctl->out, "%s: EMA weights of %s, every byte verified\n", clean, info->id);
	if (export_class_count(info) > 0)
		fprintf(ctl->out,
			"note: the model has %u classes (the last one is 'none'); DDPMPipeline "
			"passes "
			"no labels: load unet/ with UNet2DModel and give class_labels\n",
			(unsigned)export_class_count(info));
}

int verb_export(struct ctl *ctl, const struct args *args)
{
	const char *path = args->positional[0];
	struct checkpoint_info info;
	struct error err;
	int fd = pick_checkpoint(ctl, args_text(args, "checkpoint"), &info, &err);

	if (fd < 0)
		return ctl_fail(ctl, fd, &err);
	int dir_fd = open_target(path, &err);
	int r = dir_fd < 0 ? dir_fd : write_all(dir_fd, fd, &info, &err);
	if (dir_fd >= 0) {
		if (r < 0)
			remove_all(dir_fd, path);
		close(dir_fd);
	}
	if (r == 0)
		print_done(ctl, path, &info);
	close(fd);
	checkpoint_info_fini(&info);
	return r < 0 ? ctl_fail(ctl, r, &err) : CTL_OK;
}
